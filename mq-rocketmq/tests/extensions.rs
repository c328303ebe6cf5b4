//! What only RocketMQ can do, and what its protocol is known for, on a real cluster.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use mq_api::{Message, Mode, Outcome, Position, Start, Timestamp};
use mq_rocketmq::{
    client::{PullOptions, PullStatus, QueueRef, Session},
    remoting::{RemotingError, SendMessage, codes::sys_flag},
};
use support::{PATIENCE, cluster, nothing, open, start, text};
use test_brokers::{Broker, RocketMqOptions};
use tokio::time::Instant;

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn queue(number: i32) -> QueueRef {
    QueueRef {
        broker: "broker-a".into(),
        queue: number,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_messages_are_small_on_the_broker_and_come_back_whole() {
    let cluster = cluster().await;
    for kind in ["zlib", "zstd"] {
        let topic = format!("compressed-{kind}");
        let url = format!("{}?compression={kind}&compression_threshold=1KiB", cluster.url());
        let (driver, mq) = open(&url).await;
        mq.create_topic(&topic, 1).await.unwrap();
        let producer = mq.producer(&topic).await.unwrap();
        let shapes = [
            Message::new("short"),
            Message::new(vec![7; 4000]).with_key("k"),
            Message::new(""),
            Message::tombstone("gone"),
            Message::new(vec![1; 300_000]),
        ];
        for result in producer.produce_batch(shapes.clone()).await {
            assert!(result.unwrap().offset.is_some());
        }
        let later = Message::new(vec![9; 2000])
            .with_id("later")
            .with_delay(Duration::from_millis(100));
        producer.produce(later.clone()).await.unwrap();
        let consumer = mq.consumer(&topic, "g").await.unwrap();
        for mut expected in shapes.into_iter().chain([later]) {
            expected.clear_due();
            let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(*delivery.message(), expected);
            delivery.ack().unwrap();
        }
        let options = PullOptions::default();
        let stored = driver
            .native()
            .pull("mq-reader", &topic, &queue(0), 0, &options, soon())
            .await
            .unwrap();
        let bodies: usize = stored
            .messages()
            .map(|message| {
                let message = message.unwrap();
                assert!(message.sys_flag & sys_flag::COMPRESSED != 0 || message.body.len() < 100);
                message.body.len()
            })
            .sum();
        assert!(bodies < 5_000, "{bodies}");
        mq.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_group_takes_the_tags_that_it_asks_for() {
    let cluster = cluster().await;
    let (_, mq) = open(&format!("{}?tag_header=kind&message_lease=2s", cluster.url())).await;
    mq.create_topic("tagged", 1).await.unwrap();
    let consumer = mq
        .consumer("tagged", "g")
        .mode(Mode::Shared)
        .property("tags", "red || Aa")
        .await
        .unwrap();
    let producer = mq.producer("tagged").await.unwrap();
    // The hash of `BB` is that of `Aa`, and hashes are all that a broker compares.
    for kind in ["red", "blue", "BB", "Aa"] {
        producer
            .produce(Message::new(kind).with_header("kind", kind))
            .await
            .unwrap();
    }
    let came = BTreeSet::from([text(&consumer).await, text(&consumer).await]);
    assert_eq!(came, BTreeSet::from(["red".to_owned(), "Aa".to_owned()]));
    nothing(&consumer, Duration::from_secs(1)).await;
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delays_can_travel_as_levels() {
    let cluster = cluster().await;
    let (_, mq) = open(&format!("{}?delays=levels", cluster.url())).await;
    mq.create_topic("levels", 1).await.unwrap();
    let producer = mq.producer("levels").await.unwrap();
    let consumer = mq.consumer("levels", "g").await.unwrap();
    let begun = Instant::now();
    for (payload, delay) in [("five", 1_200), ("one", 800)] {
        let message = Message::new(payload).with_delay(Duration::from_millis(delay));
        assert_eq!(producer.produce(message).await.unwrap().offset, None);
    }
    assert_eq!(text(&consumer).await, "one");
    assert!(begun.elapsed() >= Duration::from_millis(800));
    assert_eq!(text(&consumer).await, "five");
    // The next level above the delay.
    assert!(
        begun.elapsed() >= Duration::from_millis(4_900),
        "{:?}",
        begun.elapsed()
    );
    let longer = Message::new("x").with_delay(Duration::from_secs(7_201));
    let error = producer.produce(longer).await.unwrap_err();
    assert_eq!(error.kind(), mq_api::ErrorKind::InvalidMessage, "{error}");
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_moves_a_group_that_is_at_work() {
    let cluster = cluster().await;
    let (_, mq) = open(&cluster.url()).await;
    mq.create_topic("moved", 1).await.unwrap();
    let producer = mq.producer("moved").await.unwrap();
    let consumer = mq.consumer("moved", "g").await.unwrap();
    for number in 0..5 {
        producer.produce(number.to_string()).await.unwrap();
        assert_eq!(text(&consumer).await, number.to_string());
    }
    consumer.commit().await.unwrap();
    let operator = std::sync::Arc::clone(&cluster);
    let order = ["resetOffsetByTime", "-g", "g%moved", "-t", "moved", "-s", "0"];
    tokio::task::spawn_blocking(move || operator.tool(&order).unwrap())
        .await
        .unwrap();
    // The pull that waits at the broker ends with it; the next one is told.
    producer.produce("5").await.unwrap();
    let mut came = vec![text(&consumer).await];
    if came == ["5"] {
        came.clear();
    }
    while came.len() < 6 {
        came.push(text(&consumer).await);
    }
    assert_eq!(came, ["0", "1", "2", "3", "4", "5"]);
    consumer.commit().await.unwrap();
    let stored = mq.committed("moved", "g").await.unwrap();
    assert_eq!(stored.first().map(|one| one.position), Some(6));
    mq.close().await.unwrap();
}

/// The driver is built on these; where a broker changes one of them, this says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_keep_to_what_the_driver_knows_of_them() {
    let cluster = cluster().await;
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("facts", 2).await.unwrap();
    let producer = mq.producer("facts").await.unwrap();
    let sent = producer.produce_batch((0..100).map(|number| Message::new(number.to_string())));
    assert!(sent.await.into_iter().all(|result| result.is_ok()));
    let session = driver.native();

    // An offset of a group that does not exist is refused.
    let refused = session.commit("nobody", "facts", &queue(0), 1, soon()).await;
    assert_eq!(refused.unwrap_err().refusal(), Some(26));
    // A new group on a small topic has no offset, not that of the first message.
    assert_eq!(
        session
            .committed("nobody", "facts", &queue(0), soon())
            .await
            .unwrap(),
        None
    );

    // A pull gives 32 messages, however many are asked for.
    let partition = i32::from(session.bounds("facts", &queue(0), soon()).await.unwrap().next == 0);
    let mut many = PullOptions::default();
    many.max_messages = 100;
    let pulled = session
        .pull("mq-reader", "facts", &queue(partition), 0, &many, soon())
        .await
        .unwrap();
    assert_eq!(pulled.messages().count(), 32);

    // A long poll overruns its wait, and is no failure.
    let end = session
        .bounds("facts", &queue(partition), soon())
        .await
        .unwrap()
        .next;
    let mut waiting = PullOptions::default();
    waiting.wait = Duration::from_millis(500);
    let pulled = session
        .pull(
            "mq-reader",
            "facts",
            &queue(partition),
            end,
            &waiting,
            Instant::now(),
        )
        .await
        .unwrap();
    assert_eq!((pulled.status, pulled.next_offset), (PullStatus::Nothing, end));

    // A request beyond 16 MiB would cost the connection; it is refused here, and the connection goes on.
    let huge = SendMessage {
        group: "p",
        topic: "facts",
        ..SendMessage::default()
    };
    let body = Bytes::from(vec![0; 17 * 1024 * 1024]);
    let error = session.send("broker-a", &huge, &body, soon()).await.unwrap_err();
    assert!(matches!(error, RemotingError::FrameTooLarge { .. }), "{error}");
    session.bounds("facts", &queue(0), soon()).await.unwrap();

    // A lock outlives the connection of its holder, and can be freed in its name.
    let (dead, alive) = (
        Session::with_client_id(session.cluster(), "dead".to_owned()),
        Session::with_client_id(session.cluster(), "alive".to_owned()),
    );
    assert_eq!(
        dead.lock("broker-a", "locks", "facts", &[0], soon())
            .await
            .unwrap(),
        [0]
    );
    dead.close(soon()).await;
    let locked = alive.lock("broker-a", "locks", "facts", &[0], soon()).await;
    assert!(locked.unwrap().is_empty());
    alive
        .unlock("broker-a", "locks", "facts", "dead", &[0], soon())
        .await
        .unwrap();
    let locked = alive.lock("broker-a", "locks", "facts", &[0], soon()).await;
    assert_eq!(locked.unwrap(), [0]);
    alive.close(soon()).await;
    mq.close().await.unwrap();
}

/// Readers go on at a slave, new ones included; what is written, locked or committed waits for the master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_is_read_while_the_master_is_gone() {
    const COUNT: usize = 20;
    let cluster = Arc::new(start(RocketMqOptions::new().with_slaves()).await);
    let (_, mq) = open(&format!(
        "{}?route_refresh=500ms&session_timeout=2s",
        cluster.url()
    ))
    .await;
    mq.create_topic("warm", 1).await.unwrap();
    mq.create_topic("copied", 1).await.unwrap();
    // Until the slave is connected, no send is answered well.
    let warm = mq.producer("warm").timeout(Duration::from_secs(5)).await.unwrap();
    let begun = Instant::now();
    while !cluster.slaves()[0].has_topic("copied") || warm.produce("warm").await.is_err() {
        assert!(begun.elapsed() < 2 * PATIENCE, "the slave copies nothing");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let producer = mq.producer("copied").retries(0).await.unwrap();
    for number in 0..COUNT {
        producer.produce(number.to_string()).await.unwrap();
    }
    let reader = mq.reader("copied").await.unwrap();
    let member = mq.consumer("copied", "g").await.unwrap();
    assert_eq!(reader.next().await.unwrap().payload(), b"0");
    assert_eq!(text(&member).await, "0");
    let dying = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || dying.masters()[0].kill().unwrap())
        .await
        .unwrap();
    for number in 1..COUNT {
        let message = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap();
        assert_eq!(message.unwrap().payload(), number.to_string().as_bytes());
    }
    // One that comes now; with its bounds, a time and a group that needs no master.
    let late = mq.reader("copied").start_at(Position::Offset(5)).await.unwrap();
    let message = tokio::time::timeout(PATIENCE, late.next()).await.unwrap();
    assert_eq!(message.unwrap().payload(), b"5");
    let bounds = late.bounds().await.unwrap();
    assert_eq!((bounds[0].first_offset, bounds[0].next_offset), (0, COUNT as u64));
    let now = Timestamp::now();
    assert_eq!(late.offset_at(0, now).await.unwrap(), COUNT as u64);
    let everyone = mq
        .consumer("copied", "all")
        .mode(Mode::Broadcast)
        .start_at(Start::Earliest)
        .await
        .unwrap();
    for number in 0..COUNT {
        assert_eq!(text(&everyone).await, number.to_string());
    }
    let error = producer.produce("nowhere").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
    if std::env::var_os("MQ_TEST_FULL").is_none() {
        mq.close().await.unwrap();
        return;
    }
    // It takes as long again until the slave has found the master that came back.
    let back = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || back.start().unwrap())
        .await
        .unwrap();
    let begun = Instant::now();
    while let Err(error) = producer.produce("again").await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for handle in [&reader, &late] {
        loop {
            let message = tokio::time::timeout(PATIENCE, handle.next())
                .await
                .unwrap()
                .unwrap();
            if message.payload() == b"again" {
                break;
            }
        }
    }
    // The member has read on at the slave while its tenure lasted; what it has not committed comes again.
    let mut came = BTreeSet::new();
    while came.len() < COUNT {
        let text = text(&member).await;
        if text != "0" {
            came.insert(text);
        }
    }
    assert!(came.contains("again"));
    mq.close().await.unwrap();
}
