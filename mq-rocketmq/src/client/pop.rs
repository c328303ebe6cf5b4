//! POP: messages with a lease, for members that share a group.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::session::Session;
use crate::remoting::codes::{request as codes, response};
use crate::remoting::{
    Ack, BatchAck, BatchAckBody, ChangeInvisible, JsonBody, Plain, Pop, PopReceipt, PopTopicKind,
    RemotingError, StartOffsets, StoredMessage, StoredMessages, ack_bits,
};

/// The most messages that a broker pops at once; it refuses to be asked for more.
const MOST: usize = 32;
/// What the way of a poll may take beyond its wait.
const POLL_SLACK: Duration = Duration::from_secs(5);

/// What to pop, and how long to wait for it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PopOptions<'a> {
    /// The most messages, 32 at most.
    pub max_messages: usize,
    /// The lease. A broker is up to four seconds late to bring a message back.
    pub lease: Duration,
    /// How long the broker may wait for a message; zero answers at once.
    pub wait: Duration,
    /// Whether a new group begins at the newest message; brokers may deliver older ones all the same.
    pub from_latest: bool,
    /// The tag expression.
    pub expression: &'a str,
}

impl Default for PopOptions<'_> {
    fn default() -> Self {
        let lease = Duration::from_secs(60);
        Self {
            max_messages: MOST,
            lease,
            wait: Duration::ZERO,
            from_latest: false,
            expression: "*",
        }
    }
}

/// A popped message.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PopMessage {
    /// The message.
    pub message: StoredMessage,
    /// The right to settle it, until its lease is over.
    pub receipt: PopReceipt,
}

/// What a pop found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Popped {
    /// The messages, maybe none.
    pub messages: Vec<PopMessage>,
    /// Too many pops wait at this broker; another one should be asked.
    pub polling_full: bool,
}

impl Session {
    /// Takes messages of a topic on one broker, from any of its queues if `queue` is `None`.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Refused`] with [`TOPIC_NOT_EXIST`](response::TOPIC_NOT_EXIST) for an unknown topic, or what
    /// server and connection say.
    ///
    /// # Cancel safety
    ///
    /// Messages that were taken come back when the lease is over.
    pub async fn pop(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        queue: Option<i32>,
        options: &PopOptions<'_>,
        deadline: Instant,
    ) -> Result<Popped, RemotingError> {
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let born = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
        let request = Pop {
            group,
            topic,
            queue: queue.unwrap_or(-1),
            max_messages: options.max_messages.clamp(1, MOST) as i32,
            invisible_ms: millis(options.lease),
            poll_ms: millis(options.wait),
            born,
            init_mode: i32::from(options.from_latest),
            expression_type: Some("TAG"),
            expression: Some(options.expression),
            order: Some(false),
            broker: Some(broker),
        };
        let deadline = if options.wait.is_zero() {
            deadline
        } else {
            deadline + options.wait + POLL_SLACK
        };
        let (connection, answer) = self.call(broker, &request, &(), deadline).await?;
        match answer.code() {
            response::SUCCESS => {}
            response::POLLING_FULL => {
                return Ok(Popped {
                    messages: Vec::new(),
                    polling_full: true,
                });
            }
            response::POLLING_TIMEOUT | response::PULL_NOT_FOUND => return Ok(Popped::default()),
            _ => return Err(connection.refused(codes::POP_MESSAGE, &answer)),
        }
        let starts = StartOffsets::parse(
            answer
                .field::<Option<&str>>("startOffsetInfo")?
                .unwrap_or_default(),
        )?;
        let (pop_time, invisible_ms) = (answer.field("popTime")?, answer.field("invisibleTime")?);
        let revive_queue = answer.field("reviveQid")?;
        let receipt = |message: &StoredMessage| -> Result<PopReceipt, RemotingError> {
            // A message that came back carries its receipt; the answer has the parts of all others.
            if let Some(receipt) = message.property("POP_CK") {
                return receipt.parse();
            }
            let kind = PopTopicKind::of(message.topic()?);
            Ok(PopReceipt {
                start_offset: starts.find(kind, message.queue).unwrap_or(message.offset),
                pop_time,
                invisible_ms,
                revive_queue,
                kind,
                broker: broker.into(),
                queue: message.queue,
                offset: message.offset,
            })
        };
        let messages = StoredMessages::new(answer.body.clone())
            .map(|message| {
                let message = message?;
                Ok(PopMessage {
                    receipt: receipt(&message)?,
                    message,
                })
            })
            .collect::<Result<_, RemotingError>>()?;
        Ok(Popped {
            messages,
            polling_full: false,
        })
    }

