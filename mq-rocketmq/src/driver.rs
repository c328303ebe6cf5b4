//! The connection that everything else is opened from.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::FuturesUnordered};
use mq_api::{
    Capabilities, Error, ErrorKind, GroupName, Message, Result, Support, TopicDescription, TopicName,
    TopicSpec,
    driver::{
        self, CommittedPosition, CommittedRequest, Events, ProducerRequest, QueueConsumer, Subscription,
    },
    url::ConnectUrl,
};
use tokio::time::Instant;

use crate::{
    admin::MAX_PARTITIONS,
    client::{Cluster, ClusterOptions, Decision, Session},
    config::RocketMqConfig,
    consumer,
    error::from_remoting,
    producer::RocketMqProducer,
    queue,
    reader::RocketMqReader,
    remoting::{ConnectionOptions, Credentials, HeartbeatBody, JsonBody, Plain, TlsSetup, codes},
    topic::Shared,
    transaction::TransactionProducer,
};

/// The largest payload that options can raise the limit to: what a broker takes, less what goes with it.
const MAX_PAYLOAD: usize = 4 * 1024 * 1024 - 128 * 1024;
/// How long closing may take.
const CLOSING: Duration = Duration::from_secs(3);
/// How long a new client waits for a broker to say whether it knows it.
const INTRODUCTION: Duration = Duration::from_secs(3);

/// Connects to one RocketMQ cluster. Clones share the connection.
///
/// Producers, readers and questions share one connection to each broker; every member of a group has its own, since
/// brokers tell members apart by them.
#[derive(Clone)]
pub struct RocketMq {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    closed: AtomicBool,
}

impl RocketMq {
    /// Connects as a URL says: `rocketmq://access_key:secret@host:port,host2:port/?option=value`, with
    /// `rocketmq+tls` for TLS.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a part or option that is malformed or unknown, and those of
    /// [`connect_with`](Self::connect_with).
    pub async fn connect(url: &ConnectUrl) -> Result<Self> {
        Self::connect_with(RocketMqConfig::from_url(url)?).await
    }

    /// Connects with a configuration, and returns when a nameserver has answered, or at once where a snapshot of
    /// routes is there. With credentials a broker is asked too, since nameservers check none; where none answers,
    /// that is left to the calls that follow.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a setting out of range, [`ErrorKind::Connection`], [`ErrorKind::Timeout`],
    /// [`ErrorKind::Authentication`], [`ErrorKind::Tls`] and [`ErrorKind::Protocol`].
    pub async fn connect_with(config: RocketMqConfig) -> Result<Self> {
        config.validate()?;
        let mut connection = ConnectionOptions::default();
        if let Some(tls) = config.tls.clone() {
            let read = tokio::task::spawn_blocking(move || TlsSetup::new(&tls)).await;
            let setup = read.map_err(|_| Error::new(ErrorKind::Tls, "the files of TLS could not be read"))?;
            connection.tls = Some(setup.map_err(from_remoting)?);
        }
        if let (Some(access_key), Some(secret_key)) = (&config.access_key, &config.secret_key) {
            let credentials = Credentials::new(access_key.as_str(), secret_key.as_str());
            connection.credentials = Some(Arc::new(credentials));
        }
        let mut options = ClusterOptions::new(config.nameservers.clone());
        options.connection = connection;
        options.nameserver_timeout = options.nameserver_timeout.min(config.call_timeout);
        options.route_refresh = config.route_refresh;
        options.heartbeat_interval = config.heartbeat_interval;
        options.snapshot.clone_from(&config.route_snapshot);
        options.cluster_name.clone_from(&config.cluster_name);
        options.instance.clone_from(&config.instance);
        let kept = config.route_snapshot.as_ref().is_some_and(|path| path.exists());
        let cluster = Cluster::open(options).map_err(from_remoting)?;
        let session = Session::new(&cluster);
        let shared = Arc::new(Shared::new(config, cluster, session));
        let deadline = shared.deadline();
        match shared.cluster.masters(deadline).await {
            Ok(masters) if shared.config.access_key.is_some() => {
                let until = deadline.min(Instant::now() + INTRODUCTION);
                introduce(&shared.session, &masters, until).await?;
            }
            Ok(_) => {}
            Err(error) if kept && crate::topic::is_out_of_reach(&error) => {}
            Err(error) => return Err(from_remoting(error)),
        }
        Ok(Self {
            inner: Arc::new(Inner {
                capabilities: capabilities(&shared.config),
                shared,
                closed: AtomicBool::new(false),
            }),
        })
    }

