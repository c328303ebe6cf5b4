//! Scratch folders, and the sweeping of those whose owner died.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use rustix::fs::statvfs;
use rustix::process::{Signal, getuid, kill_process_group};
use tempfile::TempDir;

use crate::error::Context;
use crate::process::{group_members, process_start, to_pid};
use crate::{Error, Result};

/// Lists the process groups that work in a scratch folder, so that a later process can end them.
const GROUPS: &str = "process-groups";
/// Linux' file system in memory.
const MEMORY: &str = "/dev/shm";
/// What must be free in memory before files are put there.
const MEMORY_ROOM: u64 = 4 << 30;

/// A folder for one broker, removed with the value.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        let base = base()?;
        SWEEP.call_once(|| sweep(&base));
        Self::below(&base, name)
    }

    /// Makes a folder in memory, for a server that goes by how full its disk is. `None` where there is little room.
    pub(crate) fn in_memory(name: &str) -> Result<Option<Self>> {
        static SWEEP: Once = Once::new();
        let roomy = statvfs(MEMORY).is_ok_and(|all| all.f_bavail.saturating_mul(all.f_frsize) >= MEMORY_ROOM);
        if !roomy {
            return Ok(None);
        }
        let base = base_in(Path::new(MEMORY))?;
        SWEEP.call_once(|| sweep(&base));
        Self::below(&base, name).map(Some)
    }

    fn below(base: &Path, name: &str) -> Result<Self> {
        let own = std::process::id();
        let start = process_start(own).unwrap_or_default();
        let folder = tempfile::Builder::new()
            .prefix(&format!("{own}.{start}.{name}."))
            .tempdir_in(base)
            .context(format!("cannot make a folder in {}", base.display()))?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes down a process group that must not outlive this folder's owner.
    pub(crate) fn record_group(&self, group: u32) -> Result<()> {
        let path = self.path().join(GROUPS);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .context(format!("cannot open {}", path.display()))?;
        writeln!(file, "{group} {}", process_start(group).unwrap_or_default())
            .context(format!("cannot write {}", path.display()))
    }
}

/// Returns the folder of this user that holds scratch folders and port locks.
pub(crate) fn base() -> Result<PathBuf> {
    base_in(&env::temp_dir())
}

fn base_in(folder: &Path) -> Result<PathBuf> {
    let base = folder.join(format!("mq-test-brokers-{}", getuid().as_raw()));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&base)
        .context(format!("cannot make {}", base.display()))?;
    base.canonicalize()
        .context(format!("cannot resolve {}", base.display()))
}

/// Ends what dead owners left running and removes their folders. Failures are no reason not to start.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.splitn(3, '.');
        let owner = parts.next().and_then(|part| part.parse::<u32>().ok());
        let start = parts.next().and_then(|part| part.parse::<u64>().ok());
        let (Some(owner), Some(start)) = (owner, start) else {
            continue;
        };
        if process_start(owner) == Some(start) {
            continue;
        }
        for (group, leader_start) in recorded_groups(&entry.path()) {
            // A group's number is not given to a new process while a member lives, so a missing leader
            // with members is still the old group; a leader with another start time is a stranger.
            let ours = process_start(group).is_none_or(|now| now == leader_start);
            if ours
                && !group_members(group).is_empty()
                && let Ok(pid) = to_pid(group)
            {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

fn recorded_groups(folder: &Path) -> Vec<(u32, u64)> {
    let Ok(text) = fs::read_to_string(folder.join(GROUPS)) else {
        return Vec::new();
    };
    text.lines()
        .filter_map(|line| {
            let (group, start) = line.split_once(' ')?;
            Some((group.parse().ok()?, start.parse().ok()?))
        })
        .collect()
}

/// Reads the last `limit` bytes of a log, from the start of a line where it can.
pub(crate) fn tail(path: &Path, limit: usize) -> String {
    let Ok(bytes) = fs::read(path) else {
        return String::new();
    };
    let from = bytes.len().saturating_sub(limit);
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
    match text.split_once('\n') {
        Some((_, rest)) if from > 0 && !rest.is_empty() => rest.to_owned(),
        _ => text,
    }
}

/// Joins the ends of several logs under their names; those that are absent or empty are left out.
pub(crate) fn tails(paths: &[PathBuf]) -> String {
    let mut all = String::new();
    for path in paths {
        let text = tail(path, 6_000);
        if !text.trim().is_empty() {
            all.push_str(&format!("== {} ==\n{}\n", path.display(), text.trim_end()));
        }
    }
    all
}

/// Writes a file of a server's configuration.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).context(format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::wait::wait_for;

    #[test]
    fn what_a_dead_owner_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let mut left = Command::new("sleep")
            .arg("600")
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut owner = Command::new("true").spawn().unwrap();
        let owner_id = owner.id();
        owner.wait().unwrap();
        let folder = base.path().join(format!("{owner_id}.1.redis.xyz"));
        fs::create_dir(&folder).unwrap();
        fs::write(
            folder.join(GROUPS),
            format!("{} {}\n", left.id(), process_start(left.id()).unwrap()),
        )
        .unwrap();

        sweep(base.path());

        assert!(!folder.exists());
        let ended = wait_for(Duration::from_secs(5), Duration::from_millis(5), || {
            left.try_wait()
        })
        .unwrap();
        assert!(ended.is_some());
    }

    #[test]
    fn a_living_owner_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let folder = base
            .path()
            .join(format!("{own}.{}.redis.xyz", process_start(own).unwrap()));
        fs::create_dir(&folder).unwrap();
        sweep(base.path());
        assert!(folder.exists());
    }
}
