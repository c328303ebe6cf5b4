//! One message-queue API over pluggable drivers.
//!
//! The portable types ([`Mq`] and what it opens) hold every rule that is the same on all backends;
//! a driver implements the small traits in [`driver`].

pub mod assign;
mod budget;
mod capabilities;
mod close_once;
pub mod driver;
mod error;
mod headers;
mod lag;
mod message;
mod mq;
mod name;
mod options;
mod position;
mod propagate;
mod receipt;
mod time;
mod topic;

pub use self::{
    capabilities::{Capabilities, Support},
    error::{Error, ErrorKind, Outcome, Result},
    headers::{Header, Headers, RESERVED_PREFIX},
    lag::{Lag, PartitionLag},
    message::{DEFAULT_MAX_METADATA, DEFAULT_MAX_PAYLOAD, Due, MAX_HEADER_NAME, Message, MessageLimits},
    mq::Mq,
    name::{GroupName, MAX_NAME_LENGTH, TopicName},
    options::ClientOptions,
    position::{Offset, OnTrimmed, Position, Start},
    propagate::Propagator,
    receipt::Receipt,
    time::{Clock, Lease, Moment, Timestamp},
    topic::{PartitionDescription, Retention, TopicDescription, TopicId, TopicSpec},
};
