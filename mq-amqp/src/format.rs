//! How a message is stored: its payload as the body, everything else as headers.
//!
//! | header | holds |
//! |---|---|
//! | `mq1` | when it was sent, in microseconds by the sender's clock; its name carries the format's version |
//! | `key` | the key |
//! | `id`, `ts` | the sender's own id, and its own time in milliseconds |
//! | `due` | when a delayed message was to come, in milliseconds |
//! | `gone` | there is no payload at all |
//! | `h0000:source` | a header of the user, with its place in the order; `n0000:source` where it has no value |
//! | `from`, `at` | partition and offset, in the queue of a shared group |
//! | `begin` | the message is none: the driver puts it first into a stream |
//!
//! Names that the server gives a meaning to (`CC`, `x-...`) are never header names of ours. Unknown headers are skipped.
//!
//! What goes to an exchange that others made is for others to read: the user's headers keep their names, id and time are
//! the protocol's own properties, and `mq-stamp`, `mq-key` and `mq-gone` hold what else there is.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};
use mq_api::{Due, Error, ErrorKind, Message, Offset, Result, Timestamp, driver::Record};

use crate::{error, link::persistent};

const VERSION: &str = "mq1";

/// Makes the properties of a message. The stamp is unique among those under way on a channel.
pub(crate) fn encode(message: &Message, stamp: i64, due: Option<Timestamp>) -> Result<BasicProperties> {
    let mut headers = FieldTable::default();
    headers.insert(VERSION.into(), AMQPValue::LongLongInt(stamp));
    let bytes = |bytes: &[u8]| AMQPValue::LongString(bytes.to_vec().into());
    if let Some(key) = message.key() {
        headers.insert("key".into(), bytes(key));
    }
    if message.payload().is_none() {
        headers.insert("gone".into(), AMQPValue::Boolean(true));
    }
    if let Some(id) = message.id() {
        headers.insert("id".into(), bytes(id.as_bytes()));
    }
    if let Some(timestamp) = message.timestamp() {
        headers.insert("ts".into(), AMQPValue::LongLongInt(timestamp.as_millis()));
    }
    if let Some(due) = due {
        headers.insert("due".into(), AMQPValue::LongLongInt(due.as_millis()));
    }
    for (at, header) in message.headers().iter().enumerate() {
        let mark = if header.value().is_some() { 'h' } else { 'n' };
        let name = format!("{mark}{at:04x}:{}", header.name());
        let name = ShortString::try_new(name).map_err(|_| {
            Error::new(
                ErrorKind::InvalidMessage,
                format!("header {:?}: its name is longer than 248 bytes", header.name()),
            )
        })?;
        headers.insert(name, bytes(header.value().map_or(b"", |value| &value[..])));
    }
    Ok(persistent().with_headers(headers))
}

/// Makes the properties of a message that others read.
pub(crate) fn encode_plain(message: &Message, stamp: i64) -> Result<BasicProperties> {
    let bytes = |bytes: &[u8]| AMQPValue::LongString(bytes.to_vec().into());
    let mut headers = FieldTable::default();
    headers.insert(PLAIN_STAMP.into(), AMQPValue::LongLongInt(stamp));
    if let Some(key) = message.key() {
        headers.insert(PLAIN_KEY.into(), bytes(key));
    }
    if message.payload().is_none() {
        headers.insert(PLAIN_GONE.into(), AMQPValue::Boolean(true));
    }
    let too_long = |what: &str| {
        Error::new(
            ErrorKind::InvalidMessage,
            format!("{what} is longer than 255 bytes"),
        )
    };
    for header in message.headers().iter() {
        let name = ShortString::try_new(header.name())
            .map_err(|_| too_long(&format!("the name of header {:?}", header.name())))?;
        let value = header.value().map_or(AMQPValue::Void, |value| bytes(&value[..]));
        headers.insert(name, value);
    }
    let mut properties = persistent().with_headers(headers);
    if let Some(id) = message.id() {
        properties = properties.with_message_id(ShortString::try_new(id).map_err(|_| too_long("the id"))?);
    }
    if let Some(seconds) = message
        .timestamp()
        .and_then(|at| u64::try_from(at.as_millis() / 1000).ok())
    {
        properties = properties.with_timestamp(seconds);
    }
    Ok(properties)
}

const PLAIN_STAMP: &str = "mq-stamp";
const PLAIN_KEY: &str = "mq-key";
const PLAIN_GONE: &str = "mq-gone";
/// What the server puts in when it hands out.
const OF_THE_SERVER: [&str; 3] = ["x-stream-offset", "x-delivery-count", "x-acquired-count"];

/// Tells whether a message comes out of a stream.
pub(crate) fn is_of_stream(properties: &BasicProperties) -> bool {
    let headers = properties.headers().as_ref();
    headers.is_some_and(|headers| headers.contains_key("x-stream-offset"))
}

/// Makes the properties of what stands first in a stream: with it a stream is never empty, and its end can be found.
pub(crate) fn encode_begin(stamp: i64) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(VERSION.into(), AMQPValue::LongLongInt(stamp));
    headers.insert("begin".into(), AMQPValue::Boolean(true));
    persistent().with_headers(headers)
}

