//! Sending.

mod admit;
mod check;
mod close;
mod core;
mod direct;
mod effects;
mod land;
mod lane;
mod many;
mod options;
mod pending;
mod produce;
mod state;
mod task;

use std::{fmt, sync::Arc};

use tokio::task::coop;

use self::{
    core::{Core, Group, Refused, Taken, Target},
    produce::Produce,
};
pub use self::{options::ProducerBuilder, pending::PendingReceipt};
use crate::{Error, ErrorKind, Message, Outcome, Receipt, Result, TopicName};

/// Sends messages to one topic.
///
/// It is a handle: clones share one buffer and one order. What was taken is sent by the producer, not by the caller's
/// future, so dropping a future after that changes nothing. When the last handle is dropped without a close, what was
/// taken is still sent, within the close timeout.
///
/// Messages of one partition are stored in the order in which they were taken, as far as they are answered `Ok`. A send
/// that surely was not stored is tried again until its deadline, while nothing later of its partition is stored or may
/// be; a send whose outcome is unknown is never repeated unless
/// [`resend_unknown`](ProducerBuilder::resend_unknown) says so.
///
/// ```
/// # use mq_api::{Message, Mq};
/// # use mq_memory::MemoryMq;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> mq_api::Result<()> {
/// # let mq = Mq::from_driver(MemoryMq::new());
/// # mq.create_topic("orders", 4).await?;
/// let producer = mq.producer("orders").await?;
/// let receipt = producer.produce(Message::new("paid").with_key("user-7")).await?;
/// assert_eq!(receipt.offset, Some(0));
/// producer.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Producer {
    core: Arc<Core>,
    _handle: Arc<Handle>,
}

/// Tells how a producer is doing. The counters follow a settled send within moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerStatus {
    /// Messages that wait or are under way.
    pub buffered_messages: usize,
    /// Their bytes, by [`Message::weight`].
    pub buffered_bytes: usize,
    /// Messages that the driver has.
    pub in_flight_messages: usize,
    /// Messages that were stored.
    pub sent: u64,
    /// Messages that failed for good after they were taken.
    pub failed: u64,
    /// How often a message was set aside to be sent again.
    pub retried: u64,
    /// Messages of [`Producer::send_one_way`] that failed.
    pub one_way_failures: u64,
}

/// Tells the task when the last handle is gone.
struct Handle(Arc<Core>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.begin_close();
    }
}

const OPERATION: &str = "produce";

impl Producer {
    fn new(core: Arc<Core>) -> Self {
        Self {
            _handle: Arc::new(Handle(Arc::clone(&core))),
            core,
        }
    }

    /// Sends a message and waits until the backend has taken responsibility for it. The key chooses the partition; a
    /// message without one goes where it suits.
    ///
    /// # Errors
    /// Before any I/O: [`ErrorKind::InvalidMessage`], [`ErrorKind::MessageTooLarge`], [`ErrorKind::Unsupported`],
    /// [`ErrorKind::Closed`]. Then [`ErrorKind::Timeout`] after the producer's timeout, and what the backend says.
    /// [`Error::outcome`] tells whether the message may have been stored.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room, the message is withdrawn; dropped later, it is sent as if awaited.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// let first = producer.produce(Message::new("a").with_key("k")).await?;
    /// let second = producer.produce(Message::new("b").with_key("k")).await?;
    /// assert_eq!(first.partition, second.partition);
    /// # Ok(()) }
    /// ```
    pub fn produce(&self, message: impl Into<Message>) -> impl Future<Output = Result<Receipt>> {
        Produce::new(self, message.into(), None)
    }

    /// Sends a message to a partition that the caller chooses, and waits as [`produce`](Self::produce) does.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPartition`] where the topic does not have it; then nothing is stored. Else as
    /// [`produce`](Self::produce).
    ///
    /// # Cancel safety
    /// As [`produce`](Self::produce).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// assert_eq!(producer.produce_to(2, "shipped").await?.partition, 2);
    /// let error = producer.produce_to(4, "nowhere").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::InvalidPartition);
    /// # Ok(()) }
    /// ```
    pub fn produce_to(
        &self,
        partition: u32,
        message: impl Into<Message>,
    ) -> impl Future<Output = Result<Receipt>> {
        Produce::new(self, message.into(), Some(partition))
    }

