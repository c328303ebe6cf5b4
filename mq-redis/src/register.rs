//! Registers: streams of length 1 whose entry ids only grow.
//!
//! `XADD key MAXLEN 1 <epoch>-<seq>` is refused unless the id is above the last one. That is a compare-and-set for
//! whoever takes a register over (`epoch + 1`), and a fence against whoever had it before: no script, no lock.

use std::{fmt::Write, ops::Range};

use mq_api::{Offset, Result, TopicId};
use redis::Cmd;

use crate::{
    error,
    format::{Entry, EntryId},
    resp::Reply,
};

/// The most ranges, and the most attempts, that are stored with one position.
const MAX_EXTRAS: usize = 4096;

/// Says how far a group is in one partition, and who owns it.
///
/// ```text
/// XADD mq:{orders:0}:g:billing NOMKSTREAM MAXLEN 1 7-12 mq1 <topic id> owner <session> ttl 6000 next 100 acked 103-105,108 attempts 101:2
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) topic_id: TopicId,
    /// The session that has it; empty where it was given back, or nobody had it yet.
    pub(crate) owner: String,
    /// How long the owner may be silent, in milliseconds.
    pub(crate) ttl: u64,
    pub(crate) next: Offset,
    pub(crate) acked: Vec<Range<Offset>>,
    pub(crate) attempts: Vec<(Offset, u32)>,
}

impl Position {
    pub(crate) fn start(topic_id: TopicId, next: Offset) -> Self {
        Self {
            topic_id,
            owner: String::new(),
            ttl: 0,
            next,
            acked: Vec::new(),
            attempts: Vec::new(),
        }
    }

    /// Writes the register under an id. Without `create` a register that was deleted is not made again.
    pub(crate) fn write(&self, key: &str, id: EntryId, create: bool) -> Cmd {
        let mut cmd = redis::cmd("XADD");
        cmd.arg(key);
        if !create {
            cmd.arg("NOMKSTREAM");
        }
        cmd.arg("MAXLEN").arg(1).arg(id.to_string());
        cmd.arg("mq1").arg(self.topic_id.as_str());
        cmd.arg("owner").arg(&self.owner);
        cmd.arg("ttl").arg(self.ttl);
        cmd.arg("next").arg(self.next);
        if !self.acked.is_empty() {
            cmd.arg("acked").arg(ranges_to_text(&self.acked));
        }
        if !self.attempts.is_empty() {
            cmd.arg("attempts").arg(attempts_to_text(&self.attempts));
        }
        cmd
    }

    /// Reads what `XREVRANGE key + - COUNT 1` returns.
    pub(crate) fn read(reply: Reply) -> Result<Option<(EntryId, Self)>> {
        let Some(entry) = Entry::parse_all(reply)?.pop() else {
            return Ok(None);
        };
        let broken = || error::protocol(format!("a group's position that cannot be read, id {}", entry.id));
        let topic_id = entry.version_field("a group's position")?.ok_or_else(broken)?;
        Ok(Some((
            entry.id,
            Self {
                topic_id: TopicId::new(String::from_utf8_lossy(topic_id)),
                owner: entry.text("owner").unwrap_or_default().to_owned(),
                ttl: entry.number("ttl").unwrap_or(0),
                next: entry.number("next").ok_or_else(broken)?,
                acked: text_to_ranges(entry.text("acked").unwrap_or_default()).ok_or_else(broken)?,
                attempts: text_to_attempts(entry.text("attempts").unwrap_or_default()).ok_or_else(broken)?,
            },
        )))
    }
}

/// Describes a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) topic_id: TopicId,
    pub(crate) name: String,
    pub(crate) partitions: u32,
    /// How long messages are kept, in milliseconds.
    pub(crate) retention_ms: Option<u64>,
    /// How much of a partition is kept, in bytes of the server's memory.
    pub(crate) retention_bytes: Option<u64>,
}

impl Meta {
    pub(crate) fn write(&self, key: &str, version: u64) -> Cmd {
        let mut cmd = redis::cmd("XADD");
        cmd.arg(key);
        if version > 1 {
            cmd.arg("NOMKSTREAM");
        }
        cmd.arg("MAXLEN")
            .arg(1)
            .arg(EntryId { ms: version, seq: 0 }.to_string());
        cmd.arg("mq1").arg(self.topic_id.as_str());
        cmd.arg("name").arg(&self.name);
        cmd.arg("partitions").arg(self.partitions);
        if let Some(age) = self.retention_ms {
            cmd.arg("retention_ms").arg(age);
        }
        if let Some(bytes) = self.retention_bytes {
            cmd.arg("retention_bytes").arg(bytes);
        }
        cmd
    }

    pub(crate) fn read(reply: Reply) -> Result<Option<(u64, Self)>> {
        let Some(entry) = Entry::parse_all(reply)?.pop() else {
            return Ok(None);
        };
        let broken = || error::protocol("the description of a topic that cannot be read");
        let topic_id = entry.version_field("a topic")?.ok_or_else(broken)?;
        Ok(Some((
            entry.id.ms,
            Self {
                topic_id: TopicId::new(String::from_utf8_lossy(topic_id)),
                name: entry.text("name").ok_or_else(broken)?.to_owned(),
                partitions: entry
                    .number("partitions")
                    .and_then(|count| u32::try_from(count).ok())
                    .filter(|count| *count > 0)
                    .ok_or_else(broken)?,
                retention_ms: entry.number("retention_ms"),
                retention_bytes: entry.number("retention_bytes"),
            },
        )))
    }
}

