//! What one message costs in the core, in nanoseconds, while something else grows: a backlog, a window, partitions,
//! topics, groups. And how long a message takes there and back.

use std::time::Instant;

use mq_api::{Consumer, Delivery, Message, Mq, Producer, Result};
use mq_memory::MemoryMq;
use tokio::{runtime::Runtime, sync::mpsc};

use crate::{
    core::open,
    meter::{Sample, Times},
    payload::Payloads,
};

/// How many messages a filling call sends.
const FILL: u64 = 256;

type Measured = std::result::Result<Sample, String>;

#[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
fn nanos_each(begun: Instant, count: u64) -> Sample {
    Sample::of([begun.elapsed().as_secs_f64() * 1e9 / count as f64])
}

fn run(runtime: &Runtime, work: impl Future<Output = Result<Sample>>) -> Measured {
    runtime.block_on(work).map_err(|error| error.to_string())
}

async fn fill(producer: &Producer, payloads: &Payloads, count: u64) -> Result<()> {
    let mut index = 0;
    while index < count {
        let end = (index + FILL).min(count);
        let messages = (index..end).map(|index| Message::new(payloads.of(index)));
        for result in producer.produce_batch(messages).await {
            result?;
        }
        index = end;
    }
    Ok(())
}

async fn take(consumer: &Consumer, count: u64) -> Result<()> {
    for _ in 0..count {
        consumer.consume().await?.ack()?;
    }
    Ok(())
}

/// Sends, receives and acks in rounds of 64, so that no backlog grows and no task is woken for each message.
async fn rounds(producer: &Producer, consumers: &[Consumer], payloads: &Payloads, count: u64) -> Result<()> {
    let mut index = 0;
    while index < count {
        for index in index..index + 64 {
            producer.produce(Message::new(payloads.of(index))).await?;
        }
        for consumer in consumers {
            take(consumer, 64).await?;
        }
        index += 64;
    }
    Ok(())
}

