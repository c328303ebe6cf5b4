//! Groups whose members own partitions, each under a lease that its member's own task renews.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Clock, Error, ErrorKind, GroupName, Lease, Offset, Position, Result,
    assign::{View, assign},
    driver::{
        self, Assignment, AssignmentId, Batch, Commit, CommitOutcome, CommittedPosition, Event, Subscription,
    },
};
use tokio::{sync::watch, task::JoinHandle};

use crate::driver::{Partition, State, Topic};

/// How long a member may be silent where it does not say.
const SESSION: Duration = Duration::from_secs(6);
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Group {
    slots: Vec<Slot>,
    members: BTreeMap<u64, Member>,
}

/// One partition as the group sees it.
#[derive(Debug)]
struct Slot {
    committed: Offset,
    acked_above: Vec<Range<Offset>>,
    epoch: u64,
    owner: Option<u64>,
    /// Whether the owner was asked to give it back.
    revoking: bool,
}

#[derive(Debug)]
struct Member {
    lease: Lease,
    /// What it has not been told yet; a few events a partition at the most.
    mail: VecDeque<Event>,
    lanes: BTreeMap<u32, Lane>,
    /// The partition that was served last.
    last: u32,
}

/// How far a member has read a partition in one tenure.
#[derive(Debug)]
struct Lane {
    id: AssignmentId,
    next: Offset,
    /// Counts its seeks, so that what was read before is told apart.
    generation: u64,
    paused: bool,
}

impl Group {
    pub(crate) fn committed(&self) -> Vec<CommittedPosition> {
        (0..)
            .zip(&self.slots)
            .map(|(partition, slot)| {
                CommittedPosition::new(partition, slot.committed).with_acked_above(slot.acked_above.clone())
            })
            .collect()
    }

    /// Finds the partition if this tenure of it lasts and the owner's lease stands.
    fn owned(&mut self, member: u64, id: AssignmentId) -> Option<&mut Slot> {
        let lease = &self.members.get(&member)?.lease;
        let stands = lease.stands_at(lease.clock().now());
        let slot = self.slots.get_mut(id.partition as usize)?;
        (stands && slot.owner == Some(member) && slot.epoch == id.epoch).then_some(slot)
    }

    /// Takes away all that a member has, and returns what that was.
    fn strip(&mut self, id: u64) -> Vec<AssignmentId> {
        for slot in self.slots.iter_mut().filter(|slot| slot.owner == Some(id)) {
            (slot.owner, slot.revoking) = (None, false);
        }
        let member = self.members.get_mut(&id);
        let lanes = member.map(|member| std::mem::take(&mut member.lanes));
        lanes.into_iter().flatten().map(|(_, lane)| lane.id).collect()
    }

    /// Takes away what a member has whose lease has run out, and drops what it was to be told before.
    fn end_session(&mut self, id: u64) {
        let lost = self.strip(id);
        if let Some(member) = self.members.get_mut(&id)
            && !lost.is_empty()
        {
            member.mail = [Event::Lost(lost)].into();
        }
    }

    /// Renews the lease of a member that lives; one that was silent for too long begins anew.
    fn beat(&mut self, id: u64, session: Duration) {
        let until = |lease: &Lease| lease.clock().now() + session;
        let lease = self.members.get(&id).map(|member| member.lease.clone());
        if let Some(lease) = lease.filter(|lease| !lease.renew(until(lease))) {
            self.end_session(id);
            if let Some(member) = self.members.get_mut(&id) {
                member.lease = Lease::new(lease.clock().clone(), until(&lease));
            }
        }
        self.rebalance();
    }

