//! Who is woken when something happens.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Wake, Waker},
};

use super::{
    seat::Seat,
    sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, Notify, Ordering, lock},
};

/// Wakes one waiting call for each event, or the engine's task where no call waits.
///
/// A driver wakes it when it has an event. A call that waits for a message is woken straight from there, which saves a
/// task switch a message. Where nobody waits, the event is noted; the engine's task looks at notes on a coarse tick
/// while there are any, so that a busy consumer is not charged a wake of the task for each message.
///
/// Who notes writes `noted`, then reads who waits; who waits sits down or enters the list, then reads `noted`; all of it is
/// sequentially consistent, so that one of the two sees the other. That takes the lock out of the way of a busy consumer:
/// two loads a message instead of two locks.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// The driver has woken its waker since its events were last taken in: they must be taken in before anybody waits.
    fired: AtomicBool,
    /// Who waits where no other call does.
    seat: Seat,
    /// Who waits beside that, or instead. Whoever sits has waited longer.
    list: Mutex<List>,
    /// How many calls wait in the list; written under the lock.
    waiting: AtomicUsize,
    /// Something has happened that a call must look at before it waits.
    noted: AtomicBool,
    /// An event came and nobody waited: the engine's task is to look at it on its tick.
    unseen: AtomicBool,
    /// The engine's task looks on its tick.
    ticking: AtomicBool,
    task: Notify,
}

#[derive(Debug, Default)]
struct List {
    queue: VecDeque<(u64, Waker)>,
    next: u64,
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
    #[inline]
    pub(crate) fn take_fired(&self) -> bool {
        self.fired.load(Ordering::Acquire) && self.fired.swap(false, Ordering::AcqRel)
    }

    /// Tells whether events must be taken in.
    #[inline]
    pub(crate) fn has_fired(&self) -> bool {
        self.fired.load(Ordering::Acquire)
    }

    /// Wakes the call that has waited longest; notes the event where none waits.
    pub(crate) fn notify(&self) {
        if !self.wake_first() {
            self.unseen.store(true, Ordering::SeqCst);
            self.tick();
        }
    }

    /// Wakes one call if any waits, after a change under a lock that calls hold from their look until they have entered:
    /// none is about to wait then, so no note is needed, which would send the next call to look once more.
    #[inline]
    pub(crate) fn nudge(&self) {
        if self.has_waiting() {
            self.wake_waiting();
        }
    }

    /// Tells whether any call waits.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.seat.is_taken() || self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Says that a look begins, which sees all that was noted so far; under the lock that [`nudge`](Self::nudge) speaks of.
    #[inline]
    pub(crate) fn begin_look(&self) {
        if self.noted.load(Ordering::SeqCst) {
            self.noted.swap(false, Ordering::SeqCst);
        }
    }

    /// Wakes one call if any waits. One that is about to wait looks again first.
    #[inline]
    pub(crate) fn pass_on(&self) {
        // A note that stands already says all; reading it costs far less than writing it again.
        if !self.noted.load(Ordering::SeqCst) || self.has_waiting() {
            self.wake_first();
        }
    }

    /// Has the engine's task look on its tick.
    #[inline]
    pub(crate) fn tick(&self) {
        if !self.ticking.load(Ordering::SeqCst) && !self.ticking.swap(true, Ordering::SeqCst) {
            self.task.notify_one();
        }
    }

    /// Wakes the call that has waited longest; leaves a note and returns `false` where none waits.
    fn wake_first(&self) -> bool {
        // Who is woken looks, so that there is nothing to note: one write less where a message travels alone.
        if self.has_waiting() && self.wake_waiting() {
            return true;
        }
        self.noted.store(true, Ordering::SeqCst);
        self.has_waiting() && self.wake_waiting()
    }

    /// Wakes the call that has waited longest; `false` where none waits any more.
    #[inline]
    fn wake_waiting(&self) -> bool {
        match self.seat.clear() {
            Some(waker) => {
                // Who is woken looks at everything that was noted so far.
                self.begin_look();
                waker.wake_by_ref();
                true
            }
            None => self.wake_listed(),
        }
    }

    /// Wakes the call that has waited longest in the list.
    fn wake_listed(&self) -> bool {
        let mut list = self.lock();
        let Some((_, waker)) = list.queue.pop_front() else {
            return false;
        };
        // Who enters writes after this, under the lock.
        self.waiting.store(list.queue.len(), Ordering::Release);
        self.begin_look();
        drop(list);
        waker.wake();
        true
    }

