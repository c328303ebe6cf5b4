//! A message in the hands of a group member.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    Decode, GroupName, Headers, Message, Moment, Offset, Result, Timestamp, TopicName,
    engine::{Flag, Handed, Item, Settle, Settlement, Source},
};

/// Lends a message to a group member until it is settled.
///
/// It counts as consumed only after [`ack`](Self::ack). Dropping it un-settled is a [`nack`](Self::nack). It keeps a
/// lease on the batch that it came in, not a copy, and keeps no consumer alive.
///
/// The settling methods are synchronous and cheap: they note the settlement; acks are stored by the commit timer, and
/// [`Consumer::commit`](crate::Consumer::commit) waits for that. Each returns [`StaleAck`](crate::ErrorKind::StaleAck)
/// where the partition has moved on since the hand-over (another member has it, or a seek went past it), and
/// [`Closed`](crate::ErrorKind::Closed) after the consumer was closed; neither does harm: the message comes again.
pub struct Delivery {
    item: Item,
    settled: Flag,
    attempt: u32,
    handed_over_at: Moment,
}

impl Delivery {
    #[inline]
    pub(crate) fn new(item: Item, attempt: u32, handed_over_at: Moment) -> Self {
        Self {
            item,
            settled: Flag::No,
            attempt,
            handed_over_at,
        }
    }

