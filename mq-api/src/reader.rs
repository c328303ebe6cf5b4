//! Reading without a group.

mod merge;
mod message;

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
};

use tokio::sync::{Mutex, watch};

use self::merge::Merge;
pub use self::message::ReadMessage;
use crate::{
    Error, ErrorKind, Mq, Offset, PartitionDescription, Position, Result, Timestamp, TopicName,
    close_once::CloseOnce,
    driver::{self, FetchRequest, invalid_partition},
    mq::{BoxFuture, Child, MqInner, existing_topic, require},
    options::check_range,
};

/// The most messages that one [`Reader::pull`] returns.
const MAX_PULL: usize = 100_000;

/// Reads a topic without a group: it stores nothing, and no group notices.
///
/// It is a handle: clones share one place in the topic.
///
/// ```
/// # use mq_api::Mq;
/// # use mq_memory::MemoryMq;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> mq_api::Result<()> {
/// # let mq = Mq::from_driver(MemoryMq::new());
/// # mq.create_topic("orders", 1).await?;
/// mq.producer("orders").await?.produce("paid").await?;
/// let reader = mq.reader("orders").await?;
/// assert_eq!(reader.next().await?.payload(), b"paid");
/// # Ok(()) }
/// ```
///
/// A message that is held shares its memory with those that came with it; [`Message::detached`](crate::Message::detached)
/// makes a copy of its own.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

/// Opens a [`Reader`]; await it.
///
/// # Errors
/// [`ErrorKind::InvalidTopic`] before any I/O, [`ErrorKind::TopicNotFound`] where there is no such topic,
/// [`ErrorKind::OffsetOutOfRange`] for a start beyond the end of a partition, [`ErrorKind::Unsupported`] for a start by
/// time where the backend cannot look it up, and what the backend says.
#[must_use = "a reader is opened when the builder is awaited"]
#[derive(Clone)]
pub struct ReaderBuilder {
    mq: Arc<MqInner>,
    topic: Result<TopicName>,
    start: Position,
}

struct Inner {
    mq: Arc<MqInner>,
    topic: TopicName,
    driver: Arc<dyn driver::Reader>,
    // Held while a message is waited for: callers of `next` at the same time take turns.
    merge: Mutex<Merge>,
    closing: watch::Sender<bool>,
    close: CloseOnce,
}

const OPERATION: &str = "reader";

impl Mq {
    /// Opens a reader of a topic: set where it starts, then await it.
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
    /// let reader = mq.reader("orders").await?;
    /// assert_eq!(reader.next().await?.payload(), b"paid");
    /// # Ok(()) }
    /// ```
    pub fn reader(&self, topic: impl AsRef<str>) -> ReaderBuilder {
        ReaderBuilder {
            mq: Arc::clone(&self.inner),
            topic: existing_topic(OPERATION, topic),
            start: Position::Earliest,
        }
    }
}

impl ReaderBuilder {
    /// Sets where to start in each partition; what is `Latest` is decided before the builder returns. Default
    /// [`Position::Earliest`].
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
    /// use mq_api::Position;
    ///
    /// let reader = mq.reader("orders").start_at(Position::Offset(1)).await?;
    /// assert_eq!(reader.next().await?.payload(), b"b");
    /// # Ok(()) }
    /// ```
    pub fn start_at(mut self, start: Position) -> Self {
        self.start = start;
        self
    }

    async fn open(self) -> Result<Reader> {
        let Self { mq, topic, start } = self;
        let topic = topic?;
        let capabilities = mq.driver.capabilities();
        let mut supported = require(capabilities, capabilities.reader, "readers");
        if matches!(start, Position::Time(_)) {
            supported =
                supported.and_then(|()| require(capabilities, capabilities.offset_at, "a start by time"));
        }
        supported.map_err(|error| error.with_operation(OPERATION))?;
        let open = async {
            let reader = mq.driver.reader(topic.clone()).await?;
            match resolve(&topic, reader.as_ref(), start).await {
                Ok(positions) => Ok((reader, positions)),
                Err(error) => {
                    // The first error tells more than that of the close.
                    let _ = reader.close().await;
                    Err(error)
                }
            }
        };
        let (driver, positions) = mq.call(OPERATION, Some(&topic), open).await?;
        let inner = Arc::new(Inner {
            mq: Arc::clone(&mq),
            topic,
            driver,
            merge: Mutex::new(Merge::new(positions)),
            closing: watch::Sender::new(false),
            close: CloseOnce::new(),
        });
        let child: Arc<dyn Child> = Arc::clone(&inner) as _;
        let reader = Reader { inner };
        if let Err(error) = mq.register(&child) {
            reader.close().await?;
            return Err(error.with_operation(OPERATION));
        }
        Ok(reader)
    }
}

