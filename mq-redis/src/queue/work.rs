//! The task of a member: it reads while somebody waits, takes over what lapsed, and leaves in order.

use std::{
    cmp::Reverse,
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{Error, ErrorKind, Result, driver::topic_not_found};
use tokio::sync::watch;

use super::{Buffered, Held, Inner, MOST_AT_ONCE, make_group, pending};
use crate::{
    error,
    format::{Entry, EntryId, decode},
    link::{Backoff, Conn, is_passing},
    raw::RawConn,
    resp::Reply,
};

/// How often expired leases are looked for: as a part of the lease, at least and at most.
const LOOK_PART: u32 = 12;
const LOOK_LEAST: Duration = Duration::from_millis(50);
const LOOK_MOST: Duration = Duration::from_secs(1);
/// How long one read blocks at most; it is less where leases are short, for they are counted from its start.
const BLOCK_MOST: Duration = Duration::from_secs(5);
/// About how many bytes one read may bring.
const REPLY_BUDGET: usize = 16 * 1024 * 1024;
/// How large a message is taken to be before one was seen.
const FIRST_GUESS: usize = 16 * 1024;
/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(3);

/// Runs until the member leaves, its topic is gone, or nothing can help. `ended` closes with it.
pub(super) async fn run(inner: Arc<Inner>, _ended: watch::Sender<()>) {
    let mut backoff = Backoff::new();
    while !inner.is_closing() {
        let Err(error) = session(&inner, &mut backoff).await else {
            break;
        };
        match error.kind() {
            ErrorKind::Closed => break,
            _ if inner.is_closing() => break,
            // A new session makes what is missing, or finds that the topic is gone.
            _ if error.is_retryable() || is_passing(&error) && error.kind() != ErrorKind::Protocol => {
                tracing::debug!(%error, "reading for a group was interrupted");
                inner.outage(error);
                tokio::time::sleep(backoff.pause()).await;
            }
            _ => {
                inner.fail(error);
                break;
            }
        }
    }
    // What could not be given back comes back when its lease is over.
    let _ = tokio::time::timeout(LEAVE, leave(&inner)).await;
    inner.fail(Error::closed("consumer"));
}

/// Reads on one connection until it breaks; `Ok` when the member is to leave.
async fn session(inner: &Inner, backoff: &mut Backoff) -> Result<()> {
    let conn = inner.shared.link.conn().await?;
    let partitions = check_topic(inner, &conn).await?;
    make_missing_groups(inner, &conn, partitions).await?;
    let mut raw = RawConn::open(&inner.shared.config).await?;
    inner.lock().down = false;
    inner.lock().trouble = None;
    backoff.reset();
    let client = raw.client_id();
    let read = read_on(inner, &mut raw, partitions);
    tokio::pin!(read);
    let ended = tokio::select! {
        result = &mut read => Some(result),
        result = look_on(inner, &conn, partitions) => return result,
        () = closing(inner) => None,
    };
    match ended {
        Some(result) => result,
        None => {
            // What the blocked read is about to bring must not be lost with its connection.
            let woken = conn.ask(redis::cmd("CLIENT").arg("UNBLOCK").arg(client)).await;
            if woken.is_ok() {
                let _ = tokio::time::timeout(Duration::from_millis(500), read).await;
            }
            Ok(())
        }
    }
}

async fn closing(inner: &Inner) {
    loop {
        let wanted = inner.wanted.notified();
        tokio::pin!(wanted);
        wanted.as_mut().enable();
        if inner.is_closing() {
            return;
        }
        wanted.await;
    }
}

async fn check_topic(inner: &Inner, conn: &Conn) -> Result<u32> {
    let now = inner.shared.topic(conn, &inner.topic.name).await?;
    if now.id() == inner.topic.id() {
        Ok(now.partitions)
    } else {
        Err(topic_not_found(&inner.topic.name))
    }
}

/// Partitions that were added since the group began are read from their start.
async fn make_missing_groups(inner: &Inner, conn: &Conn, partitions: u32) -> Result<()> {
    let mut pipe = redis::pipe();
    for partition in 0..partitions {
        pipe.add_command(make_group(&inner.key(partition), &inner.group, "0"));
    }
    for reply in conn.ask_all(&pipe).await? {
        match reply {
            Reply::Refused(words) if words.starts_with("BUSYGROUP") => {}
            Reply::Refused(words) if words.contains("requires the key to exist") => {
                return Err(topic_not_found(&inner.topic.name));
            }
            Reply::Refused(words) => return Err(error::refused(&words)),
            _ => {}
        }
    }
    Ok(())
}

/// Reads new messages while somebody waits for them.
async fn read_on(inner: &Inner, raw: &mut RawConn, partitions: u32) -> Result<()> {
    let block = (inner.lease / 4).min(BLOCK_MOST);
    let limit = block + inner.shared.config.request_timeout;
    let mut guess = FIRST_GUESS;
    let keys: Vec<String> = (0..partitions).map(|partition| inner.key(partition)).collect();
    loop {
        let Some(wanted) = wait_for_demand(inner).await else {
            return Ok(());
        };
        let streams = keys.len();
        let count = wanted
            .min(REPLY_BUDGET / (guess * streams).max(1))
            .clamp(1, MOST_AT_ONCE);
        let mut cmd = redis::Cmd::with_capacity(10 + 2 * streams, 64 * streams);
        cmd.arg("XREADGROUP")
            .arg("GROUP")
            .arg(&inner.group)
            .arg(&inner.name)
            .arg("COUNT")
            .arg(count)
            .arg("BLOCK")
            .arg(super::millis(block))
            .arg("STREAMS");
        for key in &keys {
            cmd.arg(key);
        }
        for _ in &keys {
            cmd.arg(">");
        }
        let sent = inner.clock.now();
        raw.queue(&cmd);
        let reply = match tokio::time::timeout(limit, raw.reply()).await {
            Ok(reply) => reply?,
            Err(_) => return Err(Error::timeout("a read", limit)),
        };
        if let Reply::Refused(words) = &reply {
            return Err(lost_group(words));
        }
        let mut messages = Vec::new();
        let mut largest = 0;
        for (key, entries) in streams_of(reply) {
            let partition = keys
                .iter()
                .position(|known| Some(known.as_bytes()) == key.text())
                .and_then(|at| u32::try_from(at).ok())
                .ok_or_else(|| error::protocol("entries of a stream that was not asked for"))?;
            for entry in Entry::parse_all(entries)? {
                let record = decode(&entry)?;
                largest = record.message.weight().max(largest);
                messages.push((
                    Buffered {
                        partition,
                        record,
                        id: entry.id,
                    },
                    Held {
                        until: inner.until(sent),
                        attempt: 1,
                    },
                ));
            }
        }
        if largest > 0 {
            guess = largest.max(guess - guess / 8).max(64);
        }
        inner.take_in(messages);
        if inner.is_closing() {
            return Ok(());
        }
    }
}

/// A stream or group that vanished is looked for anew: the topic may be gone.
fn lost_group(words: &str) -> Error {
    let error = error::refused(words);
    if words.starts_with("NOGROUP") || words.starts_with("UNBLOCKED") {
        Error::new(ErrorKind::Interrupted, error.context())
    } else {
        error
    }
}

/// Pairs keys and entries, whichever protocol they came by.
fn streams_of(reply: Reply) -> Vec<(Reply, Reply)> {
    let items = reply.into_array();
    let flat: Vec<Reply> = if items.first().is_some_and(|item| item.text().is_some()) {
        items
    } else {
        items.into_iter().flat_map(Reply::into_array).collect()
    };
    let mut flat = flat.into_iter();
    std::iter::from_fn(|| Some((flat.next()?, flat.next()?))).collect()
}

/// Returns how many messages somebody waits for; none when the member is to leave.
async fn wait_for_demand(inner: &Inner) -> Option<usize> {
    loop {
        let wanted = inner.wanted.notified();
        tokio::pin!(wanted);
        wanted.as_mut().enable();
        if inner.is_closing() {
            return None;
        }
        {
            let state = inner.lock();
            let missing = state.wanted.saturating_sub(state.buffer.len());
            if missing > 0 {
                return Some(missing);
            }
        }
        wanted.await;
    }
}

/// Takes over what lapsed or is due, and sees to it that the topic is still there.
async fn look_on(inner: &Inner, conn: &Conn, partitions: u32) -> Result<()> {
    let every = (inner.lease / LOOK_PART).clamp(LOOK_LEAST, LOOK_MOST);
    let mut cursors = pending::Cursors::new();
    let mut next_look = Instant::now();
    let mut next_check = Instant::now() + LOOK_MOST;
    loop {
        let now = Instant::now();
        let look = now >= next_look;
        let result = async {
            return_late(inner, conn).await?;
            pending::take_due(inner, conn, partitions, look).await?;
            if look {
                pending::take_expired(inner, conn, partitions, &mut cursors).await?;
            }
            Ok::<(), Error>(())
        }
        .await;
        if let Err(error) = result {
            return Err(if error.kind() == ErrorKind::TopicNotFound {
                Error::new(ErrorKind::Interrupted, error.context())
            } else {
                error
            });
        }
        if look {
            next_look = Instant::now() + every;
        }
        if now >= next_check {
            next_check = now + LOOK_MOST;
            if check_topic(inner, conn).await? != partitions {
                return Err(Error::new(ErrorKind::Interrupted, "partitions were added"));
            }
        }
        let due = {
            let state = inner.lock();
            match state.due.peek() {
                // Nobody waits for it: whoever asks next wakes this.
                Some(Reverse((at, ..))) if state.wanted > 0 => Some(*at),
                _ => None,
            }
        };
        let wake_at = due.map_or(next_look, |due| due.min(next_look));
        tokio::select! {
            () = tokio::time::sleep_until(wake_at.into()) => {}
            () = inner.sooner.notified() => {}
            () = conn.ended() => return Err(error::broken(&inner.shared.config.address())),
        }
    }
}

/// Gives back what was read and not taken in time, with no attempt counted.
async fn return_late(inner: &Inner, conn: &Conn) -> Result<()> {
    let late: Vec<((u32, EntryId), Held)> = {
        let mut state = inner.lock();
        inner.set_late_aside(&mut state);
        std::mem::take(&mut state.late)
            .into_iter()
            .filter_map(|at| Some((at, state.held.remove(&at)?)))
            .collect()
    };
    let now = inner.clock.now();
    let mut pipe = redis::pipe();
    for (at, held) in late.into_iter().filter(|(_, held)| held.until > now) {
        inner.give_back(&mut pipe, at, held.attempt.saturating_sub(1), Duration::ZERO);
    }
    conn.call_all(&pipe).await?;
    Ok(())
}

/// Gives back what nobody settled: what was never handed over with no attempt counted.
async fn leave(inner: &Inner) -> Result<()> {
    let (unseen, held) = {
        let mut state = inner.lock();
        let unseen: Vec<(u32, EntryId)> = state
            .buffer
            .drain(..)
            .map(|buffered| (buffered.partition, buffered.id))
            .collect();
        (unseen, std::mem::take(&mut state.held))
    };
    let conn = inner.shared.link.conn().await?;
    let now = inner.clock.now();
    let mut pipe = redis::pipe();
    for (at, held) in held.into_iter().filter(|(_, held)| held.until > now) {
        let attempt = held.attempt.saturating_sub(u32::from(unseen.contains(&at)));
        inner.give_back(&mut pipe, at, attempt, Duration::ZERO);
    }
    conn.ask_all(&pipe).await?;
    remove_consumer(inner, &conn).await
}

/// Takes this member's name off the server, where nothing is pending under it: that would be lost.
async fn remove_consumer(inner: &Inner, conn: &Conn) -> Result<()> {
    for partition in 0..inner.topic.partitions {
        let key = inner.key(partition);
        let mut pending = redis::cmd("XPENDING");
        pending
            .arg(&key)
            .arg(&inner.group)
            .arg("-")
            .arg("+")
            .arg(1)
            .arg(&inner.name);
        if conn.call(&pending).await?.array().is_empty() {
            let mut remove = redis::cmd("XGROUP");
            remove
                .arg("DELCONSUMER")
                .arg(&key)
                .arg(&inner.group)
                .arg(&inner.name);
            conn.call(&remove).await?;
        }
    }
    Ok(())
}
