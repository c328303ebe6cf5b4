//! Side by side with the raw clients and the peers: rounds interleaved in one run, every message checked.

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod apart;
pub mod command;
pub mod core;
pub mod disk;
pub mod flat;
#[cfg(any(feature = "kafka-peers", feature = "redis-peers"))]
pub mod handler;
pub mod idle;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
pub mod meter;
pub mod ours;
pub mod payload;
#[cfg(feature = "peers")]
pub mod peers;
pub mod power;
#[cfg(feature = "redis")]
pub mod redis;
pub mod results;
#[cfg(feature = "rocketmq")]
pub mod rocketmq;
pub mod rounds;
pub mod side;
pub mod standard;
pub mod tasks;
