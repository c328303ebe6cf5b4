//! With RocketMQ's own client in Java, on one cluster: what is sent here arrives there and the other way round, and
//! members of both share groups.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{Consumer, Mq};
use support::{PATIENCE, cluster, exchange, java::Java, open, start};
use test_brokers::{Broker, RocketMqOptions};
use tokio::time::Instant;

const PROGRAM: &str = "interop/Interop.java";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_here_arrives_in_java() {
    let cluster = cluster().await;
    for compression in ["none", "zlib", "zstd"] {
        let topic = format!("to-java-{compression}");
        let java = || Java::start(&cluster, PROGRAM);
        exchange::sent_here_arrives_there(&cluster, &topic, compression, java).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_java_sends_arrives_here() {
    // A broker that has seen a transaction burns a core until it ends.
    let cluster = start(RocketMqOptions::new()).await;
    let mut java = Java::start(&cluster, PROGRAM);
    let sent = [
        ("single", &["single"][..]),
        ("batch", &["batch-0", "batch-1"]),
        ("compressed", &["8000"]),
        ("delayed", &["delayed"]),
        ("timed", &["timed"]),
        ("transactional", &["transactional"]),
    ];
    exchange::sent_there_arrives_here(&cluster, "from-java", &mut java, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_are_handed_on_both_ways() {
    let cluster = cluster().await;
    let mut java = Java::start(&cluster, PROGRAM);
    exchange::positions_are_handed_on(&cluster, "handed", &mut java).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_java_member_and_ours_never_own_a_queue_together() {
    share_a_group("orderly").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_concurrent_java_member_and_ours_own_no_queue_together_once_they_have_settled() {
    share_a_group("concurrent").await;
}

/// Ours is alone, then shares with a member in Java, then is alone again, while messages flow.
async fn share_a_group(kind: &str) {
    let cluster = cluster().await;
    let (_, mq) = open(&format!("{}?group=raw", cluster.url())).await;
    let (topic, group) = (format!("common-{kind}"), format!("mixed-{kind}"));
    mq.create_topic(&topic, 4).await.unwrap();
    let ours = mq.consumer(&topic, &group).await.unwrap();
    let flow = Flow::start(&mq, &topic, ours.clone()).await;
    until("all queues are ours", async || ours.assignment().len() == 4).await;

    let mut java = Java::start(&cluster, PROGRAM);
    java.ask(&["consume", &topic, &group, kind], "consuming");
    let begun = Instant::now();
    let settled = loop {
        let before = owned_here(&ours);
        let there = java.ask(&["owned", &topic, &group, kind], "owned");
        let there = queues(&there);
        let both: Vec<u32> = owned_here(&ours)
            .intersection(&before)
            .filter(|queue| there.contains(queue))
            .copied()
            .collect();
        // Members that lock nothing may overlap while the group settles.
        assert!(kind == "concurrent" || both.is_empty(), "owned twice: {both:?}");
        if both.is_empty() && there.len() == 2 && owned_here(&ours).len() == 2 {
            break there;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "here {before:?}, there {there:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };

    // From here on each message comes once, to the owner of its queue.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = flow.mark();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let last = flow.mark();
    let mut seen = BTreeMap::new();
    let mut deadline = Instant::now() + PATIENCE;
    loop {
        for line in java.heard("got") {
            let number: u64 = line[6].parse().unwrap();
            let queue: u32 = line[2].parse().unwrap();
            if (first..last).contains(&number) {
                assert!(settled.contains(&queue));
                *seen.entry(number).or_insert(0) += 1;
            }
        }
        let here = flow.taken.lock().unwrap().clone();
        let count = (first..last)
            .filter(|number| seen.contains_key(number) || here.contains_key(number))
            .count() as u64;
        if count == last - first {
            for number in first..last {
                let times = seen.get(&number).unwrap_or(&0) + here.get(&number).unwrap_or(&0);
                assert_eq!(times, 1, "message {number}");
            }
            assert!(seen.len() as u64 > (last - first) / 4, "{} in Java", seen.len());
            break;
        }
        assert!(Instant::now() < deadline, "{count} of {} came", last - first);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    java.ask(&["stop", &group], "stopped");
    deadline = Instant::now() + PATIENCE;
    until("all queues are ours again", async || ours.assignment().len() == 4).await;
    assert!(Instant::now() < deadline);
    flow.stop().await;
    mq.close().await.unwrap();
}

fn owned_here(consumer: &Consumer) -> BTreeSet<u32> {
    consumer.assignment().iter().map(|one| one.partition).collect()
}

fn queues(words: &[String]) -> BTreeSet<u32> {
    words
        .iter()
        .flat_map(|list| list.split(','))
        .filter_map(|number| number.parse().ok())
        .collect()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends numbers to a topic all the time, and counts those that a consumer of ours gets.
struct Flow {
    sent: Arc<std::sync::atomic::AtomicU64>,
    taken: Arc<std::sync::Mutex<BTreeMap<u64, usize>>>,
    over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Flow {
    async fn start(mq: &Mq, topic: &str, consumer: Consumer) -> Self {
        let producer = mq.producer(topic).await.unwrap();
        let sent: Arc<std::sync::atomic::AtomicU64> = Arc::default();
        let taken: Arc<std::sync::Mutex<BTreeMap<u64, usize>>> = Arc::default();
        let over: Arc<AtomicBool> = Arc::default();
        let (count, end) = (Arc::clone(&sent), Arc::clone(&over));
        let sending = tokio::spawn(async move {
            while !end.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                let partition = u32::try_from(number % 4).unwrap();
                producer.produce_to(partition, number.to_string()).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let all = Arc::clone(&taken);
        let taking = tokio::spawn(async move {
            while let Ok(delivery) = consumer.consume().await {
                let text = String::from_utf8(delivery.payload().to_vec()).unwrap();
                *all.lock().unwrap().entry(text.parse().unwrap()).or_insert(0) += 1;
                // It is stale where the queue was given back meanwhile, and comes again.
                let _ = delivery.ack();
            }
        });
        Self {
            sent,
            taken,
            over,
            tasks: vec![sending, taking],
        }
    }

    /// The number that the next message but one will not be below.
    fn mark(&self) -> u64 {
        self.sent.load(Ordering::SeqCst) + 1
    }

    async fn stop(mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.tasks.remove(0).await.unwrap();
        for task in self.tasks {
            task.abort();
        }
    }
}
