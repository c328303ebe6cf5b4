//! The capabilities by name, so that cases can ask for them.

use mq_api::{Capabilities, Support};

macro_rules! capabilities {
    ($($(#[$doc:meta])* $variant:ident $field:ident,)*) => {
        /// Names a field of [`Capabilities`] that says how far the backend can do one thing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Capability {
            $($(#[$doc])* $variant,)*
        }

        impl Capability {
            /// All of them.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Names the field.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($field),)*
                }
            }

            /// Reads the field.
            pub(crate) fn of(self, capabilities: &Capabilities) -> Support {
                match self {
                    $(Self::$variant => capabilities.$field,)*
                }
            }
        }
    };
}

capabilities! {
    Partitioned partitioned,
    Shared shared,
    SharedLatest shared_latest,
    Broadcast broadcast,
    Reader reader,
    Seek seek,
    Pause pause,
    Lag lag,
    Delay delay,
    ReceiptOffset receipt_offset,
    DelayedReceiptOffset delayed_receipt_offset,
    SparseAcks sparse_acks,
    DurableAttempts durable_attempts,
    CommitFencing commit_fencing,
    TopicId topic_id,
    StickyAssignment sticky_assignment,
    OffsetAt offset_at,
    Tombstone tombstone,
    ListTopics list_topics,
    RetentionAge retention_age,
    RetentionBytes retention_bytes,
    Replication replication,
    AddPartitions add_partitions,
    IdempotentProduce idempotent_produce,
}
