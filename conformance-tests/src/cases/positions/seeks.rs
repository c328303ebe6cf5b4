//! Where a consumer stands: seeks, pauses, lag.

use mq_api::{Lag, Position};

use crate::{
    cases::steps::payloads,
    context::Context,
    failure::{CaseResult, Failure, ensure, fail},
    flow::{in_order, numbered, one, send_to, take, take_acked, text},
};

/// R2: a seek goes back and forth to offsets and to both ends, says where it arrived, and the next delivery comes
/// from there: nothing that was fetched before the seek. Guarantee 4.
pub(super) async fn seek_moves_both_ways(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("seek", 1).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let sent = numbered("m", 50);
    send_to(&cx, &producer, 0, &sent).await?;
    let all = take_acked(&cx, &consumer, 50).await?;
    in_order("before any seek", &payloads(&all), &sent)?;

    for (to, place) in [
        (Position::Offset(all[3].offset), 3),
        (Position::Offset(all[20].offset), 20),
        (Position::Earliest, 0),
        (Position::Offset(all[10].offset), 10),
    ] {
        let arrived = cx
            .within(
                format!("a seek to {to:?}"),
                cx.times().progress,
                consumer.seek(0, to),
            )
            .await??;
        ensure!(
            arrived == all[place].offset,
            "a seek to {to:?} says that it arrived at {arrived}, wanted is {}",
            all[place].offset
        );
        let came = take_acked(&cx, &consumer, 5).await?;
        in_order(
            &format!("after a seek to {to:?}"),
            &payloads(&came),
            &sent[place..place + 5],
        )?;
    }

    let end = consumer.seek(0, Position::Latest).await?;
    ensure!(
        end > all[49].offset,
        "a seek to the latest arrived at {end}, and the last message has offset {}",
        all[49].offset
    );
    let after = numbered("after", 3);
    send_to(&cx, &producer, 0, &after).await?;
    let came = take_acked(&cx, &consumer, 3).await?;
    in_order("after a seek to the latest", &payloads(&came), &after)?;
    Ok(())
}

/// R4: a paused partition hands nothing over, its neighbours flow on, it stays this member's, and on resume everything
/// comes in order. The same for the whole consumer. Guarantee 5.
pub(super) async fn pause_keeps_the_partition_and_loses_nothing(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("pause", 2).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let warm = ["warm-0".to_owned(), "warm-1".to_owned()];
    send_to(&cx, &producer, 0, &warm[..1]).await?;
    send_to(&cx, &producer, 1, &warm[1..]).await?;
    take_acked(&cx, &consumer, 2).await?;
    let owned = || -> Vec<_> {
        consumer
            .assignment()
            .iter()
            .map(|one| (one.partition, one.epoch))
            .collect()
    };
    let before = owned();

    consumer.pause_partitions(&[0])?;
    let held = numbered("held", 50);
    let free = numbered("free", 50);
    send_to(&cx, &producer, 0, &held).await?;
    send_to(&cx, &producer, 1, &free).await?;
    let came = take_acked(&cx, &consumer, 50).await?;
    in_order("the neighbour of a paused partition", &payloads(&came), &free)?;
    let status = consumer.status();
    let paused: Vec<_> = status
        .partitions
        .iter()
        .filter(|one| one.paused)
        .map(|one| one.partition)
        .collect();
    ensure!(paused == [0], "partition 0 is paused, the status says {paused:?}");
    consumer.resume_partitions(&[0])?;
    let came = take_acked(&cx, &consumer, 50).await?;
    in_order("a partition that was resumed", &payloads(&came), &held)?;

    consumer.pause()?;
    let later = numbered("later", 20);
    send_to(&cx, &producer, 1, &later).await?;
    // Seen by another group, the messages are there to be had.
    let other = mq.consumer(&topic, "other").start_at(Position::Earliest).await?;
    take_acked(&cx, &other, 2 + 50 + 50 + 20).await?;
    if let Some(delivery) = consumer.try_consume()? {
        fail!("a paused consumer handed over {:?}", text(&delivery));
    }
    consumer.resume()?;
    let came = take_acked(&cx, &consumer, 20).await?;
    in_order("a consumer that was resumed", &payloads(&came), &later)?;

    let after = owned();
    ensure!(
        before == after,
        "pause and resume moved partitions: (partition, epoch) before {before:?}, after {after:?}"
    );
    Ok(())
}

