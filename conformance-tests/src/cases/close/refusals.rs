//! What every call gives after close.

use std::time::Duration;

use mq_api::{Consumer, ErrorKind, Mq, Position, Producer, Reader, Result, Timestamp};

use crate::{
    cases::steps::reader,
    context::Context,
    failure::{CaseResult, ensure},
    flow::{one, refused, send_to},
};

pub(crate) type Calls = Vec<(&'static str, Result<()>)>;

/// Z2: after close every call of a producer, a consumer, a reader and a client is `Closed`, at once. Guarantee 7.
pub(super) async fn every_call_after_close_is_closed(cx: Context) -> CaseResult {
    let mq = cx.connect().await?;
    let topic = cx.topic("closed", 2).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let reader = reader(&cx, &mq, &topic).await?;
    send_to(&cx, &producer, 0, &["m".to_owned()]).await?;
    let held = one(&cx, &consumer).await?;
    let channel = consumer.channel(4)?;

    producer.close().await?;
    check(&cx, "producer", of_producer(&producer)).await?;
    consumer.close().await?;
    check(&cx, "consumer", of_consumer(&consumer, channel)).await?;
    let stale = held.ack();
    ensure!(
        stale
            .as_ref()
            .is_err_and(|error| matches!(error.kind(), ErrorKind::Closed | ErrorKind::StaleAck)),
        "an ack after the close of its consumer gave {stale:?}"
    );
    if let Some(reader) = reader {
        reader.close().await?;
        check(&cx, "reader", of_reader(&reader)).await?;
    }
    mq.close().await?;
    check(&cx, "client", of_client(&mq, &topic)).await
}

/// Makes the calls of something that is closed, and checks that each is `Closed`, at once.
pub(crate) async fn check(cx: &Context, what: &str, calls: impl Future<Output = Calls>) -> CaseResult {
    // None of these does I/O: the limit is for one that hangs.
    let calls = cx
        .within(
            format!("the calls of a closed {what}"),
            Duration::from_secs(10),
            calls,
        )
        .await?;
    for (call, result) in calls {
        refused(&format!("{call} of a closed {what}"), result, ErrorKind::Closed)?;
    }
    Ok(())
}

async fn of_producer(producer: &Producer) -> Calls {
    let mut batch = producer.produce_batch(["a", "b"].map(str::to_owned)).await;
    let mut calls = vec![
        ("produce", producer.produce("m").await.map(drop)),
        ("produce_to", producer.produce_to(0, "m").await.map(drop)),
        ("enqueue", producer.enqueue("m").await.map(drop)),
        ("enqueue_to", producer.enqueue_to(0, "m").await.map(drop)),
        ("try_enqueue", producer.try_enqueue("m").map(drop)),
        ("send_one_way", producer.send_one_way("m")),
        ("flush", producer.flush().await),
    ];
    calls.extend(batch.drain(..).map(|result| ("produce_batch", result.map(drop))));
    calls
}

async fn of_consumer(consumer: &Consumer, mut channel: mq_api::Channel) -> Calls {
    vec![
        ("consume", consumer.consume().await.map(drop)),
        ("consume_batch", consumer.consume_batch(1).await.map(drop)),
        ("try_consume", consumer.try_consume().map(drop)),
        ("channel", consumer.channel(1).map(drop)),
        ("recv of a channel", channel.recv().await.map(drop)),
        ("pause", consumer.pause()),
        ("resume", consumer.resume()),
        ("pause_partitions", consumer.pause_partitions(&[0])),
        ("resume_partitions", consumer.resume_partitions(&[0])),
        ("seek", consumer.seek(0, Position::Earliest).await.map(drop)),
        ("committed", consumer.committed().await.map(drop)),
        ("lag", consumer.lag().await.map(drop)),
        ("commit", consumer.commit().await),
    ]
}

async fn of_reader(reader: &Reader) -> Calls {
    vec![
        ("next", reader.next().await.map(drop)),
        ("pull", reader.pull(0, 0, 1).await.map(drop)),
        (
            "offset_at",
            reader.offset_at(0, Timestamp::from_millis(0)).await.map(drop),
        ),
        ("bounds", reader.bounds().await.map(drop)),
    ]
}

async fn of_client(mq: &Mq, topic: &str) -> Calls {
    let mut calls = vec![
        ("create_topic", mq.create_topic(topic, 2).await),
        ("describe_topic", mq.describe_topic(topic).await.map(drop)),
        ("delete_topic", mq.delete_topic(topic).await),
        ("committed", mq.committed(topic, topic).await.map(drop)),
        ("producer", mq.producer(topic).await.map(drop)),
        ("consumer", mq.consumer(topic, topic).await.map(drop)),
    ];
    let can = mq.capabilities();
    if can.list_topics.is_supported() {
        calls.push(("list_topics", mq.list_topics().await.map(drop)));
    }
    if can.add_partitions.is_supported() {
        calls.push(("add_partitions", mq.add_partitions(topic, 3).await));
    }
    if can.lag.is_supported() {
        calls.push(("lag", mq.lag(topic, topic).await.map(drop)));
    }
    if can.reader.is_supported() {
        calls.push(("reader", mq.reader(topic).await.map(drop)));
    }
    calls
}
