//! Whether a call that finds nothing lets other tasks go first before it waits to be woken.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use tokio::runtime::{Handle, RuntimeFlavor};

/// After so many calls that waited, one tries again whether a turn is worth it.
const RETRY: u8 = 32;

/// Learns whether it is worth it to give one turn away.
///
/// On a runtime of one thread nobody sends while a call looks. Where tasks answer each other, the message is there once
/// each of the others has had its turn: the call looks again then, and the driver need not tell anybody nor wake it, which
/// took a tenth of the time of a message there and back. On a runtime of several threads a task that comes again wakes
/// another thread, which costs more than it saves; to look for a while without giving way did not pay there either.
#[derive(Debug)]
pub(super) struct Turns {
    one_thread: bool,
    worth: AtomicBool,
    /// How many calls have waited since one tried.
    waited: AtomicU8,
}

impl Turns {
    /// For calls in the runtime of the caller.
    pub(super) fn here() -> Self {
        let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        Self {
            one_thread: matches!(flavor, Ok(RuntimeFlavor::CurrentThread)),
            worth: AtomicBool::new(true),
            waited: AtomicU8::new(0),
        }
    }

    /// Tells whether a call is to give its turn away.
    #[inline]
    pub(super) fn are_worth_it(&self) -> bool {
        self.one_thread && self.worth.load(Relaxed)
    }

    /// Says that a call waits, after it has given a turn away for nothing or has not.
    #[inline]
    pub(super) fn waits(&self, gave: bool) {
        let waited = if gave { 0 } else { self.waited.load(Relaxed) + 1 };
        let again = waited >= RETRY;
        self.waited.store(if again { 0 } else { waited }, Relaxed);
        if gave || again {
            self.worth.store(again, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RETRY, Turns};

    #[tokio::test]
    async fn a_turn_for_nothing_is_tried_again_after_a_while() {
        let turns = Turns::here();
        assert!(turns.are_worth_it());
        for _ in 0..3 {
            turns.waits(true);
            for _ in 1..RETRY {
                assert!(!turns.are_worth_it());
                turns.waits(false);
            }
            assert!(!turns.are_worth_it());
            turns.waits(false);
            assert!(turns.are_worth_it());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn no_turn_is_given_away_among_several_threads() {
        assert!(!Turns::here().are_worth_it());
    }

    #[test]
    fn no_turn_is_given_away_outside_a_runtime() {
        assert!(!Turns::here().are_worth_it());
    }
}
