//! Measures the core on memory against tokio's channels. `cargo xtask bench --backend memory` runs it.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The table is what it is for.

use std::rc::Rc;

use benches::{
    core::{Work, broadcast, current_thread, mpsc, ours, two_workers},
    rounds::{Contender, Goal, Row, compare},
    table,
};
use tokio::runtime::Runtime;

type Round = fn(&Runtime, &Work) -> Result<f64, String>;

/// Names the work, what it runs on, what it is compared with, and what is asked of the ratio.
type Plan<'a> = (&'a str, &'a Rc<Runtime>, Work, &'a str, Round, Goal);

fn contender(name: &str, runtime: &Rc<Runtime>, work: &Work, round: Round) -> Contender {
    let (runtime, work) = (Rc::clone(runtime), work.clone());
    Contender::new(name, move || round(&runtime, &work))
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let messages: u64 = if quick { 200_000 } else { 1_000_000 };
    let rounds = if quick { 3 } else { 7 };
    let two = Rc::new(two_workers());
    let one = Rc::new(current_thread());
    let single = Work::one_to_one(messages);
    let batch = |size| Work {
        batch: size,
        ..single.clone()
    };
    let four = |size| Work {
        producers: 4,
        members: 4,
        partitions: 4,
        batch: size,
        ..single.clone()
    };
    let groups = |size| Work {
        groups: 3,
        batch: size,
        ..single.clone()
    };
    let plans: Vec<Plan<'_>> = vec![
        (
            "1 to 1, one by one, 2 workers",
            &two,
            single.clone(),
            "mpsc",
            mpsc,
            Goal::AtLeast(1.2),
        ),
        (
            "1 to 1, one by one, current thread",
            &one,
            single.clone(),
            "mpsc",
            mpsc,
            Goal::AtLeast(0.7),
        ),
        (
            "1 to 1, batches of 64",
            &two,
            batch(64),
            "mpsc recv_many",
            mpsc,
            Goal::AtLeast(1.5),
        ),
        (
            "1 to 1, batches of 256",
            &two,
            batch(256),
            "mpsc recv_many",
            mpsc,
            Goal::AtLeast(1.5),
        ),
        (
            "4 to 4, one by one",
            &two,
            four(1),
            "mpsc",
            mpsc,
            Goal::AtLeast(0.65),
        ),
        (
            "4 to 4, batches of 64",
            &two,
            four(64),
            "mpsc recv_many",
            mpsc,
            Goal::AtLeast(1.3),
        ),
        (
            "3 groups, one by one",
            &two,
            groups(1),
            "broadcast",
            broadcast,
            Goal::AtLeast(1.4),
        ),
        (
            "3 groups, batches of 64",
            &two,
            groups(64),
            "broadcast",
            broadcast,
            Goal::AtLeast(2.5),
        ),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for (name, runtime, work, against, round, goal) in plans {
        let row = compare(
            name,
            rounds,
            &contender("mq", runtime, &work, ours),
            &contender(against, runtime, &work, round),
            goal,
        );
        eprintln!("{name}: {:.2}x {against}", row.median());
        rows.push(row);
    }
    println!("{}", table::markdown(&rows));
    if rows.iter().any(|row| row.failed.is_some()) {
        std::process::exit(1);
    }
}
