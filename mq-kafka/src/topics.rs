//! Making, growing, deleting and describing topics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{
    CommittedPosition, Error, ErrorKind, PartitionDescription, Result, TopicDescription, TopicId, TopicName,
    TopicSpec,
    driver::{self, CommittedRequest, topic_exists, topic_not_found},
};
use rdkafka::{
    admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    client::{Client, NO_LEADER},
    error, watch,
};

/// The most partitions that a topic is made with; a cluster has limits of its own.
pub(crate) const MAX_PARTITIONS: u32 = 4096;
/// How long to wait before a topic that was changed is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) async fn create(client: &Client, spec: &TopicSpec) -> Result<()> {
    let partitions = check_count(spec.partitions)?;
    let name = spec.name.as_str();
    let copies = match spec.replication {
        // The broker's own default.
        None => -1,
        Some(copies) => i32::from(copies),
    };
    let mut settings: Vec<(&str, String)> = Vec::new();
    if let Some(age) = spec.retention.age {
        settings.push(("retention.ms", age.as_millis().to_string()));
    }
    if let Some(bytes) = spec.retention.bytes {
        settings.push(("retention.bytes", bytes.to_string()));
    }
    for (key, value) in &spec.properties {
        settings.push((key, value.clone()));
    }
    let topic = settings.iter().fold(
        NewTopic::new(name, partitions, TopicReplication::Fixed(copies)),
        |topic, (key, value)| topic.set(key, value),
    );
    let admin = client.admin()?;
    let begun = Instant::now();
    loop {
        let outcome = admin.create_topics([&topic], &options(client)).await;
        match first(outcome) {
            Ok(()) | Err(Failure::Topic(Code::TopicAlreadyExists)) => break,
            // Nobody has asked for a number of copies: there are too few brokers for the cluster's own at the moment.
            Err(Failure::Topic(Code::InvalidReplicationFactor))
                if spec.replication.is_none() && begun.elapsed() < NO_LEADER =>
            {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(failure) => return Err(failure.error(client, name)),
        }
    }
    // It is made before every broker knows of it; whoever was first decides on the count.
    let by = Instant::now() + client.config.request_timeout;
    loop {
        match watch::ask(client, name, client.config.request_timeout).await {
            Ok(info) if info.partitions != spec.partitions => {
                return Err(topic_exists(&spec.name, info.partitions, spec.partitions));
            }
            Ok(info) if info.ready => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TopicNotFound => {}
            Err(error) => return Err(error),
        }
        wait_to_look_again(client, by, "creating a topic").await?;
    }
}

pub(crate) async fn add_partitions(client: &Client, topic: &TopicName, partitions: u32) -> Result<()> {
    let count = check_count(partitions)?;
    let name = topic.as_str();
    let info = watch::ask(client, name, client.config.request_timeout).await?;
    if info.partitions == partitions {
        return Ok(());
    }
    if info.partitions > partitions {
        return Err(Error::new(
            ErrorKind::InvalidPartition,
            format!(
                "topic {topic:?} has {} partitions, it cannot have {partitions}",
                info.partitions
            ),
        ));
    }
    let grown = NewPartitions::new(name, usize::try_from(count).unwrap_or(usize::MAX));
    let outcome = client
        .admin()?
        .create_partitions([&grown], &options(client))
        .await;
    first(outcome).map_err(|failure| failure.error(client, name))?;
    let by = Instant::now() + client.config.request_timeout;
    loop {
        let info = watch::ask(client, name, client.config.request_timeout).await?;
        if info.partitions >= partitions && info.ready {
            return Ok(());
        }
        wait_to_look_again(client, by, "adding partitions").await?;
    }
}

pub(crate) async fn delete(client: &Client, topics: &[TopicName]) -> Vec<Result<()>> {
    let names: Vec<&str> = topics.iter().map(TopicName::as_str).collect();
    let admin = match client.admin() {
        Ok(admin) => admin,
        Err(error) => return vec![Err(error); names.len()],
    };
    let mut results = Vec::with_capacity(names.len());
    // One at a time: the answer of a batch does not tell which of two equal names it is about.
    for name in names {
        let outcome = admin.delete_topics(&[name], &options(client)).await;
        results.push(match first(outcome) {
            Ok(()) => wait_until_unknown(client, name).await,
            Err(Failure::Topic(Code::UnknownTopicOrPartition)) => Ok(()),
            Err(failure) => Err(failure.error(client, name)),
        });
    }
    results
}

