//! The producer: one request under way for each partition, filled as a batch.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use mq_api::{
    Error, ErrorKind, Message, Outcome, Result, Timestamp,
    driver::{self, ProducerRequest, SendBatch, SendWindow},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    admin::no_partition,
    client::{QueueRef, Route},
    error::from_remoting,
    format::{BodyForm, body, write_properties},
    remoting::{BatchWriter, PropertyWriter, RemotingError, SendMessage, codes::response},
    topic::{Shared, Topic},
};

/// What brokers call those that send; it has no meaning to them.
pub(crate) const PRODUCER_GROUP: &str = "mq-producer";
/// The most bytes of one request: a broker takes 4 MiB, and this leaves room for what it adds.
const MAX_BATCH: usize = 4 * 1024 * 1024 - 64 * 1024;
/// The most that the portable layer gathers in a batch, by weight.
const BATCH_WEIGHT: usize = 2 * 1024 * 1024;
const BATCH_MESSAGES: usize = 1024;

/// Produces to one topic.
pub(crate) struct RocketMqProducer {
    topic: Topic,
    /// Bounded by the window: one batch of each partition.
    batches: mpsc::UnboundedSender<SendBatch>,
    partitions: watch::Receiver<u32>,
    closed: AtomicBool,
    window: SendWindow,
    task: AbortHandle,
}

impl Drop for RocketMqProducer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RocketMqProducer {
    pub(crate) async fn open(shared: &Arc<Shared>, request: &ProducerRequest) -> Result<Arc<Self>> {
        let (topic, route) = shared.open(&request.topic).await?;
        let (count, partitions) = watch::channel(count_of(&route));
        let (batches, waiting) = mpsc::unbounded_channel();
        let lanes = Lanes {
            shared: Arc::clone(shared),
            routes: shared.cluster.watch(&topic.physical),
            route,
            topic: topic.clone(),
        };
        let most = request.max_batch.clamp(1, BATCH_MESSAGES);
        Ok(Arc::new(Self {
            topic,
            batches,
            partitions,
            closed: AtomicBool::new(false),
            window: SendWindow::new(1, most, BATCH_WEIGHT),
            task: tokio::spawn(lanes.run(waiting, count)).abort_handle(),
        }))
    }
}

fn count_of(route: &Route) -> u32 {
    u32::try_from(route.layout.len()).unwrap_or(u32::MAX)
}

/// Sends for one producer.
struct Lanes {
    shared: Arc<Shared>,
    topic: Topic,
    routes: watch::Receiver<Option<Arc<Route>>>,
    route: Arc<Route>,
}

impl Lanes {
    async fn run(mut self, mut waiting: mpsc::UnboundedReceiver<SendBatch>, count: watch::Sender<u32>) {
        let mut flights = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = flights.next(), if !flights.is_empty() => {}
                batch = waiting.recv() => match batch {
                    Some(batch) => {
                        let queue = self.route.layout.queue(batch.partition()).cloned();
                        let flight = Flight {
                            shared: Arc::clone(&self.shared),
                            topic: self.topic.clone(),
                            partitions: self.route.layout.len(),
                        };
                        flights.push(flight.send(queue, batch));
                    }
                    None => return,
                },
                changed = self.routes.changed() => {
                    if changed.is_err() {
                        // The topic was deleted by this client; brokers refuse it from now on.
                        self.routes = self.shared.cluster.watch(&self.topic.physical);
                    }
                    self.take_route(&count);
                }
            }
        }
    }

    fn take_route(&mut self, count: &watch::Sender<u32>) {
        let known = self.routes.borrow_and_update().clone();
        // Partitions that a route does not show are not gone.
        if let Some(route) = known
            && route.layout.len() >= self.route.layout.len()
        {
            self.route = route;
            let now = count_of(&self.route);
            count.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    }
}

struct Flight {
    shared: Arc<Shared>,
    topic: Topic,
    partitions: usize,
}

/// Messages of a batch that go out in one request.
struct Chunk {
    /// Which messages of the batch, in order.
    messages: Vec<usize>,
    body: Bytes,
    /// Set where the message goes alone.
    properties: Option<String>,
}