/// R5: once settled, the lag of a partition is its end minus what is committed, for a member and for who asks without
/// joining; committed positions can be read without joining. Guarantee 6.
pub(super) async fn lag_is_the_end_minus_the_committed(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("lag", 3).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    send_to(&cx, &producer, 0, &numbered("p0", 10)).await?;
    send_to(&cx, &producer, 1, &numbered("p1", 5)).await?;
    let mut lowest = None;
    let mut kept = Vec::new();
    for delivery in take(&cx, &consumer, 15).await? {
        // Of partition 0 the first four are acked, the rest is not; of partition 1 all.
        if delivery.partition() == 1 || text(&delivery).as_str() < "p0-0004" {
            delivery.ack()?;
        } else {
            lowest.get_or_insert(delivery.offset());
            kept.push(delivery);
        }
    }
    consumer.commit().await?;

    let committed = mq.committed(&topic, &topic).await?;
    let stored = committed
        .iter()
        .find(|one| one.partition == 0)
        .map(|one| one.position);
    ensure!(
        stored == lowest,
        "of partition 0 the lowest un-acked offset is {lowest:?}, committed is {committed:?}"
    );
    let of_member = consumer.committed().await?;
    ensure!(
        of_member == committed,
        "a member reads {of_member:?} as committed, who does not join reads {committed:?}"
    );
    let description = mq.describe_topic(&topic).await?;
    for (who, lag) in [
        ("a member", consumer.lag().await?),
        ("who does not join", mq.lag(&topic, &topic).await?),
    ] {
        check_lag(who, &lag, &committed, &description)?;
        ensure!(
            lag.total() >= 6,
            "{who} reads a lag of {} with six messages left: {lag:?}",
            lag.total()
        );
    }

    for delivery in kept {
        delivery.ack()?;
    }
    consumer.commit().await?;
    let lag = mq.lag(&topic, &topic).await?;
    ensure!(
        lag.total() == 0,
        "everything is acked and committed, the lag is {lag:?}"
    );
    send_to(&cx, &producer, 2, &["one".to_owned()]).await?;
    let lag = mq.lag(&topic, &topic).await?;
    ensure!(
        lag.total() >= 1,
        "a message was sent after everything was acked, the lag is {lag:?}"
    );
    one(&cx, &consumer).await?.ack()?;
    Ok(())
}

fn check_lag(
    who: &str,
    lag: &Lag,
    committed: &[mq_api::driver::CommittedPosition],
    description: &mq_api::TopicDescription,
) -> CaseResult {
    let partitions: Vec<_> = lag.partitions.iter().map(|one| one.partition).collect();
    ensure!(
        partitions == [0, 1, 2],
        "{who} reads the lag of partitions {partitions:?} of a topic of three"
    );
    for (one, bounds) in lag.partitions.iter().zip(&description.partitions) {
        let stored = committed
            .iter()
            .find(|stored| stored.partition == one.partition)
            .map(|stored| stored.position);
        let from = stored.unwrap_or(bounds.first_offset);
        let wanted = bounds.next_offset.saturating_sub(from);
        if one.committed != stored || one.end != bounds.next_offset || one.lag != wanted {
            return Err(Failure::new(format!(
                "{who} reads {one:?}, wanted is committed {stored:?}, end {}, lag {wanted}",
                bounds.next_offset
            )));
        }
    }
    let sum: u64 = lag.partitions.iter().map(|one| one.lag).sum();
    ensure!(
        lag.total() == sum,
        "{who} reads a lag of {} in all, the partitions add up to {sum}",
        lag.total()
    );
    Ok(())
}
