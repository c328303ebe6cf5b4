//! Whether a call that finds nothing lets other tasks go first before it waits to be woken.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use tokio::runtime::{Handle, RuntimeFlavor};

/// After so many calls that waited, one tries again whether a turn is worth it; twice as many after each turn for nothing.
const SOON: u32 = 4;
const LATE: u32 = 4096;

/// How many turns a call gives away in a row on a runtime of several threads.
pub(super) const AMONG_THREADS: u32 = 4;

/// Learns whether it is worth it to give a turn away.
///
/// On a runtime of one thread nobody sends while a call looks. Where tasks answer each other, the message is there once
/// each of the others has had its turn: the call looks again then, and the driver need not tell anybody nor wake it, which
/// took a tenth of the time of a message there and back.
///
/// On a runtime of several threads a task that is woken runs on the thread of who woke it, after that one, and no other
/// thread may take it from there. So a consumer that has caught up and waits goes on behind its producer, one of them at a
/// time, while the other thread sleeps; a stream one by one then took as long as on one thread. A call that gives its turns
/// away as tokio's `yield_now` does lets the producer go first, and another thread takes one of the two. With a tenth as
/// many calls that wait, such a stream took a quarter less time. There a turn is worth it where more than one message has
/// come: a single one is an answer, as a rule, and is quicker by a wake on the same thread.
#[derive(Debug)]
pub(super) struct Turns {
    one_thread: bool,
    worth: AtomicBool,
    /// How many calls have waited since one tried.
    waited: AtomicU32,
    /// How many must wait before one tries again.
    patience: AtomicU32,
}

impl Turns {
    /// For calls in the runtime of the caller.
    pub(super) fn here() -> Self {
        let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        Self {
            one_thread: matches!(flavor, Ok(RuntimeFlavor::CurrentThread)),
            worth: AtomicBool::new(flavor.is_ok()),
            waited: AtomicU32::new(0),
            patience: AtomicU32::new(SOON),
        }
    }

    /// Tells whether a call is to give its turn away.
    #[inline]
    pub(super) fn are_worth_it(&self) -> bool {
        self.worth.load(Relaxed)
    }

    /// Tells whether nobody sends while a call looks.
    #[inline]
    pub(super) fn on_one_thread(&self) -> bool {
        self.one_thread
    }

    /// Says that a call has found something after it gave turns away: one message alone, or more.
    #[inline]
    pub(super) fn found(&self, more: bool) {
        if self.one_thread || more {
            if self.patience.load(Relaxed) != SOON {
                self.patience.store(SOON, Relaxed);
            }
        } else {
            self.waits(true);
        }
    }

    /// Says that a call waits, after it has given turns away for nothing or has not.
    #[inline]
    pub(super) fn waits(&self, gave: bool) {
        let waited = if gave { 0 } else { self.waited.load(Relaxed) + 1 };
        let patience = self.patience.load(Relaxed);
        let again = waited >= patience;
        self.waited.store(if again { 0 } else { waited }, Relaxed);
        if gave {
            self.patience.store((patience * 2).min(LATE), Relaxed);
        }
        if gave || again {
            self.worth.store(again, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LATE, SOON, Turns};

    /// Lets calls wait until a turn is tried again; says how many that took.
    fn calls_until_tried(turns: &Turns) -> u32 {
        let mut calls = 0;
        while !turns.are_worth_it() {
            turns.waits(false);
            calls += 1;
        }
        calls
    }

    #[tokio::test]
    async fn a_turn_for_nothing_is_tried_again_ever_later() {
        let turns = Turns::here();
        assert!(turns.are_worth_it());
        let mut after = SOON;
        for _ in 0..20 {
            turns.waits(true);
            assert!(!turns.are_worth_it());
            after = (after * 2).min(LATE);
            assert_eq!(calls_until_tried(&turns), after);
        }
    }

    #[tokio::test]
    async fn an_answer_that_a_turn_brought_keeps_turns_on_one_thread() {
        let turns = Turns::here();
        turns.waits(true);
        calls_until_tried(&turns);
        turns.found(false);
        assert!(turns.are_worth_it());
        turns.waits(true);
        assert_eq!(calls_until_tried(&turns), SOON * 2, "it begins anew");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn among_threads_a_single_message_is_worth_no_turn_and_several_are() {
        let turns = Turns::here();
        assert!(turns.are_worth_it() && !turns.on_one_thread());
        turns.found(true);
        assert!(turns.are_worth_it());
        turns.found(false);
        assert!(!turns.are_worth_it());
        assert_eq!(calls_until_tried(&turns), SOON * 2);
    }

    #[test]
    fn no_turn_is_given_away_outside_a_runtime() {
        assert!(!Turns::here().are_worth_it());
    }
}
