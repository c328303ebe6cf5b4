//! Messages as RocketMQ stores them: a body and properties.
//!
//! | property | what it holds |
//! |---|---|
//! | `UNIQ_KEY` | the id that RocketMQ's tools read |
//! | `KEYS` | the key |
//! | `TAGS` | the value of the tag header, where one is set |
//! | `mq-id`, `mq-time` | the sender's id, and time in milliseconds |
//! | `mq-body` | `null` for a tombstone; `empty` where one byte stands for an empty payload |
//! | `mq-order` | where headers are not in the order of their names: the place of each in that order |
//! | any other | a header; `%n` before a name that RocketMQ interprets, other escapes as of values |

use std::{borrow::Cow, fmt::Write};

use bytes::Bytes;
use mq_api::{Headers, Message, Timestamp, driver::Record};

use crate::remoting::{PropertyWriter, RemotingError, StoredMessage, decode_value, encode_value};

const KEYS: &str = "KEYS";
const TAGS: &str = "TAGS";
const ID: &str = "mq-id";
const TIME: &str = "mq-time";
const BODY: &str = "mq-body";
const ORDER: &str = "mq-order";
/// Before a name that RocketMQ or this driver would interpret.
const PLAIN_NAME: &str = "%n";

/// The names that RocketMQ gives a meaning, of any version.
const SYSTEM: &[&str] = &[
    "BNAME",
    "BORN_HOST",
    "BORN_TIMESTAMP",
    "BUYER_ID",
    "CLUSTER",
    "CONSUME_START_TIME",
    "CORRELATION_ID",
    "CRC32",
    "DELAY",
    "DLQ_ORIGIN_MESSAGE_ID",
    "DLQ_ORIGIN_TOPIC",
    "EXTEND_UNIQ_INFO",
    "INNER_BASE",
    "INNER_MULTI_DISPATCH",
    "INNER_MULTI_QUEUE_OFFSET",
    "INNER_NUM",
    "INSTANCE_ID",
    "KEYS",
    "MAX_OFFSET",
    "MAX_RECONSUME_TIMES",
    "MESSAGE_REPLY_TO_CLIENT",
    "MIN_OFFSET",
    "MQ_BODY",
    "MSG_REGION",
    "MSG_TYPE",
    "ORIGIN_GROUP",
    "ORIGIN_MESSAGE_ID",
    "PGROUP",
    "POP_CK",
    "POP_CK_OFFSET",
    "PUSH_REPLY_TIME",
    "REAL_QID",
    "REAL_TOPIC",
    "RECONSUME_TIME",
    "REDIRECT",
    "REPLY_TO_CLIENT",
    "REPLY_MESSAGE_ARRIVE_TIME",
    "RETRY_TOPIC",
    "SEND_MESSAGE_BACK_TO_CLIENT",
    "TAGS",
    "TIMER_DELAY_LEVEL",
    "TIMER_DELAY_MS",
    "TIMER_DELAY_SEC",
    "TIMER_DELIVER_MS",
    "TIMER_DEL_UNIQKEY",
    "TIMER_DEQUEUE_MS",
    "TIMER_ENQUEUE_MS",
    "TIMER_LOG_ROLL",
    "TIMER_OUT_MS",
    "TIMER_ROLL_LABEL",
    "TIMER_ROLL_TIMES",
    "TRACE_ON",
    "TRACE_SWITCH",
    "TRANSFER_FLAG",
    "TRANSACTION_CHECK_TIMES",
    "TRANSACTION_ID",
    "TRANSACTION_PREPARED_QUEUE_OFFSET",
    "TRAN_MSG",
    "TRAN_PREPARED_QUEUE_OFFSET",
    "TTL",
    "UNIQ_KEY",
    "WAIT",
    "1ST_POP_TIME",
    "CHECK_IMMUNITY_TIME_IN_SECONDS",
    ID,
    TIME,
    BODY,
    ORDER,
];

fn is_system(name: &str) -> bool {
    name.starts_with("__") || SYSTEM.contains(&name)
}

/// What stands for a payload that a single send cannot carry.
pub(crate) const PLACEHOLDER: &[u8] = b"0";

/// Says how the body of a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyForm {
    /// Within a batch, where a body may be empty.
    Batched,
    /// Alone, where a broker fails on an empty body.
    Single,
}

/// Returns the bytes to send as a message's body.
pub(crate) fn body(message: &Message, form: BodyForm) -> &[u8] {
    match message.payload_or_empty() {
        [] if form == BodyForm::Single => PLACEHOLDER,
        payload => payload,
    }
}

