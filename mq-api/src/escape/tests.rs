use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const KEYS: Escaper = Escaper::new("._-", '~', ':', 60);
const NARROW: Escaper = Escaper::new("", '_', '-', 60);

#[test]
fn golden_names() {
    for (names, keys, narrow) in [
        (&["mq", "orders"][..], "mq:orders", "mq-orders"),
        (&["mq", "a.b", "c"], "mq:a.b:c", "mq-a_2eb-c"),
        (&["mq", "a", "b.c"], "mq:a:b.c", "mq-a-b_2ec"),
        (&["mq", "a_b"], "mq:a_b", "mq-a_5fb"),
        (&["mq", "a-b"], "mq:a-b", "mq-a_2db"),
        (&["mq", "é:~"], "mq:~c3~a9~3a~7e", "mq-_c3_a9_3a_7e"),
        (&["mq", ""], "mq:", "mq-"),
        (&["", "mq"], ":mq", "-mq"),
    ] {
        assert_eq!(KEYS.join(names).name(), keys);
        assert_eq!(NARROW.join(names).name(), narrow);
        assert_eq!(KEYS.split(keys).unwrap(), names);
        assert_eq!(NARROW.split(narrow).unwrap(), names);
    }
}

#[test]
fn golden_names_that_are_too_long() {
    let topic = "t".repeat(64);
    let long = KEYS.join(&["mq", &topic]);
    assert!(long.is_hashed());
    assert_eq!(long.name(), "mq:~h1ef0b4b53cc35ad91dd54fbbd65ef1eb");
    assert_eq!(KEYS.split(long.name()), None);
    let prefix = "p".repeat(60);
    let without = KEYS.join(&[&prefix, "t"]);
    assert!(without.name().starts_with("~h") && without.name().len() == 34);
}

#[test]
fn foreign_names_do_not_split() {
    for foreign in ["mq:~", "mq:~4", "mq:~zz", "mq:~61", "mq:é", "mq:~3A", "mq:~ff"] {
        assert_eq!(KEYS.split(foreign), None, "{foreign}");
    }
}

#[test]
fn golden_dead_letter_topics() {
    let name = |topic: &str, group: &str| {
        dead_letter_topic(
            &TopicName::existing(topic).unwrap(),
            &GroupName::existing(group).unwrap(),
        )
        .to_string()
    };
    assert_eq!(name("orders", "billing"), "dlq.6.orders.billing");
    assert_eq!(name("a.b", "c"), "dlq.3.a.b.c");
    assert_eq!(name("a", "b.c"), "dlq.1.a.b.c");
    assert_eq!(name("a/b", "c"), "dlq.h.35ffb9642b74de458142536d15559cfc");
    let longest = "x".repeat(64);
    let hashed = name(&longest, &longest);
    assert!(hashed.starts_with("dlq.h.") && hashed.len() == 38);
}

proptest! {
    #[test]
    fn different_lists_never_meet(lists in proptest::collection::hash_set(
        proptest::collection::vec("[ab.:~_é-]{0,4}|[a-c]{30,40}", 1..4), 2..60)) {
        for escaper in [KEYS, NARROW] {
            let mut seen: HashMap<String, &Vec<String>> = HashMap::new();
            for list in &lists {
                let parts: Vec<&str> = list.iter().map(String::as_str).collect();
                let joined = escaper.join(&parts);
                prop_assert!(joined.name().len() <= 60 && joined.name().is_ascii());
                if !joined.is_hashed() {
                    let split = escaper.split(joined.name());
                    prop_assert_eq!(split.as_ref(), Some(list));
                }
                if let Some(other) = seen.insert(joined.into_name(), list) {
                    prop_assert!(false, "{:?} meets {:?}", list, other);
                }
            }
        }
    }

    #[test]
    fn dead_letters_of_different_groups_never_meet(
        pairs in proptest::collection::hash_set(("[a-b][a-b1.]{0,5}[a-b]", "[a-b][a-b1.]{0,5}[a-b]"), 2..60),
    ) {
        let names: std::collections::HashSet<TopicName> = pairs.iter()
            .map(|(topic, group)| dead_letter_topic(&TopicName::new(topic).unwrap(), &GroupName::new(group).unwrap()))
            .collect();
        prop_assert_eq!(names.len(), pairs.len());
    }
}
