//! The driver: topics, sending and reading. Groups are in `group.rs`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use mq_api::{
    Capabilities, Error, ErrorKind, GroupName, Message, Offset, PartitionDescription, Position, Result,
    Support, Timestamp, TopicDescription, TopicName, TopicSpec,
    driver::{
        self, CommittedPosition, CommittedRequest, FetchRequest, Fetched, NotNow, ProducerRequest, Record,
        SendBatch, SendWindow, Subscription,
    },
};
use tokio::{sync::watch, time::Instant};

use crate::group::{self, Group};

/// What the backend calls itself, in its capabilities and in its refusals.
pub(crate) const NAME: &str = "own";
/// How much a partition retains, by [`Message::weight`]: every buffer has a bound.
const RETAINED_BYTES: usize = 256 * 1024 * 1024;

/// The backend: topics in this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<BTreeMap<TopicName, Arc<Topic>>>>);

#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    state: Mutex<State>,
    /// Tells everyone who waits that the state is another one.
    pub(crate) news: watch::Sender<u64>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) gone: bool,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) groups: BTreeMap<GroupName, Group>,
}

#[derive(Debug, Default)]
pub(crate) struct Partition {
    /// The oldest offset that is retained.
    pub(crate) first: Offset,
    records: VecDeque<Record>,
    bytes: usize,
}

impl Log {
    pub(crate) fn topic(&self, name: &TopicName) -> Result<Arc<Topic>> {
        let topic = lock(&self.0).get(name).cloned();
        topic.ok_or_else(|| driver::topic_not_found(name))
    }
}

impl Topic {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state and wakes whoever waits, outside the lock.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.news.send_modify(|version| *version += 1);
        changed
    }

    fn partition<'a>(&self, state: &'a mut State, partition: u32) -> Result<&'a mut Partition> {
        if state.gone {
            return Err(driver::topic_not_found(&self.name));
        }
        let count = state.partitions.len() as u32;
        let found = state.partitions.get_mut(partition as usize);
        found.ok_or_else(|| driver::invalid_partition(&self.name, partition, count))
    }

    /// Removes what lies below an offset, as retention does.
    pub(crate) fn trim(&self, partition: u32, before: Offset) -> Result<()> {
        self.change(|state| {
            let partition = self.partition(state, partition)?;
            while partition.first < before && partition.drop_oldest() {}
            Ok(())
        })
    }
}

impl Partition {
    pub(crate) fn end(&self) -> Offset {
        self.first + self.records.len() as u64
    }

    fn append(&mut self, message: Message) -> Offset {
        let offset = self.end();
        self.bytes += message.weight();
        self.records
            .push_back(Record::new(offset, Timestamp::now(), message));
        while self.bytes > RETAINED_BYTES && self.records.len() > 1 && self.drop_oldest() {}
        offset
    }

    fn drop_oldest(&mut self) -> bool {
        let dropped = self.records.pop_front();
        if let Some(record) = &dropped {
            self.first += 1;
            self.bytes -= record.message.weight();
        }
        dropped.is_some()
    }

    /// Copies some records from an offset on, whose bytes are shared; one of them may be larger than the limit.
    pub(crate) fn read(&self, from: Offset, max: usize, max_bytes: usize) -> Vec<Record> {
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |record: &&Record| {
            let first = bytes == 0;
            bytes += record.message.weight();
            first || bytes <= max_bytes
        };
        let records = self.records.iter().skip(skip).take(max);
        records.take_while(fits).cloned().collect()
    }

