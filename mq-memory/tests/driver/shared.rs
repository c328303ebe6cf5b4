//! Shared groups: members compete for single messages.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{
    Clock, ErrorKind, Message, Position,
    driver::{CommittedRequest, Mq, QueueConsumer, QueueReceipt, QueueRecord},
};
use mq_memory::{MemoryConfig, MemoryMq};

use crate::support::*;

async fn receive(member: &Arc<dyn QueueConsumer>, max: usize) -> Vec<QueueRecord> {
    tokio::time::timeout(PATIENCE, member.receive(max))
        .await
        .expect("a message comes")
        .unwrap()
}

async fn one(member: &Arc<dyn QueueConsumer>) -> QueueRecord {
    let mut records = receive(member, 1).await;
    assert_eq!(records.len(), 1);
    records.remove(0)
}

fn text(record: &QueueRecord) -> &str {
    std::str::from_utf8(record.record.message.payload_or_empty()).unwrap()
}

async fn ack(member: &Arc<dyn QueueConsumer>, record: &QueueRecord) -> mq_api::Result<()> {
    member.ack(vec![record.receipt.clone()]).await.remove(0)
}

async fn nothing_comes(member: &Arc<dyn QueueConsumer>) {
    let wait = Duration::from_millis(20);
    assert!(tokio::time::timeout(wait, member.receive(1)).await.is_err());
}

async fn with_lease(lease: Duration) -> MemoryMq {
    let mq = MemoryMq::with_config(MemoryConfig::default().with_shared_lease(lease)).unwrap();
    create(&mq, 1).await;
    mq
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_members_than_partitions_all_work_and_each_message_goes_to_one() {
    const MESSAGES: usize = 400;
    let mq = broker(2).await;
    let (seen, mut all) = tokio::sync::mpsc::channel(1000);
    let mut members = tokio::task::JoinSet::new();
    for number in 0..5 {
        let (member, seen) = (join_shared(&mq).await, seen.clone());
        members.spawn(async move {
            loop {
                let record = one(&member).await;
                ack(&member, &record).await.unwrap();
                seen.send((number, record.partition, record.record.offset))
                    .await
                    .unwrap();
                tokio::task::yield_now().await;
            }
        });
    }
    let producer = producer(&mq).await;
    for index in 0..MESSAGES {
        try_send(&producer, (index % 2) as u32, "x").await.unwrap();
        tokio::task::yield_now().await;
    }
    let (mut messages, mut workers) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..MESSAGES {
        let (number, partition, offset) = tokio::time::timeout(PATIENCE, all.recv()).await.unwrap().unwrap();
        assert!(messages.insert((partition, offset)));
        workers.insert(number);
    }
    assert_eq!(workers.len(), 5);
    members.shutdown().await;
}

#[tokio::test]
async fn every_retained_message_is_seen_and_latest_sees_only_what_follows() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b"]).await;
    let mut latest = subscription();
    latest.group = mq_api::GroupName::new("latest").unwrap();
    latest.start = Position::Latest;
    let latest = mq.queue_consumer(latest).await.unwrap();
    let member = join_shared(&mq).await;
    assert_eq!(
        receive(&member, 10).await.iter().map(text).collect::<Vec<_>>(),
        ["a", "b"]
    );
    nothing_comes(&latest).await;
    send(&mq, 0, ["c"]).await;
    assert_eq!(text(&one(&latest).await), "c");
}

#[tokio::test]
async fn an_acked_message_does_not_come_again_and_an_unacked_one_does_when_its_holder_leaves() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b", "c"]).await;
    let first = join_shared(&mq).await;
    let held = receive(&first, 3).await;
    ack(&first, &held[1]).await.unwrap();
    assert_eq!(
        ack(&first, &held[1]).await.unwrap_err().kind(),
        ErrorKind::StaleAck
    );
    let committed = mq
        .committed(CommittedRequest::new(topic(), group()))
        .await
        .unwrap()
        .remove(0);
    assert_eq!((committed.position, committed.acked_above), (0, range(1, 2)));
    let second = join_shared(&mq).await;
    nothing_comes(&second).await;
    first.close().await.unwrap();
    first.close().await.unwrap();
    assert_eq!(first.receive(1).await.unwrap_err().kind(), ErrorKind::Closed);
    let again = receive(&second, 5).await;
    assert_eq!(
        again.iter().map(|r| (text(r), r.attempt)).collect::<Vec<_>>(),
        [("a", 2), ("c", 2)]
    );
    for record in &again {
        ack(&second, record).await.unwrap();
    }
    let committed = mq
        .committed(CommittedRequest::new(topic(), group()))
        .await
        .unwrap()
        .remove(0);
    assert_eq!((committed.position, committed.acked_above.len()), (3, 0));
}

#[tokio::test]
async fn a_nacked_message_comes_back_after_its_delay_with_its_attempt_counted() {
    const DELAY: Duration = Duration::from_millis(60);
    let mq = broker(1).await;
    send(&mq, 0, ["a"]).await;
    let member = join_shared(&mq).await;
    let record = one(&member).await;
    assert_eq!(record.attempt, 1);
    let start = Instant::now();
    member
        .nack(vec![(record.receipt.clone(), DELAY)])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(
        ack(&member, &record).await.unwrap_err().kind(),
        ErrorKind::StaleAck
    );
    let again = one(&member).await;
    let took = start.elapsed();
    assert!(
        took >= DELAY && took < DELAY + Duration::from_millis(500),
        "{took:?}"
    );
    assert_eq!(again.attempt, 2);
    member
        .nack(vec![(again.receipt, Duration::ZERO)])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(one(&member).await.attempt, 3);
}

