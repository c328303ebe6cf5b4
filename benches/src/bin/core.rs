//! Measures the core on memory against tokio's channels. `cargo xtask bench --backend memory` runs it.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The table is what it is for.

use std::rc::Rc;

use benches::{
    command::Options,
    core::{Work, broadcast, current_thread, mpsc, ours, two_workers},
    flat,
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

/// A row of nanoseconds: ours in one state against ours in another, or against another's.
fn times(
    name: &str,
    against: &str,
    rounds: usize,
    ours: impl Fn() -> Result<f64, String> + 'static,
    other: impl Fn() -> Result<f64, String> + 'static,
    goal: Goal,
) -> Row {
    compare(
        name,
        rounds,
        &Contender::new("mq", ours),
        &Contender::new(against, other),
        goal,
    )
}

/// What a message costs while something else grows.
fn flatness(options: &Options, one: &Rc<Runtime>, two: &Rc<Runtime>) -> Vec<Row> {
    type Grown = fn(&Runtime, u64, u64) -> Result<f64, String>;
    let count = options.messages(640_000);
    let rounds = options.rounds().most;
    let backlog = options.messages(10_000_000);
    // What grows, its values from the base on, and what is asked of each against the base.
    let plans: [(&str, Grown, &[u64], Goal); 5] = [
        ("messages behind", flat::behind, &[0, backlog], Goal::AtMost(1.2)),
        (
            "messages un-acked",
            flat::unacked,
            &[0, 10_000, 100_000],
            Goal::AtMost(1.2),
        ),
        (
            "partitions",
            |runtime, n, count| flat::partitions(runtime, u32::try_from(n).unwrap_or(1), count),
            &[1, 16, 256],
            Goal::Shown,
        ),
        (
            "topics open",
            |runtime, n, count| flat::topics(runtime, u32::try_from(n).unwrap_or(1), count),
            &[1, 100],
            Goal::Shown,
        ),
        ("groups, a delivery", flat::groups, &[1, 10], Goal::Shown),
    ];
    let mut rows = Vec::new();
    for (what, grown, values, goal) in plans {
        let Some((&base, more)) = values.split_first() else {
            continue;
        };
        for &value in more {
            let name = format!("{value} {what}, ns");
            if !options.wants(&name) {
                continue;
            }
            let (ours, other) = (Rc::clone(one), Rc::clone(one));
            // A full backlog takes a gigabyte and seconds to fill.
            let rounds = if value >= 1_000_000 { rounds.min(3) } else { rounds };
            rows.push(times(
                &name,
                &format!("{base}"),
                rounds,
                move || grown(&ours, value, count),
                move || grown(&other, base, count),
                goal,
            ));
        }
    }
    let name = "there and back, p50, ns";
    if options.wants(name) {
        for (runtime, on) in [(one, "current thread"), (two, "2 workers")] {
            let count = options.messages(100_000);
            let (ours, other) = (Rc::clone(runtime), Rc::clone(runtime));
            rows.push(times(
                &format!("{name}, {on}"),
                "two mpsc",
                rounds,
                move || flat::ping_pong(&ours, count),
                move || flat::ping_pong_mpsc(&other, count),
                Goal::AtMost(1.5),
            ));
        }
    }
    rows
}

/// The in-memory queues of other libraries.
#[cfg(feature = "peers")]
fn against_peers(options: &Options, one: &Rc<Runtime>, two: &Rc<Runtime>) -> Vec<Row> {
    let work = Work::one_to_one(options.messages(1_000_000));
    [(two, "2 workers"), (one, "current thread")]
        .into_iter()
        .map(|(runtime, on)| (runtime, format!("1 to 1, one by one, {on}, peer")))
        .filter(|(_, name)| options.wants(name))
        .map(|(runtime, name)| {
            compare(
                &name,
                options.rounds().most,
                &contender("mq", runtime, &work, ours),
                &contender("omniqueue", runtime, &work, benches::peers::omniqueue),
                Goal::AtLeast(1.4),
            )
        })
        .collect()
}

#[cfg(not(feature = "peers"))]
fn against_peers(_: &Options, _: &Rc<Runtime>, _: &Rc<Runtime>) -> Vec<Row> {
    Vec::new()
}

fn main() {
    let options = Options::parse(std::env::args().skip(1));
    let messages: u64 = if options.quick { 200_000 } else { 1_000_000 };
    let rounds = options.rounds().most;
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
        if !options.wants(name) {
            continue;
        }
        let row = compare(
            name,
            rounds,
            &contender("mq", runtime, &work, ours),
            &contender(against, runtime, &work, round),
            goal,
        );
        rows.push(row);
    }
    rows.extend(against_peers(&options, &one, &two));
    rows.extend(flatness(&options, &one, &two));
    println!("{}", table::markdown(&rows));
    if rows.iter().any(|row| row.failed.is_some()) {
        std::process::exit(1);
    }
}
