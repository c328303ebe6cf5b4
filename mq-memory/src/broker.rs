//! What all connections to one name share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use mq_api::{Error, ErrorKind, Result, TopicDescription, TopicName, TopicSpec, driver};

use crate::{
    config::MemoryConfig,
    error::MemoryError,
    faults::FaultState,
    log::Keep,
    sync::lock,
    timer::Timer,
    topic::{Members, Topic},
    wakes::Wakes,
};

/// Finds brokers by name, for as long as somebody has them. The one piece of state that is the process's own: it is
/// what makes `memory://name` one broker for code that shares nothing else.
static NAMED: Mutex<BTreeMap<String, Weak<Broker>>> = Mutex::new(BTreeMap::new());

/// Holds topics, groups and faults.
pub(crate) struct Broker {
    pub(crate) name: Option<String>,
    pub(crate) config: MemoryConfig,
    pub(crate) timer: Arc<Timer>,
    pub(crate) faults: Arc<FaultState>,
    /// How many messages wait for their time.
    pub(crate) delayed: Arc<AtomicUsize>,
    topics: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
    next_id: AtomicU64,
}

impl Broker {
    pub(crate) fn new(name: Option<String>, config: MemoryConfig) -> Arc<Self> {
        Arc::new(Self {
            name,
            config,
            timer: Arc::new(Timer::new()),
            faults: Arc::default(),
            delayed: Arc::default(),
            topics: RwLock::default(),
            next_id: AtomicU64::new(1),
        })
    }

    /// Finds the broker of a name, or makes it. Settings that differ from the ones that it runs with are refused.
    pub(crate) fn named(name: &str, config: Option<MemoryConfig>) -> Result<Arc<Self>> {
        let mut named = lock(&NAMED);
        named.retain(|_, broker| broker.strong_count() > 0);
        if let Some(broker) = named.get(name).and_then(Weak::upgrade) {
            return match config {
                Some(config) if config != broker.config => Err(MemoryError::BadOption(format!(
                    "memory broker {name:?} runs already with other settings"
                ))
                .into()),
                _ => Ok(broker),
            };
        }
        let broker = Self::new(Some(name.to_owned()), config.unwrap_or_default());
        named.insert(name.to_owned(), Arc::downgrade(&broker));
        Ok(broker)
    }

    /// Numbers members and producers; never the same number twice.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn topic(&self, name: &TopicName) -> Result<Arc<Topic>> {
        self.topics
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
            .ok_or_else(|| MemoryError::NoTopic(name.clone()).into())
    }

    pub(crate) fn topics(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().cloned().collect()
    }

    pub(crate) fn create_topic(&self, spec: &TopicSpec) -> Result<()> {
        self.check_spec(spec)?;
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(topic) = topics.get(&spec.name) {
            let has = topic.partition_count();
            return if has == spec.partitions {
                Ok(())
            } else {
                Err(driver::topic_exists(&spec.name, has, spec.partitions))
            };
        }
        let keep = Keep {
            bytes: spec.retention.bytes.unwrap_or(self.config.retention_bytes),
            age: spec.retention.age.unwrap_or(self.config.retention_age),
        };
        let topic = Topic::new(spec.name.clone(), spec.partitions, keep);
        topics.insert(spec.name.clone(), Arc::new(topic));
        Ok(())
    }

    pub(crate) fn add_partitions(&self, name: &TopicName, partitions: u32) -> Result<()> {
        let topic = self.topic(name)?;
        self.check_partitions(partitions)?;
        topic.grow(partitions)
    }

    pub(crate) fn delete_topic(&self, name: &TopicName) {
        let topic = self
            .topics
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        if let Some(topic) = topic {
            topic.end();
        }
    }

    pub(crate) fn describe_topic(&self, name: &TopicName) -> Result<TopicDescription> {
        Ok(self.topic(name)?.describe())
    }

    /// Ends the sessions of all members of all groups.
    pub(crate) fn lose_sessions(&self, error: &Error) {
        let wakes = &mut Wakes::default();
        for members in self.groups() {
            match members {
                Members::Partitioned(group) => group.lose_sessions(error, wakes),
                Members::Shared(queue) => queue.lose_sessions(),
            }
        }
    }

    /// Begins new sessions for members that lost theirs, and makes everybody look again.
    pub(crate) fn recover_sessions(&self) {
        let wakes = &mut Wakes::default();
        for members in self.groups() {
            match members {
                Members::Partitioned(group) => group.recover_sessions(wakes),
                Members::Shared(queue) => queue.alert(),
            }
        }
    }

    /// Makes every member look again.
    pub(crate) fn alert(&self) {
        let wakes = &mut Wakes::default();
        for members in self.groups() {
            match members {
                Members::Partitioned(group) => group.alert(wakes),
                Members::Shared(queue) => queue.alert(),
            }
        }
    }

    fn groups(&self) -> Vec<Members> {
        self.topics().iter().flat_map(|topic| topic.groups()).collect()
    }

    fn check_spec(&self, spec: &TopicSpec) -> Result<()> {
        self.check_partitions(spec.partitions)?;
        if let Some(copies) = spec.replication
            && copies != 1
        {
            return Err(Error::unsupported(
                "memory",
                &format!("replication, and topic {:?} asks for {copies} copies", spec.name),
            ));
        }
        match spec.properties.keys().next() {
            Some(name) => Err(MemoryError::BadOption(format!(
                "property {name:?} of topic {:?}: the memory backend has no topic properties",
                spec.name
            ))
            .into()),
            None => Ok(()),
        }
    }

    fn check_partitions(&self, partitions: u32) -> Result<()> {
        let most = self.config.max_partitions;
        if partitions == 0 || partitions > most {
            return Err(Error::new(
                ErrorKind::InvalidPartition,
                format!("partition count {partitions}: a topic has 1 to {most}"),
            ));
        }
        Ok(())
    }
}
