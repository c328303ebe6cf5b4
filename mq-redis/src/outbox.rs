//! What waits to be polled by the engine: events about ownership first, then messages, a bounded run a partition.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use mq_api::{
    Error, Offset, Result,
    driver::{Assignment, AssignmentId, Batch, Event, Events, Prefetch, Record, Records},
};

use crate::{format, format::Entry, reads::Sink, reads::Slot};

/// Collects events until they are polled.
#[derive(Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    control: VecDeque<Event>,
    /// Partitions whose queue is not empty, in the order in which they are served.
    ready: VecDeque<u32>,
    queues: BTreeMap<u32, Queue>,
    failed: Option<Error>,
    waker: Option<Waker>,
}

/// What was fetched of one assignment.
struct Queue {
    id: AssignmentId,
    generation: u64,
    expected: Offset,
    items: VecDeque<Item>,
    messages: usize,
    bytes: usize,
    prefetch: Prefetch,
    slot: Option<Arc<Slot>>,
}

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

    /// Announces assignments and what fetches for them; their messages come after it.
    pub(crate) fn assigned(&self, announced: Vec<(Assignment, Arc<Slot>)>, prefetch: Prefetch) {
        let (assignments, slots): (Vec<Assignment>, Vec<Arc<Slot>>) = announced.into_iter().unzip();
        self.announce(assignments, slots.into_iter().map(Some), prefetch);
    }

    fn announce(
        &self,
        assignments: Vec<Assignment>,
        slots: impl IntoIterator<Item = Option<Arc<Slot>>>,
        prefetch: Prefetch,
    ) {
        self.change(|inner| {
            for (assignment, slot) in assignments.iter().zip(slots) {
                inner.queues.insert(
                    assignment.id.partition,
                    Queue {
                        id: assignment.id,
                        generation: 0,
                        expected: assignment.position,
                        items: VecDeque::new(),
                        messages: 0,
                        bytes: 0,
                        prefetch,
                        slot,
                    },
                );
            }
            inner.control.push_back(Event::Assigned(assignments));
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
        let dropped: Vec<Queue> = {
            let mut inner = self.lock();
            ids.iter()
                .filter_map(|id| {
                    inner.queue(*id)?;
                    inner.ready.retain(|partition| *partition != id.partition);
                    inner.queues.remove(&id.partition)
                })
                .collect()
        };
        // A slot takes another lock when it ends.
        drop(dropped);
    }

    /// Drops what was fetched before a seek.
    pub(crate) fn seek(&self, id: AssignmentId, to: Offset, generation: u64) -> Option<Arc<Slot>> {
        let mut inner = self.lock();
        // A later tenure of the partition is no business of this one's.
        inner.queue(id)?;
        inner.ready.retain(|partition| *partition != id.partition);
        let queue = inner.queue(id)?;
        queue.generation = generation;
        queue.expected = to;
        queue.items.clear();
        queue.messages = 0;
        queue.bytes = 0;
        queue.slot.clone()
    }

    pub(crate) fn topic_gone(&self) {
        self.change(|inner| inner.control.push_back(Event::TopicGone));
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
    pub(crate) fn trimmed(&self, id: AssignmentId, from: Offset, to: Offset) {
        self.change(|inner| {
            if let Some(queue) = inner.queue(id) {
                queue.expected = to;
                inner.push(id.partition, Item::Trimmed(from, to));
            }
        });
    }

    /// Takes records; returns whether there is room for more.
    fn records(&self, id: AssignmentId, generation: u64, records: Vec<Record>) -> bool {
        let (Some(first), Some(last)) = (
            records.first().map(|record| record.offset),
            records.last().map(|record| record.offset),
        ) else {
            return true;
        };
        self.change(|inner| {
            let Some(queue) = inner.queue(id).filter(|queue| queue.generation == generation) else {
                return false;
            };
            let expected = std::mem::replace(&mut queue.expected, last + 1);
            let bytes: usize = records.iter().map(|record| record.message.weight()).sum();
            queue.messages += records.len();
            queue.bytes += bytes;
            let room = queue.has_room();
            if first > expected {
                inner.push(id.partition, Item::Trimmed(expected, first));
            }
            let batch = Batch::new(id, generation, Records::from(records), last + 1);
            inner.push(id.partition, Item::Batch(batch, bytes));
            room
        })
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

    /// Returns the next event, and the slot that has room again.
    fn pop(&mut self) -> Option<(Event, Option<Arc<Slot>>)> {
        if let Some(event) = self.control.pop_front() {
            return Some((event, None));
        }
        let partition = self.ready.pop_front()?;
        let queue = self.queues.get_mut(&partition)?;
        let item = queue.items.pop_front()?;
        if !queue.items.is_empty() {
            self.ready.push_back(partition);
        }
        match item {
            Item::Trimmed(from, to) => Some((
                Event::Trimmed {
                    assignment: queue.id,
                    from,
                    to,
                },
                None,
            )),
            Item::Batch(batch, bytes) => {
                let was_full = !queue.has_room();
                queue.messages = queue.messages.saturating_sub(batch.records.len());
                queue.bytes = queue.bytes.saturating_sub(bytes);
                let slot = (was_full && queue.has_room())
                    .then(|| queue.slot.clone())
                    .flatten();
                Some((Event::Batch(batch), slot))
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
pub(crate) struct RedisEvents<G> {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) _guard: G,
}

impl<G: Send + Unpin + 'static> Events for RedisEvents<G> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let popped = {
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
        let (event, slot) = popped;
        if let Some(slot) = slot {
            slot.more();
        }
        Poll::Ready(Ok(event))
    }
}

/// Turns what is read of a partition into messages.
pub(crate) struct PartitionSink {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) id: AssignmentId,
}

impl Sink for PartitionSink {
    fn take(&self, token: u64, entries: Vec<Entry>) -> bool {
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries.iter().filter(|entry| !entry.fields.is_empty()) {
            match format::decode(entry) {
                Ok(record) => records.push(record),
                Err(error) => {
                    self.outbox.records(self.id, token, records);
                    self.outbox.fail(error);
                    return false;
                }
            }
        }
        self.outbox.records(self.id, token, records)
    }

    fn refused(&self, error: Error) {
        self.outbox.fail(error);
    }

    fn outage(&self, _error: Option<&Error>) {
        // The group's log hears of it too and tells once for all partitions.
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use mq_api::Message;

    use super::*;

    const PREFETCH: Prefetch = Prefetch {
        messages: 3,
        bytes: 1 << 20,
    };

    fn id(partition: u32) -> AssignmentId {
        AssignmentId { partition, epoch: 1 }
    }

    fn records(offsets: std::ops::Range<u64>) -> Vec<Record> {
        offsets
            .map(|offset| Record::new(offset, mq_api::Timestamp::now(), Message::new("x")))
            .collect()
    }

    fn next(events: &mut RedisEvents<()>) -> Option<Event> {
        match events.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event.unwrap()),
            Poll::Pending => None,
        }
    }

    fn outbox() -> (Arc<Outbox>, RedisEvents<()>) {
        let outbox = Arc::new(Outbox::default());
        let events = RedisEvents {
            outbox: Arc::clone(&outbox),
            _guard: (),
        };
        outbox.announce(vec![Assignment::new(id(0), 0)], [None], PREFETCH);
        (outbox, events)
    }

    #[test]
    fn ownership_comes_before_messages() {
        let (outbox, mut events) = outbox();
        assert!(matches!(next(&mut events), Some(Event::Assigned(_))));
        outbox.records(id(0), 0, records(0..2));
        outbox.revoked(vec![id(0)]);
        assert!(matches!(next(&mut events), Some(Event::Revoked(_))));
        assert!(matches!(next(&mut events), Some(Event::Batch(_))));
        assert!(next(&mut events).is_none());
    }

    #[test]
    fn an_assignment_that_was_lost_unseen_was_never_there() {
        let (outbox, mut events) = outbox();
        outbox.records(id(0), 0, records(0..2));
        outbox.lost(&[id(0)]);
        assert!(next(&mut events).is_none());
    }

    #[test]
    fn what_was_fetched_before_a_seek_is_dropped() {
        let (outbox, mut events) = outbox();
        next(&mut events);
        outbox.records(id(0), 0, records(0..2));
        outbox.seek(id(0), 5, 1);
        assert!(!outbox.records(id(0), 0, records(2..3)));
        assert!(outbox.records(id(0), 1, records(5..6)));
        let Some(Event::Batch(batch)) = next(&mut events) else {
            panic!("no batch");
        };
        assert_eq!((batch.generation, batch.next_offset), (1, 6));
        assert!(next(&mut events).is_none());
    }

    #[test]
    fn a_seek_of_a_tenure_that_is_over_changes_nothing() {
        let (outbox, mut events) = outbox();
        next(&mut events);
        outbox.records(id(0), 0, records(0..2));
        assert!(
            outbox
                .seek(
                    AssignmentId {
                        partition: 0,
                        epoch: 0
                    },
                    5,
                    1
                )
                .is_none()
        );
        assert!(matches!(next(&mut events), Some(Event::Batch(_))));
    }

    #[test]
    fn a_gap_at_the_front_is_told_before_the_messages_behind_it() {
        let (outbox, mut events) = outbox();
        next(&mut events);
        outbox.records(id(0), 0, records(7..8));
        assert!(matches!(
            next(&mut events),
            Some(Event::Trimmed { from: 0, to: 7, .. })
        ));
        assert!(matches!(next(&mut events), Some(Event::Batch(_))));
    }

    #[test]
    fn a_partition_at_its_bound_takes_no_more() {
        let (outbox, _events) = outbox();
        assert!(outbox.records(id(0), 0, records(0..2)));
        assert!(!outbox.records(id(0), 0, records(2..4)));
    }
}
