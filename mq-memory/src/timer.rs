//! One thread that runs what is due, for as long as something is.
//!
//! A broker may be shared by several runtimes, each of which may end first; so its clockwork runs in none of them. The
//! thread starts with the first job, ends a second after the last one, and ends at once with the broker.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::sync::lock;

/// How long the thread stays for another job.
const LINGER: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs at their time. Jobs are short and hold weak references only; they do not run once it is dropped.
pub(crate) struct Timer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: BinaryHeap<Entry>,
    next: u64,
    running: bool,
    closed: bool,
}

struct Entry {
    at: Instant,
    /// Keeps jobs of one instant in the order in which they were added.
    number: u64,
    job: Job,
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::default(),
        }
    }

    /// Runs a job at an instant, or soon where it has passed.
    pub(crate) fn at(&self, at: Instant, job: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.shared.state);
        let number = state.next;
        state.next += 1;
        let first = state.jobs.peek().is_none_or(|entry| at < entry.at);
        state.jobs.push(Entry {
            at,
            number,
            job: Box::new(job),
        });
        if !state.running {
            let shared = Arc::clone(&self.shared);
            // Where the system has no thread to give, the next job tries again.
            state.running = thread::Builder::new()
                .name("mq-memory-timer".to_owned())
                .spawn(move || run(&shared))
                .is_ok();
        } else if first {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let jobs = {
            let mut state = lock(&self.shared.state);
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        self.shared.changed.notify_one();
        drop(jobs);
    }
}

fn run(shared: &Shared) {
    let mut state = lock(&shared.state);
    let mut idle_since = None;
    loop {
        if state.closed {
            return;
        }
        let now = Instant::now();
        let wait = match state.jobs.peek() {
            Some(entry) if entry.at <= now => {
                if let Some(entry) = state.jobs.pop() {
                    drop(state);
                    (entry.job)();
                    state = lock(&shared.state);
                }
                idle_since = None;
                continue;
            }
            Some(entry) => {
                idle_since = None;
                entry.at - now
            }
            None => {
                let idle = now - *idle_since.get_or_insert(now);
                if idle >= LINGER {
                    state.running = false;
                    return;
                }
                LINGER - idle
            }
        };
        state = shared
            .changed
            .wait_timeout(state, wait)
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .0;
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    // The heap gives the largest: the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_in_order_and_never_early() {
        let timer = Timer::new();
        let (sender, receiver) = mpsc::channel();
        let start = Instant::now();
        for (name, after) in [("c", 60), ("a", 20), ("b", 20)] {
            let sender = sender.clone();
            let at = start + Duration::from_millis(after);
            timer.at(at, move || sender.send((name, Instant::now() >= at)).unwrap());
        }
        let got: Vec<_> = (0..3).map(|_| receiver.recv().unwrap()).collect();
        assert_eq!(got, [("a", true), ("b", true), ("c", true)]);
    }

    #[test]
    fn a_dropped_timer_lets_go_of_its_jobs_and_its_thread() {
        let timer = Timer::new();
        let held = Arc::new(());
        let job = Arc::clone(&held);
        timer.at(Instant::now() + Duration::from_secs(3600), move || drop(job));
        let shared = Arc::downgrade(&timer.shared);
        drop(timer);
        assert_eq!(Arc::strong_count(&held), 1);
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
