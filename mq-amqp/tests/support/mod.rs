//! What the tests of this driver share: a server, and the calls of the driver traits.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

pub use conformance_tests::calls::*;
use mq_amqp::{AmqpConfig, AmqpMq};
use mq_api::url::ConnectUrl;
use test_brokers::{Broker, RabbitMq, RabbitMqOptions, RabbitMqVersion};

pub fn options() -> RabbitMqOptions {
    RabbitMqOptions::new().with_version(RabbitMqVersion::from_environment().unwrap())
}

/// Nothing is lost for want of a word on a machine that has much else to do.
pub fn config(rabbit: &RabbitMq) -> AmqpConfig {
    AmqpConfig::from_url(&ConnectUrl::parse(&rabbit.url()).unwrap())
        .unwrap()
        .with_session_timeout(Duration::from_secs(15))
        .with_request_timeout(Duration::from_secs(20))
}

pub async fn connect(rabbit: &RabbitMq) -> AmqpMq {
    AmqpMq::connect_with(config(rabbit)).await.unwrap()
}
