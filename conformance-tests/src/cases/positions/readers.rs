//! Readers: they see what is there and belong to no group.

use std::time::Duration;

use mq_api::{ErrorKind, Offset, Position, ReadMessage, Reader, Timestamp};
use tokio::time::sleep;

use crate::{
    capability::Capability,
    cases::steps::payloads,
    context::Context,
    failure::{CaseResult, ensure, fail},
    flow::{each_once, in_order, numbered, refused, send_to, take_acked},
};

/// R1: a reader sees all from the earliest, what follows from the latest, and what lies from an offset or a time on;
/// what it reads has no effect on any group. Guarantee 4.
pub(super) async fn reader_starts_where_it_says(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("reader", 2).await?;
    let producer = mq.producer(&topic).await?;
    let sent = [numbered("p0", 20), numbered("p1", 20)];
    for (partition, some) in (0..).zip(&sent) {
        send_to(&cx, &producer, partition, some).await?;
    }
    let consumer = mq.consumer(&topic, &topic).await?;
    let first = take_acked(&cx, &consumer, 5).await?;
    consumer.commit().await?;
    let committed = mq.committed(&topic, &topic).await?;

    let reader = mq.reader(&topic).await?;
    let read = read(&cx, &reader, 40).await?;
    for (partition, sent) in (0..).zip(&sent) {
        let came: Vec<_> = of_partition(&read, partition);
        in_order(
            &format!("a reader from the earliest, partition {partition}"),
            &came,
            sent,
        )?;
        let offsets: Vec<_> = read
            .iter()
            .filter(|one| one.partition() == partition)
            .map(ReadMessage::offset)
            .collect();
        ensure!(
            offsets.is_sorted_by(|a, b| a < b),
            "a reader shows offsets of partition {partition} that do not grow: {offsets:?}"
        );
    }

    let latest = mq.reader(&topic).start_at(Position::Latest).await?;
    let after = numbered("after", 5);
    send_to(&cx, &producer, 1, &after).await?;
    let came = read_texts(&cx, &latest, after.len()).await?;
    in_order("a reader from the latest", &came, &after)?;

    let now = mq.committed(&topic, &topic).await?;
    ensure!(
        now == committed,
        "readers moved a group: committed before {committed:?}, after {now:?}"
    );
    let rest = take_acked(&cx, &consumer, 40).await?;
    let all = [sent.concat(), after].concat();
    let came = [payloads(&first), payloads(&rest)].concat();
    each_once("a group beside readers", came, &all)?;
    from_a_place(&cx).await
}

async fn from_a_place(cx: &Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("place", 1).await?;
    let producer = mq.producer(&topic).await?;
    let sent = numbered("m", 10);
    send_to(cx, &producer, 0, &sent[..5]).await?;
    // The store's clock must tick between the two: this is the distance, not a wait for something.
    sleep(Duration::from_millis(100)).await;
    send_to(cx, &producer, 0, &sent[5..]).await?;
    let all = read(cx, &mq.reader(&topic).await?, sent.len()).await?;
    let (offset, time) = (all[7].offset(), all[5].timestamp());

    let reader = mq.reader(&topic).start_at(Position::Offset(offset)).await?;
    let came = read_texts(cx, &reader, 3).await?;
    in_order(&format!("a reader from offset {offset}"), &came, &sent[7..])?;

    let opened = mq.reader(&topic).start_at(Position::Time(time)).await;
    if cx.can(Capability::OffsetAt) {
        let came = read_texts(cx, &opened?, 5).await?;
        in_order(&format!("a reader from the time {time:?}"), &came, &sent[5..])
    } else {
        refused("a reader from a time", opened, ErrorKind::Unsupported).map(drop)
    }
}

