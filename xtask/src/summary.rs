//! Counts what test runners report.

use std::io::{BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use crate::Result;
use crate::cargo::line_of;

/// Tests that passed and failed, over any number of runners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl Summary {
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
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            screen.write_all(&line)?;
            let text = String::from_utf8_lossy(&line);
            if let Some(result) = Summary::of_line(text.trim_end()) {
                summary += result;
            }
            line.clear();
        }
    }
    let status = child.wait()?;
    if !status.success() && summary.failed == 0 {
        eprintln!("{} ended with {status} and no failed test", line_of(command));
        summary.failed = 1;
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
                failed: 0
            })
        );
        let mimic = "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        assert_eq!(Summary::of_line(mimic), Some(Summary { passed: 7, failed: 2 }));
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
        assert_eq!(
            run_tests_on(&mut broken, &mut screen).unwrap(),
            Summary { passed: 2, failed: 1 }
        );
        assert!(screen.starts_with(b"test result: ok. 2 passed"));
    }
}
