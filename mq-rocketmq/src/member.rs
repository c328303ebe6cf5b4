//! A member of a group: the task that renews its locks and balances, and what its consumer can do.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use mq_api::{
    Clock, Error, ErrorKind, Lease, Offset, Position, Result,
    driver::{AssignmentId, Commit, CommitOutcome, Prefetch},
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    client::{OffsetReset, QueueRef, Session},
    error::{from_remoting, is_passing},
    fetch::{Filter, Lane},
    outbox::Outbox,
    ownership::{Register, client_id, register_queue},
    remoting::{RemotingError, codes::response},
    topic::{Shared, Topic, number_of, offset_of},
};

/// Locks are renewed so many times in the time that a member may be silent.
const HEARTBEATS: u32 = 6;
/// How often a member looks at its group when nobody told of a change.
const REBALANCE: Duration = Duration::from_secs(5);
/// How soon it looks again while it waits for a queue.
const HURRY: Duration = Duration::from_millis(100);
/// How often it looks whether its topic is still there.
const LOOK: Duration = Duration::from_secs(2);
/// How long leaving may take.
const LEAVING: Duration = Duration::from_secs(3);

/// Belongs to one consumer.
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session: Session,
    pub(crate) topic: Topic,
    pub(crate) group: String,
    pub(crate) filter: Filter,
    pub(crate) prefetch: Prefetch,
    pub(crate) outbox: Arc<Outbox>,
    /// Its number in the registers of queues.
    pub(crate) number: u64,
    pub(crate) clock: Clock,
    /// How long it may be silent before others take over.
    pub(crate) ttl: Duration,
    /// Wakes the task: something was released or lost, or the member is to leave.
    pub(crate) changed: Arc<Notify>,
    closing: AtomicBool,
    gone: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) owned: BTreeMap<u32, Owned>,
    /// The epoch of the last tenure of each partition.
    pub(crate) epochs: HashMap<u32, u64>,
    /// Positions that this member has stored; a broker that is killed forgets young ones.
    pub(crate) known: HashMap<u32, i64>,
    /// Where an operator wants partitions to go on.
    pub(crate) resets: HashMap<u32, i64>,
    /// Queues whose lock may still be this member's though it does not own them.
    pub(crate) unfreed: BTreeMap<u32, (QueueRef, u64)>,
}

/// A partition that this member owns, or is giving back.
pub(crate) struct Owned {
    pub(crate) id: AssignmentId,
    pub(crate) queue: QueueRef,
    pub(crate) lease: Lease,
    pub(crate) lane: Arc<Lane>,
    pub(crate) fetching: Fetching,
    pub(crate) revoking: bool,
}

/// Ends a fetching task when it is dropped.
pub(crate) struct Fetching(pub(crate) AbortHandle);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the task remembers between its turns.
struct Turn {
    renew_at: Instant,
    rebalance_at: Instant,
    look_at: Instant,
    /// Owners that brokers do not list, by number, and since when.
    absent: HashMap<u64, Instant>,
}

