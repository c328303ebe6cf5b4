//! Topics: made, described, grown, listed and deleted; and places in their partitions looked up.

use std::sync::Arc;

use mq_api::{
    Error, ErrorKind, GroupName, Offset, PartitionDescription, Position, Result, Timestamp, TopicDescription,
    TopicId, TopicName, TopicSpec,
    driver::{CommittedPosition, topic_exists, topic_not_found},
};

use crate::{
    clock::ServerClock,
    config::RedisConfig,
    error,
    format::{Entry, EntryId, stamp_of},
    keys::Keys,
    link::{Conn, Link},
    register::{self, Meta},
    resp::Reply,
};

/// The most partitions of a topic: one read that waits for all of them has to stay small.
pub(crate) const MAX_PARTITIONS: u32 = 1024;
/// What is kept where nothing is said: seven days.
const DEFAULT_RETENTION_MS: u64 = 7 * 24 * 3600 * 1000;
/// A consumer group that only exists to make an empty stream; `:` keeps it apart from every group of users.
const INIT_GROUP: &str = "mq:init";
/// How many commands go into one pipeline.
const CHUNK: usize = 512;

/// Holds what all parts of one client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<RedisConfig>,
    pub(crate) keys: Keys,
    pub(crate) link: Link,
    pub(crate) clock: ServerClock,
}

/// A topic as it was when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    pub(crate) partitions: u32,
    /// None for a stream that others made.
    pub(crate) meta: Option<Meta>,
}

impl Topic {
    pub(crate) fn id(&self) -> Option<&TopicId> {
        self.meta.as_ref().map(|meta| &meta.topic_id)
    }

    pub(crate) fn is_foreign(&self) -> bool {
        self.meta.is_none()
    }

    pub(crate) fn key(&self, keys: &Keys, partition: u32) -> String {
        if self.is_foreign() {
            self.name.as_str().to_owned()
        } else {
            keys.partition(&self.name, partition)
        }
    }

    /// Returns the id of the entry at an offset.
    pub(crate) fn entry_id(&self, offset: Offset) -> EntryId {
        if self.is_foreign() {
            EntryId::of_foreign(offset)
        } else {
            EntryId::of(offset)
        }
    }

    /// Returns the largest id below the entry at an offset.
    pub(crate) fn before(&self, offset: Offset) -> EntryId {
        let id = self.entry_id(offset);
        match id.seq.checked_sub(1) {
            Some(seq) => EntryId { ms: id.ms, seq },
            None if id.ms == 0 => id,
            None => EntryId {
                ms: id.ms - 1,
                seq: u64::MAX,
            },
        }
    }
}

/// How the members of a group share a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Partitioned,
    Shared,
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Self::Partitioned => "partitioned",
            Self::Shared => "shared",
        }
    }
}

/// What `XINFO STREAM` says about a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) first: Offset,
    pub(crate) next: Offset,
}

impl Shared {
    /// Reads a topic's description; `TopicNotFound` where there is none.
    pub(crate) async fn topic(&self, conn: &Conn, name: &TopicName) -> Result<Topic> {
        if let Some((_, meta)) = self.meta(conn, name).await? {
            return Ok(Topic {
                name: name.clone(),
                partitions: meta.partitions,
                meta: Some(meta),
            });
        }
        if self.config.raw_names {
            let kind = conn.call(redis::cmd("TYPE").arg(name.as_str())).await?;
            if kind.text() == Some(b"stream") {
                return Ok(Topic {
                    name: name.clone(),
                    partitions: 1,
                    meta: None,
                });
            }
        }
        Err(topic_not_found(name))
    }

    pub(crate) async fn meta(&self, conn: &Conn, name: &TopicName) -> Result<Option<(u64, Meta)>> {
        let found = Meta::read(conn.call(&register::newest(&self.keys.meta(name))).await?)?;
        if let Some((_, meta)) = &found
            && meta.name != name.as_str()
        {
            return Err(Error::new(
                ErrorKind::InvalidTopic,
                format!("topic {name:?} meets topic {:?} on the server", meta.name),
            ));
        }
        Ok(found)
    }

