//! Places in a partition.

use crate::Timestamp;

/// Numbers the messages of one partition. Offsets only grow; they need not be dense.
pub type Offset = u64;

/// Names a place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Position {
    /// The oldest message that is retained.
    Earliest,
    /// Behind the newest message.
    Latest,
    /// The message with this offset, or the next one that exists.
    Offset(Offset),
    /// The first message stored at or after this time; the end where there is none.
    Time(Timestamp),
}

/// Says where a group that is new to a topic begins.
pub type Start = Position;

/// Says what a consumer does when retention has removed what it was to read next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnTrimmed {
    /// Goes on at the oldest message that is retained; what is gone is counted in the status.
    #[default]
    Earliest,
    /// Goes on behind the newest message; what is skipped is counted in the status.
    Latest,
    /// Ends the consumer with [`ErrorKind::OffsetOutOfRange`](crate::ErrorKind::OffsetOutOfRange).
    Error,
}
