//! What is sent and what is received.

use std::{fmt, time::Duration};

use bytes::Bytes;

use crate::{Error, ErrorKind, Headers, Result, Timestamp, headers::RESERVED_PREFIX};

/// The largest payload by default, in bytes: 960 KiB, so that a message fits the default limit of every backend.
pub const DEFAULT_MAX_PAYLOAD: usize = 960 * 1024;

/// The most room that key and headers take together by default, as encoded, in bytes: 16 KiB.
pub const DEFAULT_MAX_METADATA: usize = 16 * 1024;

/// The longest header name, in bytes.
pub const MAX_HEADER_NAME: usize = 200;

/// What each header costs beside its name and value, in bytes, when the room is counted.
const HEADER_OVERHEAD: usize = 8;

/// Carries a payload with an optional key, id, timestamp, delay and headers.
///
/// ```
/// use std::time::Duration;
/// use mq_api::Message;
///
/// let message = Message::new("paid")
///     .with_key("user-7")
///     .with_header("source", "checkout")
///     .with_delay(Duration::from_secs(5));
/// assert_eq!(message.payload().map(|p| &p[..]), Some(&b"paid"[..]));
/// assert_eq!(message.key().map(|k| &k[..]), Some(&b"user-7"[..]));
/// ```
#[derive(Default, PartialEq, Eq)]
pub struct Message {
    payload: Option<Bytes>,
    key: Option<Bytes>,
    // Behind a box: a message with neither costs one pointer, which keeps a stored record of 100 bytes below 256.
    extra: Option<Box<Extra>>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Extra {
    id: Option<String>,
    timestamp: Option<Timestamp>,
    due: Option<Due>,
    headers: Headers,
}

/// Says when a delayed message is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// This long after the backend takes the message.
    After(Duration),
    /// At this time by the backend's clock; each driver's page says which clock that is.
    At(Timestamp),
}

impl Clone for Message {
    /// Shares the bytes.
    // Inlined, each part is made where it is to stand; moved there as a whole, it stalled the processor.
    #[inline(always)]
    fn clone(&self) -> Self {
        Self {
            payload: self.payload.clone(),
            key: self.key.clone(),
            extra: self.extra.clone(),
        }
    }
}

