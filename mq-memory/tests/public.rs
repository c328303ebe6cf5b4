//! The driver under the public API: what only shows when both work together.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on may panic, in its helpers too"
)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mq_api::{Backoff, Consumer, Delivery, Message, Mode, Mq};
use mq_memory::MemoryMq;

const PATIENCE: Duration = Duration::from_secs(20);

async fn take(consumer: &Consumer) -> Delivery {
    tokio::time::timeout(PATIENCE, consumer.consume())
        .await
        .expect("a message comes")
        .unwrap()
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}

#[tokio::test]
async fn the_twelve_lines_run() {
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic("orders", 4).await.unwrap();
    let producer = mq.producer("orders").await.unwrap();
    let receipt = producer
        .produce(Message::new("paid").with_key("user-7"))
        .await
        .unwrap();
    assert_eq!(receipt.offset, Some(0));
    producer.produce_to(2, Message::new("shipped")).await.unwrap();
    let consumer = mq.consumer("orders", "billing").await.unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let delivery = take(&consumer).await;
        seen.insert(text(&delivery));
        delivery.ack().unwrap();
    }
    assert_eq!(seen, ["paid".to_owned(), "shipped".to_owned()].into());
    consumer.commit().await.unwrap();
    assert_eq!(mq.lag("orders", "billing").await.unwrap().total(), 0);
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_lose_nothing() {
    const MESSAGES: usize = 4000;
    let memory = MemoryMq::new();
    let faults = memory.faults();
    let mq = Mq::from_driver(memory);
    mq.create_topic("orders", 8).await.unwrap();
    let (seen, mut all) = tokio::sync::mpsc::channel(100);
    let mut members = tokio::task::JoinSet::new();
    for member in 0..4_u64 {
        let (mq, seen) = (mq.clone(), seen.clone());
        members.spawn(async move {
            loop {
                let consumer = mq.consumer("orders", "billing").await.unwrap();
                for turn in 0.. {
                    match tokio::time::timeout(Duration::from_millis(50), consumer.consume()).await {
                        Ok(Ok(delivery)) => {
                            let number: usize = text(&delivery).parse().unwrap();
                            // A stale ack is no loss: the message comes again.
                            if delivery.ack().is_ok() {
                                seen.send(number).await.unwrap();
                            }
                        }
                        Ok(Err(error)) => assert!(error.is_retryable(), "{error}"),
                        Err(_) => {}
                    }
                    if turn > 200 * (member + 1) {
                        break;
                    }
                }
                if member % 2 == 0 {
                    consumer.close().await.unwrap();
                }
            }
        });
    }
    let producer = mq.producer("orders").await.unwrap();
    for number in 0..MESSAGES {
        let _sent = producer.enqueue(number.to_string()).await.unwrap();
        if number % 1000 == 999 {
            producer.flush().await.unwrap();
            faults.restart();
        }
    }
    producer.flush().await.unwrap();
    let end = Instant::now() + PATIENCE;
    let mut missing: BTreeSet<usize> = (0..MESSAGES).collect();
    while !missing.is_empty() && Instant::now() < end {
        if let Ok(Some(number)) = tokio::time::timeout(Duration::from_secs(1), all.recv()).await {
            missing.remove(&number);
        }
    }
    assert!(missing.is_empty(), "missing: {missing:?}");
    members.shutdown().await;
}

#[tokio::test]
async fn a_shared_group_works_through_a_queue_with_retries() {
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic("jobs", 1).await.unwrap();
    let producer = mq.producer("jobs").await.unwrap();
    for number in 0..20 {
        producer.produce(number.to_string()).await.unwrap();
    }
    let consumer = |_| {
        let builder = mq.consumer("jobs", "workers").mode(Mode::Shared);
        async {
            builder
                .backoff(Backoff::fixed(Duration::from_millis(10)))
                .await
                .unwrap()
        }
    };
    let (first, second) = (consumer(1).await, consumer(2).await);
    let mut done = BTreeSet::new();
    while done.len() < 20 {
        let delivery = tokio::select! {
            delivery = take(&first) => delivery,
            delivery = take(&second) => delivery,
        };
        if delivery.attempt() == 1 {
            delivery.nack().unwrap();
        } else {
            assert_eq!(delivery.attempt(), 2);
            assert!(done.insert(text(&delivery)));
            delivery.ack().unwrap();
        }
    }
    mq.close().await.unwrap();
}
