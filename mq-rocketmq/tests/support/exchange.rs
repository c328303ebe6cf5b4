//! What is sent here arrives at a client of RocketMQ's own, and the other way round, whatever its language.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::time::Duration;

use mq_api::Message;
use test_brokers::{Broker, RocketMq};

use super::{PATIENCE, java::Java, nothing, open, text};

/// Sends messages alone, in a batch and with a delay, some large enough to be compressed, and has a program read them.
pub(crate) async fn sent_here_arrives_there(
    cluster: &RocketMq,
    topic: &str,
    compression: &str,
    start: impl FnOnce() -> Java,
) {
    let url = format!(
        "{}?tag_header=kind&compression={compression}&compression_threshold=1KiB",
        cluster.url()
    );
    let (_, mq) = open(&url).await;
    mq.create_topic(topic, 1).await.unwrap();
    let producer = mq.producer(topic).await.unwrap();
    let message = |text: &str| {
        Message::new(text.to_owned())
            .with_key("key-1")
            .with_header("kind", "red")
            .with_header("colour", "blue")
    };
    producer.produce(message("one")).await.unwrap();
    let pair = [message(&"x".repeat(8000)), message("two")];
    for result in producer.produce_batch(pair).await {
        result.unwrap();
    }
    producer
        .produce(message("late").with_delay(Duration::from_millis(200)))
        .await
        .unwrap();
    let mut there = start();
    let group = format!("readers-{compression}");
    there.ask(&["consume", topic, &group, "orderly"], "consuming");
    for body in ["one", "8000", "two", "late"] {
        let got = there.hear("got");
        assert_eq!(got, [&*group, "0", "key-1", "red", "blue", body]);
    }
    mq.close().await.unwrap();
}

/// Has a program send messages of each kind, and reads the texts that each stands for.
pub(crate) async fn sent_there_arrives_here(
    cluster: &RocketMq,
    topic: &str,
    there: &mut Java,
    sent: &[(&str, &[&str])],
) {
    let (_, mq) = open(&format!("{}?tag_header=kind", cluster.url())).await;
    mq.create_topic(topic, 1).await.unwrap();
    let consumer = mq.consumer(topic, "g").await.unwrap();
    for (kind, texts) in sent {
        there.ask(&["send", topic, kind], "sent");
        for expected in *texts {
            let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
                .await
                .unwrap()
                .unwrap();
            let payload = String::from_utf8(delivery.payload().to_vec()).unwrap();
            match *expected {
                "8000" => assert_eq!(payload, "x".repeat(8000)),
                text => assert_eq!(payload, text),
            }
            assert_eq!(delivery.key().map(|key| &key[..]), Some(&b"key-1"[..]));
            assert_eq!(delivery.headers().text("kind"), Some("red"));
            assert_eq!(delivery.headers().text("colour"), Some("blue"));
            delivery.ack().unwrap();
        }
    }
    nothing(&consumer, Duration::from_secs(1)).await;
    mq.close().await.unwrap();
}

/// Has a program and us read one topic in turn as one group: each goes on where the other one stopped.
pub(crate) async fn positions_are_handed_on(cluster: &RocketMq, topic: &str, there: &mut Java) {
    let (_, mq) = open(&format!("{}?group=raw", cluster.url())).await;
    mq.create_topic(topic, 1).await.unwrap();
    let producer = mq.producer(topic).await.unwrap();
    for number in 0..10 {
        producer.produce(number.to_string()).await.unwrap();
    }
    there.ask(&["consume", topic, "both", "orderly"], "consuming");
    for number in 0..10 {
        assert_eq!(there.hear("got")[5], number.to_string());
    }
    // It tells of a message before its listener returns, and a stop does not wait for listeners.
    let stored = async || {
        let stored = mq.committed(topic, "both").await.unwrap();
        stored.first().map(|one| one.position)
    };
    let all = tokio::time::timeout(PATIENCE, async {
        while stored().await != Some(10) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    all.await.unwrap();
    there.ask(&["stop", "both"], "stopped");
    assert_eq!(stored().await, Some(10));

    let consumer = mq.consumer(topic, "both").await.unwrap();
    producer.produce("10").await.unwrap();
    assert_eq!(text(&consumer).await, "10");
    consumer.close().await.unwrap();

    producer.produce("11").await.unwrap();
    there.ask(&["consume", topic, "both", "orderly"], "consuming");
    assert_eq!(there.hear("got")[5], "11");
    mq.close().await.unwrap();
}