#[tokio::test]
async fn a_message_comes_to_another_when_its_lease_is_over_and_the_late_ack_is_refused() {
    let mq = with_lease(Duration::from_millis(40)).await;
    send(&mq, 0, ["a"]).await;
    let (first, second) = (join_shared(&mq).await, join_shared(&mq).await);
    let held = one(&first).await;
    let again = one(&second).await;
    assert_eq!(again.attempt, 2);
    assert_eq!(ack(&first, &held).await.unwrap_err().kind(), ErrorKind::StaleAck);
    assert!(first.extend(vec![held.receipt]).await.remove(0).is_err());
    ack(&second, &again).await.unwrap();
}

#[tokio::test]
async fn an_extended_lease_keeps_the_message_by_the_members_own_clock() {
    let lease = Duration::from_secs(30);
    let mq = with_lease(lease).await;
    let clock = Clock::manual();
    let mut subscription = subscription();
    subscription.clock = clock.clone();
    let first = mq.queue_consumer(subscription).await.unwrap();
    let second = join_shared(&mq).await;
    assert_eq!(first.lease(), lease);
    send(&mq, 0, ["a"]).await;
    let held = one(&first).await;
    assert_eq!(held.lease_until, clock.now() + lease);
    clock.advance(Duration::from_secs(20));
    let (receipt, until) = first.extend(vec![held.receipt]).await.remove(0).unwrap();
    assert_eq!(until, clock.now() + lease);
    clock.advance(Duration::from_secs(29));
    nothing_comes(&second).await;
    clock.advance(Duration::from_secs(2));
    assert_eq!(one(&second).await.attempt, 2);
    assert_eq!(
        first.ack(vec![receipt]).await.remove(0).unwrap_err().kind(),
        ErrorKind::StaleAck
    );
}

#[tokio::test]
async fn a_receive_that_is_dropped_takes_nothing() {
    let mq = broker(1).await;
    let member = join_shared(&mq).await;
    for _ in 0..50 {
        assert!(
            tokio::time::timeout(Duration::ZERO, member.receive(1))
                .await
                .is_err()
        );
    }
    send(&mq, 0, ["a"]).await;
    let record = one(&member).await;
    assert_eq!((text(&record), record.attempt), ("a", 1));
}

#[tokio::test]
async fn what_is_handed_out_and_not_settled_is_bounded() {
    let mq = MemoryMq::with_config(MemoryConfig::default().with_max_unsettled(2)).unwrap();
    create(&mq, 1).await;
    send(&mq, 0, ["a", "b", "c"]).await;
    let member = join_shared(&mq).await;
    let held = receive(&member, 10).await;
    assert_eq!(held.len(), 2);
    nothing_comes(&member).await;
    ack(&member, &held[0]).await.unwrap();
    assert_eq!(text(&one(&member).await), "c");
}

#[tokio::test]
async fn a_restart_gives_back_what_was_held_and_is_told_once() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b"]).await;
    let member = join_shared(&mq).await;
    let held = receive(&member, 2).await;
    ack(&member, &held[0]).await.unwrap();
    mq.faults().restart();
    let outage = member.receive(1).await.unwrap_err();
    assert_eq!(outage.kind(), ErrorKind::Connection);
    assert!(outage.is_retryable());
    let again = one(&member).await;
    assert_eq!((text(&again), again.attempt), ("b", 2));
    assert_eq!(
        ack(&member, &held[1]).await.unwrap_err().kind(),
        ErrorKind::StaleAck
    );
}

#[tokio::test]
async fn a_deleted_topic_ends_its_members() {
    let mq = broker(1).await;
    let member = join_shared(&mq).await;
    let waiting = tokio::spawn(async move { member.receive(1).await });
    tokio::task::yield_now().await;
    mq.delete_topics(vec![topic()]).await.remove(0).unwrap();
    assert_eq!(
        waiting.await.unwrap().unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
}

#[tokio::test]
async fn added_partitions_are_seen_and_trimmed_messages_are_not() {
    let mq = broker(1).await;
    let member = join_shared(&mq).await;
    mq.add_partitions(topic(), 2).await.unwrap();
    send(&mq, 1, ["new"]).await;
    let record = one(&member).await;
    assert_eq!((record.partition, text(&record)), (1, "new"));
    send(&mq, 0, ["a", "b"]).await;
    let held = one(&member).await;
    mq.trim(&topic(), 0, 1).unwrap();
    member
        .nack(vec![(held.receipt, Duration::ZERO)])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(text(&one(&member).await), "b");
    nothing_comes(&member).await;
}

#[tokio::test]
async fn a_receipt_that_is_not_ours_is_refused() {
    let mq = broker(1).await;
    let member = join_shared(&mq).await;
    for bytes in [&b""[..], &[0; 20], &[7; 21]] {
        let receipt = QueueReceipt(bytes::Bytes::copy_from_slice(bytes));
        assert_eq!(
            member.ack(vec![receipt]).await.remove(0).unwrap_err().kind(),
            ErrorKind::StaleAck
        );
    }
    let producer = producer(&mq).await;
    try_send(&producer, 0, Message::new("a")).await.unwrap();
    assert_eq!(text(&one(&member).await), "a");
}
