//! Where a group starts, and who owns what.

use std::{collections::BTreeSet, time::Duration};

use mq_api::{Consumer, ErrorKind, Start, Timestamp};
use tokio::time::{Instant, sleep};

use crate::{
    capability::Capability,
    cases::steps::payloads,
    context::{Context, Measured},
    failure::{CaseResult, ensure, fail, note},
    flow::{each_once, in_order, numbered, one, refused, send_to, take_acked, take_until, text},
};

/// C1: a group made later sees all that is retained from the earliest; one that starts at the latest sees exactly what
/// follows the return of the call that made it; one that starts at an offset or a time sees what lies from there on.
/// Guarantee 4.
pub(super) async fn a_group_starts_where_it_says(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("starts", 1).await?;
    let producer = mq.producer(&topic).await?;
    let early = numbered("early", 20);
    send_to(&cx, &producer, 0, &early).await?;

    let earliest = mq.consumer(&topic, "earliest").await?;
    let taken = take_acked(&cx, &earliest, early.len()).await?;
    in_order("a group made after the messages", &payloads(&taken), &early)?;
    earliest.close().await?;

    // The call must have stored its place before it returns: what is sent at once afterwards belongs to the group,
    // even where its first member leaves before it has read anything.
    for round in 0..6 {
        let group = format!("latest-{round}");
        let mut consumer = mq.consumer(&topic, &group).start_at(Start::Latest).await?;
        let after = numbered(&format!("after{round}"), 3);
        send_to(&cx, &producer, 0, &after).await?;
        if round % 2 == 1 {
            consumer.close().await?;
            consumer = mq.consumer(&topic, &group).start_at(Start::Latest).await?;
        }
        let came = take_until(&cx, &consumer, &after)
            .await
            .map_err(|f| f.during("a group that starts at the latest, sent to right after the call"))?;
        in_order("a group that starts at the latest", &payloads(&came), &after)?;
        consumer.close().await?;
    }

    let from = taken[12].offset;
    let consumer = mq
        .consumer(&topic, "offset")
        .start_at(Start::Offset(from))
        .await?;
    let came = take_acked(&cx, &consumer, 3).await?;
    in_order(
        &format!("a group that starts at offset {from}"),
        &payloads(&came),
        &early[12..15],
    )?;
    consumer.close().await?;

    if cx.can(Capability::OffsetAt) {
        starts_at_a_time(&cx).await
    } else {
        let start = Start::Time(Timestamp::now());
        let opened = mq.consumer(&topic, "time").start_at(start).await;
        refused("a start at a time", opened, ErrorKind::Unsupported)?;
        Ok(())
    }
}

async fn starts_at_a_time(cx: &Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("times", 1).await?;
    let producer = mq.producer(&topic).await?;
    let (before, after) = (numbered("before", 5), numbered("after", 5));
    send_to(cx, &producer, 0, &before).await?;
    // The store's clock must tick between the two: this is the distance, not a wait for something.
    sleep(Duration::from_millis(100)).await;
    send_to(cx, &producer, 0, &after).await?;
    let other = mq.consumer(&topic, "times").await?;
    let boundary = loop {
        let message = one(cx, &other).await?;
        if text(&message) == after[0] {
            break message.timestamp();
        }
    };
    let consumer = mq
        .consumer(&topic, "time")
        .start_at(Start::Time(boundary))
        .await?;
    let came = take_acked(cx, &consumer, after.len()).await?;
    in_order(
        &format!("a group that starts at the time {boundary:?}"),
        &payloads(&came),
        &after,
    )
}

/// C2: two groups on one topic each see everything, whatever the other has acked. Guarantee 4.
pub(super) async fn two_groups_see_everything(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("shared", 2).await?;
    let producer = mq.producer(&topic).await?;
    let first = mq.consumer(&topic, "first").await?;
    let second = mq.consumer(&topic, "second").await?;
    let mut sent = Vec::new();
    for partition in 0..2 {
        let payloads = numbered(&format!("p{partition}"), 100);
        send_to(&cx, &producer, partition, &payloads).await?;
        sent.extend(payloads);
    }
    // One after the other: the second group must not be served from what the first has left.
    for (group, consumer) in [("group first", &first), ("group second", &second)] {
        let came = take_until(&cx, consumer, &sent)
            .await
            .map_err(|f| f.during(group))?;
        each_once(group, payloads(&came), &sent)?;
        consumer.commit().await?;
    }
    Ok(())
}

