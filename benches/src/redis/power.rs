//! What a death of the server, and a power cut, leave of messages that were answered `Ok`, by `appendfsync`.
//!
//! At one moment the server is stopped and the disk that it writes to is copied (see [`crate::disk`]). The copy is
//! mounted, and a server is started on it.

use std::{path::Path, time::Duration};

use mq_api::{Message, Mq};
use mq_redis::{RedisConfig, RedisMq};
use test_brokers::{AppendFsync, Broker, Redis, RedisOptions, RedisVersion};

use super::{Outcome, text};
use crate::{
    disk::Disk,
    power::{self, Answers, COLUMNS, Fault, Left, before_the_fault},
};

/// How many tasks send, each awaiting its message, and how long each pauses after it: so much that the system is not
/// made to write by the amount alone.
const TASKS: usize = 8;
const PAUSE: Duration = Duration::from_millis(2);
/// How long messages are sent before the fault, at least, and how much longer at most.
const BEFORE: (Duration, Duration) = (Duration::from_millis(2500), Duration::from_millis(1500));
/// The size of every payload, in bytes.
const SIZE: usize = 100;
const TOPIC: &str = "power";
const STREAM: &str = "mq:{power:0}";

/// Measures each setting under both faults, so many rounds each, and writes the table.
///
/// # Errors
/// Says what could not be done, such as mounting.
pub fn table(rounds: usize) -> Outcome<String> {
    let mut out = format!("| `appendfsync` | {COLUMNS}\n|---|---|---|---|---|\n");
    for (name, setting) in [
        ("always", AppendFsync::Always),
        ("everysec", AppendFsync::EverySecond),
        ("no", AppendFsync::Never),
    ] {
        out.push_str(&power::rows(&format!("| {name} "), rounds, |fault| {
            round(setting, fault)
        })?);
    }
    Ok(out)
}

fn round(setting: AppendFsync, fault: Fault) -> Outcome<Left> {
    let disk = Disk::new()?;
    let server = start(setting, disk.mounted())?;
    let runtime = crate::core::two_workers();
    let answers = Answers::default();
    runtime.block_on(send(&server, &answers))?;
    server.freeze().map_err(text)?;
    let answered = answers.last();
    // Nothing more may come to the server that is started next.
    runtime.shutdown_timeout(Duration::from_secs(5));
    let stored = match fault {
        Fault::Kill => {
            server.kill().map_err(text)?;
            server.start().map_err(text)?;
            stored(&server)?
        }
        Fault::PowerCut => {
            let after = disk.copy()?;
            server.kill().map_err(text)?;
            stored(&start(setting, after.mounted())?)?
        }
    };
    Ok(Left::of(&answered, |offset| offset < stored))
}

fn start(setting: AppendFsync, folder: &Path) -> Outcome<Redis> {
    RedisVersion::from_environment()
        .and_then(|version| {
            RedisOptions::new()
                .with_version(version)
                .with_append_fsync(setting)
                .with_config(format!("dir {}", folder.display()))
                .start()
        })
        .map_err(text)
}

/// Sends for a while, and leaves the senders running.
async fn send(server: &Redis, answers: &Answers) -> Outcome<()> {
    let config = RedisConfig::new("127.0.0.1", server.address().port());
    let mq = Mq::from_driver(RedisMq::connect_with(config).await.map_err(text)?);
    mq.create_topic(TOPIC, 1).await.map_err(text)?;
    let producer = mq.producer(TOPIC).await.map_err(text)?;
    for _ in 0..TASKS {
        let (mq, producer, answers) = (mq.clone(), producer.clone(), answers.clone());
        tokio::spawn(async move {
            while let Ok(receipt) = producer.produce(Message::new(vec![0xAB; SIZE])).await {
                if let Some(offset) = receipt.offset {
                    answers.note(offset);
                }
                tokio::time::sleep(PAUSE).await;
            }
            drop(mq);
        });
    }
    before_the_fault(BEFORE).await;
    Ok(())
}

/// Counts what the partition holds, which is what was stored first, without gaps.
fn stored(server: &Redis) -> Outcome<u64> {
    let length = server.command(&["XLEN", STREAM]).map_err(text)?;
    let length: u64 = length.trim().parse().map_err(text)?;
    if length > 0 {
        let last = format!("0-{length}");
        let found = server
            .command(&["XREVRANGE", STREAM, "+", "-", "COUNT", "1"])
            .map_err(text)?;
        if found.lines().next().map(str::trim) != Some(last.as_str()) {
            return Err(format!("{length} entries, and the last is not {last}"));
        }
    }
    Ok(length)
}
