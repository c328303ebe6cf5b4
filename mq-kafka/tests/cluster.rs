//! Three brokers that are one cluster, one of which is killed. It is slow, and runs where `MQ_TEST_FULL` is set, as
//! `cargo xtask test --full` does; elsewhere there is no such test.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};
use mq_api::{Mq, TopicSpec, url::ConnectUrl};
use mq_kafka::KafkaMq;
use support::*;
use test_brokers::{Broker, KafkaOptions};

async fn one_of_three_brokers_is_killed_and_nothing_is_lost() {
    let cluster = KafkaOptions::new().start_cluster().unwrap();
    let url = ConnectUrl::parse(&cluster.url()).unwrap();
    let mq = Mq::from_driver(KafkaMq::connect(&url).await.unwrap());
    let spec = TopicSpec::new("copies", 3)
        .unwrap()
        .with_replication(3)
        .with_property("min.insync.replicas", "2");
    mq.create_topic_with(spec).await.unwrap();
    let mut storm = Storm::start(&mq, "copies", 300).await;
    let member = storm.member(&mq);
    for node in cluster.nodes() {
        let before = storm.stored();
        let begin = Instant::now();
        while storm.stored() < before + 300 {
            assert!(begin.elapsed() < PATIENCE, "{:?}", storm.trouble());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.kill().unwrap();
        let (before, begin) = (storm.stored(), Instant::now());
        while storm.stored() < before + 300 {
            assert!(begin.elapsed() < PATIENCE, "{:?}", storm.trouble());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.start().unwrap();
        // The next one is killed when this one has caught up.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    assert!(storm.stop().await >= 1800);
    storm.until_all_acked().await;
    member.leave().await.unwrap();
    mq.close().await.unwrap();
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    if std::env::var_os("MQ_TEST_FULL").is_some() {
        trials.push(Trial::test(
            "one_of_three_brokers_is_killed_and_nothing_is_lost",
            || {
                let runtime = tokio::runtime::Runtime::new()?;
                runtime.block_on(one_of_three_brokers_is_killed_and_nothing_is_lost());
                Ok(())
            },
        ));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