async fn owning(mq: &Mq, group: &str, partitions: usize) -> Result<Consumer> {
    let consumer = mq.consumer("t", group).max_unacked(1_000_000).await?;
    while consumer.assignment().len() < partitions {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    Ok(consumer)
}

/// Receives and acks one by one in a group that is so many messages behind.
///
/// # Errors
/// What a call answered.
pub fn behind(runtime: &Runtime, backlog: u64, count: u64) -> Measured {
    run(runtime, async {
        let mq = open(1).await?;
        let producer = mq.producer("t").await?;
        fill(&producer, &Payloads::new(100), backlog.max(count)).await?;
        let consumer = owning(&mq, "g", 1).await?;
        let begun = Instant::now();
        take(&consumer, count).await?;
        Ok(nanos_each(begun, count))
    })
}

/// Sends, receives and acks while so many messages before are handed over and not acked.
///
/// # Errors
/// What a call answered.
pub fn unacked(runtime: &Runtime, window: u64, count: u64) -> Measured {
    run(runtime, async {
        let mq = open(1).await?;
        let producer = mq.producer("t").await?;
        let payloads = Payloads::new(100);
        let consumer = owning(&mq, "g", 1).await?;
        fill(&producer, &payloads, window).await?;
        let mut held: Vec<Delivery> = Vec::new();
        while (held.len() as u64) < window {
            held.extend(consumer.consume_batch(1000).await?);
        }
        let consumers = [consumer];
        rounds(&producer, &consumers, &payloads, 6400).await?;
        let begun = Instant::now();
        rounds(&producer, &consumers, &payloads, count).await?;
        let each = nanos_each(begun, count);
        consumers[0].ack_all(held)?;
        Ok(each)
    })
}

/// Sends, receives and acks over so many partitions.
///
/// # Errors
/// What a call answered.
pub fn partitions(runtime: &Runtime, partitions: u64, count: u64) -> Measured {
    run(runtime, async {
        let mq = open(u32::try_from(partitions).unwrap_or(u32::MAX)).await?;
        let producer = mq.producer("t").await?;
        let payloads = Payloads::new(100);
        let consumers = [owning(&mq, "g", partitions as usize).await?];
        rounds(&producer, &consumers, &payloads, 6400).await?;
        let begun = Instant::now();
        rounds(&producer, &consumers, &payloads, count).await?;
        Ok(nanos_each(begun, count))
    })
}

/// Sends, receives and acks on one topic while the client has so many open, each with a producer and a consumer.
///
/// # Errors
/// What a call answered.
pub fn topics(runtime: &Runtime, topics: u64, count: u64) -> Measured {
    run(runtime, async {
        let mq = Mq::from_driver(MemoryMq::new());
        mq.create_topic("t", 1).await?;
        let mut others = Vec::new();
        for number in 1..topics {
            let name = format!("other{number}");
            mq.create_topic(&name, 1).await?;
            others.push((mq.producer(&name).await?, mq.consumer(&name, "g").await?));
        }
        let producer = mq.producer("t").await?;
        let payloads = Payloads::new(100);
        let consumers = [owning(&mq, "g", 1).await?];
        rounds(&producer, &consumers, &payloads, 6400).await?;
        let begun = Instant::now();
        rounds(&producer, &consumers, &payloads, count).await?;
        let each = nanos_each(begun, count);
        drop(others);
        Ok(each)
    })
}

/// Sends once, receives and acks in each of so many groups; nanoseconds a delivery.
///
/// # Errors
/// What a call answered.
pub fn groups(runtime: &Runtime, groups: u64, count: u64) -> Measured {
    run(runtime, async {
        let mq = open(1).await?;
        let producer = mq.producer("t").await?;
        let payloads = Payloads::new(100);
        let mut consumers = Vec::new();
        for number in 0..groups {
            consumers.push(owning(&mq, &format!("g{number}"), 1).await?);
        }
        rounds(&producer, &consumers, &payloads, 6400).await?;
        let begun = Instant::now();
        rounds(&producer, &consumers, &payloads, count).await?;
        Ok(nanos_each(begun, count * groups))
    })
}

/// Gives the figures of [`THERE_AND_BACK`](crate::side::THERE_AND_BACK).
fn there_and_back(mut times: Times) -> Sample {
    Sample::of([0.5, 0.99].map(|part| times.percentile(part) * 1e3))
}

/// Sends a message to another task, which sends one back: the median of so many times there and back.
///
/// # Errors
/// What a call answered.
pub fn ping_pong(runtime: &Runtime, count: u64) -> Measured {
    run(runtime, async {
        let mq = Mq::from_driver(MemoryMq::new());
        for topic in ["t", "back"] {
            mq.create_topic(topic, 1).await?;
        }
        let (there, back) = (mq.producer("t").await?, mq.producer("back").await?);
        let (at, home) = (owning(&mq, "g", 1).await?, mq.consumer("back", "g").await?);
        let echo = tokio::spawn(async move {
            for _ in 0..count {
                let delivery = at.consume().await?;
                back.produce(delivery.message().clone()).await?;
                delivery.ack()?;
            }
            Ok::<_, mq_api::Error>(())
        });
        let payloads = Payloads::new(100);
        let pinging = tokio::spawn(async move {
            let mut times = Times::default();
            for index in 0..count {
                let begun = Instant::now();
                there.produce(Message::new(payloads.of(index))).await?;
                home.consume().await?.ack()?;
                times.take(begun.elapsed());
            }
            Ok::<_, mq_api::Error>(there_and_back(times))
        });
        let (echoed, pinged) = (echo.await, pinging.await);
        echoed.expect("the echo does not panic")?;
        pinged.expect("the pinging task does not panic")
    })
}

/// The same over two of tokio's channels.
///
/// # Errors
/// Says that a channel ended.
pub fn ping_pong_mpsc(runtime: &Runtime, count: u64) -> Measured {
    runtime.block_on(async {
        let (there, mut at) = mpsc::channel::<Message>(1024);
        let (back, mut home) = mpsc::channel::<Message>(1024);
        let echo = tokio::spawn(async move {
            while let Some(message) = at.recv().await {
                if back.send(message).await.is_err() {
                    break;
                }
            }
        });
        let payloads = Payloads::new(100);
        let pinging = tokio::spawn(async move {
            let mut times = Times::default();
            for index in 0..count {
                let begun = Instant::now();
                let sent = there.send(Message::new(payloads.of(index))).await;
                if sent.is_err() || home.recv().await.is_none() {
                    return Err("a channel ended".to_owned());
                }
                times.take(begun.elapsed());
            }
            Ok(there_and_back(times))
        });
        let times = pinging.await.expect("the pinging task does not panic");
        echo.await.expect("the echo does not panic");
        times
    })
}
