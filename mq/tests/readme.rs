//! Holds the README to the documentation example, which is compiled and run.

/// Returns the lines of the first Rust block, without what an example hides.
fn first_block(text: &str, prefix: &str, fence: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| Some(line.strip_prefix(prefix)?.trim()))
        .skip_while(|line| *line != fence)
        .skip(1)
        .take_while(|line| !line.starts_with("```"))
        .filter(|line| !line.is_empty() && !line.starts_with("# ") && !line.starts_with("use "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_readme_shows_the_lines_that_the_documentation_runs() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let readme = std::fs::read_to_string(format!("{root}/README.md")).unwrap();
    let shown = first_block(&readme, "", "```rust");
    let run = first_block(include_str!("../src/lib.rs"), "//!", "```");
    assert!(shown.len() > 8, "{shown:?}");
    assert_eq!(shown, run);
}