    /// Gives free partitions to those who should have them, and asks for those that others should have.
    fn rebalance(&mut self) {
        let mut view = View::new();
        let alive = |member: &Member| member.lease.stands_at(member.lease.clock().now());
        let (live, late): (Vec<_>, Vec<_>) = self.members.iter().partition(|(_, member)| alive(member));
        view.extend(
            live.iter()
                .map(|(id, _)| (format!("{id:020}"), Default::default())),
        );
        for id in late.into_iter().map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_session(id);
        }
        for (partition, slot) in (0..).zip(&self.slots).filter(|(_, slot)| !slot.revoking) {
            let owner = slot.owner.map(|id| format!("{id:020}"));
            if let Some(owned) = owner.and_then(|name| view.get_mut(&name)) {
                owned.insert(partition);
            }
        }
        for (name, partitions) in assign(self.slots.len() as u32, &view) {
            let id: u64 = name.parse().unwrap_or_default();
            for partition in partitions {
                self.give_or_ask(id, partition);
            }
        }
    }

    fn give_or_ask(&mut self, id: u64, partition: u32) {
        let Some(slot) = self.slots.get_mut(partition as usize) else {
            return;
        };
        let tenure = |epoch| AssignmentId { partition, epoch };
        match slot.owner {
            None => {
                let Some(member) = self.members.get_mut(&id) else {
                    return;
                };
                slot.epoch += 1;
                slot.owner = Some(id);
                let lane = Lane {
                    id: tenure(slot.epoch),
                    next: slot.committed,
                    generation: 0,
                    paused: false,
                };
                let assignment = Assignment::new(lane.id, lane.next)
                    .with_acked_above(slot.acked_above.clone())
                    .with_lease(member.lease.clone());
                member.lanes.insert(partition, lane);
                member.mail.push_back(Event::Assigned(vec![assignment]));
            }
            Some(owner) if owner != id && !slot.revoking => {
                slot.revoking = true;
                if let Some(owner) = self.members.get_mut(&owner) {
                    owner.mail.push_back(Event::Revoked(vec![tenure(slot.epoch)]));
                }
            }
            Some(_) => {}
        }
    }
}

impl Member {
    /// Takes the next event: ownership first, then messages, one partition after the other.
    fn next(&mut self, partitions: &[Partition]) -> Option<Event> {
        if let Some(event) = self.mail.pop_front() {
            return Some(event);
        }
        let (before, behind): (Vec<_>, Vec<_>) = self
            .lanes
            .values_mut()
            .partition(|lane| lane.id.partition <= self.last);
        for lane in behind.into_iter().chain(before).filter(|lane| !lane.paused) {
            let partition = partitions.get(lane.id.partition as usize)?;
            if lane.next < partition.first {
                let (from, to) = (
                    std::mem::replace(&mut lane.next, partition.first),
                    partition.first,
                );
                let assignment = lane.id;
                return Some(Event::Trimmed { assignment, from, to });
            }
            let records = partition.read(lane.next, BATCH_MESSAGES, BATCH_BYTES);
            if !records.is_empty() {
                lane.next += records.len() as u64;
                self.last = lane.id.partition;
                return Some(Event::Batch(Batch::new(
                    lane.id,
                    lane.generation,
                    records.into(),
                    lane.next,
                )));
            }
        }
        None
    }
}

/// Joins a group. Nothing here waits, so that a dropped future leaves no membership behind.
pub(crate) fn join(
    topic: Arc<Topic>,
    subscription: &Subscription,
) -> Result<(Arc<dyn driver::Consumer>, Box<dyn driver::Events>)> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = subscription.group.clone();
    let session = subscription.session_timeout.unwrap_or(SESSION);
    let clock: &Clock = &subscription.clock;
    topic.change(|state| {
        if state.gone {
            return Err(driver::topic_not_found(&topic.name));
        }
        if !state.groups.contains_key(&name) {
            // The start of a new group is stored before anyone can read from it: `Latest` has no race.
            let starts = state.partitions.iter().map(|p| p.resolve(subscription.start));
            let slots = starts.map(|start| {
                Ok(Slot {
                    committed: start?,
                    acked_above: Vec::new(),
                    epoch: 0,
                    owner: None,
                    revoking: false,
                })
            });
            let slots = slots.collect::<Result<_>>()?;
            let members = BTreeMap::new();
            state.groups.insert(name.clone(), Group { slots, members });
        }
        let member = Member {
            lease: Lease::new(clock.clone(), clock.now() + session),
            mail: VecDeque::new(),
            lanes: BTreeMap::new(),
            last: 0,
        };
        let group = state.groups.entry(name.clone()).or_default();
        group.members.insert(id, member);
        group.rebalance();
        Ok(())
    })?;
    let seat = Seat { topic, name, id };
    let heart = tokio::spawn({
        let seat = seat.clone();
        async move {
            loop {
                seat.change(|group| group.beat(id, session));
                tokio::time::sleep(session / 4).await;
            }
        }
    });
    let news = changed(&seat.topic);
    let membership = Arc::new(Membership { seat, heart });
    let consumer = OwnConsumer(Arc::clone(&membership));
    Ok((Arc::new(consumer), Box::new(OwnEvents { membership, news })))
}

