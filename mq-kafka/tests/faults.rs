//! What the driver does while its broker is away, and when it comes back.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mq_api::{
    ErrorKind, Outcome,
    driver::{Commit, Mq},
};
use mq_kafka::{KafkaConfig, KafkaMq};
use support::*;
use test_brokers::{Broker, JunkServer, Kafka, KafkaOptions, ProxyMode, SilentServer, refused_address};

fn at(address: SocketAddr) -> KafkaConfig {
    KafkaConfig::new([address.to_string()])
        .with_connect_timeout(Duration::from_secs(2))
        .with_request_timeout(Duration::from_secs(3))
}

/// Memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// How many threads of this process have a name that begins so.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|comm| comm.starts_with(name))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_silent_babbling_and_nameless_brokers_are_typed_errors_in_time() {
    let begin = Instant::now();
    let error = KafkaMq::connect_with(at(refused_address().unwrap().address()))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Connection, Outcome::NotSent),
        "{error}"
    );

    let silent = SilentServer::start().unwrap();
    for config in [at(silent.address()), at(silent.address()).with_tls(None)] {
        let error = KafkaMq::connect_with(config).await.unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::Timeout | ErrorKind::Connection | ErrorKind::Tls
            ),
            "{error}"
        );
    }

    let mut nameless = KafkaConfig::new(["no-such-host.invalid:9092"]);
    nameless = nameless.with_connect_timeout(Duration::from_secs(2));
    let error = KafkaMq::connect_with(nameless).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");

    let before = resident();
    // Lengths that claim much, and text.
    for prefix in [
        &b""[..],
        &[0x3f, 0xff, 0xff, 0xff, 0, 0, 0, 1],
        &[0, 0, 0, 8, 0, 0, 0, 1],
        b"HTTP/1.1 400\r\n",
    ] {
        let junk = JunkServer::start_with(prefix.to_vec(), JunkServer::DEFAULT_LENGTH).unwrap();
        let error = KafkaMq::connect_with(at(junk.address())).await.unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::Timeout | ErrorKind::Connection | ErrorKind::Protocol
            ),
            "{prefix:?}: {error}"
        );
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 * 1024 * 1024, "{grown}");
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
}

/// A proxy stands for an address where first nothing good is, and then a broker.
async fn a_good_broker_on_a_bad_address_is_used(kafka: &Kafka) {
    let proxy = kafka.proxy().unwrap();
    for mode in [ProxyMode::Blackhole, ProxyMode::Refuse] {
        proxy.set_mode(mode).unwrap();
        proxy.cut();
        let error = KafkaMq::connect_with(at(proxy.address())).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Connection),
            "{mode:?}: {error}"
        );
        proxy.set_mode(ProxyMode::Pass).unwrap();
        let patient = at(proxy.address()).with_connect_timeout(Duration::from_secs(20));
        if let Err(error) = KafkaMq::connect_with(patient).await {
            panic!("{mode:?}: {error}");
        }
    }
}

