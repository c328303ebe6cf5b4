//! Measures the core on memory against tokio's channels and other libraries' queues in memory. `cargo xtask bench --backend memory` runs it.

use std::process::ExitCode;

use benches::{command, flat, memory};

fn main() -> ExitCode {
    if flat::told_to_keep() {
        return ExitCode::SUCCESS;
    }
    command::run("memory", "Memory", |options| {
        let about = "No server: what the core itself costs, through the public API and a `dyn` driver, acked and checked.";
        Ok((about.to_owned(), memory::works(options)))
    })
}
