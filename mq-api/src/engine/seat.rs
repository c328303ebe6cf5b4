//! The place of one waiting call, where a list and its lock are not needed.

use std::{sync::OnceLock, task::Waker};

use super::sync::{AtomicU64, Ordering};

/// Holds the one call that waits, as a rule: it sits down in one step, and is woken in one.
///
/// It is for the task that waited first: its waker stays, so that it is neither copied nor dropped for each wait. Who waits
/// in another task, or beside another call, goes to the list. With a list, its lock and a copy of the waker for each wait, a
/// message there and back between two tasks took a fifteenth longer on a runtime of several threads.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    /// Odd while somebody sits, and another number each time: the ticket.
    state: AtomicU64,
    waker: OnceLock<Waker>,
}

impl Seat {
    /// Sits down, and returns the ticket; `None` where somebody sits, or for another task than the first.
    #[inline]
    pub(crate) fn take(&self, waker: &Waker) -> Option<u64> {
        let free = self.state.load(Ordering::Relaxed);
        if free % 2 == 1 || !self.is_for(waker) {
            return None;
        }
        self.step(free).then_some(free + 1)
    }

    /// Tells whether the seat is for the task of a waker.
    #[inline]
    pub(crate) fn is_for(&self, waker: &Waker) -> bool {
        self.waker.get_or_init(|| waker.clone()).will_wake(waker)
    }

    /// Tells whether somebody sits. The load takes part in the order that [`Waiters`](super::waiters::Waiters) speaks of.
    #[inline]
    pub(crate) fn is_taken(&self) -> bool {
        self.state.load(Ordering::SeqCst) % 2 == 1
    }

    /// Tells whether the call of a ticket sits.
    #[inline]
    pub(crate) fn is_held(&self, ticket: u64) -> bool {
        self.state.load(Ordering::SeqCst) == ticket
    }

    /// Gets up; `false` where the call has been woken.
    #[inline]
    pub(crate) fn leave(&self, ticket: u64) -> bool {
        self.is_held(ticket) && self.step(ticket)
    }

    /// Makes who sits get up, and returns whom to wake.
    #[inline]
    pub(crate) fn clear(&self) -> Option<&Waker> {
        let state = self.state.load(Ordering::SeqCst);
        if state % 2 == 1 && self.step(state) {
            self.waker.get()
        } else {
            None
        }
    }

    #[inline]
    fn step(&self, from: u64) -> bool {
        self.state
            .compare_exchange(from, from + 1, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}
