//! Waiting for room in the buffer: first come first served, to a deadline, and without a trace when given up.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::{core::Core, effects::Effects};
use crate::Result;

/// Somebody who waits for room.
pub(super) struct Waiter {
    pub(super) count: usize,
    pub(super) weight: usize,
    pub(super) deadline: Instant,
    place: Mutex<Place>,
}

enum Place {
    Waiting(Option<Waker>),
    Answered(Result<()>),
    /// The answer has been taken.
    Over,
}

impl Waiter {
    /// Answers; on `Ok` the room is taken already. Returns whom to wake once the producer's lock is open.
    pub(super) fn answer(&self, answer: Result<()>) -> Option<Waker> {
        match std::mem::replace(&mut *self.place(), Place::Answered(answer)) {
            Place::Waiting(waker) => waker,
            Place::Answered(_) | Place::Over => None,
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for room.
pub(super) struct Admission<'a> {
    core: &'a Arc<Core>,
    waiter: Arc<Waiter>,
}

impl<'a> Admission<'a> {
    /// Takes a place in the row.
    pub(super) fn new(core: &'a Arc<Core>, count: usize, weight: usize, deadline: Instant) -> Self {
        let waiter = Arc::new(Waiter {
            count,
            weight,
            deadline,
            place: Mutex::new(Place::Waiting(None)),
        });
        core.wait_for_room(Arc::clone(&waiter));
        Self { core, waiter }
    }
}

impl<'a> Future for Admission<'a> {
    type Output = Result<Permit<'a>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut place = self.waiter.place();
        match std::mem::replace(&mut *place, Place::Over) {
            Place::Waiting(_) => {
                *place = Place::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            Place::Answered(answer) => Poll::Ready(answer.map(|()| Permit {
                core: self.core,
                count: self.waiter.count,
                weight: self.waiter.weight,
                deadline: self.waiter.deadline,
            })),
            Place::Over => Poll::Ready(Err(crate::Error::closed("producer"))),
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let place = std::mem::replace(&mut *self.waiter.place(), Place::Over);
        match place {
            Place::Over | Place::Answered(Err(_)) => {}
            Place::Answered(Ok(())) => self.core.give_room_back(self.waiter.count, self.waiter.weight),
            Place::Waiting(_) => {
                // It may have been answered between the two locks.
                if self.core.stop_waiting(&self.waiter) {
                    self.core.give_room_back(self.waiter.count, self.waiter.weight);
                }
            }
        }
    }
}

impl Waiter {
    /// Tells whether room was taken for a waiter that has gone; under the producer's lock.
    pub(super) fn was_granted(&self) -> bool {
        matches!(&*self.place(), Place::Answered(Ok(())))
    }
}

/// Room in the buffer that is taken; it is given back when it is dropped unused.
pub(super) struct Permit<'a> {
    core: &'a Arc<Core>,
    count: usize,
    weight: usize,
    pub(super) deadline: Instant,
}

impl Permit<'_> {
    /// Hands the room over to messages that are put in.
    pub(super) fn used(mut self) {
        self.count = 0;
        self.weight = 0;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.core.give_room_back(self.count, self.weight);
        }
    }
}

impl Core {
    pub(super) fn wait_for_room(&self, waiter: Arc<Waiter>) {
        let mut fx = Effects::default();
        {
            let mut state = self.lock();
            match state.check_open() {
                Ok(()) => {
                    state.wait_for_room(waiter, &mut fx);
                    // Room may have come between the refusal and this lock.
                    state.settle(&mut fx, &self.options, &self.client.budget);
                }
                Err(error) => fx.wakes.extend(waiter.answer(Err(error))),
            }
        }
        self.finish(&mut fx);
    }

    /// Takes a waiter out of the row. `true` where it had been given room meanwhile.
    pub(super) fn stop_waiting(&self, waiter: &Arc<Waiter>) -> bool {
        let mut fx = Effects::default();
        let granted = {
            let mut state = self.lock();
            state.stop_waiting(waiter);
            state.settle(&mut fx, &self.options, &self.client.budget);
            waiter.was_granted()
        };
        self.finish(&mut fx);
        granted
    }

    pub(super) fn give_room_back(&self, count: usize, weight: usize) {
        let mut fx = Effects {
            released: (count, weight),
            ..Effects::default()
        };
        self.lock().settle(&mut fx, &self.options, &self.client.budget);
        self.finish(&mut fx);
    }

    /// Looks again whether somebody can be admitted.
    pub(super) fn admit_waiting(&self) {
        self.give_room_back(0, 0);
    }
}
