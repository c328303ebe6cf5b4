//! The options of a consumer.

use std::{future::IntoFuture, sync::Arc, time::Duration};

use super::{Consumer, Kind};
use crate::{
    Backoff, Capabilities, DeadLetter, Error, ErrorKind, GroupName, OnTrimmed, Ordering, Result, Start,
    Support, TopicName,
    driver::{Prefetch, Subscription},
    engine::{Engine, EngineConfig, QueueEngine, broadcast},
    escape::dead_letter_topic,
    mq::{BoxFuture, Mq, MqInner, require},
    options::{check_range, check_timeout},
};

/// Says how the members of a group divide the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Members own partitions, each exclusively. Order holds within a partition.
    #[default]
    Partitioned,
    /// Members compete for single messages: more members than partitions all work, and no order holds.
    Shared,
    /// Every member sees every message from its own start position. Nothing is stored for the group.
    Broadcast,
}

/// Opens a [`Consumer`] when it is awaited.
///
/// ```no_run
/// # async fn example(mq: mq_api::Mq) -> mq_api::Result<()> {
/// use mq_api::Start;
/// let consumer = mq.consumer("orders", "billing").start_at(Start::Latest).prefetch(500).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it is awaited"]
pub struct ConsumerBuilder {
    mq: Mq,
    topic: Result<TopicName>,
    group: Result<GroupName>,
    options: Options,
}

#[derive(Clone, Debug)]
struct Options {
    mode: Mode,
    start: Start,
    ordering: Ordering,
    prefetch: usize,
    prefetch_bytes: usize,
    max_unacked: usize,
    max_unacked_bytes: usize,
    backoff: Backoff,
    max_attempts: Option<u32>,
    dead_letter: Option<DeadLetter>,
    commit_interval: Duration,
    commit_every: usize,
    auto_ack: bool,
    on_trimmed: OnTrimmed,
    session_timeout: Option<Duration>,
    outage_after: Duration,
    close_timeout: Duration,
    max_hold: Duration,
    properties: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            start: Start::Earliest,
            ordering: Ordering::default(),
            prefetch: 1000,
            prefetch_bytes: 8 * 1024 * 1024,
            max_unacked: 1000,
            max_unacked_bytes: 64 * 1024 * 1024,
            backoff: Backoff::default(),
            max_attempts: None,
            dead_letter: None,
            commit_interval: Duration::from_millis(200),
            commit_every: 1000,
            auto_ack: false,
            on_trimmed: OnTrimmed::default(),
            session_timeout: None,
            outage_after: Duration::from_secs(30),
            close_timeout: Duration::from_secs(10),
            max_hold: Duration::from_secs(30 * 60),
            properties: Vec::new(),
        }
    }
}

impl Mq {
    /// Joins a group that consumes a topic. Await the builder to open the consumer.
    ///
    /// The group is identified by the topic and its name together. When the awaited builder returns, the start of a
    /// new group is fixed: `Latest` misses nothing that is sent after that.
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
    /// let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.consume().await?.payload(), b"paid");
    /// let error = mq.consumer("invoices", "billing").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::TopicNotFound);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidGroup`](ErrorKind::InvalidGroup), [`InvalidTopic`](ErrorKind::InvalidTopic),
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for an option out of its range,
    /// [`TopicNotFound`](ErrorKind::TopicNotFound), [`Unsupported`](ErrorKind::Unsupported) for what the backend
    /// cannot do.
    pub fn consumer(&self, topic: impl AsRef<str>, group: impl AsRef<str>) -> ConsumerBuilder {
        ConsumerBuilder {
            mq: self.clone(),
            topic: TopicName::existing(topic),
            group: GroupName::new(group),
            options: Options::default(),
        }
    }
}

