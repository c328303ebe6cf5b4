//! Measures what a death of a RabbitMQ server and a power cut leave of messages that were answered `Ok`.
//! It needs root on Linux: `cargo run --release -p benches --features amqp --bin amqp-power`.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::power::print(benches::amqp::power::table)
}
