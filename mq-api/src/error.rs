//! The one error type of the API.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

/// Shortens `std::result::Result` for this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what went wrong, in terms that are the same on every backend.
///
/// | kind | retryable | outcome of a send | raised when |
/// |---|---|---|---|
/// | `InvalidTopic`, `InvalidGroup` | no | `NotSent` | a name breaks the naming rule |
/// | `InvalidPartition` | no | `NotSent` | a partition is not one of the topic's, or a partition count is out of range |
/// | `InvalidMessage` | no | `NotSent` | a header, key or delay breaks a rule |
/// | `InvalidConfig` | no | `NotSent` | an option or URL is malformed or unknown |
/// | `TopicNotFound` | no | `NotSent` | the topic does not exist, was deleted or was made again |
/// | `TopicExists` | no | `NotSent` | a topic exists with another partition count |
/// | `OffsetOutOfRange` | no | `NotSent` | a position lies beyond the end of the partition |
/// | `Closed` | no | `NotSent` | the handle, or what made it, was closed |
/// | `StaleAck` | no | `NotSent` | the partition has moved on since the delivery was handed over |
/// | `Unsupported` | no | `NotSent` | the backend cannot do it, see [`Capabilities`](crate::Capabilities) |
/// | `Timeout` | yes | either | a deadline has passed |
/// | `Connection` | yes | either | the backend cannot be reached, or the connection broke |
/// | `Authentication`, `PermissionDenied`, `Tls` | no | `NotSent` | the backend refuses this client |
/// | `Protocol` | no | `Unknown` | the peer sent what the protocol does not allow, or a newer format than this build knows |
/// | `MessageTooLarge` | no | `NotSent` | a message is over the limit |
/// | `ResourceExhausted` | yes | either | a memory, disk or quota limit of the backend is reached |
/// | `Interrupted` | yes | either | a rebalance, fail-over or restart cut the operation short |
/// | `Other` | no | `Unknown` | none of the above |
///
/// "Either" means that [`Error::outcome`] of the one error tells. Whether an error of a kind is worth trying again can
/// be changed by the driver for one error; [`Error::is_retryable`] is what counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A topic name breaks the naming rule.
    InvalidTopic,
    /// A group name breaks the naming rule.
    InvalidGroup,
    /// A partition does not exist, or a partition count is out of range.
    InvalidPartition,
    /// A message breaks a rule that is not its size.
    InvalidMessage,
    /// An option or a URL is malformed, out of range or unknown.
    InvalidConfig,
    /// The topic does not exist, or is no longer the topic that was opened.
    TopicNotFound,
    /// The topic exists with another partition count.
    TopicExists,
    /// A position lies beyond the end of a partition.
    OffsetOutOfRange,
    /// The handle was closed.
    Closed,
    /// A delivery was settled after its partition had moved on.
    StaleAck,
    /// The backend cannot do this.
    Unsupported,
    /// A deadline passed.
    Timeout,
    /// The backend cannot be reached.
    Connection,
    /// The backend does not know these credentials.
    Authentication,
    /// The backend knows these credentials and refuses the operation.
    PermissionDenied,
    /// The TLS handshake failed.
    Tls,
    /// The peer broke the protocol.
    Protocol,
    /// A message is over the size limit.
    MessageTooLarge,
    /// A limit of the backend or of this client is reached.
    ResourceExhausted,
    /// A rebalance, fail-over or restart cut the operation short.
    Interrupted,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// Tells whether errors of this kind are worth trying again when nothing more is known.
    ///
    /// ```
    /// use mq_api::ErrorKind;
    /// assert!(ErrorKind::Timeout.is_retryable());
    /// assert!(!ErrorKind::InvalidTopic.is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Timeout | Self::Connection | Self::ResourceExhausted | Self::Interrupted
        )
    }

    /// Tells what became of a send that failed with this kind when nothing more is known.
    ///
    /// ```
    /// use mq_api::{ErrorKind, Outcome};
    /// assert_eq!(ErrorKind::Timeout.outcome(), Outcome::Unknown);
    /// assert_eq!(ErrorKind::MessageTooLarge.outcome(), Outcome::NotSent);
    /// ```
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Timeout
            | Self::Connection
            | Self::Protocol
            | Self::ResourceExhausted
            | Self::Interrupted
            | Self::Other => Outcome::Unknown,
            _ => Outcome::NotSent,
        }
    }

    /// Names the kind in words.
    ///
    /// ```
    /// use mq_api::ErrorKind;
    /// assert_eq!(ErrorKind::InvalidTopic.as_str(), "invalid topic");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidTopic => "invalid topic",
            Self::InvalidGroup => "invalid group",
            Self::InvalidPartition => "invalid partition",
            Self::InvalidMessage => "invalid message",
            Self::InvalidConfig => "invalid configuration",
            Self::TopicNotFound => "topic not found",
            Self::TopicExists => "topic exists",
            Self::OffsetOutOfRange => "offset out of range",
            Self::Closed => "closed",
            Self::StaleAck => "stale acknowledgement",
            Self::Unsupported => "unsupported",
            Self::Timeout => "timeout",
            Self::Connection => "connection",
            Self::Authentication => "authentication",
            Self::PermissionDenied => "permission denied",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::MessageTooLarge => "message too large",
            Self::ResourceExhausted => "resource exhausted",
            Self::Interrupted => "interrupted",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Says what became of a send that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The backend has not stored the message and will not; sending it again cannot double it.
    NotSent,
    /// The backend may or may not have stored the message.
    Unknown,
}

