//! The benches, run and written down.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Result;
use crate::arguments::Bench;
use crate::cargo::{cargo, succeeds};

/// Measures the core on memory.
pub(crate) fn run(bench: &Bench) -> Result<bool> {
    let features = [
        "--release",
        "-p",
        "benches",
        "--features",
        "peers",
        "--bin",
        "core",
    ];
    if !succeeds(cargo().arg("build").args(features))? {
        return Ok(false);
    }
    let mut command: Command = cargo();
    command.args(["run", "--quiet"]).args(features).arg("--");
    if bench.quick {
        command.arg("--quick");
    }
    if !bench.write {
        return succeeds(&mut command);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/RESULTS-memory.md");
    std::fs::write(&place, &output.stdout)?;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(output.status.success())
}