impl Member {
    pub(crate) fn new(
        shared: Arc<Shared>,
        topic: Topic,
        group: String,
        number: u64,
        filter: Filter,
        subscription: &mq_api::driver::Subscription,
    ) -> Self {
        Self {
            session: Session::with_client_id(&shared.cluster, client_id(number)),
            ttl: subscription
                .session_timeout
                .unwrap_or(shared.config.session_timeout),
            shared,
            topic,
            group,
            filter,
            prefetch: subscription.prefetch,
            outbox: Arc::default(),
            number,
            clock: subscription.clock.clone(),
            changed: Arc::default(),
            closing: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the member to leave. It stays asked, whatever happens to connections.
    pub(crate) fn ask_to_leave(&self) {
        self.closing.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Takes note that a broker no longer has the topic.
    pub(crate) fn topic_gone(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            self.outbox.topic_gone();
            self.changed.notify_one();
        }
    }

    fn is_ending(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.gone.load(Ordering::Acquire)
    }

    /// Remembers a position that is stored.
    pub(crate) fn remember(&self, partition: u32, position: i64) {
        self.lock().known.insert(partition, position);
    }

    /// A call of the task must not keep it from its other brokers and from leaving.
    pub(crate) fn soon(&self) -> Instant {
        Instant::now() + (self.ttl / 2).min(self.shared.config.call_timeout)
    }

    /// The lease ends a little before others may think so.
    pub(crate) fn lease_time(&self) -> Duration {
        self.ttl - self.ttl / 20
    }

    /// Runs until the member leaves, its topic is gone, or nothing can help. `ended` closes with it.
    pub(crate) async fn run(self: Arc<Self>, _ended: watch::Sender<()>) {
        let mut members = self.session.members_changed(&self.group);
        let mut resets = self.session.offset_resets(&self.group);
        let mut routes = self.shared.cluster.watch(&self.topic.physical);
        let now = Instant::now();
        let mut turn = Turn {
            renew_at: now + self.ttl / HEARTBEATS,
            rebalance_at: now,
            look_at: now + LOOK,
            absent: HashMap::new(),
        };
        let mut down = false;
        while !self.is_ending() {
            match self.take_turn(&mut turn).await {
                Ok(()) => {
                    if std::mem::take(&mut down) {
                        self.outbox.outage(None);
                    }
                }
                Err(error) if error.kind() == ErrorKind::TopicNotFound => self.topic_gone(),
                Err(error) if is_passing(&error) => {
                    tracing::debug!(%error, group = self.group, "a group's brokers do not answer");
                    down = true;
                    self.outbox.outage(Some(&error));
                    turn.rebalance_at = turn.rebalance_at.max(Instant::now() + HURRY);
                }
                Err(error) => {
                    self.outbox.fail(error);
                    break;
                }
            }
            if self.is_ending() {
                break;
            }
            let next = turn.renew_at.min(turn.rebalance_at).min(turn.look_at);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.changed.notified() => turn.rebalance_at = Instant::now(),
                Ok(()) = members.changed() => turn.rebalance_at = Instant::now(),
                Some(reset) = resets.recv() => {
                    self.reset(&reset);
                    turn.rebalance_at = Instant::now();
                }
                changed = routes.changed() => {
                    if changed.is_err() {
                        routes = self.shared.cluster.watch(&self.topic.physical);
                    }
                    turn.rebalance_at = Instant::now();
                }
            }
        }
        self.leave().await;
    }

    /// Does what is due.
    async fn take_turn(&self, turn: &mut Turn) -> Result<()> {
        let now = Instant::now();
        let mut result = Ok(());
        if turn.renew_at <= now {
            turn.renew_at = now + self.ttl / HEARTBEATS;
            result = self.renew().await;
        }
        self.lose_expired();
        self.free().await;
        if turn.look_at <= now {
            turn.look_at = now + LOOK;
            result = result.and(self.look().await);
        }
        if turn.rebalance_at <= now && !self.is_ending() {
            turn.rebalance_at = now + REBALANCE;
            match self.rebalance(&mut turn.absent).await {
                Ok(true) => {}
                Ok(false) => turn.rebalance_at = Instant::now() + HURRY,
                Err(error) => {
                    turn.rebalance_at = Instant::now() + self.ttl / HEARTBEATS;
                    result = result.and(Err(error));
                }
            }
        }
        result
    }

    /// Renews the locks of what is owned; what a broker does not grant any more is lost.
    async fn renew(&self) -> Result<()> {
        let mut held: BTreeMap<Arc<str>, Vec<(AssignmentId, i32)>> = BTreeMap::new();
        for owned in self.lock().owned.values() {
            let queues = held.entry(Arc::clone(&owned.queue.broker)).or_default();
            queues.push((owned.id, owned.queue.queue));
        }
        let until = self.clock.now() + self.lease_time();
        let calls = held.into_iter().map(|(broker, held)| async move {
            let queues: Vec<i32> = held.iter().map(|(_, queue)| *queue).collect();
            let locked = self
                .session
                .lock(&broker, &self.group, &self.topic.physical, &queues, self.soon())
                .await;
            (held, locked)
        });
        let mut lost = Vec::new();
        let mut outcomes = Vec::new();
        for (held, locked) in join_all(calls).await {
            match locked {
                Ok(locked) => {
                    let state = self.lock();
                    for (id, queue) in held {
                        let owned = state.owned.get(&id.partition).filter(|owned| owned.id == id);
                        let Some(owned) = owned else { continue };
                        if !locked.contains(&queue) || !owned.lease.renew(until) {
                            lost.push(id);
                        }
                    }
                    outcomes.push(Ok(()));
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
        self.lose(&lost);
        any_ok(outcomes)
    }

    /// Takes note of leases that ran out, and of queues that have lost what was read.
    fn lose_expired(&self) {
        let now = self.clock.now();
        let expired: Vec<AssignmentId> = self
            .lock()
            .owned
            .values()
            .filter(|owned| !owned.lease.stands_at(now) || owned.lane.is_over())
            .map(|owned| owned.id)
            .collect();
        self.lose(&expired);
    }

    /// Takes the order of an operator to go on elsewhere, as brokers before version 5.2 pass it on.
    fn reset(&self, order: &OffsetReset) {
        if *order.topic != *self.topic.physical {
            return;
        }
        let state = self.lock();
        for (queue, offset) in &order.offsets {
            let is_it = |owned: &&Owned| {
                owned.queue.queue == queue.queue_id && *owned.queue.broker == *queue.broker_name
            };
            if let Some(owned) = state.owned.values().find(is_it) {
                owned.lane.move_to(*offset);
            }
        }
    }

    /// Drops what is no longer owned and says so.
    pub(crate) fn lose(&self, ids: &[AssignmentId]) {
        if ids.is_empty() {
            return;
        }
        let mut dropped = Vec::new();
        {
            let mut state = self.lock();
            for id in ids {
                dropped.extend(state.take(*id));
            }
        }
        for owned in &dropped {
            owned.lease.revoke();
            if let Some(offset) = owned.lane.moved_to() {
                self.lock().resets.insert(owned.id.partition, offset);
            }
        }
        let ids: Vec<AssignmentId> = dropped.iter().map(|owned| owned.id).collect();
        self.outbox.lost(&ids);
        self.changed.notify_one();
    }

    /// Frees locks that were not freed when their queues were given up.
    async fn free(&self) {
        let unfreed = std::mem::take(&mut self.lock().unfreed);
        for (partition, (queue, epoch)) in unfreed {
            if let Err(error) = self.give_back(&queue, epoch).await {
                tracing::debug!(partition, %error, "a lock could not be freed");
                let mut state = self.lock();
                if !state.owned.contains_key(&partition) {
                    state.unfreed.entry(partition).or_insert((queue, epoch));
                }
            }
        }
    }

    /// Writes that nobody owns a queue, then frees its lock.
    async fn give_back(&self, queue: &QueueRef, epoch: u64) -> Result<(), RemotingError> {
        let (group, topic, deadline) = (&self.group, &self.topic.physical, self.soon());
        let nobody = Register { epoch, member: 0 }.pack();
        let register = register_queue(queue);
        self.session
            .commit(group, topic, &register, nobody, deadline)
            .await?;
        let me = self.session.client_id();
        self.session
            .unlock(&queue.broker, group, topic, me, &[queue.queue], deadline)
            .await
    }

    /// Asks brokers whether the topic is still there.
    async fn look(&self) -> Result<()> {
        let Some(layout) = self.layout() else {
            return self.shared.route(&self.topic).await.map(drop);
        };
        let mut outcomes = Vec::new();
        for broker in layout.brokers() {
            let asked = self
                .session
                .topic_config(&broker, &self.topic.physical, self.soon())
                .await;
            match asked {
                Ok(None) => {
                    self.topic_gone();
                    return Ok(());
                }
                Ok(Some(_)) => return Ok(()),
                Err(error) => outcomes.push(Err(error)),
            }
        }
        any_ok(outcomes)
    }

    pub(crate) async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        join_all(commits.iter().map(|commit| self.commit_one(commit))).await
    }

    /// Stores a position while the lock is known to be this member's; the broker itself takes any.
    async fn commit_one(&self, commit: &Commit) -> Result<CommitOutcome> {
        let id = commit.assignment;
        let Some((queue, lease)) = self.owned(id) else {
            return Ok(CommitOutcome::Lost);
        };
        if !lease.stands_at(self.clock.now()) {
            self.lose(&[id]);
            return Ok(CommitOutcome::Lost);
        }
        let position = number_of(commit.position);
        let deadline = self.shared.deadline();
        let store = || {
            self.session
                .commit(&self.group, &self.topic.physical, &queue, position, deadline)
        };
        let mut stored = store().await;
        if let Err(error) = &stored
            && error.refusal() == Some(response::SUBSCRIPTION_GROUP_NOT_EXIST)
        {
            // A heartbeat makes the group.
            self.session
                .beat(&queue.broker, deadline)
                .await
                .map_err(from_remoting)?;
            stored = store().await;
        }
        stored.map_err(from_remoting)?;
        self.remember(id.partition, position);
        Ok(CommitOutcome::Stored)
    }

    fn owned(&self, id: AssignmentId) -> Option<(QueueRef, Lease)> {
        let state = self.lock();
        let owned = state.owned.get(&id.partition).filter(|owned| owned.id == id)?;
        Some((owned.queue.clone(), owned.lease.clone()))
    }

    /// Gives assignments back: nothing of them is handed on any more, and the task frees their locks next.
    pub(crate) fn release(&self, ids: &[AssignmentId]) {
        let dropped: Vec<Owned> = {
            let mut state = self.lock();
            ids.iter().filter_map(|id| state.take(*id)).collect()
        };
        self.outbox.forget(ids);
        for owned in &dropped {
            owned.lease.revoke();
        }
        self.changed.notify_one();
    }

    pub(crate) async fn seek(&self, id: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        let (queue, _) = self.owned(id).ok_or_else(|| over(id))?;
        let offset = self.shared.resolve(&self.topic, id.partition, &queue, to).await?;
        let mut state = self.lock();
        let owned = state
            .owned
            .get_mut(&id.partition)
            .filter(|owned| owned.id == id)
            .ok_or_else(|| over(id))?;
        if !self.outbox.seek(id, generation) {
            return Err(over(id));
        }
        owned.fetching = self.fetch(&owned.lane, &owned.queue, offset, generation);
        Ok(offset_of(offset))
    }

    pub(crate) fn pause(&self, ids: &[AssignmentId], paused: bool) {
        let state = self.lock();
        for id in ids {
            if let Some(owned) = state.owned.get(&id.partition).filter(|owned| owned.id == *id) {
                owned.lane.pause(paused);
            }
        }
    }

    /// Gives back what is held and leaves the group.
    async fn leave(&self) {
        {
            let mut state = self.lock();
            let ids: Vec<AssignmentId> = state.owned.values().map(|owned| owned.id).collect();
            for owned in ids.into_iter().filter_map(|id| state.take(id)) {
                owned.lease.revoke();
            }
        }
        let deadline = Instant::now() + LEAVING;
        let goodbye = async {
            if !self.gone.load(Ordering::Acquire) {
                let unfreed = std::mem::take(&mut self.lock().unfreed);
                let freed = unfreed
                    .values()
                    .map(|(queue, epoch)| self.give_back(queue, *epoch));
                for error in join_all(freed).await.into_iter().filter_map(Result::err) {
                    tracing::debug!(%error, "a lock was not freed; it runs out");
                }
            }
            if let Err(error) = self.session.leave_consumers(&self.group, deadline).await {
                tracing::debug!(%error, "a member could not say goodbye");
            }
        };
        // Time out or not, the connections end.
        let _ = tokio::time::timeout_at(deadline, goodbye).await;
        self.session.close(deadline).await;
    }
}

impl State {
    /// Takes an assignment out; its lock is then to be freed.
    fn take(&mut self, id: AssignmentId) -> Option<Owned> {
        if self.owned.get(&id.partition)?.id != id {
            return None;
        }
        let owned = self.owned.remove(&id.partition)?;
        self.unfreed.insert(id.partition, (owned.queue.clone(), id.epoch));
        Some(owned)
    }
}

/// An error only where every broker failed; a refusal that no wait can cure counts alone.
pub(crate) fn any_ok(outcomes: Vec<Result<(), RemotingError>>) -> Result<()> {
    let failed = |outcome: Result<(), RemotingError>| outcome.err().map(from_remoting);
    let count = outcomes.len();
    let errors: Vec<Error> = outcomes.into_iter().filter_map(failed).collect();
    let every = errors.len() == count;
    let fatal = errors.iter().position(|error| !is_passing(error));
    match fatal
        .or(every.then_some(0))
        .and_then(|at| errors.into_iter().nth(at))
    {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn over(id: AssignmentId) -> Error {
    Error::new(
        ErrorKind::Interrupted,
        format!("partition {} is no longer this member's", id.partition),
    )
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("topic", &self.topic.name)
            .field("group", &self.group)
            .field("owned", &self.lock().owned.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