/// Says when a message is due, by the sender's clock.
pub(crate) fn due_at(due: Due, now: Timestamp) -> Timestamp {
    match due {
        Due::After(delay) => now.saturating_add(delay),
        Due::At(at) => at,
    }
}

/// Returns the time in microseconds.
pub(crate) fn now_micros() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

pub(crate) fn stamp_of(properties: &BasicProperties) -> Option<i64> {
    let headers = properties.headers().as_ref()?;
    number(headers, VERSION).or_else(|| number(headers, PLAIN_STAMP))
}

/// Returns the offset of a message of a stream.
pub(crate) fn offset_of(delivery: &Delivery) -> Result<Offset> {
    delivery
        .properties
        .headers()
        .as_ref()
        .and_then(|headers| number(headers, "x-stream-offset"))
        .and_then(|offset| u64::try_from(offset).ok())
        .ok_or_else(|| error::protocol("a message of a stream without its offset"))
}

pub(crate) fn is_begin(properties: &BasicProperties) -> bool {
    properties
        .headers()
        .as_ref()
        .is_some_and(|headers| headers.contains_key("begin") && headers.contains_key(VERSION))
}

/// Says when a message was stored, as far as its headers tell.
pub(crate) fn stored_at(properties: &BasicProperties) -> Timestamp {
    let headers = properties.headers().as_ref();
    let due = headers.and_then(|headers| number(headers, "due"));
    let stamp = stamp_of(properties);
    let millis = due.or(stamp.map(|micros| micros.div_euclid(1000)));
    Timestamp::from_millis(millis.unwrap_or_else(|| {
        let seconds = properties.timestamp().unwrap_or(0);
        i64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
    }))
}

/// Reads a message, one of ours or one that others sent. `Ok(None)`: it is none.
pub(crate) fn decode(offset: Offset, properties: &BasicProperties, body: Vec<u8>) -> Result<Option<Record>> {
    let empty = FieldTable::default();
    let headers = properties.headers().as_ref().unwrap_or(&empty);
    check_version(headers)?;
    if is_begin(properties) {
        return Ok(None);
    }
    let ours = headers.contains_key(VERSION);
    let gone = if ours { "gone" } else { PLAIN_GONE };
    let payload = (!headers.contains_key(gone)).then(|| Bytes::from(body));
    let mut message = Message::from_parts(payload, None);
    if ours {
        for (name, value) in headers.inner() {
            match name.as_str() {
                "key" => {
                    if let Some(key) = bytes_of(value) {
                        message = message.with_key(key);
                    }
                }
                "id" => {
                    if let Some(id) = bytes_of(value) {
                        message = message.with_id(String::from_utf8_lossy(&id).into_owned());
                    }
                }
                "ts" => {
                    if let Some(millis) = value_number(value) {
                        message = message.with_timestamp(Timestamp::from_millis(millis));
                    }
                }
                // The table is sorted by name: headers come in the order of their places, but first all that have a
                // value and then those that have none.
                other => {
                    if let Some((has_value, name)) = user_header(other) {
                        let value = if has_value { bytes_of(value) } else { None };
                        message.headers_mut().append_raw(name, value);
                    }
                }
            }
        }
    } else {
        if let Some(id) = properties.message_id() {
            message = message.with_id(id.as_str());
        }
        if let Some(key) = headers.inner().get(PLAIN_KEY).and_then(bytes_of) {
            message = message.with_key(key);
        }
        for (name, value) in headers.inner() {
            let name = name.as_str();
            if !OF_THE_SERVER.contains(&name) && ![PLAIN_STAMP, PLAIN_KEY, PLAIN_GONE].contains(&name) {
                message
                    .headers_mut()
                    .append_raw(name, bytes_of(value).or_else(|| text_of(value)));
            }
        }
    }
    Ok(Some(Record::new(offset, stored_at(properties), message)))
}

fn user_header(name: &str) -> Option<(bool, &str)> {
    let has_value = match name.as_bytes().first()? {
        b'h' => true,
        b'n' => false,
        _ => return None,
    };
    let place = name.get(1..5)?;
    (place.bytes().all(|b| b.is_ascii_hexdigit()) && name.as_bytes().get(5) == Some(&b':'))
        .then(|| (has_value, name.get(6..).unwrap_or_default()))
}

/// A later version of ours has another name in the place of `mq1`.
fn check_version(headers: &FieldTable) -> Result<()> {
    for name in headers.inner().keys() {
        if let Some(version) = name.as_str().strip_prefix("mq")
            && version != "1"
            && !version.is_empty()
            && version.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(error::newer_format("a message", version));
        }
    }
    Ok(())
}

pub(crate) fn number(headers: &FieldTable, name: &str) -> Option<i64> {
    value_number(headers.inner().get(name)?)
}

fn value_number(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        AMQPValue::LongUInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::Timestamp(number) => i64::try_from(*number).ok(),
        _ => None,
    }
}

