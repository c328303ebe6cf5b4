//! Starts, stops, kills, freezes and cuts real brokers for tests.
//!
//! A [`Broker`] is a real server with a scratch folder and ports of its own. It is started from options and ends
//! with the value that stands for it:
//!
//! ```no_run
//! use test_brokers::{Broker, RedisOptions};
//!
//! # fn main() -> test_brokers::Result<()> {
//! let redis = RedisOptions::new().with_proxy().start()?;
//! println!("{}", redis.url());
//! redis.cut_connections()?; // every client sees its connection end
//! redis.freeze()?; // SIGSTOP
//! redis.thaw()?;
//! redis.kill()?; // SIGKILL
//! redis.start()?; // again, on the same data and the same ports
//! # Ok(())
//! # }
//! ```
//!
//! # Blocking
//! All calls block. [`Broker::freeze`], [`Broker::thaw`], [`Broker::kill`] and [`Broker::cut_connections`] take
//! milliseconds and may stand in an async test as they are. Those that wait for a server (the first start,
//! [`Broker::start`], [`Broker::stop`], [`Broker::restart`]) take up to many seconds: call them in
//! `tokio::task::spawn_blocking`. All brokers are `Send + Sync` and take `&self`, so an `Arc<dyn Broker>` is
//! all that such a task needs.
//!
//! With the cargo feature `suite`, `BrokerServer` hands any of them to the conformance suite.
//!
//! # Where servers come from
//! From `PATH`; else unpacked without root into the cache folder ([`Cache`]), from the Debian package or from
//! Maven's repository; else the error says what to install. Nothing outside the cache folder and the temporary
//! folder is changed. [`Backend::external_url`] names a broker that somebody else runs.
//!
//! # What is left behind
//! Nothing. Dropping a broker kills it. A process that dies without dropping it (SIGKILL, `abort`, `exit`) leaves
//! it to a watcher, a shell that waits for the end of its standard input; whatever outlives both is swept by
//! the next process that starts a broker.

mod backend;
mod broker;
mod cache;
mod debian;
mod error;
mod fault;
mod kafka;
mod maven;
mod ports;
mod process;
mod proxy;
mod rabbitmq;
mod redis;
mod rocketmq;
mod scratch;
#[cfg(feature = "suite")]
mod suite;
mod tls;
mod wait;

pub use backend::Backend;
pub use broker::Broker;
pub use cache::Cache;
pub use error::{Error, Result};
pub use fault::{JunkServer, SilentServer};
pub use kafka::{Kafka, KafkaCluster, KafkaListener, KafkaOptions};
pub use ports::{ReservedPort, free_port, refused_address};
pub use proxy::{Proxy, ProxyMode};
pub use rabbitmq::{RabbitMq, RabbitMqOptions, RabbitMqVersion};
pub use redis::{AppendFsync, Redis, RedisOptions, RedisVersion};
pub use rocketmq::{JavaProgram, RocketMq, RocketMqNode, RocketMqOptions};
#[cfg(feature = "suite")]
pub use suite::{BrokerServer, ExternalServer};
pub use tls::Certificates;