impl ConsumerBuilder {
    /// Sets how the members divide the messages. Default [`Mode::Partitioned`]. A group has one mode: while members of
    /// it are open on this client, another one is [`ErrorKind::InvalidConfig`].
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
    /// use mq_api::Mode;
    ///
    /// let one = mq.consumer("orders", "billing").mode(Mode::Shared).await?;
    /// one.consume().await?.ack()?;
    /// let other_mode = mq.consumer("orders", "billing").mode(Mode::Partitioned).await;
    /// assert_eq!(other_mode.unwrap_err().kind(), mq_api::ErrorKind::InvalidConfig);
    /// # Ok(()) }
    /// ```
    pub fn mode(mut self, mode: Mode) -> Self {
        self.options.mode = mode;
        self
    }

    /// Sets where the group begins where it is new to the topic. Default [`Start::Earliest`].
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("old").await?;
    /// use mq_api::Start;
    ///
    /// let consumer = mq.consumer("orders", "billing").start_at(Start::Latest).await?;
    /// producer.produce("new").await?;
    /// assert_eq!(consumer.consume().await?.payload(), b"new");
    /// # Ok(()) }
    /// ```
    pub fn start_at(mut self, start: Start) -> Self {
        self.options.start = start;
        self
    }

    /// Sets which deliveries wait for each other. Default [`Ordering::Unordered`]. Partitioned and broadcast mode.
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
    /// use mq_api::{Backoff, Ordering};
    ///
    /// let builder = mq.consumer("orders", "billing").ordering(Ordering::Partition);
    /// let consumer = builder.backoff(Backoff::NONE).await?;
    /// consumer.consume().await?.nack()?;
    /// assert_eq!(consumer.consume().await?.payload(), b"a"); // `b` waits for it
    /// # Ok(()) }
    /// ```
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.options.ordering = ordering;
        self
    }

    /// Sets how many messages of each partition are fetched ahead of hand-over, 1 to 1,000,000. Default 1000.
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
    /// let consumer = mq.consumer("orders", "billing").prefetch(500).await?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn prefetch(mut self, messages: usize) -> Self {
        self.options.prefetch = messages;
        self
    }

    /// Sets how many bytes of each partition are fetched ahead of hand-over, at least 1 KiB; one message may be larger.
    /// Default 8 MiB.
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
    /// let consumer = mq.consumer("orders", "billing").prefetch_bytes(1 << 20).await?;
    /// consumer.consume().await?.ack()?;
    /// let too_few = mq.consumer("orders", "billing").prefetch_bytes(100).await;
    /// assert_eq!(too_few.unwrap_err().kind(), mq_api::ErrorKind::InvalidConfig);
    /// # Ok(()) }
    /// ```
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.options.prefetch_bytes = bytes;
        self
    }

    /// Sets how many messages of each partition may be handed over and not settled, 1 to 1,000,000. Default 1000.
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
    /// let consumer = mq.consumer("orders", "billing").max_unacked(1).await?;
    /// let held = consumer.consume().await?;
    /// assert!(consumer.try_consume()?.is_none()); // the window is full
    /// held.ack()?;
    /// assert_eq!(consumer.consume().await?.payload(), b"b");
    /// # Ok(()) }
    /// ```
    pub fn max_unacked(mut self, messages: usize) -> Self {
        self.options.max_unacked = messages;
        self
    }

    /// Sets how many bytes of each partition may be handed over and not settled, at least 1 KiB; one message may be
    /// larger. Default 64 MiB.
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
    /// let consumer = mq.consumer("orders", "billing").max_unacked_bytes(1 << 20).await?;
    /// consumer.consume().await?.ack()?;
    /// let too_few = mq.consumer("orders", "billing").max_unacked_bytes(100).await;
    /// assert_eq!(too_few.unwrap_err().kind(), mq_api::ErrorKind::InvalidConfig);
    /// # Ok(()) }
    /// ```
    pub fn max_unacked_bytes(mut self, bytes: usize) -> Self {
        self.options.max_unacked_bytes = bytes;
        self
    }

    /// Sets what a message waits before it comes again after a nack or a drop. Default 100 ms, doubling to 30 s.
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
    /// use std::time::Duration;
    /// use mq_api::Backoff;
    ///
    /// let pause = Backoff::fixed(Duration::from_millis(5));
    /// let consumer = mq.consumer("orders", "billing").backoff(pause).await?;
    /// consumer.consume().await?.nack()?;
    /// assert_eq!(consumer.consume().await?.attempt(), 2);
    /// # Ok(()) }
    /// ```
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.options.backoff = backoff;
        self
    }

    /// Sets how often a message is handed over at most, at least 1; the next time it goes to the dead letters.
    /// Default: without end.
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
    /// let consumer = mq.consumer("orders", "billing").max_attempts(5).await?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = Some(attempts);
        self
    }

    /// Sends messages that were rejected, or have had their last attempt, to a topic. Default: they are settled,
    /// counted and logged.
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
    /// use mq_api::{Backoff, DeadLetter};
    ///
    /// mq.create_topic("failed", 1).await?;
    /// let builder = mq.consumer("orders", "billing").dead_letter(DeadLetter::topic("failed"));
    /// let consumer = builder.max_attempts(1).backoff(Backoff::NONE).await?;
    /// consumer.consume().await?.nack()?; // its only attempt
    /// let failed = mq.consumer("failed", "inspection").await?;
    /// # let waiting = tokio::spawn(async move { consumer.consume().await });
    /// assert_eq!(failed.consume().await?.payload(), b"broken");
    /// # waiting.abort();
    /// # Ok(()) }
    /// ```
    pub fn dead_letter(mut self, dead_letter: DeadLetter) -> Self {
        self.options.dead_letter = Some(dead_letter);
        self
    }

    /// Sets how long an ack waits at most before it is stored, 1 ms to 1 h. Default 200 ms.
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
    /// let consumer = mq.consumer("orders", "billing").commit_interval(std::time::Duration::from_secs(1)).await?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.options.commit_interval = interval;
        self
    }

    /// Sets after how many acks they are stored without waiting for the interval, at least 1. Default 1000.
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
    /// let consumer = mq.consumer("orders", "billing").commit_every(1).await?;
    /// consumer.consume().await?.ack()?;
    /// consumer.commit().await?;
    /// assert_eq!(consumer.lag().await?.total(), 0);
    /// # Ok(()) }
    /// ```
    pub fn commit_every(mut self, acks: usize) -> Self {
        self.options.commit_every = acks;
        self
    }

    /// Acks each message before it is handed over: **at most once**. A message whose handling fails, or that was
    /// fetched when the process ended, does not come again.
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
    /// let consumer = mq.consumer("orders", "billing").auto_ack().await?;
    /// assert_eq!(consumer.consume().await?.payload(), b"paid"); // and never again
    /// consumer.commit().await?;
    /// assert_eq!(consumer.lag().await?.total(), 0);
    /// # Ok(()) }
    /// ```
    pub fn auto_ack(mut self) -> Self {
        self.options.auto_ack = true;
        self
    }

    /// Sets what to do when retention has removed what was to be read next. Default: go on at the earliest.
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
    /// let consumer = mq.consumer("orders", "billing").on_trimmed(mq_api::OnTrimmed::Error).await?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn on_trimmed(mut self, on_trimmed: OnTrimmed) -> Self {
        self.options.on_trimmed = on_trimmed;
        self
    }

    /// Sets how long a member may be silent before others take over its partitions, 1 ms to 1 h; a backend may round
    /// it or refuse it. Default: the backend's own.
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
    /// let consumer = mq.consumer("orders", "billing").session_timeout(std::time::Duration::from_secs(10)).await?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.options.session_timeout = Some(timeout);
        self
    }

    /// Sets how long the backend must be out of reach before `consume` returns an error, 1 ms to 1 h. Default 30 s.
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
    /// use std::time::Duration;
    ///
    /// let consumer = mq.consumer("orders", "billing").outage_after(Duration::from_secs(5)).await?;
    /// consumer.consume().await?.ack()?;
    /// let never = mq.consumer("orders", "billing").outage_after(Duration::MAX).await;
    /// assert_eq!(never.unwrap_err().kind(), mq_api::ErrorKind::InvalidConfig);
    /// # Ok(()) }
    /// ```
    pub fn outage_after(mut self, after: Duration) -> Self {
        self.options.outage_after = after;
        self
    }

    /// Sets how long a close may take to store and to leave, 1 ms to 1 h. Default 10 s.
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
    /// use std::time::Duration;
    ///
    /// let consumer = mq.consumer("orders", "billing").close_timeout(Duration::from_secs(2)).await?;
    /// consumer.consume().await?.ack()?;
    /// consumer.close().await?; // within 2 s
    /// assert_eq!(mq.lag("orders", "billing").await?.total(), 0);
    /// # Ok(()) }
    /// ```
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.options.close_timeout = timeout;
        self
    }

    /// Sets how long a message is kept for a holder that does not settle it, in shared mode, 1 ms to 24 h.
    /// Default 30 min.
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
    /// use std::time::Duration;
    /// use mq_api::Mode;
    ///
    /// let builder = mq.consumer("orders", "billing").mode(Mode::Shared);
    /// let consumer = builder.max_hold(Duration::from_secs(60)).await?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn max_hold(mut self, hold: Duration) -> Self {
        self.options.max_hold = hold;
        self
    }

    /// Sets something that only this backend knows.
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
    /// let refused = mq.consumer("orders", "billing").property("tag", "eu").await;
    /// assert_eq!(refused.unwrap_err().kind(), mq_api::ErrorKind::InvalidConfig); // memory has none
    /// # Ok(()) }
    /// ```
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.properties.push((name.into(), value.into()));
        self
    }

    async fn open(self) -> Result<Consumer> {
        let inner = Arc::clone(&self.mq.inner);
        let topic = self.topic?;
        let group = self.group?;
        let options = self.options;
        options.validate(inner.driver.capabilities())?;
        inner.check_open()?;
        let config = options.engine(&inner, &topic, &group)?;
        let subscription = options.subscription(&inner, &topic, &group);
        let claim = inner.modes.claim(&topic, &group, options.mode)?;
        let kind = options.join(&inner, config, subscription).await?;
        let consumer = Consumer::new(&inner, topic, group, options.auto_ack, kind, claim)?;
        tracing::debug!(
            messaging.system = inner.driver.capabilities().backend,
            messaging.destination.name = %consumer.topic(),
            messaging.consumer.group.name = %consumer.group(),
            mode = ?options.mode,
            "consumer opened"
        );
        Ok(consumer)
    }
}

