//! Drives the wake-ups and the ack window through many interleavings, by a model checker in place of the real threads.
//!
//! The files are compiled a second time, with the checker's primitives under the same names.

use std::{collections::VecDeque, future::poll_fn, sync::Arc, task::Poll, task::Waker};

use shuttle::{future::block_on, thread};

use self::{
    sync::{Mutex, lock},
    waiters::{Entry, Waiters},
};
use super::window::AckWindow;

#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the model checks a part of it with its own primitives"
)]
#[path = "waiters.rs"]
mod waiters;

#[allow(clippy::duplicate_mod, reason = "the model checks it with its own primitives")]
#[path = "seat.rs"]
mod seat;

mod sync {
    pub(crate) use shuttle::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    };

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    /// Stands in for the engine's task, which the models do without.
    #[derive(Debug, Default)]
    pub(crate) struct Notify;

    impl Notify {
        pub(crate) fn notify_one(&self) {}

        pub(crate) async fn notified(&self) {
            std::future::pending::<()>().await;
        }
    }
}

/// Runs a model under a random scheduler, and under one that looks for bugs that need few preemptions.
fn check(model: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(model, 1500);
    shuttle::check_pct(model, 1500, 3);
}

/// Yields numbers as a driver yields events: its waker is woken once, and only after a look that found nothing.
#[derive(Default)]
struct Source {
    state: Mutex<(VecDeque<u32>, Option<Waker>)>,
}

impl Source {
    fn push(&self, number: u32) {
        let waker = {
            let mut state = lock(&self.state);
            state.0.push_back(number);
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, waker: &Waker) -> Option<u32> {
        let mut state = lock(&self.state);
        let found = state.0.pop_front();
        if found.is_none() {
            state.1 = Some(waker.clone());
        }
        found
    }
}

/// What is ready, and whether events were left at the driver with its waker not armed.
#[derive(Default)]
struct Ready {
    numbers: VecDeque<u32>,
    unarmed: bool,
}

/// Stands in for the engine: what is ready lies under one lock.
struct Engine {
    source: Source,
    ready: Mutex<Ready>,
    waiters: Arc<Waiters>,
    waker: Waker,
}

impl Engine {
    fn new() -> Arc<Self> {
        let waiters = Arc::new(Waiters::default());
        waiters.fire();
        Arc::new(Self {
            source: Source::default(),
            ready: Mutex::default(),
            waker: Waker::from(Arc::clone(&waiters)),
            waiters,
        })
    }

    /// Takes an event in where there may be one, then the next number; tells whether there is, or may be, more. Enters the
    /// call where there is none; `Err` says whether it waits.
    fn look(&self, entry: &mut Entry<'_>, waker: &Waker) -> Result<(u32, bool), bool> {
        let mut ready = lock(&self.ready);
        self.waiters.begin_look();
        if self.waiters.take_fired() {
            ready.unarmed = true;
            self.drive(&mut ready);
        }
        loop {
            if let Some(number) = ready.numbers.pop_front() {
                return Ok((number, !ready.numbers.is_empty() || ready.unarmed));
            }
            if !self.drive(&mut ready) {
                return Err(entry.wait(waker));
            }
        }
    }

    /// Takes one event in; `false`, and the waker is armed, where there is none.
    fn drive(&self, ready: &mut Ready) -> bool {
        if !ready.unarmed && !self.waiters.take_fired() {
            return false;
        }
        let event = self.source.poll(&self.waker);
        ready.unarmed = event.is_some();
        ready.numbers.extend(event);
        ready.unarmed
    }

    /// Makes a number ready without the driver, as an ack or a timer does.
    fn make_ready(&self, number: u32) {
        lock(&self.ready).numbers.push_back(number);
        self.waiters.nudge();
    }
}

/// Takes one number as a waiting call of the engine does.
async fn take(engine: &Engine) -> u32 {
    let mut entry = Entry::new(&engine.waiters);
    poll_fn(|cx| {
        loop {
            match engine.look(&mut entry, cx.waker()) {
                Ok((number, more)) => {
                    entry.looked();
                    if more {
                        engine.waiters.nudge();
                    }
                    return Poll::Ready(number);
                }
                Err(true) => return Poll::Pending,
                Err(false) => {}
            }
        }
    })
    .await
}

/// Waits once, as a call that is dropped at its first wait.
async fn give_up(engine: &Engine) -> Option<u32> {
    let mut taking = Box::pin(take(engine));
    poll_fn(|cx| match taking.as_mut().poll(cx) {
        Poll::Ready(number) => Poll::Ready(Some(number)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[test]
fn no_wake_up_is_lost_between_a_writer_and_two_waiting_calls() {
    check(|| {
        let engine = Engine::new();
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || block_on(take(&engine)))
            })
            .collect();
        engine.source.push(1);
        engine.source.push(2);
        let mut taken: Vec<u32> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
    });
}

#[test]
fn no_wake_up_is_lost_between_events_and_what_becomes_ready_without_them() {
    check(|| {
        let engine = Engine::new();
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || block_on(take(&engine)))
            })
            .collect();
        let timer = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.make_ready(1))
        };
        engine.source.push(2);
        let mut taken: Vec<u32> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        timer.join().unwrap();
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
    });
}

#[test]
fn a_call_that_is_dropped_takes_no_wake_up_with_it() {
    check(|| {
        let engine = Engine::new();
        let quitter = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || block_on(give_up(&engine)))
        };
        let taker = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || block_on(take(&engine)))
        };
        engine.source.push(1);
        if quitter.join().unwrap().is_some() {
            engine.source.push(2);
        }
        taker.join().unwrap();
    });
}

#[test]
fn a_commit_never_covers_what_is_not_acked() {
    check(|| {
        let window = Arc::new(Mutex::new(AckWindow::default()));
        let seqs: Vec<u64> = (0..4).map(|offset| lock(&window).push(offset, 0, 0)).collect();
        let acked = Arc::new(Mutex::new([false; 4]));
        let ackers: Vec<_> = [[3usize, 0], [1, 2]]
            .into_iter()
            .map(|mine| {
                let (window, acked, seqs) = (Arc::clone(&window), Arc::clone(&acked), seqs.clone());
                thread::spawn(move || {
                    for index in mine {
                        lock(&acked)[index] = true;
                        assert!(lock(&window).ack(seqs[index]));
                    }
                })
            })
            .collect();
        let mut position = 0;
        for _ in 0..3 {
            let (low, above) = {
                let window = lock(&window);
                (window.low().unwrap_or(4), window.acked_above())
            };
            let acked = *lock(&acked);
            assert!(low >= position, "the position went back");
            position = low;
            for (offset, acked) in (0..4u64).zip(acked) {
                let covered = offset < low || above.iter().any(|range| range.contains(&offset));
                assert!(!covered || acked, "offset {offset} is covered and not acked");
            }
        }
        for acker in ackers {
            acker.join().unwrap();
        }
        assert_eq!(lock(&window).low(), None);
    });
}
