use std::collections::BTreeSet;

use super::all;

/// Returns the case numbers that the contract names, such as `A3`.
fn named_by_the_contract() -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/semantics.md");
    let text = std::fs::read_to_string(path).expect("the contract lies beside the crates");
    text.split("\n\n")
        .filter_map(|paragraph| paragraph.strip_prefix("Cases:"))
        .flat_map(|list| list.split(|c: char| !c.is_ascii_alphanumeric()))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn each_case_stands_for_a_guarantee_and_each_named_case_exists() {
    let cases: BTreeSet<String> = all().map(|case| case.id.to_owned()).collect();
    assert_eq!(named_by_the_contract(), cases);
}

#[test]
fn numbers_and_names_are_unique() {
    let ids: BTreeSet<&str> = super::all().map(|case| case.id).collect();
    let names: BTreeSet<&str> = super::all().map(|case| case.name).collect();
    assert_eq!(ids.len(), super::all().count());
    assert_eq!(names.len(), super::all().count());
}

#[test]
fn the_readme_lists_every_case() {
    let readme = include_str!("../../README.md");
    let missing: Vec<String> = super::all()
        .map(super::Case::full_name)
        .filter(|name| !readme.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "not in README.md: {missing:#?}");
    let rows = readme.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(
        rows,
        super::all().count(),
        "README.md lists cases that do not exist"
    );
}
