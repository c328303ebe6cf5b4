//! One message-queue API: a URL chooses the backend, and the behaviour stays the same.
//!
//! [`connect`] opens a client. Everything else is the portable API of the `mq_api` crate, re-exported here: [`Mq`] opens
//! a [`Producer`], a [`Consumer`] or a [`Reader`], and topics are made on it.
//!
//! ```
//! use mq::Message;
//!
//! # #[cfg(feature = "memory")]
//! # #[tokio::main]
//! # async fn main() -> mq::Result<()> {
//! let mq = mq::connect("memory://").await?; // the URL chooses the backend
//! mq.create_topic("orders", 4).await?;
//!
//! let producer = mq.producer("orders").await?;
//! let receipt = producer.produce(Message::new("paid").with_key("user-7")).await?; // partition by key
//! producer.produce_to(2, Message::new("shipped")).await?; // partition by number
//! # assert!(receipt.partition < 4);
//!
//! let consumer = mq.consumer("orders", "billing").await?; // topic, group
//! let delivery = consumer.consume().await?; // one message
//! delivery.ack()?; // noted now, stored by the commit timer; `consumer.commit().await` waits for that
//! let mut channel = consumer.channel(1024)?; // or a bounded channel of deliveries, also a `Stream`
//! # channel.recv().await?.ack()?;
//! mq.close().await?;
//! # Ok(()) }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```
//!
//! # Backends
//!
//! Each backend is a cargo feature of this crate; a URL whose backend is not compiled in is refused with the name of the
//! feature to turn on.
//!
//! | scheme | feature | driver |
//! |---|---|---|
//! | `memory://`, `memory://name` | `memory` (default) | a broker in this process, private or shared by its name |
//! | `amqp://user:password@host:port/vhost`, `amqps://` | `amqp` | RabbitMQ |
//! | `kafka://host:port,host2:port`, `kafka+tls://` | `kafka` | Apache Kafka |
//! | `redis://host:port/database`, `rediss://` | `redis` | Redis Streams |
//! | `rocketmq://host:port,host2:port`, `rocketmq+tls://` | `rocketmq` | Apache RocketMQ; the hosts are nameservers |
//!
//! The feature `json` adds `Message::json` and `Delivery::json`. A driver that is not among these is opened with
//! [`Mq::from_driver`].

mod connect;

#[cfg(feature = "amqp")]
pub use mq_amqp as amqp;
pub use mq_api::*;
#[cfg(feature = "kafka")]
pub use mq_kafka as kafka;
#[cfg(feature = "memory")]
pub use mq_memory as memory;
#[cfg(feature = "redis")]
pub use mq_redis as redis;
#[cfg(feature = "rocketmq")]
pub use mq_rocketmq as rocketmq;

pub use self::connect::{ConnectOptions, connect, connect_with};