    pub(crate) async fn create(&self, spec: &TopicSpec) -> Result<()> {
        if spec.partitions == 0 || spec.partitions > MAX_PARTITIONS {
            return Err(Error::new(
                ErrorKind::InvalidPartition,
                format!(
                    "{} partitions: a topic has 1 to {MAX_PARTITIONS}",
                    spec.partitions
                ),
            ));
        }
        if spec.replication.is_some() {
            return Err(Error::unsupported("redis", "a replication factor of a topic"));
        }
        if let Some(name) = spec.properties.keys().next() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("topic property {name:?}: the redis backend knows none"),
            ));
        }
        let (age, bytes) = (spec.retention.age, spec.retention.bytes);
        let meta = Meta {
            topic_id: TopicId::new(format!("{:016x}", fastrand::u64(..))),
            name: spec.name.as_str().to_owned(),
            partitions: spec.partitions,
            retention_ms: match age {
                Some(age) => Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                None if bytes.is_none() => Some(DEFAULT_RETENTION_MS),
                None => None,
            },
            retention_bytes: bytes,
        };
        let conn = self.link.conn().await?;
        let key = self.keys.meta(&spec.name);
        loop {
            match conn.ask(&meta.write(&key, 1)).await? {
                Reply::Refused(words) if error::is_stale_id(&words) => {}
                Reply::Refused(words) => return Err(error::refused(&words)),
                _ => return self.make_streams(&conn, &spec.name, 0..spec.partitions).await,
            }
            match self.meta(&conn, &spec.name).await? {
                Some((_, found)) if found.partitions != spec.partitions => {
                    return Err(topic_exists(&spec.name, found.partitions, spec.partitions));
                }
                // Made again where somebody stopped half-way.
                Some(_) => return self.make_streams(&conn, &spec.name, 0..spec.partitions).await,
                // Deleted in between.
                None => {}
            }
        }
    }

    /// Makes empty streams where there are none.
    async fn make_streams(&self, conn: &Conn, topic: &TopicName, range: std::ops::Range<u32>) -> Result<()> {
        let all: Vec<u32> = range.collect();
        for part in all.chunks(CHUNK) {
            let mut pipe = redis::pipe();
            for partition in part {
                let key = self.keys.partition(topic, *partition);
                pipe.cmd("XGROUP")
                    .arg("CREATE")
                    .arg(&key)
                    .arg(INIT_GROUP)
                    .arg("$")
                    .arg("MKSTREAM");
                pipe.cmd("XGROUP").arg("DESTROY").arg(&key).arg(INIT_GROUP);
            }
            for reply in conn.ask_all(&pipe).await? {
                match reply {
                    Reply::Refused(words) if !words.starts_with("BUSYGROUP") => {
                        return Err(error::refused(&words));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn add_partitions(&self, topic: &TopicName, partitions: u32) -> Result<()> {
        if partitions > MAX_PARTITIONS {
            return Err(Error::new(
                ErrorKind::InvalidPartition,
                format!("{partitions} partitions: a topic has 1 to {MAX_PARTITIONS}"),
            ));
        }
        let conn = self.link.conn().await?;
        let key = self.keys.meta(topic);
        loop {
            let Some((version, mut meta)) = self.meta(&conn, topic).await? else {
                return Err(topic_not_found(topic));
            };
            if partitions < meta.partitions {
                return Err(Error::new(
                    ErrorKind::InvalidPartition,
                    format!(
                        "topic {topic:?} has {} partitions, it cannot shrink to {partitions}",
                        meta.partitions
                    ),
                ));
            }
            if partitions == meta.partitions {
                return Ok(());
            }
            self.make_streams(&conn, topic, meta.partitions..partitions)
                .await?;
            meta.partitions = partitions;
            match conn.ask(&meta.write(&key, version + 1)).await? {
                Reply::Refused(words) if error::is_stale_id(&words) => {}
                Reply::Refused(words) => return Err(error::refused(&words)),
                Reply::Nil => return Err(topic_not_found(topic)),
                _ => return Ok(()),
            }
        }
    }

    /// Deletes a topic: messages and positions first, its description last, so that a deletion that was cut short
    /// can be repeated.
    pub(crate) async fn delete(&self, topic: &TopicName) -> Result<()> {
        let conn = self.link.conn().await?;
        let Some((_, meta)) = self.meta(&conn, topic).await? else {
            return Ok(());
        };
        let groups = self.groups(&conn, topic).await?;
        let mut keys = Vec::new();
        for partition in 0..meta.partitions {
            keys.push(self.keys.partition(topic, partition));
            keys.push(self.keys.delay(topic, partition));
            for group in &groups {
                keys.push(self.keys.register(topic, partition, group));
                keys.push(self.keys.due(topic, partition, group));
            }
        }
        for part in keys.chunks(CHUNK) {
            let mut pipe = redis::pipe();
            for key in part {
                pipe.cmd("UNLINK").arg(key);
            }
            conn.call_all(&pipe).await?;
        }
        let mut last = redis::cmd("UNLINK");
        last.arg(self.keys.meta(topic))
            .arg(self.keys.groups(topic))
            .arg(self.keys.upkeep(topic));
        for group in &groups {
            last.arg(self.keys.log(topic, group));
        }
        conn.call(&last).await?;
        Ok(())
    }

    /// Records in which mode a group runs, or checks it: a group has one.
    pub(crate) async fn claim_mode(
        &self,
        conn: &Conn,
        topic: &Topic,
        group: &GroupName,
        mode: Mode,
    ) -> Result<()> {
        let key = self.keys.groups(&topic.name);
        let mut pipe = redis::pipe();
        pipe.cmd("HSETNX")
            .arg(&key)
            .arg(group.as_str())
            .arg(format!("mq1 {}", mode.word()));
        pipe.cmd("HGET").arg(&key).arg(group.as_str());
        let replies = conn.call_all(&pipe).await?;
        let stored = replies.last().and_then(Reply::str).unwrap_or_default();
        match stored.split_once(' ') {
            Some(("mq1", word)) if word == mode.word() => Ok(()),
            Some(("mq1", word)) => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "group {group:?} of topic {:?} runs in {word} mode, {} was asked for",
                    topic.name,
                    mode.word()
                ),
            )),
            _ => Err(error::newer_format("the mode of a group", stored)),
        }
    }

    pub(crate) async fn groups(&self, conn: &Conn, topic: &TopicName) -> Result<Vec<GroupName>> {
        let names = conn
            .call(redis::cmd("HKEYS").arg(self.keys.groups(topic)))
            .await?;
        names
            .array()
            .iter()
            .filter_map(Reply::str)
            .map(GroupName::existing)
            .collect()
    }

    pub(crate) async fn list(&self) -> Result<Vec<TopicName>> {
        let conn = self.link.conn().await?;
        let mut topics = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(self.keys.all_meta())
                .arg("COUNT")
                .arg(1000)
                .arg("TYPE")
                .arg("stream");
            let mut parts = conn.call(&scan).await?.into_array().into_iter();
            let (Some(next), Some(keys)) = (parts.next(), parts.next()) else {
                return Err(error::protocol("a scan without a cursor"));
            };
            let keys: Vec<&str> = keys.array().iter().filter_map(Reply::str).collect();
            let mut pipe = redis::pipe();
            for key in &keys {
                pipe.add_command(register::newest(key));
            }
            for reply in conn.call_all(&pipe).await? {
                if let Some((_, meta)) = Meta::read(reply)? {
                    topics.push(TopicName::existing(meta.name)?);
                }
            }
            match next.str() {
                Some("0") | None => break,
                Some(next) => cursor = next.to_owned(),
            }
        }
        topics.sort();
        topics.dedup();
        Ok(topics)
    }

    pub(crate) async fn describe(&self, name: TopicName) -> Result<TopicDescription> {
        let conn = self.link.conn().await?;
        let topic = self.topic(&conn, &name).await?;
        let all: Vec<u32> = (0..topic.partitions).collect();
        let bounds = self.bounds(&conn, &topic, &all).await?;
        let partitions = all
            .into_iter()
            .zip(bounds)
            .map(|(partition, bounds)| PartitionDescription::new(partition, bounds.first, bounds.next))
            .collect();
        Ok(TopicDescription::new(name, topic.id().cloned(), partitions))
    }

    /// Returns the first offset retained and the next one, of each of these partitions.
    pub(crate) async fn bounds(&self, conn: &Conn, topic: &Topic, partitions: &[u32]) -> Result<Vec<Bounds>> {
        let mut all = Vec::with_capacity(partitions.len());
        for part in partitions.chunks(CHUNK) {
            let mut pipe = redis::pipe();
            for partition in part {
                pipe.add_command(ask_bounds(&topic.key(&self.keys, *partition)));
            }
            for reply in conn.ask_all(&pipe).await? {
                all.push(read_bounds(topic, &reply)?);
            }
        }
        Ok(all)
    }

    /// Turns a position into an offset; one beyond the end is `OffsetOutOfRange`.
    pub(crate) async fn resolve(
        &self,
        conn: &Conn,
        topic: &Topic,
        partition: u32,
        position: Position,
    ) -> Result<Offset> {
        let bounds = self
            .bounds(conn, topic, &[partition])
            .await?
            .pop()
            .ok_or_else(|| topic_not_found(&topic.name))?;
        match position {
            Position::Latest => Ok(bounds.next),
            Position::Offset(offset) if offset > bounds.next => Err(Error::new(
                ErrorKind::OffsetOutOfRange,
                format!(
                    "offset {offset} of partition {partition} of topic {:?}: the next one is {}",
                    topic.name, bounds.next
                ),
            )),
            Position::Offset(offset) => Ok(offset.max(bounds.first)),
            Position::Time(time) => self.offset_at(conn, topic, partition, time, bounds).await,
            _ => Ok(bounds.first),
        }
    }

    /// Looks for the first message stamped at or after a time, by halving: stamps grow, as far as the senders' clocks
    /// agree.
    async fn offset_at(
        &self,
        conn: &Conn,
        topic: &Topic,
        partition: u32,
        time: Timestamp,
        bounds: Bounds,
    ) -> Result<Offset> {
        let key = topic.key(&self.keys, partition);
        let (mut low, mut high) = (bounds.first, bounds.next);
        if topic.is_foreign() {
            let from = u64::try_from(time.as_millis()).unwrap_or(0);
            let found = first_from(conn, &key, EntryId { ms: from, seq: 0 }).await?;
            return Ok(found.map_or(bounds.next, |entry| entry.id.offset()));
        }
        while low < high {
            let middle = low + (high - low) / 2;
            match first_from(conn, &key, EntryId::of(middle)).await? {
                // Entries may be missing in between: what was found stands for all from `middle` up to it.
                Some(entry) if stamp_of(&entry)? < time => low = entry.id.offset() + 1,
                _ => high = middle,
            }
        }
        // What lies at `low` may be missing too.
        let found = first_from(conn, &key, EntryId::of(low)).await?;
        Ok(found.map_or(bounds.next, |entry| entry.id.offset()))
    }

    /// Reads what a group has stored. Partitions without a position are left out.
    pub(crate) async fn committed(
        &self,
        name: &TopicName,
        group: &GroupName,
    ) -> Result<Vec<CommittedPosition>> {
        let conn = self.link.conn().await?;
        let topic = self.topic(&conn, name).await?;
        let mode = conn
            .call(redis::cmd("HGET").arg(self.keys.groups(name)).arg(group.as_str()))
            .await?;
        if topic.is_foreign() || mode.str() == Some("mq1 shared") {
            return self.committed_shared(&conn, &topic, group).await;
        }
        let partitions: Vec<u32> = (0..topic.partitions).collect();
        let mut all = Vec::new();
        for part in partitions.chunks(CHUNK) {
            let mut pipe = redis::pipe();
            for partition in part {
                pipe.add_command(register::newest(&self.keys.register(name, *partition, group)));
            }
            for (partition, reply) in part.iter().zip(conn.call_all(&pipe).await?) {
                if let Some((_, stored)) = register::Position::read(reply)?
                    && Some(&stored.topic_id) == topic.id()
                {
                    all.push(CommittedPosition::new(*partition, stored.next).with_acked_above(stored.acked));
                }
            }
        }
        Ok(all)
    }

    /// Says how far a shared group is: up to its lowest pending message, or its last delivered one.
    async fn committed_shared(
        &self,
        conn: &Conn,
        topic: &Topic,
        group: &GroupName,
    ) -> Result<Vec<CommittedPosition>> {
        let group = self.keys.queue_group(group);
        let mut pipe = redis::pipe();
        for partition in 0..topic.partitions {
            let key = topic.key(&self.keys, partition);
            pipe.cmd("XINFO").arg("GROUPS").arg(&key);
            pipe.cmd("XPENDING").arg(&key).arg(&group);
        }
        let replies = conn.ask_all(&pipe).await?;
        let mut all = Vec::new();
        for (partition, pair) in (0..topic.partitions).zip(replies.chunks_exact(2)) {
            let [groups, pending] = pair else { continue };
            let last = groups
                .array()
                .iter()
                .find(|info| info.field("name").and_then(Reply::str) == Some(&group))
                .and_then(|info| info.field("last-delivered-id"))
                .and_then(Reply::text)
                .and_then(EntryId::parse);
            let Some(last) = last else { continue };
            let lowest = pending
                .array()
                .get(1)
                .and_then(Reply::text)
                .and_then(EntryId::parse);
            let position = match (lowest, last) {
                (Some(lowest), _) => lowest.offset(),
                (None, EntryId { ms: 0, seq }) => seq,
                (None, last) => last.offset() + 1,
            };
            all.push(CommittedPosition::new(partition, position));
        }
        Ok(all)
    }
}

