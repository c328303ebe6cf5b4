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
};

use libtest_mimic::{Arguments, Trial};
use support::{exchange, java::Java, start};
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
        exchange::sent_here_arrives_there(&cluster, &topic, compression, go).await;
    }
    let mut go = go();
    let sent = [
        ("single", &["single"][..]),
        ("batch", &["batch-0", "batch-1"]),
        ("compressed", &["8000"]),
        ("delayed", &["delayed"]),
    ];
    exchange::sent_there_arrives_here(&cluster, "from-go", &mut go, &sent).await;
    exchange::positions_are_handed_on(&cluster, "handed", &mut go).await;
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
