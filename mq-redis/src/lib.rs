#![doc = include_str!("docs.md")]

mod clock;
mod config;
mod consumer;
mod delay;
mod dial;
mod driver;
mod error;
mod format;
mod group;
mod guard;
mod keys;
mod link;
mod member;
mod outbox;
mod producer;
mod queue;
mod raw;
mod reader;
mod reads;
mod register;
mod resp;
mod session;
#[cfg(feature = "tls")]
mod tls;
mod topic;
mod upkeep;

pub use self::{
    config::{RedisConfig, RedisProtocol},
    driver::RedisMq,
};
