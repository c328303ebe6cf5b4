//! One message-queue API over pluggable drivers.
//!
//! The portable types ([`Mq`](crate::driver::Mq) and what it opens) hold every rule that is the same on all backends;
//! a driver implements the small traits in [`driver`].

pub mod assign;
mod capabilities;
pub mod driver;
mod error;
mod headers;
mod message;
mod name;
mod position;
mod receipt;
mod time;
mod topic;

pub use self::{
    capabilities::{Capabilities, Support},
    error::{Error, ErrorKind, Outcome, Result},
    headers::{Header, Headers, RESERVED_PREFIX},
    message::{DEFAULT_MAX_METADATA, DEFAULT_MAX_PAYLOAD, Due, MAX_HEADER_NAME, Message, MessageLimits},
    name::{GroupName, MAX_NAME_LENGTH, TopicName},
    position::{Offset, OnTrimmed, Position, Start},
    receipt::Receipt,
    time::{Clock, Lease, Moment, Timestamp},
    topic::{PartitionDescription, Retention, TopicDescription, TopicId, TopicSpec},
};
