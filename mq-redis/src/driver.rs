//! The connection that everything else is opened from.

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
    Capabilities, Error, ErrorKind, Result, Support, TopicDescription, TopicName, TopicSpec,
    driver::{
        self, CommittedPosition, CommittedRequest, Events, ProducerRequest, QueueConsumer, Subscription,
    },
    url::ConnectUrl,
};

use crate::{
    clock::ServerClock,
    config::RedisConfig,
    consumer,
    keys::Keys,
    link::{Conn, Link},
    producer::{RedisProducer, Sender},
    queue,
    reader::RedisReader,
    reads::Reads,
    topic::{MAX_PARTITIONS, Shared},
    upkeep::Upkeep,
};

/// Connects to one Redis server.
///
/// It holds at most three connections: one to send on, one that waits for messages, and one for everything else.
pub struct RedisMq {
    shared: Arc<Shared>,
    reads: Reads,
    sender: Arc<Sender>,
    upkeep: Arc<Upkeep>,
    capabilities: Capabilities,
    closed: AtomicBool,
}

/// How late a delayed message may be in ordinary running.
const DELAY_PRECISION: Duration = Duration::from_millis(100);
/// The largest payload that options can raise the limit to; replies of many messages have to fit in memory.
const MAX_PAYLOAD: usize = 32 * 1024 * 1024;

impl RedisMq {
    /// Connects as a URL says: `redis://user:password@host:port/database?option=value`, with `rediss` for TLS.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a part or option that is malformed or unknown, and those of
    /// [`connect_with`](Self::connect_with).
    pub async fn connect(url: &ConnectUrl) -> Result<Self> {
        Self::connect_with(RedisConfig::from_url(url)?).await
    }

    /// Connects with a configuration, and returns when the server has answered.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a setting out of range, [`ErrorKind::Connection`], [`ErrorKind::Timeout`],
    /// [`ErrorKind::Tls`], [`ErrorKind::Authentication`], [`ErrorKind::PermissionDenied`], and
    /// [`ErrorKind::Unsupported`] for a server older than 7.0.
    pub async fn connect_with(config: RedisConfig) -> Result<Self> {
        config.validate()?;
        let config = Arc::new(config);
        let shared = Arc::new(Shared {
            keys: Keys::new(&config.prefix),
            link: Link::new(Arc::clone(&config)),
            clock: ServerClock::default(),
            config,
        });
        let conn = shared.link.conn().await?;
        check_server(&conn).await?;
        shared.clock.sync(&conn).await?;
        warn_of_eviction(&conn).await;
        let upkeep = Arc::new(Upkeep::new(Arc::clone(&shared)));
        Ok(Self {
            reads: Reads::new(Arc::clone(&shared)),
            sender: Arc::new(Sender::new(Arc::clone(&shared), Arc::clone(&upkeep))),
            upkeep,
            shared,
            capabilities: capabilities(),
            closed: AtomicBool::new(false),
        })
    }

    /// Returns the client library's own connection, for what only Redis can do. It is the control connection, with
    /// its bounds on what a server may send; do not block it.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`] while the server cannot be reached, [`ErrorKind::Closed`] after close.
    pub async fn native(&self) -> Result<redis::aio::MultiplexedConnection> {
        Ok(self.shared.link.conn().await?.native())
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::closed("connection"))
        } else {
            Ok(())
        }
    }

    fn end(&self) {
        self.closed.store(true, Ordering::Release);
        self.upkeep.close();
        self.sender.close();
        self.reads.close();
    }
}

impl Drop for RedisMq {
    fn drop(&mut self) {
        self.end();
    }
}

