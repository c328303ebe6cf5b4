//! Measures what a death of a Redis server and a power cut leave of messages that were answered `Ok`, by `appendfsync`.
//! It needs root on Linux: `cargo run --release -p benches --features redis --bin power`.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::power::print(benches::redis::power::table)
}
