//! What the tests of this driver share: a broker, and the calls of the driver traits.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

pub mod meddler;

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use conformance_tests::calls::*;
use mq_api::{Message, Receipt, Result, url::ConnectUrl};
use mq_kafka::{KafkaConfig, KafkaMq};
use test_brokers::{Broker, Kafka};

pub fn config(kafka: &Kafka) -> KafkaConfig {
    KafkaConfig::from_url(&ConnectUrl::parse(&kafka.url()).unwrap()).unwrap()
}

pub async fn connect(kafka: &Kafka) -> KafkaMq {
    // How soon a broker answers is not what these tests are about, and a busy machine has it answer late.
    let patient = config(kafka).with_connect_timeout(PATIENCE);
    KafkaMq::connect_with(patient).await.unwrap()
}

/// Opens a client of the portable layer.
pub async fn open(kafka: &Kafka) -> mq_api::Mq {
    mq_api::Mq::from_driver(connect(kafka).await)
}

/// Sends numbers all the time, and has members of one group ack them, while the broker or the group is troubled.
pub struct Storm {
    topic: String,
    stop: Arc<AtomicBool>,
    sending: tokio::task::JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Numbers whose produce was `Ok`.
    stored: HashSet<u64>,
    /// Numbers whose ack was taken.
    acked: HashSet<u64>,
    /// How often a number came again after its ack was taken.
    repeated: u64,
    /// The last failed produce.
    trouble: Option<mq_api::Error>,
}

impl Storm {
    /// Sends about so many messages a second until [`stop`](Self::stop).
    pub async fn start(mq: &mq_api::Mq, topic: &str, rate: u64) -> Self {
        let producer = mq.producer(topic).await.unwrap();
        let (stop, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Seen::default())),
        );
        let (stopped, result) = (Arc::clone(&stop), Arc::clone(&seen));
        let sending = tokio::spawn(async move {
            let begin = Instant::now();
            let mut next = 0;
            let mut pending = VecDeque::new();
            while !stopped.load(Ordering::Relaxed) {
                let due = u64::try_from(begin.elapsed().as_millis()).unwrap() * rate / 1000;
                while next < due {
                    let message = Message::new(next.to_string()).with_key((next % 16).to_string());
                    match producer.enqueue(message).await {
                        Ok(receipt) => pending.push_back((next, receipt)),
                        Err(error) => result.lock().unwrap().trouble = Some(error),
                    }
                    next += 1;
                }
                while pending.len() > 1000 || pending.front().is_some() && pending.len() > 64 {
                    let (number, receipt) = pending.pop_front().unwrap();
                    note(&result, number, receipt.await);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for (number, receipt) in pending {
                note(&result, number, receipt.await);
            }
            producer.close().await.unwrap();
        });
        Self {
            topic: topic.to_owned(),
            stop,
            sending,
            seen,
        }
    }

    /// Adds a member, which joins, acks what comes, and goes on until it is asked to leave.
    pub fn member(&self, mq: &mq_api::Mq) -> StormMember {
        let (mq, topic, seen) = (mq.clone(), self.topic.clone(), Arc::clone(&self.seen));
        let (leave, mut asked) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let consumer = loop {
                match mq.consumer(&topic, "storm").await {
                    Ok(consumer) => break consumer,
                    Err(error) if error.is_retryable() => {}
                    Err(error) => panic!("{error}"),
                }
            };
            loop {
                let delivery = tokio::select! {
                    _ = &mut asked => break,
                    delivery = consumer.consume() => delivery,
                };
                let delivery = match delivery {
                    Ok(delivery) => delivery,
                    Err(error) if error.is_retryable() => continue,
                    Err(error) => panic!("{error}"),
                };
                let number = number(delivery.message());
                let mut seen = seen.lock().unwrap();
                seen.repeated += u64::from(seen.acked.contains(&number));
                if delivery.ack().is_ok() {
                    seen.acked.insert(number);
                }
            }
            consumer.close().await
        });
        StormMember { leave, task }
    }

    /// Ends the sending and returns how many messages were stored.
    pub async fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.sending).await.unwrap();
        u64::try_from(self.seen.lock().unwrap().stored.len()).unwrap()
    }

    /// Returns how many messages are stored by now.
    pub fn stored(&self) -> usize {
        self.seen.lock().unwrap().stored.len()
    }

    /// Waits until that many messages are acked.
    pub async fn until_acked(&self, count: usize) {
        let begin = Instant::now();
        while self.seen.lock().unwrap().acked.len() < count {
            assert!(begin.elapsed() < PATIENCE, "nothing is acked");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until everything that was stored is acked.
    pub async fn until_all_acked(&self) {
        let begin = Instant::now();
        loop {
            let missing = {
                let seen = self.seen.lock().unwrap();
                let mut missing: Vec<u64> = seen.stored.difference(&seen.acked).copied().collect();
                missing.sort_unstable();
                missing
            };
            if missing.is_empty() {
                return;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{} stored messages never came, the first is {:?}",
                missing.len(),
                missing.first()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns how often a message came again after its ack was taken, and how many sends failed last.
    pub fn repeated(&self) -> u64 {
        self.seen.lock().unwrap().repeated
    }

    pub fn trouble(&self) -> Option<mq_api::Error> {
        self.seen.lock().unwrap().trouble.clone()
    }
}

fn note(seen: &Mutex<Seen>, number: u64, receipt: Result<Receipt>) {
    let mut seen = seen.lock().unwrap();
    match receipt {
        Ok(_) => {
            seen.stored.insert(number);
        }
        Err(error) => seen.trouble = Some(error),
    }
}

/// One member of a [`Storm`].
pub struct StormMember {
    leave: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl StormMember {
    /// Asks it to close, and waits until it has.
    pub async fn leave(self) -> Result<()> {
        let _ = self.leave.send(());
        self.task.await.unwrap()
    }
}
