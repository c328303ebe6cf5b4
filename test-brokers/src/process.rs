//! A server's processes: one group, its signals, its end.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::error::Context;
use crate::scratch::Scratch;
use crate::wait::wait_for;
use crate::{Error, Result};

/// How long a process may need to be gone after SIGKILL; a JVM with much memory on a busy machine is slow.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long the last thread of a server may need to stop, which may wait for a disk.
const FREEZE_LIMIT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(5);

/// A watcher waits for the end of its standard input, which comes when this process ends in whatever way, and
/// then ends the group and removes its folder.
const WATCHER: &str = r#"read -r _; kill -s KILL -- "-$1" 2>/dev/null; rm -rf -- "$2""#;

/// A running server: the leader of a process group and everything that it started.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    leader: Child,
    watcher: Child,
}

impl Process {
    /// Starts `command` as the leader of a new group, with both outputs appended to `log`.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path, scratch: &Scratch) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .context(format!("cannot open {}", log.display()))?;
        let errors = output.try_clone().context("cannot share a log file")?;
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let mut leader = command.spawn().context(format!(
            "cannot start {}",
            command.get_program().to_string_lossy()
        ))?;
        let watcher = scratch
            .record_group(leader.id())
            .and_then(|()| watch(leader.id(), scratch.path()));
        match watcher {
            Ok(watcher) => Ok(Self {
                name: name.to_owned(),
                leader,
                watcher,
            }),
            Err(error) => {
                let _ = leader.kill();
                let _ = leader.wait();
                Err(error)
            }
        }
    }

    /// Returns the number of the group, which is that of its leader.
    pub(crate) fn group(&self) -> u32 {
        self.leader.id()
    }

    /// Says whether the leader lives. One that has ended is reaped.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.leader.try_wait(), Ok(None))
    }

    /// Sends a signal to every process of the group.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process_group(to_pid(self.group())?, signal).context(format!("cannot signal {}", self.name))
    }

    /// Stops every process of the group, and returns when none of their threads goes on. The signal alone does not say so:
    /// one thread takes it up and stops the others, and on a busy machine that thread may have to wait for a processor while
    /// the others still answer.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let group = self.group();
        let stopped = wait_for(FREEZE_LIMIT, STEP, || -> Result<_> {
            Ok(group_members(group).into_iter().all(is_stopped).then_some(()))
        })?;
        stopped.ok_or_else(|| Error::NotStopped {
            server: self.name.clone(),
            waited: FREEZE_LIMIT,
        })
    }

    /// Asks the group, or only its members called `only`, to end; kills what is left after `patience`.
    pub(crate) fn terminate(mut self, only: Option<&str>, patience: Duration) -> Result<()> {
        // A frozen process does not see SIGTERM.
        let _ = self.signal(Signal::CONT);
        match only {
            None => {
                let _ = self.signal(Signal::TERM);
            }
            Some(name) => {
                for member in group_members(self.group()) {
                    if command_name(member).as_deref() == Some(name) {
                        let _ = kill_process(to_pid(member)?, Signal::TERM);
                    }
                }
            }
        }
        let _ = self.wait_until_gone(patience);
        self.end()
    }

    /// Kills the group and waits until no process of it is left.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // The watcher first: it must not kill a group whose number is free again.
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
        let _ = self.signal(Signal::KILL);
        if self.wait_until_gone(KILL_LIMIT) {
            Ok(())
        } else {
            Err(Error::NotEnded {
                server: self.name.clone(),
                waited: KILL_LIMIT,
            })
        }
    }

    fn wait_until_gone(&mut self, limit: Duration) -> bool {
        let group = self.group();
        let gone = wait_for(limit, STEP, || -> Result<_, std::convert::Infallible> {
            let leader_ended = !matches!(self.leader.try_wait(), Ok(None));
            Ok((leader_ended && group_members(group).is_empty()).then_some(()))
        });
        matches!(gone, Ok(Some(())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.watcher.try_wait(), Ok(None)) {
            let _ = self.end();
        }
    }
}

