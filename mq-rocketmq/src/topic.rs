//! What everything that a client opens shares: the cluster, names, and questions about topics.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mq_api::{Error, ErrorKind, GroupName, Offset, Position, Result, TopicName, driver::topic_not_found};
use tokio::time::Instant;

use crate::{
    client::{Cluster, Layout, QueueBounds, QueueRef, Route, Session},
    config::RocketMqConfig,
    error::from_remoting,
    names::Names,
    ownership,
    remoting::{GetKv, PutKv, RemotingError, codes::response},
};

/// The nameservers' namespace for the full names of topics whose physical name is a hash.
const FULL_NAMES: &str = "MQ_TOPIC_NAME";

/// Belongs to one client.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: RocketMqConfig,
    pub(crate) cluster: Cluster,
    /// For everything but group members, each of which has one of its own.
    pub(crate) session: Session,
    pub(crate) names: Names,
    modes: Mutex<HashMap<String, Mode>>,
}

/// Names a topic both ways.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    pub(crate) physical: Arc<str>,
}

/// Says how the members of a group consume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Partitioned,
    Shared,
}

impl Shared {
    pub(crate) fn new(config: RocketMqConfig, cluster: Cluster, session: Session) -> Self {
        let names = Names::new(config.namespace.clone(), config.raw_names, config.raw_groups);
        Self {
            config,
            cluster,
            session,
            names,
            modes: Mutex::default(),
        }
    }

