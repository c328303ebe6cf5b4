//! What waits to be polled by the engine: events about ownership first, then messages, a bounded run a partition.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use mq_api::{
    Error, Offset, Result,
    driver::{Assignment, AssignmentId, Batch, Event, Events, Prefetch},
};
use tokio::sync::Notify;

/// Collects events until they are polled.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    control: VecDeque<Event>,
    /// Partitions whose queue is not empty, in the order in which they are served.
    ready: VecDeque<u32>,
    queues: BTreeMap<u32, Queue>,
    gone: bool,
    failed: Option<Error>,
    waker: Option<Waker>,
}

/// What was fetched of one assignment.
#[derive(Debug)]
struct Queue {
    id: AssignmentId,
    generation: u64,
    items: VecDeque<Item>,
    messages: usize,
    bytes: usize,
    prefetch: Prefetch,
    /// Wakes the task that fetches.
    room: Arc<Notify>,
}

#[derive(Debug)]
enum Item {
    Batch(Batch, usize),
    Trimmed(Offset, Offset),
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what waits, then wakes who polls, outside the lock.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (result, waker) = {
            let mut inner = self.lock();
            (change(&mut inner), inner.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Announces assignments, each with what wakes its fetching; their messages come after it.
    pub(crate) fn assigned(&self, announced: Vec<(Assignment, Arc<Notify>)>, prefetch: Prefetch) {
        self.change(|inner| {
            for (assignment, room) in &announced {
                inner.queues.insert(
                    assignment.id.partition,
                    Queue {
                        id: assignment.id,
                        generation: 0,
                        items: VecDeque::new(),
                        messages: 0,
                        bytes: 0,
                        prefetch,
                        room: Arc::clone(room),
                    },
                );
            }
            let assignments = announced.into_iter().map(|(assignment, _)| assignment);
            inner.control.push_back(Event::Assigned(assignments.collect()));
        });
    }

    pub(crate) fn revoked(&self, ids: Vec<AssignmentId>) {
        self.change(|inner| inner.control.push_back(Event::Revoked(ids)));
    }

    /// Takes assignments away. One that was never seen is as if it had not been.
    pub(crate) fn lost(&self, ids: &[AssignmentId]) {
        self.change(|inner| {
            let mut unseen = Vec::new();
            for event in &mut inner.control {
                match event {
                    Event::Assigned(assignments) => assignments.retain(|assignment| {
                        let gone = ids.contains(&assignment.id);
                        if gone {
                            unseen.push(assignment.id);
                        }
                        !gone
                    }),
                    Event::Revoked(revoked) => revoked.retain(|id| !ids.contains(id)),
                    _ => {}
                }
            }
            inner.control.retain(|event| match event {
                Event::Assigned(assignments) => !assignments.is_empty(),
                Event::Revoked(ids) => !ids.is_empty(),
                _ => true,
            });
            let seen: Vec<AssignmentId> = ids.iter().copied().filter(|id| !unseen.contains(id)).collect();
            if !seen.is_empty() {
                inner.control.push_back(Event::Lost(seen));
            }
        });
        self.forget(ids);
    }

    /// Drops what was fetched for assignments.
    pub(crate) fn forget(&self, ids: &[AssignmentId]) {
        let mut inner = self.lock();
        for id in ids {
            if inner.queue(*id).is_some() {
                inner.ready.retain(|partition| *partition != id.partition);
                inner.queues.remove(&id.partition);
            }
        }
    }

    /// Drops what was fetched before a seek; `false` where the assignment is gone.
    pub(crate) fn seek(&self, id: AssignmentId, generation: u64) -> bool {
        let mut inner = self.lock();
        let Some(queue) = inner.queue(id) else {
            return false;
        };
        queue.generation = generation;
        queue.items.clear();
        queue.messages = 0;
        queue.bytes = 0;
        inner.ready.retain(|partition| *partition != id.partition);
        true
    }

    pub(crate) fn topic_gone(&self) {
        self.change(|inner| {
            if !std::mem::replace(&mut inner.gone, true) {
                inner.control.push_back(Event::TopicGone);
            }
        });
    }

    pub(crate) fn outage(&self, error: Option<&Error>) {
        self.change(|inner| {
            // Only the last state of the connection matters.
            inner
                .control
                .retain(|event| !matches!(event, Event::Outage(_) | Event::Recovered));
            inner
                .control
                .push_back(error.map_or(Event::Recovered, |error| Event::Outage(error.clone())));
        });
    }

    /// Ends the consumer.
    pub(crate) fn fail(&self, error: Error) {
        self.change(|inner| {
            inner.failed.get_or_insert(error);
        });
    }

    /// Says that everything below an offset is gone.
    pub(crate) fn trimmed(&self, id: AssignmentId, generation: u64, from: Offset, to: Offset) {
        self.change(|inner| {
            if inner
                .queue(id)
                .is_some_and(|queue| queue.generation == generation)
            {
                inner.push(id.partition, Item::Trimmed(from, to));
            }
        });
    }

    /// Takes a batch; `false` where its tenure or generation is over.
    pub(crate) fn batch(&self, batch: Batch) -> bool {
        let bytes = batch.records.iter().map(|record| record.message.weight()).sum();
        self.change(|inner| {
            let id = batch.assignment;
            let generation = batch.generation;
            let Some(queue) = inner.queue(id).filter(|queue| queue.generation == generation) else {
                return false;
            };
            queue.messages += batch.records.len();
            queue.bytes += bytes;
            inner.push(id.partition, Item::Batch(batch, bytes));
            true
        })
    }

    /// Tells whether more may be fetched for an assignment.
    pub(crate) fn has_room(&self, id: AssignmentId) -> bool {
        self.lock().queue(id).is_some_and(|queue| queue.has_room())
    }
}

impl Inner {
    fn queue(&mut self, id: AssignmentId) -> Option<&mut Queue> {
        self.queues.get_mut(&id.partition).filter(|queue| queue.id == id)
    }

    fn push(&mut self, partition: u32, item: Item) {
        if let Some(queue) = self.queues.get_mut(&partition) {
            if queue.items.is_empty() {
                self.ready.push_back(partition);
            }
            queue.items.push_back(item);
        }
    }

    /// Returns the next event, and what to wake because there is room again.
    fn pop(&mut self) -> Option<(Event, Option<Arc<Notify>>)> {
        if let Some(event) = self.control.pop_front() {
            return Some((event, None));
        }
        let partition = self.ready.pop_front()?;
        let queue = self.queues.get_mut(&partition)?;
        let item = queue.items.pop_front()?;
        if !queue.items.is_empty() {
            self.ready.push_back(partition);
        }
        let assignment = queue.id;
        match item {
            Item::Trimmed(from, to) => Some((Event::Trimmed { assignment, from, to }, None)),
            Item::Batch(batch, bytes) => {
                let was_full = !queue.has_room();
                queue.messages = queue.messages.saturating_sub(batch.records.len());
                queue.bytes = queue.bytes.saturating_sub(bytes);
                let room = (was_full && queue.has_room()).then(|| Arc::clone(&queue.room));
                Some((Event::Batch(batch), room))
            }
        }
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        self.messages < self.prefetch.messages && self.bytes < self.prefetch.bytes
    }
}

/// Polls an outbox; the member leaves its group when this is dropped.
pub(crate) struct RocketMqEvents<G> {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) _guard: G,
}

impl<G: Send + Unpin + 'static> Events for RocketMqEvents<G> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let (event, room) = {
            let mut inner = self.outbox.lock();
            match inner.pop() {
                Some(popped) => popped,
                None => {
                    if let Some(error) = inner.failed.take() {
                        return Poll::Ready(Err(error));
                    }
                    inner.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        if let Some(room) = room {
            room.notify_one();
        }
        Poll::Ready(Ok(event))
    }
}

#[cfg(test)]
mod tests {
    use mq_api::{Message, Timestamp, driver::Record, driver::Records};

