//! The log: offsets, times, retention, readers.

use std::time::Duration;

use mq_api::{
    ErrorKind, Message, Position, Timestamp, TopicSpec,
    driver::{Event, FetchRequest, Fetched, Mq},
};
use mq_memory::MemoryMq;

use crate::support::*;

async fn fetch(mq: &MemoryMq, position: Position, max: usize) -> mq_api::Result<Fetched> {
    let reader = mq.reader(topic()).await.unwrap();
    reader.fetch(FetchRequest::new(0, position, max)).await
}

async fn offsets(mq: &MemoryMq, position: Position, max: usize) -> Vec<u64> {
    let fetched = fetch(mq, position, max).await.unwrap();
    fetched.records.iter().map(|record| record.offset).collect()
}

#[tokio::test]
async fn receipts_count_offsets_without_gaps_within_batches_and_between_them() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    let mut seen = Vec::new();
    for size in [1, 3, 100, 2] {
        for status in start(&producer, 0, vec![Message::new("x"); size]) {
            seen.push(status.await.unwrap().offset.unwrap());
        }
    }
    assert_eq!(seen, (0..106).collect::<Vec<u64>>());
    assert_eq!(
        offsets(&mq, Position::Offset(60), 1000).await,
        (60..106).collect::<Vec<u64>>()
    );
    let description = mq.describe_topic(topic()).await.unwrap();
    assert_eq!(
        (
            description.partitions[0].first_offset,
            description.partitions[0].next_offset
        ),
        (0, 106)
    );
}

#[tokio::test]
async fn a_reader_begins_where_it_is_told_and_not_beyond_the_end() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b", "c"]).await;
    assert_eq!(offsets(&mq, Position::Earliest, 2).await, [0, 1]);
    assert_eq!(offsets(&mq, Position::Offset(2), 10).await, [2]);
    assert!(offsets(&mq, Position::Latest, 10).await.is_empty());
    assert!(offsets(&mq, Position::Offset(3), 10).await.is_empty());
    let beyond = fetch(&mq, Position::Offset(4), 10).await.unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::OffsetOutOfRange);
    assert!(beyond.context().contains('4'), "{beyond}");
}

#[tokio::test]
async fn a_fetch_that_waits_ends_with_the_first_message_or_with_its_time() {
    let mq = broker(1).await;
    let reader = mq.reader(topic()).await.unwrap();
    let request = |wait| FetchRequest::new(0, Position::Latest, 10).with_wait(wait);
    let none = reader.fetch(request(Duration::from_millis(20))).await.unwrap();
    assert!(none.records.is_empty() && none.next_offset == 0);
    let waiting = tokio::spawn(async move { reader.fetch(request(PATIENCE)).await });
    tokio::task::yield_now().await;
    send(&mq, 0, ["a"]).await;
    let found = waiting.await.unwrap().unwrap();
    assert_eq!((found.records.len(), found.next_offset), (1, 1));
}

