//! What RocketMQ is known to surprise clients with, on real clusters.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mq_api::{ErrorKind, Message, Mode, Mq, Outcome, Support, url::ConnectUrl};
use mq_rocketmq::{RocketMq, RocketMqConfig, client::Decision};
use support::{PATIENCE, nothing, open, start, text};
use test_brokers::{Broker, RocketMqOptions};

/// A server of its own: a broker that has seen a commit burns a core until it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_delivered_once_when_it_commits_and_asked_for_when_it_is_left_open() {
    let cluster = start(RocketMqOptions::new()).await;
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("orders", 1).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let producer = driver
        .transaction_producer("orders", "checkout", move |message: Message| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                match message.payload_or_empty() {
                    b"left open" => Decision::Commit,
                    _ => Decision::Rollback,
                }
            }
        })
        .await
        .unwrap();
    let consumer = mq.consumer("orders", "billing").await.unwrap();
    let committed = producer
        .begin(0, Message::new("committed").with_key("k").with_header("h", "v"))
        .await
        .unwrap();
    let rolled_back = producer.begin(0, "rolled back").await.unwrap();
    // The broker asks after `transactionTimeOut`, here a second; what is about to be decided is left open.
    nothing(&consumer, Duration::from_secs(3)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    committed.commit().await.unwrap();
    rolled_back.rollback().await.unwrap();
    let delivery = consumer.consume().await.unwrap();
    assert_eq!(delivery.payload(), b"committed");
    assert_eq!(delivery.key().map(|key| &key[..]), Some(&b"k"[..]));
    assert_eq!(delivery.headers().iter().len(), 1);
    delivery.ack().unwrap();
    drop(producer.begin(0, "left open").await.unwrap());
    drop(producer.begin(0, "forgotten").await.unwrap());
    assert_eq!(text(&consumer).await, "left open");
    nothing(&consumer, Duration::from_secs(4)).await;
    assert!(asked.load(Ordering::SeqCst) >= 2);
    let refused = producer
        .begin(0, Message::new("x").with_delay(Duration::from_secs(1)))
        .await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidMessage);
    assert_eq!(
        producer.begin(1, "x").await.unwrap_err().kind(),
        ErrorKind::InvalidPartition
    );
    producer.close().await;
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_master_fails_its_partitions_and_moves_no_key() {
    let cluster = Arc::new(start(RocketMqOptions::new().with_masters(2).with_name_servers(2)).await);
    let (_, mq) = open(&format!("{}?route_refresh=500ms", cluster.url())).await;
    mq.create_topic("orders", 4).await.unwrap();
    let producer = mq
        .producer("orders")
        .timeout(Duration::from_secs(3))
        .await
        .unwrap();
    let consumer = mq.consumer("orders", "g").await.unwrap();
    let key = |number: u32| format!("user-{number}");
    let mut places = Vec::new();
    for number in 0..16 {
        let receipt = producer
            .produce(Message::new("before").with_key(key(number)))
            .await
            .unwrap();
        places.push(receipt.partition);
    }
    assert!(places.iter().any(|place| *place < 2) && places.iter().any(|place| *place >= 2));
    for _ in 0..16 {
        assert_eq!(text(&consumer).await, "before");
    }
    // The broker forgets it when it is killed; the member does not.
    consumer.commit().await.unwrap();
    let dying = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || {
        dying.masters()[1].kill().unwrap();
        dying.name_servers()[0].kill().unwrap();
    })
    .await
    .unwrap();
    let mut sent = 0;
    for (number, place) in (0..16).zip(&places) {
        let message = Message::new("after").with_key(key(number));
        match producer.produce(message).await {
            Ok(receipt) => {
                sent += 1;
                assert_eq!(receipt.partition, *place, "a key moved");
                assert!(*place < 2);
            }
            Err(error) => {
                assert!(*place >= 2, "{error}");
                // The first one may have been on its way when the connection broke.
                assert!(error.is_retryable(), "{error}");
            }
        }
    }
    assert_eq!(sent, places.iter().filter(|place| **place < 2).count());
    let error = producer.produce_to(3, "x").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
    for _ in 0..sent {
        assert_eq!(text(&consumer).await, "after");
    }
    // A client that comes now numbers partitions as those before it.
    let (_, late) = open(&cluster.url()).await;
    assert_eq!(late.producer("orders").await.unwrap().partitions(), 4);
    let back = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || back.start().unwrap())
        .await
        .unwrap();
    let begun = Instant::now();
    loop {
        match producer.produce_to(3, "again").await {
            Ok(_) => break,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    }
    assert_eq!(text(&consumer).await, "again");
    late.close().await.unwrap();
    // One queue, on the first broker; the second one comes later, to a shared group that is at work.
    mq.create_topic("growing", 1).await.unwrap();
    let shared = mq.consumer("growing", "g").mode(Mode::Shared).await.unwrap();
    let producer = mq.producer("growing").await.unwrap();
    producer.produce("here").await.unwrap();
    assert_eq!(text(&shared).await, "here");
    mq.add_partitions("growing", 2).await.unwrap();
    while producer.partitions() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    producer.produce_to(1, "there").await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, shared.consume())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((delivery.payload(), delivery.partition()), (&b"there"[..], 1));
    delivery.ack().unwrap();
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_shape_go_through() {
    let cluster = start(RocketMqOptions::new()).await;
    let (_, mq) = open(&format!("{}?tag_header=kind&namespace=dev", cluster.url())).await;
    mq.create_topic("shapes.eu", 1).await.unwrap();
    let producer = mq
        .producer("shapes.eu")
        .max_payload(4 * 1024 * 1024 - 128 * 1024)
        .await
        .unwrap();
    let tagged = mq
        .consumer("shapes.eu", "red")
        .property("tags", "red || green")
        .await
        .unwrap();
    let delay = Duration::from_millis(300);
    let odd = |message: Message| {
        message
            .with_header("z", "1")
            .with_header("DELAY", "\u{1}")
            .with_header("a", "")
    };
    // Brokers fail on an empty body that comes alone, which delayed messages do.
    let shapes = [
        odd(Message::new("").with_delay(delay)),
        odd(Message::tombstone("k").with_delay(delay)),
        odd(Message::new("").with_id("i")),
        Message::new(vec![7; 4 * 1024 * 1024 - 128 * 1024]),
    ];
    for message in &shapes {
        let receipt = producer.produce(message.clone()).await.unwrap();
        assert_eq!(receipt.offset.is_some(), message.due().is_none());
    }
    let all = mq.consumer("shapes.eu", "all").await.unwrap();
    let mut came = Vec::new();
    for _ in &shapes {
        let delivery = tokio::time::timeout(PATIENCE, all.consume())
            .await
            .unwrap()
            .unwrap();
        came.push(delivery.message().clone());
        delivery.ack().unwrap();
    }
    for mut message in shapes {
        message.clear_due();
        assert!(came.contains(&message), "{message:?} is not among {came:?}");
    }
    for kind in ["red", "blue", "green"] {
        let message = Message::new(kind).with_header("kind", kind);
        producer.produce(message).await.unwrap();
    }
    for kind in ["red", "green"] {
        assert_eq!(text(&tagged).await, kind);
    }
    nothing(&tagged, Duration::from_millis(300)).await;
    assert_eq!(mq.capabilities().shared_latest, Support::Unsupported);
    let (_, other) = open(&cluster.url()).await;
    assert!(other.list_topics().await.unwrap().is_empty());
    assert_eq!(mq.list_topics().await.unwrap().len(), 1);
    mq.delete_topic("shapes.eu").await.unwrap();
    let left = tokio::task::spawn_blocking(move || cluster.tool(&["topicList"]).unwrap())
        .await
        .unwrap();
    assert!(!left.contains("shapes"), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_access_control_tell_who_may_come_in() {
    let cluster = start(RocketMqOptions::new().with_tls().with_access_control()).await;
    let ca = cluster.certificates().unwrap().ca_file();
    let url = |user: &str| {
        let hosts = cluster.url().replace("rocketmq+tls://", "");
        ConnectUrl::parse(&format!("rocketmq+tls://{user}@{hosts}?tls_ca={}", ca.display())).unwrap()
    };
    let driver = RocketMq::connect(&url("admin:admin-secret")).await.unwrap();
    let mq = Mq::from_driver(driver);
    mq.create_topic("orders", 1).await.unwrap();
    mq.producer("orders").await.unwrap().produce("x").await.unwrap();
    let consumer = mq.consumer("orders", "g").mode(Mode::Partitioned).await.unwrap();
    assert_eq!(text(&consumer).await, "x");
    for user in ["admin:wr0ng", "nobody:wr0ng"] {
        let driver = RocketMq::connect(&url(user)).await.unwrap();
        let stranger = Mq::from_driver(driver);
        let error = stranger.create_topic("other", 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        let producer = stranger.producer("orders").await.unwrap();
        let error = producer.produce("x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        assert!(!format!("{error:?} {stranger:?}").contains("wr0ng"));
    }
    let untrusting = RocketMqConfig::from_url(&ConnectUrl::parse(&cluster.url()).unwrap()).unwrap();
    let error = RocketMq::connect_with(untrusting).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
}