    /// Sends messages together and waits for all of them; one result each, in order. One that is invalid fails alone.
    ///
    /// # Cancel safety
    /// Dropped, what was taken is sent as if awaited, and the rest is withdrawn.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// let results = producer.produce_batch(["a", "b", "c"]).await;
    /// assert!(results.iter().all(Result::is_ok));
    /// # Ok(()) }
    /// ```
    pub async fn produce_batch(
        &self,
        messages: impl IntoIterator<Item = impl Into<Message>>,
    ) -> Vec<Result<Receipt>> {
        // Held across waits, the caller's iterator would decide whether this future can be sent between threads.
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        many::produce_all(&self.core, messages, None).await
    }

    /// Sends messages to a partition that the caller chooses and waits for all of them, as
    /// [`produce_batch`](Self::produce_batch) does. Where the topic does not have the partition, each result is
    /// [`ErrorKind::InvalidPartition`] and nothing is stored.
    ///
    /// # Cancel safety
    /// As [`produce_batch`](Self::produce_batch).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// for result in producer.produce_batch_to(2, ["a", "b", "c"]).await {
    ///     assert_eq!(result?.partition, 2);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn produce_batch_to(
        &self,
        partition: u32,
        messages: impl IntoIterator<Item = impl Into<Message>>,
    ) -> Vec<Result<Receipt>> {
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        many::produce_all(&self.core, messages, Some(partition)).await
    }

    /// Puts a message into the buffer, waiting for room alone. When it returns, the place of the message in the order is
    /// fixed; await what it returns for the result.
    ///
    /// # Errors
    /// As [`produce`](Self::produce), before the message is sent.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room, the message is withdrawn.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// let first = producer.enqueue("a").await?;
    /// let second = producer.enqueue("b").await?;
    /// first.await?;
    /// second.await?;
    /// # Ok(()) }
    /// ```
    pub async fn enqueue(&self, message: impl Into<Message>) -> Result<PendingReceipt> {
        coop::consume_budget().await;
        let begun = self.begin(&mut message.into(), None);
        self.taken(begun).await
    }

    /// Puts a message for a partition that the caller chooses into the buffer, as [`enqueue`](Self::enqueue) does.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPartition`] where the topic does not have it; else as [`enqueue`](Self::enqueue).
    ///
    /// # Cancel safety
    /// Dropped while it waits for room, the message is withdrawn.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// let pending = producer.enqueue_to(1, "a").await?;
    /// assert_eq!(pending.await?.partition, 1);
    /// # Ok(()) }
    /// ```
    pub async fn enqueue_to(&self, partition: u32, message: impl Into<Message>) -> Result<PendingReceipt> {
        coop::consume_budget().await;
        let begun = self.begin(&mut message.into(), Some(partition));
        self.taken(begun).await
    }

    /// Puts a message into the buffer if there is room now.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceExhausted`], not sent, where the buffer is full; else as [`enqueue`](Self::enqueue).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// producer.try_enqueue("a")?.await?;
    /// # Ok(()) }
    /// ```
    pub fn try_enqueue(&self, message: impl Into<Message>) -> Result<PendingReceipt> {
        self.try_submit(message.into(), false)
    }

    /// Sends a message whose result nobody waits for. Failures are counted in
    /// [`ProducerStatus::one_way_failures`].
    ///
    /// # Errors
    /// What makes the message fail before it is sent; [`ErrorKind::ResourceExhausted`] where the buffer is full, which is
    /// counted too.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// producer.send_one_way("tick")?;
    /// producer.flush().await?;
    /// assert_eq!(producer.status().one_way_failures, 0);
    /// # Ok(()) }
    /// ```
    pub fn send_one_way(&self, message: impl Into<Message>) -> Result<()> {
        let result = self.try_submit(message.into(), true);
        if let Err(error) = &result
            && error.kind() == ErrorKind::ResourceExhausted
        {
            self.core.count_one_way_failure();
        }
        result.map(drop)
    }

    /// Waits until everything that was taken before is settled, well or not; each send's own deadline bounds it.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// producer.enqueue("a").await?;
    /// producer.enqueue("b").await?;
    /// producer.flush().await?;
    /// assert_eq!(mq.describe_topic("orders").await?.partitions[0].next_offset, 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after close.
    ///
    /// # Cancel safety
    /// It may be dropped at any point.
    pub async fn flush(&self) -> Result<()> {
        self.core
            .flush()
            .await
            .map_err(|error| error.with_operation("flush"))
    }

    /// Takes nothing new, sends what was taken, for at most the close timeout, and ends the producer. What is left then
    /// fails with [`ErrorKind::Closed`], as not sent or unknown. Every call after it is [`ErrorKind::Closed`].
    ///
    /// It is idempotent: whoever calls it, at the same time or later, gets the same result.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// producer.enqueue("paid").await?;
    /// producer.close().await?; // sends it
    /// assert_eq!(mq.describe_topic("orders").await?.partitions[0].next_offset, 1);
    /// assert_eq!(producer.produce("late").await.unwrap_err().kind(), mq_api::ErrorKind::Closed);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] where something was left, and what the backend says.
    ///
    /// # Cancel safety
    /// The close goes on when this future is dropped.
    pub async fn close(&self) -> Result<()> {
        self.core.begin_close();
        self.core.close.wait().await
    }

    /// Returns the topic.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let producer = mq.producer("orders").await?;
    /// assert_eq!(producer.topic().as_str(), "orders");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.core.topic
    }

    /// Returns how many partitions the topic has, as far as this producer knows; it grows when some are added.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// let producer = mq.producer("orders").await?;
    /// assert_eq!(producer.partitions(), 4);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.core.partitions()
    }

    /// Tells how the producer is doing.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// producer.produce("paid").await?;
    /// producer.flush().await?;
    /// assert_eq!(producer.status().failed, 0);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn status(&self) -> ProducerStatus {
        self.core.status()
    }

    fn try_submit(&self, mut message: Message, one_way: bool) -> Result<PendingReceipt> {
        let target = self.check(&mut message, None).map_err(operation)?;
        if let Some(receipt) = self.core.store_now(target, &mut message) {
            return Ok(PendingReceipt::new(Taken::Done(Ok(receipt))));
        }
        match self.core.submit(Group::of(target, message), None, one_way) {
            Ok(taken) => Ok(PendingReceipt::new(taken)),
            Err(Refused::Failed(error)) => Err(operation(error)),
            Err(Refused::Full(_)) => Err(operation(
                Error::new(
                    ErrorKind::ResourceExhausted,
                    format!(
                        "the buffer of the producer is full: {} messages, {} bytes",
                        self.core.options.buffer_messages, self.core.options.buffer_bytes
                    ),
                )
                .with_outcome(Outcome::NotSent),
            )),
        }
    }

    /// Checks a message and finds where it goes.
    #[inline]
    fn check(&self, message: &mut Message, partition: Option<u32>) -> Result<Target> {
        let target = match partition {
            Some(partition) => Some(self.core.explicit(partition)?),
            None => None,
        };
        self.core.prepare(message)?;
        match target {
            Some(target) => Ok(target),
            None => self.core.target(message),
        }
    }

    /// Begins a send without waiting. It is no future of its own, so that the message is moved as little as can be.
    #[inline]
    fn begin(&self, message: &mut Message, partition: Option<u32>) -> Result<Taken, Refused> {
        let target = self.check(message, partition).map_err(Refused::Failed)?;
        match self.core.store_now(target, message) {
            Some(receipt) => Ok(Taken::Done(Ok(receipt))),
            None => self.submit(target, message),
        }
    }

    fn submit(&self, target: Target, message: &mut Message) -> Result<Taken, Refused> {
        self.core
            .submit(Group::of(target, std::mem::take(message)), None, false)
    }

    async fn taken(&self, begun: Result<Taken, Refused>) -> Result<PendingReceipt> {
        match begun {
            Ok(taken) => Ok(PendingReceipt::new(taken)),
            Err(Refused::Failed(error)) => Err(operation(error)),
            // It is boxed, so that the futures of sends that find room stay small.
            Err(Refused::Full(group)) => Box::pin(self.when_there_is_room(group)).await,
        }
    }

    /// Waits for room, then begins the send.
    async fn when_there_is_room(&self, group: Group) -> Result<PendingReceipt> {
        let taken = self.core.submit_when_there_is_room(group, &mut None).await;
        Ok(PendingReceipt::new(taken.map_err(operation)?))
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("topic", self.topic())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

fn operation(error: Error) -> Error {
    error.with_operation(OPERATION)
}

#[cfg(test)]
pub(crate) mod tests;
