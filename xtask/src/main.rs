//! The project's own commands: test, conformance, brokers, bench, gates, ci.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks to a terminal"
)]

mod arguments;
mod bench;
mod brokers;
mod cargo;
mod checks;
mod gates;
mod suite;
mod summary;

use std::process::ExitCode;

use arguments::{CiStep, Task};

/// What goes wrong here is shown to a person and ends the command.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match Task::parse(std::env::args().skip(1))
        .map_err(Into::into)
        .and_then(run)
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<bool> {
    match task {
        Task::Help => {
            println!("{}", arguments::USAGE);
            Ok(true)
        }
        Task::Test(selection) => suite::test(&selection),
        Task::Conformance(url, rest) => suite::conformance(&url, &rest),
        Task::Brokers(command) => brokers::run(command),
        Task::Gates => gates::check(),
        Task::Bench(bench) => bench::run(&bench),
        Task::Ci(steps) => ci(&steps),
    }
}

/// Runs the steps one after another and stops at the first that fails.
fn ci(steps: &[CiStep]) -> Result<bool> {
    for step in steps {
        let passed = match step {
            CiStep::Fmt => checks::timed("fmt", checks::fmt),
            CiStep::Clippy => checks::timed("clippy", checks::clippy),
            CiStep::Docs => checks::timed("docs", checks::docs),
            CiStep::Features => checks::timed("features", checks::features),
            CiStep::Deny => checks::timed("deny", checks::deny),
            CiStep::Gates => checks::timed("gates", gates::check),
            // Not timed here: its last line is the count of tests.
            CiStep::Test => suite::test(&suite::Selection::default()),
        }?;
        if !passed {
            return Ok(false);
        }
    }
    Ok(true)
}
