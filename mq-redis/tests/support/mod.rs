//! What the tests of this driver share: a server, and the calls of the driver traits.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

pub mod tap;

use std::time::Duration;

pub use conformance_tests::calls::*;
use mq_api::url::ConnectUrl;
use mq_redis::{RedisConfig, RedisMq};
use test_brokers::{Broker, Redis, RedisOptions, RedisVersion};

pub fn options() -> RedisOptions {
    RedisOptions::new().with_version(RedisVersion::from_environment().unwrap())
}

pub fn config(redis: &Redis) -> RedisConfig {
    RedisConfig::from_url(&ConnectUrl::parse(&redis.url()).unwrap())
        .unwrap()
        .with_session_timeout(Duration::from_secs(2))
        .with_request_timeout(Duration::from_secs(3))
}

pub async fn connect(redis: &Redis) -> RedisMq {
    RedisMq::connect_with(config(redis)).await.unwrap()
}
