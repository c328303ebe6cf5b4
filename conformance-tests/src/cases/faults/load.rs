//! A load that goes on through faults, with a history of all of it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{Consumer, ErrorKind, Producer};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    checker::Expect,
    context::{Context, Measured},
    failure::{CaseResult, Failure, note},
    flow::list,
    history::{History, How, What, payload},
};

const GROUP: &str = "group";
const PARTITIONS: u32 = 2;
/// How far members may fall behind before senders wait for them: what is judged is what a fault does, not who is faster.
const LEAD: usize = 500;
/// How soon senders look again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Senders and members of one group that do what a user's code does: go on after errors.
pub(super) struct Load {
    cx: Context,
    topic: String,
    flow: Arc<Flow>,
    senders: JoinSet<CaseResult>,
    members: JoinSet<CaseResult>,
    consumers: Vec<Consumer>,
}

/// What is stored and what has come so far.
#[derive(Default)]
struct Flow {
    stored: Mutex<Vec<String>>,
    came: Mutex<BTreeSet<String>>,
    enough: AtomicBool,
}

impl Load {
    /// Begins to send to a topic of its own and to consume it with two members.
    pub(super) async fn begin(cx: &Context) -> CaseResult<Self> {
        let mq = cx.mq().await?;
        let topic = cx.topic("load", PARTITIONS).await?;
        let producer = mq.producer(&topic).await?;
        let shown = producer.clone();
        cx.show("the producer", move || format!("{:?}", shown.status()));
        let flow = Arc::new(Flow::default());
        let mut load = Self {
            cx: cx.clone(),
            topic: topic.clone(),
            flow: Arc::clone(&flow),
            senders: JoinSet::new(),
            members: JoinSet::new(),
            consumers: Vec::new(),
        };
        for name in ["m0", "m1"] {
            let consumer = mq.consumer(&topic, &topic).await?;
            load.consumers.push(consumer.clone());
            let shown = consumer.clone();
            cx.show(format!("member {name}"), move || format!("{:?}", shown.status()));
            load.members
                .spawn(consume(cx.clone(), Arc::clone(&flow), name, consumer));
        }
        for (partition, at_once) in [(0, 1), (1, 20)] {
            let mut sender = Sender {
                history: cx.history().clone(),
                producer: producer.clone(),
                name: format!("s{partition}"),
                partition,
                next: 0,
            };
            let flow = Arc::clone(&flow);
            load.senders.spawn(async move {
                while !flow.enough.load(Ordering::Relaxed) {
                    if flow.is_behind() {
                        tokio::time::sleep(LOOK_AGAIN).await;
                        continue;
                    }
                    // One awaited at a time to one partition, pipelined to the other. What failed is sent again as a
                    // message of its own, so that its copies can be told apart.
                    let stored = sender.send(at_once).await;
                    let pause = if stored.is_empty() { 50 } else { 2 };
                    flow.stored().extend(stored);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Ok(())
            });
        }
        Ok(load)
    }

    /// Waits until messages that are sent from now on have been stored and have come; returns how long that took.
    pub(super) async fn flows(&self, what: &str, limit: Duration) -> CaseResult<Duration> {
        const ENOUGH: usize = 100;
        let begun = Instant::now();
        let mark = self.flow.stored().len();
        let flows = self
            .cx
            .eventually(format!("stuck: {ENOUGH} new messages {what}"), limit, || {
                let stored = self.flow.stored();
                let came = self.flow.came();
                let fresh = stored.get(mark..mark + ENOUGH);
                let flows = fresh.is_some_and(|fresh| fresh.iter().all(|payload| came.contains(payload)));
                async move { Ok(flows.then_some(())) }
            })
            .await;
        if let Err(failure) = flows {
            self.note_server().await;
            let stored = self.flow.stored().len().saturating_sub(mark);
            let failure = failure.during(format!("{stored} new ones were answered Ok"));
            // The history may tell what is behind it.
            self.cx
                .history()
                .check(&self.expect())
                .map_err(|seen| seen.during(&failure))?;
            return Err(failure);
        }
        Ok(begun.elapsed())
    }

    /// Writes down that the server is not there until [`is_back`](Self::is_back).
    pub(super) fn is_away(&self, why: &str) {
        self.note_disturbance(why, true);
    }

    /// Writes down that the server is there again.
    pub(super) fn is_back(&self, how: &str) {
        self.note_disturbance(how, false);
    }

    /// Writes down that the server, which is there, is not as it was.
    pub(super) fn disturbed(&self, what: &str) {
        self.note_disturbance(what, false);
    }

    fn note_disturbance(&self, what: &str, away: bool) {
        note!(self.cx, "server: {what}");
        self.cx.history().record(What::Disturbed {
            what: what.to_owned(),
            away,
        });
    }

    /// Measures how soon messages flow again, once the server is ready.
    pub(super) async fn recovers(&self, what: &str) -> CaseResult {
        let took = self.flows(what, self.cx.times().progress).await?;
        self.cx.measure(Measured::Recovery, took);
        Ok(())
    }

    /// Writes down what the server has, as far as it answers: whether messages are stuck before it or behind it.
    async fn note_server(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let ask = async {
            let mq = self.cx.mq().await?;
            let described = mq.describe_topic(&self.topic).await?;
            Ok::<_, Failure>((described.partitions, mq.committed(&self.topic, GROUP).await?))
        };
        match tokio::time::timeout(PATIENCE, ask).await {
            Ok(Ok((ends, committed))) => {
                note!(self.cx, "the server has {ends:?}, of the group {committed:?}");
            }
            Ok(Err(failure)) => note!(self.cx, "the server says: {failure}"),
            Err(_) => note!(self.cx, "the server says nothing for {PATIENCE:?}"),
        }
    }

    fn expect(&self) -> Expect {
        let mut expect = Expect::complete_for([GROUP]);
        expect.progress = Some(self.cx.times().progress);
        expect
    }

    /// Ends the sends, waits for everything that was answered `Ok`, closes the members and judges the history.
    pub(super) async fn finish(mut self) -> CaseResult {
        let limit = self.cx.times().progress;
        self.flow.enough.store(true, Ordering::Relaxed);
        while let Some(sender) = self
            .cx
            .within("the end of the sends", limit, self.senders.join_next())
            .await?
        {
            sender??;
        }
        let all = self
            .cx
            .eventually("everything that was answered Ok", limit, || {
                let missing = self.flow.missing();
                async move { Ok(missing.is_empty().then_some(())) }
            })
            .await;
        let sent = self.flow.stored().len();
        self.cx.count_sent(sent);
        note!(
            self.cx,
            "{sent} messages were answered Ok, {} came",
            self.flow.came().len()
        );
        if all.is_err() {
            self.note_server().await;
            self.cx.note_shown();
        }
        for consumer in &self.consumers {
            self.cx
                .within("close of a member", limit, consumer.close())
                .await??;
        }
        while let Some(member) = self
            .cx
            .within("the end of the members", limit, self.members.join_next())
            .await?
        {
            member??;
        }
        self.cx.history().check(&self.expect())?;
        // What the history does not explain.
        all.map_err(|failure| {
            let missing = self.flow.missing();
            failure.during(format!("{} missing: {}", missing.len(), list(&missing)))
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.flow.enough.store(true, Ordering::Relaxed);
    }
}

impl Flow {
    fn is_behind(&self) -> bool {
        let came = self.came().len();
        self.stored().len() > came + LEAD
    }

    fn missing(&self) -> Vec<String> {
        let came = self.came();
        self.stored()
            .iter()
            .filter(|payload| !came.contains(*payload))
            .cloned()
            .collect()
    }

    fn stored(&self) -> MutexGuard<'_, Vec<String>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn came(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends to one partition and writes each send down.
struct Sender {
    history: History,
    producer: Producer,
    name: String,
    partition: u32,
    next: u64,
}

impl Sender {
    /// Sends so many messages, pipelined, and returns those that were answered `Ok`.
    async fn send(&mut self, count: usize) -> Vec<String> {
        let mut under_way = Vec::with_capacity(count);
        for _ in 0..count {
            let sequence = self.next;
            self.next += 1;
            let payload = payload(&self.name, sequence, 0);
            let admitted = self.producer.enqueue_to(self.partition, payload.clone()).await;
            under_way.push((payload, sequence, admitted));
        }
        let mut stored = Vec::with_capacity(count);
        for (payload, sequence, admitted) in under_way {
            let result = match admitted {
                Ok(pending) => pending.await,
                Err(error) => Err(error),
            };
            self.history.sent(&payload, &self.name, sequence, &result);
            if result.is_ok() {
                stored.push(payload);
            }
        }
        stored
    }
}

/// Consumes and acks until the consumer is closed, and goes on after every error that is worth a retry.
async fn consume(cx: Context, flow: Arc<Flow>, name: &'static str, consumer: Consumer) -> CaseResult {
    let history = cx.history().clone();
    let mut count = 0_usize;
    loop {
        match consumer.consume().await {
            Ok(delivery) => {
                history.handed_over(GROUP, name, &delivery);
                flow.came().insert(crate::flow::text(&delivery));
                cx.count_delivered(delivery.attempt());
                history.settle(GROUP, name, delivery, How::Ack)?;
                count += 1;
                if count.is_multiple_of(200) {
                    // During a fault it fails; only those that are `Ok` promise something.
                    let _ = history.commit(GROUP, name, &consumer).await;
                }
            }
            Err(error) if error.kind() == ErrorKind::Closed => return Ok(()),
            Err(error) if error.is_retryable() => note!(cx, "member {name} goes on after: {error}"),
            Err(error) => {
                return Err(
                    Failure::from(error).during(format!("member {name} met what is not worth a retry"))
                );
            }
        }
    }
}
