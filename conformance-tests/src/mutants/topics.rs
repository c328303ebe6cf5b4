//! Mutants for the cases about topics.

use std::sync::Arc;

use async_trait::async_trait;
use mq_api::{
    Error, ErrorKind, Result, Retention, TopicDescription, TopicName, TopicSpec,
    driver::{Consumer, Events, Mq, Subscription},
};
use tokio::sync::watch;

use super::Proof;
use crate::wrap::{Scope, Tweak};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "T1",
        mutant: "describes one partition too few",
        tweak: || Arc::new(DescribesTooFew),
        says: "a topic of 3 partitions has the partitions [0, 1]",
    },
    Proof {
        case: "T2",
        mutant: "takes another partition count for an existing topic as the same",
        tweak: || Arc::new(AnyCount),
        says: "expected TopicExists, got Ok",
    },
    Proof {
        case: "T3",
        mutant: "refuses a legal name",
        tweak: || Arc::new(RefusesDots),
        says: "legal topic name",
    },
    Proof {
        case: "T4",
        mutant: "describes topics that do not exist",
        tweak: || Arc::new(MakesUpTopics),
        says: "describe of a topic that was refused: expected TopicNotFound, got Ok",
    },
    Proof {
        case: "T5",
        mutant: "answers a delete and does nothing",
        tweak: || Arc::new(DeletesNothing),
        says: "is TopicNotFound: not within",
    },
    Proof {
        case: "T6",
        mutant: "merges two topics' names",
        tweak: || Arc::new(MergesNames),
        says: "merged",
    },
    Proof {
        case: "T7",
        mutant: "merges two groups' names",
        tweak: || Arc::new(MergesGroups),
        says: "group g.token of",
    },
    Proof {
        case: "T8",
        mutant: "lists names of its own",
        tweak: || Arc::new(ListsItsOwn),
        says: "the list holds names that nobody made",
    },
    Proof {
        case: "T9",
        mutant: "fails to create what is there",
        tweak: || Arc::new(CreatesOnce),
        says: "of 8 at once",
    },
    Proof {
        case: "T11",
        mutant: "takes a retention and keeps everything",
        tweak: || Arc::new(KeepsEverything),
        says: "retention_age: messages older than 3s are removed: not within",
    },
    Proof {
        case: "T11",
        mutant: "keeps a tenth of the bytes that it was told to",
        tweak: || Arc::new(KeepsTooLittle),
        says: "retention_bytes: lost: ",
    },
    Proof {
        case: "T10",
        mutant: "does not tell producers of new partitions",
        tweak: || Arc::new(HidesGrowth),
        says: "a running producer sees 4 partitions: not within",
    },
    Proof {
        case: "T10",
        mutant: "answers a growth and does nothing",
        tweak: || Arc::new(NeverGrows),
        says: "grown to 4 partitions, the topic has 2",
    },
];

#[derive(Debug)]
struct DescribesTooFew;

#[async_trait]
impl Tweak for DescribesTooFew {
    async fn describe_topic(&self, inner: &dyn Mq, topic: TopicName) -> Result<TopicDescription> {
        let mut described = inner.describe_topic(topic).await?;
        if described.partitions.len() > 1 {
            described.partitions.pop();
        }
        Ok(described)
    }
}

#[derive(Debug)]
struct AnyCount;

#[async_trait]
impl Tweak for AnyCount {
    async fn create_topic(&self, inner: &dyn Mq, spec: TopicSpec) -> Result<()> {
        match inner.create_topic(spec).await {
            Err(error) if error.kind() == ErrorKind::TopicExists => Ok(()),
            other => other,
        }
    }
}

#[derive(Debug)]
struct RefusesDots;

#[async_trait]
impl Tweak for RefusesDots {
    async fn create_topic(&self, inner: &dyn Mq, spec: TopicSpec) -> Result<()> {
        if spec.name.as_str().contains("..") {
            return Err(Error::new(ErrorKind::InvalidTopic, "two dots are one too many"));
        }
        inner.create_topic(spec).await
    }
}

#[derive(Debug)]
struct MakesUpTopics;

