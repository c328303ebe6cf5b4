//! The work that measures the core: ours on memory, through the public API and `dyn` driver, and what it is compared
//! with. Every receiver checks every payload.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{Consumer, Message, Mq, Producer, TopicSpec};
use mq_memory::MemoryMq;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{broadcast, mpsc},
    task::JoinSet,
};

use crate::{
    meter::{Meter, Sample, Times},
    ours::{SteadySends, since},
    payload::{Check, Payloads},
};

type Outcome = Result<Sample, String>;

/// What one round moves.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many messages all producers send together.
    pub messages: u64,
    /// How many send.
    pub producers: u64,
    /// How many receive, each in a task of its own.
    pub members: u64,
    /// How many groups receive everything.
    pub groups: u64,
    /// How many partitions the topic has.
    pub partitions: u32,
    /// How many messages a call takes; 1 is one by one.
    pub batch: usize,
    /// The payloads.
    pub payloads: Arc<Payloads>,
}

impl Load {
    /// Describes one producer and one member that move messages one by one.
    #[must_use]
    pub fn one_to_one(messages: u64) -> Self {
        Self {
            messages,
            producers: 1,
            members: 1,
            groups: 1,
            partitions: 1,
            batch: 1,
            payloads: Arc::new(Payloads::new(100)),
        }
    }

    fn each(&self) -> u64 {
        self.messages / self.producers
    }

    /// Stops the clock, and says what was lost or doubled.
    fn judge(&self, check: Check, meter: Meter) -> Outcome {
        let sample = meter.stop(self.messages);
        let mut expected = Check::default();
        for _ in 0..self.producers {
            expected.add(Check::expected(self.each(), self.groups));
        }
        if check == expected {
            Ok(sample)
        } else {
            Err(format!("received {check:?}, sent {expected:?}"))
        }
    }
}

/// Makes a runtime of two workers.
///
/// # Panics
/// Where the system gives no threads.
#[must_use]
pub fn two_workers() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

/// Makes a runtime on this thread.
///
/// # Panics
/// Where the system gives no timer.
#[must_use]
pub fn current_thread() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

/// Opens a private broker with one topic `t`.
///
/// # Errors
/// What the broker says.
pub async fn open(partitions: u32) -> mq_api::Result<Mq> {
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic_with(TopicSpec::new("t", partitions)?).await?;
    Ok(mq)
}

/// Runs a round of ours.
///
/// # Errors
/// Says what was lost or doubled, or what a call answered.
pub fn ours(runtime: &Runtime, load: &Load) -> Outcome {
    runtime
        .block_on(run_ours(load.clone()))
        .map_err(|error| error.to_string())?
}

async fn run_ours(load: Load) -> mq_api::Result<Outcome> {
    let mq = open(load.partitions).await?;
    let mut receivers = JoinSet::new();
    let share = load.messages / load.members;
    for group in 0..load.groups {
        let mut members = Vec::new();
        for _ in 0..load.members {
            members.push(
                mq.consumer("t", format!("group{group}"))
                    .max_unacked(100_000)
                    .await?,
            );
        }
        settle(&members, load.partitions).await;
        for member in members {
            let batch = load.batch;
            let owned = u64::from(load.partitions) / load.members;
            let expect = if load.members == 1 { load.messages } else { share };
            debug_assert!(owned > 0);
            receivers.spawn(async move { receive(&member, expect, batch).await });
        }
    }
    let producer = mq.producer("t").await?;
    let meter = Meter::start();
    let mut senders = JoinSet::new();
    for number in 0..load.producers {
        let producer = producer.clone();
        let load = load.clone();
        senders.spawn(async move { send(&producer, number, &load).await });
    }
    while let Some(sent) = senders.join_next().await {
        sent.expect("a sender does not panic")?;
    }
    let mut check = Check::default();
    while let Some(received) = receivers.join_next().await {
        check.add(received.expect("a receiver does not panic")?);
    }
    Ok(load.judge(check, meter))
}