/// Writes the properties of a message, but for its delay.
pub(crate) fn write_properties(
    out: &mut PropertyWriter<'_>,
    message: &Message,
    unique_key: &str,
    tag_header: Option<&str>,
    form: BodyForm,
) -> Result<(), RemotingError> {
    out.put("UNIQ_KEY", unique_key)?;
    if let Some(key) = message.key() {
        out.put(KEYS, &encode_value(key))?;
    }
    if let Some(id) = message.id() {
        out.put(ID, &encode_value(id.as_bytes()))?;
    }
    if let Some(time) = message.timestamp() {
        out.put(TIME, &time.as_millis().to_string())?;
    }
    if message.is_tombstone() {
        out.put(BODY, "null")?;
    } else if form == BodyForm::Single && message.payload_or_empty().is_empty() {
        out.put(BODY, "empty")?;
    }
    let mut names: Vec<Cow<'_, str>> = Vec::new();
    for header in message.headers().iter() {
        let value = header.value().map(|value| &value[..]).unwrap_or_default();
        if Some(header.name()) == tag_header && !value.is_empty() {
            out.put(TAGS, &encode_value(value))?;
            continue;
        }
        let name = property_name(header.name());
        out.put(&name, &encode_value(value))?;
        names.push(name);
    }
    // Brokers that parse properties keep them in a hash map.
    if !names.is_sorted() {
        out.put(ORDER, &places(&names))?;
    }
    Ok(())
}

fn property_name(name: &str) -> Cow<'_, str> {
    if is_system(name) {
        Cow::Owned(format!("{PLAIN_NAME}{name}"))
    } else {
        encode_value(name.as_bytes())
    }
}

fn header_name(property: &str) -> Cow<'_, str> {
    if let Some(name) = property.strip_prefix(PLAIN_NAME) {
        return Cow::Borrowed(name);
    }
    match decode_value(property) {
        Ok(Cow::Owned(bytes)) => String::from_utf8(bytes).map_or(Cow::Borrowed(property), Cow::Owned),
        _ => Cow::Borrowed(property),
    }
}

