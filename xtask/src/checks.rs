//! The checks of CI that run no test.

use std::process::Command;
use std::time::Instant;

use test_brokers::Cache;

use crate::Result;
use crate::cargo::{cargo, packages, succeeds};

/// The version that is fetched where the machine has none.
const CARGO_DENY: &str = "0.20.2";

/// Runs a check and says how long it took.
pub(crate) fn timed(name: &str, check: impl FnOnce() -> Result<bool>) -> Result<bool> {
    let begin = Instant::now();
    let passed = check()?;
    let verdict = if passed { "ok" } else { "FAILED" };
    eprintln!("== {name}: {verdict}, {:.1} s", begin.elapsed().as_secs_f64());
    Ok(passed)
}

pub(crate) fn fmt() -> Result<bool> {
    succeeds(cargo().args(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy() -> Result<bool> {
    succeeds(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))
}

pub(crate) fn docs() -> Result<bool> {
    let mut command = cargo();
    command.args(["doc", "--workspace", "--all-features", "--no-deps"]);
    succeeds(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Checks every package with none of its features, and with each alone.
pub(crate) fn features() -> Result<bool> {
    for package in packages()? {
        if package.features.is_empty() {
            continue;
        }
        let check = |features: &[&str]| {
            let mut command = cargo();
            command
                .args(["clippy", "--quiet", "-p", &package.name, "--no-default-features"])
                .args(features);
            succeeds(command.args(["--", "-D", "warnings"]))
        };
        if !check(&[])? {
            return Ok(false);
        }
        for feature in &package.features {
            if !check(&["--features", feature])? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

pub(crate) fn deny() -> Result<bool> {
    let mut command = deny_command()?;
    succeeds(command.args(["--all-features", "check", "licenses", "bans", "sources"]))
}

/// Finds cargo-deny, or builds it into the cache: about four minutes, once.
fn deny_command() -> Result<Command> {
    let on_path = Command::new("cargo-deny").arg("--version").output();
    if on_path.is_ok_and(|output| output.status.success()) {
        return Ok(Command::new("cargo-deny"));
    }
    let folder = Cache::open()?.entry(&format!("cargo-deny-{CARGO_DENY}"), |folder| {
        let mut install = cargo();
        install
            .args([
                "install",
                "--locked",
                "cargo-deny",
                "--version",
                CARGO_DENY,
                "--root",
            ])
            .arg(folder);
        match succeeds(&mut install) {
            Ok(true) => Ok(()),
            _ => Err(test_brokers::Error::Missing {
                what: "cargo-deny".into(),
                hint: "install it with `cargo install --locked cargo-deny`".into(),
            }),
        }
    })?;
    Ok(Command::new(folder.join("bin/cargo-deny")))
}
