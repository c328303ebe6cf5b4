//! How a message is stored: as the fields of one stream entry, readable in `redis-cli XRANGE`.
//!
//! ```text
//! XADD mq:{orders:0} NOMKSTREAM 0-* mq1 1789560000000 key user-7 payload paid h:source checkout
//! ```
//!
//! The first field's name carries the format's version, its value is the time of sending by the server's clock.
//! A tombstone has no `payload`. `id` and `ts` are the sender's own; each header is a field of its own, in order, its
//! name after `h:`, or after `n:` where it has no value. Unknown fields are skipped.

use bytes::Bytes;
use mq_api::{Message, Offset, Result, Timestamp, driver::Record};

use crate::{error, resp::Reply};

const VERSION_FIELD: &[u8] = b"mq1";

/// Identifies a stream entry. Partitions that this library made have `0-1`, `0-2`, ...: offset 0, 1, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct EntryId {
    pub(crate) ms: u64,
    pub(crate) seq: u64,
}

/// How many bits of an offset number the entries of one millisecond, in streams that others made.
const FOREIGN_SEQ_BITS: u32 = 21;

impl EntryId {
    /// Returns the id of the entry before an offset, which is what `XREAD` wants.
    pub(crate) fn before(offset: Offset) -> Self {
        Self { ms: 0, seq: offset }
    }

    pub(crate) fn of(offset: Offset) -> Self {
        Self {
            ms: 0,
            seq: offset.saturating_add(1),
        }
    }

    /// Returns the offset of the entry with this id; 21 bits for the number within a millisecond where the stream is
    /// another's, whose ids begin with a time.
    pub(crate) fn offset(self) -> Offset {
        if self.ms == 0 {
            self.seq.saturating_sub(1)
        } else {
            (self.ms << FOREIGN_SEQ_BITS) | self.seq.min((1 << FOREIGN_SEQ_BITS) - 1)
        }
    }

