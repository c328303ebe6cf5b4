//! Messages that somebody has had before: taken over when their lease has run out, or when they are due.

use std::{cmp::Reverse, collections::HashMap, time::Instant};

use mq_api::{Moment, Result, Timestamp};

use super::{Buffered, Held, Inner, NOBODY, millis};
use crate::{
    error,
    format::{Entry, EntryId, decode},
    link::Conn,
    resp::Reply,
};

/// How many messages are taken over at once from one partition.
const MOST_CLAIMED: usize = 100;

/// Where each partition's search for expired leases goes on.
pub(super) type Cursors = HashMap<u32, String>;

/// Takes over what any member has let lapse, as far as somebody waits for messages.
pub(super) async fn take_expired(
    inner: &Inner,
    conn: &Conn,
    partitions: u32,
    cursors: &mut Cursors,
) -> Result<()> {
    let wanted = inner.lock().wanted.min(MOST_CLAIMED);
    if wanted == 0 {
        return Ok(());
    }
    let sent = inner.clock.now();
    let mut pipe = redis::pipe();
    for partition in 0..partitions {
        let cursor = cursors.get(&partition).map_or("0-0", String::as_str);
        pipe.cmd("XAUTOCLAIM")
            .arg(inner.key(partition))
            .arg(&inner.group)
            .arg(&inner.name)
            .arg(millis(inner.lease))
            .arg(cursor)
            .arg("COUNT")
            .arg(wanted);
    }
    for (partition, reply) in (0..partitions).zip(conn.ask_all(&pipe).await?) {
        if let Reply::Refused(words) = &reply {
            return Err(error::refused(words));
        }
        let mut parts = reply.into_array().into_iter();
        let (Some(cursor), Some(entries)) = (parts.next(), parts.next()) else {
            return Err(error::protocol("a claim without cursor and entries"));
        };
        if let Some(cursor) = cursor.str() {
            cursors.insert(partition, cursor.to_owned());
        }
        let entries = present(entries)?;
        if !entries.is_empty() {
            take_claimed(inner, conn, partition, entries, sent).await?;
        }
    }
    Ok(())
}

/// Takes back what this member gave back itself and is due now, and what waits in the sorted sets.
pub(super) async fn take_due(inner: &Inner, conn: &Conn, partitions: u32, look_at_sets: bool) -> Result<()> {
    let now = Instant::now();
    let mut due: HashMap<u32, Vec<EntryId>> = HashMap::new();
    {
        let mut state = inner.lock();
        if state.wanted == 0 {
            return Ok(());
        }
        while let Some(Reverse((at, partition, id))) = state.due.peek().copied() {
            if at > now {
                break;
            }
            state.due.pop();
            due.entry(partition).or_default().push(id);
        }
    }
    for partition in 0..partitions {
        let mine = due.remove(&partition);
        if look_at_sets || mine.is_some() {
            take_from_set(inner, conn, partition).await?;
        }
        let Some(ids) = mine else { continue };
        let sent = inner.clock.now();
        let entries = claim(inner, conn, partition, &ids, millis(inner.lease)).await?;
        if !entries.is_empty() {
            take_claimed(inner, conn, partition, entries, sent).await?;
        }
    }
    Ok(())
}

/// Takes what was given back for longer than a lease. Whoever removes an element from the set has it.
async fn take_from_set(inner: &Inner, conn: &Conn, partition: u32) -> Result<()> {
    let set = inner.due_key(partition);
    let mut due = redis::cmd("ZRANGE");
    due.arg(&set)
        .arg("-inf")
        .arg(inner.shared.clock.now().as_millis())
        .arg("BYSCORE")
        .arg("LIMIT")
        .arg(0)
        .arg(MOST_CLAIMED);
    let due = conn.call(&due).await?;
    let ids: Vec<&[u8]> = due.array().iter().filter_map(Reply::text).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let mut pipe = redis::pipe();
    for id in &ids {
        pipe.cmd("ZREM").arg(&set).arg(*id);
    }
    let removed = conn.call_all(&pipe).await?;
    let mine: Vec<EntryId> = ids
        .iter()
        .zip(removed)
        .filter(|(_, removed)| *removed == Reply::Int(1))
        .filter_map(|(id, _)| EntryId::parse(id))
        .collect();
    if mine.is_empty() {
        return Ok(());
    }
    let sent = inner.clock.now();
    let entries = claim(inner, conn, partition, &mine, 0).await?;
    take_claimed(inner, conn, partition, entries, sent).await
}

