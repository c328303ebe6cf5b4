//! The remoting protocol of RocketMQ: frames, headers, messages, and a connection that speaks them.
//!
//! A frame on the wire is a 32-bit length of all that follows, one byte that names the header's format (0 is
//! JSON, the only one used here), a 24-bit header length, the header and the body. Every length is checked
//! against what is left and against a fixed bound before anything is allocated.
//!
//! [`Connection`] runs one task per address. Requests are encoded straight into its outgoing buffer, answers
//! find their caller by the request's number, and every call has a deadline.

mod batch;
mod bodies;
pub mod codes;
mod compress;
mod connection;
mod error;
mod escape;
mod frame;
mod header;
mod lenient;
mod message;
mod properties;
mod pump;
mod receipt;
mod requests;
mod sign;
mod tls;
mod unique_key;

pub use batch::{BatchEntry, BatchWriter, decode_batch};
pub use bodies::{
    BatchAck, BatchAckBody, BrokerRoute, ClusterInfo, ConsumerData, ConsumerList, GroupConfig, HeartbeatBody,
    LockBody, LockedBody, ProducerData, QueueName, QueueRoute, SubscriptionData, TopicConfig, TopicList,
    TopicRoute,
};
pub use compress::{Compression, compress, decompress};
pub use connection::{Connection, ConnectionOptions, Inbound, InboundHandler, RefuseInbound};
pub use error::{Effect, RemotingError};
pub use escape::{decode_value, encode_value};
pub use frame::{
    Command, EncodeBody, JsonBody, MAX_FRAME, MAX_HEADER, decode_frame, encode_request, encode_response,
};
pub use header::{ExtFields, FieldValue, Fields, Header, Request};
pub use lenient::parse_lenient;
pub use message::{StoredMessage, StoredMessages};
pub use properties::{MAX_PROPERTIES, Properties, PropertyWriter};
pub use receipt::{PopReceipt, PopTopicKind, StartOffsets, ack_bits};
pub use requests::*;
pub use sign::Credentials;
pub use tls::{TlsOptions, TlsSetup};
pub use unique_key::UniqueKeys;