impl Message {
    /// Makes a message of a payload; an empty payload is legal and is not a tombstone.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").payload_or_empty(), b"paid");
    /// assert!(!Message::new("").is_tombstone());
    /// ```
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: Some(payload.into()),
            key: None,
            extra: None,
        }
    }

    /// Makes a message without a payload, which says that what its key names is gone.
    ///
    /// ```
    /// use mq_api::Message;
    /// let message = Message::tombstone("user-7");
    /// assert!(message.is_tombstone() && message.payload().is_none());
    /// assert_eq!(message.key().unwrap(), "user-7");
    /// ```
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self {
            payload: None,
            key: Some(key.into()),
            extra: None,
        }
    }

    /// Makes a message of a payload that may be absent, as drivers read it.
    ///
    /// ```
    /// use mq_api::Message;
    /// let message = Message::from_parts(Some("paid".into()), Some("user-7".into()));
    /// assert_eq!(message, Message::new("paid").with_key("user-7"));
    /// assert!(Message::from_parts(None, Some("user-7".into())).is_tombstone());
    /// ```
    #[must_use]
    pub fn from_parts(payload: Option<Bytes>, key: Option<Bytes>) -> Self {
        Self {
            payload,
            key,
            extra: None,
        }
    }

    /// Sets the key. Messages of one key go to one partition; an empty key is a key.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").with_key("user-7").key().unwrap(), "user-7");
    /// assert!(Message::new("paid").with_key("").key().is_some());
    /// ```
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets an id of the sender's own, which travels as it is.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").with_id("7").id(), Some("7"));
    /// ```
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.extra_mut().id = Some(id.into());
        self
    }

    /// Sets the time that the message tells of, instead of the time when it is stored.
    ///
    /// ```
    /// use mq_api::{Message, Timestamp};
    /// let then = Timestamp::from_millis(1_700_000_000_000);
    /// assert_eq!(Message::new("paid").with_timestamp(then).timestamp(), Some(then));
    /// ```
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: Timestamp) -> Self {
        self.extra_mut().timestamp = Some(timestamp);
        self
    }

    /// Holds the message back for a duration after the backend has taken it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::{Due, Message};
    /// let message = Message::new("remind").with_delay(Duration::from_secs(5));
    /// assert_eq!(message.due(), Some(Due::After(Duration::from_secs(5))));
    /// ```
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.extra_mut().due = Some(Due::After(delay));
        self
    }

    /// Holds the message back until a time by the backend's clock. A time in the past means at once.
    ///
    /// ```
    /// use mq_api::{Due, Message, Timestamp};
    /// let at = Timestamp::from_millis(1_700_000_000_000);
    /// assert_eq!(Message::new("remind").with_deliver_at(at).due(), Some(Due::At(at)));
    /// ```
    #[must_use]
    pub fn with_deliver_at(mut self, at: Timestamp) -> Self {
        self.extra_mut().due = Some(Due::At(at));
        self
    }

    /// Adds a header at the end. Names are unique, not empty, at most 200 bytes, and do not begin with `mq-`;
    /// this is checked when the message is produced.
    ///
    /// ```
    /// use mq_api::Message;
    /// let message = Message::new("paid").with_header("source", "checkout");
    /// assert_eq!(message.headers().text("source"), Some("checkout"));
    /// ```
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers_mut().append(name, value);
        self
    }

    /// Replaces all headers.
    ///
    /// ```
    /// use mq_api::{Headers, Message};
    /// let headers: Headers = [("source", "checkout")].into_iter().collect();
    /// let message = Message::new("paid").with_header("old", "1").with_headers(headers.clone());
    /// assert_eq!(message.headers(), &headers);
    /// ```
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        *self.headers_mut() = headers;
        self
    }

    /// Returns the payload; none for a tombstone.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").payload().unwrap(), "paid");
    /// assert!(Message::tombstone("user-7").payload().is_none());
    /// ```
    #[must_use]
    pub fn payload(&self) -> Option<&Bytes> {
        self.payload.as_ref()
    }

    /// Returns the payload's bytes, empty for a tombstone.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").payload_or_empty(), b"paid");
    /// assert!(Message::tombstone("user-7").payload_or_empty().is_empty());
    /// ```
    #[must_use]
    pub fn payload_or_empty(&self) -> &[u8] {
        self.payload.as_deref().unwrap_or_default()
    }

    /// Tells whether the message has no payload at all.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert!(Message::tombstone("user-7").is_tombstone());
    /// assert!(!Message::new("").with_key("user-7").is_tombstone());
    /// ```
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.payload.is_none()
    }

    /// Returns the key.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").with_key("user-7").key().unwrap(), "user-7");
    /// assert!(Message::new("paid").key().is_none());
    /// ```
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// Returns the sender's id.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").with_id("7").id(), Some("7"));
    /// assert!(Message::new("paid").id().is_none());
    /// ```
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.extra.as_ref().and_then(|extra| extra.id.as_deref())
    }

    /// Returns the time that the sender set.
    ///
    /// ```
    /// use mq_api::{Message, Timestamp};
    /// let then = Timestamp::from_millis(1_700_000_000_000);
    /// assert_eq!(Message::new("paid").with_timestamp(then).timestamp(), Some(then));
    /// assert!(Message::new("paid").timestamp().is_none());
    /// ```
    #[must_use]
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.extra.as_ref().and_then(|extra| extra.timestamp)
    }

    /// Returns when the message is due, where the sender delayed it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::{Due, Message};
    /// let delay = Duration::from_secs(5);
    /// assert_eq!(Message::new("remind").with_delay(delay).due(), Some(Due::After(delay)));
    /// assert!(Message::new("remind").due().is_none());
    /// ```
    #[must_use]
    pub fn due(&self) -> Option<Due> {
        self.extra.as_ref().and_then(|extra| extra.due)
    }

    /// Returns the headers.
    ///
    /// ```
    /// use mq_api::Message;
    /// let message = Message::new("paid").with_header("source", "checkout");
    /// assert_eq!(message.headers().len(), 1);
    /// assert!(Message::new("paid").headers().is_empty());
    /// ```
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.extra.as_ref().map_or(Headers::EMPTY, |extra| &extra.headers)
    }

    /// Returns the headers for change.
    ///
    /// ```
    /// use mq_api::Message;
    /// let mut message = Message::new("paid").with_header("source", "checkout");
    /// message.headers_mut().set("source", "import");
    /// assert_eq!(message.headers().text("source"), Some("import"));
    /// ```
    pub fn headers_mut(&mut self) -> &mut Headers {
        &mut self.extra_mut().headers
    }

    /// Takes the delay away, as a driver does once it is over.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Message;
    /// let mut message = Message::new("remind").with_delay(Duration::from_secs(5));
    /// message.clear_due();
    /// assert!(message.due().is_none());
    /// ```
    pub fn clear_due(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.due = None;
        }
    }

    /// Returns what the message weighs in windows and buffers, in bytes: payload, key, headers and a fixed part.
    ///
    /// ```
    /// use mq_api::Message;
    /// let plain = Message::new("paid");
    /// assert!(plain.weight() > 4);
    /// assert_eq!(plain.clone().with_key("user-7").weight(), plain.weight() + 6);
    /// ```
    #[must_use]
    #[inline]
    pub fn weight(&self) -> usize {
        const FIXED: usize = 96;
        let body = self.payload.as_ref().map_or(0, Bytes::len) + self.key.as_ref().map_or(0, Bytes::len);
        FIXED + body + self.extra.as_ref().map_or(0, |extra| extra.weight())
    }

    /// Returns the room that key, id and headers take together, in bytes.
    ///
    /// ```
    /// use mq_api::Message;
    /// assert_eq!(Message::new("paid").metadata_len(), 0);
    /// assert_eq!(Message::new("paid").with_key("user-7").with_id("42").metadata_len(), 8);
    /// ```
    #[must_use]
    pub fn metadata_len(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.extra.as_ref().map_or(0, |extra| extra.weight())
    }

    /// Copies the bytes out of the buffers that they share with other messages, so that those can be freed.
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use mq_api::Message;
    /// let chunk = Bytes::from(vec![b'x'; 1 << 20]);
    /// let message = Message::from_parts(Some(chunk.slice(..4)), None);
    /// let copy = message.detached();
    /// assert_eq!(copy, message);
    /// assert_ne!(copy.payload().unwrap().as_ptr(), chunk.as_ptr());
    /// ```
    #[must_use]
    pub fn detached(&self) -> Self {
        let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        let mut extra = self.extra.clone();
        if let Some(extra) = &mut extra {
            extra.headers.detach();
        }
        Self {
            payload: self.payload.as_ref().map(copy),
            key: self.key.as_ref().map(copy),
            extra,
        }
    }

    /// Checks the message against the portable rules and these limits.
    ///
    /// ```
    /// use mq_api::{ErrorKind, Message, MessageLimits};
    /// let limits = MessageLimits::default();
    /// assert!(Message::new("paid").with_header("source", "checkout").validate(&limits).is_ok());
    /// let error = Message::new("paid").with_header("mq-source", "checkout").validate(&limits).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidMessage);
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::MessageTooLarge`] for a payload or metadata over the limit, [`ErrorKind::InvalidMessage`] for a
    /// header whose name is empty, too long, used twice or reserved.
    #[inline]
    pub fn validate(&self, limits: &MessageLimits) -> Result<()> {
        let size = self.payload.as_ref().map_or(0, Bytes::len);
        if size <= limits.max_payload && self.key.is_none() && self.extra.is_none() {
            return Ok(());
        }
        self.validate_all(limits)
    }

    fn validate_all(&self, limits: &MessageLimits) -> Result<()> {
        if let Some(payload) = &self.payload
            && payload.len() > limits.max_payload
        {
            return Err(too_large("payload", payload.len(), limits.max_payload));
        }
        let metadata = self.metadata_len();
        if metadata > limits.max_metadata {
            return Err(too_large(
                "key and headers together",
                metadata,
                limits.max_metadata,
            ));
        }
        self.headers().validate()
    }

    fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }
}

fn too_large(what: &str, size: usize, limit: usize) -> Error {
    Error::new(
        ErrorKind::MessageTooLarge,
        format!("{what}: {size} bytes, the limit is {limit}"),
    )
}

impl Extra {
    fn weight(&self) -> usize {
        self.id.as_ref().map_or(0, String::len)
            + self
                .headers
                .iter()
                .map(|header| header.name().len() + header.value().map_or(0, Bytes::len) + HEADER_OVERHEAD)
                .sum::<usize>()
    }
}

/// Bounds what a message may weigh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageLimits {
    /// The largest payload, in bytes. Default 960 KiB.
    pub max_payload: usize,
    /// The most that key, id and headers take together, in bytes. Default 16 KiB.
    pub max_metadata: usize,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self {
            max_payload: DEFAULT_MAX_PAYLOAD,
            max_metadata: DEFAULT_MAX_METADATA,
        }
    }
}

impl MessageLimits {
    /// Makes limits of the largest payload and the most metadata, in bytes.
    ///
    /// ```
    /// use mq_api::{Message, MessageLimits};
    /// let limits = MessageLimits::new(4, 1024);
    /// assert!(Message::new("paid").validate(&limits).is_ok());
    /// assert!(Message::new("unpaid").validate(&limits).is_err());
    /// ```
    #[must_use]
    pub fn new(max_payload: usize, max_metadata: usize) -> Self {
        Self {
            max_payload,
            max_metadata,
        }
    }
}