    pub(crate) fn resolve(&self, position: Position) -> Result<Offset> {
        match position {
            Position::Earliest => Ok(self.first),
            Position::Latest => Ok(self.end()),
            Position::Offset(offset) if offset <= self.end() => Ok(offset.max(self.first)),
            Position::Offset(offset) => Err(Error::new(
                ErrorKind::OffsetOutOfRange,
                format!("offset {offset} lies beyond the end at {}", self.end()),
            )),
            _ => Err(Error::unsupported(NAME, "a position by time")),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct OwnMq {
    log: Log,
    capabilities: Capabilities,
}

impl OwnMq {
    pub(crate) fn new(log: Log) -> Self {
        // What is not named here is `Unsupported`; the portable layer refuses it by name before the driver is asked.
        let mut can = Capabilities::new(NAME);
        can.partitioned = Support::Native;
        can.broadcast = Support::Emulated;
        can.reader = Support::Native;
        can.seek = Support::Native;
        can.pause = Support::Native;
        can.lag = Support::Native;
        can.receipt_offset = Support::Native;
        can.sparse_acks = Support::Native;
        can.commit_fencing = Support::Native;
        can.sticky_assignment = Support::Native;
        can.tombstone = Support::Native;
        can.list_topics = Support::Native;
        Self {
            log,
            capabilities: can,
        }
    }
}

#[async_trait]
impl driver::Mq for OwnMq {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        no_properties(spec.properties.keys())?;
        let mut topics = lock(&self.log.0);
        if let Some(topic) = topics.get(&spec.name) {
            let has = topic.lock().partitions.len() as u32;
            return match has == spec.partitions {
                true => Ok(()),
                false => Err(driver::topic_exists(&spec.name, has, spec.partitions)),
            };
        }
        let topic = Topic {
            name: spec.name.clone(),
            state: Mutex::new(State {
                gone: false,
                partitions: (0..spec.partitions).map(|_| Partition::default()).collect(),
                groups: BTreeMap::new(),
            }),
            news: watch::Sender::new(0),
        };
        topics.insert(spec.name, Arc::new(topic));
        Ok(())
    }

    async fn add_partitions(&self, _topic: TopicName, _partitions: u32) -> Result<()> {
        Err(Error::unsupported(NAME, "adding partitions"))
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        for name in &topics {
            let removed = lock(&self.log.0).remove(name);
            if let Some(topic) = removed {
                topic.change(|state| state.gone = true);
            }
        }
        topics.iter().map(|_| Ok(())).collect()
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        Ok(lock(&self.log.0).keys().cloned().collect())
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        let found = self.log.topic(&topic)?;
        let state = found.lock();
        let partitions = (0..).zip(&state.partitions);
        let partitions = partitions.map(|(at, p)| PartitionDescription::new(at, p.first, p.end()));
        Ok(TopicDescription::new(topic, None, partitions.collect()))
    }

    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        let topic = self.log.topic(&request.topic)?;
        let state = topic.lock();
        let group = state.groups.get(&request.group);
        Ok(group.map(Group::committed).unwrap_or_default())
    }

    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        let topic = self.log.topic(&request.topic)?;
        let count = topic.lock().partitions.len() as u32;
        Ok(Arc::new(OwnProducer {
            topic,
            partitions: watch::Sender::new(count),
        }))
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn driver::Events>)> {
        no_properties(subscription.properties.iter().map(|(name, _)| name))?;
        group::join(self.log.topic(&subscription.topic)?, &subscription)
    }

    async fn queue_consumer(&self, _subscription: Subscription) -> Result<Arc<dyn driver::QueueConsumer>> {
        Err(Error::unsupported(NAME, "shared consumers"))
    }

    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn driver::Reader>> {
        Ok(Arc::new(OwnReader(self.log.topic(&topic)?)))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct OwnProducer {
    topic: Arc<Topic>,
    partitions: watch::Sender<u32>,
}

#[async_trait]
impl driver::Producer for OwnProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.partitions.subscribe()
    }

    fn window(&self) -> SendWindow {
        SendWindow::new(1, 1024, 16 * 1024 * 1024)
    }

    fn send(&self, batch: SendBatch) {
        // What was given up before is skipped; from here on nothing can fail halfway.
        let wanted: Vec<usize> = (0..batch.len()).filter(|at| batch.begin_one(*at)).collect();
        let stored = self.topic.change(|state| {
            let partition = self.topic.partition(state, batch.partition())?;
            let messages = wanted.iter().filter_map(|at| batch.messages().get(*at));
            let offsets = messages.map(|message| partition.append(message.clone()));
            Ok(offsets.collect::<Vec<_>>())
        });
        match stored {
            Ok(offsets) => {
                for (at, offset) in wanted.into_iter().zip(offsets) {
                    batch.complete_one(at, Some(offset));
                }
            }
            Err(error) => batch.fail_all(&error),
        }
    }

    // It only saves time, and only within one process.
    fn store_now(&self, _: u32, _: &mut Message, _: &mut driver::Wakes) -> Result<Option<Offset>, NotNow> {
        Err(NotNow)
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct OwnReader(Arc<Topic>);

#[async_trait]
impl driver::Reader for OwnReader {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        // Subscribed before the first look, so that nothing is missed between a look and the wait.
        let mut news = self.0.news.subscribe();
        let until = Instant::now() + request.wait;
        let mut position = request.position;
        loop {
            let (records, next) = {
                let mut state = self.0.lock();
                let partition = self.0.partition(&mut state, request.partition)?;
                let from = partition.resolve(position)?;
                let records = partition.read(from, request.max_messages, request.max_bytes);
                let next = from + records.len() as u64;
                (records, next)
            };
            let found = !records.is_empty();
            if found || tokio::time::timeout_at(until, news.changed()).await.is_err() {
                return Ok(Fetched::new(records.into(), next));
            }
            // `Latest` is where the wait began, not where it ends.
            position = Position::Offset(next);
        }
    }

    async fn offset_at(&self, _partition: u32, _time: Timestamp) -> Result<Offset> {
        Err(Error::unsupported(NAME, "offsets by time"))
    }

    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        let state = self.0.lock();
        Ok(state.partitions.iter().map(|p| (p.first, p.end())).collect())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

fn no_properties<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<()> {
    match names.next() {
        None => Ok(()),
        Some(name) => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("property {name:?}: this backend has none"),
        )),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
