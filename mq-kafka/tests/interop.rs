//! What other clients make of what this driver writes, and the other way round.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use mq_api::{
    Message, Timestamp, TopicName,
    driver::{CommittedRequest, Mq},
};
use mq_kafka::{GroupProtocol, KafkaMq};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use support::*;
use test_brokers::{Kafka, KafkaListener, KafkaOptions};

const LIMIT: Duration = Duration::from_secs(20);

/// A client of librdkafka as another program has it.
fn foreign(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.bootstrap(KafkaListener::Plain));
    config
}

/// Reads that many records of partition 0 as another program does.
async fn read(kafka: &Kafka, topic: &str, count: usize) -> Vec<OwnedMessage> {
    let mut config = foreign(kafka);
    config
        .set("group.id", "foreign")
        .set("enable.auto.commit", "false");
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        let mut all = Vec::new();
        while all.len() < count {
            all.push(consumer.poll(LIMIT).unwrap().unwrap().detach());
        }
        all
    })
    .await
    .unwrap()
}

async fn a_message_is_an_ordinary_record(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("ordinary", 1).await.unwrap();
    let producer = mq.producer("ordinary").await.unwrap();
    let before = Timestamp::now();
    producer.produce(Message::new("plain")).await.unwrap();
    let full = Message::new("full")
        .with_key("user-7")
        .with_header("source", "checkout")
        .with_header("bits", vec![0, 255]);
    producer.produce(full).await.unwrap();
    producer.produce(Message::tombstone("user-7")).await.unwrap();
    let all = read(kafka, "ordinary", 3).await;
    let [plain, full, tombstone] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert_eq!((plain.payload(), plain.key()), (Some(&b"plain"[..]), None));
    assert!(plain.headers().is_none_or(|headers| headers.count() == 0));
    assert!(plain.timestamp().to_millis().unwrap() >= before.as_millis());
    assert_eq!(full.key(), Some(&b"user-7"[..]));
    let headers: Vec<_> = full.headers().unwrap().iter().collect();
    assert_eq!(
        (headers[0].key, headers[0].value),
        ("source", Some(&b"checkout"[..]))
    );
    assert_eq!((headers[1].key, headers[1].value), ("bits", Some(&[0, 255][..])));
    assert_eq!(headers.len(), 2);
    assert_eq!(
        (tombstone.payload(), tombstone.key()),
        (None, Some(&b"user-7"[..]))
    );
    mq.close().await.unwrap();
}

async fn a_foreign_record_arrives_as_it_is(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("foreign-record", 1).await.unwrap();
    let config = foreign(kafka);
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = config.create().unwrap();
        let twice = OwnedHeaders::new()
            .insert(Header {
                key: "twice",
                value: Some("1"),
            })
            .insert(Header {
                key: "twice",
                value: Some("2"),
            })
            .insert(Header::<&str> {
                key: "none",
                value: None,
            });
        let record = BaseRecord::to("foreign-record")
            .key("k")
            .payload("p")
            .timestamp(1_700_000_000_123);
        producer
            .send(record.headers(twice))
            .map_err(|(error, _)| error)
            .unwrap();
        producer.flush(LIMIT).unwrap();
    })
    .await
    .unwrap();
    let consumer = mq.consumer("foreign-record", "g").await.unwrap();
    let delivery = consumer.consume().await.unwrap();
    assert_eq!(delivery.payload(), b"p");
    assert_eq!(delivery.timestamp(), Timestamp::from_millis(1_700_000_000_123));
    let headers: Vec<_> = delivery
        .headers()
        .iter()
        .map(|header| {
            (
                header.name().to_owned(),
                header.value().map(|value| value.to_vec()),
            )
        })
        .collect();
    let expected = [
        ("twice", Some(b"1".to_vec())),
        ("twice", Some(b"2".to_vec())),
        ("none", None),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value)));
    delivery.ack().unwrap();
    mq.close().await.unwrap();
}