/// R3: a time finds the first message stored at or after it: of groups of messages 100 ms apart, time 0 gives the
/// earliest, a time far ahead the end. Guarantee 4.
pub(super) async fn time_finds_the_first_message_at_or_after_it(cx: Context) -> CaseResult {
    const GROUPS: usize = 4;
    const EACH: usize = 5;
    let mq = cx.mq().await?;
    let topic = cx.topic("time", 1).await?;
    let producer = mq.producer(&topic).await?;
    let sent = numbered("m", GROUPS * EACH);
    for group in sent.chunks(EACH) {
        send_to(&cx, &producer, 0, group).await?;
        // The distance between the groups, which the claim is about.
        sleep(Duration::from_millis(100)).await;
    }
    let reader = mq.reader(&topic).await?;
    let all = read(&cx, &reader, sent.len()).await?;
    let look = async |what: &str, time: Timestamp, wanted: Offset| -> CaseResult {
        let found = cx
            .within(what, cx.times().progress, reader.offset_at(0, time))
            .await??;
        ensure!(
            found == wanted,
            "{what}: the time {time:?} finds offset {found}, wanted is {wanted}"
        );
        Ok(())
    };
    for (group, messages) in all.chunks(EACH).enumerate() {
        let first = &messages[0];
        look(
            &format!("the time of the first message of group {group}"),
            first.timestamp(),
            first.offset(),
        )
        .await?;
        let between = Timestamp::from_millis(first.timestamp().as_millis() - 40);
        look(&format!("40 ms before group {group}"), between, first.offset()).await?;
    }
    look("time 0", Timestamp::from_millis(0), all[0].offset()).await?;
    let end = end_of(&mq.describe_topic(&topic).await?)?;
    let ahead = Timestamp::now().saturating_add(Duration::from_secs(365 * 24 * 3600));
    look("a year ahead", ahead, end).await?;

    let from = all[2 * EACH].timestamp();
    let consumer = mq.consumer(&topic, &topic).start_at(Position::Time(from)).await?;
    let came = take_acked(&cx, &consumer, 2 * EACH).await?;
    in_order("a group from a time", &payloads(&came), &sent[2 * EACH..])?;
    if cx.can(Capability::Seek) {
        let back = all[EACH].timestamp();
        let offset = consumer.seek(0, Position::Time(back)).await?;
        ensure!(
            offset == all[EACH].offset(),
            "a seek to the time {back:?} went to offset {offset}, wanted is {}",
            all[EACH].offset()
        );
        let came = take_acked(&cx, &consumer, EACH).await?;
        in_order("a seek to a time", &payloads(&came), &sent[EACH..2 * EACH])?;
    }
    Ok(())
}

/// R6: a fetch of n messages at an offset gives those, fewer at the end, none where there is none yet. Guarantee 6.
pub(super) async fn fetch_gives_n_from_an_offset(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("fetch", 2).await?;
    let producer = mq.producer(&topic).await?;
    let sent = numbered("m", 30);
    send_to(&cx, &producer, 1, &sent).await?;
    let reader = mq.reader(&topic).await?;
    let all = read(&cx, &reader, sent.len()).await?;
    for (from, n) in [(0, 1), (0, 30), (7, 10), (29, 1), (25, 100)] {
        let what = format!("{n} messages from offset {} on", all[from].offset());
        let pulled = cx
            .within(&what, cx.times().progress, reader.pull(1, all[from].offset(), n))
            .await??;
        let wanted = &sent[from..sent.len().min(from + n)];
        // "What is there": fewer than asked for is allowed only where the messages end.
        in_order(&what, &texts(&pulled), wanted)?;
    }
    let end = all[29].offset() + 1;
    for (partition, from) in [(1, end), (0, 0)] {
        let bounds = reader.bounds().await?;
        let from = bounds
            .iter()
            .find(|one| one.partition == partition)
            .map_or(from, |one| one.next_offset);
        let pulled = cx
            .within(
                "a fetch at the end",
                cx.times().progress,
                reader.pull(partition, from, 10),
            )
            .await??;
        ensure!(
            pulled.is_empty(),
            "a fetch at the end of partition {partition} gives {:?}",
            texts(&pulled)
        );
    }
    let out_of_range = reader.pull(2, 0, 1).await;
    refused(
        "a fetch from partition 2 of 2",
        out_of_range,
        ErrorKind::InvalidPartition,
    )?;
    Ok(())
}

