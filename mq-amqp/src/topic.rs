//! Topics: made, grown, listed and deleted by records (see [`crate::meta`]) and the streams that they name.
//!
//! Another stream lists the topics of all: `mq1 add name=orders id=1f` and `mq1 remove name=orders id=1f`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::{
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use mq_api::{
    CommittedPosition, Error, ErrorKind, GroupName, Offset, PartitionDescription, Position, Result,
    TopicDescription, TopicId, TopicName, TopicSpec,
    driver::{topic_exists, topic_not_found},
};

use crate::{
    config::AmqpConfig,
    delay, error, format,
    link::{Chan, Link, Published, text},
    meta::{Meta, Mode},
    names::Names,
    stream::{self as streams, Bounds},
    token::Token,
    watch::Open,
    words::Words,
};

/// The most partitions of a topic: a member that has them all needs two channels for each, and a connection has 2047.
pub(crate) const MAX_PARTITIONS: u32 = 1000;
/// How long a description may take to appear that another client is writing just now.
const APPEARS: Duration = Duration::from_secs(1);
/// How often to look before a description that is there counts as empty, as one whose creator went away: a busy server
/// may take longer than one look to begin to send.
const LOOKS: usize = 5;
/// RabbitMQ 3.10 remembers after a kill that it has streams only from three seconds after the first one on.
const WRITTEN_DOWN: Duration = Duration::from_millis(3500);
/// How many partitions are asked at once.
const AT_ONCE: usize = 8;
/// How large the pieces are in which retention removes, where a topic has a bound.
const SEGMENT: u64 = 64 * 1024 * 1024;
const LEAST_SEGMENT: u64 = 4096;

/// What all parts of one client share.
pub(crate) struct Shared {
    pub(crate) config: Arc<AmqpConfig>,
    pub(crate) names: Names,
    /// For sending: the server may block it.
    pub(crate) publish: Arc<Link>,
    /// For everything else.
    pub(crate) consume: Arc<Link>,
    open: Mutex<HashMap<TopicName, Weak<Open>>>,
    /// One creation at a time: a stream that two declare at once is not there for a moment, which ends connections. Says
    /// whether the server is known to have streams.
    creating: tokio::sync::Mutex<bool>,
    /// Whether what delayed messages wait in is known to be there.
    delays: tokio::sync::Mutex<bool>,
}

/// One life of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    pub(crate) id: String,
}

impl Topic {
    pub(crate) fn id(&self) -> TopicId {
        TopicId::new(&self.id)
    }
}

impl Shared {
    pub(crate) fn new(config: Arc<AmqpConfig>) -> Self {
        let heartbeat = config.heartbeat();
        Self {
            names: Names::new(&config.prefix),
            publish: Arc::new(Link::new(Arc::clone(&config), heartbeat, "send")),
            consume: Arc::new(Link::new(Arc::clone(&config), heartbeat, "receive")),
            config,
            open: Mutex::default(),
            creating: tokio::sync::Mutex::new(false),
            delays: tokio::sync::Mutex::new(false),
        }
    }

