//! Who is woken when something happens.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Wake, Waker},
};

use super::sync::{AtomicBool, Mutex, MutexGuard, Notify, Ordering, lock};

/// Wakes one waiting call for each event, or the engine's task where no call waits.
///
/// A driver wakes it when it has an event. A call that waits for a message is woken straight from there, which saves a
/// task switch a message. Where nobody waits, the event is noted; the engine's task looks at notes on a coarse tick
/// while there are any, so that a busy consumer is not charged a wake of the task for each message.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// The driver has woken its waker since its events were last taken in: they must be taken in before anybody waits.
    fired: AtomicBool,
    list: Mutex<List>,
    task: Notify,
}

#[derive(Debug, Default)]
struct List {
    queue: VecDeque<(u64, Waker)>,
    next: u64,
    noted: bool,
    ticking: bool,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, List> {
        lock(&self.list)
    }

    /// Says that the driver has events, and wakes somebody who takes them in.
    ///
    /// The flag comes first. A call that is woken by something else meanwhile sees it and takes the events in, which
    /// arms the driver's waker again; a call that finds its message without it could leave the others asleep.
    pub(crate) fn fire(&self) {
        self.fired.store(true, Ordering::Release);
        self.notify();
    }

    /// Tells whether events must be taken in, and takes that as said.
    pub(crate) fn take_fired(&self) -> bool {
        self.fired.load(Ordering::Acquire) && self.fired.swap(false, Ordering::AcqRel)
    }

    /// Wakes the call that has waited longest; notes the event where none waits.
    pub(crate) fn notify(&self) {
        let mut list = self.lock();
        if let Some((_, waker)) = list.queue.pop_front() {
            drop(list);
            waker.wake();
            return;
        }
        list.noted = true;
        let kick = !std::mem::replace(&mut list.ticking, true);
        drop(list);
        if kick {
            self.task.notify_one();
        }
    }

    /// Wakes one call, where more is ready than the caller took. The engine's task has no part in it; but a call that has
    /// looked and is just about to wait must look again.
    pub(crate) fn pass_on(&self) {
        let mut list = self.lock();
        match list.queue.pop_front() {
            Some((_, waker)) => {
                drop(list);
                waker.wake();
            }
            None => list.noted = true,
        }
    }

    /// Wakes every call.
    pub(crate) fn notify_all(&self) {
        let all = std::mem::take(&mut self.lock().queue);
        for (_, waker) in all {
            waker.wake();
        }
    }

    /// Wakes the engine's task.
    pub(crate) fn kick(&self) {
        self.task.notify_one();
    }

    /// Waits for a kick.
    pub(crate) async fn kicked(&self) {
        self.task.notified().await;
    }

    /// Tells the engine's task whether an event was noted since the last look; if not, ticking ends.
    pub(crate) fn look(&self) -> bool {
        let mut list = self.lock();
        let noted = std::mem::take(&mut list.noted);
        list.ticking = noted;
        noted
    }

    /// Enters a call, or renews its waker. Returns `false`, and enters nothing, where an event was noted meanwhile: the
    /// call must look again.
    pub(crate) fn enter(&self, ticket: &mut Option<u64>, waker: &Waker) -> bool {
        let mut list = self.lock();
        if std::mem::take(&mut list.noted) {
            return false;
        }
        if let Some(id) = *ticket
            && let Some((_, entered)) = list.queue.iter_mut().find(|(other, _)| *other == id)
        {
            entered.clone_from(waker);
            return true;
        }
        let id = list.next;
        list.next += 1;
        list.queue.push_back((id, waker.clone()));
        *ticket = Some(id);
        true
    }

    /// Takes a call out. One that had been woken and is dropped before it looked passes its wake on.
    pub(crate) fn leave(&self, ticket: u64, looked: bool) {
        let mut list = self.lock();
        let before = list.queue.len();
        list.queue.retain(|(id, _)| *id != ticket);
        let was_woken = before == list.queue.len();
        drop(list);
        if was_woken && !looked {
            self.notify();
        }
    }
}

/// Stands for one waiting call: takes it out when it ends, and passes its wake on where it did not use it.
pub(crate) struct Entry<'a> {
    waiters: &'a Waiters,
    ticket: Option<u64>,
    looked: bool,
}

impl<'a> Entry<'a> {
    pub(crate) fn new(waiters: &'a Waiters) -> Self {
        Self {
            waiters,
            ticket: None,
            looked: false,
        }
    }

    /// Enters the call; `false` where it must look again first.
    pub(crate) fn wait(&mut self, waker: &Waker) -> bool {
        self.waiters.enter(&mut self.ticket, waker)
    }

    /// Says that the call has found what it was woken for.
    pub(crate) fn looked(&mut self) {
        self.looked = true;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.waiters.leave(ticket, self.looked);
        }
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.fire();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fire();
    }
}
