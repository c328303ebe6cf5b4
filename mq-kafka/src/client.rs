//! The connection that questions are asked over, and what every client of the library shares.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mq_api::{Error, ErrorKind, GroupName, Offset, Position, Result, driver::invalid_partition};
use rdkafka::{
    ClientContext, TopicPartitionList,
    admin::AdminClient,
    client::Client as NativeClient,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::KafkaConfig,
    error,
    ffi::{self, GroupOffset},
    format::Stored,
    watch::TopicWatch,
};

/// How long a thread of the driver waits for events of its client before it looks around.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// Stands where the library wants the name of a group. Nothing is joined or stored under it.
const NO_GROUP: &str = "mq-client";

/// How long to wait before a question is asked again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long a cluster may lack a broker for what is asked of it before that counts as an answer: a busy broker counts as
/// gone for a moment.
pub(crate) const NO_LEADER: Duration = Duration::from_secs(5);
/// How long one try of a connect waits before it looks at what the error callback has said.
const CONNECT_LOOK: Duration = Duration::from_millis(50);

/// Keeps the last error that explains why everything else times out: of a login, of TLS, of a name.
#[derive(Debug, Default)]
pub(crate) struct Cause {
    last: Mutex<Option<(Code, String)>>,
    /// Set while no broker answers.
    all_down: AtomicBool,
}

impl Cause {
    /// Takes in what the library reports beside its results.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else {
            return;
        };
        tracing::debug!(?code, reason, "the kafka client reports an error");
        if code == Code::AllBrokersDown {
            self.all_down.store(true, Ordering::Release);
        } else if error::is_cause(code) || code == Code::BrokerTransportFailure {
            let mut last = self.lock();
            // A broken connection follows from the others, and must not hide them.
            if code != Code::BrokerTransportFailure || last.is_none() {
                *last = Some((code, reason.to_owned()));
            }
        }
    }

    /// Tells whether no broker has answered lately.
    pub(crate) fn is_down(&self) -> bool {
        self.all_down.load(Ordering::Acquire)
    }

    /// Notes that a broker has answered.
    pub(crate) fn clear(&self) {
        self.all_down.store(false, Ordering::Release);
        *self.lock() = None;
    }

    /// Gives an error that only says that time was up the kind of its cause, where that is known.
    pub(crate) fn explain(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Connection) {
            return error;
        }
        match self.error() {
            Some(cause) if cause.kind() != error.kind() => cause.with_source(error),
            _ => error,
        }
    }

    fn error(&self) -> Option<Error> {
        let last = self.lock();
        let (code, reason) = last.as_ref()?;
        let error = error::from_code(reason, *code);
        Some(error)
    }

    /// Returns why a connect is hopeless by now.
    fn hopeless(&self, address: &str) -> Option<Error> {
        let down = self.all_down.load(Ordering::Acquire);
        match self.error() {
            Some(error) if down || error.kind() != ErrorKind::Connection => Some(error),
            None if down => Some(error::from_code(
                &format!("brokers {address}"),
                Code::AllBrokersDown,
            )),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Code, String)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on what a client of the library says beside its results.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) cause: Arc<Cause>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.cause.note(&error, reason);
    }
}

impl ConsumerContext for Context {}

/// Passes a line of the library's log on.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, message, "librdkafka");
        }
        _ => tracing::debug!(facility, message, "librdkafka"),
    }
}

/// Asks questions, and holds what the producers, consumers and readers of one connection share.
pub(crate) struct Client {
    pub(crate) config: KafkaConfig,
    pub(crate) cause: Arc<Cause>,
    questions: Arc<BaseConsumer<Context>>,
    admin: OnceLock<AdminClient<Context>>,
    watches: Mutex<HashMap<String, Weak<TopicWatch>>>,
    stop: Arc<AtomicBool>,
}