    /// Returns the message.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let message = Message::new("paid").with_key("user-7").with_header("source", "checkout");
    /// mq.producer("orders").await?.produce(message.clone()).await?;
    /// let delivery = consumer.consume().await?;
    /// assert_eq!(delivery.message(), &message);
    /// assert_eq!(delivery.payload(), b"paid");
    /// assert_eq!(delivery.key().map(|key| &key[..]), Some(&b"user-7"[..]));
    /// assert_eq!(delivery.headers().text("source"), Some("checkout"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.item.record().message
    }

    /// Returns the payload's bytes, empty for a tombstone.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.consume().await?.payload(), b"paid");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.message().payload_or_empty()
    }

    /// Returns the key.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// producer.produce(Message::new("paid").with_key("user-7")).await?;
    /// let delivery = consumer.consume().await?;
    /// assert_eq!(delivery.key().map(|key| &key[..]), Some(&b"user-7"[..]));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.message().key()
    }

    /// Returns the headers.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// producer.produce(Message::new("paid").with_header("source", "checkout")).await?;
    /// let delivery = consumer.consume().await?;
    /// assert_eq!(delivery.headers().text("source"), Some("checkout"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.message().headers()
    }

    /// Returns the topic that the message was consumed from.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.consume().await?.topic().as_str(), "orders");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        self.item.source.owner.topic()
    }

    /// Returns the group that consumes it.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.consume().await?.group().as_str(), "billing");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn group(&self) -> &GroupName {
        self.item.source.owner.group()
    }

    /// Returns the partition.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let delivery = consumer.consume().await?;
    /// assert_eq!((delivery.partition(), delivery.offset()), (0, 0));
    /// assert_eq!((delivery.topic().as_str(), delivery.group().as_str()), ("orders", "billing"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.item.source.assignment.partition
    }

    /// Returns the offset in the partition.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("a").await?;
    /// # producer.produce("b").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?;
    /// assert_eq!(consumer.consume().await?.offset(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.item.record().offset
    }

    /// Returns when the message was stored, by the clock that the driver's page names.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let delivery = consumer.consume().await?;
    /// assert!(delivery.timestamp() <= mq_api::Timestamp::now());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        self.item.record().stored_at
    }

    /// Returns which hand-over of this message it is, 1 for the first.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").backoff(mq_api::Backoff::NONE).await?;
    /// let first = consumer.consume().await?;
    /// assert_eq!(first.attempt(), 1);
    /// drop(first); // as a nack
    /// assert_eq!(consumer.consume().await?.attempt(), 2);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the epoch of the tenure under which it was handed over; it grows with each owner of the partition.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let delivery = consumer.consume().await?;
    /// assert_eq!(delivery.epoch(), consumer.assignment()[0].epoch);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.item.source.assignment.epoch
    }

    /// Returns when it was handed over, by the clock that leases are measured by.
    ///
    /// It is exact where the partition is held by a lease. Elsewhere what came together may be stamped alike, and on memory
    /// whatever one consumer hands over within one tick of the system's clock, 1 to 10 ms: as the first of it was, but never
    /// earlier than what [`Clock::now`](crate::Clock::now) told in this process before the message was sent.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("a").await?;
    /// # producer.produce("b").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let first = consumer.consume().await?;
    /// let second = consumer.consume().await?;
    /// assert!(first.handed_over_at() <= second.handed_over_at());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn handed_over_at(&self) -> Moment {
        self.handed_over_at
    }

    /// Decodes the payload.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// struct Text;
    /// impl mq_api::Decode<String> for Text {
    ///     fn decode(&self, payload: &[u8]) -> mq_api::Result<String> {
    ///         Ok(String::from_utf8_lossy(payload).into_owned())
    ///     }
    /// }
    ///
    /// let text: String = consumer.consume().await?.decode(&Text)?;
    /// assert_eq!(text, "paid");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidMessage`](crate::ErrorKind::InvalidMessage) where the codec cannot; the message may then be rejected.
    pub fn decode<T>(&self, codec: &impl Decode<T>) -> Result<T> {
        self.message().decode(codec)
    }

    /// Decodes a JSON payload.
    ///
    /// # Errors
    /// [`InvalidMessage`](crate::ErrorKind::InvalidMessage) where it is not what `T` is made of.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("[1, 2, 3]").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let delivery = consumer.consume().await?;
    /// assert_eq!(delivery.json::<Vec<u32>>()?, [1, 2, 3]);
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        self.message().decode_json()
    }

    /// Notes that the message is done.
    ///
    /// # Errors
    /// [`StaleAck`](crate::ErrorKind::StaleAck), [`Closed`](crate::ErrorKind::Closed).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?;
    /// consumer.commit().await?;
    /// assert_eq!(consumer.lag().await?.total(), 0);
    /// # Ok(()) }
    /// ```
    pub fn ack(mut self) -> Result<()> {
        self.settled = Flag::Yes;
        self.item.source.owner.ack(&self.item)
    }

    /// Lets the message come again after the back-off that the consumer was opened with.
    ///
    /// # Errors
    /// [`StaleAck`](crate::ErrorKind::StaleAck), [`Closed`](crate::ErrorKind::Closed).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.nack()?;
    /// let again = consumer.consume().await?; // after 100 ms
    /// assert_eq!(again.attempt(), 2);
    /// # Ok(()) }
    /// ```
    pub fn nack(self) -> Result<()> {
        self.settle(Settlement::Nack)
    }

    /// Lets the message come again after this long.
    ///
    /// # Errors
    /// [`StaleAck`](crate::ErrorKind::StaleAck), [`Closed`](crate::ErrorKind::Closed).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// use std::time::{Duration, Instant};
    ///
    /// let begun = Instant::now();
    /// consumer.consume().await?.nack_after(Duration::from_millis(20))?;
    /// consumer.consume().await?.ack()?;
    /// assert!(begun.elapsed() >= Duration::from_millis(20));
    /// # Ok(()) }
    /// ```
    pub fn nack_after(self, delay: Duration) -> Result<()> {
        self.settle(Settlement::NackAfter(delay))
    }

    /// Sends the message to the dead-letter topic; without one it is settled, counted and logged.
    ///
    /// The message stays un-acked until its dead letter is stored.
    ///
    /// # Errors
    /// [`StaleAck`](crate::ErrorKind::StaleAck), [`Closed`](crate::ErrorKind::Closed).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("broken").await?;
    /// # let consumer = mq.consumer("orders", "billing").dead_letter(mq_api::DeadLetter::default()).await?;
    /// consumer.consume().await?.reject()?;
    /// consumer.commit().await?; // waits for the dead letter
    /// let dead = mq_api::dead_letter_topic(consumer.topic(), consumer.group());
    /// let letters = mq.consumer(dead, "inspection").await?;
    /// assert_eq!(letters.consume().await?.payload(), b"broken");
    /// # Ok(()) }
    /// ```
    pub fn reject(self) -> Result<()> {
        self.settle(Settlement::Reject)
    }

    fn settle(mut self, how: Settlement) -> Result<()> {
        self.settled = Flag::Yes;
        // By reference: a clone of the lease and one of the owner would cost four atomic steps.
        self.item.source.owner.settle(&self.item, how)
    }

    /// Makes a delivery, settled already where acks are automatic.
    pub(crate) fn handed(handed: Handed, at: Moment, auto_ack: bool) -> Self {
        let mut delivery = Self::new(handed.item, handed.attempt, at);
        delivery.settled = auto_ack.into();
        delivery
    }

    /// Returns the engine that handed it over.
    pub(crate) fn owner(&self) -> *const dyn Settle {
        Arc::as_ptr(&self.item.source.owner)
    }

    /// Returns the batch that it came in.
    #[inline]
    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.item.source
    }

    /// Tells whether it is settled, or was when it was handed over.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.is_set()
    }

    #[inline]
    pub(crate) fn item(&self) -> &Item {
        &self.item
    }

    /// Lends the item to who settles it now.
    #[inline]
    pub(crate) fn settling(&mut self) -> &Item {
        self.settled = Flag::Yes;
        &self.item
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled.is_set() {
            // Stale or closed: the message comes again by itself.
            let _ = self.item.source.owner.settle(&self.item, Settlement::Nack);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("topic", self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .field("attempt", &self.attempt)
            .field("message", self.message())
            .finish_non_exhaustive()
    }
}
