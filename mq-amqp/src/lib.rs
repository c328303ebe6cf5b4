#![doc = include_str!("docs.md")]

mod config;
mod consumer;
mod delay;
mod dial;
mod driver;
mod error;
mod existing;
mod feeder;
mod flow;
mod format;
mod group;
mod lane;
mod link;
mod member;
mod meta;
mod names;
mod outbox;
mod producer;
mod queue;
mod reader;
mod session;
mod share;
mod stream;
mod tenure;
#[cfg(feature = "tls")]
mod tls;
mod token;
mod topic;
mod watch;
mod words;

pub use self::{
    config::{AmqpConfig, TokenQueues},
    driver::AmqpMq,
    existing::ExistingTopic,
};
