//! One member of a partitioned group: what it can do, and what happens to it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use mq_api::{
    Error, Offset, Position, Result,
    driver::{Assignment, AssignmentId, Batch, Commit, CommitOutcome, Consumer, Event, Events, Subscription},
};
use tokio::task::JoinHandle;

use crate::{
    broker::Broker,
    config::LEAST_LEASE,
    error::MemoryError,
    group::{Group, Leave},
    log::{Cursor, Only, Read, Watching},
    member::{End, Mailed, Member, Orders},
    topic::{self, Topic},
    wakes::Wakes,
};

/// The most messages and bytes of one batch, and so of one turn of a partition.
const BATCH_MESSAGES: usize = 1024;
const BATCH_BYTES: usize = 1024 * 1024;

/// Joins a group. Both answers keep the membership; it ends with the first of them that is dropped.
pub(crate) fn join(
    broker: &Arc<Broker>,
    topic: &Arc<Topic>,
    subscription: &Subscription,
) -> Result<(MemoryConsumer, MemoryEvents)> {
    let group = topic.partitioned_group(&subscription.group, subscription.start, broker)?;
    let config = &broker.config;
    let member = Arc::new(Member::new(
        broker.next_id(),
        config.max_partitions,
        subscription.session_timeout.unwrap_or(config.revoke_timeout),
        config.lease.map(|lease| {
            subscription
                .session_timeout
                .map_or(lease, |asked| asked.max(LEAST_LEASE))
        }),
        &subscription.clock,
    ));
    group.join(Arc::clone(&member), &mut Wakes::default());
    let renewal = member.renew_every().map(|every| {
        let (group, id) = (Arc::clone(&group), member.id);
        Arc::new(Renewal(tokio::spawn(async move {
            while group.keep_alive(id, &mut Wakes::default()) {
                tokio::time::sleep(every).await;
            }
        })))
    });
    let membership = Membership {
        group,
        member,
        _renewal: renewal,
    };
    let consumer = MemoryConsumer {
        broker: Arc::clone(broker),
        topic: Arc::clone(topic),
        membership: membership.clone(),
        closed: AtomicBool::new(false),
    };
    let events = MemoryEvents {
        broker: Arc::clone(broker),
        topic: Arc::clone(topic),
        membership,
        lanes: Vec::new(),
        turns: VecDeque::new(),
        registered: None,
        max_messages: subscription.prefetch.messages.clamp(1, BATCH_MESSAGES),
        max_bytes: subscription.prefetch.bytes.clamp(1, BATCH_BYTES),
        gone_told: false,
    };
    Ok((consumer, events))
}

#[derive(Clone)]
struct Membership {
    group: Arc<Group>,
    member: Arc<Member>,
    _renewal: Option<Arc<Renewal>>,
}

/// Renews a lease from the runtime that the member runs in: where that stands still, so does the member.
struct Renewal(JoinHandle<()>);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Membership {
    fn leave(&self, how: Leave) {
        self.group.leave(self.member.id, how, &mut Wakes::default());
    }
}

/// Controls one member.
pub(crate) struct MemoryConsumer {
    broker: Arc<Broker>,
    topic: Arc<Topic>,
    membership: Membership,
    closed: AtomicBool,
}

impl MemoryConsumer {
    async fn gate(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(MemoryError::Closed("consumer").into());
        }
        self.broker.faults.gate(self.broker.config.request_timeout).await
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        match self.gate().await {
            Ok(()) => self.membership.group.commit(&self.membership.member, commits),
            Err(error) => commits.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        self.gate().await?;
        let Membership { group, member, .. } = &self.membership;
        group.release(member.id, &assignments, &mut Wakes::default());
        Ok(())
    }

    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        self.gate().await?;
        let Membership { group, member, .. } = &self.membership;
        group.check_owner(member.id, assignment)?;
        let offset = topic::resolve(self.topic.try_partition(assignment.partition)?, to)?;
        member.order(&mut Wakes::default(), |orders| {
            let AssignmentId { partition, epoch } = assignment;
            orders.seek.insert(partition, (epoch, offset, generation));
        });
        Ok(offset)
    }

    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        self.membership.member.order(&mut Wakes::default(), |orders| {
            let orders = &mut orders.pause;
            orders.extend(assignments.iter().map(|id| (id.partition, (id.epoch, paused))));
        });
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.membership.leave(Leave::Closed);
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.membership.leave(Leave::Vanished);
    }
}

