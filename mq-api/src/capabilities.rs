//! What a backend can do.

use std::time::Duration;

use crate::{DEFAULT_MAX_METADATA, DEFAULT_MAX_PAYLOAD};

/// Says how far a backend can do one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Support {
    /// The call is refused with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    #[default]
    Unsupported,
    /// It holds in ordinary running; where it does not, messages may repeat but none is lost. The driver's page says when.
    BestEffort,
    /// This library builds it from what the backend has, exactly.
    Emulated,
    /// The backend does it itself.
    Native,
}

impl Support {
    /// Tells whether the call is not refused.
    ///
    /// ```
    /// use mq_api::Support;
    /// assert!(Support::BestEffort.is_supported());
    /// assert!(!Support::Unsupported.is_supported());
    /// ```
    #[must_use]
    pub fn is_supported(self) -> bool {
        self != Self::Unsupported
    }
}

/// Lists what a backend can do, so that a program can ask before it relies on it.
///
/// Nothing is ever done in a weaker way than it says here: what is `Unsupported` is refused by name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The backend's name: `memory`, `kafka`, `rocketmq`, `amqp`, `redis` or a third party's.
    pub backend: &'static str,
    /// Members of a group own partitions.
    pub partitioned: Support,
    /// Members of a group compete for single messages.
    pub shared: Support,
    /// A new group in shared mode can begin at the end.
    pub shared_latest: Support,
    /// Every member sees every message.
    pub broadcast: Support,
    /// Partitions can be read without a group.
    pub reader: Support,
    /// A consumer can move to another place.
    pub seek: Support,
    /// A consumer can stop and start partitions without a rebalance.
    pub pause: Support,
    /// The distance to the end is known.
    pub lag: Support,
    /// A message can be held back when it is produced.
    pub delay: Support,
    /// The longest delay; none where there is no limit, or no delay.
    pub max_delay: Option<Duration>,
    /// The most that a delayed message comes late by in ordinary running; it never comes early.
    pub delay_precision: Duration,
    /// Receipts name the offset.
    pub receipt_offset: Support,
    /// Receipts of delayed messages name the offset.
    pub delayed_receipt_offset: Support,
    /// Acks above the first message that is not acked survive a crash.
    pub sparse_acks: Support,
    /// Attempts survive a crash.
    pub durable_attempts: Support,
    /// A commit of a member that has lost its partition is refused.
    pub commit_fencing: Support,
    /// A topic that was deleted and made again is told apart.
    pub topic_id: Support,
    /// A rebalance moves only what must move.
    pub sticky_assignment: Support,
    /// An offset can be looked up by time.
    pub offset_at: Support,
    /// A message can have no payload at all.
    pub tombstone: Support,
    /// Topics can be listed.
    pub list_topics: Support,
    /// A topic can be told how long to keep messages.
    pub retention_age: Support,
    /// A topic can be told how many bytes to keep.
    pub retention_bytes: Support,
    /// A topic can be told how many copies to keep.
    pub replication: Support,
    /// Partitions can be added to a topic.
    pub add_partitions: Support,
    /// A send whose outcome is unknown can be sent again without doubling it.
    pub idempotent_produce: Support,
    /// The most partitions a topic can have.
    pub max_partitions: u32,
    /// The largest payload that options can raise the portable limit to, in bytes.
    pub max_payload: usize,
    /// The most key and headers together that options can raise the portable limit to, in bytes.
    pub max_metadata: usize,
}

impl Capabilities {
    /// Declares a backend that can do nothing yet, within the portable limits.
    ///
    /// ```
    /// use mq_api::{Capabilities, Support};
    /// let mut capabilities = Capabilities::new("mine");
    /// capabilities.partitioned = Support::Native;
    /// assert!(capabilities.partitioned.is_supported());
    /// assert!(!capabilities.delay.is_supported());
    /// ```
    #[must_use]
    pub fn new(backend: &'static str) -> Self {
        Self {
            backend,
            partitioned: Support::Unsupported,
            shared: Support::Unsupported,
            shared_latest: Support::Unsupported,
            broadcast: Support::Unsupported,
            reader: Support::Unsupported,
            seek: Support::Unsupported,
            pause: Support::Unsupported,
            lag: Support::Unsupported,
            delay: Support::Unsupported,
            max_delay: None,
            delay_precision: Duration::ZERO,
            receipt_offset: Support::Unsupported,
            delayed_receipt_offset: Support::Unsupported,
            sparse_acks: Support::Unsupported,
            durable_attempts: Support::Unsupported,
            commit_fencing: Support::Unsupported,
            topic_id: Support::Unsupported,
            sticky_assignment: Support::Unsupported,
            offset_at: Support::Unsupported,
            tombstone: Support::Unsupported,
            list_topics: Support::Unsupported,
            retention_age: Support::Unsupported,
            retention_bytes: Support::Unsupported,
            replication: Support::Unsupported,
            add_partitions: Support::Unsupported,
            idempotent_produce: Support::Unsupported,
            max_partitions: 1024,
            max_payload: DEFAULT_MAX_PAYLOAD,
            max_metadata: DEFAULT_MAX_METADATA,
        }
    }
}