impl Client {
    /// Connects, and returns when a broker has answered.
    pub(crate) async fn connect(config: KafkaConfig) -> Result<Self> {
        let cause = Arc::new(Cause::default());
        let context = Context {
            cause: Arc::clone(&cause),
        };
        let stop = Arc::new(AtomicBool::new(false));
        // With a group's name, though it joins none: the library crashes on a client without one when the coordinator of a
        // group that it is asked about has moved.
        let questions: BaseConsumer<Context> = config
            .client()
            .set("group.id", NO_GROUP)
            .create_with_context(context)
            .map_err(|error| tls_file(&config, error::from_kafka("connecting", &error)))?;
        let questions = Arc::new(questions);
        serve("mq-kafka-client", Arc::clone(&questions), Arc::clone(&stop))?;
        let client = Self {
            config,
            cause,
            questions,
            admin: OnceLock::new(),
            watches: Mutex::default(),
            stop,
        };
        client.wait_for_a_broker().await?;
        Ok(client)
    }

    async fn wait_for_a_broker(&self) -> Result<()> {
        let limit = self.config.connect_timeout;
        let by = Instant::now() + limit;
        loop {
            let client = Arc::clone(&self.questions);
            let left = by.saturating_duration_since(Instant::now()).min(CONNECT_LOOK);
            let answered = blocking(move || client.client().fetch_cluster_id(left).is_some()).await?;
            if answered {
                self.cause.clear();
                return Ok(());
            }
            if let Some(error) = self.cause.hopeless(&self.config.address()) {
                return Err(error);
            }
            if Instant::now() >= by {
                let what = format!("connecting to brokers {}", self.config.address());
                return Err(self.cause.explain(Error::timeout(&what, limit)));
            }
        }
    }

