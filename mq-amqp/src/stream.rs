//! Questions to a stream that the protocol has no request for: what is in it, where it begins and ends, what was sent
//! when.
//!
//! They are answered by a consumer of a moment. The server sends what it finds in one burst, as soon as there is
//! something; every stream has something from the beginning. A request on the same channel that is answered after the
//! first message tells that the whole burst is there.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::{Consumer, message::Delivery, options::BasicAckOptions};
use mq_api::{Error, ErrorKind, Offset, Result, Timestamp};

use crate::{
    format,
    link::{Chan, From},
};

/// How much is asked for at a time where the whole is wanted.
const WHOLE: u16 = 4096;
/// How much is asked for where the first few are wanted.
const FEW: u16 = 16;

/// Says where a stream begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The first message, or `next` where there is none.
    pub(crate) first: Offset,
    /// What the next message will have.
    pub(crate) next: Offset,
}

/// What a burst brought.
struct Burst {
    messages: Vec<(Offset, Delivery)>,
    /// Whether there is no more than that.
    complete: bool,
}

/// Reads what is in a stream from a place on; nothing where nothing comes within `patience`.
async fn burst(
    chan: &Chan,
    queue: &str,
    tag: &str,
    from: From,
    most: u16,
    patience: Duration,
) -> Result<Burst> {
    chan.prefetch(most).await?;
    let mut consumer = chan.consume_stream(queue, tag, from).await?;
    let mut messages = Vec::new();
    match tokio::time::timeout(patience, consumer.next()).await {
        Ok(Some(Ok(delivery))) => push(&mut messages, delivery)?,
        Ok(Some(Err(error))) => return Err(chan.map(&error)),
        Ok(None) => return Err(cut_short()),
        Err(_) => {
            return Ok(Burst {
                messages,
                complete: false,
            });
        }
    }
    let mut acked = 0;
    loop {
        chan.prefetch(most).await?;
        drain(chan, &mut consumer, &mut messages)?;
        let complete = messages.len() - acked < usize::from(most);
        if complete || most < WHOLE {
            chan.cancel(tag).await?;
            return Ok(Burst { messages, complete });
        }
        acked = messages.len();
        if let Some((_, last)) = messages.last() {
            let all = BasicAckOptions { multiple: true };
            last.ack(all).await.map_err(|e| chan.map(&e))?;
        }
    }
}

fn drain(chan: &Chan, consumer: &mut Consumer, messages: &mut Vec<(Offset, Delivery)>) -> Result<()> {
    while let Some(next) = consumer.next().now_or_never() {
        match next {
            Some(Ok(delivery)) => push(messages, delivery)?,
            Some(Err(error)) => return Err(chan.map(&error)),
            None => return Err(cut_short()),
        }
    }
    Ok(())
}

fn push(messages: &mut Vec<(Offset, Delivery)>, delivery: Delivery) -> Result<()> {
    messages.push((format::offset_of(&delivery)?, delivery));
    Ok(())
}

/// Makes the error of a question that was cut short. The server does so where the queue is deleted, which it says when
/// asked again, but also where the queue's process ends or moves to another node.
fn cut_short() -> Error {
    Error::new(
        ErrorKind::Interrupted,
        "a queue was taken away while it was asked",
    )
}

/// Makes the error of a queue that was deleted while it was read.
pub(crate) fn cancelled() -> Error {
    Error::new(
        ErrorKind::TopicNotFound,
        "the queue was deleted while it was read",
    )
}

/// Reads all that is in a stream now.
pub(crate) async fn read_all(
    chan: &Chan,
    queue: &str,
    patience: Duration,
) -> Result<Vec<(Offset, Delivery)>> {
    Ok(burst(chan, queue, "all", From::First, WHOLE, patience)
        .await?
        .messages)
}

/// Finds where a partition begins and ends.
pub(crate) async fn bounds(chan: &Chan, queue: &str) -> Result<Bounds> {
    let patience = chan.conn().limit();
    let head = burst(chan, queue, "head", From::First, FEW, patience).await?;
    let next = if head.complete {
        end_of(&head)
    } else {
        let tail = burst(chan, queue, "tail", From::LastChunk, WHOLE, patience).await?;
        end_of(&tail).max(end_of(&head))
    };
    let next = next.ok_or_else(|| Error::timeout("finding the end of a partition", patience))?;
    let first = head
        .messages
        .iter()
        .find(|(_, delivery)| !format::is_begin(&delivery.properties))
        .map_or(next, |(offset, _)| *offset);
    Ok(Bounds { first, next })
}

/// Finds where a partition ends.
pub(crate) async fn end(chan: &Chan, queue: &str) -> Result<Offset> {
    let patience = chan.conn().limit();
    let tail = burst(chan, queue, "tail", From::LastChunk, WHOLE, patience).await?;
    end_of(&tail).ok_or_else(|| Error::timeout("finding the end of a partition", patience))
}

fn end_of(burst: &Burst) -> Option<Offset> {
    burst.messages.last().map(|(offset, _)| offset + 1)
}

/// Looks for the first message stored at or after a time, by halving: stamps grow, as far as the senders' clocks agree.
pub(crate) async fn offset_at(chan: &Chan, queue: &str, time: Timestamp, bounds: Bounds) -> Result<Offset> {
    let (mut low, mut high) = (bounds.first, bounds.next);
    let mut looks = 0;
    while low < high {
        let middle = low + (high - low) / 2;
        looks += 1;
        let found = burst(
            chan,
            queue,
            &format!("look{looks}"),
            From::At(middle),
            1,
            chan.conn().limit(),
        )
        .await?;
        // The burst is a piece of the order: the last that is too early in it and the first that is not are both news.
        let mut first_late = None;
        for (offset, delivery) in &found.messages {
            if format::stored_at(&delivery.properties) < time {
                low = low.max(offset + 1);
            } else {
                first_late = Some(*offset);
                break;
            }
        }
        match (first_late, found.messages.first()) {
            (Some(late), Some((first, _))) if late > *first => return Ok(late.min(high)),
            (Some(_), _) => high = middle,
            (None, None) => high = middle,
            (None, Some(_)) => {}
        }
    }
    Ok(low.min(bounds.next))
}
