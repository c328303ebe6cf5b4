//! Producer, consumer and topics on a real broker, through the driver traits. One broker serves the whole file: a JVM is
//! slow to start.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::time::Duration;

use mq_api::{
    ErrorKind, Message, Position, TopicName, TopicSpec,
    driver::{Commit, CommitOutcome, CommittedRequest, FetchRequest, Mq},
};
use support::*;
use test_brokers::{Kafka, KafkaListener, KafkaOptions};

async fn what_is_produced_is_consumed_in_order_with_its_offsets(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "in-order", 2).await;
    let producer = producer(&mq, &topic).await;
    for partition in 0..2 {
        send_numbers(&*producer, partition, 0..500).await;
    }
    let mut member = join(&mq, subscription(&topic, "in-order")).await;
    member.until("all", |m| m.received.len() == 1000).await;
    for partition in 0..2 {
        let mine: Vec<(u64, u64)> = member
            .received
            .iter()
            .filter(|(id, ..)| id.partition == partition)
            .map(|(_, offset, number)| (*offset, *number))
            .collect();
        assert_eq!(mine, (0..500).map(|n| (n, n)).collect::<Vec<_>>());
    }
    let late = send(&*producer, 1, vec![Message::new("500")]).await;
    assert_eq!(late[0].as_ref().unwrap().offset, Some(500));
    member.until("the late one", |m| m.received.len() == 1001).await;
    producer.close().await.unwrap();
    member.consumer.close().await.unwrap();
    mq.close().await.unwrap();
}

async fn commits_survive_the_member_with_acks_above_and_attempts(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "commits", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..20).await;
    let mut member = join(&mq, subscription(&topic, "commits")).await;
    member.until("all", |m| m.received.len() == 20).await;
    let mut commit = Commit::new(member.id(0), 7);
    commit.acked_above = vec![9..12, 15..16];
    commit.attempts = vec![(7, 3)];
    let outcome = member.consumer.commit(vec![commit]).await.pop().unwrap();
    assert_eq!(outcome.unwrap(), CommitOutcome::Stored);
    let stored = mq
        .committed(CommittedRequest::new(topic.clone(), group("commits")))
        .await
        .unwrap();
    assert_eq!(
        (stored[0].position, stored[0].acked_above.clone()),
        (7, vec![9..12, 15..16])
    );
    member.consumer.close().await.unwrap();
    let mut stale = Commit::new(member.id(0), 9);
    stale.acked_above.clear();
    let outcome = member.consumer.commit(vec![stale]).await.pop().unwrap();
    assert_eq!(outcome.unwrap(), CommitOutcome::Lost);

    let mut second = join(&mq, subscription(&topic, "commits")).await;
    second.until("assigned", |m| m.assigned.contains_key(&0)).await;
    let assignment = &second.assigned[&0];
    assert_eq!(assignment.position, 7);
    assert_eq!(assignment.acked_above, [9..12, 15..16]);
    assert_eq!(assignment.attempts, [(7, 3)]);
    assert!(assignment.clean);
    assert!(assignment.topic_id.is_some());
    second.until("from there on", |m| m.received.len() == 13).await;
    assert_eq!(second.numbers(), (7..20).collect::<Vec<_>>());
    second.consumer.close().await.unwrap();
}

async fn partitions_are_spread_and_move_on_join_and_leave(kafka: &Kafka) {
    let (one, two) = (connect(kafka).await, connect(kafka).await);
    let topic = create(&one, "spread", 5).await;
    let mut a = join(&one, subscription(&topic, "spread")).await;
    a.until("all to the first", |m| m.assigned.len() == 5).await;
    let kept = a.assigned.clone();
    let mut b = {
        let joining = tokio::spawn(async move { join(&two, subscription(&topic, "spread")).await });
        while !joining.is_finished() {
            a.step(Duration::from_millis(10)).await;
        }
        joining.await.unwrap()
    };
    until_both(&mut a, &mut b, "spread", |a, b| {
        a.assigned.len() + b.assigned.len() == 5 && b.assigned.len() >= 2
    })
    .await;
    for (partition, assignment) in &a.assigned {
        assert_eq!(kept[partition].id, assignment.id, "what stays is not moved");
    }
    for (partition, assignment) in &b.assigned {
        assert!(assignment.id.epoch > kept[partition].id.epoch);
        assert!(assignment.clean, "it was given back in order");
    }
    b.consumer.close().await.unwrap();
    a.until("all back", |m| m.assigned.len() == 5).await;
    assert!(a.lost.is_empty(), "{:?}", a.lost);
    a.consumer.close().await.unwrap();
}

