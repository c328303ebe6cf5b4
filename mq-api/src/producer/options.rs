//! Options of a producer, and the builder that takes them.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use super::{Producer, core::Core, task};
use crate::{
    Capabilities, DEFAULT_MAX_METADATA, DEFAULT_MAX_PAYLOAD, Mq, Partitioner, Result, TopicName,
    driver::ProducerRequest,
    mq::{Child, MqInner, existing_topic},
    options::{check_range, check_timeout},
};

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) timeout: Duration,
    pub(super) partitioner: Partitioner,
    pub(super) buffer_messages: usize,
    pub(super) buffer_bytes: usize,
    pub(super) max_payload: usize,
    pub(super) max_metadata: usize,
    pub(super) retry_backoff: Duration,
    pub(super) retries: Option<u32>,
    pub(super) reorder_on_retry: bool,
    pub(super) resend_unknown: bool,
    pub(super) close_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            partitioner: Partitioner::Murmur2,
            buffer_messages: 10_000,
            buffer_bytes: 32 * 1024 * 1024,
            max_payload: DEFAULT_MAX_PAYLOAD,
            max_metadata: DEFAULT_MAX_METADATA,
            retry_backoff: Duration::from_millis(50),
            retries: None,
            reorder_on_retry: false,
            resend_unknown: false,
            close_timeout: Duration::from_secs(10),
        }
    }
}

impl Options {
    fn validate(&self, capabilities: &Capabilities) -> Result<()> {
        check_timeout("timeout", self.timeout)?;
        check_timeout("close_timeout", self.close_timeout)?;
        check_timeout("retry_backoff", self.retry_backoff)?;
        check_range("buffer_messages", self.buffer_messages, 1, 10_000_000)?;
        check_range("buffer_bytes", self.buffer_bytes, 1024, 1 << 40)?;
        let most = capabilities.max_payload.max(DEFAULT_MAX_PAYLOAD);
        check_range("max_payload", self.max_payload, 1, most)?;
        let most = capabilities.max_metadata.max(DEFAULT_MAX_METADATA);
        check_range("max_metadata", self.max_metadata, 1, most)
    }
}

/// Opens a [`Producer`]; await it.
///
/// # Errors
/// [`ErrorKind::InvalidTopic`](crate::ErrorKind::InvalidTopic) and
/// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) before any I/O,
/// [`ErrorKind::TopicNotFound`](crate::ErrorKind::TopicNotFound) where there is no such topic, and what the backend says.
#[must_use = "a producer is opened when the builder is awaited"]
#[derive(Clone)]
pub struct ProducerBuilder {
    mq: Arc<MqInner>,
    topic: Result<TopicName>,
    options: Options,
}

impl Mq {
    /// Opens a producer of a topic: set its options, then await it.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// let producer = mq.producer("orders").await?;
    /// assert_eq!(producer.produce_to(3, "paid").await?.partition, 3);
    /// let error = mq.producer("invoices").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::TopicNotFound);
    /// # Ok(()) }
    /// ```
    pub fn producer(&self, topic: impl AsRef<str>) -> ProducerBuilder {
        ProducerBuilder {
            mq: Arc::clone(&self.inner),
            topic: existing_topic(OPERATION, topic),
            options: Options::default(),
        }
    }
}

const OPERATION: &str = "producer";

impl ProducerBuilder {
    /// Sets how long one send may take, the wait for room included; 1 ms to 1 h. Default 30 s.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let mq = Mq::from_driver(memory.clone());
    /// # mq.create_topic("orders", 1).await?;
    /// use std::time::Duration;
    ///
    /// let producer = mq.producer("orders").timeout(Duration::from_millis(20)).await?;
    /// memory.faults().freeze(); // it answers nothing now
    /// let error = producer.produce("paid").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::Timeout);
    /// # Ok(()) }
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets which partition a key belongs to. Default [`Partitioner::Murmur2`].
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// use mq_api::Partitioner;
    ///
    /// let last = Partitioner::custom(|_key, partitions| partitions - 1);
    /// let producer = mq.producer("orders").partitioner(last).await?;
    /// assert_eq!(producer.produce(Message::new("paid").with_key("user-7")).await?.partition, 3);
    /// # Ok(()) }
    /// ```
    pub fn partitioner(mut self, partitioner: Partitioner) -> Self {
        self.options.partitioner = partitioner;
        self
    }

    /// Sets how many messages may wait and be under way together. Default 10,000.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let mq = Mq::from_driver(memory.clone());
    /// # mq.create_topic("orders", 1).await?;
    /// let producer = mq.producer("orders").buffer_messages(1).await?;
    /// memory.faults().freeze(); // what is taken stays in the buffer
    /// let first = producer.try_enqueue("a")?;
    /// assert_eq!(producer.try_enqueue("b").unwrap_err().kind(), mq_api::ErrorKind::ResourceExhausted);
    /// memory.faults().thaw();
    /// first.await?;
    /// # Ok(()) }
    /// ```
    pub fn buffer_messages(mut self, messages: usize) -> Self {
        self.options.buffer_messages = messages;
        self
    }