/// C4: as many members as partitions own one each; one more member idles without disturbing them, and takes over when
/// an owner leaves. Guarantee 5; where `sticky_assignment`, who need not move does not move.
pub(super) async fn extra_member_idles_and_takes_over(cx: Context) -> CaseResult {
    const PARTITIONS: u32 = 3;
    let mq = cx.mq().await?;
    let topic = cx.topic("owners", PARTITIONS).await?;
    let sticky = cx.can(Capability::StickyAssignment);
    let mut members = Vec::new();
    for _ in 0..PARTITIONS {
        members.push(mq.consumer(&topic, &topic).await?);
    }
    spread(
        &cx,
        "one partition for each of three members",
        &members,
        &[1, 1, 1],
    )
    .await?;
    let before: Vec<_> = members.iter().map(owned).collect();

    members.push(mq.consumer(&topic, &topic).await?);
    spread(
        &cx,
        "a fourth member without a partition",
        &members,
        &[0, 1, 1, 1],
    )
    .await?;
    let after: Vec<_> = members.iter().take(3).map(owned).collect();
    ensure!(
        !sticky || before == after,
        "a member that joined without need for it moved partitions: (partition, epoch) owned before {before:?}, after \
         {after:?}"
    );

    let Some(leaver) = members.iter().position(|member| !owned(member).is_empty()) else {
        fail!("no member owns a partition");
    };
    let leaving = members.swap_remove(leaver);
    let begun = Instant::now();
    leaving.close().await?;
    spread(
        &cx,
        "the extra member in the place of the one that left",
        &members,
        &[1, 1, 1],
    )
    .await?;
    let took = begun.elapsed();
    cx.measure(Measured::CloseTakeover, took);
    ensure!(
        took <= cx.times().close_takeover,
        "late: the extra member took over after {took:?}, declared are {:?}",
        cx.times().close_takeover
    );

    // Each of the three owns something, so each is known to the others: what moves now is what must move.
    let leaving = members.swap_remove(0);
    let kept: BTreeSet<_> = members.iter().flat_map(owned).collect();
    leaving.close().await?;
    spread(&cx, "three partitions for two members", &members, &[1, 2]).await?;
    let now: BTreeSet<_> = members.iter().flat_map(owned).collect();
    ensure!(
        !sticky || kept.is_subset(&now),
        "partitions moved that need not: (partition, epoch) of the others before {kept:?}, now {now:?}"
    );

    let producer = mq.producer(&topic).await?;
    let sent = ["to-0", "to-1", "to-2"].map(str::to_owned);
    for (partition, payload) in (0..).zip(&sent) {
        send_to(&cx, &producer, partition, std::slice::from_ref(payload)).await?;
    }
    let mut came = Vec::new();
    for member in &members {
        came.extend(take_acked(&cx, member, owned(member).len()).await?);
    }
    each_once("one message for each partition", payloads(&came), &sent)
}

/// Returns the partitions that a member owns, with the epoch of its tenure.
pub(super) fn owned(consumer: &Consumer) -> BTreeSet<(u32, u64)> {
    consumer
        .assignment()
        .iter()
        .map(|one| (one.partition, one.epoch))
        .collect()
}

/// Waits until the members own each partition once, spread as the sorted counts say.
pub(super) async fn spread(cx: &Context, what: &str, members: &[Consumer], counts: &[usize]) -> CaseResult {
    let partitions = u32::try_from(counts.iter().sum::<usize>())?;
    let all: Vec<u32> = (0..partitions).collect();
    let outcome = cx
        .eventually(what, cx.times().join, || {
            let sets: Vec<_> = members.iter().map(owned).collect();
            let mut owned: Vec<u32> = sets.iter().flatten().map(|(partition, _)| *partition).collect();
            owned.sort_unstable();
            let mut sizes: Vec<usize> = sets.iter().map(BTreeSet::len).collect();
            sizes.sort_unstable();
            let reached = owned == all && sizes == counts;
            async move { Ok(reached.then_some(())) }
        })
        .await;
    let sets: Vec<_> = members.iter().map(owned).collect();
    note!(cx, "{what}: members own (partition, epoch) {sets:?}");
    outcome.map_err(|f| f.during(format!("members own (partition, epoch) {sets:?}")))
}