/// R7: an offset beyond the end is `OffsetOutOfRange` for a reader, a seek and a group's start, and harms nothing.
/// Guarantee 10.
pub(super) async fn offset_beyond_the_end_is_refused(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("beyond", 1).await?;
    let producer = mq.producer(&topic).await?;
    let sent = numbered("m", 10);
    send_to(&cx, &producer, 0, &sent).await?;
    let end = end_of(&mq.describe_topic(&topic).await?)?;
    let beyond = end + 1000;
    let limit = cx.times().progress;

    let reader = mq.reader(&topic).await?;
    let pulled = cx
        .within("a fetch beyond the end", limit, reader.pull(0, beyond, 1))
        .await?;
    refused(
        "a fetch beyond the end",
        pulled.map(|some| texts(&some)),
        ErrorKind::OffsetOutOfRange,
    )?;

    // Where the end is looked up, the start is refused by the call that opens; else by the first read.
    let opened = mq.reader(&topic).start_at(Position::Offset(beyond)).await;
    let answer = match opened {
        Ok(reader) => cx
            .within("a read beyond the end", limit, reader.next())
            .await?
            .map(|one| text(&one)),
        Err(error) => Err(error),
    };
    refused(
        "a reader that starts beyond the end",
        answer,
        ErrorKind::OffsetOutOfRange,
    )?;

    let opened = mq
        .consumer(&topic, "beyond")
        .start_at(Position::Offset(beyond))
        .await
        .map(drop);
    refused(
        "a group that starts beyond the end",
        opened,
        ErrorKind::OffsetOutOfRange,
    )?;

    let consumer = mq.consumer(&topic, &topic).await?;
    let early = take_acked(&cx, &consumer, 4).await?;
    if cx.can(Capability::Seek) {
        let sought = cx
            .within(
                "a seek beyond the end",
                limit,
                consumer.seek(0, Position::Offset(beyond)),
            )
            .await?;
        refused("a seek beyond the end", sought, ErrorKind::OffsetOutOfRange)?;
    }
    let rest = take_acked(&cx, &consumer, 6).await?;
    let came = [payloads(&early), payloads(&rest)].concat();
    in_order("a consumer whose seek was refused", &came, &sent)
}

/// Reads so many messages.
async fn read(cx: &Context, reader: &Reader, n: usize) -> CaseResult<Vec<ReadMessage>> {
    let mut read = Vec::with_capacity(n);
    while read.len() < n {
        let next = cx
            .within("a message by the reader", cx.times().progress, reader.next())
            .await
            .map_err(|f| f.during(format!("{} of {n} came: {:?}", read.len(), texts(&read))))?;
        read.push(next?);
    }
    Ok(read)
}

async fn read_texts(cx: &Context, reader: &Reader, n: usize) -> CaseResult<Vec<String>> {
    Ok(texts(&read(cx, reader, n).await?))
}

fn text(message: &ReadMessage) -> String {
    String::from_utf8_lossy(message.payload()).into_owned()
}

fn texts(messages: &[ReadMessage]) -> Vec<String> {
    messages.iter().map(text).collect()
}

fn of_partition(messages: &[ReadMessage], partition: u32) -> Vec<String> {
    messages
        .iter()
        .filter(|one| one.partition() == partition)
        .map(text)
        .collect()
}

fn end_of(description: &mq_api::TopicDescription) -> CaseResult<Offset> {
    match description.partitions.first() {
        Some(partition) => Ok(partition.next_offset),
        None => fail!("the topic has no partition: {description:?}"),
    }
}