    use super::*;

    fn id(partition: u32) -> AssignmentId {
        AssignmentId { partition, epoch: 1 }
    }

    fn batch(generation: u64, offsets: std::ops::Range<u64>) -> Batch {
        let next = offsets.end;
        let records: Vec<Record> = offsets
            .map(|offset| Record::new(offset, Timestamp::now(), Message::new("x")))
            .collect();
        Batch::new(id(0), generation, Records::from(records), next)
    }

    fn next(events: &mut RocketMqEvents<()>) -> Option<Event> {
        match events.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event.unwrap()),
            Poll::Pending => None,
        }
    }

    fn outbox() -> (Arc<Outbox>, RocketMqEvents<()>) {
        let outbox = Arc::new(Outbox::default());
        let events = RocketMqEvents {
            outbox: Arc::clone(&outbox),
            _guard: (),
        };
        let prefetch = Prefetch {
            messages: 3,
            bytes: 1 << 20,
        };
        outbox.assigned(vec![(Assignment::new(id(0), 0), Arc::default())], prefetch);
        (outbox, events)
    }

    #[test]
    fn ownership_comes_before_messages() {
        let (outbox, mut events) = outbox();
        assert!(matches!(next(&mut events), Some(Event::Assigned(_))));
        assert!(outbox.batch(batch(0, 0..2)));
        outbox.revoked(vec![id(0)]);
        assert!(matches!(next(&mut events), Some(Event::Revoked(_))));
        assert!(matches!(next(&mut events), Some(Event::Batch(_))));
        assert!(next(&mut events).is_none());
    }

    #[test]
    fn an_assignment_that_was_lost_unseen_was_never_there() {
        let (outbox, mut events) = outbox();
        outbox.batch(batch(0, 0..2));
        outbox.lost(&[id(0)]);
        assert!(next(&mut events).is_none());
        assert!(!outbox.batch(batch(0, 2..3)));
    }

    #[test]
    fn what_was_fetched_before_a_seek_is_dropped() {
        let (outbox, mut events) = outbox();
        next(&mut events);
        outbox.batch(batch(0, 0..2));
        assert!(outbox.seek(id(0), 1));
        assert!(!outbox.batch(batch(0, 2..3)));
        assert!(outbox.batch(batch(1, 5..6)));
        let Some(Event::Batch(batch)) = next(&mut events) else {
            panic!("no batch");
        };
        assert_eq!((batch.generation, batch.next_offset), (1, 6));
        assert!(next(&mut events).is_none());
    }

    #[test]
    fn a_partition_at_its_bound_takes_no_more() {
        let (outbox, mut events) = outbox();
        outbox.batch(batch(0, 0..2));
        assert!(outbox.has_room(id(0)));
        outbox.batch(batch(0, 2..4));
        assert!(!outbox.has_room(id(0)));
        next(&mut events);
        next(&mut events);
        assert!(outbox.has_room(id(0)));
    }
}
