//! The reader, on the memory backend.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use mq_api::{ErrorKind, Message, Mq, Position, ReadMessage, Reader, Timestamp};
use mq_memory::MemoryMq;

async fn topic(partitions: u32) -> Mq {
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic("t", partitions).await.unwrap();
    mq
}

async fn send(mq: &Mq, partition: u32, texts: &[&'static str]) {
    let producer = mq.producer("t").await.unwrap();
    for text in texts {
        producer.produce_to(partition, *text).await.unwrap();
    }
}

async fn read(reader: &Reader, n: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..n {
        let message = tokio::time::timeout(Duration::from_secs(5), reader.next())
            .await
            .expect("a message is there")
            .unwrap();
        texts.push(text(&message));
    }
    texts
}

fn text(message: &ReadMessage) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

#[tokio::test]
async fn partitions_take_turns_and_keep_their_order() {
    let mq = topic(2).await;
    send(&mq, 0, &["a1", "a2", "a3"]).await;
    send(&mq, 1, &["b1", "b2"]).await;
    let reader = mq.reader("t").await.unwrap();
    assert_eq!(read(&reader, 5).await, ["a1", "b1", "a2", "b2", "a3"]);
}

#[tokio::test]
async fn a_reader_waits_for_what_comes_and_loses_nothing_to_a_dropped_call() {
    let mq = topic(3).await;
    let reader = mq.reader("t").start_at(Position::Latest).await.unwrap();
    for round in 0..20 {
        let waiting = reader.clone();
        let cut = tokio::time::timeout(Duration::from_millis(1), waiting.next()).await;
        assert!(cut.is_err(), "nothing was sent in round {round}");
    }
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.next().await.unwrap() }
    });
    tokio::task::yield_now().await;
    send(&mq, 2, &["x", "y"]).await;
    assert_eq!(text(&waiting.await.unwrap()), "x");
    assert_eq!(read(&reader, 1).await, ["y"]);
}

#[tokio::test]
async fn it_starts_where_it_says() {
    let mq = topic(1).await;
    send(&mq, 0, &["a", "b", "c"]).await;
    let from = |position| mq.reader("t").start_at(position);
    assert_eq!(
        read(&from(Position::Offset(1)).await.unwrap(), 2).await,
        ["b", "c"]
    );
    let all = from(Position::Time(Timestamp::from_millis(0))).await.unwrap();
    assert_eq!(read(&all, 3).await, ["a", "b", "c"]);
    assert_eq!(
        from(Position::Offset(4)).await.unwrap_err().kind(),
        ErrorKind::OffsetOutOfRange
    );
    let latest = from(Position::Latest).await.unwrap();
    send(&mq, 0, &["d"]).await;
    assert_eq!(read(&latest, 1).await, ["d"]);
}

#[tokio::test]
async fn pull_returns_what_is_there_and_moves_nothing() {
    let mq = topic(2).await;
    send(&mq, 1, &["a", "b", "c"]).await;
    let reader = mq.reader("t").await.unwrap();
    let pulled = reader.pull(1, 1, 10).await.unwrap();
    assert_eq!(pulled.iter().map(text).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!((pulled[0].partition(), pulled[0].offset()), (1, 1));
    assert_eq!(reader.pull(1, 0, 2).await.unwrap().len(), 2);
    assert!(reader.pull(1, 3, 1).await.unwrap().is_empty());
    assert!(reader.pull(0, 0, 1).await.unwrap().is_empty());
    for (result, kind) in [
        (reader.pull(1, 4, 1).await, ErrorKind::OffsetOutOfRange),
        (reader.pull(2, 0, 1).await, ErrorKind::InvalidPartition),
        (reader.pull(1, 0, 0).await, ErrorKind::InvalidConfig),
    ] {
        assert_eq!(result.unwrap_err().kind(), kind);
    }
    assert_eq!(
        reader.offset_at(2, Timestamp::now()).await.unwrap_err().kind(),
        ErrorKind::InvalidPartition
    );
    assert_eq!(reader.bounds().await.unwrap()[1].next_offset, 3);
    assert_eq!(read(&reader, 3).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_busy_partition_starves_no_other() {
    let mq = topic(2).await;
    let producer = mq.producer("t").await.unwrap();
    producer
        .produce_batch((0..3000).map(|_| Message::new("busy").with_key("k")))
        .await;
    let busy = producer
        .produce(Message::new("busy").with_key("k"))
        .await
        .unwrap()
        .partition;
    send(&mq, 1 - busy, &["quiet"]).await;
    let reader = mq.reader("t").await.unwrap();
    assert!(read(&reader, 10).await.contains(&"quiet".to_owned()));
}

#[tokio::test]
async fn close_ends_a_call_that_waits() {
    let mq = topic(1).await;
    let reader = mq.reader("t").await.unwrap();
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.next().await }
    });
    tokio::task::yield_now().await;
    let (first, second) = tokio::join!(reader.close(), reader.close());
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(reader.bounds().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(reader.next().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn an_unknown_topic_is_not_found() {
    let mq = Mq::from_driver(MemoryMq::new());
    assert_eq!(
        mq.reader("none").await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
}
