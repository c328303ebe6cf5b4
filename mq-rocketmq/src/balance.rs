//! How a member comes to its partitions: who is in the group, what each should own, and whose locks stand in the way.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use mq_api::{
    Lease, Moment, Result,
    driver::{Assignment, AssignmentId},
};
use tokio::time::Instant;

use crate::{
    client::{Layout, QueueRef},
    error::from_remoting,
    fetch::{self, Lane},
    member::{Fetching, Member, Owned, any_ok},
    ownership::{Register, averaged, client_id, register_queue},
    topic::offset_of,
};

impl Member {
    pub(crate) fn layout(&self) -> Option<Layout> {
        let route = self.shared.cluster.watch(&self.topic.physical).borrow().clone();
        route.map(|route| route.layout.clone())
    }

    /// Gives back what others should own and takes what this member should; `true` where nothing is left to do.
    pub(crate) async fn rebalance(&self, absent: &mut HashMap<u64, Instant>) -> Result<bool> {
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
                let reset = self.lock().resets.get(partition).copied();
                if let Some(offset) = reset {
                    // A commit that was under way may have come after the operator's order.
                    self.session.commit(group, topic, queue, offset, deadline).await?;
                }
                let position = reset.or(position.max(ours)).or(known).unwrap_or(bounds.first);
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
            if state.resets.remove(&id.partition).is_some() {
                state.known.insert(id.partition, position);
            }
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

    pub(crate) fn fetch(&self, lane: &Arc<Lane>, queue: &QueueRef, from: i64, generation: u64) -> Fetching {
        let source = fetch::Source {
            shared: Arc::clone(&self.shared),
            session: self.session.clone(),
            topic: self.topic.clone(),
            group: self.group.clone(),
            filter: self.filter.clone(),
            outbox: Arc::clone(&self.outbox),
            most: self.prefetch.messages.clamp(1, 1024),
            lane: Arc::clone(lane),
            ended: Arc::clone(&self.changed),
            queue: queue.clone(),
        };
        Fetching(tokio::spawn(source.run(from, generation)).abort_handle())
    }
}
