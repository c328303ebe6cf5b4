//! A client of one RocketMQ cluster, below the portable API: routes, connections, heartbeats, and one method for
//! each thing that a server can be asked.
//!
//! [`Cluster`] knows where things are: nameservers, brokers, the queues of each topic. [`Session`] talks to brokers
//! under one client id, over connections of its own. Nothing is shared between two clusters, so a process may use as
//! many as it likes. Every call takes a deadline.

mod admin;
mod cluster;
mod groups;
mod http;
mod inbox;
mod layout;
mod messages;
mod nameservers;
mod offsets;
mod options;
mod pool;
mod pop;
mod replicas;
mod session;
mod snapshot;

pub use admin::{CreatedTopic, QueueBounds};
pub use cluster::{Cluster, Route};
pub use inbox::{OffsetReset, TransactionCheck};
pub use layout::{Layout, QueueRef};
pub use messages::{Decision, HalfMessage, PullOptions, PullStatus, Pulled, SendReceipt};
pub use nameservers::NameserverSource;
pub use options::ClusterOptions;
pub use pop::{PopMessage, PopOptions, Popped};
pub use session::Session;