    /// Sets how many bytes may wait and be under way together; at least 1 KiB. Default 32 MiB.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let mq = Mq::from_driver(memory.clone());
    /// # mq.create_topic("orders", 1).await?;
    /// let producer = mq.producer("orders").buffer_bytes(1024).await?;
    /// memory.faults().freeze(); // what is taken stays in the buffer
    /// let first = producer.try_enqueue(vec![0u8; 1000])?;
    /// let error = producer.try_enqueue(vec![0u8; 1000]).unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::ResourceExhausted);
    /// # memory.faults().thaw();
    /// # first.await?;
    /// # Ok(()) }
    /// ```
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.options.buffer_bytes = bytes;
        self
    }

    /// Sets the largest payload, in bytes, up to [`Capabilities::max_payload`]. Default 960 KiB.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let producer = mq.producer("orders").max_payload(4).await?;
    /// producer.produce("1234").await?;
    /// let error = producer.produce("12345").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::MessageTooLarge);
    /// # Ok(()) }
    /// ```
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.options.max_payload = bytes;
        self
    }

    /// Sets the most that key, id and headers take together, in bytes, up to [`Capabilities::max_metadata`]. Default
    /// 16 KiB.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let producer = mq.producer("orders").max_metadata(4).await?;
    /// let error = producer.produce(Message::new("paid").with_key("user-7")).await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::MessageTooLarge);
    /// # Ok(()) }
    /// ```
    pub fn max_metadata(mut self, bytes: usize) -> Self {
        self.options.max_metadata = bytes;
        self
    }

    /// Sets the first pause before a message is sent again that was surely not stored; it doubles to 1 s; 1 ms to 1 h.
    /// Default 50 ms.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let mq = Mq::from_driver(memory.clone());
    /// # mq.create_topic("orders", 1).await?;
    /// use std::time::Duration;
    /// use mq_memory::SendFault;
    ///
    /// let producer = mq.producer("orders").retry_backoff(Duration::from_millis(5)).await?;
    /// memory.faults().fail_nth_send(1, SendFault::NotSent);
    /// assert_eq!(producer.produce("paid").await?.offset, Some(0)); // the second time
    /// # Ok(()) }
    /// ```
    pub fn retry_backoff(mut self, pause: Duration) -> Self {
        self.options.retry_backoff = pause;
        self
    }

    /// Bounds how often a message is sent again that was surely not stored; 0 sends it once. Default: no bound but the
    /// [`timeout`](Self::timeout).
    ///
    /// A message without a key goes to another partition after two tries, half-way round, where another server is likely:
    /// two reach it.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let mq = Mq::from_driver(memory.clone());
    /// # mq.create_topic("orders", 1).await?;
    /// use mq_memory::SendFault;
    ///
    /// let producer = mq.producer("orders").retries(0).await?;
    /// memory.faults().fail_nth_send(1, SendFault::NotSent);
    /// let error = producer.produce("paid").await.unwrap_err();
    /// assert_eq!(error.outcome(), mq_api::Outcome::NotSent);
    /// # Ok(()) }
    /// ```
    pub fn retries(mut self, most: u32) -> Self {
        self.options.retries = Some(most);
        self
    }

    /// Lets a message be sent again after later ones of its partition were stored, so that it comes out of order, instead
    /// of failing as not sent. Default `false`.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let mq = Mq::from_driver(memory.clone());
    /// # mq.create_topic("orders", 1).await?;
    /// use mq_memory::SendFault;
    ///
    /// let producer = mq.producer("orders").reorder_on_retry(true).await?;
    /// memory.faults().fail_nth_send(1, SendFault::NotSent);
    /// let results = producer.produce_batch(["a", "b"]).await; // perhaps stored as `b`, `a`
    /// assert!(results.iter().all(Result::is_ok));
    /// # Ok(()) }
    /// ```
    pub fn reorder_on_retry(mut self, reorder: bool) -> Self {
        self.options.reorder_on_retry = reorder;
        self
    }

    /// Lets a message be sent again when it is not known whether it was stored, so that it may be stored twice. Default
    /// `false`.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let mq = Mq::from_driver(memory.clone());
    /// # mq.create_topic("orders", 1).await?;
    /// use mq_memory::SendFault;
    ///
    /// let producer = mq.producer("orders").resend_unknown(true).await?;
    /// memory.faults().fail_nth_send(1, SendFault::AnswerLost);
    /// producer.produce("paid").await?;
    /// assert_eq!(mq.describe_topic("orders").await?.partitions[0].next_offset, 2); // stored twice
    /// # Ok(()) }
    /// ```
    pub fn resend_unknown(mut self, resend: bool) -> Self {
        self.options.resend_unknown = resend;
        self
    }

    /// Sets how long [`Producer::close`] waits for what was taken; 1 ms to 1 h. Default 10 s.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// use std::time::Duration;
    ///
    /// let producer = mq.producer("orders").close_timeout(Duration::from_secs(2)).await?;
    /// let pending = producer.enqueue("paid").await?;
    /// producer.close().await?; // within 2 s
    /// assert_eq!(pending.await?.offset, Some(0));
    /// # Ok(()) }
    /// ```
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.options.close_timeout = timeout;
        self
    }

    async fn open(self) -> Result<Producer> {
        let Self { mq, topic, options } = self;
        let topic = topic?;
        options
            .validate(mq.driver.capabilities())
            .map_err(|error| error.with_operation(OPERATION))?;
        let request = ProducerRequest::new(topic.clone());
        let driver = mq
            .call(OPERATION, Some(&topic), mq.driver.producer(request))
            .await?;
        let core = Core::new(Arc::clone(&mq), driver, topic, options);
        tokio::spawn(task::run(task::Guard(Arc::clone(&core))));
        let producer = Producer::new(Arc::clone(&core));
        let child: Arc<dyn Child> = core;
        if let Err(error) = mq.register(&child) {
            producer.close().await?;
            return Err(error.with_operation(OPERATION));
        }
        Ok(producer)
    }
}

impl IntoFuture for ProducerBuilder {
    type Output = Result<Producer>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Producer>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

impl fmt::Debug for ProducerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerBuilder")
            .field("topic", &self.topic)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
