//! Many quiet topics and a busy one on one client: neither holds the other up.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future;
use mq_api::{Consumer, Message, Mq, Producer, Start};
use support::*;

/// More than are asked for in each read.
const QUIET: usize = 40;
const MANY: usize = 100_000;

/// Sends to one quiet topic after the other and waits for each, at least once and then until enough is; returns the longest
/// time from the send to the hand-over.
async fn ask_each(quiet: &[(Producer, Consumer)], enough: impl Fn() -> bool) -> Duration {
    let mut longest = Duration::ZERO;
    let mut round = 0;
    while round < quiet.len() || !enough() {
        let (producer, consumer) = &quiet[round % quiet.len()];
        let begun = Instant::now();
        producer.produce(round.to_string()).await.unwrap();
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        longest = longest.max(begun.elapsed());
        assert_eq!(delivery.payload(), round.to_string().as_bytes());
        delivery.ack().unwrap();
        round += 1;
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_topics_are_heard_beside_a_busy_one() {
    let redis = options().start().unwrap();
    let mq = Mq::from_driver(connect(&redis).await);
    let opened = (0..QUIET).map(async |number| {
        let name = format!("quiet-{number}");
        mq.create_topic(&name, 1).await.unwrap();
        let consumer = mq.consumer(&name, "g").await.unwrap();
        while consumer.assignment().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (mq.producer(&name).await.unwrap(), consumer)
    });
    let quiet = future::join_all(opened).await;
    mq.create_topic("busy", 1).await.unwrap();
    let busy = mq.producer("busy").await.unwrap();
    for begin in (0..MANY).step_by(1000) {
        let batch = (begin..begin + 1000).map(|number| Message::new(number.to_string()));
        for sent in busy.produce_batch(batch).await {
            sent.unwrap();
        }
    }

    // Behind, and taken over and over as fast as it comes.
    let taken = Arc::new(AtomicUsize::new(0));
    let taking = tokio::spawn({
        let (mq, taken) = (mq.clone(), Arc::clone(&taken));
        async move {
            for round in 0..5 {
                let group = format!("g{round}");
                let consumer = mq
                    .consumer("busy", &group)
                    .start_at(Start::Earliest)
                    .await
                    .unwrap();
                let mut next = 0;
                while next < MANY {
                    let batch = consumer.consume_batch(1000).await.unwrap();
                    for delivery in &batch {
                        assert_eq!(delivery.payload(), next.to_string().as_bytes());
                        next += 1;
                    }
                    taken.fetch_add(batch.len(), Ordering::Relaxed);
                    consumer.ack_all(batch).unwrap();
                }
                consumer.close().await.unwrap();
            }
        }
    });
    let beside = ask_each(&quiet, || taken.load(Ordering::Relaxed) >= 4 * MANY).await;
    taking.await.unwrap();

    // Behind, and nothing of it is taken: there is room for no more.
    let full = mq
        .consumer("busy", "full")
        .start_at(Start::Earliest)
        .await
        .unwrap();
    let first = full.consume().await.unwrap();
    let beside_full = ask_each(&quiet, || true).await;
    // It goes on where it stood.
    first.ack().unwrap();
    for number in 1..MANY / 10 {
        let delivery = full.consume().await.unwrap();
        assert_eq!(delivery.payload(), number.to_string().as_bytes());
        delivery.ack().unwrap();
    }

    // A read that waits is bounded by seconds: whoever is found by its end alone is that late.
    for longest in [beside, beside_full] {
        assert!(longest < Duration::from_secs(2), "{beside:?} {beside_full:?}");
    }
}