/// Describes one failure: kind, operation, context and source.
///
/// It is cheap to clone, so that every caller of an idempotent call gets the same result.
/// `Display` leaves the source out; walk [`std::error::Error::source`] for it.
///
/// ```
/// use mq_api::{Error, ErrorKind, Outcome};
///
/// let error = Error::new(ErrorKind::InvalidTopic, "name `9lives` does not start with a letter")
///     .with_operation("create_topic");
/// assert_eq!(error.kind(), ErrorKind::InvalidTopic);
/// assert_eq!(error.outcome(), Outcome::NotSent);
/// assert!(!error.is_retryable());
/// assert_eq!(error.to_string(), "create_topic: invalid topic: name `9lives` does not start with a letter");
/// ```
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    operation: Option<&'static str>,
    context: String,
    retryable: bool,
    outcome: Outcome,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error of a kind with what a person needs to know: the input and the rule, or the peer and its answer.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// let error = Error::new(ErrorKind::Connection, "127.0.0.1:9092 refused");
    /// assert_eq!(error.to_string(), "connection: 127.0.0.1:9092 refused");
    /// ```
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                operation: None,
                context: context.into(),
                retryable: kind.is_retryable(),
                outcome: kind.outcome(),
                source: None,
            }),
        }
    }

    /// Makes the error of a call after close.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// let error = Error::closed("producer");
    /// assert_eq!(error.kind(), ErrorKind::Closed);
    /// assert_eq!(error.context(), "the producer is closed");
    /// ```
    #[must_use]
    pub fn closed(what: &'static str) -> Self {
        Self::new(ErrorKind::Closed, format!("the {what} is closed"))
    }

    /// Makes the error of something that the backend cannot do.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// let error = Error::unsupported("mine", "seek");
    /// assert_eq!(error.kind(), ErrorKind::Unsupported);
    /// assert_eq!(error.context(), "the mine backend does not support seek");
    /// ```
    #[must_use]
    pub fn unsupported(backend: &str, what: &str) -> Self {
        Self::new(
            ErrorKind::Unsupported,
            format!("the {backend} backend does not support {what}"),
        )
    }

    /// Makes the error of a deadline that passed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::{Error, ErrorKind};
    /// let error = Error::timeout("the join", Duration::from_secs(30));
    /// assert_eq!(error.kind(), ErrorKind::Timeout);
    /// assert_eq!(error.context(), "the join did not finish within 30s");
    /// ```
    #[must_use]
    pub fn timeout(what: &str, after: Duration) -> Self {
        Self::new(
            ErrorKind::Timeout,
            format!("{what} did not finish within {after:?}"),
        )
    }

    /// Names the operation that failed.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// let error = Error::new(ErrorKind::Timeout, "no answer").with_operation("produce");
    /// assert_eq!(error.to_string(), "produce: timeout: no answer");
    /// ```
    #[must_use]
    pub fn with_operation(self, operation: &'static str) -> Self {
        self.change(|inner| inner.operation = Some(operation))
    }

    /// Attaches the cause.
    ///
    /// ```
    /// use std::error::Error as _;
    /// use mq_api::{Error, ErrorKind};
    /// let cause = std::io::Error::other("reset by peer");
    /// let error = Error::new(ErrorKind::Connection, "the broker hung up").with_source(cause);
    /// assert_eq!(error.source().unwrap().to_string(), "reset by peer");
    /// ```
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.change(|inner| inner.source = Some(Arc::new(source)))
    }

    /// Says what became of the send.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind, Outcome};
    /// let error = Error::new(ErrorKind::Timeout, "no answer").with_outcome(Outcome::NotSent);
    /// assert_eq!(error.outcome(), Outcome::NotSent);
    /// ```
    #[must_use]
    pub fn with_outcome(self, outcome: Outcome) -> Self {
        if self.inner.outcome == outcome {
            self
        } else {
            self.change(|inner| inner.outcome = outcome)
        }
    }

    /// Says whether trying again is worth it.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// let error = Error::new(ErrorKind::Timeout, "no answer").with_retryable(false);
    /// assert!(!error.is_retryable());
    /// ```
    #[must_use]
    pub fn with_retryable(self, retryable: bool) -> Self {
        if self.inner.retryable == retryable {
            self
        } else {
            self.change(|inner| inner.retryable = retryable)
        }
    }

    /// Returns the kind.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// assert_eq!(Error::closed("reader").kind(), ErrorKind::Closed);
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Returns the operation that failed, where it is known.
    ///
    /// ```
    /// use mq_api::Error;
    /// assert_eq!(Error::closed("producer").with_operation("produce").operation(), Some("produce"));
    /// assert_eq!(Error::closed("producer").operation(), None);
    /// ```
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.inner.operation
    }

    /// Returns what a person needs to know.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// assert_eq!(Error::new(ErrorKind::Timeout, "no answer").context(), "no answer");
    /// ```
    #[must_use]
    pub fn context(&self) -> &str {
        &self.inner.context
    }

    /// Tells whether the same call may succeed later without any change.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind};
    /// assert!(Error::new(ErrorKind::Timeout, "no answer").is_retryable());
    /// assert!(!Error::closed("producer").is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.inner.retryable
    }

    /// Tells what became of a send that failed; for other operations it says whether anything was changed.
    ///
    /// ```
    /// use mq_api::{Error, ErrorKind, Outcome};
    /// assert_eq!(Error::new(ErrorKind::Timeout, "no answer").outcome(), Outcome::Unknown);
    /// assert_eq!(Error::closed("producer").outcome(), Outcome::NotSent);
    /// ```
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.inner.outcome
    }

    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = self.inner.operation {
            write!(f, "{operation}: ")?;
        }
        write!(f, "{}: {}", self.inner.kind, self.inner.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.inner.kind)
            .field("context", &self.inner.context);
        if let Some(operation) = self.inner.operation {
            out.field("operation", &operation);
        }
        out.field("retryable", &self.inner.retryable)
            .field("outcome", &self.inner.outcome);
        if let Some(source) = &self.inner.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner
            .source
            .as_ref()
            .map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_tells_the_same_story_and_changes_apart() {
        let first = Error::new(ErrorKind::Timeout, "no answer").with_operation("produce");
        let second = first.clone().with_outcome(Outcome::NotSent);
        assert_eq!(first.outcome(), Outcome::Unknown);
        assert_eq!(second.outcome(), Outcome::NotSent);
        assert_eq!(first.to_string(), second.to_string());
    }

    #[test]
    fn display_leaves_the_source_out() {
        let error = Error::new(ErrorKind::Connection, "refused").with_source(std::io::Error::other("detail"));
        assert_eq!(error.to_string(), "connection: refused");
        assert_eq!(error.source().map(ToString::to_string), Some("detail".to_owned()));
    }
}
