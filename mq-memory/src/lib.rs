#![doc = include_str!("docs.md")]

mod broker;
mod config;
mod consumer;
mod delay;
mod driver;
mod error;
mod faults;
mod group;
mod log;
mod member;
#[cfg(test)]
mod model;
mod producer;
mod queue;
mod queue_consumer;
mod reader;
mod signal;
mod sync;
mod timer;
mod topic;
mod wakes;

pub use self::{
    config::MemoryConfig,
    driver::MemoryMq,
    faults::{Faults, SendFault},
};