fn capabilities() -> Capabilities {
    let mut all = Capabilities::new("redis");
    all.partitioned = Support::Native;
    all.shared = Support::Native;
    all.shared_latest = Support::Native;
    all.broadcast = Support::Native;
    all.reader = Support::Native;
    all.seek = Support::Native;
    all.pause = Support::Native;
    all.lag = Support::Native;
    all.delay = Support::Emulated;
    all.delay_precision = DELAY_PRECISION;
    all.receipt_offset = Support::Native;
    all.sparse_acks = Support::Native;
    all.durable_attempts = Support::Emulated;
    all.commit_fencing = Support::Native;
    all.topic_id = Support::Native;
    all.sticky_assignment = Support::Native;
    all.offset_at = Support::Emulated;
    all.tombstone = Support::Emulated;
    all.list_topics = Support::Native;
    all.retention_age = Support::Emulated;
    all.retention_bytes = Support::Emulated;
    all.add_partitions = Support::Emulated;
    all.max_partitions = MAX_PARTITIONS;
    all.max_payload = MAX_PAYLOAD;
    all.max_metadata = 1024 * 1024;
    all
}

/// Refuses servers that do not number the entries of a stream by themselves.
async fn check_server(conn: &Conn) -> Result<()> {
    let info = match conn.call(redis::cmd("INFO").arg("server")).await {
        Ok(info) => info,
        // A user without the right to ask may still have all others.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(error),
    };
    let text = info.str().unwrap_or_default();
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    if value("redis_mode") == Some("cluster") {
        return Err(Error::unsupported("redis", "a cluster, yet"));
    }
    let version = value("redis_version").unwrap_or_default();
    let major: u32 = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(0);
    if major != 0 && major < 7 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the server is Redis {version}, 7.0 is the oldest that works"),
        ));
    }
    Ok(())
}

/// Says so where the server may throw messages away when its memory is full.
async fn warn_of_eviction(conn: &Conn) {
    let asked = conn
        .call(redis::cmd("INFO").arg("memory"))
        .await
        .ok()
        .and_then(|info| {
            info.str()?
                .lines()
                .find_map(|line| line.strip_prefix("maxmemory_policy:").map(str::to_owned))
        });
    if let Some(policy) = asked
        && policy.trim() != "noeviction"
    {
        tracing::warn!(
            maxmemory_policy = policy.trim(),
            "the server may evict keys when its memory is full, and whole partitions with them; set `maxmemory-policy \
             noeviction`"
        );
    }
}

#[async_trait]
impl driver::Mq for RedisMq {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        self.check_open()?;
        self.shared.create(&spec).await
    }

    async fn add_partitions(&self, topic: TopicName, partitions: u32) -> Result<()> {
        self.check_open()?;
        self.shared.add_partitions(&topic, partitions).await
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(topics.len());
        for topic in topics {
            results.push(match self.check_open() {
                Ok(()) => self.shared.delete(&topic).await,
                Err(error) => Err(error),
            });
        }
        results
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        self.check_open()?;
        self.shared.list().await
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        self.check_open()?;
        self.shared.describe(topic).await
    }

    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        self.check_open()?;
        self.shared.committed(&request.topic, &request.group).await
    }

    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        self.check_open()?;
        let conn = self.shared.link.conn().await?;
        let topic = self.shared.topic(&conn, &request.topic).await?;
        Ok(RedisProducer::open(&self.sender, topic, &request)?)
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        self.check_open()?;
        consumer::join(&self.shared, &self.reads, &self.upkeep, subscription).await
    }

    async fn queue_consumer(&self, subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        self.check_open()?;
        queue::join(&self.shared, &self.upkeep, subscription).await
    }

    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn driver::Reader>> {
        self.check_open()?;
        let conn = self.shared.link.conn().await?;
        let topic = self.shared.topic(&conn, &topic).await?;
        let open = self.upkeep.open(&topic);
        Ok(Arc::new(RedisReader::new(&self.shared, &self.reads, topic, open)))
    }

    async fn close(&self) -> Result<()> {
        self.end();
        self.shared.link.close();
        Ok(())
    }
}

impl fmt::Debug for RedisMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisMq")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}
