//! What a broadcast member has fetched and has to tell, changed under one lock and without waiting.

use std::{
    collections::{BTreeSet, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use tokio::sync::{Notify, watch};

use crate::{
    Error, ErrorKind, Offset, Position, Result, TopicId, TopicName,
    driver::{self, Assignment, AssignmentId, Batch, Event, FetchRequest, Fetched, Prefetch},
};

/// How long one fetch waits for the next message before it is repeated.
const LONG_POLL: Duration = Duration::from_secs(5);

/// A partition is this member's once and for good.
pub(super) const EPOCH: u64 = 1;

/// What the handles and the tasks have in common.
pub(super) struct Shared {
    pub(super) driver: Arc<dyn driver::Mq>,
    pub(super) reader: Arc<dyn driver::Reader>,
    pub(super) topic: TopicName,
    pub(super) topic_id: Option<TopicId>,
    pub(super) prefetch: Prefetch,
    pub(super) stop: watch::Sender<bool>,
    pub(super) state: Mutex<State>,
}

/// How the member ended; told once by the events, and `Closed` from then on.
pub(super) enum End {
    TopicGone,
    Failed(Error),
    Closed,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) control: VecDeque<Event>,
    pub(super) end: Option<End>,
    /// By partition.
    pub(super) tenures: Vec<Tenure>,
    /// Partitions that have something to hand over and are not paused, each once, in turn.
    pub(super) ready: VecDeque<u32>,
    /// Partitions whose last fetch failed.
    pub(super) failing: BTreeSet<u32>,
    pub(super) waker: Option<Waker>,
}

/// One partition as this member has it.
pub(super) struct Tenure {
    pub(super) id: AssignmentId,
    pub(super) generation: u64,
    /// What to fetch next.
    pub(super) position: Offset,
    pub(super) paused: bool,
    pub(super) released: bool,
    /// Whether the partition stands in `State::ready`.
    pub(super) listed: bool,
    /// Whether the task sleeps because it is paused or has no room.
    pub(super) starved: bool,
    pub(super) queue: VecDeque<Queued>,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// Wakes the partition's task, its only waiter.
    pub(super) wake: Arc<Notify>,
}

/// A batch or a `Trimmed`, which keeps its place among the batches.
pub(super) struct Queued {
    pub(super) event: Event,
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over partitions that follow those it has, and tells so.
    pub(super) fn assign(&self, tenures: Vec<Tenure>) {
        let mut state = self.lock();
        let assignments = tenures.iter().map(|tenure| {
            let assignment = Assignment::new(tenure.id, tenure.position);
            match &self.topic_id {
                Some(id) => assignment.with_topic_id(id.clone()),
                None => assignment,
            }
        });
        let event = Event::Assigned(assignments.collect());
        state.control.push_back(event);
        state.tenures.extend(tenures);
        state.wake_after(());
    }

    /// Ends the member; the first reason counts.
    pub(super) fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(end);
        }
        state.wake_after(());
        self.stop.send_replace(true);
    }

    /// Ends the member where an error is for good; `true` where trying again may help.
    pub(super) fn survives(&self, error: &Error) -> bool {
        if error.kind() == ErrorKind::TopicNotFound {
            self.end(End::TopicGone);
        } else if !error.is_retryable() {
            self.end(End::Failed(error.clone()));
        }
        error.kind() != ErrorKind::TopicNotFound && error.is_retryable()
    }

    /// Says what a partition's task is to do.
    pub(super) fn plan(&self, partition: u32) -> Plan {
        let mut state = self.lock();
        // After a failure an answer without messages tells that the backend is back.
        let wait = if state.failing.contains(&partition) {
            Duration::ZERO
        } else {
            LONG_POLL
        };
        let Some(tenure) = state.tenures.get_mut(partition as usize) else {
            return Plan::End;
        };
        if tenure.released {
            return Plan::End;
        }
        // Room is used only when half of it is free, so that a slow reader does not make many tiny fetches.
        let room = self.prefetch;
        if tenure.paused || tenure.messages > room.messages / 2 || tenure.bytes > room.bytes / 2 {
            tenure.starved = true;
            return Plan::Wait(Arc::clone(&tenure.wake));
        }
        let from = Position::Offset(tenure.position);
        let messages = room.messages.saturating_sub(tenure.messages).max(1);
        let mut request = FetchRequest::new(partition, from, messages).with_wait(wait);
        request.max_bytes = room.bytes.saturating_sub(tenure.bytes).max(1);
        Plan::Fetch {
            request,
            from: tenure.position,
            generation: tenure.generation,
            wake: Arc::clone(&tenure.wake),
        }
    }

    pub(super) fn is_current(&self, partition: u32, generation: u64) -> bool {
        let state = self.lock();
        let tenure = state.tenures.get(partition as usize);
        tenure.is_some_and(|tenure| tenure.is_current(generation))
    }

    /// Fetches, and looks whether what was skipped was removed by retention or never there.
    pub(super) async fn fetch(
        &self,
        request: FetchRequest,
        from: Offset,
    ) -> Result<(Option<Offset>, Fetched)> {
        let partition = request.partition as usize;
        let fetched = self.reader.fetch(request).await?;
        let first = fetched
            .records
            .iter()
            .next()
            .map_or(fetched.next_offset, |record| record.offset);
        let mut trimmed = None;
        if first > from {
            let retained = self.reader.bounds().await?.get(partition).map(|bounds| bounds.0);
            // Retention may have gone on since: what was fetched counts as there.
            trimmed = retained
                .map(|retained| retained.min(first))
                .filter(|to| *to > from);
        }
        Ok((trimmed, fetched))
    }

    /// Queues what a fetch brought, unless a seek or a release has overtaken it.
    pub(super) fn queue(
        &self,
        partition: u32,
        generation: u64,
        from: Offset,
        (trimmed, fetched): (Option<Offset>, Fetched),
    ) {
        let bytes = fetched.records.iter().map(|record| record.message.weight()).sum();
        let mut state = self.lock();
        state.works_again(partition);
        let Some(tenure) = state.tenures.get_mut(partition as usize) else {
            return;
        };
        if !tenure.is_current(generation) {
            return state.wake_after(fetched);
        }
        let id = tenure.id;
        if let Some(to) = trimmed {
            tenure.queue.push_back(Queued {
                event: Event::Trimmed {
                    assignment: id,
                    from,
                    to,
                },
                messages: 0,
                bytes: 0,
            });
        }
        let next = fetched.next_offset.max(from);
        tenure.position = next;
        if next > from {
            let messages = fetched.records.len();
            tenure.messages += messages;
            tenure.bytes += bytes;
            tenure.queue.push_back(Queued {
                event: Event::Batch(Batch::new(id, generation, fetched.records, next)),
                messages,
                bytes,
            });
        }
        state.list(partition);
        state.wake_after(());
    }

    /// Notes that a partition cannot be fetched for now, and tells it if it is the first.
    pub(super) fn fails(&self, partition: u32, error: Error) {
        let mut state = self.lock();
        let first = state.failing.is_empty();
        state.failing.insert(partition);
        if first {
            // An end of the last outage that nobody has read yet makes it one outage.
            if matches!(state.control.back(), Some(Event::Recovered)) {
                state.control.pop_back();
            } else {
                state.control.push_back(Event::Outage(error));
            }
            state.wake_after(());
        }
    }
}

