//! The shared mode: members of a consumer group of the server compete for single messages.
//!
//! A message that was read is its reader's for one lease, which the engine extends while a handler works. The server
//! counts how long each pending message is idle: one that is idle for a lease is anybody's. A message given back with a
//! delay is made idle for a lease less the delay; where the delay is longer than a lease, a sorted set says when it is
//! due. `XACK` is not fenced by the server, so the lease is looked at before.

mod pending;
mod receipt;
mod work;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mq_api::{
    Clock, Error, ErrorKind, Moment, Position, Result,
    driver::{QueueConsumer, QueueReceipt, QueueRecord, Record, Subscription},
};
use tokio::sync::{Notify, watch};

use self::receipt::Receipt;
use crate::{
    consumer::check_session_timeout,
    error,
    format::EntryId,
    link::Conn,
    resp::Reply,
    topic::{Mode, Shared, Topic},
    upkeep::{OpenTopic, Upkeep},
};

/// Who holds what was given back, until somebody takes it: no member is called so, for `:` is escaped in names.
const NOBODY: &str = "mq:back";

/// One member that shares a group.
pub(crate) struct RedisQueue {
    inner: Arc<Inner>,
    /// Closes when the member's task has ended.
    ended: watch::Receiver<()>,
}

struct Inner {
    shared: Arc<Shared>,
    topic: Topic,
    group: String,
    name: String,
    clock: Clock,
    lease: Duration,
    state: Mutex<State>,
    /// Messages, or an error, for those who receive.
    arrived: Notify,
    /// Somebody receives, or the member is to leave.
    wanted: Notify,
    /// A message that was given back falls due sooner than what was known.
    sooner: Notify,
    closing: AtomicBool,
    _open: OpenTopic,
}

#[derive(Default)]
struct State {
    buffer: VecDeque<Buffered>,
    /// How many messages receivers wait for.
    wanted: usize,
    held: HashMap<(u32, EntryId), Held>,
    due: BinaryHeap<Reverse<(Instant, u32, EntryId)>>,
    /// Messages whose leases ran low before anybody took them: they go back unseen.
    late: Vec<(u32, EntryId)>,
    terminal: Option<Error>,
    /// The failure of an outage, until somebody was told.
    trouble: Option<Error>,
    down: bool,
}

struct Buffered {
    partition: u32,
    record: Record,
    id: EntryId,
}

#[derive(Clone, Copy)]
struct Held {
    until: Moment,
    attempt: u32,
}

/// The most messages that one call takes from the server, of one partition.
const MOST_AT_ONCE: usize = 1000;

/// Joins a group that shares.
pub(crate) async fn join(
    shared: &Arc<Shared>,
    upkeep: &Arc<Upkeep>,
    subscription: Subscription,
) -> Result<Arc<dyn QueueConsumer>> {
    if let Some((name, _)) = subscription.properties.first() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("consumer property {name:?}: the redis backend knows none"),
        ));
    }
    check_session_timeout(&subscription)?;
    let conn = shared.link.conn().await?;
    let topic = shared.topic(&conn, &subscription.topic).await?;
    if !topic.is_foreign() {
        shared
            .claim_mode(&conn, &topic, &subscription.group, Mode::Shared)
            .await?;
    }
    let inner = Arc::new(Inner {
        _open: upkeep.open(&topic),
        group: shared.keys.queue_group(&subscription.group),
        name: format!("{:016x}", fastrand::u64(..)),
        clock: subscription.clock.clone(),
        lease: subscription
            .session_timeout
            .unwrap_or(shared.config.session_timeout),
        shared: Arc::clone(shared),
        topic,
        state: Mutex::default(),
        arrived: Notify::new(),
        wanted: Notify::new(),
        sooner: Notify::new(),
        closing: AtomicBool::new(false),
    });
    inner.resolve_start(&conn, subscription.start).await?;
    let (alive, ended) = watch::channel(());
    let queue = RedisQueue {
        inner: Arc::clone(&inner),
        ended,
    };
    // Ends when it has left, which `close` and the drop of the queue ask it to.
    tokio::spawn(work::run(inner, alive));
    Ok(Arc::new(queue))
}

