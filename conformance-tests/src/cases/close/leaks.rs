//! What is left behind.

use std::time::Duration;

use mq_api::{Mq, Reader};

use crate::{
    cases::{resources::Held, steps::reader},
    context::Context,
    failure::{CaseResult, Failure, note},
    flow::{one, send_to},
};

/// How long threads of a pool may wait for more work before they end.
const SETTLE: Duration = Duration::from_secs(30);

/// Z7: clients, producers, consumers with deliveries out, channels and readers that are dropped without close leave no
/// thread, task or descriptor behind. Guarantee 7.
pub(super) async fn what_is_dropped_is_gone(cx: Context) -> CaseResult {
    let topic = cx.topic("dropped", 2).await?;
    // What is started once and kept by the process is started by the first round.
    drop_all(&cx, &topic, 0).await?;
    let before = settled(&cx).await?;
    for round in 1..=5 {
        drop_all(&cx, &topic, round).await?;
    }
    back_to(
        &cx,
        "five rounds in which everything was dropped without close",
        before,
    )
    .await
}

/// Z8: a hundred rounds of open, use and close end with the threads, tasks and descriptors of the first. Guarantee 7.
pub(super) async fn hundred_rounds_end_where_they_began(cx: Context) -> CaseResult {
    const ROUNDS: usize = 100;
    let topic = cx.topic("rounds", 2).await?;
    close_all(&cx, &topic).await?;
    let before = settled(&cx).await?;
    for _ in 0..ROUNDS {
        close_all(&cx, &topic).await?;
    }
    back_to(&cx, "a hundred rounds of open and close", before).await
}

async fn drop_all(cx: &Context, topic: &str, round: usize) -> CaseResult {
    let mq = client(cx).await?;
    let producer = mq.producer(topic).await?;
    let consumer = mq.consumer(topic, format!("group-{round}")).await?;
    let reader = reader(cx, &mq, topic).await?;
    send_to(
        cx,
        &producer,
        0,
        &["a".to_owned(), "b".to_owned(), "c".to_owned()],
    )
    .await?;
    let held = one(cx, &consumer).await?;
    one(cx, &consumer).await?.ack()?;
    let mut channel = consumer.channel(4)?;
    let through = cx
        .within("a delivery by the channel", cx.times().progress, channel.recv())
        .await??;
    read_one(cx, reader.as_ref()).await?;
    let pending = producer.enqueue("d").await?;
    drop((pending, channel, through, held, reader, producer, consumer, mq));
    Ok(())
}

async fn close_all(cx: &Context, topic: &str) -> CaseResult {
    let mq = client(cx).await?;
    let producer = mq.producer(topic).await?;
    let consumer = mq.consumer(topic, topic).await?;
    let reader = reader(cx, &mq, topic).await?;
    send_to(cx, &producer, 0, &["m".to_owned()]).await?;
    one(cx, &consumer).await?.ack()?;
    read_one(cx, reader.as_ref()).await?;
    cx.within("close of the client", cx.times().progress, mq.close())
        .await??;
    Ok(())
}

async fn read_one(cx: &Context, reader: Option<&Reader>) -> CaseResult {
    if let Some(reader) = reader {
        cx.within("a message by the reader", cx.times().progress, reader.next())
            .await??;
    }
    Ok(())
}

/// Opens a client that nobody but the caller keeps.
async fn client(cx: &Context) -> CaseResult<Mq> {
    let connect = cx.harness().connect(cx.url());
    Ok(cx.within("connect", cx.times().progress, connect).await??)
}

/// Waits until the counts stand still, and returns them.
async fn settled(cx: &Context) -> CaseResult<Held> {
    let mut last = Held::now()?;
    let mut still = 0;
    while still < 20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = Held::now()?;
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    note!(cx, "the first round leaves {last}");
    Ok(last)
}

async fn back_to(cx: &Context, what: &str, before: Held) -> CaseResult {
    let back = cx
        .eventually("the count of the first round", SETTLE, || async move {
            Ok(Held::now()?.is_within(&before).then_some(()))
        })
        .await;
    match back {
        Ok(()) => Ok(()),
        Err(_) => Err(Failure::new(format!(
            "left behind by {what}: {} are held after {SETTLE:?}, the first round left {before}",
            Held::now()?
        ))),
    }
}