impl State {
    pub(super) fn tenure(&self, id: AssignmentId) -> Option<&Tenure> {
        let tenure = self.tenures.get(id.partition as usize)?;
        (tenure.id == id && !tenure.released).then_some(tenure)
    }

    pub(super) fn tenure_mut(&mut self, id: AssignmentId) -> Option<&mut Tenure> {
        let tenure = self.tenures.get_mut(id.partition as usize)?;
        (tenure.id == id && !tenure.released).then_some(tenure)
    }

    /// Notes that a partition is in order, and tells it if it was the last one that was not.
    pub(super) fn works_again(&mut self, partition: u32) {
        if self.failing.remove(&partition) && self.failing.is_empty() {
            if matches!(self.control.back(), Some(Event::Outage(_))) {
                self.control.pop_back();
            } else {
                self.control.push_back(Event::Recovered);
            }
        }
    }

    /// Puts a partition in line if it has something to hand over.
    pub(super) fn list(&mut self, partition: u32) {
        if let Some(tenure) = self.tenures.get_mut(partition as usize)
            && !tenure.paused
            && !tenure.listed
            && !tenure.queue.is_empty()
        {
            tenure.listed = true;
            self.ready.push_back(partition);
        }
    }

    /// Takes the next event: control, then the end, then messages of the partitions in turn.
    pub(super) fn next(&mut self) -> Option<Result<Event>> {
        if let Some(event) = self.control.pop_front() {
            return Some(Ok(event));
        }
        if let Some(end) = &mut self.end {
            return Some(match mem::replace(end, End::Closed) {
                End::TopicGone => Ok(Event::TopicGone),
                End::Failed(error) => Err(error),
                End::Closed => Err(Error::closed("consumer")),
            });
        }
        while let Some(partition) = self.ready.pop_front() {
            let Some(tenure) = self.tenures.get_mut(partition as usize) else {
                continue;
            };
            tenure.listed = false;
            if tenure.paused {
                continue;
            }
            let Some(queued) = tenure.queue.pop_front() else {
                continue;
            };
            tenure.messages -= queued.messages;
            tenure.bytes -= queued.bytes;
            tenure.feed();
            self.list(partition);
            return Some(Ok(queued.event));
        }
        None
    }
}

/// Unlocks the state, drops what was taken out of it, and wakes whoever polls the events.
pub(super) trait WakeAfter {
    fn wake_after<T>(self, dropped: T);
}

impl WakeAfter for MutexGuard<'_, State> {
    fn wake_after<T>(mut self, dropped: T) {
        let waker = self.waker.take();
        drop(self);
        drop(dropped);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Tenure {
    pub(super) fn new(partition: u32, position: Offset) -> Self {
        Self {
            id: AssignmentId {
                partition,
                epoch: EPOCH,
            },
            generation: 0,
            position,
            paused: false,
            released: false,
            listed: false,
            starved: false,
            queue: VecDeque::new(),
            messages: 0,
            bytes: 0,
            wake: Arc::default(),
        }
    }

    pub(super) fn is_current(&self, generation: u64) -> bool {
        !self.released && self.generation == generation
    }

    /// Takes out what is queued, to be dropped outside the lock.
    pub(super) fn clear(&mut self) -> VecDeque<Queued> {
        self.messages = 0;
        self.bytes = 0;
        mem::take(&mut self.queue)
    }

    /// Wakes the task if it waits for room.
    pub(super) fn feed(&mut self) {
        if mem::take(&mut self.starved) {
            self.wake.notify_one();
        }
    }
}

/// What a partition's task does next.
pub(super) enum Plan {
    Fetch {
        request: FetchRequest,
        from: Offset,
        generation: u64,
        wake: Arc<Notify>,
    },
    Wait(Arc<Notify>),
    End,
}