async fn a_commit_ends_in_its_time_and_hand_over_goes_on_while_the_coordinator_is_away(kafka: &Kafka) {
    let mq = KafkaMq::connect_with(config(kafka).with_request_timeout(Duration::from_secs(2)))
        .await
        .unwrap();
    let topic = create(&mq, "away", 1).await;
    let sender = producer(&mq, &topic).await;
    send_numbers(&*sender, 0, 0..50).await;
    let mut member = join(&mq, subscription(&topic, "away")).await;
    member.until("all", |m| m.received.len() == 50).await;

    // Through the portable layer: what was fetched is handed over, acks are taken, nothing waits for a commit.
    let portable = open(kafka).await;
    let consumer = portable
        .consumer("away", "portable")
        .commit_interval(Duration::from_millis(20))
        .await
        .unwrap();
    consumer.consume().await.unwrap().ack().unwrap();
    while consumer.status().buffered_messages < 49 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    kafka.freeze().unwrap();
    let begin = Instant::now();
    let outcome = member
        .consumer
        .commit(vec![Commit::new(member.id(0), 7)])
        .await
        .pop()
        .unwrap();
    assert!(outcome.unwrap_err().is_retryable());
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    for _ in 0..49 {
        let begin = Instant::now();
        consumer.consume().await.unwrap().ack().unwrap();
        assert!(
            begin.elapsed() < Duration::from_millis(500),
            "{:?}",
            begin.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    kafka.thaw().unwrap();
    tokio::time::timeout(PATIENCE, consumer.commit())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(portable.lag("away", "portable").await.unwrap().total(), 0);
    member.consumer.close().await.unwrap();
    portable.close().await.unwrap();
}

async fn what_is_dropped_or_closed_without_a_broker_ends_in_time(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "dropped", 2).await;
    let sender = producer(&mq, &topic).await;
    send_numbers(&*sender, 0, 0..5).await;
    let mut dropped = join(&mq, subscription(&topic, "dropped")).await;
    dropped.until("assigned", |m| m.assigned.len() == 2).await;
    let mut closed = join(&mq, subscription(&topic, "closed")).await;
    closed.until("assigned", |m| m.assigned.len() == 2).await;
    let reader = mq.reader(topic.clone()).await.unwrap();
    kafka.kill().unwrap();
    let begin = Instant::now();
    drop(dropped);
    drop(reader);
    closed.consumer.close().await.unwrap();
    sender.close().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    drop((closed, sender));
    // The clients themselves go in threads of their own, which end too.
    while threads("mq-kafka-member") + threads("mq-kafka-produc") + threads("mq-kafka-reader") > 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "threads are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    kafka.start().unwrap();
}

async fn nothing_acked_is_lost(kafka: &Kafka, topic: &str, fault: impl AsyncFnOnce()) {
    let mq = open(kafka).await;
    mq.create_topic(topic, 3).await.unwrap();
    let mut storm = Storm::start(&mq, topic, 300).await;
    let member = storm.member(&mq);
    while storm.stored() < 300 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fault().await;
    let before = storm.stored();
    let begin = Instant::now();
    while storm.stored() < before + 300 {
        assert!(begin.elapsed() < PATIENCE, "{:?}", storm.trouble());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(storm.stop().await >= 600);
    storm.until_all_acked().await;
    member.leave().await.unwrap();
    mq.close().await.unwrap();
}

async fn a_broker_that_is_killed_loses_nothing(kafka: &Kafka) {
    nothing_acked_is_lost(kafka, "killed", async || {
        kafka.kill().unwrap();
        kafka.start().unwrap();
    })
    .await;
}

async fn a_broker_that_stands_still_for_eight_seconds_loses_nothing(kafka: &Kafka) {
    nothing_acked_is_lost(kafka, "frozen", async || {
        kafka.freeze().unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
        kafka.thaw().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn faults_of_a_broker_are_borne() {
    let kafka = KafkaOptions::new()
        .with_proxy()
        // It does not count itself as gone where the machine is busy, which would end sessions; for so long after a kill it
        // is not let in again.
        .with_config("broker.session.timeout.ms=6000")
        .start()
        .unwrap();
    macro_rules! all {
        ($($case:ident),* $(,)?) => {
            $(
                eprintln!("{}", stringify!($case));
                tokio::time::timeout(Duration::from_secs(120), $case(&kafka)).await.expect(stringify!($case));
            )*
        };
    }
    all!(
        a_good_broker_on_a_bad_address_is_used,
        a_commit_ends_in_its_time_and_hand_over_goes_on_while_the_coordinator_is_away,
        a_broker_that_stands_still_for_eight_seconds_loses_nothing,
        a_broker_that_is_killed_loses_nothing,
        what_is_dropped_or_closed_without_a_broker_ends_in_time,
    );
}