#[async_trait]
impl Tweak for MakesUpTopics {
    async fn describe_topic(&self, inner: &dyn Mq, topic: TopicName) -> Result<TopicDescription> {
        match inner.describe_topic(topic.clone()).await {
            Err(error) if error.kind() == ErrorKind::TopicNotFound => {
                Ok(TopicDescription::new(topic, None, Vec::new()))
            }
            other => other,
        }
    }
}

#[derive(Debug)]
struct DeletesNothing;

#[async_trait]
impl Tweak for DeletesNothing {
    async fn delete_topics(&self, _inner: &dyn Mq, topics: Vec<TopicName>) -> Vec<Result<()>> {
        topics.iter().map(|_| Ok(())).collect()
    }
}

/// Takes `_` and `-` for `.` in every name.
#[derive(Debug)]
struct MergesNames;

fn merged(name: &TopicName) -> Result<TopicName> {
    TopicName::existing(name.as_str().replace(['_', '-'], "."))
}

#[async_trait]
impl Tweak for MergesNames {
    async fn create_topic(&self, inner: &dyn Mq, mut spec: TopicSpec) -> Result<()> {
        spec.name = merged(&spec.name)?;
        match inner.create_topic(spec).await {
            Err(error) if error.kind() == ErrorKind::TopicExists => Ok(()),
            other => other,
        }
    }
    async fn describe_topic(&self, inner: &dyn Mq, topic: TopicName) -> Result<TopicDescription> {
        inner.describe_topic(merged(&topic)?).await
    }
}

/// Keeps only what stands before the first dot of a group's name.
#[derive(Debug)]
struct MergesGroups;

#[async_trait]
impl Tweak for MergesGroups {
    async fn consumer(
        &self,
        inner: &dyn Mq,
        mut subscription: Subscription,
    ) -> Result<(Arc<dyn Consumer>, Box<dyn Events>)> {
        let first = subscription.group.as_str().split('.').next().unwrap_or_default();
        subscription.group = mq_api::GroupName::new(first)?;
        inner.consumer(subscription).await
    }
}

#[derive(Debug)]
struct ListsItsOwn;

#[async_trait]
impl Tweak for ListsItsOwn {
    async fn list_topics(&self, inner: &dyn Mq) -> Result<Vec<TopicName>> {
        let mut topics = inner.list_topics().await?;
        let own: Vec<_> = topics
            .iter()
            .filter_map(|topic| TopicName::existing(format!("{topic}.retry")).ok())
            .collect();
        topics.extend(own);
        Ok(topics)
    }
}

#[derive(Debug)]
struct CreatesOnce;

#[async_trait]
impl Tweak for CreatesOnce {
    async fn create_topic(&self, inner: &dyn Mq, spec: TopicSpec) -> Result<()> {
        if inner.describe_topic(spec.name.clone()).await.is_ok() {
            return Err(Error::new(ErrorKind::Other, "somebody else has made it"));
        }
        inner.create_topic(spec).await
    }
}

#[derive(Debug)]
struct HidesGrowth;

impl Tweak for HidesGrowth {
    fn partitions(&self, _scope: &Scope, partitions: watch::Receiver<u32>) -> watch::Receiver<u32> {
        watch::channel(*partitions.borrow()).1
    }
}

#[derive(Debug)]
struct NeverGrows;

#[async_trait]
impl Tweak for NeverGrows {
    async fn add_partitions(&self, _inner: &dyn Mq, _topic: TopicName, _partitions: u32) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct KeepsEverything;

#[async_trait]
impl Tweak for KeepsEverything {
    async fn create_topic(&self, inner: &dyn Mq, mut spec: TopicSpec) -> Result<()> {
        spec.retention = Retention::default();
        inner.create_topic(spec).await
    }
}

#[derive(Debug)]
struct KeepsTooLittle;

#[async_trait]
impl Tweak for KeepsTooLittle {
    async fn create_topic(&self, inner: &dyn Mq, mut spec: TopicSpec) -> Result<()> {
        spec.retention.bytes = spec.retention.bytes.map(|bytes| bytes / 10);
        inner.create_topic(spec).await
    }
}
