//! A connection to a broker in memory, and what it opens.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Capabilities, Offset, Result, Support, TopicDescription, TopicName, TopicSpec,
    driver::{
        CommittedPosition, CommittedRequest, Consumer, Events, Mq, Producer, ProducerRequest, QueueConsumer,
        Reader, Subscription,
    },
    url::ConnectUrl,
};

use crate::{
    broker::Broker, config::MemoryConfig, consumer, error::MemoryError, faults::Faults,
    producer::MemoryProducer, queue_consumer::MemoryQueueConsumer, reader::MemoryReader, topic::Topic,
    wakes::Wakes,
};

/// Connects to a broker in this process.
///
/// Clones are one connection: closing one closes all. A broker and all that is in it lives as long as something that
/// was opened on it.
///
/// ```
/// # use mq_api::{Message, Mq};
/// # use mq_memory::MemoryMq;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> mq_api::Result<()> {
/// # let mq = Mq::from_driver(MemoryMq::new());
/// mq.create_topic("orders", 4).await?;
/// mq.producer("orders").await?.produce("paid").await?;
/// let consumer = mq.consumer("orders", "billing").await?;
/// assert_eq!(consumer.consume().await?.payload(), b"paid");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemoryMq {
    broker: Arc<Broker>,
    capabilities: Arc<Capabilities>,
    closed: Arc<AtomicBool>,
}

impl MemoryMq {
    /// Makes a private broker with the default settings and connects to it.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// let mq = Mq::from_driver(MemoryMq::new());
    /// let other = Mq::from_driver(MemoryMq::new());
    /// mq.create_topic("orders", 4).await?;
    /// assert!(other.list_topics().await?.is_empty()); // each has its own broker
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::on(Broker::new(None, MemoryConfig::default()))
    }

    /// Makes a private broker and connects to it.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// use mq_memory::MemoryConfig;
    ///
    /// let memory = MemoryMq::with_config(MemoryConfig::default().with_max_partitions(8))?;
    /// assert_eq!(Mq::from_driver(memory).capabilities().max_partitions, 8);
    /// let refused = MemoryMq::with_config(MemoryConfig::default().with_max_partitions(0));
    /// assert_eq!(refused.unwrap_err().kind(), mq_api::ErrorKind::InvalidConfig);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](mq_api::ErrorKind::InvalidConfig) names a setting that is out of range.
    pub fn with_config(config: MemoryConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self::on(Broker::new(None, config)))
    }

    /// Connects to the broker of a name in this process, which the first connection makes with the default settings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](mq_api::ErrorKind::InvalidConfig) for an empty name,
    /// [`ErrorKind::Connection`](mq_api::ErrorKind::Connection) while an injected fault cuts the broker off.
    ///
    /// ```
    /// # use mq_api::Mq;
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// let one = Mq::from_driver(MemoryMq::connect("shop")?);
    /// let two = Mq::from_driver(MemoryMq::connect("shop")?);
    /// one.create_topic("orders", 4).await?;
    /// assert_eq!(two.describe_topic("orders").await?.partitions.len(), 4);
    /// # Ok(()) }
    /// ```
    pub fn connect(name: &str) -> Result<Self> {
        Self::connect_named(name, None)
    }

    /// Connects to the broker of a name in this process, which the first connection makes with these settings.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_max_partitions(8);
    /// let memory = MemoryMq::connect_with("warehouse", config)?;
    /// assert_eq!(Mq::from_driver(memory).capabilities().max_partitions, 8);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and [`ErrorKind::InvalidConfig`](mq_api::ErrorKind::InvalidConfig) for a setting
    /// that is out of range, or where the broker runs with other settings.
    pub fn connect_with(name: &str, config: MemoryConfig) -> Result<Self> {
        config.validate()?;
        Self::connect_named(name, Some(config))
    }

    /// Connects as a URL says: `memory://name?option=value`, where `memory://` alone is a private broker.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// use mq_api::url::ConnectUrl;
    ///
    /// let url = ConnectUrl::parse("memory://archive?max_partitions=8")?;
    /// let mq = Mq::from_driver(MemoryMq::from_url(&url)?);
    /// assert_eq!(mq.capabilities().max_partitions, 8);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with), and [`ErrorKind::InvalidConfig`](mq_api::ErrorKind::InvalidConfig) for
    /// an option that is unknown or malformed, or a part that a broker in memory does not have.
    pub fn from_url(url: &ConnectUrl) -> Result<Self> {
        let bad = |what: &str| Err(MemoryError::BadOption(format!("memory url: {what}")).into());
        if url.scheme() != "memory" {
            return bad("the scheme is not `memory`");
        }
        if url.user().is_some() || url.password().is_some() {
            return bad("a broker in memory has no users");
        }
        if !url.path().is_empty() {
            return bad("a broker in memory has a name and no path");
        }
        let config = MemoryConfig::from_url(url)?;
        match url.hosts() {
            [] => Self::with_config(config.unwrap_or_default()),
            [host] if host.port.is_none() => Self::connect_named(&host.name, config),
            _ => bad("a broker in memory has one name and no port"),
        }
    }

    /// Returns the handle that makes this broker fail on demand.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// let memory = MemoryMq::new();
    /// let mq = Mq::from_driver(memory.clone());
    /// memory.faults().cut();
    /// assert_eq!(mq.list_topics().await.unwrap_err().kind(), mq_api::ErrorKind::Connection);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults::new(Arc::clone(&self.broker))
    }

    /// Removes the messages of a partition below an offset, as retention does once they are old.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`](mq_api::ErrorKind::TopicNotFound) and
    /// [`ErrorKind::InvalidPartition`](mq_api::ErrorKind::InvalidPartition).
    ///
    /// ```
    /// # use mq_api::{Mq, TopicName};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// let memory = MemoryMq::new();
    /// let mq = Mq::from_driver(memory.clone());
    /// mq.create_topic("orders", 1).await?;
    /// let producer = mq.producer("orders").await?;
    /// producer.produce("a").await?;
    /// producer.produce("b").await?;
    /// memory.trim(&TopicName::new("orders")?, 0, 1)?;
    /// assert_eq!(mq.describe_topic("orders").await?.partitions[0].first_offset, 1);
    /// # Ok(()) }
    /// ```
    pub fn trim(&self, topic: &TopicName, partition: u32, before: Offset) -> Result<()> {
        let topic = self.broker.topic(topic)?;
        topic
            .try_partition(partition)?
            .trim(before, &mut Wakes::default());
        Ok(())
    }

    fn connect_named(name: &str, config: Option<MemoryConfig>) -> Result<Self> {
        if name.is_empty() {
            return Err(MemoryError::BadOption("the name of a memory broker is empty".to_owned()).into());
        }
        let broker = Broker::named(name, config)?;
        broker.faults.check_reachable()?;
        Ok(Self::on(broker))
    }

    fn on(broker: Arc<Broker>) -> Self {
        Self {
            capabilities: Arc::new(capabilities(&broker.config)),
            broker,
            closed: Arc::default(),
        }
    }

    /// Lets a call through, after what is injected.
    async fn gate(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(MemoryError::Closed("connection").into());
        }
        self.broker.faults.gate(self.broker.config.request_timeout).await
    }

    async fn topic(&self, name: &TopicName) -> Result<Arc<Topic>> {
        self.gate().await?;
        self.broker.topic(name)
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Arc<Topic>> {
        if let Some((name, _)) = subscription.properties.first() {
            return Err(MemoryError::BadOption(format!(
                "property {name:?} of a consumer: the memory backend has no consumer properties"
            ))
            .into());
        }
        let topic = self.topic(&subscription.topic).await?;
        for partition in topic.partitions() {
            partition.expire();
        }
        Ok(topic)
    }
}

