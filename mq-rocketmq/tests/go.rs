//! With RocketMQ's client in Go, 2.1.2, on one cluster. It needs Go and its modules, which not every machine has, and runs
//! where `MQ_TEST_FULL` is set, as `cargo xtask test --full` does.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test panics where it fails, and says what it leaves out"
)]

mod support;

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use mq_api::Message;
use support::{PATIENCE, java::Java, nothing, open, start, text};
use test_brokers::{Broker, JavaProgram, RocketMqOptions};

/// Builds the program; none where there is no Go.
fn build(into: &Path) -> Option<PathBuf> {
    let program = into.join("interop");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/go"))
        .output();
    match built {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("go: {error}"),
        Ok(output) if output.status.success() => Some(program),
        Ok(output) => panic!("go build: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

async fn messages_and_positions_go_both_ways(program: PathBuf) {
    let cluster = start(RocketMqOptions::new()).await;
    let servers = cluster.url().replace("rocketmq://", "").replace(',', ";");
    let go = || {
        let mut command = Command::new(&program);
        command.env("NAMESRV_ADDR", &servers);
        Java::ready(JavaProgram::start(command).unwrap())
    };

    for compression in ["none", "zlib"] {
        let topic = format!("to-go-{compression}");
        let url = format!(
            "{}?tag_header=kind&compression={compression}&compression_threshold=1KiB",
            cluster.url()
        );
        let (_, mq) = open(&url).await;
        mq.create_topic(&topic, 1).await.unwrap();
        let producer = mq.producer(&topic).await.unwrap();
        let message = |text: &str| {
            Message::new(text.to_owned())
                .with_key("key-1")
                .with_header("kind", "red")
                .with_header("colour", "blue")
        };
        producer.produce(message("one")).await.unwrap();
        for result in producer
            .produce_batch([message(&"x".repeat(8000)), message("two")])
            .await
        {
            result.unwrap();
        }
        let late = message("late").with_delay(Duration::from_millis(200));
        producer.produce(late).await.unwrap();
        let mut go = go();
        let group = format!("readers-{compression}");
        go.ask(&["consume", &topic, &group, "orderly"], "consuming");
        for body in ["one", "8000", "two", "late"] {
            let got = go.hear("got");
            assert_eq!(got, [&*group, "0", "key-1", "red", "blue", body]);
        }
        mq.close().await.unwrap();
    }

    let (_, mq) = open(&format!("{}?tag_header=kind&group=raw", cluster.url())).await;
    mq.create_topic("from-go", 1).await.unwrap();
    let consumer = mq.consumer("from-go", "g").await.unwrap();
    let mut go = go();
    for (kind, texts) in [
        ("single", &["single"][..]),
        ("batch", &["batch-0", "batch-1"]),
        ("compressed", &["8000"]),
        ("delayed", &["delayed"]),
    ] {
        go.ask(&["send", "from-go", kind], "sent");
        for expected in texts {
            let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
                .await
                .unwrap()
                .unwrap();
            let payload = String::from_utf8(delivery.payload().to_vec()).unwrap();
            match *expected {
                "8000" => assert_eq!(payload, "x".repeat(8000)),
                text => assert_eq!(payload, text),
            }
            assert_eq!(delivery.key().map(|key| &key[..]), Some(&b"key-1"[..]));
            assert_eq!(delivery.headers().text("kind"), Some("red"));
            assert_eq!(delivery.headers().text("colour"), Some("blue"));
            delivery.ack().unwrap();
        }
    }
    nothing(&consumer, Duration::from_secs(1)).await;

    mq.create_topic("handed", 1).await.unwrap();
    let producer = mq.producer("handed").await.unwrap();
    for number in 0..10 {
        producer.produce(number.to_string()).await.unwrap();
    }
    go.ask(&["consume", "handed", "both", "orderly"], "consuming");
    for number in 0..10 {
        assert_eq!(go.hear("got")[5], number.to_string());
    }
    go.ask(&["stop", "both"], "stopped");
    let stored = mq.committed("handed", "both").await.unwrap();
    assert_eq!(stored.first().map(|one| one.position), Some(10));
    let consumer = mq.consumer("handed", "both").await.unwrap();
    producer.produce("10").await.unwrap();
    assert_eq!(text(&consumer).await, "10");
    consumer.close().await.unwrap();
    producer.produce("11").await.unwrap();
    go.ask(&["consume", "handed", "both", "orderly"], "consuming");
    assert_eq!(go.hear("got")[5], "11");
    mq.close().await.unwrap();
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    let folder = std::env::temp_dir().join(format!("mq-rocketmq-go-{}", std::process::id()));
    if std::env::var_os("MQ_TEST_FULL").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        match build(&folder) {
            None => eprintln!("NOT RUN: the tests with RocketMQ's client in Go, since there is no `go`"),
            Some(program) => trials.push(Trial::test("messages_and_positions_go_both_ways", || {
                let runtime = tokio::runtime::Runtime::new()?;
                runtime.block_on(messages_and_positions_go_both_ways(program));
                Ok(())
            })),
        }
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    // It is not there where nothing was built.
    let _ = std::fs::remove_dir_all(&folder);
    conclusion.exit_code()
}
