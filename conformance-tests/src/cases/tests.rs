use std::collections::{BTreeMap, BTreeSet};

use super::all;

fn contract() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/semantics.md");
    std::fs::read_to_string(path).expect("the contract lies beside the crates")
}

/// Returns the case numbers that a paragraph of the contract names, such as `A3`.
fn cases_of(paragraph: &str) -> impl Iterator<Item = String> {
    let list = paragraph.strip_prefix("Cases:").unwrap_or_default();
    list.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(str::to_owned)
}

#[test]
fn each_case_stands_for_a_guarantee_and_each_named_case_exists() {
    let cases: BTreeSet<String> = all().map(|case| case.id.to_owned()).collect();
    let named: BTreeSet<String> = guarantees_by_the_contract().into_keys().collect();
    assert_eq!(named, cases);
}

/// Returns the guarantees under which the contract names each case.
fn guarantees_by_the_contract() -> BTreeMap<String, BTreeSet<String>> {
    let mut guarantees: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut guarantee = "";
    for paragraph in contract().split("\n\n") {
        for line in paragraph.lines() {
            if let Some(heading) = line.strip_prefix("### ") {
                guarantee = heading.split(' ').next().unwrap_or_default();
            }
        }
        for case in cases_of(paragraph) {
            guarantees.entry(case).or_default().insert(guarantee.to_owned());
        }
    }
    guarantees
}

#[test]
fn the_readme_names_the_guarantees_that_the_contract_proves_by_each_case() {
    let contract = guarantees_by_the_contract();
    let mut wrong = Vec::new();
    for row in include_str!("../../README.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
    {
        let mut columns = row.trim_matches('|').split(" | ").map(str::trim);
        let (name, last) = (
            columns.next().unwrap_or_default(),
            columns.last().unwrap_or_default(),
        );
        let id = name.trim_matches('`').split('_').next().unwrap_or_default();
        let named: BTreeSet<String> = last.split(',').map(|word| word.trim().to_owned()).collect();
        if contract.get(id) != Some(&named) {
            wrong.push(format!(
                "{id}: README.md says {named:?}, the contract {:?}",
                contract.get(id)
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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
