//! What a member has for the engine: ownership, and the messages of the partitions that it owns.
//!
//! Messages stay in the library's queue of their partition until the engine asks for them: a partition that is paused is
//! not read, and the library fetches no more for it than its own bound.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use mq_api::{
    Error, ErrorKind, Lease, Moment, Offset, Result,
    driver::{AssignmentId, Batch, Event, Events, Prefetch, Record, Records},
};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    error,
    ffi::{PartitionQueue, RawBatch},
    format::Stored,
    member::{Job, LeaveOnDrop, MemberContext},
    record::Copier,
};

/// What a message counts beside its bytes, as the engine weighs it.
const FIXED: usize = 96;
/// How many messages the first read of a partition takes, before it is known how large they are.
const FIRST_READ: usize = 64;

/// Holds one partition that the member owns.
pub(crate) struct Part {
    pub(crate) id: AssignmentId,
    pub(crate) generation: u64,
    pub(crate) queue: PartitionQueue<MemberContext>,
    pub(crate) lease: Lease,
    pub(crate) paused: bool,
    /// It is being moved, or is to be: what is in the queue is from before, or from somewhere else.
    pub(crate) moving: bool,
    pub(crate) revoking: bool,
    pub(crate) released: bool,
    /// Above every message that was handed on.
    pub(crate) next: Offset,
    /// What was last stored, and where.
    pub(crate) position: Offset,
    pub(crate) stored: Stored,
    /// What a message weighs on average, in bytes.
    pub(crate) weight: usize,
}

#[derive(Default)]
struct Inner {
    control: VecDeque<Event>,
    end: Option<Error>,
    parts: BTreeMap<u32, Part>,
    /// Whose turn it is.
    turn: u32,
    waker: Option<Waker>,
}

/// Hands a member's events to its one owner.
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    jobs: UnboundedSender<Job>,
    prefetch: Prefetch,
}

impl Outbox {
    pub(crate) fn new(jobs: UnboundedSender<Job>, prefetch: Prefetch) -> Self {
        Self {
            inner: Mutex::default(),
            jobs,
            prefetch,
        }
    }

    /// Has the owner look again. The waker is woken outside the lock, and never from a callback of the library.
    pub(crate) fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn push(&self, event: Event) {
        self.lock().control.push_back(event);
        self.wake();
    }

    /// Ends the member with an error.
    pub(crate) fn end(&self, error: Error) {
        self.lock().end.get_or_insert(error);
        self.wake();
    }

    pub(crate) fn ended(&self) -> Option<Error> {
        self.lock().end.clone()
    }

    /// Changes the partitions together with what is told of it.
    pub(crate) fn change<R>(
        &self,
        change: impl FnOnce(&mut BTreeMap<u32, Part>, &mut VecDeque<Event>) -> R,
    ) -> R {
        let mut inner = self.lock();
        let Inner { parts, control, .. } = &mut *inner;
        let result = change(parts, control);
        drop(inner);
        self.wake();
        result
    }

    /// Changes one partition where this tenure of it still stands.
    pub(crate) fn part<R>(&self, id: AssignmentId, change: impl FnOnce(&mut Part) -> R) -> Option<R> {
        let mut inner = self.lock();
        let part = inner.parts.get_mut(&id.partition).filter(|part| part.id == id)?;
        Some(change(part))
    }

    /// Moves the leases on, and gives up the partitions whose lease has run out meanwhile.
    pub(crate) fn renew(&self, until: Moment) {
        let mut inner = self.lock();
        let Inner { parts, control, .. } = &mut *inner;
        let gone: Vec<AssignmentId> = parts
            .values()
            .filter(|part| !part.lease.renew(until))
            .map(|part| part.id)
            .collect();
        if gone.is_empty() {
            return;
        }
        for id in &gone {
            parts.remove(&id.partition);
        }
        let partitions = gone.iter().map(|id| id.partition).collect();
        control.push_back(Event::Lost(gone));
        // The group may not have noticed. Nobody hears it once the member is leaving.
        let _ = self.jobs.send(Job::Retake(partitions));
        drop(inner);
        self.wake();
    }