    /// The time by which a call that begins now must be over.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.call_timeout
    }

    pub(crate) fn topic(&self, name: &TopicName) -> Result<Topic> {
        let physical = self.names.topic(name)?.into_name().into();
        Ok(Topic {
            name: name.clone(),
            physical,
        })
    }

    /// Finds a topic and where its partitions are now. What is known is used while no nameserver answers.
    pub(crate) async fn open(&self, name: &TopicName) -> Result<(Topic, Arc<Route>)> {
        let physical = self.names.topic(name)?;
        if physical.is_hashed() {
            self.check_full_name(physical.name(), name).await?;
        }
        let topic = Topic {
            name: name.clone(),
            physical: physical.into_name().into(),
        };
        let route = self.route(&topic).await?;
        Ok((topic, route))
    }

    /// Asks where the partitions of a topic are.
    pub(crate) async fn route(&self, topic: &Topic) -> Result<Arc<Route>> {
        let error = match self.cluster.refresh(&topic.physical, self.deadline()).await {
            Ok(route) if route.layout.is_empty() => {
                return Err(Error::new(
                    ErrorKind::PermissionDenied,
                    format!("topic {:?} has no queue that may be read or written", topic.name),
                ));
            }
            Ok(route) => return Ok(route),
            Err(error) => error,
        };
        if error.refusal() == Some(response::TOPIC_NOT_EXIST) || self.is_gone(topic).await {
            return Err(topic_not_found(&topic.name));
        }
        let known = self.cluster.watch(&topic.physical).borrow().clone();
        match known {
            Some(route) if is_out_of_reach(&error) => Ok(route),
            _ => Err(from_remoting(error)),
        }
    }

    /// Tells whether a broker itself says that the topic is gone: a nameserver cannot tell that from a dead broker.
    pub(crate) async fn is_gone(&self, topic: &Topic) -> bool {
        let Some(route) = self.cluster.watch(&topic.physical).borrow().clone() else {
            return false;
        };
        for broker in route.layout.brokers() {
            let asked = self
                .session
                .topic_config(&broker, &topic.physical, self.deadline())
                .await;
            match asked {
                Ok(None) => {
                    self.cluster.forget(&topic.physical);
                    return true;
                }
                Ok(Some(_)) => return false,
                Err(_) => {}
            }
        }
        false
    }

    /// Reads what each queue holds, every answered send included.
    pub(crate) async fn bounds(&self, topic: &Topic, queues: &[QueueRef]) -> Result<Vec<QueueBounds>> {
        let deadline = self.deadline();
        let mut brokers: Vec<&str> = queues.iter().map(|queue| &*queue.broker).collect();
        brokers.sort_unstable();
        brokers.dedup();
        let caught_up = brokers
            .into_iter()
            .map(|broker| self.session.catch_up(broker, deadline));
        futures_util::future::try_join_all(caught_up)
            .await
            .map_err(from_remoting)?;
        let asked = queues
            .iter()
            .map(|queue| self.session.bounds(&topic.physical, queue, deadline));
        futures_util::future::try_join_all(asked)
            .await
            .map_err(from_remoting)
    }

    /// Fails where a queue's master is gone: a replica may be behind, and what is beyond its end is not lost.
    pub(crate) async fn reach_master(&self, queue: &QueueRef) -> Result<()> {
        let reached = self.session.reach(&queue.broker, self.deadline()).await;
        reached.map_err(from_remoting)
    }

    /// Turns a position into an offset; one beyond the end is an error.
    pub(crate) async fn resolve(
        &self,
        topic: &Topic,
        partition: u32,
        queue: &QueueRef,
        to: Position,
    ) -> Result<i64> {
        let bounds = self.bounds(topic, std::slice::from_ref(queue)).await?;
        let Some(bounds) = bounds.first() else {
            return Ok(0);
        };
        match to {
            Position::Earliest => Ok(bounds.first),
            Position::Latest => Ok(bounds.next),
            Position::Offset(offset) => {
                let next = offset_of(bounds.next);
                if offset > next {
                    return Err(out_of_range(topic, partition, offset, next));
                }
                Ok(i64::try_from(offset).unwrap_or(i64::MAX).max(bounds.first))
            }
            Position::Time(time) => {
                let millis = time.as_millis().max(0);
                let found = self
                    .session
                    .offset_at(&topic.physical, queue, millis, self.deadline())
                    .await
                    .map_err(from_remoting)?;
                Ok(found.clamp(bounds.first, bounds.next))
            }
            _ => Err(Error::unsupported("rocketmq", "this kind of position")),
        }
    }

    /// Notes how a group consumes, here and at the broker of its first partition. Another mode is refused.
    pub(crate) async fn claim_mode(
        &self,
        session: &Session,
        topic: &Topic,
        group: &str,
        layout: &Layout,
        mode: Mode,
    ) -> Result<()> {
        {
            let mut modes = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
            let key = format!("{group}@{}", topic.physical);
            if *modes.entry(key).or_insert(mode) != mode {
                return Err(other_mode(group));
            }
        }
        let Some(queue) = layout.queue(0) else {
            return Ok(());
        };
        let kept = ownership::mode_queue(queue);
        let wanted = ownership::pack_mode(mode);
        let stored = session
            .committed(group, &topic.physical, &kept, self.deadline())
            .await;
        match stored {
            Ok(None) => session
                .commit(group, &topic.physical, &kept, wanted, self.deadline())
                .await
                .map_err(from_remoting),
            Ok(Some(stored)) if stored == wanted => Ok(()),
            Ok(Some(_)) => Err(other_mode(group)),
            // The other partitions can do without this broker.
            Err(error) if is_out_of_reach(&error) => Ok(()),
            Err(error) => Err(from_remoting(error)),
        }
    }

    /// Forgets how the groups of a deleted topic consumed.
    pub(crate) fn forget_modes(&self, topic: &Topic) {
        let end = format!("@{}", topic.physical);
        let mut modes = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        modes.retain(|key, _| !key.ends_with(&end));
    }

    pub(crate) fn group(&self, topic: &Topic, group: &GroupName) -> Result<String> {
        self.names.group(&topic.name, group)
    }

    /// Keeps the full name of a topic whose physical name is a hash.
    pub(crate) async fn store_full_name(&self, physical: &str, name: &TopicName) -> Result<()> {
        let request = PutKv {
            namespace: FULL_NAMES,
            key: physical,
            value: name.as_str(),
        };
        self.cluster
            .tell_all(&request, self.deadline())
            .await
            .map_err(from_remoting)
    }

    pub(crate) async fn full_name(&self, physical: &str) -> Result<Option<String>> {
        let request = GetKv {
            namespace: FULL_NAMES,
            key: physical,
        };
        match self.cluster.ask(&request, &(), self.deadline()).await {
            Ok(answer) => answer
                .field::<&str>("value")
                .map(|name| Some(name.to_owned()))
                .map_err(from_remoting),
            Err(error) if error.refusal() == Some(response::QUERY_NOT_FOUND) => Ok(None),
            Err(error) => Err(from_remoting(error)),
        }
    }

    pub(crate) async fn check_full_name(&self, physical: &str, name: &TopicName) -> Result<()> {
        match self.full_name(physical).await? {
            Some(stored) if stored != name.as_str() => Err(Error::new(
                ErrorKind::InvalidTopic,
                format!("topic name {name:?} meets the name {stored:?} in its hash"),
            )),
            _ => Ok(()),
        }
    }
}

fn other_mode(group: &str) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!("group {group:?} is consumed in another mode; a group has one"),
    )
}

pub(crate) fn out_of_range(topic: &Topic, partition: u32, offset: Offset, next: Offset) -> Error {
    Error::new(
        ErrorKind::OffsetOutOfRange,
        format!(
            "offset {offset} of partition {partition} of topic {:?}: the next one is {next}",
            topic.name
        ),
    )
}

/// Tells whether a server did not answer, rather than refuse.
pub(crate) fn is_out_of_reach(error: &RemotingError) -> bool {
    error.is_connection() || matches!(error, RemotingError::Timeout { .. })
}

/// Brokers count from 0; what is below is no offset.
pub(crate) fn offset_of(number: i64) -> Offset {
    u64::try_from(number).unwrap_or(0)
}

pub(crate) fn number_of(offset: Offset) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}