/// The place of a server's process, which comes and goes while the server's data stays.
#[derive(Debug)]
pub(crate) struct Slot {
    server: String,
    process: Mutex<Option<Process>>,
}

impl Slot {
    pub(crate) fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            process: Mutex::new(None),
        }
    }

    /// Fills the place by `spawn`, unless a process lives there.
    pub(crate) fn fill(&self, spawn: impl FnOnce(&str) -> Result<Process>) -> Result<()> {
        let mut process = self.lock();
        if process.as_mut().is_some_and(Process::is_running) {
            return Err(Error::Running {
                server: self.server.clone(),
            });
        }
        // Whatever is left of the old group ends before the new one begins.
        *process = None;
        *process = Some(spawn(&self.server)?);
        Ok(())
    }

    pub(crate) fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(Process::is_running)
    }

    /// Stops the server's processes where they stand.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.running(Process::freeze)
    }

    /// Lets a server go on that was frozen.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.running(|process| process.signal(Signal::CONT))
    }

    fn running(&self, act: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
        let mut process = self.lock();
        match process
            .as_mut()
            .and_then(|process| process.is_running().then_some(process))
        {
            Some(process) => act(process),
            None => Err(self.not_running()),
        }
    }

    pub(crate) fn kill(&self) -> Result<()> {
        self.take()?.kill()
    }

    pub(crate) fn terminate(&self, only: Option<&str>, patience: Duration) -> Result<()> {
        self.take()?.terminate(only, patience)
    }

    /// Waits until `is_ready` says so; fails at once when the process has ended.
    pub(crate) fn wait_until_ready(
        &self,
        limit: Duration,
        logs: impl Fn() -> String,
        mut is_ready: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let fail = |reason: &str| Error::NotReady {
            server: self.server.clone(),
            reason: reason.into(),
            logs: logs(),
        };
        let ready = wait_for(limit, Duration::from_millis(20), || {
            if is_ready()? {
                return Ok(Some(()));
            }
            if self.is_running() {
                Ok(None)
            } else {
                Err(fail("it ended while starting"))
            }
        })?;
        ready.ok_or_else(|| fail(&format!("nothing after {limit:?}")))
    }

    fn take(&self) -> Result<Process> {
        self.lock().take().ok_or_else(|| self.not_running())
    }

    fn not_running(&self) -> Error {
        Error::NotRunning {
            server: self.server.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(group: u32, folder: &Path) -> Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", WATCHER, "mq-test-watcher"])
        .arg(group.to_string())
        .arg(folder)
        // Not in our group: an interrupt at the terminal ends us, and only then is the watcher's work due.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the watcher")
}

pub(crate) fn to_pid(id: u32) -> Result<Pid> {
    i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::Invalid {
            what: "a process id".into(),
            value: id.to_string(),
        })
}

/// Returns the start time of a living process, in clock ticks since boot; with its id it names it for good.
pub(crate) fn process_start(id: u32) -> Option<u64> {
    let stat = Stat::read(id)?;
    (!stat.ended).then_some(stat.start)
}

/// Returns the living processes of a group. Zombies have ended, whoever reaps them.
pub(crate) fn group_members(group: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|id| Stat::read(*id).is_some_and(|stat| stat.group == group && !stat.ended))
        .collect()
}

/// Tells whether no thread of a process runs on: all have stopped or ended, or will before they leave the kernel.
fn is_stopped(id: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{id}/task")) else {
        return true;
    };
    let states: Vec<String> = threads
        .flatten()
        .filter_map(|thread| {
            Some(state_in(&fs::read_to_string(thread.path().join("stat")).ok()?)?.to_owned())
        })
        .collect();
    // Who waits for a disk stops behind that, once the others have been told to.
    let begun = states.iter().any(|state| state == "T") || states.iter().all(|state| state != "D");
    begun
        && states
            .iter()
            .all(|state| matches!(state.as_str(), "T" | "t" | "D" | "Z" | "X"))
}