/// Says which member of which group.
#[derive(Clone, Debug)]
struct Seat {
    topic: Arc<Topic>,
    name: GroupName,
    id: u64,
}

impl Seat {
    fn change<T>(&self, change: impl FnOnce(&mut Group) -> T) -> T {
        self.topic
            .change(|state| change(state.groups.entry(self.name.clone()).or_default()))
    }

    fn leave(&self) {
        self.change(|group| {
            group.strip(self.id);
            group.members.remove(&self.id);
            group.rebalance();
        });
    }
}

/// Ends with the last handle: the task that renews the lease, and the membership.
#[derive(Debug)]
struct Membership {
    seat: Seat,
    heart: JoinHandle<()>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.heart.abort();
        self.seat.leave();
    }
}

#[derive(Debug)]
struct OwnConsumer(Arc<Membership>);

#[async_trait]
impl driver::Consumer for OwnConsumer {
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let seat = &self.0.seat;
        seat.change(|group| {
            let store = |commit: Commit| match group.owned(seat.id, commit.assignment) {
                Some(slot) => {
                    slot.committed = commit.position;
                    slot.acked_above = commit.acked_above;
                    Ok(CommitOutcome::Stored)
                }
                None => Ok(CommitOutcome::Lost),
            };
            commits.into_iter().map(store).collect()
        })
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        let seat = &self.0.seat;
        seat.change(|group| {
            for id in assignments {
                if let Some(slot) = group.owned(seat.id, id) {
                    slot.owner = None;
                    slot.revoking = false;
                    if let Some(member) = group.members.get_mut(&seat.id) {
                        member.lanes.remove(&id.partition);
                    }
                }
            }
            group.rebalance();
        });
        Ok(())
    }

    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        let seat = &self.0.seat;
        seat.topic.change(|state| {
            let at = assignment.partition as usize;
            let group = state.groups.get_mut(&seat.name);
            let lane = group.and_then(|group| {
                group
                    .members
                    .get_mut(&seat.id)?
                    .lanes
                    .get_mut(&assignment.partition)
            });
            match (
                state.partitions.get(at),
                lane.filter(|lane| lane.id == assignment),
            ) {
                (Some(partition), Some(lane)) => {
                    lane.next = partition.resolve(to)?;
                    lane.generation = generation;
                    Ok(lane.next)
                }
                _ => Err(Error::new(
                    ErrorKind::Interrupted,
                    format!("partition {at} is no longer this member's"),
                )),
            }
        })
    }

    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        let seat = &self.0.seat;
        seat.change(|group| {
            let lanes = group
                .members
                .get_mut(&seat.id)
                .into_iter()
                .flat_map(|m| m.lanes.values_mut());
            for lane in lanes.filter(|lane| assignments.contains(&lane.id)) {
                lane.paused = paused;
            }
        });
    }

    async fn close(&self) -> Result<()> {
        self.0.seat.leave();
        Ok(())
    }
}

type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

struct OwnEvents {
    membership: Arc<Membership>,
    news: Changed,
}

impl driver::Events for OwnEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let seat = &self.membership.seat;
        loop {
            let event = {
                let mut state = seat.topic.lock();
                if state.gone {
                    return Poll::Ready(Ok(Event::TopicGone));
                }
                let State {
                    groups, partitions, ..
                } = &mut *state;
                let member = groups
                    .get_mut(&seat.name)
                    .and_then(|group| group.members.get_mut(&seat.id));
                match member {
                    Some(member) => member.next(partitions),
                    None => return Poll::Ready(Err(Error::closed("consumer"))),
                }
            };
            if let Some(event) = event {
                return Poll::Ready(Ok(event));
            }
            ready!(self.news.as_mut().poll(cx));
            // Subscribed anew before the next look, so that nothing is missed in between.
            self.news = changed(&seat.topic);
        }
    }
}

/// Waits for the next change from now on.
fn changed(topic: &Topic) -> Changed {
    let mut news: watch::Receiver<u64> = topic.news.subscribe();
    Box::pin(async move {
        // The topic outlives its members; without it there is nothing to wait for.
        let _ = news.changed().await;
    })
}