/// For each name in the order given, its place among them sorted.
fn places(names: &[Cow<'_, str>]) -> String {
    let mut sorted: Vec<usize> = (0..names.len()).collect();
    sorted.sort_by_key(|at| names.get(*at));
    let mut place = vec![0; names.len()];
    for (rank, at) in sorted.into_iter().enumerate() {
        if let Some(slot) = place.get_mut(at) {
            *slot = rank;
        }
    }
    let mut text = String::with_capacity(names.len() * 3);
    for rank in place {
        // Writing into a string cannot fail.
        let _ = write!(text, "{}{rank}", if text.is_empty() { "" } else { "." });
    }
    text
}

fn value(text: &str) -> Bytes {
    // What others wrote and only looks like an escape is taken as it is.
    match decode_value(text) {
        Ok(bytes) => Bytes::copy_from_slice(&bytes),
        Err(_) => Bytes::copy_from_slice(text.as_bytes()),
    }
}

/// Reads a message.
pub(crate) fn decode(
    stored: &StoredMessage,
    tag_header: Option<&str>,
    max_payload: usize,
) -> Result<Record, RemotingError> {
    let payload = stored.payload(max_payload)?;
    let (mut key, mut id, mut time, mut form, mut order) = (None, None, None, None, None);
    let mut headers: Vec<(&str, Bytes)> = Vec::new();
    let mut tag = None;
    for (name, text) in stored.properties() {
        match name {
            KEYS => key = Some(value(text)),
            TAGS => tag = Some(value(text)),
            ID => id = String::from_utf8(value(text).to_vec()).ok(),
            TIME => time = text.parse().ok().map(Timestamp::from_millis),
            BODY => form = Some(text),
            ORDER => order = Some(text),
            _ if is_system(name) => {}
            _ => headers.push((name, value(text))),
        }
    }
    let payload = match form {
        Some("null") => None,
        Some("empty") => Some(Bytes::new()),
        _ => Some(payload),
    };
    let mut message = Message::from_parts(payload, key);
    if let Some(id) = id {
        message = message.with_id(id);
    }
    if let Some(time) = time {
        message = message.with_timestamp(time);
    }
    if !headers.is_empty() || tag.is_some() {
        *message.headers_mut() = in_order(headers, order, tag_header.unwrap_or(TAGS), tag);
    }
    let offset = u64::try_from(stored.offset).unwrap_or(0);
    Ok(Record::new(
        offset,
        Timestamp::from_millis(stored.stored),
        message,
    ))
}

fn in_order(
    mut headers: Vec<(&str, Bytes)>,
    order: Option<&str>,
    tag_name: &str,
    tag: Option<Bytes>,
) -> Headers {
    headers.sort_by_key(|(name, _)| *name);
    let places: Option<Vec<usize>> =
        order.and_then(|text| text.split('.').map(|place| place.parse().ok()).collect());
    let mut result = Headers::new();
    match places {
        Some(places) if places.len() == headers.len() => {
            for (name, value) in places.iter().filter_map(|place| headers.get(*place)) {
                result.append(header_name(name), value.clone());
            }
        }
        _ => {
            for (name, value) in headers {
                result.append(header_name(name), value);
            }
        }
    }
    if let Some(tag) = tag {
        result.append(tag_name, tag);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use bytes::BytesMut;

    use super::*;

    fn properties(message: &Message, tag: Option<&str>, form: BodyForm) -> String {
        let mut out = BytesMut::new();
        write_properties(&mut PropertyWriter::new(&mut out), message, "U", tag, form).unwrap();
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn stored(body: &[u8], properties: &str) -> StoredMessage {
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        StoredMessage {
            long_topic: false,
            body_crc: 0,
            queue: 0,
            flag: 0,
            offset: 7,
            physical_offset: 0,
            sys_flag: 0,
            born: 0,
            born_host: host,
            stored: 5,
            store_host: host,
            reconsume_times: 0,
            prepared_offset: 0,
            body: Bytes::copy_from_slice(body),
            topic: Bytes::from_static(b"t"),
            properties: Bytes::copy_from_slice(properties.as_bytes()),
        }
    }

    /// As a broker does that keeps properties in a map.
    fn shuffled(text: &str) -> String {
        text.split_terminator('\u{2}')
            .rev()
            .map(|part| format!("{part}\u{2}"))
            .collect()
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        for message in [
            Message::new(""),
            Message::new("x").with_key("").with_id("i\u{1}d"),
            Message::tombstone(vec![0, 255]),
            Message::new("x")
                .with_header("z", "1")
                .with_header("TAGS", "plain")
                .with_header("DELAY", "")
                .with_header("a\u{1}b", vec![1, 2])
                .with_header("%n", "%t")
                .with_header("mq-id", "later")
                .with_timestamp(Timestamp::from_millis(-4)),
        ] {
            for form in [BodyForm::Batched, BodyForm::Single] {
                let text = properties(&message, None, form);
                for text in [text.clone(), shuffled(&text)] {
                    let record = decode(&stored(body(&message, form), &text), None, 1024).unwrap();
                    assert_eq!(record.message, message, "{text:?}");
                    assert_eq!((record.offset, record.stored_at.as_millis()), (7, 5));
                }
            }
        }
    }

    #[test]
    fn the_properties_of_version_1_stand() {
        let message = Message::new("x")
            .with_key("user-7")
            .with_id("i")
            .with_timestamp(Timestamp::from_millis(9))
            .with_header("b", "1")
            .with_header("a", "\0");
        assert_eq!(
            properties(&message, None, BodyForm::Batched),
            "UNIQ_KEY\u{1}U\u{2}KEYS\u{1}user-7\u{2}mq-id\u{1}i\u{2}mq-time\u{1}9\u{2}b\u{1}1\u{2}a\u{1}%bAA\u{2}\
             mq-order\u{1}1.0\u{2}"
        );
    }

    #[test]
    fn tags_and_keys_of_others_are_read() {
        let text = "KEYS\u{1}k\u{2}TAGS\u{1}red\u{2}colour\u{1}%zz\u{2}WAIT\u{1}true\u{2}";
        let message = decode(&stored(b"x", text), None, 1024).unwrap().message;
        let expected = Message::new("x")
            .with_key("k")
            .with_header("colour", "%zz")
            .with_header("TAGS", "red");
        assert_eq!(message, expected);
        let tagged = Message::new("x").with_header("kind", "red");
        let text = properties(&tagged, Some("kind"), BodyForm::Batched);
        assert!(text.contains("TAGS\u{1}red"), "{text:?}");
        assert_eq!(
            decode(&stored(b"x", &text), Some("kind"), 9).unwrap().message,
            tagged
        );
    }
}
