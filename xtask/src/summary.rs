//! Counts what test runners report, and keeps what they say of failures, to be shown once more at the end.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use crate::Result;
use crate::cargo::line_of;

/// Tests that passed and failed, over any number of runners.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What the runners said of each failed test.
    pub(crate) failures: Vec<Failure>,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }
}

/// What a runner said of a failed test: its first and its last lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Failure {
    head: Vec<String>,
    tail: VecDeque<String>,
    /// How many lines between them are left out.
    between: usize,
}

impl Failure {
    const HEAD: usize = 16;
    const TAIL: usize = 8;
    /// Characters of a line that are shown.
    const WIDTH: usize = 600;

    fn add(&mut self, line: &str) {
        let line: String = line.chars().take(Self::WIDTH).collect();
        if self.head.len() < Self::HEAD {
            self.head.push(line);
            return;
        }
        self.tail.push_back(line);
        if self.tail.len() > Self::TAIL {
            self.tail.pop_front();
            self.between += 1;
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.head {
            writeln!(f, "{line}")?;
        }
        if self.between > 0 {
            writeln!(f, "    ... {} lines, to be read above ...", self.between)?;
        }
        self.tail.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Finds the failures in what a runner writes: `---- name ----` or `---- name stdout ----` begins one, and the list of
/// the names or the result ends the last.
#[derive(Debug, Default)]
struct Failures {
    open: Option<Failure>,
    done: Vec<Failure>,
}

impl Failures {
    fn read(&mut self, line: &str) {
        let begins = line.starts_with("---- ") && line.ends_with(" ----");
        if begins || line == "failures:" || line.starts_with("test result: ") {
            self.done.extend(self.open.take());
        }
        if begins {
            self.open = Some(Failure::default());
        }
        if let Some(open) = &mut self.open
            && !line.is_empty()
        {
            open.add(line);
        }
    }
}

impl Summary {
    /// Counts what kept tests from running as one failure, and says so.
    pub(crate) fn broken(what: &str) -> Self {
        eprintln!("{what}");
        let mut failure = Failure::default();
        failure.add(what);
        Self {
            passed: 0,
            failed: 1,
            failures: vec![failure],
        }
    }

    /// Reads a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
    fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let part = counts
                .split(';')
                .map(str::trim)
                .find(|part| part.ends_with(what))?;
            part.split_once(' ')?.0.parse::<u64>().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            failures: Vec::new(),
        })
    }
}

/// Runs a command that runs tests, shows all it writes and adds up its results.
///
/// A runner that ends badly without having reported a failure (a build error, an abort) counts as one failure.
pub(crate) fn run_tests(command: &mut Command) -> Result<Summary> {
    run_tests_on(command, &mut std::io::stdout())
}

fn run_tests_on(command: &mut Command, screen: &mut impl Write) -> Result<Summary> {
    eprintln!("$ {}", line_of(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|cause| {
            format!(
                "cannot start {}: {cause}",
                command.get_program().to_string_lossy()
            )
        })?;
    let mut summary = Summary::default();
    let mut failures = Failures::default();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            screen.write_all(&line)?;
            let text = String::from_utf8_lossy(&line);
            failures.read(text.trim_end());
            if let Some(result) = Summary::of_line(text.trim_end()) {
                summary += result;
            }
            line.clear();
        }
    }
    let status = child.wait()?;
    failures.done.extend(failures.open.take());
    summary.failures = failures.done;
    if !status.success() && summary.failed == 0 {
        summary += Summary::broken(&format!(
            "{} ended with {status} and no failed test",
            line_of(command)
        ));
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_both_runners_are_read() {
        let libtest =
            "test result: ok. 23 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.34s";
        assert_eq!(
            Summary::of_line(libtest),
            Some(Summary {
                passed: 23,
                failed: 0,
                ..Summary::default()
            })
        );
        let mimic = "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        let (passed, failed) = (7, 2);
        let counts = Summary {
            passed,
            failed,
            ..Summary::default()
        };
        assert_eq!(Summary::of_line(mimic), Some(counts));
        assert_eq!(Summary::of_line("test result_lines ... ok"), None);
        assert_eq!(Summary::of_line("running 3 tests"), None);
    }

    #[test]
    fn a_runner_that_breaks_counts_as_a_failure() {
        let mut broken = Command::new("/bin/sh");
        broken.args([
            "-c",
            "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 3",
        ]);
        let mut screen = Vec::new();
        let summary = run_tests_on(&mut broken, &mut screen).unwrap();
        assert_eq!((summary.passed, summary.failed), (2, 1));
        assert!(summary.failures[0].to_string().contains("no failed test"));
        assert!(screen.starts_with(b"test result: ok. 2 passed"));
    }

    #[test]
    fn what_is_said_of_failures_is_kept_in_bounds() {
        let mut failures = Failures::default();
        let mut read = |line: &str| failures.read(line);
        ["running 2 tests", "failures:", "", "---- a_long_one ----"]
            .iter()
            .for_each(|line| read(line));
        (0..100).for_each(|line| read(&format!("line {line}")));
        [
            "---- a_short_one stdout ----",
            "why",
            "failures:",
            "    a_long_one",
        ]
        .iter()
        .for_each(|line| read(line));
        read("test result: FAILED. 0 passed; 2 failed; 0 ignored");
        let told: Vec<String> = failures.done.iter().map(Failure::to_string).collect();
        assert_eq!(told.len(), 2);
        assert!(
            told[0].starts_with("---- a_long_one ----\nline 0\n"),
            "{}",
            told[0]
        );
        assert!(
            told[0].ends_with("line 99\n") && told[0].contains("... 77 lines"),
            "{}",
            told[0]
        );
        assert_eq!(told[1], "---- a_short_one stdout ----\nwhy\n");
    }
}