    /// Returns the client below this driver, for what only RocketMQ can do. It shares this driver's connections.
    #[must_use]
    pub fn native(&self) -> Session {
        self.inner.shared.session.clone()
    }

    /// Opens a producer of transactions. `check` says what became of a transaction that this process does not
    /// remember, for instance of one that a killed process left open; it is asked again after
    /// [`Decision::Unknown`].
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::InvalidTopic`], [`ErrorKind::InvalidGroup`], and what servers and
    /// connections say.
    pub async fn transaction_producer<F, A>(
        &self,
        topic: impl AsRef<str>,
        group: impl AsRef<str>,
        check: F,
    ) -> Result<TransactionProducer>
    where
        F: Fn(Message) -> A + Send + Sync + 'static,
        A: Future<Output = Decision> + Send + 'static,
    {
        self.check_open()?;
        let (topic, group) = (TopicName::existing(topic)?, GroupName::existing(group)?);
        TransactionProducer::open(&self.inner.shared, &topic, &group, check).await
    }

    fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) {
            Err(Error::closed("connection"))
        } else {
            Ok(())
        }
    }
}

/// Asks brokers whether they know who this is, by a heartbeat without groups, for which nobody needs a right. The
/// first one that answers decides.
async fn introduce(session: &Session, masters: &[Arc<str>], until: Instant) -> Result<()> {
    let body = HeartbeatBody {
        client_id: session.client_id().to_owned(),
        ..HeartbeatBody::default()
    };
    let (beat, body) = (Plain(codes::request::HEART_BEAT), JsonBody(&body));
    let mut answers: FuturesUnordered<_> = masters
        .iter()
        .map(|broker| session.ask(broker, &beat, &body, until))
        .collect();
    while let Some(answer) = answers.next().await {
        match answer.map_err(from_remoting) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Authentication => return Err(error),
            Err(error) => tracing::debug!(%error, "a broker did not say whether it knows this client"),
        }
    }
    Ok(())
}

fn capabilities(config: &RocketMqConfig) -> Capabilities {
    let mut all = Capabilities::new("rocketmq");
    all.partitioned = Support::Native;
    all.shared = Support::Native;
    all.broadcast = Support::Native;
    all.reader = Support::Native;
    all.seek = Support::Native;
    all.pause = Support::Native;
    all.lag = Support::Native;
    all.delay = Support::Native;
    all.max_delay = Some(config.delays.longest());
    all.delay_precision = config.delays.precision();
    all.receipt_offset = Support::Native;
    all.commit_fencing = Support::BestEffort;
    all.offset_at = Support::Native;
    all.tombstone = Support::Emulated;
    all.list_topics = Support::Native;
    all.add_partitions = Support::Native;
    all.max_partitions = MAX_PARTITIONS;
    all.max_payload = MAX_PAYLOAD;
    all
}

#[async_trait]
impl driver::Mq for RocketMq {
    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        self.check_open()?;
        self.inner.shared.create(&spec).await
    }

    async fn add_partitions(&self, topic: TopicName, partitions: u32) -> Result<()> {
        self.check_open()?;
        self.inner.shared.add_partitions(&topic, partitions).await
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        match self.check_open() {
            Ok(()) => self.inner.shared.delete_all(&topics).await,
            Err(error) => topics.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        self.check_open()?;
        self.inner.shared.list().await
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        self.check_open()?;
        self.inner.shared.describe(topic).await
    }

    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        self.check_open()?;
        self.inner.shared.committed(&request.topic, &request.group).await
    }

    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        self.check_open()?;
        Ok(RocketMqProducer::open(&self.inner.shared, &request).await?)
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        self.check_open()?;
        consumer::join(&self.inner.shared, subscription).await
    }

    async fn queue_consumer(&self, subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        self.check_open()?;
        Ok(queue::join(&self.inner.shared, subscription).await?)
    }

    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn driver::Reader>> {
        self.check_open()?;
        Ok(RocketMqReader::open(&self.inner.shared, &topic).await?)
    }

    async fn close(&self) -> Result<()> {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let deadline = Instant::now() + CLOSING;
        self.inner.shared.session.close(deadline).await;
        self.inner.shared.cluster.close(deadline).await;
        Ok(())
    }
}

impl fmt::Debug for RocketMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocketMq")
            .field("config", &self.inner.shared.config)
            .finish_non_exhaustive()
    }
}
