#![doc = include_str!("docs.md")]

mod client;
mod config;
mod consumer;
mod driver;
mod error;
mod ffi;
mod format;
mod lookup;
mod member;
mod outbox;
mod producer;
mod reader;
mod record;
mod session;
mod topics;
mod watch;

pub use self::{
    config::{GroupProtocol, KafkaConfig, SaslMechanism},
    driver::KafkaMq,
};