    /// Gives up every partition: the session is over.
    pub(crate) fn lose_all(&self) {
        self.change(|parts, control| {
            let gone: Vec<AssignmentId> = parts.values().map(|part| part.id).collect();
            for part in std::mem::take(parts).into_values() {
                part.lease.revoke();
            }
            if !gone.is_empty() {
                control.push_back(Event::Lost(gone));
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let mut inner = self.lock();
        if let Some(event) = inner.control.pop_front() {
            return Poll::Ready(Ok(event));
        }
        if let Some(error) = inner.end.clone() {
            return Poll::Ready(Err(error));
        }
        let Inner { parts, turn, .. } = &mut *inner;
        let first = *turn;
        for round in [
            (Bound::Included(first), Bound::Unbounded),
            (Bound::Unbounded, Bound::Excluded(first)),
        ] {
            for (partition, part) in parts.range_mut(round) {
                if let Some(batch) = self.read(part) {
                    *turn = partition + 1;
                    return Poll::Ready(Ok(Event::Batch(batch)));
                }
            }
        }
        // Whoever sets a queue's flag after it was looked at has this waker woken afterwards, under this lock.
        if !inner
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            inner.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn read(&self, part: &mut Part) -> Option<Batch> {
        while !part.paused && !part.moving && !part.revoking {
            // Taken back before the queue is read: what comes in meanwhile sets it again.
            if !part.queue.signal().ready.swap(false, Ordering::AcqRel) {
                return None;
            }
            let most = (self.prefetch.bytes / 2 / part.weight.max(1)).clamp(1, self.prefetch.messages.max(1));
            let raw = part.queue.read(most);
            if raw.is_full() {
                part.queue.signal().ready.store(true, Ordering::Release);
            }
            let mut taken = take(&raw, part.next);
            drop(raw);
            let passed = part.queue.passed();
            match taken.error {
                Some(code) => self.trouble(part, code),
                // What is not for readers, such as the marks of transactions, is passed over without a message.
                None => taken.next = taken.next.max(passed.unwrap_or(0)),
            }
            let skipped = taken.next > part.next;
            part.next = part.next.max(taken.next);
            if let Some(weight) = taken.bytes.checked_div(taken.records.len()) {
                part.weight = (part.weight + weight).div_ceil(2);
            }
            if !taken.records.is_empty() || skipped {
                return Some(Batch::new(
                    part.id,
                    part.generation,
                    Records::from(taken.records),
                    part.next,
                ));
            }
        }
        None
    }

    /// The library counts an error of a fetch as the message that it stands for, and would pass that one over after the
    /// next rebalance: where trying again may help, it is moved back.
    fn trouble(&self, part: &mut Part, code: Code) {
        tracing::debug!(partition = part.id.partition, ?code, "fetching reports an error");
        let lasts = matches!(
            error::from_code("", code).kind(),
            ErrorKind::Protocol
                | ErrorKind::Unsupported
                | ErrorKind::MessageTooLarge
                | ErrorKind::PermissionDenied
                | ErrorKind::Authentication
        );
        if !lasts {
            part.moving = true;
            // Nobody hears it once the member is leaving.
            let _ = self.jobs.send(Job::Reset(part.id));
        }
    }
}

/// What a read of a queue brought.
struct Taken {
    records: Vec<Record>,
    bytes: usize,
    next: Offset,
    error: Option<Code>,
}

fn take(raw: &RawBatch<'_>, next: Offset) -> Taken {
    let mut taken = Taken {
        records: Vec::new(),
        bytes: 0,
        next,
        error: None,
    };
    let messages = || raw.iter().filter(|message| message.error().is_none());
    let mut copier = Copier::for_all(messages());
    taken.records.reserve(messages().count());
    for message in raw.iter() {
        if let Some(code) = message.error() {
            taken.error = Some(code);
            continue;
        }
        // From before a move, or fetched twice: below what was handed on.
        let Some(offset) = u64::try_from(message.offset())
            .ok()
            .filter(|offset| *offset >= taken.next)
        else {
            continue;
        };
        let record = copier.record(offset, message);
        taken.bytes += record.message.weight().max(FIXED);
        taken.next = offset + 1;
        taken.records.push(record);
    }
    taken
}

/// Reads a batch for whoever has no outbox: messages at or above `next`, their weight, and an error among them.
pub(crate) fn take_all(raw: &RawBatch<'_>, next: Offset) -> (Vec<Record>, Offset, Option<Code>) {
    let taken = take(raw, next);
    (taken.records, taken.next, taken.error)
}

impl Part {
    /// Says what to expect of the first read.
    pub(crate) fn first_weight(prefetch: Prefetch) -> usize {
        (prefetch.bytes / 2 / FIRST_READ).max(1)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("partitions", &self.lock().parts.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Yields the events of one member; dropping it has the member leave.
pub(crate) struct KafkaEvents {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) _guard: LeaveOnDrop,
}

impl Events for KafkaEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        self.outbox.poll(cx)
    }
}
