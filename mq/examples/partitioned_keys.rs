//! Events of one key stay in order while two members share the load: `cargo run -p mq --example partitioned_keys [URL]`.
//!
//! Messages of one key go to one partition, each partition belongs to one member of the group, and with
//! `Ordering::Key` the next message of a key is handed over only when the one before is settled.

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use std::{collections::BTreeMap, time::Duration};

use mq::{Consumer, ErrorKind, Message, Ordering, Result};
use tokio::sync::mpsc;

const TOPIC: &str = "journeys";
const DRIVERS: [&str; 5] = ["ana", "bo", "chi", "dee", "eli"];
const STAGES: [&str; 4] = ["called", "started", "arrived", "paid"];

/// Who has seen which event: member, driver, stage, partition.
type Seen = (&'static str, String, String, u32);

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let mq = mq::connect(url).await?;
    mq.create_topic(TOPIC, 4).await?;

    let first = mq.consumer(TOPIC, "ledger").ordering(Ordering::Key).await?;
    let second = mq.consumer(TOPIC, "ledger").ordering(Ordering::Key).await?;
    while first.assignment().len() != 2 || second.assignment().len() != 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let owned = |consumer: &Consumer| -> Vec<u32> {
        consumer
            .assignment()
            .iter()
            .map(|assigned| assigned.partition)
            .collect()
    };
    println!("member A owns partitions {:?}", owned(&first));
    println!("member B owns partitions {:?}", owned(&second));

    let (seen, mut events) = mpsc::unbounded_channel();
    let members = [
        tokio::spawn(record("A", first.clone(), seen.clone())),
        tokio::spawn(record("B", second.clone(), seen)),
    ];

    let producer = mq.producer(TOPIC).await?;
    let mut receipts = Vec::new();
    for stage in STAGES {
        for driver in DRIVERS {
            // The order is fixed when `enqueue` returns; the receipts are awaited together.
            receipts.push(producer.enqueue(Message::new(stage).with_key(driver)).await?);
        }
    }
    for receipt in receipts {
        receipt.await?;
    }

    let mut journeys: BTreeMap<String, (u32, &str, Vec<String>)> = BTreeMap::new();
    for _ in 0..DRIVERS.len() * STAGES.len() {
        let Some((member, driver, stage, partition)) = events.recv().await else {
            break;
        };
        let journey = journeys.entry(driver).or_insert((partition, member, Vec::new()));
        assert_eq!(
            (journey.0, journey.1),
            (partition, member),
            "one key, one partition, one owner"
        );
        journey.2.push(stage);
    }
    for (driver, (partition, member, stages)) in &journeys {
        println!(
            "{driver}: partition {partition}, member {member}: {}",
            stages.join(", ")
        );
        assert_eq!(stages, &STAGES, "the order of one key");
    }

    first.close().await?;
    second.close().await?;
    for member in members {
        member.await.expect("a member does not panic")?;
    }
    mq.delete_topic(TOPIC).await?;
    mq.close().await
}

/// Notes every event until the consumer is closed.
async fn record(member: &'static str, consumer: Consumer, seen: mpsc::UnboundedSender<Seen>) -> Result<()> {
    loop {
        let delivery = match consumer.consume().await {
            Ok(delivery) => delivery,
            Err(error) if error.kind() == ErrorKind::Closed => return Ok(()),
            Err(error) => return Err(error),
        };
        let driver = String::from_utf8_lossy(delivery.key().map_or(&[][..], |key| key)).into_owned();
        let stage = String::from_utf8_lossy(delivery.payload()).into_owned();
        let partition = delivery.partition();
        delivery.ack()?;
        // Nobody listens any more once all are seen.
        let _ = seen.send((member, driver, stage, partition));
    }
}
