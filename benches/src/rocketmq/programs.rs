//! The programs that measure other clients, each with a build of its own.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Outcome, text};

/// The programs that could be built.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// The client in Go.
    pub go: Option<PathBuf>,
    /// The crate `rocketmq-client-rust`.
    pub rust: Option<PathBuf>,
}

impl Programs {
    /// Builds what can be built here.
    ///
    /// # Errors
    /// Says why the program in Go could not be built where Go is installed.
    pub fn build() -> Outcome<Self> {
        let beside = std::env::current_exe().map_err(text)?;
        Ok(Self {
            go: build_go(beside.with_file_name("rocketmq-go-bench"))?,
            rust: build_rust(&beside.with_file_name("rocketmq-rust-bench")),
        })
    }

    /// Says what is missing.
    #[must_use]
    pub fn missing(&self) -> String {
        let go = (self.go.is_none(), " Go is not installed here");
        let rust = (
            self.rust.is_none(),
            " `rocketmq-client-rust` could not be built here",
        );
        [go, rust]
            .into_iter()
            .filter(|(missing, _)| *missing)
            .map(|(_, why)| format!("{why}, so that its rows are missing."))
            .collect()
    }
}

fn source(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/rocketmq")
        .join(folder)
}

/// With the module proxy that Go is set up for; none where Go is not installed.
fn build_go(program: PathBuf) -> Outcome<Option<PathBuf>> {
    let mut command = Command::new("go");
    command
        .arg("build")
        .arg("-o")
        .arg(&program)
        .arg(".")
        .current_dir(source("go"));
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("go: {error}")),
        Ok(output) if output.status.success() => Ok(Some(program)),
        Ok(output) => Err(format!("go build: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// None where its crates cannot be fetched or built, which cargo says; the first time takes minutes.
fn build_rust(target: &Path) -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(target)
        .current_dir(source("rust"));
    let built = command.status().is_ok_and(|status| status.success());
    built.then(|| target.join("release/rocketmq-rust-bench"))
}
