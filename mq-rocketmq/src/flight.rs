//! One batch on its way: encoded in requests as large as fit, sent one after the other.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mq_api::{Error, ErrorKind, Message, Outcome, Timestamp, driver::SendBatch};
use tokio::time::Instant;

use crate::{
    admin::no_partition,
    client::QueueRef,
    error::from_remoting,
    format::{BodyForm, body, write_properties},
    packing::Packed,
    remoting::{BatchWriter, PropertyWriter, RemotingError, SendMessage, codes::response},
    topic::{Shared, Topic},
};

/// What brokers call those that send; it has no meaning to them.
const PRODUCER_GROUP: &str = "mq-producer";
/// The most bytes of one request: a broker takes 4 MiB, and this leaves room for what it adds.
const MAX_BATCH: usize = 4 * 1024 * 1024 - 64 * 1024;
/// The most messages of one request.
pub(crate) const BATCH_MESSAGES: usize = 1024;

pub(crate) struct Flight {
    pub(crate) shared: Arc<Shared>,
    pub(crate) topic: Topic,
    pub(crate) partitions: usize,
}

/// A batch whose messages the portable layer counts as sent from now on.
struct Begun<'a> {
    batch: &'a SendBatch,
    packed: &'a Packed,
    /// Whether none of them was given up before.
    all: bool,
}

/// Messages of a batch that go out in one request.
struct Chunk {
    /// Which messages of the batch, in order.
    messages: Vec<usize>,
    body: Bytes,
    /// How the bodies are compressed, in RocketMQ's bits.
    sys_flag: i32,
    /// Set where the message goes alone.
    properties: Option<String>,
}

impl Flight {
    pub(crate) async fn send(self, queue: Option<QueueRef>, batch: SendBatch) {
        let Some(queue) = queue else {
            batch.fail_all(&no_partition(&self.topic, batch.partition(), self.partitions));
            return;
        };
        let packed = Packed::new(batch.messages(), &self.shared.config).await;
        // Only what may have left counts as sent.
        let deadline = self.deadline(&batch);
        if let Err(error) = self.shared.session.reach(&queue.broker, deadline).await {
            let error = from_remoting(error).with_outcome(Outcome::NotSent);
            batch.fail_all(&error);
            return;
        }
        let begun = Begun {
            all: batch.begin_io(0..batch.len()),
            batch: &batch,
            packed: &packed,
        };
        let mut at = 0;
        while at < batch.len() {
            let Some(chunk) = self.next_chunk(&begun, &mut at, BATCH_MESSAGES) else {
                continue;
            };
            let Err(error) = self.send_chunk(&queue, &batch, &chunk).await else {
                continue;
            };
            let illegal = error.refusal() == Some(response::MESSAGE_ILLEGAL);
            let error = from_remoting(error);
            match (illegal, chunk.messages.as_slice()) {
                // One of them is at fault; the others are not to suffer.
                (true, [first, _, ..]) => {
                    if let Some(error) = self.send_alone(&queue, &begun, *first, at).await {
                        self.give_up(&batch, at, &error);
                        return;
                    }
                }
                (true, _) => fail(&batch, &chunk.messages, &error),
                (false, _) => {
                    fail(&batch, &chunk.messages, &error);
                    self.give_up(&batch, at, &error);
                    return;
                }
            }
        }
    }

    fn deadline(&self, batch: &SendBatch) -> Instant {
        self.shared.deadline().min(Instant::from_std(batch.deadline()))
    }

    /// What follows a failure was not sent, and must not overtake.
    fn give_up(&self, batch: &SendBatch, from: usize, error: &Error) {
        if error.kind() == ErrorKind::TopicNotFound {
            self.shared.cluster.hurry();
        }
        batch.fail(from..batch.len(), &error.clone().with_outcome(Outcome::NotSent));
    }

    /// Sends messages one by one; returns the error that is not one message's own.
    async fn send_alone(&self, queue: &QueueRef, begun: &Begun<'_>, from: usize, to: usize) -> Option<Error> {
        let mut at = from;
        while at < to {
            let Some(chunk) = self.next_chunk(begun, &mut at, 1) else {
                continue;
            };
            if let Err(error) = self.send_chunk(queue, begun.batch, &chunk).await {
                let illegal = error.refusal() == Some(response::MESSAGE_ILLEGAL);
                let error = from_remoting(error);
                fail(begun.batch, &chunk.messages, &error);
                if !illegal {
                    return Some(error);
                }
            }
        }
        None
    }

