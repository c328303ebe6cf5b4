//! Topics: create, grow, delete, list, describe; and what groups have stored.

use std::collections::BTreeSet;

use futures_util::future::{join_all, try_join_all};
use mq_api::{
    Error, ErrorKind, GroupName, PartitionDescription, Result, TopicDescription, TopicName, TopicSpec,
    driver::{CommittedPosition, invalid_partition, topic_exists},
};

use crate::{
    client::CreatedTopic,
    error::from_remoting,
    names::is_internal,
    remoting::{ClusterInfo, Plain, codes::request as codes},
    topic::{Shared, Topic, offset_of},
};

/// The most partitions of a topic.
pub(crate) const MAX_PARTITIONS: u32 = 1024;

impl Shared {
    pub(crate) async fn create(&self, spec: &TopicSpec) -> Result<()> {
        check(spec)?;
        let physical = self.names.topic(&spec.name)?;
        if physical.is_hashed() {
            self.check_full_name(physical.name(), &spec.name).await?;
            self.store_full_name(physical.name(), &spec.name).await?;
        }
        let created = self
            .session
            .create_topic(physical.name(), spec.partitions as usize, None, self.deadline())
            .await
            .map_err(from_remoting)?;
        match created {
            CreatedTopic::Existed { partitions } if partitions != spec.partitions as usize => {
                Err(topic_exists(
                    &spec.name,
                    u32::try_from(partitions).unwrap_or(u32::MAX),
                    spec.partitions,
                ))
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn add_partitions(&self, name: &TopicName, partitions: u32) -> Result<()> {
        check_count(partitions)?;
        let (topic, route) = self.open(name).await?;
        let count = u32::try_from(route.layout.len()).unwrap_or(u32::MAX);
        if partitions < count {
            return Err(Error::new(
                ErrorKind::InvalidPartition,
                format!("topic {name:?} has {count} partitions, {partitions} are fewer"),
            ));
        }
        self.session
            .grow_topic(&topic.physical, partitions as usize, self.deadline())
            .await
            .map(drop)
            .map_err(from_remoting)
    }

    pub(crate) async fn delete(&self, name: &TopicName) -> Result<()> {
        let topic = self.topic(name)?;
        let deadline = self.deadline();
        let all = self.session.list_topics(deadline).await.map_err(from_remoting)?;
        self.session
            .delete_topic(&topic.physical, deadline)
            .await
            .map_err(from_remoting)?;
        self.forget_modes(&topic);
        self.delete_groups(&topic, &all).await
    }

    /// Deletes the groups of a deleted topic, and the topics of retries that brokers made for them.
    async fn delete_groups(&self, topic: &Topic, all: &[String]) -> Result<()> {
        let deadline = self.deadline();
        let retry = |name: &'_ str| name.strip_prefix("%RETRY%").map(str::to_owned);
        let mut groups = BTreeSet::new();
        let mut popped = BTreeSet::new();
        for name in all.iter().filter_map(|name| retry(name)) {
            match name.split_once('+') {
                Some((group, of)) if of == &*topic.physical => {
                    popped.insert(group.to_owned());
                }
                None if self.names.is_group_of(&name, &topic.name) => {
                    groups.insert(name);
                }
                _ => {}
            }
        }
        popped.extend(groups.iter().cloned());
        if popped.is_empty() {
            return Ok(());
        }
        let brokers = self.cluster.masters(deadline).await.map_err(from_remoting)?;
        let own = groups.iter().map(|group| format!("%RETRY%{group}"));
        let topics = own.chain(
            popped
                .iter()
                .map(|group| format!("%RETRY%{group}+{}", topic.physical)),
        );
        for name in topics {
            self.session
                .delete_topic(&name, deadline)
                .await
                .map_err(from_remoting)?;
        }
        for group in &groups {
            if let Err(error) = self.session.delete_group(&brokers, group, deadline).await {
                tracing::debug!(group, %error, "a group of a deleted topic stays");
            }
        }
        Ok(())
    }

    pub(crate) async fn list(&self) -> Result<Vec<TopicName>> {
        let deadline = self.deadline();
        let all = self.session.list_topics(deadline).await.map_err(from_remoting)?;
        let info = self
            .cluster
            .ask(&Plain(codes::GET_BROKER_CLUSTER_INFO), &(), deadline)
            .await
            .and_then(|answer| ClusterInfo::parse(&answer.body))
            .map_err(from_remoting)?;
        // Every broker has a topic of its own name, one of its cluster's, and one for replies.
        let of_servers = |name: &String| {
            let name = name.strip_suffix("_REPLY_TOPIC").unwrap_or(name);
            info.broker_addr_table.contains_key(name) || info.cluster_addr_table.contains_key(name)
        };
        let mut names = Vec::new();
        for physical in all.iter().filter(|name| !of_servers(name) && !is_internal(name)) {
            if let Some(name) = self.names.topic_of(physical) {
                names.push(name);
            } else if physical.contains("|h")
                && let Some(full) = self.full_name(physical).await?
            {
                names.extend(TopicName::existing(full));
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    pub(crate) async fn describe(&self, name: TopicName) -> Result<TopicDescription> {
        let (topic, route) = self.open(&name).await?;
        let bounds = self.bounds(&topic, route.layout.queues()).await?;
        let partitions = (0..)
            .zip(bounds)
            .map(|(partition, bounds)| {
                PartitionDescription::new(partition, offset_of(bounds.first), offset_of(bounds.next))
            })
            .collect();
        Ok(TopicDescription::new(name, None, partitions))
    }

    pub(crate) async fn committed(
        &self,
        name: &TopicName,
        group: &GroupName,
    ) -> Result<Vec<CommittedPosition>> {
        let (topic, route) = self.open(name).await?;
        let group = self.group(&topic, group)?;
        let deadline = self.deadline();
        let asked = route
            .layout
            .queues()
            .iter()
            .map(|queue| self.session.committed(&group, &topic.physical, queue, deadline));
        let stored = try_join_all(asked).await.map_err(from_remoting)?;
        let found = (0..)
            .zip(stored)
            .filter_map(|(partition, stored)| Some(CommittedPosition::new(partition, offset_of(stored?))));
        Ok(found.collect())
    }

    /// Deletes topics at the same time; one result each.
    pub(crate) async fn delete_all(&self, topics: &[TopicName]) -> Vec<Result<()>> {
        join_all(topics.iter().map(|topic| self.delete(topic))).await
    }
}

fn check(spec: &TopicSpec) -> Result<()> {
    check_count(spec.partitions)?;
    if spec.replication.is_some() {
        return Err(Error::unsupported(
            "rocketmq",
            "a replication of each topic's own",
        ));
    }
    if spec.retention.age.is_some() || spec.retention.bytes.is_some() {
        return Err(Error::unsupported("rocketmq", "a retention of each topic's own"));
    }
    if let Some(name) = spec.properties.keys().next() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("topic property {name:?}: the rocketmq backend knows none"),
        ));
    }
    Ok(())
}

fn check_count(partitions: u32) -> Result<()> {
    if (1..=MAX_PARTITIONS).contains(&partitions) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidPartition,
        format!("{partitions} partitions: a topic has 1 to {MAX_PARTITIONS}"),
    ))
}

/// Makes the error of a partition that a topic does not have.
pub(crate) fn no_partition(topic: &Topic, partition: u32, count: usize) -> Error {
    invalid_partition(&topic.name, partition, u32::try_from(count).unwrap_or(u32::MAX))
}
