//! Measures what a death of a Redis server and a power cut leave of messages that were answered `Ok`, by `appendfsync`.
//! It needs root on Linux: `cargo run --release -p benches --features redis --bin power`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The table is what it is for.

use std::process::ExitCode;

fn main() -> ExitCode {
    let quick = std::env::args().any(|argument| argument == "--quick");
    match benches::redis::power::table(if quick { 1 } else { 5 }) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
