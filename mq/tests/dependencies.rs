//! Holds the default build to what the README says of it.

use std::{collections::BTreeSet, process::Command};

/// Lists the crates that a default build of `mq` compiles, by name.
fn tree(edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "mq", "--prefix", "none"])
        .args(["--edges", edges, "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs, since it runs this test");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {errors}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_default_build_has_fewer_than_60_crates() {
    let crates = tree("normal");
    assert!(crates.contains("mq-memory"), "{crates:?}");
    assert!(crates.len() < 60, "{} crates: {crates:?}", crates.len());
}

#[test]
fn the_default_build_compiles_no_native_code() {
    let tools = [
        "cc",
        "cmake",
        "bindgen",
        "pkg-config",
        "vcpkg",
        "autotools",
        "nasm-rs",
    ];
    let crates = tree("normal,build");
    for tool in tools {
        assert!(!crates.contains(tool), "{tool} is in {crates:?}");
    }
}
