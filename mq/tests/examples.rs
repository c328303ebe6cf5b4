//! Runs the examples, on memory and on real brokers: each ends by itself and in order.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Finds an example, which Cargo has built before it runs the tests of a package.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap().join("examples");
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.exists(),
        "{path:?} is not built: `cargo test -p mq` as a whole builds it"
    );
    path
}

/// An example and what it shows, whatever it runs on.
struct Example(&'static str, &'static [&'static str]);

const QUICKSTART: Example = Example(
    "quickstart",
    &["received `paid`", "received `shipped` from partition 2", "closed"],
);
const WORK_QUEUE: Example = Example(
    "work_queue",
    &["`garbage`: rejected after 1", "`bounces`: attempts after 3"],
);
const PARTITIONED_KEYS: Example = Example("partitioned_keys", &["called, started, arrived, paid"]);
const REPLAY_READER: Example = Example(
    "replay_reader",
    &[
        "is 3 behind",
        "from noon on",
        // Not every backend counts from 0.
        "5 above the first",
        "the group is still 3 behind",
    ],
);
const CHANNEL_SHUTDOWN: Example = Example("channel_shutdown", &["first run", "second run"]);

#[cfg(any(feature = "amqp", feature = "kafka", feature = "redis", feature = "rocketmq"))]
const EVERY: [Example; 5] = [
    QUICKSTART,
    WORK_QUEUE,
    PARTITIONED_KEYS,
    REPLAY_READER,
    CHANNEL_SHUTDOWN,
];

impl Example {
    fn ends_in_order(&self, url: &str) {
        const MOST: Duration = Duration::from_secs(60);
        let Self(name, shows) = self;
        let mut child = Command::new(example(name))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > MOST {
                child.kill().unwrap();
                panic!(
                    "{name} has not ended within {MOST:?}: {:?}",
                    child.wait_with_output()
                );
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {output:?}");
        for line in *shows {
            assert!(text.contains(line), "{name} does not show {line:?}: {text}");
        }
    }
}

#[test]
fn quickstart_receives_what_it_sent() {
    QUICKSTART.ends_in_order("memory://");
}

#[test]
fn work_queue_ends_with_two_dead_letters() {
    WORK_QUEUE.ends_in_order("memory://");
}

#[test]
fn partitioned_keys_keeps_the_order_of_each_key() {
    PARTITIONED_KEYS.ends_in_order("memory://");
}

#[test]
fn replay_reader_reads_the_past_and_leaves_the_group_alone() {
    REPLAY_READER.ends_in_order("memory://");
}

#[test]
fn channel_shutdown_loses_nothing() {
    CHANNEL_SHUTDOWN.ends_in_order("memory://");
}

#[cfg(feature = "amqp")]
#[test]
fn every_example_runs_on_rabbitmq() {
    use test_brokers::{Broker, RabbitMqOptions};

    // One for all, since it boots for long, and a prefix for each, since examples share the names of their topics.
    let rabbit = RabbitMqOptions::new().start().unwrap();
    for (number, example) in EVERY.into_iter().enumerate() {
        example.ends_in_order(&format!("{}?prefix=example-{number}", rabbit.url()));
    }
}

#[cfg(feature = "kafka")]
#[test]
fn every_example_runs_on_kafka() {
    use test_brokers::{Broker, KafkaOptions};

    for example in EVERY {
        // Of its own, since examples share the names of their topics.
        let kafka = KafkaOptions::new().start().unwrap();
        example.ends_in_order(&kafka.url());
    }
}

#[cfg(feature = "redis")]
#[test]
fn every_example_runs_on_redis() {
    use test_brokers::{Broker, RedisOptions, RedisVersion};

    for example in EVERY {
        // Of its own, since examples share the names of their topics.
        let redis = RedisOptions::new()
            .with_version(RedisVersion::from_environment().unwrap())
            .start()
            .unwrap();
        example.ends_in_order(&redis.url());
    }
}

#[cfg(feature = "rocketmq")]
#[test]
fn every_example_runs_on_rocketmq() {
    use test_brokers::{Broker, RocketMqOptions};

    // One for all, since it boots for long, and a namespace for each, since examples share the names of their topics.
    let cluster = RocketMqOptions::new().start().unwrap();
    for (number, example) in EVERY.into_iter().enumerate() {
        example.ends_in_order(&format!("{}?namespace=example-{number}", cluster.url()));
    }
}
