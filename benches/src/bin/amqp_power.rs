//! Measures what a death of a RabbitMQ server and a power cut leave of messages that were answered `Ok`.
//! It needs root on Linux: `cargo run --release -p benches --features amqp --bin amqp-power`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The table is what it is for.

use std::process::ExitCode;

fn main() -> ExitCode {
    let quick = std::env::args().any(|argument| argument == "--quick");
    match benches::amqp::power::table(if quick { 1 } else { 5 }) {
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