    /// Asks a question that blocks, in a thread that may be blocked, within the time of a request.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        what: String,
        question: impl Fn(&NativeClient<Context>, Duration) -> Result<T, Code> + Send + Sync + 'static,
    ) -> Result<T> {
        self.ask_within(self.config.request_timeout, what, question).await
    }

    pub(crate) async fn ask_within<T: Send + 'static>(
        &self,
        limit: Duration,
        what: String,
        question: impl Fn(&NativeClient<Context>, Duration) -> Result<T, Code> + Send + Sync + 'static,
    ) -> Result<T> {
        let question = Arc::new(question);
        let by = Instant::now() + limit;
        let mut pause = FIRST_PAUSE;
        loop {
            let (client, question) = (Arc::clone(&self.questions), Arc::clone(&question));
            let left = by.saturating_duration_since(Instant::now()).max(CONNECT_LOOK);
            let error = match blocking(move || question(client.client(), left)).await? {
                Ok(answer) => {
                    self.cause.clear();
                    return Ok(answer);
                }
                Err(code) => error::from_code(&what, code),
            };
            // A leader or coordinator that moves or loads: the answer comes in a moment.
            if error.kind() != ErrorKind::Interrupted || Instant::now() + pause >= by {
                return Err(self.cause.explain(error));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns the client that changes topics; it is made by the first call.
    pub(crate) fn admin(&self) -> Result<&AdminClient<Context>> {
        if let Some(admin) = self.admin.get() {
            return Ok(admin);
        }
        let context = Context {
            cause: Arc::clone(&self.cause),
        };
        let admin = self
            .config
            .client()
            .create_with_context(context)
            .map_err(|error| error::from_kafka("connecting", &error))?;
        Ok(self.admin.get_or_init(|| admin))
    }

    /// Looks at a topic, and goes on looking while somebody holds what it returns; `TopicNotFound` where there is none.
    pub(crate) async fn watch(self: &Arc<Self>, topic: &str) -> Result<Arc<TopicWatch>> {
        let known = self.lock_watches().get(topic).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| !known.is_gone()) {
            // It may have been deleted a moment ago.
            known.look().await?;
            if !known.is_gone() {
                return Ok(known);
            }
        }
        let fresh = TopicWatch::open(self, topic).await?;
        let mut watches = self.lock_watches();
        watches.retain(|_, watch| watch.strong_count() > 0);
        watches.insert(topic.to_owned(), Arc::downgrade(&fresh));
        Ok(fresh)
    }

    fn lock_watches(&self) -> MutexGuard<'_, HashMap<String, Weak<TopicWatch>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the first offset retained and the next one that can be read, of each of these partitions.
    pub(crate) async fn bounds(&self, topic: &str, partitions: Vec<u32>) -> Result<Vec<(Offset, Offset)>> {
        let (first, next) = (
            self.offsets(topic, &partitions, EARLIEST),
            self.offsets(topic, &partitions, LATEST),
        );
        let (first, next) = futures_util::future::try_join(first, next).await?;
        Ok(first
            .into_iter()
            .zip(next)
            .map(|(first, next)| (first.unwrap_or(0), next.unwrap_or(0).max(first.unwrap_or(0))))
            .collect())
    }

    /// Resolves a position in each of these partitions; an offset beyond the end is `OffsetOutOfRange`, one below what is
    /// retained becomes the earliest.
    pub(crate) async fn resolve(
        &self,
        topic: &str,
        partitions: Vec<u32>,
        position: Position,
    ) -> Result<Vec<Offset>> {
        let time = match position {
            Position::Earliest => EARLIEST,
            Position::Latest => LATEST,
            Position::Time(time) => time.as_millis().max(0),
            Position::Offset(offset) => {
                let bounds = self.bounds(topic, partitions.clone()).await?;
                return partitions
                    .iter()
                    .zip(bounds)
                    .map(|(partition, (first, next))| match offset > next {
                        true => Err(beyond(topic, *partition, offset, next)),
                        false => Ok(offset.max(first)),
                    })
                    .collect();
            }
            other => return Err(Error::unsupported("kafka", &format!("the position {other:?}"))),
        };
        let found = self.offsets(topic, &partitions, time).await?;
        if found.iter().all(Option::is_some) {
            return Ok(found.into_iter().flatten().collect());
        }
        // No message is as late as that: the end.
        let ends = self.offsets(topic, &partitions, LATEST).await?;
        Ok(found
            .into_iter()
            .zip(ends)
            .map(|(found, end)| found.or(end).unwrap_or(0))
            .collect())
    }

    /// Looks up one offset a partition: the first at or after a time, or one of the two ends.
    async fn offsets(&self, topic: &str, partitions: &[u32], time: i64) -> Result<Vec<Option<Offset>>> {
        let (topic, partitions) = (topic.to_owned(), partitions.to_vec());
        let what = format!("offsets of topic {topic:?}");
        let begun = Instant::now();
        self.ask(what, move |client, limit| {
            let list = partition_list(&topic, &partitions, |_| rdkafka::Offset::from_raw_time(time))?;
            // Only partitions that were seen are asked about: one that is unknown has no leader at the moment, as where its
            // broker was too busy to count as there.
            let unseen = |code| match code {
                Code::UnknownPartition if begun.elapsed() < NO_LEADER => Code::LeaderNotAvailable,
                code => code,
            };
            ffi::offsets_for_times(client, &list, limit).map_err(unseen)?;
            let mut found = Vec::with_capacity(partitions.len());
            for partition in &partitions {
                let element = list
                    .find_partition(&topic, number(*partition))
                    .ok_or(Code::UnknownPartition)?;
                if let Err(error) = element.error() {
                    return Err(unseen(error.rdkafka_error_code().unwrap_or(Code::Fail)));
                }
                found.push(match element.offset() {
                    rdkafka::Offset::Offset(offset) => u64::try_from(offset).ok(),
                    _ => None,
                });
            }
            Ok(found)
        })
        .await
    }

    /// Reads what a group has stored for these partitions. What belongs to another life of the topic is left out.
    pub(crate) async fn stored(
        &self,
        topic: &str,
        group: &GroupName,
        partitions: &[u32],
        topic_id: Option<&str>,
    ) -> Result<HashMap<u32, (Offset, Stored)>> {
        let (topic, partitions) = (topic.to_owned(), partitions.to_vec());
        let name = group.as_str().to_owned();
        let what = format!("positions of group {name:?}");
        let found: Vec<GroupOffset> = self
            .ask(what, move |client, limit| {
                let list = partition_list(&topic, &partitions, |_| rdkafka::Offset::Invalid)?;
                ffi::group_offsets(client, &name, &list, limit)
            })
            .await?;
        let mut all = HashMap::with_capacity(found.len());
        for GroupOffset {
            partition,
            offset,
            metadata,
        } in found
        {
            let stored = Stored::decode(offset, &metadata)?;
            let same = match (&stored.topic_id, topic_id) {
                (Some(then), Some(now)) => then == now,
                _ => true,
            };
            if same {
                all.insert(partition, (offset, stored));
            }
        }
        Ok(all)
    }

    /// Ends the thread; what was opened holds the connections until it is closed itself.
    pub(crate) fn close(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
        // Ending a client waits for its threads: not on a thread of the runtime.
        if let Some(admin) = self.admin.take() {
            off_the_runtime("mq-kafka-end", move || drop(admin));
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What the protocol calls the two ends of a partition where it takes a time.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

trait FromRawTime {
    fn from_raw_time(time: i64) -> Self;
}

impl FromRawTime for rdkafka::Offset {
    fn from_raw_time(time: i64) -> Self {
        match time {
            EARLIEST => Self::Beginning,
            LATEST => Self::End,
            time => Self::Offset(time),
        }
    }
}

/// Makes a list of partitions, each with an offset.
pub(crate) fn partition_list(
    topic: &str,
    partitions: &[u32],
    offset: impl Fn(u32) -> rdkafka::Offset,
) -> Result<TopicPartitionList, Code> {
    if topic.contains('\0') {
        return Err(Code::InvalidTopic);
    }
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        let mut element = list.add_partition(topic, number(*partition));
        element
            .set_offset(offset(*partition))
            .map_err(|_| Code::InvalidArgument)?;
    }
    Ok(list)
}

/// Returns a partition's number as the library takes it.
pub(crate) fn number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// Returns an offset as the library takes it.
pub(crate) fn raw_offset(offset: Offset) -> rdkafka::Offset {
    rdkafka::Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX))
}

pub(crate) fn beyond(topic: &str, partition: u32, offset: Offset, end: Offset) -> Error {
    Error::new(
        ErrorKind::OffsetOutOfRange,
        format!("offset {offset} of partition {partition} of topic {topic:?}: the next offset is {end}"),
    )
}

/// Refuses a partition that a topic does not have.
pub(crate) fn check_partition(topic: &mq_api::TopicName, partition: u32, partitions: u32) -> Result<()> {
    if partition < partitions {
        Ok(())
    } else {
        Err(invalid_partition(topic, partition, partitions))
    }
}

/// Runs what blocks where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::new(ErrorKind::Interrupted, "the runtime is shutting down").with_retryable(false))
}

