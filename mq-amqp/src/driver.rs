//! The connection that everything else is opened from.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use mq_api::{
    Capabilities, Error, Result, Support, TopicDescription, TopicName, TopicSpec,
    driver::{
        self, CommittedPosition, CommittedRequest, Events, ProducerRequest, QueueConsumer, Subscription,
    },
    url::ConnectUrl,
};

use crate::{
    config::AmqpConfig,
    consumer, delay,
    existing::Existing,
    lane::Sink,
    producer::AmqpProducer,
    queue,
    reader::AmqpReader,
    topic::{MAX_PARTITIONS, Shared},
};

/// Connects to one RabbitMQ server, or to one node of a cluster at a time.
///
/// It holds two connections: one to send on, opened with the first producer, and one for everything else.
pub struct AmqpMq {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    closed: AtomicBool,
}

/// The largest payload that options can raise the limit to: servers from 4.0 on take 16 MiB, with headers.
const MAX_PAYLOAD: usize = 15 * 1024 * 1024;
/// Key and headers travel in one frame, which has 128 KiB by default.
const MAX_METADATA: usize = 96 * 1024;

impl AmqpMq {
    /// Connects as a URL says: `amqp://user:password@host:port/vhost?option=value`, with `amqps` for TLS.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](mq_api::ErrorKind::InvalidConfig) for a part or option that is malformed or unknown,
    /// and those of [`connect_with`](Self::connect_with).
    pub async fn connect(url: &ConnectUrl) -> Result<Self> {
        Self::connect_with(AmqpConfig::from_url(url)?).await
    }

    /// Connects with a configuration, and returns when the server has let the user in.
    ///
    /// # Errors
    /// [`InvalidConfig`](mq_api::ErrorKind::InvalidConfig) for a setting out of range or a virtual host that does not
    /// exist, [`Connection`](mq_api::ErrorKind::Connection), [`Timeout`](mq_api::ErrorKind::Timeout),
    /// [`Tls`](mq_api::ErrorKind::Tls), [`Authentication`](mq_api::ErrorKind::Authentication),
    /// [`PermissionDenied`](mq_api::ErrorKind::PermissionDenied).
    pub async fn connect_with(config: AmqpConfig) -> Result<Self> {
        config.validate()?;
        let shared = Arc::new(Shared::new(Arc::new(config)));
        shared.consume.conn().await?;
        Ok(Self {
            shared,
            capabilities: capabilities(),
            closed: AtomicBool::new(false),
        })
    }

    /// Opens a channel of the client library on the connection for receiving, for what only RabbitMQ can do. It is not
    /// opened again when the connection is lost.
    ///
    /// # Errors
    /// [`Connection`](mq_api::ErrorKind::Connection) while the server cannot be reached,
    /// [`Closed`](mq_api::ErrorKind::Closed) after close.
    pub async fn native(&self) -> Result<lapin::Channel> {
        self.check_open()?;
        Ok(self.shared.consume.conn().await?.channel().await?.into_native())
    }

    /// Returns what a topic stands for, where others made that.
    fn existing(&self, topic: &TopicName) -> Option<Existing> {
        let what = self.shared.config.existing.get(topic.as_str())?;
        Some(Existing::new(topic, what))
    }

    /// Refuses what only topics of our own can do.
    fn check_own(&self, topic: &TopicName, what: &str) -> Result<()> {
        self.check_open()?;
        match self.existing(topic) {
            Some(existing) => Err(existing.refusal(what)),
            None => Ok(()),
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::closed("connection"))
        } else {
            Ok(())
        }
    }
}

fn capabilities() -> Capabilities {
    let mut all = Capabilities::new("amqp");
    all.partitioned = Support::Native;
    all.shared = Support::Emulated;
    all.shared_latest = Support::Emulated;
    all.broadcast = Support::Native;
    all.reader = Support::Native;
    all.seek = Support::Native;
    all.pause = Support::Native;
    all.lag = Support::Native;
    all.delay = Support::Emulated;
    all.max_delay = Some(delay::MAX_DELAY);
    all.delay_precision = delay::PRECISION;
    all.sparse_acks = Support::Native;
    all.durable_attempts = Support::Emulated;
    all.commit_fencing = Support::Native;
    all.topic_id = Support::Native;
    all.sticky_assignment = Support::Native;
    all.offset_at = Support::Emulated;
    all.tombstone = Support::Emulated;
    all.list_topics = Support::Emulated;
    all.retention_age = Support::Native;
    all.retention_bytes = Support::Native;
    all.add_partitions = Support::Emulated;
    all.max_partitions = MAX_PARTITIONS;
    all.max_payload = MAX_PAYLOAD;
    all.max_metadata = MAX_METADATA;
    all
}

#[async_trait]
impl driver::Mq for AmqpMq {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        self.check_own(&spec.name, "creating a topic")?;
        self.shared.create(&spec).await
    }

    async fn add_partitions(&self, topic: TopicName, partitions: u32) -> Result<()> {
        self.check_own(&topic, "adding partitions")?;
        self.shared.add_partitions(&topic, partitions).await
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(topics.len());
        for topic in topics {
            results.push(match self.check_own(&topic, "deleting a topic") {
                Ok(()) => self.shared.delete(&topic).await,
                Err(error) => Err(error),
            });
        }
        results
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        self.check_open()?;
        self.shared.list_topics().await
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        self.check_own(&topic, "describing a topic")?;
        self.shared.describe(topic).await
    }

    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        self.check_own(&request.topic, "reading positions")?;
        self.shared.committed(&request.topic, &request.group).await
    }

    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        self.check_open()?;
        let sink = match self.existing(&request.topic) {
            Some(existing) => {
                existing.check_route(&self.shared.consume).await?;
                Sink::Existing(Arc::new(existing))
            }
            None => Sink::Topic(self.shared.open(&request.topic).await?),
        };
        Ok(Arc::new(AmqpProducer::new(&self.shared, sink, &request)))
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        self.check_own(&subscription.topic, "partitions")?;
        consumer::join(&self.shared, subscription).await
    }

    async fn queue_consumer(&self, subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        self.check_open()?;
        match self.existing(&subscription.topic) {
            Some(existing) => queue::open(&self.shared, subscription, existing).await,
            None => queue::join(&self.shared, subscription).await,
        }
    }

    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn driver::Reader>> {
        self.check_own(&topic, "reading by offset")?;
        let open = self.shared.open(&topic).await?;
        Ok(Arc::new(AmqpReader::new(&self.shared, open)))
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        tokio::join!(self.shared.publish.close(), self.shared.consume.close());
        Ok(())
    }
}

impl fmt::Debug for AmqpMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpMq")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}