/// `murmur2_random` is what librdkafka calls the rule of Java's client.
async fn a_key_has_the_partition_that_javas_rule_gives_it(kafka: &Kafka) {
    const PARTITIONS: i32 = 7;
    let mq = open(kafka).await;
    mq.create_topic("keys", 7).await.unwrap();
    let producer = mq.producer("keys").await.unwrap();
    let mut ours = HashMap::new();
    let keys: Vec<String> = (0..200).map(|n| format!("user-{}", n * 7919)).collect();
    for key in &keys {
        let receipt = producer
            .produce(Message::new("ours").with_key(key.clone()))
            .await
            .unwrap();
        ours.insert(key.clone(), receipt.partition);
    }
    let mut config = foreign(kafka);
    config
        .set("partitioner", "murmur2_random")
        .set("group.id", "foreign");
    let sent = keys.clone();
    let theirs: HashMap<String, u32> = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = config.create().unwrap();
        for key in &sent {
            let record = BaseRecord::to("keys").key(key).payload("theirs");
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(LIMIT).unwrap();
        let consumer: BaseConsumer = config.create().unwrap();
        let mut from = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            from.add_partition_offset("keys", partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&from).unwrap();
        let mut found = HashMap::new();
        while found.len() < sent.len() {
            let message = consumer.poll(LIMIT).unwrap().unwrap();
            if message.payload() == Some(b"theirs") {
                let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
                found.insert(key, u32::try_from(message.partition()).unwrap());
            }
        }
        found
    })
    .await
    .unwrap();
    assert_eq!(ours, theirs);
    mq.close().await.unwrap();
}

/// Runs Kafka's own client, and returns the lines that begin with a word, without it.
fn java(kafka: &Kafka, topic: &str, group: &str, work: &[&str]) -> impl Fn(&str) -> Vec<Vec<String>> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop_java/JavaClient.java");
    let brokers = kafka.bootstrap(KafkaListener::Plain);
    let words = [&[brokers.as_str(), topic, group], work].concat();
    let said = kafka.tool(source, &words).unwrap();
    move |word| {
        let lines = said.lines().map(|line| line.split('\t').map(str::to_owned));
        lines
            .map(Iterator::collect::<Vec<_>>)
            .filter(|line| line.first().is_some_and(|first| first == word))
            .map(|mut line| line.split_off(1))
            .collect()
    }
}

/// Each half is made by one client, and each finds what the other made and goes on where the other stood.
async fn javas_own_client_and_this_one_share_keys_records_and_positions(kafka: &Kafka) {
    const KEYS: usize = 100;
    let mq = open(kafka).await;
    mq.create_topic("java", 7).await.unwrap();
    let producer = mq.producer("java").await.unwrap();
    let mut ours = HashMap::new();
    for n in 0..KEYS {
        let key = format!("user-{}", n * 7919);
        let message = Message::new("rust").with_key(key.clone());
        let receipt = producer
            .produce(message.with_header("source", "checkout"))
            .await
            .unwrap();
        ours.insert(key, receipt.partition);
    }

    let said = java(kafka, "java", "both", &["produce", "100", "consume", "120"]);
    let made = said("made");
    assert_eq!(made.len(), KEYS);
    for line in &made {
        assert_eq!(ours[&line[0]].to_string(), line[1], "{line:?}");
    }
    let read = said("read");
    assert!((120..2 * KEYS).contains(&read.len()), "{}", read.len());
    let mut places = HashSet::new();
    for line in &read {
        let [key, partition, offset, value, source] = line.as_slice() else {
            panic!("{line:?}")
        };
        assert_eq!(ours[key].to_string(), *partition);
        let expected = match value.as_str() {
            "rust" => "checkout",
            _ => "-",
        };
        assert_eq!(source, expected, "{line:?}");
        places.insert((partition.clone(), offset.clone()));
    }
    assert!(read.iter().any(|line| line[3] == "rust") && read.iter().any(|line| line[3] == "java"));

    let consumer = mq.consumer("java", "both").await.unwrap();
    for _ in read.len()..2 * KEYS {
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        let place = (delivery.partition().to_string(), delivery.offset().to_string());
        assert!(places.insert(place), "{delivery:?} was committed by the other");
        let key = delivery.key().unwrap().to_vec();
        assert_eq!(ours[&String::from_utf8(key).unwrap()], delivery.partition());
        delivery.ack().unwrap();
    }
    consumer.commit().await.unwrap();
    consumer.close().await.unwrap();
    mq.close().await.unwrap();

    let said = java(kafka, "java", "both", &["committed", "7"]);
    let stored: usize = said("committed")
        .iter()
        .map(|line| line[1].parse::<usize>().unwrap())
        .sum();
    assert_eq!(stored, 2 * KEYS);
}