fn bytes_of(value: &AMQPValue) -> Option<Bytes> {
    match value {
        AMQPValue::LongString(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => Some(Bytes::copy_from_slice(bytes.as_slice())),
        AMQPValue::ShortString(text) => Some(Bytes::copy_from_slice(text.as_str().as_bytes())),
        _ => None,
    }
}

/// Numbers and switches that others set.
fn text_of(value: &AMQPValue) -> Option<Bytes> {
    match value {
        AMQPValue::Boolean(set) => Some(Bytes::from(set.to_string())),
        AMQPValue::Double(number) => Some(Bytes::from(number.to_string())),
        AMQPValue::Float(number) => Some(Bytes::from(number.to_string())),
        other => value_number(other).map(|number| Bytes::from(number.to_string())),
    }
}

/// Names the headers of a stored message, for tests of what is frozen.
#[cfg(test)]
fn names(properties: &BasicProperties) -> Vec<String> {
    properties
        .headers()
        .iter()
        .flat_map(|headers| headers.inner().keys())
        .map(|name| name.as_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::text;

    fn again(message: &Message) -> Record {
        let properties = encode(message, 1_789_560_000_000_007, None).unwrap();
        let body = message.payload_or_empty().to_vec();
        decode(7, &properties, body).unwrap().unwrap()
    }

    #[test]
    fn version_one_of_a_message_is_frozen() {
        let message = Message::new("paid")
            .with_key("user-7")
            .with_id("n1")
            .with_timestamp(Timestamp::from_millis(-5))
            .with_header("source", "checkout")
            .with_header("CC", &b"\x00\xff"[..])
            .with_header("x-a", "");
        let properties = encode(&message, 1_789_560_000_000_007, None).unwrap();
        assert_eq!(
            names(&properties),
            ["h0000:source", "h0001:CC", "h0002:x-a", "id", "key", "mq1", "ts"]
        );
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(stamp_of(&properties), Some(1_789_560_000_000_007));
        let read = again(&message);
        assert_eq!(read.offset, 7);
        assert_eq!(read.stored_at.as_millis(), 1_789_560_000_000);
        assert_eq!(read.message, message);
    }

    #[test]
    fn a_tombstone_is_not_an_empty_payload() {
        assert!(again(&Message::tombstone("k")).message.is_tombstone());
        let empty = Message::new("").with_key("");
        assert_eq!(again(&empty).message, empty);
    }

    #[test]
    fn what_stands_first_is_no_message_and_a_newer_version_is_an_error() {
        assert!(decode(0, &encode_begin(5), Vec::new()).unwrap().is_none());
        let mut headers = FieldTable::default();
        headers.insert("mq2".into(), AMQPValue::LongLongInt(1));
        let newer = BasicProperties::default().with_headers(headers);
        let error = decode(0, &newer, Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.context().contains("version 2"), "{error}");
    }

    #[test]
    fn what_others_sent_can_be_read() {
        let mut headers = FieldTable::default();
        headers.insert("temperature".into(), AMQPValue::LongInt(21));
        headers.insert("place".into(), text("attic"));
        headers.insert("x-stream-offset".into(), AMQPValue::LongLongInt(3));
        let foreign = BasicProperties::default()
            .with_headers(headers)
            .with_timestamp(1_789_560_000);
        let read = decode(3, &foreign, b"x".to_vec()).unwrap().unwrap();
        assert_eq!(read.message.headers().text("temperature"), Some("21"));
        assert_eq!(read.message.headers().text("place"), Some("attic"));
        assert_eq!(read.message.headers().len(), 2);
        assert_eq!(read.stored_at.as_millis(), 1_789_560_000_000);
    }

    #[test]
    fn what_others_read_has_plain_headers_and_comes_back_whole() {
        let message = Message::new("x")
            .with_key("k")
            .with_id("n1")
            .with_header("place", "attic");
        let properties = encode_plain(&message, 1_789_560_000_000_007).unwrap();
        assert_eq!(names(&properties), ["mq-key", "mq-stamp", "place"]);
        assert_eq!(properties.message_id().as_ref().map(|id| id.as_str()), Some("n1"));
        assert_eq!(stamp_of(&properties), Some(1_789_560_000_000_007));
        let read = decode(0, &properties, b"x".to_vec()).unwrap().unwrap();
        assert_eq!(read.message, message);
        let gone = encode_plain(&Message::tombstone("k"), 1).unwrap();
        assert!(
            decode(0, &gone, Vec::new())
                .unwrap()
                .unwrap()
                .message
                .is_tombstone()
        );
        let long = Message::new("x").with_header("n".repeat(256), "v");
        assert_eq!(
            encode_plain(&long, 1).unwrap_err().kind(),
            ErrorKind::InvalidMessage
        );
    }

    #[test]
    fn a_header_name_that_does_not_fit_is_an_error_and_no_panic() {
        let message = Message::new("x").with_header("n".repeat(250), "v");
        assert_eq!(
            encode(&message, 1, None).unwrap_err().kind(),
            ErrorKind::InvalidMessage
        );
    }
}
