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
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets which partition a key belongs to. Default [`Partitioner::Murmur2`].
    pub fn partitioner(mut self, partitioner: Partitioner) -> Self {
        self.options.partitioner = partitioner;
        self
    }

    /// Sets how many messages may wait and be under way together. Default 10,000.
    pub fn buffer_messages(mut self, messages: usize) -> Self {
        self.options.buffer_messages = messages;
        self
    }

    /// Sets how many bytes may wait and be under way together; at least 1 KiB. Default 32 MiB.
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.options.buffer_bytes = bytes;
        self
    }

    /// Sets the largest payload, in bytes, up to [`Capabilities::max_payload`]. Default 960 KiB.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.options.max_payload = bytes;
        self
    }

    /// Sets the most that key, id and headers take together, in bytes, up to [`Capabilities::max_metadata`]. Default
    /// 16 KiB.
    pub fn max_metadata(mut self, bytes: usize) -> Self {
        self.options.max_metadata = bytes;
        self
    }

    /// Sets the first pause before a message is sent again that was surely not stored; it doubles to 1 s; 1 ms to 1 h.
    /// Default 50 ms.
    pub fn retry_backoff(mut self, pause: Duration) -> Self {
        self.options.retry_backoff = pause;
        self
    }

    /// Lets a message be sent again after later ones of its partition were stored, so that it comes out of order, instead
    /// of failing as not sent. Default `false`.
    pub fn reorder_on_retry(mut self, reorder: bool) -> Self {
        self.options.reorder_on_retry = reorder;
        self
    }

    /// Lets a message be sent again when it is not known whether it was stored, so that it may be stored twice. Default
    /// `false`.
    pub fn resend_unknown(mut self, resend: bool) -> Self {
        self.options.resend_unknown = resend;
        self
    }

    /// Sets how long [`Producer::close`] waits for what was taken; 1 ms to 1 h. Default 10 s.
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