async fn positions_are_shared_with_the_tools_of_others(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("shared-positions", 1).await.unwrap();
    let producer = mq.producer("shared-positions").await.unwrap();
    for n in 0..10 {
        producer.produce(n.to_string()).await.unwrap();
    }
    let consumer = mq.consumer("shared-positions", "billing").await.unwrap();
    for _ in 0..4 {
        consumer.consume().await.unwrap().ack().unwrap();
    }
    consumer.commit().await.unwrap();
    consumer.close().await.unwrap();
    let shown = kafka
        .tool(
            "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
            &[
                "--bootstrap-server",
                &kafka.bootstrap(KafkaListener::Plain),
                "--describe",
                "--group",
                "billing",
            ],
        )
        .unwrap();
    let line = shown.lines().find(|line| line.contains("shared-positions"));
    let words: Vec<&str> = line
        .unwrap_or_else(|| panic!("{shown}"))
        .split_whitespace()
        .collect();
    // Group, topic, partition, current offset, end, lag.
    assert_eq!(words[2..6], ["0", "4", "10", "6"], "{shown}");

    // What another client stores, without a word beside it, is where this one goes on.
    let mut config = foreign(kafka);
    config
        .set("group.id", "billing")
        .set("enable.auto.commit", "false");
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let mut to = TopicPartitionList::new();
        to.add_partition_offset("shared-positions", 0, Offset::Offset(8))
            .unwrap();
        consumer.commit(&to, CommitMode::Sync).unwrap();
    })
    .await
    .unwrap();
    let consumer = mq.consumer("shared-positions", "billing").await.unwrap();
    assert_eq!(consumer.consume().await.unwrap().offset(), 8);
    mq.close().await.unwrap();
}

async fn topics_of_others_can_be_opened_by_their_names(kafka: &Kafka) {
    let admin: AdminClient<DefaultClientContext> = foreign(kafka).create().unwrap();
    let mq = connect(kafka).await;
    for name in ["_9lives_", "-", "x".repeat(200).as_str()] {
        let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made[0].as_ref().unwrap();
        let topic = TopicName::existing(name).unwrap();
        let producer = producer(&mq, &topic).await;
        send_numbers(&*producer, 0, 0..3).await;
        let mut member = join(&mq, subscription(&topic, "foreign-names")).await;
        member.until("all", |m| m.received.len() == 3).await;
        assert!(mq.list_topics().await.unwrap().contains(&topic));
        member.consumer.close().await.unwrap();
    }
}

async fn the_newer_group_protocol_is_an_option(kafka: &Kafka) {
    let config = config(kafka).with_group_protocol(GroupProtocol::Consumer);
    let mq = KafkaMq::connect_with(config).await.unwrap();
    let topic = create(&mq, "kip-848", 4).await;
    let producer = producer(&mq, &topic).await;
    let mut a = join(&mq, subscription(&topic, "kip-848")).await;
    a.until("all to the first", |m| m.assigned.len() == 4).await;
    for partition in 0..4 {
        send_numbers(&*producer, partition, 0..10).await;
    }
    a.until("forty", |m| m.received.len() == 40).await;
    let other = KafkaMq::connect_with(self::config(kafka).with_group_protocol(GroupProtocol::Consumer))
        .await
        .unwrap();
    let mut b = join(&other, subscription(&topic, "kip-848")).await;
    until_both(&mut a, &mut b, "two each", |a, b| {
        a.assigned.len() == 2 && b.assigned.len() == 2
    })
    .await;
    for (partition, assignment) in &b.assigned {
        assert_eq!(assignment.position, 0, "nothing was committed");
        assert!(!a.assigned.contains_key(partition));
    }
    let moved = *b.assigned.keys().next().unwrap();
    let commit = mq_api::driver::Commit::new(b.id(moved), 7);
    b.consumer.commit(vec![commit]).await.pop().unwrap().unwrap();
    b.consumer.close().await.unwrap();
    a.until("all back", |m| m.assigned.len() == 4).await;
    assert_eq!(a.assigned[&moved].position, 7);
    let stored = mq
        .committed(CommittedRequest::new(topic, group("kip-848")))
        .await
        .unwrap();
    assert_eq!(stored.len(), 4);
    a.consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_and_this_one_understand_each_other() {
    let kafka = KafkaOptions::new()
        .with_config("broker.session.timeout.ms=30000")
        .with_config("group.consumer.heartbeat.interval.ms=500")
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
        a_message_is_an_ordinary_record,
        a_foreign_record_arrives_as_it_is,
        a_key_has_the_partition_that_javas_rule_gives_it,
        javas_own_client_and_this_one_share_keys_records_and_positions,
        positions_are_shared_with_the_tools_of_others,
        topics_of_others_can_be_opened_by_their_names,
        the_newer_group_protocol_is_an_option,
    );
}
