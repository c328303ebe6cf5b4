//! What real brokers answer, and what this driver makes of it; `tests/traps.rs` has the table.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod outages;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mq_api::{ErrorKind, Message, Start, Timestamp};
use mq_rocketmq::{
    client::{PopOptions, Popped, PullOptions, PullStatus, QueueRef, Session},
    remoting::{
        ConsumerList, CreateTopic, ListConsumers, Plain, PopTopicKind, PullMessage, SendMessage,
        SubscriptionData,
    },
};
use support::{PATIENCE, cluster, nothing, open, text};
use test_brokers::Broker;
use tokio::time::Instant;

const BROKER: &str = "broker-a";

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn queue(number: i32) -> QueueRef {
    QueueRef {
        broker: BROKER.into(),
        queue: number,
    }
}

/// One message that goes alone, without anything that this driver adds.
fn single<'a>(topic: &'a str, queue: i32) -> SendMessage<'a> {
    SendMessage {
        group: "p",
        topic,
        default_topic: "TBW102",
        default_queues: 4,
        queue,
        // Brokers do not ask about transactions that are old.
        born: Timestamp::now().as_millis(),
        properties: Some(""),
        ..SendMessage::default()
    }
}

fn creation(topic: &str, queues: i32) -> CreateTopic<'_> {
    CreateTopic {
        topic,
        default_topic: "TBW102",
        read_queues: queues,
        write_queues: queues,
        perm: 6,
        filter_type: "SINGLE_TAG",
        ..CreateTopic::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_holds_with_a_thousand_sends_in_flight() {
    const EACH: u64 = 1500;
    let cluster = cluster().await;
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("in-order", 2).await.unwrap();
    let producer = mq.producer("in-order").buffer_messages(1000).await.unwrap();
    let mut pending = Vec::new();
    for number in 0..EACH {
        for partition in 0..2 {
            let sent = producer.enqueue_to(partition, number.to_string()).await;
            pending.push((partition, number, sent.unwrap()));
        }
    }
    for (partition, number, receipt) in pending {
        let receipt = receipt.await.unwrap();
        // Dense from 0 on: an offset is the place among what was sent.
        assert_eq!((receipt.partition, receipt.offset), (partition, Some(number)));
    }
    let consumer = mq.consumer("in-order", "g").await.unwrap();
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for _ in 0..2 * EACH {
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        let expected = next.entry(delivery.partition()).or_default();
        assert_eq!(delivery.payload(), expected.to_string().as_bytes());
        *expected += 1;
        delivery.ack().unwrap();
    }
    // Brokers give batched messages no key of their own, by which tools find them.
    let (mut at, mut keys) = (0, BTreeSet::new());
    while at < 100 {
        let pulled = driver
            .native()
            .pull(
                "mq-reader",
                "in-order",
                &queue(0),
                at,
                &PullOptions::default(),
                soon(),
            )
            .await
            .unwrap();
        for message in pulled.messages() {
            assert!(keys.insert(message.unwrap().property("UNIQ_KEY").unwrap().to_owned()));
        }
        at = pulled.next_offset;
    }
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_survives_in_keys_ids_and_headers() {
    let cluster = cluster().await;
    let (_, mq) = open(&cluster.url()).await;
    mq.create_topic("odd", 1).await.unwrap();
    let producer = mq.producer("odd").await.unwrap();
    let every: Vec<u8> = (0..=255).collect();
    let value = "\u{1}a\u{2}b\n\0 ü%t%b ";
    let messages = [
        Message::new("empty").with_key("").with_header("empty", ""),
        Message::new("bytes")
            .with_key(every.clone())
            .with_header("bytes", every),
        Message::new("text")
            .with_id("%n\u{2} id")
            .with_header("text", value)
            .with_header("PGROUP", value)
            .with_header("ü \u{2}%", value),
        // Nearly the most that the portable rule lets through; in text it grows by a third.
        Message::new("full").with_header("full", vec![0xff; 16 * 1024 - 100]),
        Message::new("full")
            .with_delay(Duration::from_millis(50))
            .with_header("full", vec![2; 16 * 1024 - 100]),
    ];
    for message in &messages {
        producer.produce(message.clone()).await.unwrap();
    }
    let consumer = mq.consumer("odd", "g").await.unwrap();
    for mut message in messages {
        message.clear_due();
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(*delivery.message(), message);
        delivery.ack().unwrap();
    }
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_again_changes_nothing_though_a_broker_overwrites() {
    let cluster = cluster().await;
    let (driver, mq) = open(&cluster.url()).await;
    let session = driver.native();
    let queues = async |topic: &str| {
        let found = session
            .topic_config(BROKER, topic, soon())
            .await
            .unwrap()
            .unwrap();
        (found.read_queue_nums, found.write_queue_nums)
    };
    mq.create_topic("kept", 3).await.unwrap();
    for other in [2, 4] {
        let error = mq.create_topic("kept", other).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TopicExists, "{error}");
        assert_eq!(queues("kept").await, (3, 3));
    }
    mq.create_topic("kept", 3).await.unwrap();
    // What the driver keeps from happening: up, down, and counts that make no sense.
    for count in [2, 5, 1, 0, 70_000] {
        session
            .ask(BROKER, &creation("overwritten", count), &(), soon())
            .await
            .unwrap();
        assert_eq!(queues("overwritten").await, (count, count));
    }
    for count in [0, 70_000] {
        let error = mq.create_topic("counted", count).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidPartition, "{error}");
    }
    let dotted = session.ask(BROKER, &creation("a.b", 1), &(), soon()).await;
    assert_eq!(dotted.unwrap_err().refusal(), Some(29));
    mq.create_topic("a.b", 1).await.unwrap();
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_refuse_by_the_codes_that_the_driver_knows() {
    let cluster = cluster().await;
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("codes", 1).await.unwrap();
    let session = driver.native();
    let send = async |topic: &str, queue: i32, body: &[u8]| {
        let sent = session.send(BROKER, &single(topic, queue), body, soon()).await;
        sent.map_err(|error| error.refusal())
    };
    assert_eq!(send("codes", 0, b"x").await.unwrap().offset, 0);
    assert_eq!(send("unknown", 0, b"x").await.unwrap_err(), Some(17));
    assert_eq!(send("codes", 7, b"x").await.unwrap_err(), Some(29));
    // A NullPointerException, for which the driver sends no empty body alone.
    assert_eq!(send("codes", 0, b"").await.unwrap_err(), Some(1));
    let largest = vec![0; 4 * 1024 * 1024];
    assert_eq!(send("codes", 0, &largest).await.unwrap().offset, 1);
    let larger = vec![0; 4 * 1024 * 1024 + 1];
    assert_eq!(send("codes", 0, &larger).await.unwrap_err(), Some(13));
    let unknown = session.ask(BROKER, &Plain(9_999), &(), soon()).await;
    assert_eq!(unknown.unwrap_err().refusal(), Some(3));
    let bare = session.ask(BROKER, &Plain(11), &(), soon()).await;
    assert_eq!(bare.unwrap_err().refusal(), Some(1));

    let pull = async |topic: &str, number: i32, from: i64| {
        let options = PullOptions::default();
        let pulled = session
            .pull("mq-reader", topic, &queue(number), from, &options, soon())
            .await;
        pulled.map(|pulled| (pulled.status, pulled.next_offset))
    };
    assert_eq!(pull("codes", 0, 2).await.unwrap(), (PullStatus::Nothing, 2));
    // Beyond the end, and where to go on.
    assert_eq!(pull("codes", 0, 50).await.unwrap(), (PullStatus::OffsetMoved, 2));
    assert_eq!(pull("unknown", 0, 0).await.unwrap_err().refusal(), Some(17));
    assert_eq!(pull("codes", 7, 0).await.unwrap_err().refusal(), Some(29));
    let invalid = PullMessage {
        group: "a.b",
        topic: "codes",
        max_messages: 1,
        ..PullMessage::default()
    };
    let invalid = session.ask(BROKER, &invalid, &(), soon()).await;
    assert_eq!(invalid.unwrap_err().refusal(), Some(26));
    let unknown = session.bounds("unknown", &queue(0), soon()).await.unwrap();
    assert_eq!((unknown.first, unknown.next), (0, 0));
    let later = i64::MAX / 2;
    assert_eq!(
        session
            .offset_at("codes", &queue(0), later, soon())
            .await
            .unwrap(),
        2
    );
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_beyond_the_end_goes_on_at_the_end() {
    let cluster = cluster().await;
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("wrong", 1).await.unwrap();
    let producer = mq.producer("wrong").await.unwrap();
    for number in 0..5 {
        producer.produce(number.to_string()).await.unwrap();
    }
    let consumer = mq.consumer("wrong", "g").await.unwrap();
    for number in 0..5 {
        assert_eq!(text(&consumer).await, number.to_string());
    }
    consumer.close().await.unwrap();
    let session = driver.native();
    // A broker takes any: backwards, and beyond the end.
    for offset in [2, 1_000] {
        session
            .commit("g%wrong", "wrong", &queue(0), offset, soon())
            .await
            .unwrap();
        let stored = session.committed("g%wrong", "wrong", &queue(0), soon()).await;
        assert_eq!(stored.unwrap(), Some(offset));
    }
    let consumer = mq.consumer("wrong", "g").await.unwrap();
    // It goes on at the end, as a broker tells those that pull beyond it.
    while consumer.assignment().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    producer.produce("later").await.unwrap();
    assert_eq!(text(&consumer).await, "later");
    consumer.commit().await.unwrap();
    let stored = mq.committed("wrong", "g").await.unwrap();
    assert_eq!(stored.first().map(|one| one.position), Some(6));

    // Deleted and made again, a topic begins at 0, and so do its groups.
    consumer.close().await.unwrap();
    mq.delete_topic("wrong").await.unwrap();
    mq.create_topic("wrong", 1).await.unwrap();
    assert_eq!(
        session
            .committed("g%wrong", "wrong", &queue(0), soon())
            .await
            .unwrap(),
        None
    );
    let producer = mq.producer("wrong").await.unwrap();
    assert_eq!(producer.produce("anew").await.unwrap().offset, Some(0));
    let latest = mq
        .consumer("wrong", "late")
        .start_at(Start::Latest)
        .await
        .unwrap();
    producer.produce("next").await.unwrap();
    // On a small topic a broker would answer 0 for a group that has stored nothing.
    assert_eq!(text(&latest).await, "next");
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_counted_once_though_a_broker_lists_each_connection() {
    let cluster = cluster().await;
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("twins", 1).await.unwrap();
    let native = driver.native();
    let twins = [(), ()].map(|()| Session::with_client_id(native.cluster(), "twin".to_owned()));
    for twin in &twins {
        let subscription = vec![SubscriptionData::tags("twins", "*", 1)];
        twin.join_consumers("pair", subscription, &[BROKER.into()], soon())
            .await
            .unwrap();
    }
    let request = ListConsumers {
        group: "pair",
        broker: Some(BROKER),
    };
    let answer = native.ask(BROKER, &request, &(), soon()).await.unwrap();
    let list: ConsumerList = answer.json("list").unwrap();
    assert_eq!(list.consumer_id_list, ["twin", "twin"]);
    let members = native.members(BROKER, "pair", soon()).await.unwrap();
    assert_eq!(members, BTreeSet::from(["twin".to_owned()]));
    for twin in twins {
        twin.close(soon()).await;
    }
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_of_a_member_that_died_is_taken_over_long_before_its_lock_ends() {
    let cluster = cluster().await;
    let (_, mq) = open(&format!("{}?session_timeout=2s", cluster.url())).await;
    mq.create_topic("inherited", 1).await.unwrap();
    let producer = mq.producer("inherited").await.unwrap();
    producer.produce("first").await.unwrap();
    let url = format!("{}?session_timeout=2s", cluster.url());
    // The end of its runtime is a crash to everybody else.
    let dying = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let member = dying.spawn(async move {
        let (_, mq) = open(&url).await;
        let consumer = mq.consumer("inherited", "g").await.unwrap();
        assert_eq!(text(&consumer).await, "first");
        consumer.commit().await.unwrap();
        (mq, consumer)
    });
    let held = member.await.unwrap();
    let heir = mq.consumer("inherited", "g").await.unwrap();
    nothing(&heir, Duration::from_millis(300)).await;
    dying.shutdown_background();
    let begun = Instant::now();
    producer.produce("second").await.unwrap();
    assert_eq!(text(&heir).await, "second");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(30), "a lock lasts 60 s: {took:?}");
    drop(held);
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_popped_message_that_came_back_is_settled_on_the_retry_topic_only() {
    let cluster = cluster().await;
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("popped", 1).await.unwrap();
    mq.producer("popped").await.unwrap().produce("x").await.unwrap();
    let session = driver.native();
    let mut options = PopOptions::default();
    (options.lease, options.wait) = (Duration::from_secs(1), Duration::from_secs(5));
    let pop = async |options: &PopOptions<'_>| -> Popped {
        session
            .pop(BROKER, "poppers", "popped", None, options, soon())
            .await
            .unwrap()
    };
    let next = async |options: &PopOptions<'_>| {
        let until = soon();
        loop {
            if let Some(one) = pop(options).await.messages.into_iter().next() {
                break one.receipt;
            }
            assert!(Instant::now() < until, "it does not come back");
        }
    };
    assert_eq!(next(&options).await.kind, PopTopicKind::Plain);
    let receipt = next(&options).await;
    assert_eq!(receipt.kind, PopTopicKind::RetryV2);
    let ack = async |receipt| session.pop_ack("poppers", "popped", receipt, soon()).await;
    // On the plain topic it is answered, and nothing is done.
    let mut wrong = receipt.clone();
    wrong.kind = PopTopicKind::Plain;
    ack(&wrong).await.unwrap();
    // Long enough that the ack comes in time on a slow machine.
    options.lease = Duration::from_secs(3);
    let again = next(&options).await;
    assert_eq!(again.kind, PopTopicKind::RetryV2);
    // What is settled twice is answered twice.
    ack(&again).await.unwrap();
    ack(&again).await.unwrap();
    ack(&receipt).await.unwrap();
    for _ in 0..2 {
        assert!(pop(&options).await.messages.is_empty());
    }
    mq.close().await.unwrap();
}