/// Waits until every partition has an owner, so that the clock measures no rebalance.
async fn settle(members: &[Consumer], partitions: u32) {
    loop {
        let owned: usize = members.iter().map(|member| member.assignment().len()).sum();
        let idle = members.iter().any(|member| member.assignment().is_empty());
        if owned == partitions as usize && !idle {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

async fn send(producer: &Producer, number: u64, load: &Load) -> mq_api::Result<()> {
    let many = load.partitions > 1;
    let partition = u32::try_from(number).unwrap_or(0) % load.partitions;
    if load.batch == 1 {
        for index in 0..load.each() {
            let message = Message::new(load.payloads.of(index));
            if many {
                producer.produce_to(partition, message).await?;
            } else {
                producer.produce(message).await?;
            }
        }
        return Ok(());
    }
    let mut index = 0;
    while index < load.each() {
        let end = (index + load.batch as u64).min(load.each());
        let messages = (index..end).map(|index| Message::new(load.payloads.of(index)));
        let results = if many {
            producer.produce_batch_to(partition, messages).await
        } else {
            producer.produce_batch(messages).await
        };
        for result in results {
            result?;
        }
        index = end;
    }
    Ok(())
}

async fn receive(member: &Consumer, messages: u64, batch: usize) -> mq_api::Result<Check> {
    let mut check = Check::default();
    let mut left = messages;
    while left > 0 {
        if batch == 1 {
            let delivery = member.consume().await?;
            check.take(delivery.payload());
            delivery.ack()?;
            left -= 1;
        } else {
            let deliveries = member.consume_batch(batch).await?;
            for delivery in &deliveries {
                check.take(delivery.payload());
            }
            left = left.saturating_sub(deliveries.len() as u64);
            member.ack_all(deliveries)?;
        }
    }
    Ok(check)
}

/// Runs a round of tokio's bounded channel with a window of 1024, one channel for each member.
///
/// # Errors
/// Says what was lost or doubled.
pub fn mpsc(runtime: &Runtime, load: &Load) -> Outcome {
    runtime.block_on(async {
        let mut channels = Vec::new();
        let mut receivers = JoinSet::new();
        for _ in 0..load.members {
            let (sender, mut receiver) = mpsc::channel::<Message>(1024);
            channels.push(sender);
            let most = load.batch.max(1);
            receivers.spawn(async move {
                let mut check = Check::default();
                if most == 1 {
                    while let Some(message) = receiver.recv().await {
                        check.take(message.payload_or_empty());
                    }
                } else {
                    let mut batch = Vec::with_capacity(256);
                    while receiver.recv_many(&mut batch, 256).await > 0 {
                        for message in batch.drain(..) {
                            check.take(message.payload_or_empty());
                        }
                    }
                }
                check
            });
        }
        let meter = Meter::start();
        let mut senders = JoinSet::new();
        for number in 0..load.producers {
            let at = usize::try_from(number % load.members).unwrap_or(0);
            let sender = channels[at].clone();
            let load = load.clone();
            senders.spawn(async move {
                for index in 0..load.each() {
                    if sender.send(Message::new(load.payloads.of(index))).await.is_err() {
                        return;
                    }
                }
            });
        }
        drop(channels);
        while senders.join_next().await.is_some() {}
        let mut check = Check::default();
        while let Some(received) = receivers.join_next().await {
            check.add(received.expect("a receiver does not panic"));
        }
        load.judge(check, meter)
    })
}

/// Runs a round of tokio's broadcast channel: every group sees everything. It drops what a receiver is too slow for,
/// so the sender waits for room.
///
/// # Errors
/// Says what was lost or doubled.
pub fn broadcast(runtime: &Runtime, load: &Load) -> Outcome {
    const WINDOW: usize = 1024;
    runtime.block_on(async {
        let (sender, _) = broadcast::channel::<Message>(WINDOW);
        let mut receivers = JoinSet::new();
        for _ in 0..load.groups {
            let mut receiver = sender.subscribe();
            receivers.spawn(async move {
                let mut check = Check::default();
                while let Ok(message) = receiver.recv().await {
                    check.take(message.payload_or_empty());
                }
                check
            });
        }
        let meter = Meter::start();
        for index in 0..load.messages {
            while sender.len() >= WINDOW - 1 {
                tokio::task::yield_now().await;
            }
            if sender.send(Message::new(load.payloads.of(index))).is_err() {
                break;
            }
        }
        drop(sender);
        let mut check = Check::default();
        while let Some(received) = receivers.join_next().await {
            check.add(received.expect("a receiver does not panic"));
        }
        load.judge(check, meter)
    })
}

/// Sends over tokio's channel at a steady rate; gives the figures of [`PROMISE`](crate::side::PROMISE).
///
/// # Errors
/// Says that the channel ended.
pub fn steady_mpsc(runtime: &Runtime, messages: u64, gap: Duration) -> Outcome {
    runtime.block_on(async {
        let (sender, mut receiver) = mpsc::channel::<Message>(1024);
        let zero = Instant::now();
        let sending = tokio::spawn(async move {
            let mut sends = SteadySends::new(messages, gap, zero);
            while let Some(payload) = sends.next().await {
                if sender.send(Message::new(payload)).await.is_err() {
                    break;
                }
            }
            sends.times()
        });
        let mut delivered = Times::default();
        while let Some(message) = receiver.recv().await {
            delivered.take(since(zero, message.payload_or_empty()));
        }
        let published = sending.await.expect("the sender does not panic");
        if delivered.count() == messages {
            Ok(Sample::promise(published, delivered))
        } else {
            Err(format!("{} of {messages} messages came", delivered.count()))
        }
    })
}
