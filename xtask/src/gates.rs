//! The speed gates: what repeats where wall time does not, allocations and instructions a message.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use test_brokers::{Cache, Error};

use crate::Result;
use crate::cargo::{cargo, line_of, succeeds};

/// The limits, one a line: the name of the work and the most instructions a message.
const LIMITS: &str = include_str!("../../benches/limits.txt");

/// Each work runs with both counts; the difference is what the messages between them cost, without the start.
const COUNTS: [u64; 2] = [6_400, 19_200];

/// Builds the gates of the benches, counts, and checks every limit.
pub(crate) fn check() -> Result<bool> {
    let Some(folder) = build()? else {
        return Ok(false);
    };
    let mut passed = true;
    for program in ["gates", "codec"] {
        passed &= succeeds(Command::new(folder.join(program)).arg("allocations"))?;
    }
    let valgrind = Valgrind::find()?;
    let mut filling = 0;
    for (name, limit) in limits(LIMITS)? {
        let gates = folder.join(program_of(name));
        let [few, many] = COUNTS;
        let spent = valgrind
            .instructions(&gates, name, many)?
            .saturating_sub(valgrind.instructions(&gates, name, few)?);
        let mut each = spent / (many - few);
        if name == "produce-batch" {
            filling = each;
        } else if name.starts_with("consume-") {
            // What is consumed there was produced before, in batches.
            each = each.saturating_sub(filling);
        }
        let verdict = if each <= limit { "" } else { ": TOO MANY" };
        println!("instructions a message, {name}: {each} (at most {limit}){verdict}");
        passed &= each <= limit;
    }
    Ok(passed)
}

/// Says which program does a piece of work.
fn program_of(work: &str) -> &'static str {
    if work.starts_with("rocketmq-") {
        "codec"
    } else {
        "gates"
    }
}

/// Builds the programs, the same ones that the numbers in the docs come from, and returns their folder.
fn build() -> Result<Option<PathBuf>> {
    let programs = ["--bin", "gates", "--bin", "codec", "--features", "codec"];
    if !succeeds(
        cargo()
            .args(["build", "--release", "-p", "benches"])
            .args(programs),
    )? {
        return Ok(None);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    Ok(Some(target.join("release")))
}

fn limits(text: &str) -> Result<Vec<(&str, u64)>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let mut words = line.split_whitespace();
            let (Some(name), Some(limit), None) = (words.next(), words.next(), words.next()) else {
                return Err(format!("not a limit: `{line}`").into());
            };
            Ok((name, limit.parse()?))
        })
        .collect()
}

/// Counts the instructions of a program.
struct Valgrind {
    /// None where it is on PATH.
    unpacked: Option<PathBuf>,
}

impl Valgrind {
    /// Finds it on PATH, or unpacks Debian's package into the cache.
    fn find() -> Result<Self> {
        let on_path = Command::new("valgrind").arg("--version").output();
        if on_path.is_ok_and(|output| output.status.success()) {
            return Ok(Self { unpacked: None });
        }
        let folder = Cache::open()?.entry("valgrind", |folder| {
            let missing = || Error::Missing {
                what: "valgrind".into(),
                hint: "install it with `apt-get install valgrind`, or put it on PATH".into(),
            };
            let ran = |command: &mut Command| command.status().is_ok_and(|status| status.success());
            let loaded = ran(Command::new("apt-get")
                .args(["-qq", "download", "valgrind"])
                .current_dir(folder));
            let package = std::fs::read_dir(folder)
                .ok()
                .and_then(|mut entries| entries.find_map(|entry| Some(entry.ok()?.path())))
                .filter(|_| loaded)
                .ok_or_else(missing)?;
            if ran(Command::new("dpkg").arg("-x").arg(package).arg(folder)) {
                Ok(())
            } else {
                Err(missing())
            }
        })?;
        Ok(Self {
            unpacked: Some(folder),
        })
    }

    fn instructions(&self, gates: &Path, name: &str, count: u64) -> Result<u64> {
        let mut command = match &self.unpacked {
            None => Command::new("valgrind"),
            Some(folder) => {
                let mut command = Command::new(folder.join("usr/bin/valgrind"));
                command.env("VALGRIND_LIB", folder.join("usr/libexec/valgrind"));
                command
            }
        };
        command
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(gates)
            .args(["work", name, &count.to_string()])
            .stdin(Stdio::null());
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        match collected(&text) {
            Some(count) if output.status.success() => Ok(count),
            _ => Err(format!("`{}` failed: {text}", line_of(&command)).into()),
        }
    }
}

/// Reads callgrind's last word: `==1== Collected : 123`.
fn collected(text: &str) -> Option<u64> {
    let (_, count) = text
        .lines()
        .find(|line| line.contains("Collected"))?
        .split_once(':')?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_can_be_read() {
        assert!(limits(LIMITS).unwrap().len() >= 6);
        assert!(limits("produce 12 13").is_err());
    }

    #[test]
    fn the_count_is_found_in_what_callgrind_says() {
        let text = "==7== Events    : Ir\n==7== Collected : 12447088\n==7==\n";
        assert_eq!(collected(text), Some(12_447_088));
    }
}