async fn first_from(conn: &Conn, key: &str, from: EntryId) -> Result<Option<Entry>> {
    let mut cmd = redis::cmd("XRANGE");
    cmd.arg(key).arg(from.to_string()).arg("+").arg("COUNT").arg(1);
    Ok(Entry::parse_all(conn.call(&cmd).await?)?.pop())
}

pub(crate) fn ask_bounds(key: &str) -> redis::Cmd {
    let mut cmd = redis::cmd("XINFO");
    cmd.arg("STREAM").arg(key);
    cmd
}

pub(crate) fn read_bounds(topic: &Topic, reply: &Reply) -> Result<Bounds> {
    if let Reply::Refused(words) = reply {
        return Err(if words.contains("no such key") {
            topic_not_found(&topic.name)
        } else {
            error::refused(words)
        });
    }
    let last = reply
        .field("last-generated-id")
        .and_then(Reply::text)
        .and_then(EntryId::parse)
        .ok_or_else(|| error::protocol("a stream's description without its last id"))?;
    let next = match last {
        EntryId { ms: 0, seq } if !topic.is_foreign() => seq,
        EntryId { ms: 0, seq: 0 } => 0,
        other => other.offset().saturating_add(1),
    };
    let first = match reply.field("first-entry") {
        Some(Reply::Array(entry)) => entry
            .first()
            .and_then(Reply::text)
            .and_then(EntryId::parse)
            .map_or(next, EntryId::offset),
        _ => next,
    };
    Ok(Bounds { first, next })
}
