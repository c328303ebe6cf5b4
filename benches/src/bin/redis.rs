//! Measures the Redis driver against the raw client on one server. Run it with `--release --features redis`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The table is what it is for.

use std::{process::ExitCode, rc::Rc, time::Duration};

use benches::{
    redis::Bench,
    rounds::{Contender, Goal, Row, compare},
    table,
};
use mq_api::Mode;
use test_brokers::{AppendFsync, RedisOptions, RedisVersion};

type Round = fn(&Bench) -> Result<f64, String>;

const MANY: u64 = 100_000;
const SOME: u64 = 20_000;
const FEW: u64 = 5_000;
const GAP: Duration = Duration::from_millis(1);

/// The work, ours, whom it is compared with, that one's way, and what is asked of the ratio.
const PLANS: &[(&str, Round, &str, Round, Goal)] = &[
    (
        "produce, 1,000 in flight",
        |b| b.ours_produce(MANY, 1000),
        "pipelines of 512",
        |b| b.raw_pipeline(MANY, 512),
        Goal::AtLeast(0.8),
    ),
    (
        "produce, 64 in flight",
        |b| b.ours_produce(MANY, 64),
        "pipelines of 64",
        |b| b.raw_pipeline(MANY, 64),
        Goal::AtLeast(0.6),
    ),
    (
        "produce, 64 tasks",
        |b| b.ours_awaited(MANY, 64),
        "64 tasks of single commands",
        |b| b.raw_singles(MANY, 64),
        Goal::AtLeast(0.8),
    ),
    (
        "produce, one by one",
        |b| b.ours_awaited(SOME, 1),
        "single commands",
        |b| b.raw_singles(SOME, 1),
        Goal::AtLeast(0.95),
    ),
    (
        "consume and ack, partitioned",
        |b| b.ours_consume(MANY, Mode::Partitioned),
        "XREADGROUP and XACK of 100",
        |b| b.raw_group(MANY),
        Goal::AtLeast(1.5),
    ),
    (
        "consume and ack, partitioned",
        |b| b.ours_consume(MANY, Mode::Partitioned),
        "XREAD of 100, no acks",
        |b| b.raw_read(MANY),
        Goal::AtLeast(0.6),
    ),
    (
        "consume and ack, shared",
        |b| b.ours_consume(MANY, Mode::Shared),
        "XREADGROUP and XACK of 100",
        |b| b.raw_group(MANY),
        Goal::AtLeast(1.0),
    ),
    (
        "end to end, 1 a ms, p50 in us",
        |b| b.ours_latency(FEW, GAP, 0.5),
        "XADD to blocking XREAD",
        |b| b.raw_latency(FEW, GAP, 0.5),
        Goal::AtMost(1.4),
    ),
    (
        "end to end, 1 a ms, p99 in us",
        |b| b.ours_latency(FEW, GAP, 0.99),
        "XADD to blocking XREAD",
        |b| b.raw_latency(FEW, GAP, 0.99),
        Goal::AtMost(1.4),
    ),
];

fn main() -> ExitCode {
    let quick = std::env::args().any(|argument| argument == "--quick");
    match measure(if quick { 3 } else { 7 }) {
        Ok(rows) => {
            println!("{}", table::markdown(&rows));
            ExitCode::from(u8::from(rows.iter().any(|row| row.failed.is_some())))
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: usize) -> Result<Vec<Row>, String> {
    let server = RedisVersion::from_environment()
        .and_then(|version| {
            RedisOptions::new()
                .with_version(version)
                .with_append_fsync(AppendFsync::EverySecond)
                .start()
        })
        .map_err(|error| error.to_string())?;
    let bench = Bench::new(server)?;
    let contender = |name: &str, round: Round| {
        let bench = Rc::clone(&bench);
        Contender::new(name, move || round(&bench))
    };
    let only: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let mut rows = Vec::new();
    for (work, ours, against, theirs, goal) in PLANS {
        if !only.is_empty() && !only.iter().any(|word| work.contains(word.as_str())) {
            continue;
        }
        let row = compare(
            work,
            rounds,
            &contender("mq", *ours),
            &contender(against, *theirs),
            *goal,
        );
        eprintln!("{work}: {:.2}x {against}", row.median());
        rows.push(row);
    }
    Ok(rows)
}
