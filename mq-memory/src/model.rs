//! Drives the log and its wake-ups through many interleavings, by a model checker in place of the real threads.
//!
//! The files are compiled a second time, with the checker's primitives under the same names.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use mq_api::Message;
use shuttle::{future::block_on, thread};

use self::{
    log::{Cursor, Keep, Only, Partition, Read, Watch},
    signal::Signal,
};
use crate::wakes::Wakes;

#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the model checks a part of it with its own primitives"
)]
#[path = "log.rs"]
mod log;
#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the model checks a part of it with its own primitives"
)]
#[path = "signal.rs"]
mod signal;

mod sync {
    pub(crate) use shuttle::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    pub(crate) fn lock_patiently<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        lock(mutex)
    }
}

const KEEP_ALL: Keep = Keep {
    bytes: u64::MAX,
    age: Duration::MAX,
};

/// Runs a model under a random scheduler, and under one that looks for bugs that need few preemptions.
fn check(model: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(model, 1500);
    shuttle::check_pct(model, 1500, 3);
}

/// Waits with a signal as the event stream does, until `look` finds something in the partitions that have news. It leaves
/// nothing there.
async fn wait<T>(
    signal: &Signal,
    registered: &mut Option<Waker>,
    mut look: impl FnMut(&[u32]) -> Option<T>,
) -> T {
    poll_fn(|cx| {
        if signal.wait_again(registered.as_ref(), cx.waker()) {
            return Poll::Pending;
        }
        loop {
            let mut news = Vec::new();
            signal.begin(|partition| news.push(partition));
            if let Some(found) = look(&news) {
                return Poll::Ready(found);
            }
            if signal.wait(registered, cx.waker()) {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// A message that fills a segment, so that each has its own.
fn large() -> Message {
    Message::new(vec![0; 5000])
}

#[test]
fn each_partition_with_news_is_taken_once() {
    shuttle::check_random(
        || {
            let signal = Signal::new(200);
            for partition in [199, 0, 62, 0, 63, 61] {
                signal.news(partition, &mut Wakes::default());
            }
            let mut found = Vec::new();
            signal.begin(|partition| found.push(partition));
            assert_eq!(found, [0, 61, 62, 63, 199]);
            signal.begin(|partition| panic!("{partition} is taken twice"));
        },
        1,
    );
}

#[test]
fn no_wake_up_is_lost_between_two_writers_and_a_reader() {
    check(|| {
        // One of each kind, so that the summary of words is in play.
        const PARTITIONS: [u32; 2] = [0, 70];
        const EACH: u64 = 2;
        let signal = Arc::new(Signal::new(100));
        let partitions = PARTITIONS.map(|index| Arc::new(Partition::new(index, KEEP_ALL)));
        let watching = partitions.clone().map(|p| p.watch(Arc::clone(&signal) as _));
        let writers = partitions.clone().map(|partition| {
            thread::spawn(move || {
                for _ in 0..EACH {
                    let wakes = &mut Wakes::default();
                    partition
                        .append(std::iter::once(Message::new("x")), wakes)
                        .unwrap();
                }
            })
        });
        let mut cursors = [Cursor::new(0), Cursor::new(0)];
        let mut registered = None;
        let mut seen = 0;
        while seen < 2 * EACH {
            seen += block_on(wait(&signal, &mut registered, |news| {
                let mut found = 0;
                for (watching, cursor) in watching.iter().zip(&mut cursors) {
                    if !news.contains(&watching.partition().index()) {
                        continue;
                    }
                    // To the end, as the watcher must: a record that is alone is the end, unless it said that it goes on.
                    let on = found == 0;
                    if let Only::Record(_) = watching.read_only(cursor, on) {
                        found += 1;
                        if !on {
                            continue;
                        }
                    }
                    while let Read::Records { records, more } = watching.read(cursor, 10, usize::MAX) {
                        found += records.len() as u64;
                        if !more {
                            break;
                        }
                    }
                }
                (found > 0).then_some(found)
            }));
        }
        drop(watching);
        for writer in writers {
            writer.join().unwrap();
        }
    });
}

#[test]
fn a_reader_sees_every_record_in_order_across_segments() {
    check(|| {
        const ALL: u64 = 3;
        let partition = Arc::new(Partition::new(0, KEEP_ALL));
        let signal = Arc::new(Signal::new(1));
        let watching = partition.watch(Arc::clone(&signal) as _);
        let writer = {
            let partition = Arc::clone(&partition);
            thread::spawn(move || {
                for _ in 0..ALL {
                    partition
                        .append(std::iter::once(large()), &mut Wakes::default())
                        .unwrap();
                }
            })
        };
        let mut cursor = Cursor::new(0);
        let mut registered = None;
        let mut next = 0;
        while next < ALL {
            block_on(wait(&signal, &mut registered, |_| {
                let before = next;
                loop {
                    match watching.read(&mut cursor, 10, usize::MAX) {
                        Read::Empty => break,
                        Read::Trimmed { .. } => panic!("nothing is trimmed"),
                        Read::Records { records, more } => {
                            for record in records.iter() {
                                assert_eq!(record.offset, next);
                                next += 1;
                            }
                            if !more {
                                break;
                            }
                        }
                    }
                }
                (next > before).then_some(())
            }));
        }
        writer.join().unwrap();
    });
}

#[test]
fn retention_under_a_reader_is_told_and_skips_nothing_else() {
    check(|| {
        const ALL: u64 = 3;
        // Keeps one or two messages of this size.
        let keep = Keep {
            bytes: 6000,
            age: Duration::MAX,
        };
        let partition = Arc::new(Partition::new(0, keep));
        let writer = {
            let partition = Arc::clone(&partition);
            thread::spawn(move || {
                for _ in 0..ALL {
                    partition
                        .append(std::iter::once(large()), &mut Wakes::default())
                        .unwrap();
                }
            })
        };
        let mut cursor = Cursor::new(0);
        let mut next = 0;
        for _ in 0..4 {
            match partition.read(&mut cursor, 10, usize::MAX) {
                Read::Empty => thread::yield_now(),
                Read::Trimmed { from, to } => {
                    assert_eq!(from, next);
                    assert!(to > from);
                    next = to;
                }
                Read::Records { records, .. } => {
                    for record in records.iter() {
                        assert_eq!(record.offset, next);
                        next += 1;
                    }
                }
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn two_readers_see_all_of_what_is_appended_in_batches() {
    check(|| {
        // More at once than are copied, and then fewer.
        const EACH: [u64; 2] = [9, 2];
        const ALL: u64 = EACH[0] + EACH[1];
        let partition = Arc::new(Partition::new(0, KEEP_ALL));
        let signal = Arc::new(Signal::new(1));
        let watching = partition.watch(Arc::clone(&signal) as _);
        let other = {
            let partition = Arc::clone(&partition);
            // It closes the open run under the other reader's feet.
            thread::spawn(move || {
                let mut cursor = Cursor::new(0);
                let mut seen = 0;
                for _ in 0..3 {
                    if let Read::Records { records, .. } = partition.read(&mut cursor, 1, usize::MAX) {
                        for record in records.iter() {
                            assert_eq!(record.offset, seen);
                            seen += 1;
                        }
                    }
                }
            })
        };
        let writer = {
            let partition = Arc::clone(&partition);
            thread::spawn(move || {
                for count in EACH {
                    let messages = vec![Message::new("a"); count as usize];
                    partition
                        .append(messages.into_iter(), &mut Wakes::default())
                        .unwrap();
                }
            })
        };
        let mut cursor = Cursor::new(0);
        let mut registered = None;
        let mut next = 0;
        while next < ALL {
            next += block_on(wait(&signal, &mut registered, |_| {
                let mut found = 0;
                while let Read::Records { records, more } = watching.read(&mut cursor, 10, usize::MAX) {
                    found += records.len() as u64;
                    if !more {
                        break;
                    }
                }
                (found > 0).then_some(found)
            }));
        }
        writer.join().unwrap();
        other.join().unwrap();
    });
}
