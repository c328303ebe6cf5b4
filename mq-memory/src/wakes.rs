//! Wake-ups that are collected under a lock and done after it.

use std::{sync::Arc, task::Waker};

use smallvec::SmallVec;
use tokio::sync::Notify;

/// Collects whom to wake, and wakes them when it is dropped.
///
/// Make it before the lock is taken: locals are dropped in reverse order, so the lock is free by then.
#[derive(Default)]
pub(crate) struct Wakes {
    wakers: SmallVec<[Waker; 4]>,
    queues: SmallVec<[Arc<Notify>; 1]>,
}

impl Wakes {
    pub(crate) fn add(&mut self, waker: Waker) {
        self.wakers.push(waker);
    }

    pub(crate) fn add_queue(&mut self, queue: Arc<Notify>) {
        self.queues.push(queue);
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
        for queue in self.queues.drain(..) {
            queue.notify_one();
        }
    }
}
