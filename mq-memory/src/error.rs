//! What can go wrong in memory, and the one place that turns it into the public error.

use std::time::Duration;

use mq_api::{Error, ErrorKind, GroupName, Outcome, TopicName, driver};

/// Says what went wrong here.
#[derive(Clone, Debug)]
pub(crate) enum MemoryError {
    /// The topic does not exist, or is no longer the one that was opened.
    NoTopic(TopicName),
    /// The handle was closed.
    Closed(&'static str),
    /// An injected fault keeps the broker out of reach; nothing was done.
    Unreachable,
    /// An injected fault cut the connection while the call was under way.
    ConnectionLost,
    /// An injected fault failed this send.
    Injected { outcome: Outcome },
    /// The broker stayed frozen for the whole request timeout; nothing was done.
    Frozen(Duration),
    /// The group consumes in the other mode.
    OtherMode {
        topic: TopicName,
        group: GroupName,
        has: &'static str,
    },
    /// The assignment is not this member's any more.
    NotAssigned { partition: u32, epoch: u64 },
    /// The message is another member's by now, or settled.
    NotHeld { partition: u32, offset: u64 },
    /// A receipt that this driver has not made.
    BadReceipt,
    /// A position lies beyond the end.
    BeyondEnd { partition: u32, offset: u64, end: u64 },
    /// Too many messages wait for their time.
    TooManyDelayed(usize),
    /// A delay that is longer than the backend keeps a message back.
    DelayTooLong { delay: Duration, most: Duration },
    /// An option or a property that is malformed, out of range or unknown.
    BadOption(String),
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        use MemoryError as M;
        fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
            Error::new(kind, context)
        }
        match error {
            M::NoTopic(topic) => driver::topic_not_found(&topic),
            M::Closed(what) => Error::closed(what),
            M::Unreachable => new(
                ErrorKind::Connection,
                "the memory broker is out of reach by an injected fault",
            )
            .with_outcome(Outcome::NotSent),
            M::ConnectionLost => new(
                ErrorKind::Connection,
                "the connection to the memory broker was lost by an injected fault",
            ),
            M::Injected { outcome } => {
                new(ErrorKind::Connection, "the send was failed by an injected fault").with_outcome(outcome)
            }
            M::Frozen(after) => {
                Error::timeout("the frozen memory broker", after).with_outcome(Outcome::NotSent)
            }
            M::OtherMode { topic, group, has } => new(
                ErrorKind::InvalidConfig,
                format!("group {group:?} of topic {topic:?} consumes in {has} mode: a group has one mode"),
            ),
            M::NotAssigned { partition, epoch } => new(
                ErrorKind::Interrupted,
                format!("partition {partition} with epoch {epoch} is not this member's any more"),
            )
            .with_outcome(Outcome::NotSent),
            M::NotHeld { partition, offset } => new(
                ErrorKind::StaleAck,
                format!(
                    "the message at offset {offset} of partition {partition} is not held under this receipt any more"
                ),
            ),
            M::BadReceipt => new(
                ErrorKind::StaleAck,
                "the receipt was not given out by this memory broker",
            ),
            M::BeyondEnd {
                partition,
                offset,
                end,
            } => new(
                ErrorKind::OffsetOutOfRange,
                format!("offset {offset} of partition {partition}: the next message will have offset {end}"),
            ),
            M::TooManyDelayed(most) => new(
                ErrorKind::ResourceExhausted,
                format!("{most} delayed messages wait already, which is the most that are kept"),
            )
            .with_outcome(Outcome::NotSent),
            M::DelayTooLong { delay, most } => new(
                ErrorKind::InvalidMessage,
                format!("delay of {delay:?}: the memory backend keeps a message back for at most {most:?}"),
            ),
            M::BadOption(context) => new(ErrorKind::InvalidConfig, context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_kind_outcome_and_retryability() {
        use ErrorKind as K;
        use MemoryError as M;
        use Outcome::{NotSent, Unknown};
        let topic = TopicName::new("orders").unwrap();
        let group = GroupName::new("billing").unwrap();
        let second = Duration::from_secs(1);
        let table = [
            (M::NoTopic(topic.clone()), K::TopicNotFound, NotSent, false),
            (M::Closed("producer"), K::Closed, NotSent, false),
            (M::Unreachable, K::Connection, NotSent, true),
            (M::ConnectionLost, K::Connection, Unknown, true),
            (M::Injected { outcome: NotSent }, K::Connection, NotSent, true),
            (M::Injected { outcome: Unknown }, K::Connection, Unknown, true),
            (M::Frozen(second), K::Timeout, NotSent, true),
            (
                M::OtherMode {
                    topic,
                    group,
                    has: "shared",
                },
                K::InvalidConfig,
                NotSent,
                false,
            ),
            (
                M::NotAssigned {
                    partition: 1,
                    epoch: 2,
                },
                K::Interrupted,
                NotSent,
                true,
            ),
            (
                M::NotHeld {
                    partition: 1,
                    offset: 2,
                },
                K::StaleAck,
                NotSent,
                false,
            ),
            (M::BadReceipt, K::StaleAck, NotSent, false),
            (
                M::BeyondEnd {
                    partition: 1,
                    offset: 9,
                    end: 2,
                },
                K::OffsetOutOfRange,
                NotSent,
                false,
            ),
            (M::TooManyDelayed(5), K::ResourceExhausted, NotSent, true),
            (
                M::DelayTooLong {
                    delay: second,
                    most: second,
                },
                K::InvalidMessage,
                NotSent,
                false,
            ),
            (
                M::BadOption("option `x`".to_owned()),
                K::InvalidConfig,
                NotSent,
                false,
            ),
        ];
        for (error, kind, outcome, retryable) in table {
            let name = format!("{error:?}");
            let error = Error::from(error);
            assert_eq!(
                (error.kind(), error.outcome(), error.is_retryable()),
                (kind, outcome, retryable),
                "{name}"
            );
            assert!(!error.context().ends_with('.'), "{name}");
        }
    }
}
