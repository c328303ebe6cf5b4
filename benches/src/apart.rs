//! What is measured in processes of their own, and what the allocator of the bench does with memory that is freed.

use std::{
    collections::VecDeque,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use mq_api::Message;

use crate::{
    core::{self, Load, current_thread, open, two_workers},
    meter::{Sample, resident},
};

type Outcome = Result<Sample, String>;

/// Asks for what a retained message keeps.
const KEPT: &str = "--kept";
/// Asks for a round of ours, or of the channel, in memory that is fresh from the system.
const OURS: &str = "--fresh-ours";
const CHANNEL: &str = "--fresh-channel";

/// What makes glibc's allocator keep what is freed for what is asked for next. Other allocators do not read it.
const KEEPS: [(&str, &str); 3] = [
    ("MALLOC_TRIM_THRESHOLD_", "4000000000"),
    ("MALLOC_TOP_PAD_", "268435456"),
    ("MALLOC_MMAP_THRESHOLD_", "4000000000"),
];

/// Begins a program: does what it is asked for as a process apart, or begins again with an allocator that keeps what is
/// freed. Returns how the process ended where it is not to go on.
///
/// Without that each round would ask the system again for the memory that the one before gave back. Its page faults took as
/// much time as the library, where messages go in batches, and came and went with what else was measured.
#[must_use]
#[allow(clippy::print_stdout, clippy::print_stderr)] // It is how one process tells the other.
pub fn begin() -> Option<ExitCode> {
    let mut words: VecDeque<String> = std::env::args().skip(1).collect();
    let asked = words.pop_front();
    let count = words.pop_front().and_then(|count| count.parse().ok());
    let measured = match (asked.as_deref(), count) {
        (Some(KEPT), Some(count)) => keep(count),
        (Some(OURS), Some(count)) => core::ours(&two_workers(), &many(count)),
        (Some(CHANNEL), Some(count)) => core::mpsc(&two_workers(), &many(count)),
        _ => return begin_again(),
    };
    match measured {
        Ok(sample) => {
            let all = sample.values.into_iter().chain(sample.cpu);
            println!(
                "{}",
                all.map(|value| value.to_string()).collect::<Vec<_>>().join(" ")
            );
            Some(ExitCode::SUCCESS)
        }
        Err(why) => {
            eprintln!("{why}");
            Some(ExitCode::FAILURE)
        }
    }
}

#[allow(clippy::print_stderr)]
fn begin_again() -> Option<ExitCode> {
    if KEEPS.iter().all(|(name, _)| std::env::var_os(name).is_some()) {
        return None;
    }
    let program = std::env::current_exe().ok()?;
    let why = Command::new(program)
        .args(std::env::args_os().skip(1))
        .envs(KEEPS)
        .exec();
    eprintln!("cannot begin again: {why}");
    Some(ExitCode::FAILURE)
}

fn many(messages: u64) -> Load {
    Load {
        batch: 256,
        ..Load::one_to_one(messages)
    }
}

/// Asks a process apart, which has the system's own settings.
fn ask(what: &str, count: u64) -> Result<Vec<f64>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program);
    child.args([what, &count.to_string()]);
    for (name, _) in KEEPS {
        child.env_remove(name);
    }
    let told = child.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let values = text.split_whitespace().map(str::parse).collect();
    let values: Result<Vec<f64>, _> = values;
    values.ok().filter(|values| !values.is_empty()).ok_or_else(|| {
        format!(
            "the process told `{text}`: {}",
            String::from_utf8_lossy(&told.stderr)
        )
    })
}

/// Measures what each of so many retained messages of 100 bytes keeps in RAM, in bytes. In a process that did something
/// before, what that gave back to the allocator would hide it.
///
/// # Errors
/// Says what the other process said.
pub fn kept(count: u64) -> Outcome {
    ask(KEPT, count).map(Sample::of)
}

/// Runs a round of ours in memory that is fresh from the system.
///
/// # Errors
/// Says what the other process said.
pub fn fresh_ours(count: u64) -> Outcome {
    ask(OURS, count).map(rate)
}

/// Runs a round of tokio's channel in such memory.
///
/// # Errors
/// Says what the other process said.
pub fn fresh_channel(count: u64) -> Outcome {
    ask(CHANNEL, count).map(rate)
}

/// Reads what [`begin`] printed of a rate: the processor time comes last.
fn rate(mut values: Vec<f64>) -> Sample {
    let cpu = values.pop();
    Sample { values, cpu }
}

fn keep(count: u64) -> Outcome {
    let stored = current_thread().block_on(async {
        let mq = open(1).await?;
        let producer = mq.producer("t").await?;
        let before = resident();
        for index in 0..count {
            let mut own = index.to_le_bytes().to_vec();
            own.resize(100, 0xAB);
            producer.produce(Message::new(own)).await?;
        }
        Ok::<_, mq_api::Error>((mq, before, resident()))
    });
    let (_mq, before, after) = stored.map_err(|error| error.to_string())?;
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
    let count = count as f64;
    Ok(Sample::of([(after? - before?) / count]))
}
