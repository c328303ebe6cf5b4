//! What a topic keeps, and what it lets go.

use std::time::Duration;

use mq_api::{Mq, TopicSpec};

use crate::{
    capability::Capability,
    context::Context,
    failure::{CaseResult, Failure, ensure, note},
    flow::{each_once, numbered, send, send_to, take_acked, text},
};

/// G17 topics: a topic that was told how long, or how much, to keep lets the oldest messages go, keeps the others, and a new
/// group begins at what is left. Where the driver declares no time for it, only that it can be told is proved.
pub(super) async fn retention_removes_the_oldest(cx: Context) -> CaseResult {
    let ways = [Capability::RetentionAge, Capability::RetentionBytes];
    if !ways.iter().any(|way| cx.can(*way)) {
        for way in ways {
            crate::refusal::verify(&cx, way).await?;
        }
        cx.refused("retention_age and retention_bytes: declared as unsupported");
        return Ok(());
    }
    for way in ways.into_iter().filter(|way| cx.can(*way)) {
        let kept = match (way, cx.times().retention) {
            (Capability::RetentionAge, Some(slack)) => by_age(&cx, slack).await,
            (Capability::RetentionAge, None) => {
                can_be_told(&cx, |spec| spec.with_retention_age(Duration::from_secs(3600))).await
            }
            (_, Some(slack)) => by_bytes(&cx, slack).await,
            (_, None) => can_be_told(&cx, |spec| spec.with_retention_bytes(64 * 1024 * 1024)).await,
        };
        kept.map_err(|failure| failure.during(way.name()))?;
    }
    Ok(())
}

async fn create(
    cx: &Context,
    mq: &Mq,
    hint: &str,
    set: impl FnOnce(TopicSpec) -> TopicSpec,
) -> CaseResult<String> {
    let name = cx.name(hint);
    cx.delete_later(&name);
    mq.create_topic_with(set(TopicSpec::new(&name, 1)?)).await?;
    Ok(name)
}

/// A topic with a retention of its own can be made and used.
async fn can_be_told(cx: &Context, set: impl FnOnce(TopicSpec) -> TopicSpec) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = create(cx, mq, "kept", set).await?;
    let sent = numbered("kept", 5);
    send(cx, &mq.producer(&topic).await?, &sent).await?;
    let consumer = mq.consumer(&topic, "g").await?;
    let taken = take_acked(cx, &consumer, sent.len()).await?;
    each_once(
        "a topic with a retention of its own",
        taken.iter().map(|t| &t.payload),
        &sent,
    )?;
    note!(
        cx,
        "no time for retention is declared: that it removes anything is not proved"
    );
    Ok(())
}

async fn bounds(mq: &Mq, topic: &str) -> CaseResult<(u64, u64)> {
    let described = mq.describe_topic(topic).await?;
    let first = described.partitions.first();
    let bounds = first.map(|one| (one.first_offset, one.next_offset));
    bounds.ok_or_else(|| Failure::new(format!("the topic has no partition: {described:?}")))
}

async fn by_age(cx: &Context, slack: Duration) -> CaseResult {
    const AGE: Duration = Duration::from_secs(3);
    const ROUNDS: usize = 5;
    let mq = cx.mq().await?;
    let topic = create(cx, mq, "aged", |spec| spec.with_retention_age(AGE)).await?;
    let producer = mq.producer(&topic).await?;
    let begun = tokio::time::Instant::now();
    send_to(cx, &producer, 0, &numbered("old", 20)).await?;
    let (first, end) = bounds(mq, &topic).await?;
    ensure!(
        end > first || begun.elapsed() >= AGE,
        "lost: messages are to be kept for {AGE:?}, and after {:?} none is there",
        begun.elapsed()
    );
    cx.eventually(
        format!("messages older than {AGE:?} are removed"),
        AGE + slack,
        || async { Ok((bounds(mq, &topic).await?.0 >= end).then_some(())) },
    )
    .await?;
    note!(
        cx,
        "messages of {AGE:?} were gone {:?} after they were sent",
        begun.elapsed()
    );
    // What is younger is kept: one of a few is looked at in time, however busy the machine is.
    for round in 1..=ROUNDS {
        let payload = format!("young-{round}");
        let sent = tokio::time::Instant::now();
        send_to(cx, &producer, 0, std::slice::from_ref(&payload)).await?;
        let consumer = mq.consumer(&topic, cx.name("group")).await?;
        let came = tokio::time::timeout(cx.times().progress, consumer.consume()).await;
        if let Ok(came) = came {
            let came = came?;
            ensure!(
                text(&came) == payload,
                "a new group begins with {:?}, which should be gone",
                text(&came)
            );
            return Ok(());
        }
        ensure!(
            sent.elapsed() >= AGE,
            "lost: {payload} was sent {:?} ago and is to be kept for {AGE:?}",
            sent.elapsed()
        );
    }
    Err(Failure::new(format!(
        "{ROUNDS} messages that are to be kept for {AGE:?} did not reach a group that was opened at once"
    )))
}

async fn by_bytes(cx: &Context, slack: Duration) -> CaseResult {
    const KEEP: u64 = 512 * 1024;
    const SIZE: usize = 8 * 1024;
    const SENT: usize = 256;
    let mq = cx.mq().await?;
    let topic = create(cx, mq, "sized", |spec| spec.with_retention_bytes(KEEP)).await?;
    let producer = mq.producer(&topic).await?;
    let sent: Vec<String> = (0..SENT)
        .map(|at| {
            let filler: String = std::iter::repeat_with(fastrand::alphanumeric)
                .take(SIZE)
                .collect();
            format!("{at:04}-{filler}")
        })
        .collect();
    let (first, _) = bounds(mq, &topic).await?;
    send_to(cx, &producer, 0, &sent).await?;
    // What is kept is counted by reading it: offsets need not be dense. A backend may keep twice as much, in larger pieces,
    // and no less than half.
    let most = 2 * usize::try_from(KEEP).unwrap_or(usize::MAX) / SIZE;
    let least = usize::try_from(KEEP).unwrap_or(usize::MAX) / SIZE / 2;
    cx.eventually(
        format!("{SENT} messages of {SIZE} bytes shrink to {KEEP} bytes"),
        slack,
        || async {
            if bounds(mq, &topic).await?.0 <= first {
                return Ok(None);
            }
            let kept = read_all(cx, mq, &topic, sent.last()).await?;
            note!(cx, "{kept} messages are kept");
            ensure!(
                kept >= least,
                "lost: {kept} messages of {SIZE} bytes are kept, where {KEEP} bytes are to be"
            );
            Ok((kept <= most).then_some(()))
        },
    )
    .await
}

/// Counts what a new group gets, up to the last message.
async fn read_all(cx: &Context, mq: &Mq, topic: &str, last: Option<&String>) -> CaseResult<usize> {
    let consumer = mq.consumer(topic, cx.name("group")).await?;
    let mut count = 0;
    loop {
        let delivery = cx
            .within("a message that is kept", cx.times().progress, consumer.consume())
            .await??;
        count += 1;
        let done = last.is_none_or(|last| text(&delivery) == *last);
        delivery.ack()?;
        if done {
            consumer.close().await?;
            return Ok(count);
        }
    }
}
