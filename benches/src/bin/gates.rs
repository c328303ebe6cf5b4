//! What must repeat where wall time does not: allocations a message, bytes kept a message, and, under `callgrind`,
//! instructions a message. `cargo xtask gates` runs it.
//!
//! `gates allocations` checks its own limits. `gates work NAME COUNT` only does the work COUNT times, so that two runs
//! under `callgrind` with different counts tell what one costs.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The numbers are what it is for.

use std::{alloc::System, process::ExitCode, sync::Arc, time::Duration};

use benches::{
    core::{current_thread, open},
    payload::Payloads,
};
use mq_api::{Consumer, Message, Mq, Producer, Result};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The most allocations a message for send, receive and ack together, one by one and in batches of 64.
const MOST_SINGLE: f64 = 2.0;
const MOST_BATCH: f64 = 0.2;

/// The most bytes that a retained message of 100 bytes may keep, its payload included.
const MOST_RETAINED: f64 = 256.0;

struct Bench {
    _mq: Mq,
    producer: Producer,
    consumer: Consumer,
    payloads: Payloads,
}

impl Bench {
    async fn open() -> Result<Self> {
        let mq = open(1).await?;
        let producer = mq.producer("t").await?;
        // No timer is to fire while instructions are counted.
        let hour = Duration::from_secs(3600);
        let consumer = mq
            .consumer("t", "g")
            .commit_interval(hour)
            .commit_every(usize::MAX)
            .max_unacked(1_000_000)
            .await?;
        while consumer.assignment().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Self {
            _mq: mq,
            producer,
            consumer,
            payloads: Payloads::new(100),
        })
    }

    async fn produce(&self, count: u64, batch: u64) -> Result<()> {
        let mut index = 0;
        while index < count {
            if batch == 1 {
                self.producer
                    .produce(Message::new(self.payloads.of(index)))
                    .await?;
            } else {
                let messages = (index..index + batch).map(|index| Message::new(self.payloads.of(index)));
                for result in self.producer.produce_batch(messages).await {
                    result?;
                }
            }
            index += batch;
        }
        Ok(())
    }

    async fn consume(&self, count: u64, batch: u64) -> Result<()> {
        let mut left = count;
        while left > 0 {
            if batch == 1 {
                self.consumer.consume().await?.ack()?;
                left -= 1;
            } else {
                let most = usize::try_from(batch.min(left)).unwrap_or(usize::MAX);
                let deliveries = self.consumer.consume_batch(most).await?;
                left -= deliveries.len() as u64;
                self.consumer.ack_all(deliveries)?;
            }
        }
        Ok(())
    }

    /// Sends, receives and acks in turn, so that each message is under way alone or in its batch.
    async fn round_trips(&self, count: u64, batch: u64) -> Result<()> {
        let mut index = 0;
        while index < count {
            self.produce(batch, batch).await?;
            self.consume(batch, batch).await?;
            index += batch;
        }
        Ok(())
    }
}

/// Sends a message there and an answer back, each to a task that waits for it: what a call costs that finds nothing, and
/// its wake.
async fn there_and_back(count: u64) -> Result<()> {
    let (there, back) = (Bench::open().await?, Bench::open().await?);
    let payloads = there.payloads.clone();
    let (to, from) = (there.producer.clone(), back.consumer.clone());
    let echo = tokio::spawn(async move {
        for _ in 0..count {
            let delivery = there.consumer.consume().await?;
            back.producer.produce(delivery.message().clone()).await?;
            delivery.ack()?;
        }
        Ok::<_, mq_api::Error>((there, back))
    });
    // In a task as well: what the runtime's first future waits for, it waits for in the system.
    let pinging = tokio::spawn(async move {
        for index in 0..count {
            to.produce(Message::new(payloads.of(index))).await?;
            from.consume().await?.ack()?;
        }
        Ok::<_, mq_api::Error>(())
    });
    pinging.await.expect("the pinging task does not panic")?;
    echo.await.expect("the echo does not panic").map(drop)
}

async fn work(name: &str, count: u64) -> Result<bool> {
    if name == "there-and-back" {
        return there_and_back(count).await.map(|()| true);
    }
    let bench = Bench::open().await?;
    match name {
        "produce-single" => bench.produce(count, 1).await?,
        "produce-batch" => bench.produce(count, 64).await?,
        "consume-single" => {
            bench.produce(count, 64).await?;
            bench.consume(count, 1).await?;
        }
        "consume-batch" => {
            bench.produce(count, 64).await?;
            bench.consume(count, 64).await?;
        }
        "round-trip-single" => bench.round_trips(count, 1).await?,
        "round-trip-batch" => bench.round_trips(count, 64).await?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
fn each(total: usize, count: u64) -> f64 {
    total as f64 / count as f64
}

async fn allocations() -> Result<bool> {
    const COUNT: u64 = 64 * 1000;
    // First, so that nothing of another measurement is freed meanwhile.
    let bench = Bench::open().await?;
    let region = Region::new(ALLOCATOR);
    for index in 0..COUNT {
        let own = Vec::from(&bench.payloads.of(index)[..]);
        bench.producer.produce(Message::new(own)).await?;
    }
    let change = region.change();
    let kept = each(
        change.bytes_allocated.saturating_sub(change.bytes_deallocated),
        COUNT,
    );
    println!("bytes kept a retained message of 100 bytes: {kept:.0} (at most {MOST_RETAINED})");
    drop(bench);
    let mut holds = true;
    for (what, batch, most) in [
        ("one by one", 1, MOST_SINGLE),
        ("in batches of 64", 64, MOST_BATCH),
    ] {
        let bench = Bench::open().await?;
        bench.round_trips(64 * 10, batch).await?;
        let region = Region::new(ALLOCATOR);
        bench.round_trips(COUNT, batch).await?;
        let change = region.change();
        let allocations = each(change.allocations + change.reallocations, COUNT);
        println!("allocations a message, send + receive + ack {what}: {allocations:.3} (at most {most})");
        holds &= allocations <= most;
    }
    Ok(holds && kept <= MOST_RETAINED)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = Arc::new(current_thread());
    let done = match words.as_slice() {
        ["allocations"] => runtime.block_on(allocations()),
        ["work", name, count] => match count.parse() {
            Ok(count) => runtime.block_on(work(name, count)),
            Err(_) => Ok(false),
        },
        _ => Ok(false),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a limit does not hold, or the words are not `allocations` or `work NAME COUNT`");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
