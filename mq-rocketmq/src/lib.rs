//! The Apache RocketMQ driver of the mq message-queue API.

pub mod client;
pub mod remoting;