impl fmt::Debug for MemoryConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConsumer")
            .field("topic", &self.topic.name)
            .field("member", &self.membership.member.id)
            .finish_non_exhaustive()
    }
}

/// Yields what happens to one member.
///
/// Places in partitions belong to it alone, so that reading takes no lock; the consumer's methods reach it by mail.
pub(crate) struct MemoryEvents {
    broker: Arc<Broker>,
    topic: Arc<Topic>,
    membership: Membership,
    /// By partition.
    lanes: Vec<Option<Lane>>,
    /// Partitions that have something, each once, in the order of their turns.
    turns: VecDeque<u32>,
    registered: Option<Waker>,
    max_messages: usize,
    max_bytes: usize,
    gone_told: bool,
}

/// Reads one partition in one tenure.
struct Lane {
    id: AssignmentId,
    generation: u64,
    cursor: Cursor,
    watching: Watching,
    paused: bool,
    /// The last read found one record and nothing behind it: so will the next one, as a rule.
    single: bool,
    /// It is read at the next look without having been told of anything, since the last ones did not wait. One lane at
    /// most, which is among the turns.
    ahead: bool,
    /// Whether it is among the turns.
    queued: bool,
}

impl Events for MemoryEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let member = &self.membership.member;
        // A thaw and the end of a fault are told as well, so that there is nothing else to look at.
        if self.turns.is_empty()
            && !member.has_mail()
            && member.signal.wait_again(self.registered.as_ref(), cx.waker())
        {
            return Poll::Pending;
        }
        loop {
            let Self { lanes, turns, .. } = self;
            let waited = self.membership.member.signal.begin(|partition| {
                if let Some(lane) = lane_of(lanes, partition) {
                    lane.queue(turns);
                }
            });
            if !self.membership.member.is_frozen() {
                if self.membership.member.has_mail()
                    && let Some(result) = self.read_mail()
                {
                    return Poll::Ready(result);
                }
                if !self.broker.faults.is_halted()
                    && let Some(event) = self.next_data(waited)
                {
                    return Poll::Ready(Ok(event));
                }
            }
            let signal = &self.membership.member.signal;
            if signal.wait(&mut self.registered, cx.waker()) {
                return Poll::Pending;
            }
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        let nothing_told = self.membership.member.signal.is_quiet();
        nothing_told
            && match (self.turns.front(), self.turns.len()) {
                (None, _) => true,
                // A lane that is read without being told has nothing, as a rule.
                (Some(&only), 1) => self
                    .lanes
                    .get(only as usize)
                    .and_then(Option::as_ref)
                    .is_some_and(|lane| lane.ahead && lane.watching.is_at_end(&lane.cursor)),
                _ => false,
            }
    }
}

impl MemoryEvents {
    /// Does what the mail asks for, and returns the event that it holds. It is apart from the polls that find no mail, which
    /// would make and drop empty orders.
    #[cold]
    fn read_mail(&mut self) -> Option<Result<Event>> {
        let (orders, mailed) = self.membership.member.take_mail();
        self.obey(&orders);
        match mailed? {
            Mailed::Event(event) => {
                self.note(&event);
                Some(Ok(event))
            }
            Mailed::End(end) => Some(self.end(end)),
        }
    }

