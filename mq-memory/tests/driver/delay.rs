//! Messages that wait for their time.

use std::time::{Duration, Instant};

use mq_api::{ErrorKind, Message, Outcome, Timestamp, driver::Mq};
use mq_memory::{MemoryConfig, MemoryMq};

use crate::support::*;

const DELAY: Duration = Duration::from_millis(60);
/// The declared 50 ms, and what a busy machine needs to run the test itself.
const LATE: Duration = Duration::from_millis(50 + 450);

#[tokio::test]
async fn a_delayed_message_comes_after_its_delay_and_not_before() {
    let mq = broker(1).await;
    let mut member = join(&mq).await;
    member.assigned().await;
    let producer = producer(&mq).await;
    let start = Instant::now();
    let receipt = try_send(&producer, 0, Message::new("late").with_delay(DELAY))
        .await
        .unwrap();
    assert_eq!(receipt.offset, None);
    let plain = try_send(&producer, 0, "now").await.unwrap();
    assert_eq!(plain.offset, Some(0));
    assert_eq!(member.batch().await.1, ["now"]);
    assert_eq!(member.batch().await.1, ["late"]);
    let took = start.elapsed();
    assert!(took >= DELAY && took < DELAY + LATE, "{took:?}");
}

#[tokio::test]
async fn a_message_for_a_time_comes_at_that_time_and_a_past_one_at_once() {
    let mq = broker(1).await;
    let mut member = join(&mq).await;
    member.assigned().await;
    let producer = producer(&mq).await;
    let due = Timestamp::now().saturating_add(DELAY);
    try_send(&producer, 0, Message::new("late").with_deliver_at(due))
        .await
        .unwrap();
    let past = Message::new("past").with_deliver_at(Timestamp::from_millis(5));
    assert_eq!(try_send(&producer, 0, past).await.unwrap().offset, Some(0));
    assert_eq!(member.batch().await.1, ["past"]);
    assert_eq!(member.batch().await.1, ["late"]);
    assert!(Timestamp::now() >= due);
}

#[tokio::test]
async fn delayed_messages_of_a_batch_are_held_back_one_by_one_and_come_in_the_order_of_their_times() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    let after = |text: &'static str, millis| Message::new(text).with_delay(Duration::from_millis(millis));
    let batch = vec![
        after("c", 60),
        Message::new("a"),
        after("b", 20),
        Message::new("a2"),
    ];
    let mut offsets = Vec::new();
    for status in start(&producer, 0, batch) {
        offsets.push(status.await.unwrap().offset);
    }
    assert_eq!(offsets, [None, Some(0), None, Some(1)]);
    let mut member = join(&mq).await;
    member.assigned().await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(member.batch().await.1);
    }
    assert_eq!(seen, ["a", "a2", "b", "c"]);
}

#[tokio::test]
async fn delays_are_bounded_in_number_and_length() {
    let config = MemoryConfig::default()
        .with_max_delayed(1)
        .with_max_delay(Duration::from_secs(60));
    let mq = MemoryMq::with_config(config).unwrap();
    create(&mq, 1).await;
    let producer = producer(&mq).await;
    let delayed = |seconds| Message::new("x").with_delay(Duration::from_secs(seconds));
    let long = try_send(&producer, 0, delayed(61)).await.unwrap_err();
    assert_eq!(long.kind(), ErrorKind::InvalidMessage);
    try_send(&producer, 0, delayed(60)).await.unwrap();
    let full = try_send(&producer, 0, delayed(60)).await.unwrap_err();
    assert_eq!(
        (full.kind(), full.outcome()),
        (ErrorKind::ResourceExhausted, Outcome::NotSent)
    );
    assert!(full.is_retryable());
    try_send(&producer, 0, "plain").await.unwrap();
}

#[tokio::test]
async fn delayed_messages_survive_a_restart() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    try_send(&producer, 0, Message::new("late").with_delay(DELAY))
        .await
        .unwrap();
    mq.faults().restart();
    let mut member = join(&mq).await;
    member.assigned().await;
    assert_eq!(member.batch().await.1, ["late"]);
}

#[tokio::test]
async fn a_delayed_message_goes_with_its_topic() {
    let config = MemoryConfig::default().with_max_delayed(1);
    let mq = MemoryMq::with_config(config).unwrap();
    create(&mq, 1).await;
    let first = producer(&mq).await;
    try_send(&first, 0, Message::new("x").with_delay(Duration::from_millis(10)))
        .await
        .unwrap();
    mq.delete_topics(vec![topic()]).await.remove(0).unwrap();
    drop(first);
    create(&mq, 1).await;
    let producer = producer(&mq).await;
    // Its room is free again once its time has come, and it is not in the new topic.
    tokio::time::timeout(PATIENCE, async {
        while try_send(
            &producer,
            0,
            Message::new("y").with_delay(Duration::from_millis(1)),
        )
        .await
        .is_err()
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let mut member = join(&mq).await;
    member.assigned().await;
    assert_eq!(member.batch().await.1, ["y"]);
}
