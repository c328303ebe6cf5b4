//! What a death of the server, and a power cut, leave of messages that were answered `Ok`, by `appendfsync`.
//!
//! At one moment the server is stopped and the disk that it writes to is copied (see [`crate::disk`]). The copy is
//! mounted, and a server is started on it.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mq_api::{Message, Mq};
use mq_redis::{RedisConfig, RedisMq};
use test_brokers::{AppendFsync, Broker, Redis, RedisOptions, RedisVersion};

use super::{Outcome, text};
use crate::disk::Disk;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    PowerCut,
}

/// What became of the messages of one round.
struct Left {
    answered: usize,
    lost: usize,
    /// How long before the fault the oldest of the lost messages had been answered.
    oldest: Option<Duration>,
}

/// Measures each setting under both faults, so many rounds each, and writes the table.
///
/// # Errors
/// Says what could not be done, such as mounting.
pub fn table(rounds: usize) -> Outcome<String> {
    let mut out = String::from(
        "| `appendfsync` | fault | answered `Ok` | lost, round by round | the oldest lost one was answered |\n\
         |---|---|---|---|---|\n",
    );
    for (name, setting) in [
        ("always", AppendFsync::Always),
        ("everysec", AppendFsync::EverySecond),
        ("no", AppendFsync::Never),
    ] {
        for (fault, words) in [(Fault::Kill, "`kill -9`"), (Fault::PowerCut, "power cut")] {
            let all = (0..rounds)
                .map(|_| round(setting, fault))
                .collect::<Outcome<Vec<Left>>>()?;
            let answered: usize = all.iter().map(|left| left.answered).sum();
            let lost: Vec<String> = all.iter().map(|left| left.lost.to_string()).collect();
            let oldest = all.iter().filter_map(|left| left.oldest).max();
            out.push_str(&format!(
                "| {name} | {words} | {answered} | {} | {} |\n",
                lost.join(", "),
                oldest.map_or_else(
                    || "-".to_owned(),
                    |oldest| format!("{:.1} s before", oldest.as_secs_f64())
                )
            ));
        }
    }
    Ok(out)
}

/// Offsets that were answered `Ok`, and when.
type Answers = Arc<Mutex<Vec<(u64, Instant)>>>;

fn lock(answers: &Answers) -> MutexGuard<'_, Vec<(u64, Instant)>> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn round(setting: AppendFsync, fault: Fault) -> Outcome<Left> {
    let disk = Disk::new()?;
    let server = start(setting, disk.mounted())?;
    let runtime = crate::core::two_workers();
    let answers = Answers::default();
    runtime.block_on(send(&server, &answers))?;
    server.freeze().map_err(text)?;
    // What is on its way to the senders was answered.
    pause(Duration::from_millis(200));
    let (answers, at) = (lock(&answers).clone(), Instant::now());
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
    let lost = answers.iter().filter(|(offset, _)| *offset >= stored);
    Ok(Left {
        answered: answers.len(),
        lost: lost.clone().count(),
        oldest: lost.map(|(_, answered)| at.duration_since(*answered)).max(),
    })
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
        let (mq, producer, answers) = (mq.clone(), producer.clone(), Arc::clone(answers));
        tokio::spawn(async move {
            while let Ok(receipt) = producer.produce(Message::new(vec![0xAB; SIZE])).await {
                lock(&answers).extend(receipt.offset.map(|offset| (offset, Instant::now())));
                tokio::time::sleep(PAUSE).await;
            }
            drop(mq);
        });
    }
    tokio::time::sleep(BEFORE.0 + BEFORE.1.mul_f64(fastrand::f64())).await;
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

#[expect(clippy::disallowed_methods, reason = "outside of any runtime")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
