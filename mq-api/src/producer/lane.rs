//! The lane of one partition: what waits, what is under way, and what may be sent next.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::effects::Effects;
use crate::{
    Message,
    driver::{Run, Runs, SendWindow, Slots},
};

/// The longest pause before a message is sent again.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// After this long without a failure, messages without a key try a partition again that failed them.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// One partition's accumulator and send window.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// What waits to be sent, in the order of the producer.
    queue: VecDeque<Entry>,
    /// What failed and waits until nothing later is under way; sorted. While there is any, nothing is sent.
    aside: Vec<Entry>,
    flights: Vec<Flight>,
    /// Batches that the driver has, the one in `sending` included.
    in_hand: usize,
    /// The batch that is being handed to the driver right now: one thread at a time.
    sending: Option<Sending>,
    /// One more than the highest place that was ever handed to the driver.
    sent_to: u64,
    /// One more than the highest place that settled as stored or unknown.
    settled_to: u64,
    /// Batches that failed in a row, for the back-off.
    failures: u32,
    /// When the last one of them did.
    failed_at: Option<Instant>,
    next_batch: u64,
    /// When to go on after a failure.
    not_before: Option<Instant>,
    /// Whether the lane stands in the list of those that the task looks after.
    pub(super) listed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sending {
    id: u64,
    first: u64,
    landed: bool,
}

/// A message that waits.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Message,
    pub(super) slots: Arc<Slots>,
    pub(super) slot: u32,
    pub(super) seq: u64,
    pub(super) movable: bool,
    /// How often it has been sent.
    pub(super) tries: u32,
    pub(super) weight: usize,
}

/// A batch that the driver has taken and not settled within `send`.
pub(super) struct Flight {
    pub(super) id: u64,
    pub(super) runs: Runs,
    /// How many runs, from the first on, have been given up.
    given_up: usize,
}

/// A batch that is ready to be sent.
pub(super) struct Sealed {
    pub(super) messages: SmallVec<[Message; 1]>,
    pub(super) runs: Runs,
    pub(super) weight: usize,
}

impl Lane {
    /// Tells whether a message may be sent at once: nothing waits before it.
    pub(super) fn is_idle(&self, window: &SendWindow) -> bool {
        self.queue.is_empty() && self.has_room(window)
    }

    /// Tells whether what waits can be sent now.
    pub(super) fn can_send(&self, window: &SendWindow) -> bool {
        !self.queue.is_empty() && self.has_room(window)
    }

    fn has_room(&self, window: &SendWindow) -> bool {
        self.sending.is_none()
            && self.in_hand < window.batches_per_partition
            && self.aside.is_empty()
            && self.not_before.is_none()
    }

    /// Tells whether the lane is not held up by a failure, or not by a recent one.
    pub(super) fn is_healthy(&self) -> bool {
        self.failures == 0 || self.failed_at.is_none_or(|at| at.elapsed() >= FORGIVEN_AFTER)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.queue.push_back(entry);
    }

    /// Takes an entry that another lane could not send, where that changes the order of nothing.
    pub(super) fn adopt(&mut self, entry: Entry, reorder: bool) -> Result<(), Entry> {
        if self.sent_to > entry.seq && !reorder {
            return Err(entry);
        }
        let at = self.queue.partition_point(|other| other.seq < entry.seq);
        self.queue.insert(at, entry);
        Ok(())
    }

    /// Begins to hand messages to the driver, by this thread alone, and numbers the batch.
    pub(super) fn begin_send(&mut self, first: u64, end: u64) -> u64 {
        let id = self.next_batch;
        self.next_batch += 1;
        self.sending = Some(Sending {
            id,
            first,
            landed: false,
        });
        self.in_hand += 1;
        self.sent_to = self.sent_to.max(end);
        id
    }

    /// Ends the handing over. `true` where the batch has not landed yet: it is a flight then.
    pub(super) fn end_send(&mut self) -> bool {
        self.sending.take().is_some_and(|sending| !sending.landed)
    }