/// Serves the events of a client in a thread of its own, which ends and destroys it when it is told to stop and nobody
/// else uses it.
pub(crate) fn serve<C: ConsumerContext + 'static>(
    name: &str,
    client: Arc<BaseConsumer<C>>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    spawn(name, move || {
        while !stop.load(Ordering::Acquire) {
            // No partition's messages come here; errors reach the callback of the context.
            drop(client.poll(LOOK));
        }
        drop_last(client);
    })
}

/// Waits until nobody else holds a client, then destroys it here.
pub(crate) fn drop_last<T>(mut client: Arc<T>) {
    loop {
        match Arc::try_unwrap(client) {
            Ok(last) => return drop(last),
            Err(shared) => client = shared,
        }
        // A thread of the driver's own; nothing tells when the last holder lets go.
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    match std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        Ok(_) => Ok(()),
        Err(cause) => {
            Err(Error::new(ErrorKind::ResourceExhausted, "no thread could be started").with_source(cause))
        }
    }
}

/// Does in a thread what blocks; here where no thread can be had.
pub(crate) fn off_the_runtime(name: &str, work: impl FnOnce() + Send + 'static) {
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let theirs = Arc::clone(&work);
    let started = spawn(name, move || {
        let work = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            work();
        }
    });
    if started.is_err()
        && let Some(work) = take(&work)
    {
        work();
    }
}

/// A client that cannot be made for want of a readable certificate is a matter of TLS.
fn tls_file(config: &KafkaConfig, error: Error) -> Error {
    let ssl = error.context().contains("ssl.") || error.context().contains("SSL");
    if config.tls && ssl && error.kind() == ErrorKind::InvalidConfig {
        return Error::new(ErrorKind::Tls, error.context()).with_source(error);
    }
    error
}
