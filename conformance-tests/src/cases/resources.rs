//! What this process holds and has used, read from the system: for cases that run alone in a process.

use std::{fmt, fs, time::Duration};

use crate::failure::{CaseResult, Failure};

/// Counts what a client must give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) threads: usize,
    pub(crate) tasks: usize,
    pub(crate) descriptors: usize,
}

impl Held {
    /// Counts what the process and the runtime that this is called in hold now.
    pub(crate) fn now() -> CaseResult<Self> {
        Ok(Self {
            threads: entries("/proc/self/task")?,
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            descriptors: entries("/proc/self/fd")?,
        })
    }

    /// Tells whether nothing is held beyond what was held before.
    pub(crate) fn is_within(&self, before: &Self) -> bool {
        self.threads <= before.threads && self.tasks <= before.tasks && self.descriptors <= before.descriptors
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} threads, {} tasks, {} descriptors",
            self.threads, self.tasks, self.descriptors
        )
    }
}

/// Returns the processor time that the process has used.
pub(crate) fn processor_time() -> CaseResult<Duration> {
    // The clock of the scheduler, of all threads: the ticks of /proc/self/stat are too coarse.
    let mut nanos = 0_u64;
    for task in fs::read_dir("/proc/self/task")? {
        // A thread that has just ended took its time with it; it was not the idle one.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat"))
            && let Some(time) = text.split_whitespace().next()
        {
            nanos += time.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// Returns the most memory that the process has had resident so far, in bytes.
pub(crate) fn peak_memory() -> CaseResult<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or_else(|| Failure::new("/proc/self/status has no VmHWM"))?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}

fn entries(folder: &str) -> CaseResult<usize> {
    Ok(fs::read_dir(folder)?.count())
}
