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
    Capabilities, CommittedPosition, Error, Outcome, Result, Support, TopicDescription, TopicName, TopicSpec,
    driver::{self, CommittedRequest, Events, ProducerRequest, QueueConsumer, Subscription},
    url::ConnectUrl,
};

use crate::{
    client::Client,
    config::{KafkaConfig, MAX_MESSAGE},
    consumer,
    producer::KafkaProducer,
    reader::KafkaReader,
    topics::{self, MAX_PARTITIONS},
};

/// Connects to one Kafka cluster.
///
/// It holds a client of librdkafka for questions; each producer, consumer and reader has one of its own.
pub struct KafkaMq {
    client: Arc<Client>,
    capabilities: Capabilities,
    closed: AtomicBool,
}

impl KafkaMq {
    /// Connects as a URL says: `kafka://user:password@host1:port,host2:port?option=value`, with `kafka+tls` for TLS.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](mq_api::ErrorKind::InvalidConfig) for a part or option that is malformed or unknown,
    /// and those of [`connect_with`](Self::connect_with).
    pub async fn connect(url: &ConnectUrl) -> Result<Self> {
        Self::connect_with(KafkaConfig::from_url(url)?).await
    }

    /// Connects with a configuration, and returns when a broker has answered.
    ///
    /// # Errors
    /// [`InvalidConfig`](mq_api::ErrorKind::InvalidConfig) for a setting out of range or unknown to librdkafka,
    /// [`Connection`](mq_api::ErrorKind::Connection), [`Timeout`](mq_api::ErrorKind::Timeout),
    /// [`Tls`](mq_api::ErrorKind::Tls) and [`Authentication`](mq_api::ErrorKind::Authentication).
    pub async fn connect_with(config: KafkaConfig) -> Result<Self> {
        config.validate()?;
        let client = Client::connect(config).await;
        Ok(Self {
            client: Arc::new(client.map_err(|error| error.with_outcome(Outcome::NotSent))?),
            capabilities: capabilities(),
            closed: AtomicBool::new(false),
        })
    }

    /// Returns the settings of librdkafka that this connection uses, for a client of one's own that can do what only
    /// Kafka can. They hold the password.
    #[must_use]
    pub fn native_config(&self) -> rdkafka::ClientConfig {
        self.client.config.client()
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
    let mut all = Capabilities::new("kafka");
    all.partitioned = Support::Native;
    all.broadcast = Support::Native;
    all.reader = Support::Native;
    all.seek = Support::Native;
    all.pause = Support::Native;
    all.lag = Support::Native;
    all.receipt_offset = Support::Native;
    all.sparse_acks = Support::Native;
    all.durable_attempts = Support::Emulated;
    all.commit_fencing = Support::Native;
    all.topic_id = Support::Native;
    all.sticky_assignment = Support::Native;
    all.offset_at = Support::Native;
    all.tombstone = Support::Native;
    all.list_topics = Support::Native;
    all.retention_age = Support::Native;
    all.retention_bytes = Support::Native;
    all.replication = Support::Native;
    all.add_partitions = Support::Native;
    all.max_partitions = MAX_PARTITIONS;
    all.max_payload = MAX_MESSAGE - 2 * 1024 * 1024;
    all.max_metadata = 1024 * 1024;
    all
}

#[async_trait]
impl driver::Mq for KafkaMq {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        self.check_open()?;
        topics::create(&self.client, &spec).await
    }

    async fn add_partitions(&self, topic: TopicName, partitions: u32) -> Result<()> {
        self.check_open()?;
        topics::add_partitions(&self.client, &topic, partitions).await
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        if let Err(error) = self.check_open() {
            return vec![Err(error); topics.len()];
        }
        topics::delete(&self.client, &topics).await
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        self.check_open()?;
        topics::list(&self.client).await
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        self.check_open()?;
        topics::describe(&self.client, topic).await
    }

    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        self.check_open()?;
        topics::committed(&self.client, &request).await
    }

    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        self.check_open()?;
        Ok(KafkaProducer::open(&self.client, &request).await?)
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        self.check_open()?;
        consumer::join(&self.client, subscription).await
    }

    async fn queue_consumer(&self, _subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        Err(Error::unsupported("kafka", "the shared mode"))
    }

    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn driver::Reader>> {
        self.check_open()?;
        Ok(Arc::new(KafkaReader::open(&self.client, &topic).await?))
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.client.close();
        Ok(())
    }
}

impl fmt::Debug for KafkaMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaMq")
            .field("config", &self.client.config)
            .finish_non_exhaustive()
    }
}