    /// Turns an offset of another's stream back into the id.
    pub(crate) fn of_foreign(offset: Offset) -> Self {
        Self {
            ms: offset >> FOREIGN_SEQ_BITS,
            seq: offset & ((1 << FOREIGN_SEQ_BITS) - 1),
        }
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (ms, seq) = text.split_once('-')?;
        Some(Self {
            ms: ms.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// Holds an entry as it came.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    /// Names and values in turn; empty where the entry was removed meanwhile.
    pub(crate) fields: Vec<Reply>,
}

impl Entry {
    pub(crate) fn parse(reply: Reply) -> Result<Self> {
        let mut parts = reply.into_array().into_iter();
        let (Some(id), Some(fields)) = (parts.next(), parts.next()) else {
            return Err(error::protocol("an entry without id and fields"));
        };
        let id = id
            .text()
            .and_then(EntryId::parse)
            .ok_or_else(|| error::protocol("an entry without an id"))?;
        Ok(Self {
            id,
            fields: fields.into_array(),
        })
    }

    pub(crate) fn parse_all(reply: Reply) -> Result<Vec<Self>> {
        reply.into_array().into_iter().map(Self::parse).collect()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&[u8]> {
        self.pairs()
            .find(|(key, _)| *key == name.as_bytes())
            .map(|(_, value)| &value[..])
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.field(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.fields.chunks_exact(2).filter_map(|pair| match pair {
            [Reply::Text(name), Reply::Text(value)] => Some((name, value)),
            _ => None,
        })
    }

    /// Returns the value of the first field where that is `mq1`; an error where it is a later version of ours.
    pub(crate) fn version_field(&self, what: &str) -> Result<Option<&Bytes>> {
        let Some((name, value)) = self.pairs().next() else {
            return Ok(None);
        };
        if &name[..] == VERSION_FIELD {
            return Ok(Some(value));
        }
        match name.strip_prefix(b"mq") {
            Some(version) if !version.is_empty() && version.iter().all(u8::is_ascii_digit) => {
                Err(error::newer_format(what, &String::from_utf8_lossy(version)))
            }
            _ => Ok(None),
        }
    }
}

/// Counts the fields of a message, names and values.
pub(crate) fn field_count(message: &Message) -> usize {
    let optional = usize::from(message.key().is_some())
        + usize::from(message.payload().is_some())
        + usize::from(message.id().is_some())
        + usize::from(message.timestamp().is_some());
    2 * (1 + optional + message.headers().len())
}

/// Writes the fields of a message, names and values in turn.
pub(crate) fn encode(message: &Message, stamp: &str, mut field: impl FnMut(&[u8])) {
    field(VERSION_FIELD);
    field(stamp.as_bytes());
    if let Some(key) = message.key() {
        field(b"key");
        field(key);
    }
    if let Some(payload) = message.payload() {
        field(b"payload");
        field(payload);
    }
    if let Some(id) = message.id() {
        field(b"id");
        field(id.as_bytes());
    }
    if let Some(timestamp) = message.timestamp() {
        field(b"ts");
        field(timestamp.as_millis().to_string().as_bytes());
    }
    for header in message.headers().iter() {
        let mark = if header.value().is_some() { "h" } else { "n" };
        field(format!("{mark}:{}", header.name()).as_bytes());
        field(header.value().map_or(b"", |value| &value[..]));
    }
}

/// Reads a message, one of ours or one that others added.
pub(crate) fn decode(entry: &Entry) -> Result<Record> {
    let offset = entry.id.offset();
    let stamp = entry.version_field("a message")?;
    let Some(stamp) = stamp else {
        return Ok(decode_foreign(entry));
    };
    let stored_at = millis(stamp).ok_or_else(|| error::protocol("a message whose time is no number"))?;
    let (mut key, mut payload, mut id, mut timestamp) = (None, None, None, None);
    let mut has_headers = false;
    for (name, value) in entry.pairs().skip(1) {
        match &name[..] {
            b"key" => key = Some(value.clone()),
            b"payload" => payload = Some(value.clone()),
            b"id" => id = Some(String::from_utf8_lossy(value).into_owned()),
            b"ts" => timestamp = millis(value),
            other => has_headers |= other.starts_with(b"h:") || other.starts_with(b"n:"),
        }
    }
    let mut message = Message::from_parts(payload, key);
    if let Some(id) = id {
        message = message.with_id(id);
    }
    if let Some(timestamp) = timestamp {
        message = message.with_timestamp(timestamp);
    }
    if has_headers {
        let headers = message.headers_mut();
        for (name, value) in entry.pairs().skip(1) {
            if let Some(name) = name.strip_prefix(b"h:") {
                headers.append_raw(String::from_utf8_lossy(name), Some(value.clone()));
            } else if let Some(name) = name.strip_prefix(b"n:") {
                headers.append_raw(String::from_utf8_lossy(name), None);
            }
        }
    }
    Ok(Record::new(offset, stored_at, message))
}

/// Reads an entry that another program added: its `payload`, or its only field, is the payload; all fields are headers.
fn decode_foreign(entry: &Entry) -> Record {
    let mut payload = None;
    let mut fields = 0;
    for (name, value) in entry.pairs() {
        fields += 1;
        if fields == 1 || &name[..] == b"payload" {
            payload = Some(value.clone());
        }
    }
    if fields != 1 && entry.field("payload").is_none() {
        payload = Some(Bytes::new());
    }
    let mut message = Message::from_parts(payload, None);
    let headers = message.headers_mut();
    for (name, value) in entry.pairs() {
        headers.append_raw(String::from_utf8_lossy(name), Some(value.clone()));
    }
    let stored_at = Timestamp::from_millis(i64::try_from(entry.id.ms).unwrap_or(i64::MAX));
    Record::new(entry.id.offset(), stored_at, message)
}

pub(crate) fn stamp_of(entry: &Entry) -> Result<Timestamp> {
    match entry.version_field("a message")? {
        Some(stamp) => millis(stamp).ok_or_else(|| error::protocol("a message whose time is no number")),
        None => Ok(Timestamp::from_millis(
            i64::try_from(entry.id.ms).unwrap_or(i64::MAX),
        )),
    }
}

fn millis(text: &[u8]) -> Option<Timestamp> {
    std::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use mq_api::ErrorKind;

    use super::*;

    fn entry(id: &str, fields: &[&str]) -> Entry {
        Entry {
            id: EntryId::parse(id.as_bytes()).unwrap(),
            fields: fields
                .iter()
                .map(|field| Reply::Text(Bytes::copy_from_slice(field.as_bytes())))
                .collect(),
        }
    }

    fn written(message: &Message) -> Vec<String> {
        let mut fields = Vec::new();
        encode(message, "1789560000000", |field| {
            fields.push(String::from_utf8(field.to_vec()).unwrap());
        });
        assert_eq!(fields.len(), field_count(message));
        fields
    }

    #[test]
    fn version_one_of_a_message_is_frozen() {
        let message = Message::new("paid")
            .with_key("user-7")
            .with_id("n1")
            .with_timestamp(Timestamp::from_millis(-5))
            .with_header("source", "checkout")
            .with_header("empty", "");
        let golden = [
            "mq1",
            "1789560000000",
            "key",
            "user-7",
            "payload",
            "paid",
            "id",
            "n1",
            "ts",
            "-5",
            "h:source",
            "checkout",
            "h:empty",
            "",
        ];
        assert_eq!(written(&message), golden);
        let read = decode(&entry("0-8", &golden)).unwrap();
        assert_eq!(read.offset, 7);
        assert_eq!(read.stored_at.as_millis(), 1_789_560_000_000);
        assert_eq!(read.message, message);
    }

    #[test]
    fn a_tombstone_is_not_an_empty_payload() {
        assert_eq!(
            written(&Message::tombstone("k")),
            ["mq1", "1789560000000", "key", "k"]
        );
        assert_eq!(
            written(&Message::new("")),
            ["mq1", "1789560000000", "payload", ""]
        );
        assert!(
            decode(&entry("0-1", &["mq1", "1", "key", "k"]))
                .unwrap()
                .message
                .is_tombstone()
        );
        assert!(
            !decode(&entry("0-1", &["mq1", "1", "payload", ""]))
                .unwrap()
                .message
                .is_tombstone()
        );
    }

    #[test]
    fn unknown_fields_are_skipped_and_a_newer_version_is_an_error() {
        let read = decode(&entry("0-1", &["mq1", "1", "payload", "x", "colour", "red"])).unwrap();
        assert_eq!(read.message, Message::new("x"));
        let error = decode(&entry("0-1", &["mq2", "1", "payload", "x"])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.context().contains("version 2"), "{error}");
        assert!(decode(&entry("0-1", &["mq1", "soon"])).is_err());
    }

    #[test]
    fn what_others_added_can_be_read() {
        let read = decode(&entry("1789560000000-3", &["temperature", "21"])).unwrap();
        assert_eq!(read.message.payload_or_empty(), b"21");
        assert_eq!(read.message.headers().text("temperature"), Some("21"));
        assert_eq!(read.stored_at.as_millis(), 1_789_560_000_000);
        let id = EntryId {
            ms: 1_789_560_000_000,
            seq: 3,
        };
        assert_eq!(EntryId::of_foreign(read.offset), id);
        let several = decode(&entry("5-0", &["a", "1", "payload", "2"])).unwrap();
        assert_eq!(several.message.payload_or_empty(), b"2");
        assert!(
            decode(&entry("5-0", &["a", "1", "b", "2"]))
                .unwrap()
                .message
                .payload_or_empty()
                .is_empty()
        );
    }
}
