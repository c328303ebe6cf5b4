//! Calls of cargo, and what it knows of the workspace.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Result;

/// Returns a call of the cargo that runs this command.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Runs a command with the terminal's streams and says whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    eprintln!("$ {}", line_of(command));
    let status = command.stdin(Stdio::null()).status().map_err(|cause| {
        format!(
            "cannot start {}: {cause}",
            command.get_program().to_string_lossy()
        )
    })?;
    Ok(status.success())
}

/// Returns a command as a person would type it.
pub(crate) fn line_of(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    command
        .get_args()
        .fold(name, |line, word| format!("{line} {}", word.to_string_lossy()))
}

/// A member of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its cargo features, `default` left out, sorted.
    pub(crate) features: Vec<String>,
}

/// Returns the members of the workspace, sorted by name.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|cause| format!("cannot start cargo metadata: {cause}"))?;
    if !output.status.success() {
        return Err("cargo metadata failed".into());
    }
    read_packages(&serde_json::from_slice(&output.stdout)?)
}

fn read_packages(metadata: &Value) -> Result<Vec<Package>> {
    let list = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata lists no packages")?;
    let mut packages = Vec::new();
    for package in list {
        let name = package["name"]
            .as_str()
            .ok_or("a package has no name")?
            .to_owned();
        let features = package["features"]
            .as_object()
            .ok_or("a package has no features")?;
        // An optional dependency without `dep:` makes a feature of its own; it is checked like the others.
        let mut features: Vec<String> = features
            .keys()
            .filter(|name| *name != "default")
            .cloned()
            .collect();
        features.sort();
        packages.push(Package { name, features });
    }
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(packages)
}

/// A program of integration tests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestBinary {
    pub(crate) name: String,
    program: PathBuf,
    /// The package's folder, where its tests expect to run.
    folder: PathBuf,
}

impl TestBinary {
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.folder);
        command
    }
}

/// Returns the integration tests of a package as a call of `cargo test` builds them: with the same packages and features
/// nothing is compiled twice.
pub(crate) fn test_binaries(test: &Command, package: &str) -> Result<Vec<TestBinary>> {
    let mut build = cargo();
    build
        .args(test.get_args().take_while(|word| *word != "--"))
        .args(["--no-run", "--message-format", "json-render-diagnostics"]);
    let output = build
        .stderr(Stdio::inherit())
        .output()
        .map_err(|cause| format!("cannot start cargo: {cause}"))?;
    if !output.status.success() {
        return Err("the tests do not build".into());
    }
    let binaries = read_binaries(&String::from_utf8_lossy(&output.stdout), package)?;
    if binaries.is_empty() {
        return Err(format!("{package} has no integration tests").into());
    }
    Ok(binaries)
}

fn read_binaries(messages: &str, package: &str) -> Result<Vec<TestBinary>> {
    let mut binaries = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line)?;
        let is_test = message["target"]["kind"]
            .as_array()
            .is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
        let folder = message["manifest_path"]
            .as_str()
            .and_then(|manifest| PathBuf::from(manifest).parent().map(PathBuf::from));
        if let (true, Some(program), Some(folder)) = (is_test, message["executable"].as_str(), folder)
            && folder.ends_with(package)
        {
            binaries.push(TestBinary {
                name: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
                program: program.into(),
                folder,
            });
        }
    }
    Ok(binaries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integration_tests_of_one_package_are_found() {
        let messages = r#"
{"reason":"compiler-artifact","manifest_path":"/w/mq-redis/Cargo.toml","target":{"kind":["lib"]},"executable":"/t/mq_redis-1"}
{"reason":"compiler-artifact","manifest_path":"/w/mq-redis/Cargo.toml","target":{"kind":["test"],"name":"traps"},"executable":"/t/traps-1"}
{"reason":"compiler-artifact","manifest_path":"/w/mq-kafka/Cargo.toml","target":{"kind":["test"]},"executable":"/t/traps-2"}
{"reason":"build-finished","success":true}"#;
        let found = TestBinary {
            name: "traps".into(),
            program: "/t/traps-1".into(),
            folder: "/w/mq-redis".into(),
        };
        assert_eq!(read_binaries(messages, "mq-redis").unwrap(), [found]);
    }

    #[test]
    fn packages_are_sorted_and_default_is_no_feature_of_its_own() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "mq", "features": { "default": ["memory"], "redis": [], "memory": [] } },
            { "name": "benches", "features": {} },
        ]});
        let packages = read_packages(&metadata).unwrap();
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["benches", "mq"]);
        assert_eq!(packages[1].features, ["memory", "redis"]);
    }
}