async fn wait_until_unknown(client: &Client, name: &str) -> Result<()> {
    let by = Instant::now() + client.config.request_timeout;
    loop {
        match watch::ask(client, name, client.config.request_timeout).await {
            Err(error) if error.kind() == ErrorKind::TopicNotFound => return Ok(()),
            // Who may delete every topic of a cluster need not be one who may look at this one: it is deleted all the same.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => wait_to_look_again(client, by, "deleting a topic").await?,
        }
    }
}

async fn wait_to_look_again(client: &Client, by: Instant, what: &str) -> Result<()> {
    if Instant::now() >= by {
        return Err(Error::timeout(what, client.config.request_timeout));
    }
    tokio::time::sleep(LOOK_AGAIN).await;
    Ok(())
}

pub(crate) async fn list(client: &Client) -> Result<Vec<TopicName>> {
    let mut names = client
        .ask("the list of topics".to_owned(), |client, limit| {
            let metadata = client
                .fetch_metadata(None, limit)
                .map_err(|error| error.rdkafka_error_code().unwrap_or(Code::Fail))?;
            Ok(metadata
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none())
                .map(|topic| topic.name().to_owned())
                .collect::<Vec<_>>())
        })
        .await?;
    // Kafka's own topics begin so.
    names.retain(|name| !name.starts_with("__"));
    names.sort_unstable();
    names.into_iter().map(TopicName::existing).collect()
}

pub(crate) async fn describe(client: &Client, topic: TopicName) -> Result<TopicDescription> {
    let info = watch::ask(client, topic.as_str(), client.config.request_timeout).await?;
    let bounds = client
        .bounds(topic.as_str(), (0..info.partitions).collect())
        .await?;
    let partitions = (0..)
        .zip(bounds)
        .map(|(partition, (first, next))| PartitionDescription::new(partition, first, next))
        .collect();
    Ok(TopicDescription::new(
        topic,
        info.id.map(TopicId::new),
        partitions,
    ))
}

pub(crate) async fn committed(
    client: &Arc<Client>,
    request: &CommittedRequest,
) -> Result<Vec<CommittedPosition>> {
    let topic = request.topic.as_str();
    let info = match watch::ask(client, topic, client.config.request_timeout).await {
        Ok(info) => info,
        Err(error) if error.kind() == ErrorKind::TopicNotFound => {
            return Err(topic_not_found(&request.topic));
        }
        Err(error) => return Err(error),
    };
    let partitions: Vec<u32> = (0..info.partitions).collect();
    let stored = client
        .stored(topic, &request.group, &partitions, info.id.as_deref())
        .await?;
    let mut all: Vec<driver::CommittedPosition> = stored
        .into_iter()
        .map(|(partition, (position, stored))| {
            CommittedPosition::new(partition, position).with_acked_above(stored.acked_above)
        })
        .collect();
    all.sort_unstable_by_key(|committed| committed.partition);
    Ok(all)
}

fn check_count(partitions: u32) -> Result<i32> {
    if partitions == 0 || partitions > MAX_PARTITIONS {
        return Err(Error::new(
            ErrorKind::InvalidPartition,
            format!("{partitions} partitions: a topic has 1 to {MAX_PARTITIONS}"),
        ));
    }
    Ok(crate::client::number(partitions))
}

fn options(client: &Client) -> AdminOptions {
    let limit = Some(client.config.request_timeout);
    AdminOptions::new()
        .request_timeout(limit)
        .operation_timeout(limit)
}

/// Tells apart what failed for one topic and what failed altogether.
enum Failure {
    Topic(Code),
    Call(rdkafka::error::KafkaError),
}

impl Failure {
    fn error(self, client: &Client, topic: &str) -> Error {
        let what = format!("topic {topic:?}");
        let error = match self {
            Self::Topic(code) => error::from_code(&what, code),
            Self::Call(cause) => error::from_kafka(&what, &cause),
        };
        client.cause.explain(error)
    }
}

fn first(outcome: rdkafka::error::KafkaResult<Vec<rdkafka::admin::TopicResult>>) -> Result<(), Failure> {
    match outcome.map_err(Failure::Call)?.into_iter().next() {
        None | Some(Ok(_)) => Ok(()),
        Some(Err((_, code))) => Err(Failure::Topic(code)),
    }
}
