//! The receipts of POP, which clients build themselves.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::RemotingError;

/// Which topic a popped message is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PopTopicKind {
    /// The topic itself.
    Plain,
    /// The group's retry topic, named `%RETRY%group_topic`.
    RetryV1,
    /// The group's retry topic, named `%RETRY%group+topic`.
    RetryV2,
}

impl PopTopicKind {
    /// Tells the kind by the name of a stored topic.
    pub fn of(topic: &str) -> Self {
        match topic.strip_prefix("%RETRY%") {
            None => Self::Plain,
            Some(rest) if rest.contains('+') => Self::RetryV2,
            Some(_) => Self::RetryV1,
        }
    }

    /// The digit on the wire.
    pub fn digit(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::RetryV1 => "1",
            Self::RetryV2 => "2",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "0" => Some(Self::Plain),
            "1" => Some(Self::RetryV1),
            "2" => Some(Self::RetryV2),
            _ => None,
        }
    }

    /// The topic to name when the message is settled. Settling a retried message on the plain topic succeeds and
    /// does nothing.
    pub fn stored_topic<'a>(self, topic: &'a str, group: &str) -> Cow<'a, str> {
        match self {
            Self::Plain => Cow::Borrowed(topic),
            Self::RetryV1 => Cow::Owned(format!("%RETRY%{group}_{topic}")),
            Self::RetryV2 => Cow::Owned(format!("%RETRY%{group}+{topic}")),
        }
    }
}

/// The right to settle one popped message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PopReceipt {
    /// The first offset that the pop handed out of this queue.
    pub start_offset: i64,
    /// When it was popped, in milliseconds since the epoch of the broker's clock.
    pub pop_time: i64,
    /// The lease in milliseconds.
    pub invisible_ms: i64,
    /// The queue of the broker that brings it back.
    pub revive_queue: i32,
    /// The topic it is stored in.
    pub kind: PopTopicKind,
    /// The broker.
    pub broker: Box<str>,
    /// The queue.
    pub queue: i32,
    /// The offset in the queue.
    pub offset: i64,
}

impl fmt::Display for PopReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            start_offset,
            pop_time,
            invisible_ms,
            revive_queue,
            kind,
            broker,
            queue,
            offset,
        } = self;
        let kind = kind.digit();
        write!(
            f,
            "{start_offset} {pop_time} {invisible_ms} {revive_queue} {kind} {broker} {queue} {offset}"
        )
    }
}

impl FromStr for PopReceipt {
    type Err = RemotingError;

    /// Reads a receipt, as the property `POP_CK` has it.
    fn from_str(text: &str) -> Result<Self, RemotingError> {
        let broken = || RemotingError::malformed("receipt", "not eight fields of its types");
        let mut fields = text.split(' ');
        let mut next = || fields.next().ok_or_else(broken);
        let receipt = Self {
            start_offset: next()?.parse().map_err(|_| broken())?,
            pop_time: next()?.parse().map_err(|_| broken())?,
            invisible_ms: next()?.parse().map_err(|_| broken())?,
            revive_queue: next()?.parse().map_err(|_| broken())?,
            kind: PopTopicKind::parse(next()?).ok_or_else(broken)?,
            broker: next()?.into(),
            queue: next()?.parse().map_err(|_| broken())?,
            offset: next()?.parse().map_err(|_| broken())?,
        };
        if fields.next().is_some() {
            Err(broken())
        } else {
            Ok(receipt)
        }
    }
}

/// The first offsets that one pop handed out, by topic kind and queue: `kind queue offset;kind queue offset`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartOffsets(Vec<(PopTopicKind, i32, i64)>);

impl StartOffsets {
    /// Reads the answer's field `startOffsetInfo`.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the text is not of that form.
    pub fn parse(text: &str) -> Result<Self, RemotingError> {
        let broken = || RemotingError::malformed("start offsets", "not three fields of their types");
        let entry = |part: &str| {
            let mut fields = part.split(' ');
            let kind = fields.next().and_then(PopTopicKind::parse)?;
            let queue = fields.next()?.parse().ok()?;
            let offset = fields.next()?.parse().ok()?;
            fields.next().is_none().then_some((kind, queue, offset))
        };
        let parts = text.split(';').filter(|part| !part.is_empty());
        parts
            .map(|part| entry(part).ok_or_else(broken))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Finds the first offset of a queue.
    pub fn find(&self, kind: PopTopicKind, queue: i32) -> Option<i64> {
        self.0
            .iter()
            .find(|(k, q, _)| *k == kind && *q == queue)
            .map(|(_, _, offset)| *offset)
    }
}

/// Builds the bit set of a batch ack: base64 of little-endian bytes, one bit per offset after `start`.
///
/// Offsets before `start`, or more than 4096 after it, are not part of one pop and are left out.
pub fn ack_bits(start: i64, offsets: impl IntoIterator<Item = i64>) -> String {
    const LIMIT: usize = 4096;
    let mut bits = Vec::new();
    for offset in offsets {
        let Ok(bit) = usize::try_from(offset.wrapping_sub(start)) else {
            continue;
        };
        if bit >= LIMIT {
            continue;
        }
        if bits.len() <= bit / 8 {
            bits.resize(bit / 8 + 1, 0u8);
        }
        if let Some(byte) = bits.get_mut(bit / 8) {
            *byte |= 1 << (bit % 8);
        }
    }
    STANDARD.encode(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_round_trip() {
        for text in ["0 1795243168085 10000 0 0 broker-a 3 1", "5 1 2 999 2 b 0 7"] {
            assert_eq!(text.parse::<PopReceipt>().unwrap().to_string(), text);
        }
        for text in ["", "x y", "0 1 2 3 4 b 0 7", "0 1 2 3 0 b 0", "0 1 2 3 0 b 0 7 8"] {
            assert!(text.parse::<PopReceipt>().is_err(), "{text}");
        }
    }

    #[test]
    fn retried_messages_are_settled_on_the_retry_topic() {
        assert_eq!(PopTopicKind::of("t").stored_topic("t", "g"), "t");
        assert_eq!(
            PopTopicKind::of("%RETRY%g+t").stored_topic("t", "g"),
            "%RETRY%g+t"
        );
        assert_eq!(
            PopTopicKind::of("%RETRY%g_t").stored_topic("t", "g"),
            "%RETRY%g_t"
        );
    }

    #[test]
    fn start_offsets_are_found_by_kind_and_queue() {
        let offsets = StartOffsets::parse("0 3 10;2 3 20").unwrap();
        assert_eq!(offsets.find(PopTopicKind::Plain, 3), Some(10));
        assert_eq!(offsets.find(PopTopicKind::RetryV2, 3), Some(20));
        assert_eq!(offsets.find(PopTopicKind::Plain, 0), None);
        assert!(StartOffsets::parse("0 3").is_err());
        assert!(StartOffsets::parse("9 3 1").is_err());
    }

    #[test]
    fn ack_bits_are_javas_bit_set() {
        assert_eq!(ack_bits(10, [10, 11]), "Aw==");
        assert_eq!(ack_bits(0, [8, -1, i64::MAX]), "AAE=");
    }
}
