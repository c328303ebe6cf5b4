//! What waits to be polled by the engine: events about ownership first, then messages, a bounded run a partition.
//!
//! What fetches is polled with it, in the call that waits for a message: a task of its own would be one more switch of
//! tasks, and as a rule of threads, on the way of each message.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, abortable},
    stream::FuturesUnordered,
};
use mq_api::{
    Error, Offset, Result,
    driver::{Assignment, AssignmentId, Batch, Event, Events, Prefetch, Record, Records},
};
use tokio::{runtime::Handle, task::unconstrained};

use crate::flow::Flow;

/// Fetches for one assignment, until it is stopped.
type Fetch = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Stops what fetches when it is dropped.
#[derive(Debug)]
pub(crate) struct Fetches(AbortHandle);

impl Drop for Fetches {
    fn drop(&mut self) {
        self.0.abort();
    }
}

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
    /// What is to be polled from now on.
    fetches: Vec<Fetch>,
    /// Nobody polls any more.
    over: bool,
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
    flow: Option<Arc<Flow>>,
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

    /// Announces an assignment and what fetches for it; its messages come after it.
    pub(crate) fn assigned(&self, assignment: Assignment, flow: Option<Arc<Flow>>, prefetch: Prefetch) {
        self.change(|inner| {
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
                    flow,
                },
            );
            inner.control.push_back(Event::Assigned(vec![assignment]));
        });
    }

    /// Begins to fetch.
    pub(crate) fn fetch(&self, fetch: impl Future<Output = ()> + Send + 'static) -> Fetches {
        let (fetch, stop) = abortable(fetch);
        // Who polls may have used up the share of Tokio's own calls, which would keep this from its messages.
        let fetch: Fetch = Box::pin(unconstrained(fetch.map(drop)));
        let unpolled = self.change(|inner| {
            if inner.over {
                return Some(fetch);
            }
            inner.fetches.push(fetch);
            None
        });
        drop(unpolled);
        Fetches(stop)
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
        // What fetches takes another lock.
        drop(dropped);
    }

    /// Drops what was fetched before a seek; false where the assignment is gone.
    pub(crate) fn seek(&self, id: AssignmentId, to: Offset, generation: u64) -> bool {
        let mut inner = self.lock();
        inner.ready.retain(|partition| *partition != id.partition);
        let Some(queue) = inner.queue(id) else {
            return false;
        };
        queue.generation = generation;
        queue.expected = to;
        queue.items.clear();
        queue.messages = 0;
        queue.bytes = 0;
        true
    }

    /// Tells whether there is room for more messages of an assignment.
    pub(crate) fn has_room(&self, id: AssignmentId) -> bool {
        self.lock().queue(id).is_some_and(|queue| queue.has_room())
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

    /// Takes what was read from `first` up to `next`, perhaps less than was there.
    pub(crate) fn records(
        &self,
        id: AssignmentId,
        generation: u64,
        first: Offset,
        records: Vec<Record>,
        next: Offset,
    ) {
        self.change(|inner| {
            let Some(queue) = inner.queue(id).filter(|queue| queue.generation == generation) else {
                return;
            };
            let expected = std::mem::replace(&mut queue.expected, next);
            let bytes: usize = records.iter().map(|record| record.message.weight()).sum();
            queue.messages += records.len();
            queue.bytes += bytes;
            if first > expected {
                inner.push(id.partition, Item::Trimmed(expected, first));
            }
            let batch = Batch::new(id, generation, Records::from(records), next);
            inner.push(id.partition, Item::Batch(batch, bytes));
        });
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

    /// Returns the next event, and what fetches where there is room again.
    fn pop(&mut self) -> Option<(Event, Option<Arc<Flow>>)> {
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
                let flow = (was_full && queue.has_room())
                    .then(|| queue.flow.clone())
                    .flatten();
                Some((Event::Batch(batch), flow))
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
pub(crate) struct AmqpEvents<G> {
    outbox: Arc<Outbox>,
    fetching: FuturesUnordered<Fetch>,
    /// What fetches needs its timers, wherever it is polled.
    runtime: Handle,
    _guard: G,
}

impl<G> AmqpEvents<G> {
    pub(crate) fn new(outbox: Arc<Outbox>, guard: G) -> Self {
        Self {
            outbox,
            fetching: FuturesUnordered::new(),
            runtime: Handle::current(),
            _guard: guard,
        }
    }

    fn pop(&mut self, waker: Option<&Waker>) -> Poll<Result<Event>> {
        let (event, flow) = {
            let mut inner = self.outbox.lock();
            self.fetching.extend(inner.fetches.drain(..));
            match inner.pop() {
                Some(popped) => popped,
                None => {
                    if let Some(error) = inner.failed.take() {
                        return Poll::Ready(Err(error));
                    }
                    inner.waker = waker.cloned();
                    return Poll::Pending;
                }
            }
        };
        if let Some(flow) = flow {
            flow.wake();
        }
        Poll::Ready(Ok(event))
    }
}

impl<G> Drop for AmqpEvents<G> {
    fn drop(&mut self) {
        let unpolled = {
            let mut inner = self.outbox.lock();
            inner.over = true;
            std::mem::take(&mut inner.fetches)
        };
        // Each holds the outbox.
        drop(unpolled);
    }
}

impl<G: Send + Unpin + 'static> Events for AmqpEvents<G> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        // What comes in between is seen below: nobody need be woken for it.
        let waiting = self.pop(None);
        if waiting.is_ready() {
            return waiting;
        }
        if !self.fetching.is_empty() {
            let _entered = self.runtime.enter();
            // The set wakes its waker whenever it has polled all that is in it.
            let mut noop = Context::from_waker(Waker::noop());
            while let Poll::Ready(Some(())) = self.fetching.poll_next_unpin(&mut noop) {}
            // Wakes from now on.
            while let Poll::Ready(Some(())) = self.fetching.poll_next_unpin(cx) {}
        }
        self.pop(Some(cx.waker()))
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

    fn put(outbox: &Outbox, generation: u64, offsets: std::ops::Range<u64>) {
        let (first, next) = (offsets.start, offsets.end);
        outbox.records(id(0), generation, first, records(offsets), next);
    }

    fn next(events: &mut AmqpEvents<()>) -> Option<Event> {
        match events.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event.unwrap()),
            Poll::Pending => None,
        }
    }

    fn outbox() -> (Arc<Outbox>, AmqpEvents<()>) {
        let outbox = Arc::new(Outbox::default());
        let events = AmqpEvents::new(Arc::clone(&outbox), ());
        outbox.assigned(Assignment::new(id(0), 0), None, PREFETCH);
        (outbox, events)
    }

    #[tokio::test]
    async fn ownership_comes_before_messages() {
        let (outbox, mut events) = outbox();
        assert!(matches!(next(&mut events), Some(Event::Assigned(_))));
        put(&outbox, 0, 0..2);
        outbox.revoked(vec![id(0)]);
        assert!(matches!(next(&mut events), Some(Event::Revoked(_))));
        assert!(matches!(next(&mut events), Some(Event::Batch(_))));
        assert!(next(&mut events).is_none());
    }

    #[tokio::test]
    async fn an_assignment_that_was_lost_unseen_was_never_there() {
        let (outbox, mut events) = outbox();
        put(&outbox, 0, 0..2);
        outbox.lost(&[id(0)]);
        assert!(next(&mut events).is_none());
    }

    #[tokio::test]
    async fn what_was_fetched_before_a_seek_is_dropped() {
        let (outbox, mut events) = outbox();
        next(&mut events);
        put(&outbox, 0, 0..2);
        outbox.seek(id(0), 5, 1);
        put(&outbox, 0, 2..3);
        put(&outbox, 1, 5..6);
        let Some(Event::Batch(batch)) = next(&mut events) else {
            panic!("no batch");
        };
        assert_eq!((batch.generation, batch.next_offset), (1, 6));
        assert!(next(&mut events).is_none());
    }

    #[tokio::test]
    async fn a_gap_at_the_front_is_told_before_the_messages_behind_it() {
        let (outbox, mut events) = outbox();
        next(&mut events);
        put(&outbox, 0, 7..8);
        assert!(matches!(
            next(&mut events),
            Some(Event::Trimmed { from: 0, to: 7, .. })
        ));
        assert!(matches!(next(&mut events), Some(Event::Batch(_))));
    }

    #[tokio::test]
    async fn a_partition_at_its_bound_takes_no_more() {
        let (outbox, mut events) = outbox();
        put(&outbox, 0, 0..2);
        assert!(outbox.has_room(id(0)));
        put(&outbox, 0, 2..4);
        assert!(!outbox.has_room(id(0)));
        next(&mut events);
        next(&mut events);
        assert!(outbox.has_room(id(0)));
    }
}