/// Finds the offset to start at in each partition.
async fn resolve(topic: &TopicName, reader: &dyn driver::Reader, start: Position) -> Result<Vec<Offset>> {
    let bounds = reader.bounds().await?;
    let mut positions = Vec::with_capacity(bounds.len());
    for (partition, (first, next)) in (0..).zip(bounds) {
        positions.push(match start {
            Position::Earliest => first,
            Position::Latest => next,
            Position::Offset(offset) if offset <= next => offset,
            Position::Offset(offset) => {
                return Err(beyond_the_end(topic, partition, offset, next));
            }
            Position::Time(time) => reader.offset_at(partition, time).await?,
        });
    }
    Ok(positions)
}

fn beyond_the_end(topic: &TopicName, partition: u32, offset: Offset, end: Offset) -> Error {
    Error::new(
        ErrorKind::OffsetOutOfRange,
        format!("offset {offset} of partition {partition} of topic {topic:?}: it ends at {end}"),
    )
}

impl IntoFuture for ReaderBuilder {
    type Output = Result<Reader>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Reader>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

impl fmt::Debug for ReaderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderBuilder")
            .field("topic", &self.topic)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Returns the next message of any partition, and waits as long as there is none. Messages of one partition come in
    /// order; partitions take turns. What retention has removed is passed over.
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
    /// let reader = mq.reader("orders").await?;
    /// assert_eq!(reader.next().await?.payload(), b"a");
    /// assert_eq!(reader.next().await?.payload(), b"b");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the backend says; where it [may be tried again](Error::is_retryable), the next call goes on at the same place.
    /// [`ErrorKind::Closed`] after close, also while it waits.
    ///
    /// # Cancel safety
    /// It may be dropped at any point; no message is lost or comes twice.
    pub async fn next(&self) -> Result<ReadMessage> {
        self.inner
            .unless_closed("next", async {
                let mut merge = self.inner.merge.lock().await;
                let limit = self.inner.mq.options.request_timeout;
                merge.next(&self.inner.driver, limit).await
            })
            .await
    }

    /// Returns up to `n` messages of a partition from an offset on: what is there, maybe none. It does not move where
    /// [`next`](Self::next) is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPartition`], [`ErrorKind::OffsetOutOfRange`] for an offset beyond the end,
    /// [`ErrorKind::InvalidConfig`] for an `n` of 0 or over 100,000, and what the backend says.
    ///
    /// # Cancel safety
    /// It may be dropped at any point.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// mq.producer("orders").await?.produce_to(1, "paid").await?;
    /// let reader = mq.reader("orders").await?;
    /// let messages = reader.pull(1, 0, 10).await?;
    /// assert_eq!(messages[0].payload(), b"paid");
    /// assert!(reader.pull(1, 1, 10).await?.is_empty());
    /// # Ok(()) }
    /// ```
    pub async fn pull(&self, partition: u32, from: Offset, n: usize) -> Result<Vec<ReadMessage>> {
        const OPERATION: &str = "pull";
        check_range("n", n, 1, MAX_PULL).map_err(|error| error.with_operation(OPERATION))?;
        self.inner
            .call(OPERATION, async {
                let bounds = self.inner.bounds_of(partition).await?;
                if from > bounds.1 {
                    return Err(beyond_the_end(&self.inner.topic, partition, from, bounds.1));
                }
                let mut messages = Vec::new();
                let mut position = from;
                while messages.len() < n {
                    let request =
                        FetchRequest::new(partition, Position::Offset(position), n - messages.len());
                    let fetched = self.inner.driver.fetch(request).await?;
                    let none = fetched.records.is_empty();
                    messages.extend(ReadMessage::all(partition, fetched.records).take(n - messages.len()));
                    // Without messages it is over, unless what lies below the end was passed over.
                    if none && (fetched.next_offset <= position || position >= bounds.1) {
                        break;
                    }
                    position = fetched.next_offset.max(position);
                    if position >= bounds.1 {
                        break;
                    }
                }
                Ok(messages)
            })
            .await
    }

