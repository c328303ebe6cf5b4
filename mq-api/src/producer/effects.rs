//! What a change under the producer's lock leads to outside it.

use std::{ops::Range, time::Duration};

use tokio::sync::oneshot;

use super::lane::Entry;
use crate::{
    Error, Outcome,
    driver::{Run, Slots, Wakes},
};

/// Collects what is to be done once the lock is open, and what is to be counted before that.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) wakes: Wakes,
    /// Messages that have left the buffer, with their bytes.
    pub(super) released: (usize, usize),
    /// Bytes to give back to the client's budget.
    pub(super) budget: usize,
    pub(super) failed: u64,
    pub(super) one_way_failures: u64,
    pub(super) flushed: Vec<oneshot::Sender<()>>,
    /// Whether the producer's task has something to do.
    pub(super) notify: bool,
}

impl Effects {
    /// Tells whether nothing is left to do.
    pub(super) fn is_empty(&self) -> bool {
        self.budget == 0 && !self.notify && self.flushed.is_empty() && self.wakes.is_empty()
    }

    /// Takes note that a message which waited has left the buffer.
    pub(super) fn release(&mut self, weight: usize) {
        self.released.0 += 1;
        self.released.1 += weight;
        self.budget += weight;
    }

    /// Gives up a message whose deadline has passed.
    pub(super) fn expire(&mut self, entry: &Entry, timeout: Duration) {
        let slots = entry.slot..entry.slot + 1;
        self.give_up(&entry.slots, slots, |outcome| expired(timeout, outcome));
    }

    /// Gives up messages under way whose deadline has passed.
    pub(super) fn expire_run(&mut self, run: &Run, timeout: Duration) {
        self.give_up(&run.slots, run.range(), |outcome| expired(timeout, outcome));
    }

    /// Gives up messages, as far as they are not settled.
    pub(super) fn give_up(&mut self, slots: &Slots, range: Range<u32>, error: impl Fn(Outcome) -> Error) {
        let count = slots.give_up(range, error, &mut self.wakes);
        self.count_failed(slots, count);
    }

    /// Fails a message that may not be sent again, with why it failed.
    pub(super) fn refuse_retry(&mut self, entry: &Entry) {
        let count = entry.slots.refuse_retry(entry.slot, &mut self.wakes);
        self.count_failed(&entry.slots, count);
        self.release(entry.weight);
    }

    /// Counts messages that have failed.
    pub(super) fn count_failed(&mut self, slots: &Slots, count: u64) {
        self.failed += count;
        if slots.is_one_way() {
            self.one_way_failures += count;
        }
    }
}

/// Makes the error of a message whose deadline has passed.
pub(super) fn expired(timeout: Duration, outcome: Outcome) -> Error {
    Error::timeout("the send", timeout)
        .with_operation("produce")
        .with_outcome(outcome)
}
