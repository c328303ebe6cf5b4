//! The shared mode, on POP: brokers hand out single messages with a lease.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use mq_api::{
    Clock, Error, ErrorKind, Moment, Position, Result,
    driver::{QueueConsumer, QueueReceipt, QueueRecord, Subscription, topic_not_found},
};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};

use crate::{
    client::{Layout, PopMessage, PopOptions, Route, Session},
    consumer::check,
    error::{from_remoting, is_passing},
    fetch::Filter,
    format,
    ownership::{client_id, new_member},
    remoting::{PopReceipt, PopTopicKind, codes::response},
    topic::{Mode, Shared, Topic},
};

/// The most that a broker hands out at once.
const MOST_AT_ONCE: usize = 32;
/// How long a pop may wait at the broker, which does not wake it for a message that came back.
const POP_WAIT: Duration = Duration::from_secs(1);
/// How long leaving may take.
const LEAVING: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The shortest time after which a broker can be asked to bring a message back.
const SHORTEST: Duration = Duration::from_millis(1);

/// Takes single messages out of a shared group.
pub(crate) struct RocketMqQueueConsumer {
    popper: Arc<Popper>,
    /// Owns the pumps.
    task: AbortHandle,
}

struct Popper {
    shared: Arc<Shared>,
    session: Session,
    topic: Topic,
    group: String,
    filter: Filter,
    /// Where the partitions are; it grows with the topic.
    layout: Mutex<Layout>,
    lease: Duration,
    clock: Clock,
    state: Mutex<State>,
    arrived: Notify,
    /// How many messages a call waits for; none while nobody waits or some are here.
    wanted: watch::Sender<usize>,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    here: VecDeque<QueueRecord>,
    outage: bool,
    /// Told once.
    report: Option<Error>,
    ended: Option<Error>,
}

/// Joins a shared group.
pub(crate) async fn join(
    shared: &Arc<Shared>,
    subscription: Subscription,
) -> Result<Arc<RocketMqQueueConsumer>> {
    let filter = check(&subscription)?;
    if subscription.start == Position::Latest {
        return Err(Error::unsupported(
            "rocketmq",
            "a shared group that begins at the end",
        ));
    }
    let (topic, route) = shared.open(&subscription.topic).await?;
    let group = shared.group(&topic, &subscription.group)?;
    let session = Session::with_client_id(&shared.cluster, client_id(new_member()));
    let brokers = route.layout.brokers();
    session
        .join_consumers(
            &group,
            vec![filter.subscription(&topic.physical)],
            &brokers,
            shared.deadline(),
        )
        .await
        .map_err(from_remoting)?;
    shared
        .claim_mode(&session, &topic, &group, &route.layout, Mode::Shared)
        .await?;
    store_start(shared, &session, &topic, &group, &route, subscription.start).await?;
    let popper = Arc::new(Popper {
        shared: Arc::clone(shared),
        session,
        topic,
        group,
        filter,
        layout: Mutex::new(route.layout.clone()),
        lease: subscription
            .session_timeout
            .unwrap_or(shared.config.message_lease),
        clock: subscription.clock.clone(),
        state: Mutex::default(),
        arrived: Notify::new(),
        wanted: watch::Sender::new(0),
        closed: AtomicBool::new(false),
    });
    let task = tokio::spawn(Arc::clone(&popper).pump_all()).abort_handle();
    Ok(Arc::new(RocketMqQueueConsumer { popper, task }))
}

/// Brokers begin a new group at the oldest message; any other place is stored before the first pop.
async fn store_start(
    shared: &Shared,
    session: &Session,
    topic: &Topic,
    group: &str,
    route: &Route,
    start: Position,
) -> Result<()> {
    if start == Position::Earliest {
        return Ok(());
    }
    let stores = (0..)
        .zip(route.layout.queues())
        .map(|(partition, queue)| async move {
            let stored = session
                .committed(group, &topic.physical, queue, shared.deadline())
                .await
                .map_err(from_remoting)?;
            if stored.is_some() {
                return Ok(());
            }
            let offset = shared.resolve(topic, partition, queue, start).await?;
            session
                .commit(group, &topic.physical, queue, offset, shared.deadline())
                .await
                .map_err(from_remoting)
        });
    try_join_all(stores).await.map(drop)
}