#[tokio::test]
async fn a_fetch_that_waits_ends_with_its_topic() {
    let mq = broker(1).await;
    let reader = mq.reader(topic()).await.unwrap();
    let request = FetchRequest::new(0, Position::Latest, 10).with_wait(PATIENCE);
    let waiting = tokio::spawn(async move { reader.fetch(request).await });
    tokio::task::yield_now().await;
    mq.delete_topics(vec![topic()]).await.remove(0).unwrap();
    assert_eq!(
        waiting.await.unwrap().unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
}

#[tokio::test]
async fn a_batch_stays_within_its_bytes_and_holds_one_message_at_least() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    for status in start(&producer, 0, vec![Message::new(vec![0; 1000]); 10]) {
        status.await.unwrap();
    }
    let reader = mq.reader(topic()).await.unwrap();
    let mut request = FetchRequest::new(0, Position::Earliest, 10);
    request.max_bytes = 3500;
    assert_eq!(reader.fetch(request.clone()).await.unwrap().records.len(), 3);
    request.max_bytes = 10;
    assert_eq!(reader.fetch(request).await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn times_are_looked_up_by_when_messages_were_appended_not_by_their_own() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    let old = Timestamp::from_millis(1000);
    try_send(&producer, 0, Message::new("a").with_timestamp(old))
        .await
        .unwrap();
    let between = loop {
        // The clock counts milliseconds: wait until it has moved on.
        let first = offset_time(&mq, Timestamp::now()).await;
        if first == 1 {
            break Timestamp::now();
        }
        tokio::task::yield_now().await;
    };
    try_send(&producer, 0, Message::new("b").with_timestamp(old))
        .await
        .unwrap();
    assert_eq!(offset_time(&mq, between).await, 1);
    assert_eq!(offset_time(&mq, Timestamp::from_millis(0)).await, 0);
    assert_eq!(
        offset_time(&mq, Timestamp::now().saturating_add(Duration::from_secs(60))).await,
        2
    );
    let fetched = fetch(&mq, Position::Earliest, 1).await.unwrap();
    assert_eq!(fetched.records.iter().next().unwrap().stored_at, old);
}

async fn offset_time(mq: &MemoryMq, time: Timestamp) -> u64 {
    mq.reader(topic())
        .await
        .unwrap()
        .offset_at(0, time)
        .await
        .unwrap()
}

#[tokio::test]
async fn retention_by_bytes_keeps_the_newest_and_bounds_what_is_kept() {
    const KEPT: u64 = 100_000;
    let mq = MemoryMq::new();
    let spec = TopicSpec::new("orders", 1).unwrap().with_retention_bytes(KEPT);
    mq.create_topic(spec).await.unwrap();
    let producer = producer(&mq).await;
    let message = Message::new(vec![0; 904]);
    assert_eq!(message.weight(), 1000);
    for _ in 0..100 {
        for status in start(&producer, 0, vec![message.clone(); 10]) {
            status.await.unwrap();
        }
    }
    let partition = mq.describe_topic(topic()).await.unwrap().partitions[0];
    let kept = (partition.next_offset - partition.first_offset) * 1000;
    assert!((KEPT..=KEPT + KEPT / 4).contains(&kept), "{kept} bytes are kept");
    assert_eq!(
        offsets(&mq, Position::Earliest, 1).await,
        [partition.first_offset]
    );
    assert_eq!(
        offsets(&mq, Position::Offset(5), 1).await,
        [partition.first_offset]
    );
}

#[tokio::test]
async fn retention_by_age_removes_what_is_old_though_nothing_new_comes() {
    let mq = MemoryMq::new();
    let spec = TopicSpec::new("orders", 1)
        .unwrap()
        .with_retention_age(Duration::from_millis(30));
    mq.create_topic(spec).await.unwrap();
    send(&mq, 0, ["a", "b"]).await;
    tokio::time::timeout(PATIENCE, async {
        while mq.describe_topic(topic()).await.unwrap().partitions[0].first_offset != 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    send(&mq, 0, ["c"]).await;
    assert_eq!(offsets(&mq, Position::Earliest, 10).await, [2]);
}

#[tokio::test]
async fn a_member_hears_what_was_trimmed_and_goes_on_behind_it() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b", "c"]).await;
    let mut member = join(&mq).await;
    member.assigned().await;
    mq.trim(&topic(), 0, 2).unwrap();
    match member.next().await {
        Ok(Event::Trimmed { from: 0, to: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(member.batch().await.1, ["c"]);
    mq.trim(&topic(), 0, 3).unwrap();
    assert!(member.now().is_none(), "what was read already is not missed");
    send(&mq, 0, ["d"]).await;
    assert_eq!(member.batch().await.1, ["d"]);
}

#[tokio::test]
async fn messages_are_kept_as_they_were_sent() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    let message = Message::tombstone("k")
        .with_id("7")
        .with_header("h", vec![0, 1])
        .with_header("e", "");
    try_send(&producer, 0, message.clone()).await.unwrap();
    let fetched = fetch(&mq, Position::Earliest, 1).await.unwrap();
    assert_eq!(fetched.records.iter().next().unwrap().message, message);
}
