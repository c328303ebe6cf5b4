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