impl Options {
    fn validate(&self, capabilities: &Capabilities) -> Result<()> {
        const MOST_MESSAGES: usize = 1_000_000;
        const LEAST_BYTES: usize = 1024;
        const MOST_HOLD: Duration = Duration::from_secs(24 * 3600);
        check_range("prefetch", self.prefetch, 1, MOST_MESSAGES)?;
        check_range("prefetch_bytes", self.prefetch_bytes, LEAST_BYTES, usize::MAX)?;
        check_range("max_unacked", self.max_unacked, 1, MOST_MESSAGES)?;
        check_range(
            "max_unacked_bytes",
            self.max_unacked_bytes,
            LEAST_BYTES,
            usize::MAX,
        )?;
        check_range("max_attempts", self.max_attempts.unwrap_or(1), 1, u32::MAX)?;
        check_range("commit_every", self.commit_every, 1, usize::MAX)?;
        check_range("backoff", self.backoff.most(), Duration::ZERO, MOST_HOLD)?;
        check_timeout("commit_interval", self.commit_interval)?;
        check_timeout("outage_after", self.outage_after)?;
        check_timeout("close_timeout", self.close_timeout)?;
        check_range("max_hold", self.max_hold, Duration::from_millis(1), MOST_HOLD)?;
        if let Some(timeout) = self.session_timeout {
            check_timeout("session_timeout", timeout)?;
        }
        if matches!(self.start, Start::Time(_)) {
            require(capabilities, capabilities.offset_at, "a start by time")?;
        }
        match self.mode {
            Mode::Partitioned => {
                require(capabilities, capabilities.partitioned, "partitioned consumers")?;
                if self.on_trimmed == OnTrimmed::Latest {
                    require(capabilities, capabilities.seek, "on_trimmed latest, which seeks")?;
                }
                Ok(())
            }
            Mode::Broadcast => require(capabilities, capabilities.broadcast, "broadcast"),
            Mode::Shared => {
                require(capabilities, capabilities.shared, "shared consumers")?;
                if self.start == Start::Latest {
                    require(
                        capabilities,
                        capabilities.shared_latest,
                        "a shared group that begins at the end",
                    )?;
                }
                if self.ordering != Ordering::Unordered {
                    return Err(Error::new(
                        ErrorKind::InvalidConfig,
                        "option `ordering` in shared mode: members compete for single messages, no order holds",
                    ));
                }
                Ok(())
            }
        }
    }

