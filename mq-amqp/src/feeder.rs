//! Fills the queue of a shared group from the partitions of its topic.
//!
//! The members of the group own partitions as those of any other group do. The owner of one copies its messages into the
//! group's queue, waits until they are stored there, and commits. So a group sees all that is retained when it is made,
//! and what is doubled when a partition changes hands is one batch at most.

use std::{future::poll_fn, sync::Arc, time::Duration};

use lapin::{
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use mq_api::{
    Error, ErrorKind, Result,
    driver::{AssignmentId, Batch, Commit, Event, Events, Record},
};
use tokio::sync::watch;

use crate::{
    format,
    link::{Backoff, Chan, text},
    member::Member,
    outbox::AmqpEvents,
};

/// How many messages may wait in the queue before no more are copied.
const MOST_WAITING: u32 = 5000;
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// What part of the room that was seen one member fills before it looks again: others fill it too.
const PART: u32 = 4;

/// What the members who receive hear of the feeding.
#[derive(Clone, Debug, Default)]
pub(crate) enum Feeding {
    #[default]
    Works,
    /// It ended, and so does the consumer.
    Failed(Error),
}

pub(crate) struct Feeder {
    pub(crate) member: Arc<Member>,
    pub(crate) queue: String,
    pub(crate) told: watch::Sender<Feeding>,
}

/// The channel that copies go through.
struct Pipe {
    chan: Chan,
    /// How many messages may go before the queue is looked at again.
    room: u32,
}

/// Where a message of the queue comes from.
pub(crate) struct Origin {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
}

pub(crate) fn work_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    // The engine counts attempts and has a place for what fails too often; the server's own limit would drop messages.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(1_000_000));
    arguments
}

impl Feeder {
    /// Runs until the member has left.
    pub(crate) async fn run(self, mut ended: watch::Receiver<()>) {
        let mut events = AmqpEvents::new(Arc::clone(&self.member.outbox), ());
        let mut pipe = None;
        loop {
            let event = tokio::select! {
                event = poll_fn(|cx| events.poll_event(cx)) => event,
                _ = ended.changed() => return,
            };
            let error = match event {
                Ok(Event::Batch(batch)) => {
                    tokio::select! {
                        () = self.feed(&batch, &mut pipe) => continue,
                        _ = ended.changed() => return,
                    }
                }
                Ok(Event::Revoked(ids)) => {
                    // All that came before is copied and committed.
                    if let Err(error) = self.member.release(&ids).await {
                        tracing::debug!(%error, "a partition of a shared group was given back late");
                    }
                    continue;
                }
                Ok(Event::TopicGone) => mq_api::driver::topic_not_found(&self.member.open.topic.name),
                Ok(_) => continue,
                Err(error) => error,
            };
            self.told.send_replace(Feeding::Failed(error));
            return;
        }
    }

    /// Copies a batch, however often it takes, as long as the partition is this member's.
    async fn feed(&self, batch: &Batch, pipe: &mut Option<Pipe>) {
        let id = batch.assignment;
        let mut backoff = Backoff::new();
        while self.member.has(id) {
            match self.copy(id, batch, pipe).await {
                Ok(true) => return,
                Ok(false) => tokio::time::sleep(FULL_PAUSE).await,
                Err(error) => {
                    tracing::debug!(%error, partition = id.partition, "feeding a shared group was interrupted");
                    *pipe = None;
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// Copies and commits; false where the queue is full.
    async fn copy(&self, id: AssignmentId, batch: &Batch, slot: &mut Option<Pipe>) -> Result<bool> {
        if slot.as_ref().is_none_or(|pipe| !pipe.chan.conn().is_alive()) {
            let conn = self.member.shared.publish.conn().await?;
            let chan = conn.confirm_channel().await?;
            *slot = Some(Pipe { chan, room: 0 });
        }
        let Some(Pipe { chan, room }) = slot else {
            return Ok(false);
        };
        let count = u32::try_from(batch.records.len()).unwrap_or(u32::MAX);
        if *room < count {
            let look = QueueDeclareOptions::durable().passive();
            let (waiting, _) = chan.declare(&self.queue, look, FieldTable::default()).await?;
            if waiting >= MOST_WAITING {
                return Ok(false);
            }
            *room = ((MOST_WAITING - waiting) / PART).max(count);
        }
        *room -= count;
        let _copying = self.member.copying.lock().await;
        if !self.member.has(id) {
            return Ok(true);
        }
        let mut messages = Vec::with_capacity(batch.records.len());
        for record in batch.records.iter() {
            let properties = copied(id.partition, record)?;
            messages.push((record.message.payload_or_empty(), properties));
        }
        if !chan.publish_all(&self.queue, messages).await? {
            return Err(Error::new(
                ErrorKind::Interrupted,
                "the queue of a shared group takes nothing",
            ));
        }
        let commit = Commit::new(id, batch.next_offset);
        for result in self.member.commit(vec![commit]).await {
            result?;
        }
        Ok(true)
    }
}

fn copied(partition: u32, record: &Record) -> Result<lapin::BasicProperties> {
    let stamp = record.stored_at.as_millis().saturating_mul(1000);
    let properties = format::encode(&record.message, stamp, None)?;
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert("from".into(), AMQPValue::LongLongInt(i64::from(partition)));
    let offset = i64::try_from(record.offset).unwrap_or(i64::MAX);
    headers.insert("at".into(), AMQPValue::LongLongInt(offset));
    Ok(properties.with_headers(headers))
}

pub(crate) fn origin(properties: &lapin::BasicProperties) -> Option<Origin> {
    let headers = properties.headers().as_ref()?;
    Some(Origin {
        partition: u32::try_from(format::number(headers, "from")?).ok()?,
        offset: u64::try_from(format::number(headers, "at")?).ok()?,
    })
}

/// Says how often a message has been handed to a member, this time included.
///
/// RabbitMQ 3 counts each return in `x-delivery-count`. RabbitMQ 4.3 counts there only what was returned as failed, and
/// what was handed out at all in another header.
pub(crate) fn attempt(properties: &lapin::BasicProperties) -> u32 {
    let Some(headers) = properties.headers() else {
        return 1;
    };
    ["x-delivery-count", "x-acquired-count"]
        .into_iter()
        .filter_map(|name| format::number(headers, name))
        .filter_map(|count| u32::try_from(count).ok())
        .max()
        .unwrap_or(0)
        .saturating_add(1)
}
