//! Measures the core on memory against tokio's channels and other libraries' queues in memory. `cargo xtask bench --backend memory` runs it.

use std::process::ExitCode;

use benches::{apart, command, memory};

fn main() -> ExitCode {
    if let Some(ended) = apart::begin() {
        return ended;
    }
    command::run("memory", "Memory", |options| {
        let about = "No server: what the core itself costs, through the public API and a `dyn` driver, acked and checked. \
                     The allocator (glibc's) keeps what a round frees for the next one, for all contenders; the row that \
                     says fresh memory shows what it costs where the system gives each page anew.";
        Ok((about.to_owned(), memory::works(options)))
    })
}
