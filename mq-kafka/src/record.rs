//! Messages as Kafka records, and back.

use bytes::{Bytes, BytesMut};
use mq_api::{Message, Offset, Timestamp, driver::Record};
use rdkafka::message::{Header, OwnedHeaders};

use crate::ffi::RawMessage;

/// Carries the sender's id.
const ID: &str = "mq-id";
/// Marks a record whose time the sender has set. Empty where the record has that time; else the time itself, which a
/// record cannot have: 0 means "now" to the library, and below it there is none.
const TIMESTAMP: &str = "mq-timestamp";

/// Returns the headers of a record; none where there is nothing to say.
pub(crate) fn headers(message: &Message) -> Option<OwnedHeaders> {
    let time = message.timestamp();
    let count = message.headers().len() + usize::from(message.id().is_some()) + usize::from(time.is_some());
    if count == 0 {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(count);
    for header in message.headers().iter() {
        headers = headers.insert(Header {
            key: header.name(),
            value: header.value().map(|value| &**value),
        });
    }
    if let Some(id) = message.id() {
        headers = headers.insert(Header {
            key: ID,
            value: Some(id),
        });
    }
    if let Some(time) = time {
        let odd = time.as_millis() <= 0;
        let value = if odd {
            time.as_millis().to_string()
        } else {
            String::new()
        };
        headers = headers.insert(Header {
            key: TIMESTAMP,
            value: Some(&value),
        });
    }
    Some(headers)
}

/// Returns the time of a record; none: the time of sending.
pub(crate) fn timestamp(message: &Message) -> Option<i64> {
    message
        .timestamp()
        .map(Timestamp::as_millis)
        .filter(|time| *time > 0)
}

/// Copies messages out of librdkafka's memory into one buffer that they share.
pub(crate) struct Copier {
    buffer: BytesMut,
}

impl Copier {
    /// Makes room for these messages.
    pub(crate) fn for_all<'a>(messages: impl Iterator<Item = RawMessage<'a>>) -> Self {
        let size = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        Self {
            buffer: BytesMut::with_capacity(messages.map(|raw| size(raw.payload()) + size(raw.key())).sum()),
        }
    }

    pub(crate) fn record(&mut self, offset: Offset, raw: RawMessage<'_>) -> Record {
        let payload = raw.payload().map(|bytes| self.copy(bytes));
        let key = raw.key().map(|bytes| self.copy(bytes));
        let mut message = Message::from_parts(payload, key);
        let at = raw.timestamp().filter(|at| *at >= 0);
        let mut sent_at = None;
        for (name, value) in raw.headers() {
            match (name, value.map(std::str::from_utf8)) {
                (b"mq-id", Some(Ok(id))) => message = message.with_id(id),
                (b"mq-timestamp", Some(Ok(time))) => sent_at = time.parse().ok().or(at),
                _ => {
                    let name = String::from_utf8_lossy(name);
                    message
                        .headers_mut()
                        .append_raw(name, value.map(Bytes::copy_from_slice));
                }
            }
        }
        if let Some(at) = sent_at {
            message = message.with_timestamp(Timestamp::from_millis(at));
        }
        Record::new(offset, Timestamp::from_millis(at.unwrap_or(0)), message)
    }

    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        self.buffer.extend_from_slice(bytes);
        self.buffer.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::message::Headers as _;

    #[test]
    fn headers_go_as_they_are_with_the_id_and_an_odd_time_behind_them() {
        let message = Message::new("x")
            .with_header("a", "1")
            .with_header("empty", "")
            .with_id("i")
            .with_timestamp(Timestamp::from_millis(0));
        let headers = headers(&message).unwrap();
        let all: Vec<_> = (0..headers.count())
            .map(|at| headers.get(at))
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect();
        assert_eq!(
            all,
            [
                ("a".to_owned(), Some(b"1".to_vec())),
                ("empty".to_owned(), Some(Vec::new())),
                ("mq-id".to_owned(), Some(b"i".to_vec())),
                ("mq-timestamp".to_owned(), Some(b"0".to_vec())),
            ]
        );
        assert_eq!(timestamp(&message), None);
        assert!(super::headers(&Message::new("x")).is_none());
        assert_eq!(
            timestamp(&Message::new("x").with_timestamp(Timestamp::from_millis(5))),
            Some(5)
        );
    }
}
