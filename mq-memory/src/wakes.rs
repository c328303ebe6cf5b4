//! Wake-ups that are collected under a lock and done after it.

use std::{
    sync::Arc,
    task::{Wake, Waker},
};

use mq_api::driver;
use tokio::sync::Notify;

/// Collects whom to wake, and wakes them when it is dropped.
///
/// Make it before the lock is taken: locals are dropped in reverse order, so the lock is free by then.
#[derive(Default)]
pub(crate) struct Wakes {
    wakers: driver::Wakes,
    queues: Vec<Arc<Notify>>,
}

impl Wakes {
    pub(crate) fn add(&mut self, waker: Waker) {
        self.wakers.add(waker);
    }

    pub(crate) fn add_queue(&mut self, queue: Arc<Notify>) {
        self.queues.push(queue);
    }

    /// Leaves the waking to the portable layer, whose lock is held.
    #[inline]
    pub(crate) fn hand_over(mut self, to: &mut driver::Wakes) {
        to.append(&mut self.wakers);
        for queue in self.queues.drain(..) {
            to.add(Waker::from(Arc::new(Queue(queue))));
        }
    }
}

impl Drop for Wakes {
    #[inline]
    fn drop(&mut self) {
        if !self.wakers.is_empty() {
            std::mem::take(&mut self.wakers).wake_all();
        }
        for queue in self.queues.drain(..) {
            queue.notify_one();
        }
    }
}

/// Wakes one receiver of a shared group.
struct Queue(Arc<Notify>);

impl Wake for Queue {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}