    #[inline]
    fn next_data(&mut self, waited: bool) -> Option<Event> {
        let Self { lanes, turns, .. } = self;
        while let Some(partition) = turns.pop_front() {
            let Some(lane) = lane_of(lanes, partition) else {
                continue;
            };
            lane.queued = false;
            if lane.paused {
                continue;
            }
            lane.ahead = false;
            if lane.single {
                let on = !waited && turns.is_empty();
                match lane.watching.read_only(&mut lane.cursor, on) {
                    Only::Record(record) => {
                        if on {
                            lane.ahead = true;
                            lane.queue(turns);
                        }
                        let next = lane.cursor.next();
                        let (id, generation) = (lane.id, lane.generation);
                        return Some(Event::Batch(Batch::new(id, generation, record.into(), next)));
                    }
                    Only::Nothing => continue,
                    Only::Other => lane.single = false,
                }
            }
            match lane
                .watching
                .read(&mut lane.cursor, self.max_messages, self.max_bytes)
            {
                Read::Empty => {}
                Read::Trimmed { from, to } => {
                    lane.queue(turns);
                    let assignment = lane.id;
                    return Some(Event::Trimmed { assignment, from, to });
                }
                Read::Records { records, more } => {
                    if more {
                        lane.queue(turns);
                    }
                    lane.single = !more && records.len() == 1;
                    let next = lane.cursor.next();
                    return Some(Event::Batch(Batch::new(lane.id, lane.generation, records, next)));
                }
            }
        }
        None
    }

    /// Does what the consumer's methods asked for, as far as it still concerns a tenure that lasts.
    fn obey(&mut self, orders: &Orders) {
        for (partition, epoch) in &orders.stop {
            self.stop(*partition, *epoch);
        }
        for (partition, (epoch, offset, generation)) in &orders.seek {
            if let Some(lane) = lane_of(&mut self.lanes, *partition).filter(|lane| lane.id.epoch == *epoch) {
                lane.cursor = Cursor::new(*offset);
                lane.generation = *generation;
                lane.queue(&mut self.turns);
            }
        }
        for (partition, (epoch, paused)) in &orders.pause {
            if let Some(lane) = lane_of(&mut self.lanes, *partition).filter(|lane| lane.id.epoch == *epoch) {
                lane.paused = *paused;
                lane.queue(&mut self.turns);
            }
        }
    }

    /// Starts and stops lanes as an event says.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Assigned(assignments) => {
                for assignment in assignments {
                    self.start(assignment);
                }
            }
            Event::Revoked(ids) | Event::Lost(ids) => {
                for id in ids {
                    self.stop(id.partition, id.epoch);
                }
            }
            _ => {}
        }
    }

    fn start(&mut self, assignment: &Assignment) {
        let id = assignment.id;
        let Some(partition) = self.topic.partition(id.partition) else {
            return;
        };
        let mut lane = Lane {
            id,
            generation: 0,
            cursor: Cursor::new(assignment.position),
            watching: partition.watch(Arc::clone(&self.membership.member.signal) as _),
            paused: false,
            single: false,
            ahead: false,
            queued: false,
        };
        lane.queue(&mut self.turns);
        let at = id.partition as usize;
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.lanes.get_mut(at) {
            *slot = Some(lane);
        }
    }

    fn stop(&mut self, partition: u32, epoch: u64) {
        if let Some(slot) = self.lanes.get_mut(partition as usize)
            && slot.as_ref().is_some_and(|lane| lane.id.epoch == epoch)
        {
            *slot = None;
            self.turns.retain(|turn| *turn != partition);
        }
    }

    fn end(&mut self, end: End) -> Result<Event> {
        self.lanes.clear();
        self.turns.clear();
        match end {
            End::TopicGone if !std::mem::replace(&mut self.gone_told, true) => Ok(Event::TopicGone),
            End::TopicGone => Err(MemoryError::NoTopic(self.topic.name.clone()).into()),
            End::Closed => Err(Error::from(MemoryError::Closed("consumer"))),
        }
    }
}

impl Drop for MemoryEvents {
    fn drop(&mut self) {
        self.membership.leave(Leave::Vanished);
    }
}

#[inline]
fn lane_of(lanes: &mut [Option<Lane>], partition: u32) -> Option<&mut Lane> {
    lanes.get_mut(partition as usize)?.as_mut()
}

impl Lane {
    #[inline]
    fn queue(&mut self, turns: &mut VecDeque<u32>) {
        if !std::mem::replace(&mut self.queued, true) {
            turns.push_back(self.id.partition);
        }
    }
}
