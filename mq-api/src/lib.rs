//! One message-queue API over pluggable drivers.
//!
//! The portable types ([`Mq`] and what it opens) hold every rule that is the same on all backends;
//! a driver implements the small traits in [`driver`].

pub mod assign;
mod budget;
mod capabilities;
mod channel;
mod close_once;
mod codec;
mod consumer;
mod delivery;
pub mod driver;
mod engine;
mod error;
pub mod escape;
mod headers;
mod lag;
mod message;
mod mq;
mod name;
mod options;
mod partitioner;
mod position;
mod producer;
mod propagate;
mod reader;
mod receipt;
mod time;
mod topic;
pub mod url;

#[cfg(feature = "json")]
pub use self::codec::Json;
pub use self::{
    capabilities::{Capabilities, Support},
    channel::Channel,
    codec::{Decode, Encode},
    consumer::{AssignedPartition, Consumer, ConsumerBuilder, ConsumerStatus, Mode, PartitionStatus},
    delivery::Delivery,
    driver::CommittedPosition,
    engine::{Backoff, DeadLetter, Ordering},
    error::{Error, ErrorKind, Outcome, Result},
    escape::dead_letter_topic,
    headers::{Header, Headers, RESERVED_PREFIX},
    lag::{Lag, PartitionLag},
    message::{DEFAULT_MAX_METADATA, DEFAULT_MAX_PAYLOAD, Due, MAX_HEADER_NAME, Message, MessageLimits},
    mq::Mq,
    name::{GroupName, MAX_NAME_LENGTH, TopicName},
    options::ClientOptions,
    partitioner::Partitioner,
    position::{Offset, OnTrimmed, Position, Start},
    producer::{PendingReceipt, Producer, ProducerBuilder, ProducerStatus},
    propagate::Propagator,
    reader::{ReadMessage, Reader, ReaderBuilder},
    receipt::Receipt,
    time::{Clock, Lease, Moment, Timestamp},
    topic::{PartitionDescription, Retention, TopicDescription, TopicId, TopicSpec},
};
