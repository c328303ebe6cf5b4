//! What a nacked message holds up.

use std::time::Duration;

use mq_api::{Message, Ordering};

use super::nothing_but_new;
use crate::{
    context::Context,
    failure::{CaseResult, ensure},
    flow::{self, each_once, in_order, numbered, one, send_messages, send_to, take, take_acked},
};

/// How long the nacked message is away. Everything else must come while it is.
const AWAY: Duration = Duration::from_secs(2);

/// G12 ordering: without an ordering option a nacked message holds up no other.
pub(super) async fn nacked_message_holds_up_no_other(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("free", 1).await?;
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let sent = numbered("f", 20);
    send_to(&cx, &mq.producer(&topic).await?, 0, &sent).await?;
    let first = one(&cx, &consumer).await?;
    ensure!(
        flow::text(&first) == sent[0],
        "{:?} came first",
        flow::text(&first)
    );
    first.nack_after(AWAY)?;
    let taken = take_acked(&cx, &consumer, sent.len()).await?;
    let came: Vec<_> = taken.iter().map(|t| &t.payload).collect();
    let mut expected: Vec<_> = sent[1..].to_vec();
    expected.push(sent[0].clone());
    in_order("messages behind a nacked one, which comes last", &came, &expected)?;
    nothing_but_new(&cx, mq, &consumer).await
}

/// G12 ordering: by key a nacked message blocks its key and only it; by partition, its partition and only it.
pub(super) async fn nacked_message_blocks_its_lane_only(cx: Context) -> CaseResult {
    by_key(&cx)
        .await
        .map_err(|failure| failure.during("ordering by key"))?;
    by_partition(&cx)
        .await
        .map_err(|failure| failure.during("ordering by partition"))
}

async fn by_key(cx: &Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("keys", 1).await?;
    let consumer = mq
        .consumer(&topic, cx.name("group"))
        .ordering(Ordering::Key)
        .await?;
    let messages: Vec<Message> = ["a-1", "b-1", "a-2", "b-2", "a-3", "b-3"]
        .into_iter()
        .map(|payload| Message::new(payload).with_key(payload[..1].to_owned()))
        .collect();
    send_messages(cx, &mq.producer(&topic).await?, messages).await?;
    // One un-settled delivery of each key at a time.
    let mut open = take(cx, &consumer, 2).await?;
    open.sort_by_key(flow::text);
    let names: Vec<_> = open.iter().map(flow::text).collect();
    ensure!(
        names == ["a-1", "b-1"],
        "{names:?} came first, one of each key should"
    );
    cx.stays_pending(
        "a second message of a key that has an un-settled one was handed over",
        Duration::from_millis(300),
        consumer.consume(),
    )
    .await?;
    let (Some(b), Some(a)) = (open.pop(), open.pop()) else {
        return Ok(());
    };
    a.nack_after(AWAY)?;
    b.ack()?;
    for expected in ["b-2", "b-3"] {
        let delivery = one(cx, &consumer).await?;
        ensure!(
            flow::text(&delivery) == expected,
            "with key a away, {:?} came and {expected} was next",
            flow::text(&delivery)
        );
        delivery.ack()?;
    }
    for (expected, attempt) in [("a-1", 2), ("a-2", 1), ("a-3", 1)] {
        let delivery = one(cx, &consumer).await?;
        ensure!(
            flow::text(&delivery) == expected && delivery.attempt() == attempt,
            "key a goes on with {:?}, attempt {}; {expected}, attempt {attempt} was next",
            flow::text(&delivery),
            delivery.attempt()
        );
        delivery.ack()?;
    }
    nothing_but_new(cx, mq, &consumer).await
}

async fn by_partition(cx: &Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("lanes", 2).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq
        .consumer(&topic, cx.name("group"))
        .ordering(Ordering::Partition)
        .await?;
    let (zero, one_) = (numbered("zero", 4), numbered("one", 4));
    send_to(cx, &producer, 0, &zero).await?;
    send_to(cx, &producer, 1, &one_).await?;
    let open = take(cx, &consumer, 2).await?;
    let mut names: Vec<_> = open.iter().map(flow::text).collect();
    names.sort();
    ensure!(
        names == ["one-0000", "zero-0000"],
        "{names:?} came first, one of each partition should"
    );
    cx.stays_pending(
        "a second message of a partition that has an un-settled one was handed over",
        Duration::from_millis(300),
        consumer.consume(),
    )
    .await?;
    for delivery in open {
        if delivery.partition() == 0 {
            delivery.nack_after(AWAY)?;
        } else {
            delivery.ack()?;
        }
    }
    let taken = take_acked(cx, &consumer, 3).await?;
    each_once(
        "the other partition",
        taken.iter().map(|t| &t.payload),
        &one_[1..],
    )?;
    let taken = take_acked(cx, &consumer, 4).await?;
    let came: Vec<_> = taken.iter().map(|t| &t.payload).collect();
    in_order("the partition of the nacked message", &came, &zero)?;
    ensure!(
        taken[0].attempt == 2,
        "the nacked message came again as attempt {}",
        taken[0].attempt
    );
    nothing_but_new(cx, mq, &consumer).await
}