async fn a_start_is_resolved_before_the_call_returns(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "start", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..10).await;
    let mut latest = subscription(&topic, "start-latest");
    latest.start = Position::Latest;
    let mut latest = join(&mq, latest).await;
    send_numbers(&*producer, 0, 10..12).await;
    latest.until("two", |m| m.received.len() == 2).await;
    assert_eq!(latest.numbers(), [10, 11]);
    let mut beyond = subscription(&topic, "start-beyond");
    beyond.start = Position::Offset(99);
    let refused = mq.consumer(beyond).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OffsetOutOfRange);
    latest.consumer.close().await.unwrap();
}

async fn a_member_seeks_both_ways_and_pauses(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "seeks", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..100).await;
    let mut member = join(&mq, subscription(&topic, "seeks")).await;
    member.until("all", |m| m.received.len() == 100).await;
    let id = member.id(0);
    for (generation, offset) in [(1, 90), (2, 10)] {
        member.received.clear();
        let moved = member
            .consumer
            .seek(id, Position::Offset(offset), generation)
            .await
            .unwrap();
        assert_eq!(moved, offset);
        let rest = usize::try_from(100 - offset).unwrap();
        member.until("the rest", |m| m.received.len() == rest).await;
        assert_eq!(member.numbers(), (offset..100).collect::<Vec<_>>());
    }
    let refused = member
        .consumer
        .seek(id, Position::Offset(101), 3)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OffsetOutOfRange);
    member.consumer.pause(&[id], true);
    send_numbers(&*producer, 0, 100..110).await;
    assert!(!member.step(Duration::from_millis(500)).await, "paused");
    member.consumer.pause(&[id], false);
    member
        .until("resumed", |m| m.numbers().last() == Some(&109))
        .await;
    member.consumer.close().await.unwrap();
}

async fn a_topic_is_gone_for_those_who_use_it_and_begins_anew(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "gone", 2).await;
    let sender = producer(&mq, &topic).await;
    send_numbers(&*sender, 0, 0..5).await;
    let mut member = join(&mq, subscription(&topic, "gone")).await;
    member.until("all", |m| m.received.len() == 5).await;
    assert!(mq.delete_topics(vec![topic.clone()]).await[0].is_ok());
    member.until("told", |m| m.topic_gone).await;
    let refused = send(&*sender, 0, vec![Message::new("x")]).await.pop().unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TopicNotFound);
    assert!(mq.delete_topics(vec![topic.clone()]).await[0].is_ok());
    let unknown = mq.describe_topic(topic.clone()).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::TopicNotFound);
    create(&mq, "gone", 3).await;
    let again = mq
        .create_topic(TopicSpec::new("gone", 2).unwrap())
        .await
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::TopicExists);
    assert_eq!(
        mq.describe_topic(topic.clone()).await.unwrap().partitions.len(),
        3
    );
    let stored = mq
        .committed(CommittedRequest::new(topic, group("gone")))
        .await
        .unwrap();
    assert!(stored.is_empty(), "{stored:?}");
    member.consumer.close().await.unwrap();
}

async fn added_partitions_are_used_by_those_who_run(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "grows", 1).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "grows")).await;
    member.until("one", |m| m.assigned.len() == 1).await;
    mq.add_partitions(topic, 2).await.unwrap();
    let mut partitions = producer.partitions();
    tokio::time::timeout(PATIENCE, partitions.wait_for(|count| *count == 2))
        .await
        .unwrap()
        .unwrap();
    send_numbers(&*producer, 1, 0..3).await;
    member.until("the new one", |m| m.received.len() == 3).await;
    member.consumer.close().await.unwrap();
}

async fn a_reader_reads_what_is_there_and_waits_for_more(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "read", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..30).await;
    let reader = mq.reader(topic).await.unwrap();
    let fetch = |from, most| FetchRequest::new(0, Position::Offset(from), most);
    let first = reader.fetch(fetch(0, 10)).await.unwrap();
    assert_eq!((first.records.len(), first.next_offset), (10, 10));
    let mut next = first.next_offset;
    let mut all = 10;
    while all < 30 {
        let more = reader.fetch(fetch(next, 100)).await.unwrap();
        all += more.records.len();
        next = more.next_offset;
    }
    assert!(reader.fetch(fetch(30, 1)).await.unwrap().records.is_empty());
    let (late, ()) = tokio::join!(
        reader.fetch(fetch(30, 1).with_wait(PATIENCE)),
        send_numbers(&*producer, 0, 30..31)
    );
    assert_eq!(
        late.unwrap()
            .records
            .iter()
            .map(|r| number(&r.message))
            .collect::<Vec<_>>(),
        [30]
    );
    // A receipt names a message that can be read at once.
    let receipt = send(&*producer, 0, vec![Message::new("31")])
        .await
        .pop()
        .unwrap()
        .unwrap();
    let read = reader.fetch(fetch(receipt.offset.unwrap(), 1)).await.unwrap();
    assert_eq!(read.records.len(), 1);
    let beyond = reader.fetch(fetch(99, 1)).await.unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::OffsetOutOfRange);
    assert_eq!(reader.bounds().await.unwrap(), [(0, 32)]);
    reader.close().await.unwrap();
}