async fn claim(
    inner: &Inner,
    conn: &Conn,
    partition: u32,
    ids: &[EntryId],
    min_idle: u64,
) -> Result<Vec<Entry>> {
    let mut cmd = redis::cmd("XCLAIM");
    cmd.arg(inner.key(partition))
        .arg(&inner.group)
        .arg(&inner.name)
        .arg(min_idle);
    for id in ids {
        cmd.arg(id.to_string());
    }
    present(conn.call(&cmd).await?)
}

/// Leaves out what was removed from the stream meanwhile.
fn present(entries: Reply) -> Result<Vec<Entry>> {
    entries
        .into_array()
        .into_iter()
        .filter(|entry| *entry != Reply::Nil)
        .map(Entry::parse)
        .collect()
}

/// Learns how often messages were handed over, puts back what is not due yet, and hands on the rest.
async fn take_claimed(
    inner: &Inner,
    conn: &Conn,
    partition: u32,
    entries: Vec<Entry>,
    sent: Moment,
) -> Result<()> {
    let (Some(first), Some(last)) = (
        entries.iter().map(|entry| entry.id).min(),
        entries.iter().map(|entry| entry.id).max(),
    ) else {
        return Ok(());
    };
    let mut pipe = redis::pipe();
    // All that this member has between the first and the last, which may be more than was just taken.
    let held = inner.lock().held.len();
    pipe.cmd("XPENDING")
        .arg(inner.key(partition))
        .arg(&inner.group)
        .arg(first.to_string())
        .arg(last.to_string())
        .arg(held + entries.len())
        .arg(&inner.name);
    let mut scores = redis::cmd("ZMSCORE");
    scores.arg(inner.due_key(partition));
    for entry in &entries {
        scores.arg(entry.id.to_string());
    }
    pipe.add_command(scores);
    let replies = conn.call_all(&pipe).await?;
    let [pending, scores] = replies.as_slice() else {
        return Err(error::protocol("other replies than were asked for"));
    };
    let mut counts = HashMap::new();
    for item in pending.array() {
        if let [id, _, _, count] = item.array()
            && let (Some(id), Some(count)) = (id.text().and_then(EntryId::parse), count.int())
        {
            counts.insert(id, u32::try_from(count).unwrap_or(u32::MAX));
        }
    }
    let now = inner.shared.clock.now();
    let until = inner.until(sent);
    let mut taken = Vec::new();
    let mut back = redis::pipe();
    for (at, entry) in entries.iter().enumerate() {
        let attempt = counts.get(&entry.id).copied().unwrap_or(2);
        let due = scores
            .array()
            .get(at)
            .and_then(Reply::str)
            .and_then(|score| score.parse::<f64>().ok())
            .map(millis_of);
        if let Some(due) = due
            && due > now
        {
            // The set keeps the time; the claim that brought it here has counted once too often.
            let attempt = attempt.saturating_sub(1);
            back.cmd("XCLAIM")
                .arg(inner.key(partition))
                .arg(&inner.group)
                .arg(NOBODY)
                .arg(0)
                .arg(entry.id.to_string())
                .arg("IDLE")
                .arg(0)
                .arg("RETRYCOUNT")
                .arg(attempt)
                .arg("JUSTID");
            continue;
        }
        taken.push((
            Buffered {
                partition,
                record: decode(entry)?,
                id: entry.id,
            },
            Held { until, attempt },
        ));
    }
    inner.take_in(taken);
    conn.call_all(&back).await?;
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "due times are whole milliseconds")]
fn millis_of(score: f64) -> Timestamp {
    Timestamp::from_millis(score as i64)
}