    pub(super) fn add_flight(&mut self, id: u64, runs: Runs) {
        self.flights.push(Flight {
            id,
            runs,
            given_up: 0,
        });
    }

    /// Takes note that the driver has dropped a batch; `true` where it was a flight, not one in the sender's hands.
    pub(super) fn land(&mut self, id: u64) -> bool {
        self.in_hand = self.in_hand.saturating_sub(1);
        if let Some(sending) = self.sending.as_mut().filter(|sending| sending.id == id) {
            sending.landed = true;
            return false;
        }
        let at = self.flights.iter().position(|flight| flight.id == id);
        at.map(|at| self.flights.remove(at)).is_some()
    }

    /// Takes note that the batch which was just handed over is stored and gone, up to a place.
    pub(super) fn land_stored(&mut self, end: u64) {
        self.in_hand = self.in_hand.saturating_sub(1);
        self.settled_to = self.settled_to.max(end);
        self.failures = 0;
    }

    /// Tells whether failed messages wait for a decision.
    pub(super) fn has_aside(&self) -> bool {
        !self.aside.is_empty()
    }

    /// Takes note that a message has settled as stored or unknown.
    pub(super) fn settle(&mut self, seq: u64) {
        self.settled_to = self.settled_to.max(seq + 1);
    }

    /// Takes note how a batch went, for the back-off.
    pub(super) fn note(&mut self, stored: bool, retry: bool) {
        if retry {
            self.failures = self.failures.saturating_add(1);
            self.failed_at = Some(Instant::now());
        } else if stored {
            self.failures = 0;
        }
    }

    /// Sets a failed message aside until it is sure that it may be sent again.
    pub(super) fn set_aside(&mut self, entry: Entry) {
        let at = self.aside.partition_point(|other| other.seq < entry.seq);
        self.aside.insert(at, entry);
    }

    /// Decides about what was set aside. Returns what may not be sent here any more, because something later is stored or
    /// may be, or because this partition keeps failing and the message is free to go elsewhere.
    pub(super) fn resolve(&mut self, backoff: Duration, reorder: bool) -> Vec<Refused> {
        let mut refused = Vec::new();
        if self.aside.is_empty() {
            return refused;
        }
        let settled_to = self.settled_to;
        if !reorder {
            let late = self.aside.partition_point(|entry| entry.seq < settled_to);
            refused.extend(self.aside.drain(..late).map(|entry| Refused {
                entry,
                may_stay: false,
            }));
        }
        if self.sending.is_some() || (self.in_hand > 0 && !reorder) || self.aside.is_empty() {
            return refused;
        }
        let keeps_failing = self.failures >= 2;
        let (leaving, staying): (Vec<_>, Vec<_>) = std::mem::take(&mut self.aside)
            .into_iter()
            .partition(|entry| keeps_failing && entry.movable);
        refused.extend(leaving.into_iter().map(|entry| Refused {
            entry,
            may_stay: true,
        }));
        self.requeue(staying, backoff);
        refused
    }

    /// Puts failed messages back to the front of the queue, to be sent after a pause.
    pub(super) fn requeue(&mut self, entries: Vec<Entry>, backoff: Duration) {
        if entries.is_empty() {
            return;
        }
        for entry in entries.into_iter().rev() {
            let at = self.queue.partition_point(|other| other.seq < entry.seq);
            self.queue.insert(at, entry);
        }
        let doubled = 1u32 << self.failures.saturating_sub(1).min(10);
        let pause = backoff.saturating_mul(doubled).min(MAX_BACKOFF.max(backoff));
        self.not_before = Some(Instant::now() + pause);
    }

    /// Ends the pause after a failure once it is over.
    pub(super) fn thaw(&mut self, now: Instant) {
        if self.not_before.is_some_and(|until| until <= now) {
            self.not_before = None;
        }
    }