    /// Settles one popped message. A broker takes an ack twice, and one under a lease that is over, without a word.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// It may be settled.
    pub async fn pop_ack(
        &self,
        group: &str,
        topic: &str,
        receipt: &PopReceipt,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let stored_topic = receipt.kind.stored_topic(topic, group);
        let text = receipt.to_string();
        let request = Ack {
            group,
            topic: &stored_topic,
            queue: receipt.queue,
            receipt: &text,
            offset: receipt.offset,
            broker: Some(&receipt.broker),
        };
        self.ask(&receipt.broker, &request, &(), deadline).await.map(drop)
    }

    /// Settles popped messages of one broker in one request; those that a receipt of another broker names are left
    /// out.
    ///
    /// # Errors
    ///
    /// What server and connection say; nothing is known of any of them then.
    ///
    /// # Cancel safety
    ///
    /// They may be settled.
    pub async fn pop_ack_all(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        receipts: &[&PopReceipt],
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        type OnePop = (&'static str, i64, i32, i32, i64, i64);
        let mut pops: BTreeMap<OnePop, Vec<i64>> = BTreeMap::new();
        for receipt in receipts.iter().filter(|receipt| *receipt.broker == *broker) {
            let PopReceipt {
                start_offset,
                queue,
                revive_queue,
                pop_time,
                invisible_ms,
                ..
            } = **receipt;
            let pop = (
                receipt.kind.digit(),
                start_offset,
                queue,
                revive_queue,
                pop_time,
                invisible_ms,
            );
            pops.entry(pop).or_default().push(receipt.offset);
        }
        let acks = pops.into_iter().map(|(pop, offsets)| {
            let (retry, start_offset, queue, revive_queue, pop_time, invisible_ms) = pop;
            BatchAck {
                group: group.to_owned(),
                topic: topic.to_owned(),
                retry: retry.to_owned(),
                start_offset,
                queue,
                revive_queue,
                pop_time,
                invisible_ms,
                bits: ack_bits(start_offset, offsets),
            }
        });
        let body = BatchAckBody {
            broker_name: broker.to_owned(),
            acks: acks.collect(),
        };
        self.ask(
            broker,
            &Plain(codes::BATCH_ACK_MESSAGE),
            &JsonBody(&body),
            deadline,
        )
        .await
        .map(drop)
    }

    /// Sets the lease of a popped message anew, from now; a short one brings it back soon. Returns the receipt to use
    /// from now on.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// The lease may be set under a receipt that is not known; the message then comes back when it is over.
    pub async fn pop_extend(
        &self,
        group: &str,
        topic: &str,
        receipt: &PopReceipt,
        lease: Duration,
        deadline: Instant,
    ) -> Result<PopReceipt, RemotingError> {
        let stored_topic = receipt.kind.stored_topic(topic, group);
        let text = receipt.to_string();
        let request = ChangeInvisible {
            group,
            topic: &stored_topic,
            queue: receipt.queue,
            receipt: &text,
            offset: receipt.offset,
            invisible_ms: i64::try_from(lease.as_millis()).unwrap_or(i64::MAX),
            broker: Some(&receipt.broker),
        };
        let answer = self.ask(&receipt.broker, &request, &(), deadline).await?;
        Ok(PopReceipt {
            // The new checkpoint covers this message alone.
            start_offset: receipt.offset,
            pop_time: answer.field("popTime")?,
            invisible_ms: answer.field("invisibleTime")?,
            revive_queue: answer.field("reviveQid")?,
            ..receipt.clone()
        })
    }
}