impl Popper {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::closed("consumer"))
        } else {
            Ok(())
        }
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a pump for each broker of the topic, those included that get partitions later.
    async fn pump_all(self: Arc<Self>) {
        let mut routes = self.shared.cluster.watch(&self.topic.physical);
        let mut served = BTreeSet::new();
        // They end with this task.
        let mut pumps = JoinSet::new();
        loop {
            let known = routes.borrow_and_update().clone();
            // Partitions that a route does not show are not gone.
            if let Some(route) = known
                && route.layout.len() > self.layout().len()
            {
                *self.layout() = route.layout.clone();
            }
            let brokers = self.layout().brokers();
            for broker in brokers {
                if served.insert(Arc::clone(&broker)) {
                    pumps.spawn(Arc::clone(&self).pump(broker));
                }
            }
            if routes.changed().await.is_err() {
                routes = self.shared.cluster.watch(&self.topic.physical);
            }
        }
    }

    /// Pops at one broker while somebody waits.
    async fn pump(self: Arc<Self>, broker: Arc<str>) {
        let mut wanted = self.wanted.subscribe();
        let mut pause = FIRST_PAUSE;
        loop {
            let most = match wanted.wait_for(|wanted| *wanted > 0).await {
                Ok(wanted) => (*wanted).min(MOST_AT_ONCE),
                Err(_) => return,
            };
            let options = PopOptions {
                max_messages: most,
                lease: self.lease,
                wait: POP_WAIT,
                expression: &self.filter.expression,
                ..PopOptions::default()
            };
            let popped = self
                .session
                .pop(
                    &broker,
                    &self.group,
                    &self.topic.physical,
                    None,
                    &options,
                    Instant::now(),
                )
                .await;
            let error = match popped {
                Ok(popped) => {
                    pause = FIRST_PAUSE;
                    let (messages, others) = self.sort_out(popped.messages);
                    self.settle(&broker, &others).await;
                    match self.take(messages) {
                        Ok(()) if popped.polling_full => {
                            sleep(LONGEST_PAUSE).await;
                            continue;
                        }
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => {
                    if error.refusal() == Some(response::SUBSCRIPTION_GROUP_NOT_EXIST)
                        && let Err(error) = self.session.beat(&broker, self.shared.deadline()).await
                    {
                        tracing::debug!(%error, "a heartbeat failed");
                    }
                    if error.refusal() == Some(response::TOPIC_NOT_EXIST) {
                        topic_not_found(&self.topic.name)
                    } else {
                        from_remoting(error)
                    }
                }
            };
            let ends = !is_passing(&error);
            self.failed(error, ends);
            if ends {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn failed(&self, error: Error, ends: bool) {
        {
            let mut state = self.lock();
            if ends {
                state.ended = Some(error);
            } else if !std::mem::replace(&mut state.outage, true) {
                state.report = Some(error);
            }
        }
        self.arrived.notify_one();
    }

    /// Tells messages with a wanted tag from those whose tag only has the same hash, which is all that brokers compare.
    fn sort_out(&self, popped: Vec<PopMessage>) -> (Vec<PopMessage>, Vec<PopReceipt>) {
        let (wanted, others): (Vec<_>, Vec<_>) = popped
            .into_iter()
            .partition(|popped| self.filter.takes(&popped.message));
        (wanted, others.into_iter().map(|popped| popped.receipt).collect())
    }

    /// Settles what nobody wants; else it would come back for ever.
    async fn settle(&self, broker: &str, receipts: &[PopReceipt]) {
        if receipts.is_empty() {
            return;
        }
        let receipts: Vec<&PopReceipt> = receipts.iter().collect();
        let deadline = self.shared.deadline();
        let settled =
            self.session
                .pop_ack_all(broker, &self.group, &self.topic.physical, &receipts, deadline);
        if let Err(error) = settled.await {
            tracing::debug!(%error, "messages of other tags were not settled; they come again");
        }
    }

    /// Takes in what was popped.
    fn take(&self, messages: Vec<PopMessage>) -> Result<()> {
        // The lease began at the broker a moment ago.
        let until = self.until(self.clock.now());
        let mut records = Vec::with_capacity(messages.len());
        for popped in messages {
            let config = &self.shared.config;
            let message = &popped.message;
            let mut record = format::decode(message, config.tag_header.as_deref(), config.max_payload)
                .map_err(from_remoting)?;
            let receipt = popped.receipt;
            let partition = match receipt.kind {
                PopTopicKind::Plain => self.layout().partition(&receipt.broker, receipt.queue),
                _ => None,
            };
            // A message that came back is another one to the broker, which does not tell where it was.
            if partition.is_none() {
                record.offset = 0;
            }
            let attempt = u32::try_from(message.reconsume_times).unwrap_or(0) + 1;
            let token = QueueReceipt(Bytes::from(receipt.to_string()));
            records.push(QueueRecord::new(
                partition.unwrap_or(0),
                record,
                token,
                attempt,
                until,
            ));
        }
        let mut state = self.lock();
        state.outage = false;
        state.report = None;
        if records.is_empty() {
            return Ok(());
        }
        state.here.extend(records);
        self.wanted.send_replace(0);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    fn until(&self, from: Moment) -> Moment {
        from + (self.lease - self.lease / 10)
    }

    /// Returns what is here, or says that a call waits for more.
    fn look(&self, max: usize) -> Result<Vec<QueueRecord>> {
        self.check_open()?;
        let now = self.clock.now();
        let mut state = self.lock();
        // What lay here for its whole lease is another member's.
        state.here.retain(|record| record.lease_until > now);
        let count = state.here.len().min(max.max(1));
        if count > 0 {
            return Ok(state.here.drain(..count).collect());
        }
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        if let Some(error) = state.report.take() {
            return Err(error);
        }
        self.wanted
            .send_if_modified(|wanted| std::mem::replace(wanted, max.max(1)) == 0);
        Ok(Vec::new())
    }

    async fn nack_one(&self, receipt: &QueueReceipt, after: Duration) -> Result<()> {
        let receipt = read(receipt)?;
        self.session
            .pop_extend(
                &self.group,
                &self.topic.physical,
                &receipt,
                after.max(SHORTEST),
                self.shared.deadline(),
            )
            .await
            .map(drop)
            .map_err(from_remoting)
    }

    async fn extend_one(&self, receipt: &QueueReceipt) -> Result<(QueueReceipt, Moment)> {
        let until = self.until(self.clock.now());
        let receipt = read(receipt)?;
        let renewed = self
            .session
            .pop_extend(
                &self.group,
                &self.topic.physical,
                &receipt,
                self.lease,
                self.shared.deadline(),
            )
            .await
            .map_err(from_remoting)?;
        Ok((QueueReceipt(Bytes::from(renewed.to_string())), until))
    }

    /// Gives back what was not handed on, and leaves.
    async fn leave(&self) {
        let here = std::mem::take(&mut self.lock().here);
        let deadline = Instant::now() + LEAVING;
        let goodbye = async {
            join_all(here.iter().map(|record| self.nack_one(&record.receipt, SHORTEST))).await;
            if let Err(error) = self.session.leave_consumers(&self.group, deadline).await {
                tracing::debug!(%error, "a member could not say goodbye");
            }
        };
        // Time out or not, the connections end.
        let _ = tokio::time::timeout_at(deadline, goodbye).await;
        self.session.close(deadline).await;
    }
}

fn read(receipt: &QueueReceipt) -> Result<PopReceipt> {
    std::str::from_utf8(&receipt.0)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::StaleAck, "a receipt that is none of this backend's"))
}

#[async_trait]
impl QueueConsumer for RocketMqQueueConsumer {
    async fn receive(&self, max: usize) -> Result<Vec<QueueRecord>> {
        let popper = &self.popper;
        let stop = StopWanting(popper);
        loop {
            let arrived = popper.arrived.notified();
            let found = popper.look(max)?;
            if !found.is_empty() {
                return Ok(found);
            }
            arrived.await;
            let _ = &stop;
        }
    }

    async fn ack(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<()>> {
        let popper = &self.popper;
        let read: Vec<Result<PopReceipt>> = receipts.iter().map(read).collect();
        let mut by_broker: BTreeMap<&str, Vec<&PopReceipt>> = BTreeMap::new();
        for receipt in read.iter().flatten() {
            by_broker.entry(&receipt.broker).or_default().push(receipt);
        }
        let calls = by_broker.iter().map(|(broker, receipts)| async move {
            let acked = popper
                .session
                .pop_ack_all(
                    broker,
                    &popper.group,
                    &popper.topic.physical,
                    receipts,
                    popper.shared.deadline(),
                )
                .await;
            (*broker, acked.map_err(from_remoting))
        });
        let acked: BTreeMap<&str, Result<()>> = join_all(calls).await.into_iter().collect();
        read.iter()
            .map(|receipt| match receipt {
                Ok(receipt) => acked.get(&*receipt.broker).cloned().unwrap_or(Ok(())),
                Err(error) => Err(error.clone()),
            })
            .collect()
    }

    async fn nack(&self, receipts: Vec<(QueueReceipt, Duration)>) -> Vec<Result<()>> {
        join_all(
            receipts
                .iter()
                .map(|(receipt, after)| self.popper.nack_one(receipt, *after)),
        )
        .await
    }

    async fn extend(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<(QueueReceipt, Moment)>> {
        join_all(receipts.iter().map(|receipt| self.popper.extend_one(receipt))).await
    }

    fn lease(&self) -> Duration {
        self.popper.lease
    }

    async fn close(&self) -> Result<()> {
        if self.popper.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.popper.arrived.notify_waiters();
        self.task.abort();
        self.popper.leave().await;
        Ok(())
    }
}

/// Lets brokers keep messages for which nobody waits any more.
struct StopWanting<'a>(&'a Popper);

impl Drop for StopWanting<'_> {
    fn drop(&mut self) {
        self.0.wanted.send_replace(0);
    }
}

impl Drop for RocketMqQueueConsumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for RocketMqQueueConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocketMqQueueConsumer")
            .field("topic", &self.popper.topic.name)
            .field("group", &self.popper.group)
            .finish_non_exhaustive()
    }
}
