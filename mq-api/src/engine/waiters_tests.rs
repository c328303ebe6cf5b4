//! The wake-ups one by one; [`super::model`] drives them all at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use super::waiters::Waiters;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_woken_call_that_is_dropped_passes_its_wake_on() {
    let waiters = Waiters::default();
    let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let (mut a, mut b) = (None, None);
    assert!(waiters.enter(&mut a, &Waker::from(Arc::clone(&first))));
    assert!(waiters.enter(&mut b, &Waker::from(Arc::clone(&second))));
    waiters.notify();
    assert_eq!(
        (first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)),
        (1, 0)
    );
    waiters.leave(a.unwrap(), false);
    assert_eq!(second.0.load(Ordering::SeqCst), 1);
}

#[test]
fn a_call_that_is_woken_while_another_task_takes_it_over_looks_again() {
    let waiters = Waiters::default();
    let (before, after) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let mut ticket = None;
    assert!(waiters.enter(&mut ticket, &Waker::from(Arc::clone(&before))));
    // The other task has looked already, and found nothing.
    waiters.notify();
    assert_eq!(before.0.load(Ordering::SeqCst), 1);
    assert!(
        !waiters.enter(&mut ticket, &Waker::from(after)),
        "the task that was woken has nothing to do with the call any more"
    );
    assert!(ticket.is_none(), "it enters anew");
}

#[test]
fn a_call_of_another_task_waits_behind_who_sits_and_each_is_woken_once() {
    let waiters = Waiters::default();
    let counts: Vec<Arc<Count>> = (0..3).map(|_| Arc::default()).collect();
    let woken = || -> Vec<usize> {
        counts
            .iter()
            .map(|count| count.0.load(Ordering::SeqCst))
            .collect()
    };
    let mut tickets = [None, None, None];
    for (ticket, count) in tickets.iter_mut().zip(&counts) {
        assert!(waiters.enter(ticket, &Waker::from(Arc::clone(count))));
    }
    for expected in [[1, 0, 0], [1, 1, 0], [1, 1, 1]] {
        waiters.notify();
        assert_eq!(woken(), expected);
    }
    assert!(!waiters.has_waiting());
    // Who is done leaves, and takes nothing with it.
    for ticket in tickets.into_iter().flatten() {
        waiters.leave(ticket, true);
    }
    waiters.notify();
    assert_eq!(woken(), [1, 1, 1]);
}

#[test]
fn who_sits_moves_to_the_list_with_another_task() {
    let waiters = Waiters::default();
    let (before, after) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let mut ticket = None;
    assert!(waiters.enter(&mut ticket, &Waker::from(Arc::clone(&before))));
    assert!(waiters.enter(&mut ticket, &Waker::from(Arc::clone(&after))));
    waiters.notify();
    assert_eq!(
        (before.0.load(Ordering::SeqCst), after.0.load(Ordering::SeqCst)),
        (0, 1)
    );
    assert!(!waiters.has_waiting());
}

#[test]
fn an_event_without_a_waiting_call_is_not_lost() {
    let waiters = Waiters::default();
    waiters.notify();
    let mut ticket = None;
    assert!(
        !waiters.enter(&mut ticket, Waker::noop()),
        "the note sends the call back to look"
    );
    assert!(waiters.enter(&mut ticket, Waker::noop()));
    waiters.leave(ticket.unwrap(), false);
}

#[test]
fn the_task_hears_of_a_note_once() {
    let waiters = Waiters::default();
    waiters.notify();
    waiters.notify();
    assert!(waiters.look(false));
    assert!(!waiters.look(false));
    assert!(waiters.is_ticking() && waiters.rest());
    assert!(!waiters.is_ticking());
}

#[test]
fn a_note_that_comes_before_the_ticking_ends_is_looked_at() {
    let waiters = Waiters::default();
    waiters.tick();
    assert!(!waiters.look(false));
    waiters.notify();
    assert!(!waiters.rest() && waiters.is_ticking());
    assert!(waiters.rest());
}
