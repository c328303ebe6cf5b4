//! The memory that one client's producers and consumers may hold together.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, futures::Notified};

/// Counts bytes against a limit that all producers and consumers of one client share.
///
/// It bounds what waits in this process, not what a backend holds. Who holds nothing may always take once, so that no
/// topic starves another.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// How many wait for room; without any, giving back wakes nobody.
    blocked: AtomicUsize,
    freed: Notify,
}

impl Budget {
    /// Makes a budget of so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }

    /// Tells whether so many bytes would fit now.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.limit
    }

    /// Takes bytes, whether there is room or not; ask [`has_room`](Self::has_room) before. Callers that race may pass the
    /// limit by one message each.
    pub(crate) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives bytes back, and wakes those who wait for room.
    pub(crate) fn give(&self, bytes: usize) {
        // SeqCst pairs with `blocked`: either the waiter sees the bytes freed, or this sees the waiter.
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if self.blocked.load(Ordering::SeqCst) > 0 {
            self.freed.notify_waiters();
        }
    }

    /// Returns how many bytes are taken.
    #[cfg_attr(not(test), expect(dead_code, reason = "asked for by tests"))]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Announces a waiter, until what this returns is dropped. Look for room again after it and before
    /// [`Blocked::freed`] is awaited with a future that has been enabled.
    pub(crate) fn block(&self) -> Blocked<'_> {
        self.blocked.fetch_add(1, Ordering::SeqCst);
        Blocked(self)
    }
}

/// Announces a waiter for room.
pub(crate) struct Blocked<'a>(&'a Budget);

impl Blocked<'_> {
    /// Waits until someone gives bytes back.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.0.freed.notified()
    }
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn giving_back_wakes_who_waits_for_room() {
        let budget = Budget::new(100);
        budget.take(90);
        assert!(budget.has_room(10) && !budget.has_room(11));
        let blocked = budget.block();
        let freed = blocked.freed();
        tokio::pin!(freed);
        freed.as_mut().enable();
        budget.give(50);
        freed.await;
        assert_eq!(budget.used(), 40);
    }
}