    fn engine(&self, mq: &Arc<MqInner>, topic: &TopicName, group: &GroupName) -> Result<EngineConfig> {
        let capabilities = mq.driver.capabilities();
        let stored = self.mode == Mode::Partitioned;
        let (dead_letter, create_dead_letter) = match &self.dead_letter {
            None => (None, false),
            Some(DeadLetter { topic: None }) => (Some(dead_letter_topic(topic, group)), true),
            Some(DeadLetter { topic: Some(name) }) => (Some(TopicName::existing(name)?), false),
        };
        Ok(EngineConfig {
            topic: topic.clone(),
            group: group.clone(),
            ordering: self.ordering,
            prefetch: self.prefetch,
            prefetch_bytes: self.prefetch_bytes,
            max_unacked: self.max_unacked,
            max_unacked_bytes: self.max_unacked_bytes,
            backoff: self.backoff,
            max_attempts: self.max_attempts,
            dead_letter,
            create_dead_letter,
            commit_interval: self.commit_interval,
            commit_every: self.commit_every,
            auto_ack: self.auto_ack,
            on_trimmed: self.on_trimmed,
            outage_after: self.outage_after,
            close_timeout: self.close_timeout,
            request_timeout: mq.options.request_timeout,
            max_hold: self.max_hold,
            clock: mq.options.clock.clone(),
            sparse_acks: stored && capabilities.sparse_acks != Support::Unsupported,
            durable_attempts: stored
                && !self.auto_ack
                && capabilities.durable_attempts != Support::Unsupported,
        })
    }