    /// Wakes every call.
    pub(crate) fn notify_all(&self) {
        self.noted.store(true, Ordering::SeqCst);
        let all = {
            let mut list = self.lock();
            self.waiting.store(0, Ordering::SeqCst);
            std::mem::take(&mut list.queue)
        };
        if let Some(waker) = self.seat.clear() {
            waker.wake_by_ref();
        }
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

    /// Tells the engine's task whether an event was noted since the last look, or there is something to look at anyway.
    pub(crate) fn look(&self, anyway: bool) -> bool {
        let news = self.unseen.swap(false, Ordering::SeqCst) || anyway;
        if news {
            self.ticking.store(true, Ordering::SeqCst);
        }
        news
    }

    /// Tells whether the engine's task is to look on its tick.
    pub(crate) fn is_ticking(&self) -> bool {
        self.ticking.load(Ordering::SeqCst)
    }

    /// Ends the ticking; `false` where an event came in between, which found it still on.
    pub(crate) fn rest(&self) -> bool {
        self.ticking.store(false, Ordering::SeqCst);
        let late = self.unseen.swap(false, Ordering::SeqCst);
        if late {
            self.ticking.store(true, Ordering::SeqCst);
        }
        !late
    }

    /// Enters a call, or renews its waker. Returns `false`, and enters nothing, where an event was noted meanwhile: the
    /// call must look again.
    #[inline]
    pub(crate) fn enter(&self, ticket: &mut Option<Ticket>, waker: &Waker) -> bool {
        if self.take_note() {
            return false;
        }
        if let Some(Ticket::Seat(id)) = *ticket
            && !(self.seat.is_held(id) && self.seat.is_for(waker))
        {
            *ticket = None;
            // A wake of another task, where it waited before, is not to be lost.
            if !self.seat.leave(id) && !self.seat.is_for(waker) {
                return false;
            }
        }
        // Who waits in the list goes first.
        if ticket.is_none() && self.waiting.load(Ordering::SeqCst) == 0 {
            *ticket = self.seat.take(waker).map(Ticket::Seat);
        }
        let Some(Ticket::Seat(id)) = *ticket else {
            return self.enter_list(ticket, waker);
        };
        if self.take_note() {
            // Where the call has just been woken as well, it looks now.
            self.seat.leave(id);
            *ticket = None;
            return false;
        }
        true
    }

    /// Tells whether something was noted, and takes that as said.
    #[inline]
    fn take_note(&self) -> bool {
        self.noted.load(Ordering::SeqCst) && self.noted.swap(false, Ordering::SeqCst)
    }

    fn enter_list(&self, ticket: &mut Option<Ticket>, waker: &Waker) -> bool {
        let mut list = self.lock();
        let id = if let Some(Ticket::Listed(id)) = *ticket {
            let Some((_, known)) = list.queue.iter_mut().find(|(other, _)| *other == id) else {
                // It has been woken, perhaps by a waker that it no longer has.
                *ticket = None;
                return false;
            };
            known.clone_from(waker);
            id
        } else {
            let id = list.next;
            list.next += 1;
            list.queue.push_back((id, waker.clone()));
            *ticket = Some(Ticket::Listed(id));
            id
        };
        self.waiting.store(list.queue.len(), Ordering::SeqCst);
        if self.take_note() {
            list.queue.retain(|(other, _)| *other != id);
            self.waiting.store(list.queue.len(), Ordering::SeqCst);
            *ticket = None;
            return false;
        }
        true
    }

    /// Takes a call out. One that had been woken and is dropped before it looked passes its wake on.
    #[inline]
    pub(crate) fn leave(&self, ticket: Ticket, looked: bool) {
        let was_woken = match ticket {
            Ticket::Seat(id) => !self.seat.leave(id),
            // Nobody has waited since this call entered, so it was taken out when it was woken.
            Ticket::Listed(_) if looked && self.waiting.load(Ordering::SeqCst) == 0 => return,
            Ticket::Listed(id) => self.leave_list(id),
        };
        if was_woken && !looked {
            self.notify();
        }
    }

    /// Takes a call out of the list; tells whether it had been woken.
    fn leave_list(&self, ticket: u64) -> bool {
        let mut list = self.lock();
        let before = list.queue.len();
        list.queue.retain(|(id, _)| *id != ticket);
        self.waiting.store(list.queue.len(), Ordering::SeqCst);
        before == list.queue.len()
    }
}

/// Says where a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticket {
    Seat(u64),
    Listed(u64),
}

/// Stands for one waiting call: takes it out when it ends, and passes its wake on where it did not use it.
pub(crate) struct Entry<'a> {
    waiters: &'a Waiters,
    ticket: Option<Ticket>,
    looked: bool,
    /// The call has let other tasks go first.
    pub(super) gave_turn: bool,
}

impl<'a> Entry<'a> {
    pub(crate) fn new(waiters: &'a Waiters) -> Self {
        Self {
            waiters,
            ticket: None,
            looked: false,
            gave_turn: false,
        }
    }

    /// Enters the call; `false` where it must look again first.
    #[inline]
    pub(crate) fn wait(&mut self, waker: &Waker) -> bool {
        self.waiters.enter(&mut self.ticket, waker)
    }

    /// Tells whether the call has neither entered nor let others go first.
    #[inline]
    pub(crate) fn is_new(&self) -> bool {
        !self.gave_turn && !self.has_entered()
    }

    /// Tells whether the call has entered.
    #[inline]
    pub(crate) fn has_entered(&self) -> bool {
        self.ticket.is_some()
    }

    /// Says that the call has found what it was woken for; tells whether it had waited.
    pub(crate) fn looked(&mut self) -> bool {
        self.looked = true;
        !self.is_new()
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