    /// Returns the offset of the first message stored at or after a time, or the next offset where there is none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPartition`], [`ErrorKind::Unsupported`], and what the backend says.
    ///
    /// # Cancel safety
    /// It may be dropped at any point.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// let reader = mq.reader("orders").await?;
    /// assert_eq!(reader.offset_at(0, mq_api::Timestamp::now()).await?, 0);
    /// # Ok(()) }
    /// ```
    pub async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        const OPERATION: &str = "offset_at";
        let capabilities = self.inner.mq.driver.capabilities();
        self.inner
            .call(OPERATION, async {
                require(capabilities, capabilities.offset_at, "looking up offsets by time")?;
                self.inner.bounds_of(partition).await?;
                self.inner.driver.offset_at(partition, time).await
            })
            .await
    }

    /// Returns the first offset that is retained and the next one to be given, of each partition in order.
    ///
    /// # Errors
    /// What the backend says.
    ///
    /// # Cancel safety
    /// It may be dropped at any point.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// mq.producer("orders").await?.produce_to(3, "paid").await?;
    /// let bounds = mq.reader("orders").await?.bounds().await?;
    /// assert_eq!((bounds[3].first_offset, bounds[3].next_offset), (0, 1));
    /// # Ok(()) }
    /// ```
    pub async fn bounds(&self) -> Result<Vec<PartitionDescription>> {
        let bounds = self.inner.call("bounds", self.inner.driver.bounds()).await?;
        Ok((0..)
            .zip(bounds)
            .map(|(partition, (first, next))| PartitionDescription::new(partition, first, next))
            .collect())
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
    /// let reader = mq.reader("orders").await?;
    /// assert_eq!(reader.topic().as_str(), "orders");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.inner.topic
    }

    /// Ends the reader. Every call after it is [`ErrorKind::Closed`], and so is one that waits. Idempotent: whoever calls
    /// it, at the same time or later, gets the same result.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let reader = mq.reader("orders").await?;
    /// reader.close().await?;
    /// let error = reader.next().await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::Closed);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the backend says.
    ///
    /// # Cancel safety
    /// The close goes on when this future is dropped.
    pub async fn close(&self) -> Result<()> {
        Arc::clone(&self.inner).close().await
    }
}

impl Inner {
    /// Makes one call: over in the request timeout, and at once when the reader is closed.
    async fn call<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.unless_closed(operation, self.mq.call(operation, Some(&self.topic), call))
            .await
    }

    async fn unless_closed<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let closed = || Error::closed("reader").with_operation(operation);
        let mut closing = self.closing.subscribe();
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(closed()),
            result = call => result.map_err(|error| match error.operation() {
                Some(_) => error,
                None => error.with_operation(operation),
            }),
        }
    }

    /// Returns the bounds of a partition, which it must have.
    async fn bounds_of(&self, partition: u32) -> Result<(Offset, Offset)> {
        let bounds = self.driver.bounds().await?;
        let count = u32::try_from(bounds.len()).unwrap_or(u32::MAX);
        bounds
            .get(partition as usize)
            .copied()
            .ok_or_else(|| invalid_partition(&self.topic, partition, count))
    }
}

impl Child for Inner {
    fn close(self: Arc<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            self.closing.send_replace(true);
            let (driver, limit) = (Arc::clone(&self.driver), self.mq.options.close_timeout);
            self.close
                .run(move || async move { crate::mq::deadline("close", limit, driver.close()).await })
                .await
        })
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("topic", self.topic())
            .finish_non_exhaustive()
    }
}
