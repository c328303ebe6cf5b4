//! A member of a group: the task that renews its locks and balances, and what its consumer can do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use mq_api::{
    Clock, Error, ErrorKind, Lease, Moment, Offset, Position, Result,
    driver::{Assignment, AssignmentId, Commit, CommitOutcome, Prefetch},
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    client::{Layout, QueueRef, Session},
    error::{from_remoting, is_passing},
    fetch::{self, Filter, Lane},
    outbox::Outbox,
    ownership::{Register, averaged, client_id, register_queue},
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
    number: u64,
    clock: Clock,
    /// How long it may be silent before others take over.
    ttl: Duration,
    /// Wakes the task: something was released or lost, or the member is to leave.
    changed: Notify,
    closing: AtomicBool,
    gone: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    owned: BTreeMap<u32, Owned>,
    /// The epoch of the last tenure of each partition.
    epochs: HashMap<u32, u64>,
    /// Positions that this member has stored; a broker that is killed forgets young ones.
    known: HashMap<u32, i64>,
    /// Queues whose lock may still be this member's though it does not own them.
    unfreed: BTreeMap<u32, (QueueRef, u64)>,
}

/// A partition that this member owns, or is giving back.
struct Owned {
    id: AssignmentId,
    queue: QueueRef,
    lease: Lease,
    lane: Arc<Lane>,
    fetching: Fetching,
    revoking: bool,
}

