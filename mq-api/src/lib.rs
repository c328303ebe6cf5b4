//! One message-queue API over pluggable drivers.
//!
//! The portable types hold every rule that is the same on all backends; a driver implements the small traits in
//! [`driver`]. [`Mq::from_driver`] brings the two together.
//!
//! | type | what it does |
//! |---|---|
//! | [`Mq`] | one connection: manages topics, opens the others |
//! | [`Producer`], [`Receipt`] | sends messages; says where each was stored |
//! | [`Consumer`], [`Delivery`], [`Channel`] | takes messages as a member of a group; each is lent until it is settled |
//! | [`Reader`], [`ReadMessage`] | reads partitions without a group |
//! | [`Message`], [`Headers`], [`Timestamp`] | what is sent and received |
//! | [`Capabilities`], [`Support`] | what the backend can do; the rest is refused by name |
//! | [`Error`], [`ErrorKind`], [`Outcome`] | what went wrong, and what became of the send |
//!
//! ```
//! use mq_api::{Message, Mq};
//! use mq_memory::MemoryMq;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> mq_api::Result<()> {
//! let mq = Mq::from_driver(MemoryMq::new());
//! mq.create_topic("orders", 4).await?;
//!
//! let producer = mq.producer("orders").await?;
//! producer.produce(Message::new("paid").with_key("user-7")).await?;
//!
//! let consumer = mq.consumer("orders", "billing").await?;
//! let delivery = consumer.consume().await?;
//! assert_eq!(delivery.payload(), b"paid");
//! delivery.ack()?;
//! mq.close().await?;
//! # Ok(()) }
//! ```

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