    /// Reads what is known of a topic; none where there is no such topic.
    pub(crate) async fn meta(&self, topic: &TopicName) -> Result<Option<Meta>> {
        let queue = self.names.meta(topic);
        let mut records = Vec::new();
        for _ in 0..LOOKS {
            let read = self
                .consume
                .with_channel(|chan| {
                    let queue = queue.clone();
                    async move { streams::read_all(&chan, &queue, APPEARS).await }
                })
                .await;
            match read {
                Ok(read) if read.is_empty() => {}
                Ok(read) => {
                    records = read;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::TopicNotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let meta = Meta::fold(records.iter().map(|(offset, record)| (*offset, &record.data[..])))?;
        match meta {
            // Two long names with one hash.
            Some(meta) if meta.name != topic.as_str() => Err(Error::new(
                ErrorKind::InvalidTopic,
                format!(
                    "topic {topic:?}: its name on the server belongs to topic {:?}",
                    meta.name
                ),
            )),
            other => Ok(other),
        }
    }

    /// Opens a topic: it is known to exist, and is watched from then on.
    pub(crate) async fn open(self: &Arc<Self>, name: &TopicName) -> Result<Arc<Open>> {
        let meta = match self.meta(name).await? {
            Some(meta) if !meta.deleting => meta,
            _ => return Err(topic_not_found(name)),
        };
        if meta.ready < meta.partitions {
            // Whoever creates it has not finished, or never will.
            self.make_ready(name, &meta).await?;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, open| open.strong_count() > 0);
        if let Some(known) = open.get(name).and_then(Weak::upgrade)
            && known.topic.id == meta.id
            && !known.is_gone()
        {
            return Ok(known);
        }
        let opened = Open::start(self, name, meta);
        open.insert(name.clone(), Arc::downgrade(&opened));
        Ok(opened)
    }

    pub(crate) async fn create(&self, spec: &TopicSpec) -> Result<()> {
        check(spec)?;
        let mut settled = self.creating.lock().await;
        if !*settled {
            self.settle_first_stream().await?;
            *settled = true;
        }
        let name = &spec.name;
        let queue = self.names.meta(name);
        for _ in 0..MOST_TRIES {
            let meta = match self.meta(name).await? {
                Some(meta) => meta,
                None => {
                    let id = format!("{:016x}", fastrand::u64(..));
                    let mut words = Words::new("create")
                        .with("id", &id)
                        .with("name", name.as_str())
                        .with("partitions", spec.partitions);
                    if let Some(age) = spec.retention.age {
                        words.set("age_ms", age.as_millis());
                    }
                    if let Some(bytes) = spec.retention.bytes {
                        words.set("bytes", bytes);
                    }
                    let made = self
                        .publish
                        .with_channel(|chan| {
                            let queue = queue.clone();
                            async move { chan.declare_stream(&queue, FieldTable::default()).await }
                        })
                        .await;
                    made?;
                    if !self.append(&queue, &words).await? {
                        continue;
                    }
                    match self.meta(name).await? {
                        Some(meta) => meta,
                        None => continue,
                    }
                }
            };
            if meta.deleting {
                self.finish_delete(name, &meta).await?;
                continue;
            }
            if meta.partitions != spec.partitions {
                return Err(topic_exists(name, meta.partitions, spec.partitions));
            }
            if meta.ready < meta.partitions {
                self.make_ready(name, &meta).await?;
            }
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Interrupted,
            format!("topic {name:?} was deleted again and again while it was created"),
        ))
    }

    /// Makes what a topic consists of, and lists it.
    async fn make_ready(&self, name: &TopicName, meta: &Meta) -> Result<()> {
        self.make_streams(name, meta, 0..meta.partitions).await?;
        self.list(name, meta, "add").await?;
        let ready = Words::new("ready").with("partitions", meta.partitions);
        if self.append(&self.names.meta(name), &ready).await? {
            Ok(())
        } else {
            Err(topic_not_found(name))
        }
    }

    async fn make_streams(&self, name: &TopicName, meta: &Meta, which: std::ops::Range<u32>) -> Result<()> {
        let queues: Vec<String> = which
            .map(|partition| self.names.partition(name, &meta.id, partition))
            .collect();
        let arguments = stream_arguments(meta);
        self.publish
            .with_channel(|chan| {
                let (queues, arguments) = (queues.clone(), arguments.clone());
                async move {
                    let confirms = chan.conn().confirm_channel().await?;
                    for queue in &queues {
                        chan.declare_stream(queue, arguments.clone()).await?;
                        begin(&confirms, queue).await?;
                    }
                    Ok(())
                }
            })
            .await
    }

    /// Adds a record to a stream of records; false where there is no such stream.
    async fn append(&self, queue: &str, words: &Words) -> Result<bool> {
        let body = words.encode();
        self.publish
            .with_channel(|chan| {
                let body = body.clone();
                async move {
                    let confirms = chan.conn().confirm_channel().await?;
                    match confirms.publish("", queue, &body).await? {
                        Published::Stored => Ok(true),
                        // It does not exist, or is not up yet; asking tells which.
                        Published::Returned => match streams::end(&chan, queue).await {
                            Err(error) if error.kind() == ErrorKind::TopicNotFound => Ok(false),
                            _ => Err(Error::new(
                                ErrorKind::Interrupted,
                                format!("queue {queue:?} takes nothing yet"),
                            )),
                        },
                        Published::Refused => Err(Error::new(
                            ErrorKind::Interrupted,
                            format!("queue {queue:?} did not take a record"),
                        )),
                    }
                }
            })
            .await
    }

    async fn list(&self, name: &TopicName, meta: &Meta, what: &str) -> Result<()> {
        let registry = self.names.registry();
        self.publish
            .with_channel(|chan| {
                let registry = registry.clone();
                async move { chan.declare_stream(&registry, FieldTable::default()).await }
            })
            .await?;
        let words = Words::new(what).with("name", name.as_str()).with("id", &meta.id);
        self.append(&registry, &words).await?;
        Ok(())
    }

    /// Waits once where the list of topics is new, and with it perhaps the first stream of the server.
    async fn settle_first_stream(&self) -> Result<()> {
        let registry = self.names.registry();
        let new = self
            .publish
            .with_channel(|chan| {
                let registry = registry.clone();
                async move {
                    let look = QueueDeclareOptions::durable().passive();
                    match chan.declare(&registry, look, FieldTable::default()).await {
                        Ok(_) => return Ok(false),
                        Err(error) if error.kind() == ErrorKind::TopicNotFound => {}
                        Err(error) => return Err(error),
                    }
                    let chan = chan.conn().channel().await?;
                    chan.declare_stream(&registry, FieldTable::default()).await?;
                    Ok(true)
                }
            })
            .await?;
        if new {
            tracing::info!(
                "the first topic of a server waits until the server has written down that it has streams"
            );
            tokio::time::sleep(WRITTEN_DOWN).await;
        }
        Ok(())
    }

    pub(crate) async fn list_topics(&self) -> Result<Vec<TopicName>> {
        let registry = self.names.registry();
        let read = self
            .consume
            .with_channel(|chan| {
                let registry = registry.clone();
                async move { streams::read_all(&chan, &registry, APPEARS).await }
            })
            .await;
        let records = match read {
            Ok(records) => records,
            Err(error) if error.kind() == ErrorKind::TopicNotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut lives: BTreeMap<(String, String), bool> = BTreeMap::new();
        for (_, record) in &records {
            let words = Words::parse("the list of topics", &record.data)?;
            let (Some(name), Some(id)) = (words.text("name"), words.text("id")) else {
                continue;
            };
            let key = (name.to_owned(), id.to_owned());
            match words.kind() {
                // Of several who create one topic the last may come late, after it was deleted.
                "add" => {
                    lives.entry(key).or_insert(true);
                }
                "remove" => {
                    lives.insert(key, false);
                }
                _ => {}
            }
        }
        let mut names: Vec<TopicName> = lives
            .into_iter()
            .filter(|(_, alive)| *alive)
            .map(|((name, _), _)| TopicName::existing(name))
            .collect::<Result<_>>()?;
        names.dedup();
        Ok(names)
    }

    pub(crate) async fn add_partitions(&self, name: &TopicName, partitions: u32) -> Result<()> {
        check_count(partitions)?;
        let meta = match self.meta(name).await? {
            Some(meta) if !meta.deleting => meta,
            _ => return Err(topic_not_found(name)),
        };
        if partitions < meta.partitions {
            return Err(Error::new(
                ErrorKind::InvalidPartition,
                format!(
                    "topic {name:?} has {} partitions, it cannot shrink to {partitions}",
                    meta.partitions
                ),
            ));
        }
        if partitions == meta.partitions {
            return Ok(());
        }
        self.make_streams(name, &meta, meta.partitions..partitions)
            .await?;
        let grow = Words::new("grow").with("partitions", partitions);
        if self.append(&self.names.meta(name), &grow).await? {
            Ok(())
        } else {
            Err(topic_not_found(name))
        }
    }

    /// Deletes a topic. It is marked first, so that nobody opens it any more and a deletion that was cut short is
    /// finished by the next one or by the next creation.
    pub(crate) async fn delete(&self, name: &TopicName) -> Result<()> {
        let Some(meta) = self.meta(name).await? else {
            return Ok(());
        };
        if !meta.deleting && !self.append(&self.names.meta(name), &Words::new("delete")).await? {
            return Ok(());
        }
        // A group may have been recorded since it was read.
        match self.meta(name).await? {
            Some(now) if now.id == meta.id => self.finish_delete(name, &now).await,
            _ => Ok(()),
        }
    }

    async fn finish_delete(&self, name: &TopicName, meta: &Meta) -> Result<()> {
        let mut queues = Vec::new();
        let mut exchanges = Vec::new();
        for partition in 0..meta.partitions {
            queues.push(self.names.partition(name, &meta.id, partition));
        }
        for group in meta.groups.keys() {
            let group = GroupName::existing(group)?;
            exchanges.push(self.names.group(name, &meta.id, &group));
            queues.push(self.names.work(name, &meta.id, &group));
            for partition in 0..meta.partitions {
                queues.push(self.names.token(name, &meta.id, &group, partition));
                queues.push(self.names.position(name, &meta.id, &group, partition));
            }
        }
        self.list(name, meta, "remove").await?;
        let last = self.names.meta(name);
        self.publish
            .with_channel(|chan| {
                let (queues, exchanges, last) = (queues.clone(), exchanges.clone(), last.clone());
                async move {
                    for queue in &queues {
                        chan.delete_queue(queue).await?;
                    }
                    for exchange in &exchanges {
                        chan.delete_exchange(exchange).await?;
                    }
                    chan.delete_queue(&last).await
                }
            })
            .await
    }

    /// Records in which mode a group runs, or checks it: a group has one.
    pub(crate) async fn claim_mode(&self, topic: &Topic, group: &GroupName, mode: Mode) -> Result<()> {
        for claimed in [false, true] {
            let meta = match self.meta(&topic.name).await? {
                Some(meta) if meta.id == topic.id && !meta.deleting => meta,
                _ => return Err(topic_not_found(&topic.name)),
            };
            match meta.groups.get(group.as_str()) {
                Some(word) if word == mode.word() => return Ok(()),
                Some(word) => {
                    return Err(Error::new(
                        ErrorKind::InvalidConfig,
                        format!(
                            "group {group:?} of topic {:?} runs in {word} mode, {} was asked for",
                            topic.name,
                            mode.word()
                        ),
                    ));
                }
                None if claimed => break,
                None => {
                    let words = Words::new("group")
                        .with("name", group.as_str())
                        .with("mode", mode.word());
                    if !self.append(&self.names.meta(&topic.name), &words).await? {
                        return Err(topic_not_found(&topic.name));
                    }
                }
            }
        }
        Err(error::protocol("a description without the group just recorded"))
    }

    pub(crate) async fn describe(&self, name: TopicName) -> Result<TopicDescription> {
        let meta = match self.meta(&name).await? {
            Some(meta) if !meta.deleting => meta,
            _ => return Err(topic_not_found(&name)),
        };
        let topic = Topic {
            name: name.clone(),
            id: meta.id.clone(),
        };
        let bounds = self.all_bounds(&topic, meta.partitions).await?;
        let partitions = (0..)
            .zip(bounds)
            .map(|(partition, bounds)| PartitionDescription::new(partition, bounds.first, bounds.next))
            .collect();
        Ok(TopicDescription::new(name, Some(topic.id()), partitions))
    }

    /// Returns where each partition begins and ends.
    pub(crate) async fn all_bounds(&self, topic: &Topic, partitions: u32) -> Result<Vec<Bounds>> {
        stream::iter((0..partitions).map(|partition| self.bounds(topic, partition)))
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    pub(crate) async fn bounds(&self, topic: &Topic, partition: u32) -> Result<Bounds> {
        let queue = self.names.partition(&topic.name, &topic.id, partition);
        self.consume
            .with_channel(|chan| {
                let queue = queue.clone();
                async move {
                    let bounds = streams::bounds(&chan, &queue).await?;
                    chan.close().await;
                    Ok(bounds)
                }
            })
            .await
            .map_err(|error| self.name_topic(topic, error))
    }

    /// Turns a position into an offset; one beyond the end is `OffsetOutOfRange`.
    pub(crate) async fn resolve(&self, topic: &Topic, partition: u32, position: Position) -> Result<Offset> {
        let bounds = self.bounds(topic, partition).await?;
        match position {
            Position::Latest => Ok(bounds.next),
            Position::Offset(offset) if offset > bounds.next => {
                Err(beyond(&topic.name, partition, offset, bounds.next))
            }
            Position::Offset(offset) => Ok(offset.max(bounds.first)),
            Position::Time(time) => {
                let queue = self.names.partition(&topic.name, &topic.id, partition);
                self.consume
                    .with_channel(|chan| {
                        let queue = queue.clone();
                        async move { streams::offset_at(&chan, &queue, time, bounds).await }
                    })
                    .await
                    .map_err(|error| self.name_topic(topic, error))
            }
            _ => Ok(bounds.first),
        }
    }

    /// Reads what a group has stored. Partitions without a position are left out.
    pub(crate) async fn committed(
        &self,
        name: &TopicName,
        group: &GroupName,
    ) -> Result<Vec<CommittedPosition>> {
        let meta = match self.meta(name).await? {
            Some(meta) if !meta.deleting => meta,
            _ => return Err(topic_not_found(name)),
        };
        let queues: Vec<String> = (0..meta.partitions)
            .map(|partition| self.names.position(name, &meta.id, group, partition))
            .collect();
        let stored: Vec<Option<Vec<u8>>> = stream::iter(queues.into_iter().map(|queue| self.peek(queue)))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let mut all = Vec::new();
        for (partition, body) in (0..).zip(stored) {
            if let Some(body) = body {
                let token = Token::parse(&body)?;
                all.push(CommittedPosition::new(partition, token.next).with_acked_above(token.acked));
            }
        }
        Ok(all)
    }

    /// Reads the one message of a queue and leaves it there.
    async fn peek(&self, queue: String) -> Result<Option<Vec<u8>>> {
        for _ in 0..MOST_TRIES {
            let got = self
                .consume
                .with_channel(|chan| {
                    let queue = queue.clone();
                    async move {
                        let got = chan.get(&queue).await?;
                        chan.close().await;
                        Ok(got)
                    }
                })
                .await;
            match got {
                Ok(Some(body)) => return Ok(Some(body)),
                // Somebody else looks at it just now, or it is being replaced.
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) if error.kind() == ErrorKind::TopicNotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Makes sure that delayed messages of a partition have a way to it.
    pub(crate) async fn prepare_delays(&self, topic: &Topic, partition: u32) -> Result<()> {
        {
            let mut made = self.delays.lock().await;
            if !*made {
                self.publish
                    .with_channel(|chan| async move { delay::make(&chan, &self.names).await })
                    .await?;
                *made = true;
            }
        }
        self.publish
            .with_channel(|chan| async move { delay::bind(&chan, &self.names, topic, partition).await })
            .await
            .map_err(|error| self.name_topic(topic, error))
    }

    /// A delayed message came back: something is missing.
    pub(crate) async fn forget_delays(&self) {
        *self.delays.lock().await = false;
    }

    /// Names the topic instead of its queue.
    fn name_topic(&self, topic: &Topic, error: Error) -> Error {
        if error.kind() == ErrorKind::TopicNotFound {
            topic_not_found(&topic.name)
        } else {
            error
        }
    }
}

/// How often something is tried that others may undo meanwhile.
const MOST_TRIES: usize = 10;

/// Puts what is no message into a stream: with it the stream is not empty.
pub(crate) async fn begin(confirms: &Chan, queue: &str) -> Result<()> {
    let properties = format::encode_begin(format::now_micros());
    match confirms.publish_with("", queue, b"", properties).await? {
        Published::Stored => Ok(()),
        Published::Returned | Published::Refused => Err(Error::new(
            ErrorKind::Interrupted,
            format!("queue {queue:?} takes nothing yet"),
        )),
    }
}

pub(crate) fn beyond(topic: &TopicName, partition: u32, offset: Offset, next: Offset) -> Error {
    Error::new(
        ErrorKind::OffsetOutOfRange,
        format!("offset {offset} of partition {partition} of topic {topic:?}: the next one is {next}"),
    )
}

fn check(spec: &TopicSpec) -> Result<()> {
    check_count(spec.partitions)?;
    if let Some(copies) = spec.replication {
        return Err(Error::unsupported(
            "amqp",
            &format!("{copies} copies of a topic (the server's own setting applies)"),
        ));
    }
    if let Some(name) = spec.properties.keys().next() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("topic property {name:?}: the amqp backend knows none"),
        ));
    }
    let rule = |what: String| Err(Error::new(ErrorKind::InvalidConfig, what));
    match (spec.retention.age, spec.retention.bytes) {
        (Some(age), _) if age.is_zero() => rule("a retention of no time keeps nothing".to_owned()),
        (_, Some(0)) => rule("a retention of 0 bytes keeps nothing".to_owned()),
        (_, Some(bytes)) if i64::try_from(bytes).is_err() => rule(format!(
            "a retention of {bytes} bytes: the protocol has 63 bits for it"
        )),
        _ => Ok(()),
    }
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

fn stream_arguments(meta: &Meta) -> FieldTable {
    let long = |number: u64| AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX));
    let mut arguments = FieldTable::default();
    if let Some(age) = meta.age_ms {
        arguments.insert("x-max-age".into(), text(&format!("{}s", age.div_ceil(1000))));
    }
    if let Some(bytes) = meta.bytes {
        arguments.insert("x-max-length-bytes".into(), long(bytes));
    }
    if meta.age_ms.is_some() || meta.bytes.is_some() {
        let segment = (meta.bytes.unwrap_or(u64::MAX) / 4).clamp(LEAST_SEGMENT, SEGMENT);
        arguments.insert("x-stream-max-segment-size-bytes".into(), long(segment));
    }
    arguments
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_makes_segments_small_enough_to_be_removed() {
        let created: &[u8] = b"mq1 create id=a name=o partitions=1 bytes=100000 age_ms=1500";
        let mut meta = Meta::fold([(0, created)]).unwrap().unwrap();
        let arguments = stream_arguments(&meta);
        assert_eq!(arguments.inner()["x-max-age"], text("2s"));
        assert_eq!(
            arguments.inner()["x-stream-max-segment-size-bytes"],
            AMQPValue::LongLongInt(25_000)
        );
        (meta.bytes, meta.age_ms) = (None, None);
        assert!(stream_arguments(&meta).inner().is_empty());
    }
}
