//! What the tests on real clusters share.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses a part of it, and a test panics where it fails"
)]

pub(crate) mod exchange;
pub(crate) mod java;

use std::{sync::Arc, time::Duration};

use mq_api::{Consumer, Mq, url::ConnectUrl};
use mq_rocketmq::RocketMq;
use test_brokers::RocketMqOptions;
use tokio::sync::OnceCell;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Opens a client.
pub(crate) async fn open(url: &str) -> (RocketMq, Mq) {
    let driver = RocketMq::connect(&ConnectUrl::parse(url).unwrap()).await.unwrap();
    (driver.clone(), Mq::from_driver(driver))
}

/// Starts a cluster of a test's own.
pub(crate) async fn start(options: RocketMqOptions) -> test_brokers::RocketMq {
    tokio::task::spawn_blocking(move || options.start().unwrap())
        .await
        .unwrap()
}

/// The cluster of all tests of a file that break none; it ends with the process.
pub(crate) async fn cluster() -> Arc<test_brokers::RocketMq> {
    static CLUSTER: OnceCell<Arc<test_brokers::RocketMq>> = OnceCell::const_new();
    let started = CLUSTER.get_or_init(|| async { Arc::new(start(RocketMqOptions::new()).await) });
    Arc::clone(started.await)
}

/// Takes and acks the next message.
pub(crate) async fn text(consumer: &Consumer) -> String {
    let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
        .await
        .expect("a message in time")
        .unwrap();
    let text = String::from_utf8(delivery.payload().to_vec()).unwrap();
    delivery.ack().unwrap();
    text
}

/// Fails where a message comes.
pub(crate) async fn nothing(consumer: &Consumer, wait: Duration) {
    if let Ok(delivery) = tokio::time::timeout(wait, consumer.consume()).await {
        panic!("{:?} came", delivery.unwrap().payload());
    }
}