/// Finds a state in the text of a `stat`: it follows the command's name, in parentheses, which may hold spaces and
/// parentheses.
fn state_in(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().next()
}

fn command_name(id: u32) -> Option<String> {
    Some(
        fs::read_to_string(format!("/proc/{id}/comm"))
            .ok()?
            .trim_end()
            .to_owned(),
    )
}

/// What this crate reads of `/proc/<pid>/stat` (proc(5)).
struct Stat {
    /// Whether nothing is left but an entry that waits to be reaped. While other threads still end, the process
    /// holds its ports, though its first thread is a zombie already.
    ended: bool,
    group: u32,
    start: u64,
}

impl Stat {
    fn read(id: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The command's name, in parentheses, may hold spaces and parentheses.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            ended: matches!(*fields.first()?, "Z" | "X") && fields.get(17)?.parse::<u32>().ok()? <= 1,
            group: fields.get(2)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Does all at once, each in a thread of its own, and returns the first failure when all have ended.
pub(crate) fn at_once<F: FnOnce() -> Result<()> + Send>(acts: impl Iterator<Item = F>) -> Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = acts.map(|act| scope.spawn(act)).collect();
        let mut result = Ok(());
        for thread in running {
            let ended = thread
                .join()
                .unwrap_or_else(|cause| std::panic::resume_unwind(cause));
            result = result.and(ended);
        }
        result
    })
}

/// Finds an executable on `PATH`.
pub(crate) fn on_path(name: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Runs a program to its end and returns what it wrote.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let all = format!("{}: {} {}", output.status, errors.trim(), text.trim());
    let from = all.char_indices().rev().nth(4_000).map_or(0, |(at, _)| at);
    Err(Error::Command {
        program,
        output: all.get(from..).unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Scratch, Process) {
        let scratch = Scratch::new("shell").unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let log = scratch.path().join("log");
        let process = Process::spawn("shell", command, &log, &scratch).unwrap();
        (scratch, process)
    }

    fn members_settle_at(group: u32, count: usize) {
        let settled = wait_for(Duration::from_secs(10), STEP, || -> Result<_> {
            Ok((group_members(group).len() == count).then_some(()))
        });
        assert!(
            settled.unwrap().is_some(),
            "group {group} has {:?}",
            group_members(group)
        );
    }

    #[test]
    fn a_kill_ends_the_children_too() {
        let (_scratch, process) = shell("sleep 600 & sleep 600 & wait");
        let group = process.group();
        members_settle_at(group, 3);
        process.kill().unwrap();
        assert!(group_members(group).is_empty());
    }

    #[test]
    fn a_group_is_frozen_when_the_call_returns() {
        let (_scratch, process) =
            shell("while :; do :; done & while :; do :; done & while :; do :; done & wait");
        let group = process.group();
        members_settle_at(group, 4);
        for _ in 0..20 {
            process.freeze().unwrap();
            assert!(group_members(group).into_iter().all(is_stopped));
            process.signal(Signal::CONT).unwrap();
        }
        process.kill().unwrap();
    }

    #[test]
    fn a_frozen_group_is_ended_by_drop() {
        let (_scratch, process) = shell("sleep 600 & wait");
        let group = process.group();
        members_settle_at(group, 2);
        process.freeze().unwrap();
        drop(process);
        assert!(group_members(group).is_empty());
    }

    #[test]
    fn a_process_that_ignores_the_request_is_killed() {
        let (_scratch, process) = shell("trap '' TERM; while :; do sleep 600; done");
        let group = process.group();
        members_settle_at(group, 2);
        process.terminate(None, Duration::from_millis(200)).unwrap();
        assert!(group_members(group).is_empty());
    }

    #[test]
    fn the_watcher_ends_the_group_when_its_input_ends() {
        let (scratch, mut process) = shell("sleep 600 & wait");
        let group = process.group();
        members_settle_at(group, 2);
        drop(process.watcher.stdin.take());
        members_settle_at(group, 0);
        process.watcher.wait().unwrap();
        assert!(!scratch.path().exists());
    }
}