    /// Takes messages from the queue, as many as one batch holds, and gives up those whose time is over.
    pub(super) fn seal(
        &mut self,
        window: &SendWindow,
        now: Instant,
        timeout: Duration,
        fx: &mut Effects,
    ) -> Option<Sealed> {
        let most = self.queue.len().min(window.batch_messages);
        let mut sealed = Sealed {
            messages: SmallVec::with_capacity(most),
            runs: Runs::new(),
            weight: 0,
        };
        while let Some(front) = self.queue.front() {
            let full = sealed.messages.len() >= window.batch_messages
                || sealed.weight + front.weight > window.batch_bytes;
            if full && !sealed.messages.is_empty() {
                break;
            }
            let Some(entry) = self.queue.pop_front() else {
                break;
            };
            if entry.slots.deadline().is_some_and(|deadline| deadline <= now) {
                fx.expire(&entry, timeout);
            }
            if !entry.slots.reopen(entry.slot) {
                fx.release(entry.weight);
                continue;
            }
            sealed.weight += entry.weight;
            sealed.messages.push(entry.message);
            match sealed.runs.last_mut() {
                Some(run)
                    if Arc::ptr_eq(&run.slots, &entry.slots)
                        && run.first + run.len == entry.slot
                        && run.seq + u64::from(run.len) == entry.seq
                        && run.tries == entry.tries =>
                {
                    run.len += 1;
                }
                _ => sealed.runs.push(Run {
                    slots: entry.slots,
                    first: entry.slot,
                    len: 1,
                    seq: entry.seq,
                    movable: entry.movable,
                    tries: entry.tries,
                }),
            }
        }
        (!sealed.messages.is_empty()).then_some(sealed)
    }

    /// Gives up what is over its deadline, wherever it is.
    pub(super) fn expire(&mut self, now: Instant, timeout: Duration, fx: &mut Effects) {
        let over = |slots: &Slots| slots.deadline().is_some_and(|deadline| deadline <= now);
        while let Some(entry) = self.queue.pop_front_if(|entry| over(&entry.slots)) {
            fx.expire(&entry, timeout);
            fx.release(entry.weight);
        }
        for entry in self.aside.extract_if(.., |entry| over(&entry.slots)) {
            fx.expire(&entry, timeout);
            fx.release(entry.weight);
        }
        for flight in &mut self.flights {
            while let Some(run) = flight.runs.get(flight.given_up).filter(|run| over(&run.slots)) {
                fx.expire_run(run, timeout);
                flight.given_up += 1;
            }
        }
    }

    /// Gives up everything, wherever it is.
    pub(super) fn abandon(&mut self, error: impl Fn(crate::Outcome) -> crate::Error, fx: &mut Effects) {
        for entry in self.queue.drain(..).chain(self.aside.drain(..)) {
            fx.give_up(&entry.slots, entry.slot..entry.slot + 1, &error);
            fx.release(entry.weight);
        }
        for flight in &mut self.flights {
            for run in flight.runs.iter().skip(flight.given_up) {
                fx.give_up(&run.slots, run.range(), &error);
            }
            flight.given_up = flight.runs.len();
        }
    }

    /// Returns when something is to be done next: a deadline passes, or a pause is over.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let queue = self.queue.front().and_then(|entry| entry.slots.deadline());
        let aside = self.aside.first().and_then(|entry| entry.slots.deadline());
        let flights = self
            .flights
            .iter()
            .filter_map(|flight| flight.runs.get(flight.given_up)?.slots.deadline())
            .min();
        [queue, aside, flights, self.not_before]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the lowest place that has no result yet.
    pub(super) fn lowest_open(&self) -> Option<u64> {
        let queue = self.queue.front().map(|entry| entry.seq);
        let aside = self.aside.first().map(|entry| entry.seq);
        let sending = self
            .sending
            .filter(|sending| !sending.landed)
            .map(|sending| sending.first);
        let flights = self
            .flights
            .iter()
            .filter_map(|flight| Some(flight.runs.get(flight.given_up)?.seq))
            .min();
        [queue, aside, sending, flights].into_iter().flatten().min()
    }
}

/// A message that may not be sent in its lane again.
pub(super) struct Refused {
    pub(super) entry: Entry,
    /// Whether it may be, after all, where no other lane takes it.
    pub(super) may_stay: bool,
}

impl std::fmt::Debug for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flight")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