impl fmt::Debug for Message {
    // Payloads may hold secrets and may be large: sizes only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Message");
        match &self.payload {
            Some(payload) => out.field("payload_bytes", &payload.len()),
            None => out.field("tombstone", &true),
        };
        if let Some(key) = &self.key {
            out.field("key_bytes", &key.len());
        }
        if let Some(extra) = &self.extra {
            out.field("id", &extra.id).field("headers", &extra.headers);
        }
        out.finish()
    }
}

impl From<&'static str> for Message {
    fn from(payload: &'static str) -> Self {
        Self::new(payload)
    }
}

impl From<String> for Message {
    fn from(payload: String) -> Self {
        Self::new(payload)
    }
}

impl From<Vec<u8>> for Message {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(payload)
    }
}

impl From<Bytes> for Message {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

/// Tells whether a header name is kept for this library.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.get(..RESERVED_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_payload_is_not_a_tombstone() {
        assert!(!Message::new("").is_tombstone());
        assert!(Message::tombstone("k").is_tombstone());
        assert_ne!(Message::new("").with_key("k"), Message::tombstone("k"));
    }

    #[test]
    fn sizes_are_checked_at_the_limit() {
        let limits = MessageLimits::new(10, 20);
        assert!(Message::new(vec![0; 10]).validate(&limits).is_ok());
        let error = Message::new(vec![0; 11]).validate(&limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MessageTooLarge);
        assert!(error.context().contains("11"), "{error}");
        assert!(Message::new("").with_key(vec![0; 20]).validate(&limits).is_ok());
        assert_eq!(
            Message::new("")
                .with_key(vec![0; 21])
                .validate(&limits)
                .unwrap_err()
                .kind(),
            ErrorKind::MessageTooLarge
        );
    }

    #[test]
    fn header_rules_are_checked() {
        let limits = MessageLimits::default();
        let long = "x".repeat(201);
        for (name, rule) in [
            ("", "empty"),
            (long.as_str(), "200"),
            ("mq-id", "reserved"),
            ("MQ-id", "reserved"),
        ] {
            let error = Message::new("")
                .with_header(name, "v")
                .validate(&limits)
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            assert!(error.context().contains(rule), "{error}");
        }
        let twice = Message::new("").with_header("a", "1").with_header("a", "2");
        assert!(twice.validate(&limits).unwrap_err().context().contains("twice"));
    }

    #[test]
    fn debug_shows_no_payload() {
        let text = format!(
            "{:?}",
            Message::new("secret")
                .with_key("hidden")
                .with_header("h", "veiled")
        );
        assert!(
            !text.contains("secret") && !text.contains("hidden") && !text.contains("veiled"),
            "{text}"
        );
    }

    #[test]
    fn a_message_is_small() {
        assert!(size_of::<Message>() <= 72, "{}", size_of::<Message>());
    }
}