#[async_trait]
impl Mq for MemoryMq {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        self.gate().await?;
        self.broker.create_topic(&spec)
    }

    async fn add_partitions(&self, topic: TopicName, partitions: u32) -> Result<()> {
        self.gate().await?;
        self.broker.add_partitions(&topic, partitions)
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        if let Err(error) = self.gate().await {
            return topics.iter().map(|_| Err(error.clone())).collect();
        }
        topics
            .iter()
            .map(|topic| {
                self.broker.delete_topic(topic);
                Ok(())
            })
            .collect()
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        self.gate().await?;
        Ok(self
            .broker
            .topics()
            .iter()
            .map(|topic| topic.name.clone())
            .collect())
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        self.gate().await?;
        self.broker.describe_topic(&topic)
    }

    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        Ok(self.topic(&request.topic).await?.committed(&request.group))
    }

    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn Producer>> {
        let topic = self.topic(&request.topic).await?;
        Ok(Arc::new(MemoryProducer::new(Arc::clone(&self.broker), topic)))
    }

    async fn consumer(&self, subscription: Subscription) -> Result<(Arc<dyn Consumer>, Box<dyn Events>)> {
        let topic = self.subscribe(&subscription).await?;
        // From here on nothing waits: a dropped future has either joined nothing or drops what it has joined.
        let (consumer, events) = consumer::join(&self.broker, &topic, &subscription)?;
        Ok((Arc::new(consumer), Box::new(events)))
    }

    async fn queue_consumer(&self, subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        let topic = self.subscribe(&subscription).await?;
        Ok(Arc::new(MemoryQueueConsumer::join(
            &self.broker,
            &topic,
            &subscription,
        )?))
    }

    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn Reader>> {
        let topic = self.topic(&topic).await?;
        Ok(Arc::new(MemoryReader::new(Arc::clone(&self.broker), topic)))
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

impl Default for MemoryMq {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryMq")
            .field("name", &self.broker.name)
            .finish_non_exhaustive()
    }
}

fn capabilities(config: &MemoryConfig) -> Capabilities {
    const NATIVE: Support = Support::Native;
    let mut can = Capabilities::new("memory");
    can.partitioned = NATIVE;
    can.shared = NATIVE;
    can.shared_latest = NATIVE;
    can.broadcast = NATIVE;
    can.reader = NATIVE;
    can.seek = NATIVE;
    can.pause = NATIVE;
    can.lag = NATIVE;
    can.delay = NATIVE;
    can.max_delay = Some(config.max_delay);
    can.delay_precision = Duration::from_millis(50);
    can.receipt_offset = NATIVE;
    can.sparse_acks = NATIVE;
    can.durable_attempts = NATIVE;
    can.commit_fencing = NATIVE;
    can.topic_id = NATIVE;
    can.sticky_assignment = NATIVE;
    can.offset_at = NATIVE;
    can.tombstone = NATIVE;
    can.list_topics = NATIVE;
    can.retention_age = NATIVE;
    can.retention_bytes = NATIVE;
    can.add_partitions = NATIVE;
    can.max_partitions = config.max_partitions;
    can.max_payload = 64 * 1024 * 1024;
    can.max_metadata = 1024 * 1024;
    can
}