async fn an_oversized_message_fails_alone(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "sizes", 1).await;
    let producer = producer(&mq, &topic).await;
    let mut messages: Vec<Message> = (0..20).map(|n| Message::new(n.to_string())).collect();
    messages[7] = Message::new(vec![7; 3 * 1024 * 1024]);
    let results = send(&*producer, 0, messages).await;
    for (place, result) in results.into_iter().enumerate() {
        match place {
            7 => assert_eq!(result.unwrap_err().kind(), ErrorKind::MessageTooLarge),
            _ => assert!(result.is_ok(), "{place}: {result:?}"),
        }
    }
    send_numbers(&*producer, 0, 0..1).await;
}

async fn each_failure_to_connect_has_its_kind(kafka: &Kafka) {
    use mq_kafka::{KafkaConfig, KafkaMq, SaslMechanism};
    let (user, password) = Kafka::ALICE;
    let at = |listener| KafkaConfig::new([kafka.bootstrap(listener)]);
    let ca = || Some(kafka.certificates().ca_file());
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256] {
        let right = at(KafkaListener::Sasl).with_login(user, password, mechanism);
        KafkaMq::connect_with(right).await.unwrap();
        let wrong = at(KafkaListener::Sasl).with_login(user, "s3cr3t", mechanism);
        let refused = KafkaMq::connect_with(wrong).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Authentication, "{refused}");
        assert!(!format!("{refused:?}").contains("s3cr3t"));
    }
    KafkaMq::connect_with(at(KafkaListener::Tls).with_tls(ca()))
        .await
        .unwrap();
    let own = at(KafkaListener::SaslTls)
        .with_tls(ca())
        .with_login(user, password, SaslMechanism::Plain);
    KafkaMq::connect_with(own).await.unwrap();
    let stranger = tempfile();
    for (config, kind) in [
        (
            at(KafkaListener::Tls).with_tls(Some(stranger.clone())),
            ErrorKind::Tls,
        ),
        (
            at(KafkaListener::Tls).with_tls(Some("/nonexistent.pem".into())),
            ErrorKind::Tls,
        ),
        (at(KafkaListener::Tls), ErrorKind::Connection),
        (KafkaConfig::new(["127.0.0.1:1"]), ErrorKind::Connection),
        (
            KafkaConfig::new(["no-such-host.invalid:9092"]),
            ErrorKind::Connection,
        ),
    ] {
        let refused = KafkaMq::connect_with(config.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), kind, "{config:?}: {refused}");
    }
    let _ = std::fs::remove_file(stranger);
}

/// Writes a certificate that nobody here has signed with.
fn tempfile() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("mq-kafka-{}", std::process::id()));
    let other = test_brokers::Certificates::generate(&folder, &["localhost"]).unwrap();
    other.ca_file()
}

async fn foreign_topics_with_other_names_can_be_opened(kafka: &Kafka) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let mq = connect(kafka).await;
    let admin: AdminClient<rdkafka::client::DefaultClientContext> = mq.native_config().create().unwrap();
    let foreign = NewTopic::new("9lives_", 1, TopicReplication::Fixed(1));
    admin
        .create_topics([&foreign], &AdminOptions::new())
        .await
        .unwrap()[0]
        .as_ref()
        .unwrap();
    let topic = TopicName::existing("9lives_").unwrap();
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..3).await;
    let mut member = join(&mq, subscription(&topic, "foreign")).await;
    member.until("all", |m| m.received.len() == 3).await;
    assert!(mq.list_topics().await.unwrap().contains(&topic));
    member.consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_keeps_its_promises_on_a_real_broker() {
    let kafka = KafkaOptions::new().start().unwrap();
    macro_rules! all {
        ($($case:ident),* $(,)?) => {
            $(
                let limit = Duration::from_secs(120);
                eprintln!("{}", stringify!($case));
                tokio::time::timeout(limit, $case(&kafka)).await.expect(stringify!($case));
            )*
        };
    }
    all!(
        what_is_produced_is_consumed_in_order_with_its_offsets,
        commits_survive_the_member_with_acks_above_and_attempts,
        a_start_is_resolved_before_the_call_returns,
        a_member_seeks_both_ways_and_pauses,
        partitions_are_spread_and_move_on_join_and_leave,
        a_topic_is_gone_for_those_who_use_it_and_begins_anew,
        added_partitions_are_used_by_those_who_run,
        a_reader_reads_what_is_there_and_waits_for_more,
        an_oversized_message_fails_alone,
        foreign_topics_with_other_names_can_be_opened,
        each_failure_to_connect_has_its_kind,
    );
}
