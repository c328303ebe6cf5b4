//! Positions that retention has overtaken.

use mq_api::{ErrorKind, Offset, OnTrimmed, TopicSpec};

use crate::{
    capability::Capability,
    cases::steps::payloads,
    context::Context,
    failure::{CaseResult, ensure, fail},
    flow::{in_order, numbered, refused, send_to, take_acked, take_until},
};

/// C15: a group whose position is no longer retained goes on at the earliest message and the status counts what was
/// skipped; with `on_trimmed` it goes on at the latest, counted too, or its consumer ends with `OffsetOutOfRange`.
/// Guarantee 4.
pub(super) async fn position_below_what_is_retained_goes_on(cx: Context) -> CaseResult {
    const DONE: usize = 10;
    const TRIM: usize = 40;
    let limit = cx.times().progress;
    let mq = cx.mq().await?;
    let topic = cx.name("trim");
    cx.delete_later(&topic);
    let spec = cx.harness().to_be_trimmed(TopicSpec::new(&topic, 1)?);
    mq.create_topic_with(spec).await?;
    let producer = mq.producer(&topic).await?;
    let sent = numbered("m", 60);
    send_to(&cx, &producer, 0, &sent).await?;
    for group in ["earliest", "latest", "error"] {
        let consumer = mq.consumer(&topic, group).await?;
        take_acked(&cx, &consumer, DONE).await?;
        consumer.close().await?;
    }
    let all = mq.consumer(&topic, "offsets").await?;
    let offsets: Vec<_> = take_acked(&cx, &all, sent.len())
        .await?
        .iter()
        .map(|one| one.offset)
        .collect();
    all.close().await?;

    cx.fault(
        "trim what the groups have not read",
        cx.server().trim(&topic, 0, offsets[TRIM]),
    )
    .await?;
    let description = mq.describe_topic(&topic).await?;
    let Some(first) = description.partitions.first().map(|one| one.first_offset) else {
        fail!("the topic has no partition: {description:?}");
    };
    // A backend that removes in larger pieces may keep or drop some more, but it has to pass the groups' position.
    let kept = offsets.partition_point(|offset| *offset < first);
    ensure!(
        kept > DONE,
        "the harness was to trim below offset {}, and the topic begins at {first}",
        offsets[TRIM]
    );
    let skipped = format!("the position {} was moved to {first}", offsets[DONE]);

    let consumer = mq.consumer(&topic, "earliest").await?;
    let came = take_until(&cx, &consumer, &sent[kept..]).await?;
    in_order("on_trimmed earliest", &payloads(&came), &sent[kept..])?;
    // Where nothing is left, no message tells that the consumer has met the gap.
    cx.eventually("a count of what was skipped", limit, || {
        let trimmed = consumer.status().trimmed;
        async move { Ok((trimmed > 0).then_some(())) }
    })
    .await
    .map_err(|failure| failure.during(format!("skipped without a word: {skipped}")))?;
    consumer.close().await?;

    if cx.can(Capability::Seek) {
        goes_on_at_the_end(&cx, &topic, offsets[offsets.len() - 1]).await?;
    } else {
        let opened = mq.consumer(&topic, "latest").on_trimmed(OnTrimmed::Latest).await;
        refused("on_trimmed latest without seek", opened, ErrorKind::Unsupported)?;
    }

    let consumer = mq.consumer(&topic, "error").on_trimmed(OnTrimmed::Error).await?;
    for call in ["the first consume", "a later consume"] {
        let what = format!("{call} with on_trimmed error, where {skipped}");
        let answer = cx.within(&what, limit, consumer.consume()).await?;
        refused(&what, answer, ErrorKind::OffsetOutOfRange)?;
    }
    Ok(())
}

/// Checks that a group whose position is gone moves to the end, counted; `last` was the last offset.
async fn goes_on_at_the_end(cx: &Context, topic: &str, last: Offset) -> CaseResult {
    let mq = cx.mq().await?;
    let consumer = mq.consumer(topic, "latest").on_trimmed(OnTrimmed::Latest).await?;
    // The end is taken when the consumer meets the gap, which may be after it was opened; where nothing is left the gap
    // ends there too, so that only the stored position tells that it has been taken.
    cx.eventually(
        "a move to the end, counted, with on_trimmed latest",
        cx.times().progress,
        || {
            let status = consumer.status();
            let moved = status
                .partitions
                .iter()
                .any(|one| one.position.min(one.committed.unwrap_or(0)) > last);
            async move { Ok((moved && status.trimmed > 0).then_some(())) }
        },
    )
    .await?;
    let after = numbered("after", 3);
    send_to(cx, &mq.producer(topic).await?, 0, &after).await?;
    let came = take_until(cx, &consumer, &after).await?;
    in_order("on_trimmed latest", &payloads(&came), &after)?;
    consumer.close().await?;
    Ok(())
}
