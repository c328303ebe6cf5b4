//! What a reader returns.

use std::{fmt, sync::Arc};

use crate::{
    Headers, Message, Offset, Timestamp,
    driver::{Record, Records, Segment},
};

/// Holds a message that a reader has found, and where it was.
#[derive(Clone)]
pub struct ReadMessage {
    segment: Arc<dyn Segment>,
    index: u32,
    partition: u32,
}

impl ReadMessage {
    pub(super) fn all(partition: u32, records: Records) -> impl Iterator<Item = Self> {
        let (segment, range) = records.into_parts();
        range.map(move |index| Self {
            segment: Arc::clone(&segment),
            index,
            partition,
        })
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
    /// # let producer = mq.producer("orders").await?;
    /// # let reader = mq.reader("orders").await?;
    /// let message = Message::new("paid").with_key("user-7");
    /// producer.produce(message.clone()).await?;
    /// assert_eq!(reader.next().await?.message(), &message);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.record().message
    }

    /// Returns the payload, empty for a tombstone.
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
    /// # let reader = mq.reader("orders").await?;
    /// assert_eq!(reader.next().await?.payload(), b"paid");
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
    /// # let reader = mq.reader("orders").await?;
    /// producer.produce(Message::new("paid").with_key("user-7")).await?;
    /// assert_eq!(reader.next().await?.key(), Some(&b"user-7"[..]));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.message().key().map(|key| &key[..])
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
    /// # let reader = mq.reader("orders").await?;
    /// producer.produce(Message::new("paid").with_header("source", "checkout")).await?;
    /// assert_eq!(reader.next().await?.headers().text("source"), Some("checkout"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.message().headers()
    }

    /// Returns the partition.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # let reader = mq.reader("orders").await?;
    /// producer.produce_to(2, "paid").await?;
    /// assert_eq!(reader.next().await?.partition(), 2);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns the offset.
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
    /// # let reader = mq.reader("orders").await?;
    /// assert_eq!(reader.next().await?.offset(), 0);
    /// assert_eq!(reader.next().await?.offset(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.record().offset
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
    /// # let reader = mq.reader("orders").await?;
    /// assert!(reader.next().await?.timestamp() <= mq_api::Timestamp::now());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        self.record().stored_at
    }

    fn record(&self) -> &Record {
        self.segment.record(self.index)
    }
}

impl fmt::Debug for ReadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadMessage")
            .field("partition", &self.partition)
            .field("offset", &self.offset())
            .field("message", self.message())
            .finish_non_exhaustive()
    }
}