    fn subscription(&self, mq: &Arc<MqInner>, topic: &TopicName, group: &GroupName) -> Subscription {
        let mut subscription = Subscription::new(topic.clone(), group.clone());
        subscription.start = self.start;
        subscription.on_trimmed = self.on_trimmed;
        subscription.prefetch = Prefetch {
            messages: self.prefetch,
            bytes: self.prefetch_bytes,
        };
        subscription.session_timeout = self.session_timeout;
        subscription.clock = mq.options.clock.clone();
        subscription.properties.clone_from(&self.properties);
        subscription
    }

    async fn join(
        &self,
        mq: &Arc<MqInner>,
        config: EngineConfig,
        subscription: Subscription,
    ) -> Result<Kind> {
        const OPERATION: &str = "consumer";
        let topic = subscription.topic.clone();
        match self.mode {
            Mode::Partitioned => {
                let joined = mq
                    .call(OPERATION, Some(&topic), mq.driver.consumer(subscription))
                    .await?;
                Ok(Kind::Log {
                    engine: Engine::start(mq, config, joined.0, joined.1),
                    stored: true,
                })
            }
            Mode::Broadcast => {
                let joined = mq
                    .call(
                        OPERATION,
                        Some(&topic),
                        broadcast::join(&mq.driver, &subscription),
                    )
                    .await?;
                Ok(Kind::Log {
                    engine: Engine::start(mq, config, joined.0, joined.1),
                    stored: false,
                })
            }
            Mode::Shared => {
                let joined = mq
                    .call(OPERATION, Some(&topic), mq.driver.queue_consumer(subscription))
                    .await?;
                Ok(Kind::Queue(QueueEngine::start(mq, config, joined)))
            }
        }
    }
}

impl IntoFuture for ConsumerBuilder {
    type Output = Result<Consumer>;
    type IntoFuture = BoxFuture<'static, Result<Consumer>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.open()
                .await
                .map_err(|error| error.with_operation("consumer"))
        })
    }
}