/// Asks for what a register holds.
pub(crate) fn newest(key: &str) -> Cmd {
    let mut cmd = redis::cmd("XREVRANGE");
    cmd.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    cmd
}

fn ranges_to_text(ranges: &[Range<Offset>]) -> String {
    let mut text = String::new();
    for range in ranges.iter().take(MAX_EXTRAS).filter(|range| !range.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        let last = range.end - 1;
        // Writing to a string cannot fail.
        let _ = if last == range.start {
            write!(text, "{last}")
        } else {
            write!(text, "{}-{last}", range.start)
        };
    }
    text
}

fn text_to_ranges(text: &str) -> Option<Vec<Range<Offset>>> {
    let mut ranges = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (Offset, Offset) = (first.parse().ok()?, last.parse().ok()?);
        ranges.push(first..last.checked_add(1)?);
    }
    Some(ranges)
}

fn attempts_to_text(attempts: &[(Offset, u32)]) -> String {
    let mut text = String::new();
    for (offset, count) in attempts.iter().take(MAX_EXTRAS) {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{offset}:{count}");
    }
    text
}

fn text_to_attempts(text: &str) -> Option<Vec<(Offset, u32)>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (offset, count) = part.split_once(':')?;
            Some((offset.parse().ok()?, count.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mq_api::ErrorKind;

    use super::*;

    fn words(cmd: &Cmd) -> Vec<String> {
        cmd.args_iter()
            .map(|arg| match arg {
                redis::Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                _ => panic!("no such argument is written"),
            })
            .collect()
    }

    fn stored(id: &str, fields: &[&str]) -> Reply {
        let text = |text: &str| Reply::Text(Bytes::copy_from_slice(text.as_bytes()));
        Reply::Array(vec![Reply::Array(vec![
            text(id),
            Reply::Array(fields.iter().map(|field| text(field)).collect()),
        ])])
    }

    #[test]
    fn version_one_of_a_position_is_frozen() {
        let position = Position {
            topic_id: TopicId::new("51f0"),
            owner: "s1".to_owned(),
            ttl: 6000,
            next: 100,
            acked: vec![103..106, 108..109],
            attempts: vec![(101, 2), (107, 5)],
        };
        let golden = [
            "mq1",
            "51f0",
            "owner",
            "s1",
            "ttl",
            "6000",
            "next",
            "100",
            "acked",
            "103-105,108",
            "attempts",
            "101:2,107:5",
        ];
        let cmd = words(&position.write("k", EntryId { ms: 7, seq: 12 }, false));
        assert_eq!(cmd[..6], ["XADD", "k", "NOMKSTREAM", "MAXLEN", "1", "7-12"]);
        assert_eq!(cmd[6..], golden);
        let (id, read) = Position::read(stored("7-12", &golden)).unwrap().unwrap();
        assert_eq!((id, read), (EntryId { ms: 7, seq: 12 }, position));
    }

    #[test]
    fn version_one_of_a_topic_is_frozen() {
        let meta = Meta {
            topic_id: TopicId::new("51f0"),
            name: "orders".to_owned(),
            partitions: 4,
            retention_ms: Some(1000),
            retention_bytes: Some(5000),
        };
        let golden = [
            "mq1",
            "51f0",
            "name",
            "orders",
            "partitions",
            "4",
            "retention_ms",
            "1000",
            "retention_bytes",
            "5000",
        ];
        let cmd = words(&meta.write("k", 1));
        assert_eq!(cmd[..5], ["XADD", "k", "MAXLEN", "1", "1-0"]);
        assert_eq!(cmd[5..], golden);
        assert_eq!(Meta::read(stored("1-0", &golden)).unwrap(), Some((1, meta)));
    }

    #[test]
    fn a_newer_version_is_an_error_and_never_no_position() {
        for error in [
            Position::read(stored("7-12", &["mq2", "51f0", "next", "5"])).unwrap_err(),
            Meta::read(stored("1-0", &["mq17", "51f0", "partitions", "4"])).unwrap_err(),
            Position::read(stored("7-12", &["mq1", "51f0", "owner", ""])).unwrap_err(),
            Position::read(stored("7-12", &["mq1", "51f0", "next", "5", "acked", "x"])).unwrap_err(),
            Meta::read(stored("1-0", &["mq1", "51f0", "name", "a", "partitions", "0"])).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Protocol);
        }
        assert_eq!(Position::read(Reply::Array(Vec::new())).unwrap(), None);
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let (_, read) = Position::read(stored("1-0", &["mq1", "t", "next", "5", "mood", "good"]))
            .unwrap()
            .unwrap();
        assert_eq!(read, Position::start(TopicId::new("t"), 5));
    }
}
