//! The send path, rule by rule, over a driver that does what each test says.

mod closing;
mod model;
mod order;
mod room;
pub(crate) mod script;
mod sending;
mod time;

use std::time::Duration;

use self::script::{Do, Script};
use crate::{ErrorKind, Message, Outcome, Partitioner, Producer, Result};

/// A key that the default partitioner puts into a partition.
fn key_of(partition: u32, partitions: u32) -> String {
    (0..)
        .map(|n| format!("k{n}"))
        .find(|key| Partitioner::Murmur2.partition(key.as_bytes(), partitions) == partition)
        .unwrap()
}

/// Waits for a condition; with a paused clock this costs no time.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never happened: {what}");
}

fn what<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, Outcome) {
    let error = result.unwrap_err();
    (error.kind(), error.outcome())
}

const LOST: Do = Do::Fail(ErrorKind::Connection, Outcome::NotSent);