    /// Encodes messages from `at` on, as many as fit; none where there is none left to send.
    fn next_chunk(&self, begun: &Begun<'_>, at: &mut usize, most: usize) -> Option<Chunk> {
        let (batch, packed) = (begun.batch, begun.packed);
        let mut out = BytesMut::new();
        let mut messages = Vec::new();
        while let Some(message) = batch.messages().get(*at) {
            if messages.len() >= most || (!messages.is_empty() && message.due().is_some()) {
                break;
            }
            // Given up before; the portable layer has told so.
            if !begun.all && !batch.begin_one(*at) {
                *at += 1;
                continue;
            }
            let before = out.len();
            let written = if message.due().is_some() {
                self.write_alone(message, packed, *at).map(Some)
            } else {
                self.write_batched(message, packed.body(*at), &mut out)
                    .map(|()| None)
            };
            match written {
                Ok(Some((body, properties))) => {
                    messages.push(*at);
                    *at += 1;
                    return Some(Chunk {
                        messages,
                        body,
                        sys_flag: packed.sys_flag(),
                        properties: Some(properties),
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    let error = Error::new(ErrorKind::MessageTooLarge, error.to_string());
                    batch.fail(*at..*at + 1, &error);
                    *at += 1;
                    continue;
                }
            }
            if out.len() > MAX_BATCH && !messages.is_empty() {
                out.truncate(before);
                break;
            }
            messages.push(*at);
            *at += 1;
        }
        (!messages.is_empty()).then(|| Chunk {
            messages,
            body: out.freeze(),
            sys_flag: packed.sys_flag(),
            properties: None,
        })
    }

    fn write_batched(
        &self,
        message: &Message,
        packed: Option<&[u8]>,
        out: &mut BytesMut,
    ) -> Result<(), RemotingError> {
        let tag = self.shared.config.tag_header.as_deref();
        let key = self.shared.session.unique_keys().next();
        let body = packed.unwrap_or_else(|| body(message, BodyForm::Batched));
        BatchWriter::new(out).push(0, body, |properties| {
            write_properties(properties, message, key.as_str(), tag, BodyForm::Batched)
        })
    }

    fn write_alone(
        &self,
        message: &Message,
        packed: &Packed,
        at: usize,
    ) -> Result<(Bytes, String), RemotingError> {
        let key = self.shared.session.unique_keys().next();
        let delay = message.due().map(|due| self.shared.config.delays.property(due));
        let delay = delay.as_ref().map(|(name, value)| (*name, value.as_str()));
        let tag = self.shared.config.tag_header.as_deref();
        let properties = single_properties(message, key.as_str(), tag, delay.as_slice())?;
        let body = packed.body(at).unwrap_or_else(|| body(message, BodyForm::Single));
        Ok((Bytes::copy_from_slice(body), properties))
    }

    async fn send_chunk(
        &self,
        queue: &QueueRef,
        batch: &SendBatch,
        chunk: &Chunk,
    ) -> Result<(), RemotingError> {
        let request = SendMessage {
            group: PRODUCER_GROUP,
            topic: &self.topic.physical,
            default_topic: "TBW102",
            default_queues: 4,
            queue: queue.queue,
            sys_flag: chunk.sys_flag,
            born: Timestamp::now().as_millis(),
            properties: chunk.properties.as_deref(),
            reconsume_times: Some(0),
            unit_mode: Some(false),
            batch: chunk.properties.is_none(),
            broker: Some(&queue.broker),
            ..SendMessage::default()
        };
        let deadline = self.deadline(batch);
        let session = &self.shared.session;
        // The answer holds an id for each message too, which nobody here reads.
        let answer = session
            .ask(&queue.broker, &request, &chunk.body, deadline)
            .await?;
        // The offset of a delayed message belongs to the queue that it waits in.
        let first = match chunk.properties {
            None => u64::try_from(answer.field::<i64>("queueOffset")?).ok(),
            Some(_) => None,
        };
        if chunk.messages.len() == batch.len() {
            batch.complete_all(first);
        } else {
            for (at, index) in (0..).zip(&chunk.messages) {
                batch.complete_one(*index, first.map(|first| first + at));
            }
        }
        Ok(())
    }
}

/// Encodes the properties of a message that goes alone, with others before them.
pub(crate) fn single_properties(
    message: &Message,
    unique_key: &str,
    tag_header: Option<&str>,
    before: &[(&str, &str)],
) -> Result<String, RemotingError> {
    let mut text = BytesMut::new();
    let mut writer = PropertyWriter::new(&mut text);
    for (name, value) in before {
        writer.put(name, value)?;
    }
    write_properties(&mut writer, message, unique_key, tag_header, BodyForm::Single)?;
    String::from_utf8(text.to_vec()).map_err(|_| RemotingError::malformed("properties", "not UTF-8"))
}

fn fail(batch: &SendBatch, messages: &[usize], error: &Error) {
    for index in messages {
        batch.fail(*index..*index + 1, error);
    }
}
