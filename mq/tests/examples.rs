//! Runs the examples: each ends by itself and in order.

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

fn ends_in_order(name: &str, shows: &[&str]) {
    const MOST: Duration = Duration::from_secs(60);
    let mut child = Command::new(example(name))
        .arg("memory://")
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
    for line in shows {
        assert!(text.contains(line), "{name} does not show {line:?}: {text}");
    }
}

#[test]
fn quickstart_receives_what_it_sent() {
    ends_in_order(
        "quickstart",
        &["received `paid`", "received `shipped` from partition 2", "closed"],
    );
}

#[test]
fn work_queue_ends_with_two_dead_letters() {
    ends_in_order(
        "work_queue",
        &["`garbage`: rejected after 1", "`bounces`: attempts after 3"],
    );
}

#[test]
fn partitioned_keys_keeps_the_order_of_each_key() {
    ends_in_order("partitioned_keys", &["called, started, arrived, paid"]);
}

#[test]
fn replay_reader_reads_the_past_and_leaves_the_group_alone() {
    ends_in_order(
        "replay_reader",
        &[
            "is 3 behind",
            "from noon on, which is offset 5",
            "the group is still 3 behind",
        ],
    );
}

#[test]
fn channel_shutdown_loses_nothing() {
    ends_in_order("channel_shutdown", &["first run", "second run"]);
}