impl Drop for RedisQueue {
    fn drop(&mut self) {
        self.inner.ask_to_leave();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn ask_to_leave(&self) {
        self.closing.store(true, Ordering::Release);
        self.wanted.notify_waiters();
        self.wanted.notify_one();
        self.sooner.notify_one();
    }

    fn key(&self, partition: u32) -> String {
        self.topic.key(&self.shared.keys, partition)
    }

    fn due_key(&self, partition: u32) -> String {
        format!("{}:g:{}:due", self.key(partition), self.group)
    }

    /// When what is asked for at `sent` stops being this member's, a little before others may think so.
    fn until(&self, sent: Moment) -> Moment {
        sent + (self.lease - self.lease / 20)
    }

    /// Makes the group where it is new; a group that exists keeps its place.
    async fn resolve_start(&self, conn: &Conn, start: Position) -> Result<()> {
        let mut pipe = redis::pipe();
        for partition in 0..self.topic.partitions {
            let from = match start {
                Position::Earliest => "0".to_owned(),
                Position::Latest => "$".to_owned(),
                other => {
                    let offset = self.shared.resolve(conn, &self.topic, partition, other).await?;
                    self.topic.before(offset).to_string()
                }
            };
            pipe.add_command(make_group(&self.key(partition), &self.group, &from));
        }
        for reply in conn.ask_all(&pipe).await? {
            match reply {
                Reply::Refused(words) if words.starts_with("BUSYGROUP") => {}
                Reply::Refused(words) if words.contains("requires the key to exist") => {
                    return Err(mq_api::driver::topic_not_found(&self.topic.name));
                }
                Reply::Refused(words) => return Err(error::refused(&words)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes messages in and wakes who waits for them.
    fn take_in(&self, messages: Vec<(Buffered, Held)>) {
        if messages.is_empty() {
            return;
        }
        {
            let mut state = self.lock();
            for (buffered, held) in messages {
                state.held.insert((buffered.partition, buffered.id), held);
                state.buffer.push_back(buffered);
            }
        }
        self.arrived.notify_waiters();
    }

    fn fail(&self, error: Error) {
        self.lock().terminal.get_or_insert(error);
        self.arrived.notify_waiters();
    }

    fn outage(&self, error: Error) {
        {
            let mut state = self.lock();
            if !std::mem::replace(&mut state.down, true) {
                state.trouble = Some(error);
            }
        }
        self.arrived.notify_waiters();
    }

    /// Sets aside what has too little of its lease left to be handed over.
    fn set_late_aside(&self, state: &mut State) {
        let enough = self.clock.now() + self.lease / 4;
        let State {
            buffer, held, late, ..
        } = state;
        buffer.retain(|buffered| {
            let at = (buffered.partition, buffered.id);
            let fresh = held.get(&at).is_some_and(|held| held.until >= enough);
            if !fresh {
                late.push(at);
            }
            fresh
        });
    }

    /// Takes what is there for a receiver.
    fn pop(&self, state: &mut State, max: usize) -> Vec<QueueRecord> {
        self.set_late_aside(state);
        if !state.late.is_empty() {
            self.sooner.notify_one();
        }
        let most = max.min(state.buffer.len());
        let State { buffer, held, .. } = state;
        buffer
            .drain(..most)
            .filter_map(
                |Buffered {
                     partition,
                     record,
                     id,
                 }| {
                    let held = held.get(&(partition, id))?;
                    let receipt = Receipt {
                        partition,
                        id,
                        attempt: held.attempt,
                    };
                    Some(QueueRecord::new(
                        partition,
                        record,
                        receipt.encode(),
                        held.attempt,
                        held.until,
                    ))
                },
            )
            .collect()
    }

    /// Checks receipts against their leases, and takes those out that stand where they are settled for good.
    fn check(&self, receipts: &[QueueReceipt], settle: bool) -> Vec<Result<Receipt>> {
        let now = self.clock.now();
        let mut state = self.lock();
        receipts
            .iter()
            .map(|receipt| {
                let receipt = Receipt::decode(receipt)?;
                let at = (receipt.partition, receipt.id);
                let stands = state
                    .held
                    .get(&at)
                    .is_some_and(|held| held.until > now && held.attempt == receipt.attempt);
                if !stands || settle {
                    state.held.remove(&at);
                }
                if stands { Ok(receipt) } else { Err(stale(&receipt)) }
            })
            .collect()
    }

    /// Has a message come again, after a delay, as often handed over as `attempt` says.
    fn give_back(&self, pipe: &mut redis::Pipeline, at: (u32, EntryId), attempt: u32, after: Duration) {
        let (partition, id) = at;
        let key = self.key(partition);
        let lease = millis(self.lease);
        let mut idle = lease.saturating_sub(millis(after));
        if after > self.lease {
            idle = 0;
            let due = self.shared.clock.now().saturating_add(after);
            pipe.cmd("ZADD")
                .arg(self.due_key(partition))
                .arg(due.as_millis())
                .arg(id.to_string());
        }
        pipe.cmd("XCLAIM")
            .arg(key)
            .arg(&self.group)
            .arg(NOBODY)
            .arg(0)
            .arg(id.to_string())
            .arg("IDLE")
            .arg(idle)
            .arg("RETRYCOUNT")
            .arg(attempt)
            .arg("JUSTID");
    }

    /// Waits until this member itself may take what it gave back.
    fn note_due(&self, messages: impl Iterator<Item = ((u32, EntryId), Duration)>) {
        let now = Instant::now();
        {
            let mut state = self.lock();
            for ((partition, id), after) in messages {
                state.due.push(Reverse((now + after, partition, id)));
            }
        }
        self.sooner.notify_one();
    }

    async fn settle_all(&self, pipe: &redis::Pipeline) -> Result<Vec<Reply>> {
        self.shared.link.conn().await?.ask_all(pipe).await
    }
}

/// Counts a receiver among those who wait, and no longer when it is dropped.
struct Waiting<'a> {
    inner: &'a Inner,
    max: usize,
}

impl<'a> Waiting<'a> {
    fn new(inner: &'a Inner, max: usize) -> Self {
        inner.lock().wanted += max;
        inner.wanted.notify_waiters();
        inner.wanted.notify_one();
        inner.sooner.notify_one();
        Self { inner, max }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.inner.lock().wanted -= self.max;
    }
}

#[async_trait]
impl QueueConsumer for RedisQueue {
    async fn receive(&self, max: usize) -> Result<Vec<QueueRecord>> {
        let inner = &*self.inner;
        let mut waiting = None;
        loop {
            let mut arrived = std::pin::pin!(inner.arrived.notified());
            arrived.as_mut().enable();
            let records = {
                let mut state = inner.lock();
                let popped = inner.pop(&mut state, max);
                if popped.is_empty() {
                    if let Some(error) = &state.terminal {
                        return Err(error.clone());
                    }
                    if inner.is_closing() {
                        return Err(Error::closed("consumer"));
                    }
                    if let Some(error) = state.trouble.take() {
                        return Err(error);
                    }
                }
                popped
            };
            if !records.is_empty() {
                return Ok(records);
            }
            if waiting.is_none() {
                waiting = Some(Waiting::new(inner, max));
            }
            arrived.await;
        }
    }

    async fn ack(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<()>> {
        let inner = &*self.inner;
        let checked = inner.check(&receipts, false);
        let mut by_partition: HashMap<u32, Vec<EntryId>> = HashMap::new();
        for receipt in checked.iter().flatten() {
            by_partition
                .entry(receipt.partition)
                .or_default()
                .push(receipt.id);
        }
        let mut pipe = redis::pipe();
        let mut order = Vec::new();
        for (partition, ids) in by_partition {
            let mut cmd = redis::cmd("XACK");
            cmd.arg(inner.key(partition)).arg(&inner.group);
            for id in ids {
                cmd.arg(id.to_string());
            }
            pipe.add_command(cmd);
            order.push(partition);
        }
        let outcome = inner.settle_all(&pipe).await.map(|replies| {
            order
                .into_iter()
                .zip(replies)
                .filter_map(|(partition, reply)| match reply {
                    Reply::Refused(words) => Some((partition, error::refused(&words))),
                    _ => None,
                })
                .collect::<HashMap<u32, Error>>()
        });
        let results: Vec<Result<Receipt>> = checked
            .into_iter()
            .map(|checked| {
                let receipt = checked?;
                match &outcome {
                    Err(error) => Err(error.clone()),
                    Ok(refused) => refused
                        .get(&receipt.partition)
                        .map_or(Ok(receipt), |error| Err(error.clone())),
                }
            })
            .collect();
        let mut state = inner.lock();
        results
            .into_iter()
            .map(|result| {
                let receipt = result?;
                state.held.remove(&(receipt.partition, receipt.id));
                Ok(())
            })
            .collect()
    }

    async fn nack(&self, receipts: Vec<(QueueReceipt, Duration)>) -> Vec<Result<()>> {
        let inner = &*self.inner;
        let (all, delays): (Vec<QueueReceipt>, Vec<Duration>) = receipts.into_iter().unzip();
        let checked = inner.check(&all, false);
        let mut pipe = redis::pipe();
        for (receipt, after) in checked.iter().zip(&delays) {
            if let Ok(receipt) = receipt {
                let at = (receipt.partition, receipt.id);
                inner.give_back(&mut pipe, at, receipt.attempt, *after);
            }
        }
        let outcome = inner.settle_all(&pipe).await.and_then(|replies| {
            replies
                .into_iter()
                .find_map(|reply| match reply {
                    Reply::Refused(words) => Some(error::refused(&words)),
                    _ => None,
                })
                .map_or(Ok(()), Err)
        });
        let results: Vec<Result<()>> = checked
            .iter()
            .map(|checked| match checked {
                Ok(_) => outcome.clone(),
                Err(error) => Err(error.clone()),
            })
            .collect();
        if outcome.is_ok() {
            let done: Vec<((u32, EntryId), Duration)> = checked
                .iter()
                .zip(delays)
                .filter_map(|(checked, after)| {
                    let receipt = checked.as_ref().ok()?;
                    Some(((receipt.partition, receipt.id), after))
                })
                .collect();
            {
                let mut state = inner.lock();
                for (at, _) in &done {
                    state.held.remove(at);
                }
            }
            inner.note_due(done.into_iter());
        }
        results
    }

    async fn extend(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<(QueueReceipt, Moment)>> {
        let inner = &*self.inner;
        let checked = inner.check(&receipts, false);
        let sent = inner.clock.now();
        let mut pipe = redis::pipe();
        for receipt in checked.iter().flatten() {
            pipe.cmd("XCLAIM")
                .arg(inner.key(receipt.partition))
                .arg(&inner.group)
                .arg(&inner.name)
                .arg(0)
                .arg(receipt.id.to_string())
                .arg("JUSTID");
        }
        let mut replies = match inner.settle_all(&pipe).await {
            Ok(replies) => replies.into_iter(),
            Err(error) => return checked.iter().map(|_| Err(error.clone())).collect(),
        };
        let until = inner.until(sent);
        let now = inner.clock.now();
        let mut state = inner.lock();
        checked
            .into_iter()
            .map(|checked| {
                let receipt = checked?;
                match replies.next() {
                    Some(Reply::Refused(words)) => Err(error::refused(&words)),
                    Some(reply) if !reply.array().is_empty() => {
                        let at = (receipt.partition, receipt.id);
                        match state.held.get_mut(&at).filter(|held| held.until > now) {
                            Some(held) => {
                                held.until = until;
                                Ok((receipt.encode(), until))
                            }
                            None => Err(stale(&receipt)),
                        }
                    }
                    _ => Err(stale(&receipt)),
                }
            })
            .collect()
    }

    fn lease(&self) -> Duration {
        self.inner.lease - self.inner.lease / 20
    }

    async fn close(&self) -> Result<()> {
        self.inner.ask_to_leave();
        self.inner.arrived.notify_waiters();
        let mut ended = self.ended.clone();
        let _ = ended.changed().await;
        Ok(())
    }
}

fn stale(receipt: &Receipt) -> Error {
    Error::new(
        ErrorKind::StaleAck,
        format!(
            "the lease on entry {} of partition {} has run out",
            receipt.id, receipt.partition
        ),
    )
}

fn make_group(key: &str, group: &str, from: &str) -> redis::Cmd {
    let mut cmd = redis::cmd("XGROUP");
    cmd.arg("CREATE").arg(key).arg(group).arg(from);
    cmd
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue")
            .field("topic", &self.inner.topic.name)
            .field("group", &self.inner.group)
            .finish_non_exhaustive()
    }
}
