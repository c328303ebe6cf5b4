#![doc = include_str!("docs.md")]

mod admin;
mod balance;
pub mod client;
mod config;
mod consumer;
mod delays;
mod driver;
mod error;
mod fetch;
mod flight;
mod format;
mod member;
mod names;
mod outbox;
mod ownership;
mod packing;
mod producer;
mod queue;
mod reader;
pub mod remoting;
mod topic;
mod transaction;

pub use self::{
    config::RocketMqConfig,
    delays::Delays,
    driver::RocketMq,
    transaction::{Transaction, TransactionProducer},
};