/// Ends a fetching task when it is dropped.
struct Fetching(AbortHandle);

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
            changed: Notify::new(),
            closing: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
    fn soon(&self) -> Instant {
        Instant::now() + (self.ttl / 2).min(self.shared.config.call_timeout)
    }

    /// The lease ends a little before others may think so.
    fn lease_time(&self) -> Duration {
        self.ttl - self.ttl / 20
    }

    /// Runs until the member leaves, its topic is gone, or nothing can help. `ended` closes with it.
    pub(crate) async fn run(self: Arc<Self>, _ended: watch::Sender<()>) {
        let mut members = self.session.members_changed(&self.group);
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

    fn layout(&self) -> Option<Layout> {
        let route = self.shared.cluster.watch(&self.topic.physical).borrow().clone();
        route.map(|route| route.layout.clone())
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

    /// Gives back what others should own and takes what this member should; `true` where nothing is left to do.
    async fn rebalance(&self, absent: &mut HashMap<u64, Instant>) -> Result<bool> {
        let Some(layout) = self.layout() else {
            self.shared.route(&self.topic).await?;
            return Ok(false);
        };
        let me = self.session.client_id();
        let mut members = BTreeSet::new();
        let mut outcomes = Vec::new();
        for broker in layout.brokers() {
            match self.session.members(&broker, &self.group, self.soon()).await {
                Ok(found) => {
                    if !found.contains(me) {
                        // It was restarted, or this connection is new to it.
                        outcomes.push(self.session.beat(&broker, self.soon()).await);
                    } else {
                        outcomes.push(Ok(()));
                    }
                    members.extend(found);
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
        any_ok(outcomes)?;
        members.insert(me.to_owned());
        let target: BTreeSet<QueueRef> = averaged(layout.queues(), &members, me).into_iter().collect();
        let wanted = self.compare(&layout, &target);
        let mut settled = true;
        let mut outcomes = Vec::new();
        for (broker, wanted) in wanted {
            match self.acquire(&broker, wanted, &members, absent).await {
                Ok(all) => {
                    settled &= all;
                    outcomes.push(Ok(()));
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
        settled &= outcomes.iter().all(Result::is_ok);
        outcomes
            .into_iter()
            .reduce(|one, other| if one.is_ok() { one } else { other })
            .unwrap_or(Ok(()))?;
        Ok(settled)
    }

    /// Asks back what is not to be kept, and returns what is still to be taken, by broker.
    fn compare(
        &self,
        layout: &Layout,
        target: &BTreeSet<QueueRef>,
    ) -> BTreeMap<Arc<str>, Vec<(u32, QueueRef)>> {
        let mut wanted: BTreeMap<Arc<str>, Vec<(u32, QueueRef)>> = BTreeMap::new();
        let mut revoked = Vec::new();
        {
            let mut state = self.lock();
            for owned in state.owned.values_mut() {
                if !target.contains(&owned.queue) && !owned.revoking {
                    owned.revoking = true;
                    revoked.push(owned.id);
                }
            }
            for (partition, queue) in (0..).zip(layout.queues()) {
                if target.contains(queue) && !state.owned.contains_key(&partition) {
                    let queues = wanted.entry(Arc::clone(&queue.broker)).or_default();
                    queues.push((partition, queue.clone()));
                }
            }
        }
        if !revoked.is_empty() {
            self.outbox.revoked(revoked);
        }
        wanted
    }

    /// Locks queues of one broker and takes what it got; `true` where it got all.
    async fn acquire(
        &self,
        broker: &str,
        wanted: Vec<(u32, QueueRef)>,
        members: &BTreeSet<String>,
        absent: &mut HashMap<u64, Instant>,
    ) -> Result<bool> {
        let numbers: Vec<i32> = wanted.iter().map(|(_, queue)| queue.queue).collect();
        let until = self.clock.now() + self.lease_time();
        let locked = self
            .session
            .lock(broker, &self.group, &self.topic.physical, &numbers, self.soon())
            .await
            .map_err(from_remoting)?;
        let (got, missed): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|(_, queue)| locked.contains(&queue.queue));
        let all = missed.is_empty();
        if !got.is_empty()
            && let Err(error) = self.take(&got, until).await
        {
            // What was locked and not taken would keep others out.
            let mut state = self.lock();
            for (partition, queue) in got {
                let epoch = state.epochs.get(&partition).copied().unwrap_or(0);
                state.unfreed.insert(partition, (queue, epoch));
            }
            return Err(error);
        }
        for (_, queue) in &missed {
            self.free_dead(queue, members, absent).await?;
        }
        Ok(all)
    }

    /// Frees the lock of an owner that has been gone for as long as its lease can stand.
    async fn free_dead(
        &self,
        queue: &QueueRef,
        members: &BTreeSet<String>,
        absent: &mut HashMap<u64, Instant>,
    ) -> Result<()> {
        let (group, topic) = (&self.group, &self.topic.physical);
        let stored = self
            .session
            .committed(group, topic, &register_queue(queue), self.soon())
            .await
            .map_err(from_remoting)?;
        let owner = Register::unpack(stored).member;
        let name = client_id(owner);
        if owner == 0 || owner == self.number || members.contains(&name) {
            absent.remove(&owner);
            return Ok(());
        }
        let since = *absent.entry(owner).or_insert_with(Instant::now);
        if since.elapsed() < self.ttl {
            return Ok(());
        }
        tracing::debug!(
            group,
            owner = name,
            queue = queue.queue,
            "the lock of a member that is gone is freed"
        );
        self.session
            .unlock(&queue.broker, group, topic, &name, &[queue.queue], self.soon())
            .await
            .map_err(from_remoting)
    }

    /// Takes queues of one broker whose locks it has: registers, positions, then their messages.
    async fn take(&self, got: &[(u32, QueueRef)], until: Moment) -> Result<()> {
        let queues: Vec<QueueRef> = got.iter().map(|(_, queue)| queue.clone()).collect();
        let bounds = self.shared.bounds(&self.topic, &queues).await?;
        let calls = got
            .iter()
            .zip(bounds)
            .map(|((partition, queue), bounds)| async move {
                let (group, topic, deadline) = (&self.group, &self.topic.physical, self.soon());
                let register = register_queue(queue);
                let (stored, position) = tokio::try_join!(
                    self.session.committed(group, topic, &register, deadline),
                    self.session.committed(group, topic, queue, deadline),
                )?;
                let before = Register::unpack(stored);
                let last = self.lock().epochs.get(partition).copied().unwrap_or(0);
                let epoch = before.epoch.max(last) + 1;
                let member = self.number;
                self.session
                    .commit(
                        group,
                        topic,
                        &register,
                        Register { epoch, member }.pack(),
                        deadline,
                    )
                    .await?;
                let known = self.lock().known.get(partition).copied();
                // A broker that was killed has forgotten young positions; they stand where nobody else has been since.
                let ours = known.filter(|_| before.epoch <= last);
                let position = position.max(ours).or(known).unwrap_or(bounds.first);
                if position > bounds.next {
                    tracing::warn!(
                        partition,
                        position,
                        end = bounds.next,
                        "the group is beyond the end of the queue; it goes on there"
                    );
                }
                let clean = before.member == 0;
                Ok((
                    *partition,
                    queue.clone(),
                    epoch,
                    position.clamp(0, bounds.next),
                    clean,
                ))
            });
        let taken: Vec<_> = futures_util::future::try_join_all(calls)
            .await
            .map_err(from_remoting)?;
        self.own(taken, until);
        Ok(())
    }

    fn own(&self, taken: Vec<(u32, QueueRef, u64, i64, bool)>, until: Moment) {
        let mut announced = Vec::new();
        let mut starting = Vec::new();
        for (partition, queue, epoch, position, clean) in taken {
            let id = AssignmentId { partition, epoch };
            let lease = Lease::new(self.clock.clone(), until);
            let lane = Arc::new(Lane::new(id));
            let assignment = Assignment::new(id, offset_of(position))
                .with_clean(clean)
                .with_lease(lease.clone());
            announced.push((assignment, Arc::clone(&lane.wake)));
            starting.push((id, queue, lease, lane, position));
        }
        self.outbox.assigned(announced, self.prefetch);
        for (id, queue, lease, lane, position) in starting {
            let fetching = self.fetch(&lane, &queue, position, 0);
            let mut state = self.lock();
            state.unfreed.remove(&id.partition);
            state.epochs.insert(id.partition, id.epoch);
            state.owned.insert(
                id.partition,
                Owned {
                    id,
                    queue,
                    lease,
                    lane,
                    fetching,
                    revoking: false,
                },
            );
        }
    }

    fn fetch(&self, lane: &Arc<Lane>, queue: &QueueRef, from: i64, generation: u64) -> Fetching {
        let source = fetch::Source {
            shared: Arc::clone(&self.shared),
            session: self.session.clone(),
            topic: self.topic.clone(),
            group: self.group.clone(),
            filter: self.filter.clone(),
            outbox: Arc::clone(&self.outbox),
            most: self.prefetch.messages.clamp(1, 1024),
            lane: Arc::clone(lane),
            queue: queue.clone(),
        };
        Fetching(tokio::spawn(source.run(from, generation)).abort_handle())
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
fn any_ok(outcomes: Vec<Result<(), RemotingError>>) -> Result<()> {
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