impl Flight {
    async fn send(self, queue: Option<QueueRef>, batch: SendBatch) {
        let Some(queue) = queue else {
            batch.fail_all(&no_partition(&self.topic, batch.partition(), self.partitions));
            return;
        };
        let all = batch.begin_io(0..batch.len());
        let mut at = 0;
        while at < batch.len() {
            let Some(chunk) = self.next_chunk(&batch, &mut at, all, BATCH_MESSAGES) else {
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
                    if let Some(error) = self.send_alone(&queue, &batch, *first, at, all).await {
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

    /// What follows a failure was not sent, and must not overtake.
    fn give_up(&self, batch: &SendBatch, from: usize, error: &Error) {
        if error.kind() == ErrorKind::TopicNotFound {
            self.shared.cluster.hurry();
        }
        batch.fail(from..batch.len(), &error.clone().with_outcome(Outcome::NotSent));
    }

    /// Sends messages one by one; returns the error that is not one message's own.
    async fn send_alone(
        &self,
        queue: &QueueRef,
        batch: &SendBatch,
        from: usize,
        to: usize,
        all: bool,
    ) -> Option<Error> {
        let mut at = from;
        while at < to {
            let Some(chunk) = self.next_chunk(batch, &mut at, all, 1) else {
                continue;
            };
            if let Err(error) = self.send_chunk(queue, batch, &chunk).await {
                let illegal = error.refusal() == Some(response::MESSAGE_ILLEGAL);
                let error = from_remoting(error);
                fail(batch, &chunk.messages, &error);
                if !illegal {
                    return Some(error);
                }
            }
        }
        None
    }

    /// Encodes messages from `at` on, as many as fit; none where there is none left to send.
    fn next_chunk(&self, batch: &SendBatch, at: &mut usize, all: bool, most: usize) -> Option<Chunk> {
        let mut out = BytesMut::new();
        let mut messages = Vec::new();
        while let Some(message) = batch.messages().get(*at) {
            if messages.len() >= most || (!messages.is_empty() && message.due().is_some()) {
                break;
            }
            // Given up before; the portable layer has told so.
            if !all && !batch.begin_one(*at) {
                *at += 1;
                continue;
            }
            let before = out.len();
            let written = if message.due().is_some() {
                self.write_alone(message).map(|(body, properties)| {
                    out.extend_from_slice(&body);
                    Some(properties)
                })
            } else {
                self.write_batched(message, &mut out).map(|()| None)
            };
            let alone = match written {
                Ok(alone) => alone,
                Err(error) => {
                    let error = Error::new(ErrorKind::MessageTooLarge, error.to_string());
                    batch.fail(*at..*at + 1, &error);
                    *at += 1;
                    continue;
                }
            };
            if out.len() > MAX_BATCH && !messages.is_empty() {
                out.truncate(before);
                break;
            }
            messages.push(*at);
            *at += 1;
            if alone.is_some() {
                return Some(Chunk {
                    messages,
                    body: out.freeze(),
                    properties: alone,
                });
            }
        }
        (!messages.is_empty()).then(|| Chunk {
            messages,
            body: out.freeze(),
            properties: None,
        })
    }

    fn write_batched(&self, message: &Message, out: &mut BytesMut) -> Result<(), RemotingError> {
        let tag = self.shared.config.tag_header.as_deref();
        let key = self.shared.session.unique_keys().next();
        BatchWriter::new(out).push(0, body(message, BodyForm::Batched), |properties| {
            write_properties(properties, message, key.as_str(), tag, BodyForm::Batched)
        })
    }

    fn write_alone(&self, message: &Message) -> Result<(Bytes, String), RemotingError> {
        let key = self.shared.session.unique_keys().next();
        let tag = self.shared.config.tag_header.as_deref();
        single(message, key.as_str(), tag, &[])
    }

    async fn send_chunk(
        &self,
        queue: &QueueRef,
        batch: &SendBatch,
        chunk: &Chunk,
    ) -> Result<(), RemotingError> {
        let deadline = self.shared.deadline().min(Instant::from_std(batch.deadline()));
        let request = SendMessage {
            group: PRODUCER_GROUP,
            topic: &self.topic.physical,
            default_topic: "TBW102",
            default_queues: 4,
            queue: queue.queue,
            born: Timestamp::now().as_millis(),
            properties: chunk.properties.as_deref(),
            reconsume_times: Some(0),
            unit_mode: Some(false),
            batch: chunk.properties.is_none(),
            broker: Some(&queue.broker),
            ..SendMessage::default()
        };
        let receipt = self
            .shared
            .session
            .send(&queue.broker, &request, &chunk.body, deadline)
            .await?;
        // The offset of a delayed message belongs to the queue that it waits in.
        let first = match chunk.properties {
            None => u64::try_from(receipt.offset).ok(),
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

/// Encodes a message that goes alone: its body, and its properties with others before them.
pub(crate) fn single(
    message: &Message,
    unique_key: &str,
    tag_header: Option<&str>,
    before: &[(&str, &str)],
) -> Result<(Bytes, String), RemotingError> {
    let mut text = BytesMut::new();
    let mut writer = PropertyWriter::new(&mut text);
    for (name, value) in before {
        writer.put(name, value)?;
    }
    write_properties(&mut writer, message, unique_key, tag_header, BodyForm::Single)?;
    let properties =
        String::from_utf8(text.to_vec()).map_err(|_| RemotingError::malformed("properties", "not UTF-8"))?;
    Ok((
        Bytes::copy_from_slice(body(message, BodyForm::Single)),
        properties,
    ))
}

fn fail(batch: &SendBatch, messages: &[usize], error: &Error) {
    for index in messages {
        batch.fail(*index..*index + 1, error);
    }
}

#[async_trait]
impl driver::Producer for RocketMqProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.partitions.clone()
    }

    fn window(&self) -> SendWindow {
        self.window
    }

    fn send(&self, batch: SendBatch) {
        if self.closed.load(Ordering::Acquire) {
            batch.fail_all(&Error::closed("producer"));
            return;
        }
        if let Err(mpsc::error::SendError(batch)) = self.batches.send(batch) {
            batch.fail_all(&Error::closed("producer"));
        }
    }

    fn store_now(
        &self,
        _: u32,
        message: Message,
        _: &mut driver::Wakes,
    ) -> Result<Option<mq_api::Offset>, Message> {
        Err(message)
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        // What is still under way settles by itself when it is dropped.
        self.task.abort();
        Ok(())
    }
}

impl fmt::Debug for RocketMqProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocketMqProducer")
            .field("topic", &self.topic.name)
            .field("partitions", &*self.partitions.borrow())
            .finish_non_exhaustive()
    }
}
