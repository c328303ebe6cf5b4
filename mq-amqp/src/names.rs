//! The names of the queues and exchanges that the driver makes.
//!
//! | name | what it is |
//! |---|---|
//! | `mq:registry` | stream: which topics were created and deleted |
//! | `mq:delay:...` | what delayed messages wait in |
//! | `mq:T:meta` | stream: the description of topic T and its groups |
//! | `mq:T:<id>:<p>` | stream: partition p; the id is the topic's, so that nothing outlives a topic under its name |
//! | `mq:T:<id>:g:G` | fanout exchange: what the members of group G say to each other |
//! | `mq:T:<id>:g:G:m:<session>` | exclusive queue of one member |
//! | `mq:T:<id>:g:G:token:<p>` | queue with one message: who owns p, and how far the group is |
//! | `mq:T:<id>:g:G:at:<p>` | queue with one message: a copy of the position, for those who do not join |
//! | `mq:T:<id>:g:G:work` | quorum queue: messages for the members of a shared group |

use mq_api::{GroupName, TopicName, escape::Escaper};

/// Letters, digits, `.`, `_` and `-` stay, every other byte becomes `%` and two hex digits, so no two names meet. The
/// protocol takes 255 bytes; what is longer than 200 becomes the prefix and a 128-bit hash.
const ESCAPER: Escaper = Escaper::new("._-", '%', ':', 200);

/// Makes names under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    fn join(&self, parts: &[&str]) -> String {
        let mut all = Vec::with_capacity(parts.len() + 1);
        all.push(self.prefix.as_str());
        all.extend_from_slice(parts);
        ESCAPER.join(&all).into_name()
    }

    pub(crate) fn registry(&self) -> String {
        self.join(&["registry"])
    }

    pub(crate) fn delay(&self, what: &str) -> String {
        self.join(&["delay", what])
    }

    pub(crate) fn meta(&self, topic: &TopicName) -> String {
        self.join(&[topic.as_str(), "meta"])
    }

    pub(crate) fn partition(&self, topic: &TopicName, id: &str, partition: u32) -> String {
        self.join(&[topic.as_str(), id, &partition.to_string()])
    }

    pub(crate) fn group(&self, topic: &TopicName, id: &str, group: &GroupName) -> String {
        self.join(&[topic.as_str(), id, "g", group.as_str()])
    }

    pub(crate) fn member(&self, topic: &TopicName, id: &str, group: &GroupName, session: &str) -> String {
        self.join(&[topic.as_str(), id, "g", group.as_str(), "m", session])
    }

    pub(crate) fn token(&self, topic: &TopicName, id: &str, group: &GroupName, partition: u32) -> String {
        self.join(&[
            topic.as_str(),
            id,
            "g",
            group.as_str(),
            "token",
            &partition.to_string(),
        ])
    }

    pub(crate) fn work(&self, topic: &TopicName, id: &str, group: &GroupName) -> String {
        self.join(&[topic.as_str(), id, "g", group.as_str(), "work"])
    }

    pub(crate) fn position(&self, topic: &TopicName, id: &str, group: &GroupName, partition: u32) -> String {
        self.join(&[
            topic.as_str(),
            id,
            "g",
            group.as_str(),
            "at",
            &partition.to_string(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::existing(name).unwrap()
    }

    fn group(name: &str) -> GroupName {
        GroupName::existing(name).unwrap()
    }

    #[test]
    fn names_never_meet() {
        let names = Names::new("mq");
        let mut all = vec![names.registry(), names.delay("0"), names.delay("out")];
        for (t, g) in [
            ("a.b", "c"),
            ("a", "b.c"),
            ("a", "c"),
            ("a:0", "c"),
            ("a%3a0", "c"),
            ("a", "c:m:d"),
            ("a_b", "c"),
            ("A.b", "c"),
            ("registry", "c"),
            ("delay", "c"),
        ] {
            let (t, g) = (topic(t), group(g));
            all.extend([
                names.group(&t, "1f", &g),
                names.member(&t, "1f", &g, "d"),
                names.token(&t, "1f", &g, 0),
                names.token(&t, "1f", &g, 1),
                names.position(&t, "1f", &g, 0),
                names.work(&t, "1f", &g),
            ]);
        }
        for t in ["a", "a:0", "a%3a0", "a.b", "meta", "registry", "A.b", "delay"] {
            all.extend([
                names.meta(&topic(t)),
                names.partition(&topic(t), "1f", 0),
                names.partition(&topic(t), "20", 0),
            ]);
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn the_names_of_version_one_are_frozen() {
        let names = Names::new("mq");
        let (t, g) = (topic("orders.eu"), group("billing"));
        assert_eq!(names.registry(), "mq:registry");
        assert_eq!(names.meta(&t), "mq:orders.eu:meta");
        assert_eq!(names.partition(&t, "1f", 3), "mq:orders.eu:1f:3");
        assert_eq!(names.group(&t, "1f", &g), "mq:orders.eu:1f:g:billing");
        assert_eq!(names.member(&t, "1f", &g, "s"), "mq:orders.eu:1f:g:billing:m:s");
        assert_eq!(names.token(&t, "1f", &g, 3), "mq:orders.eu:1f:g:billing:token:3");
        assert_eq!(names.position(&t, "1f", &g, 3), "mq:orders.eu:1f:g:billing:at:3");
    }

    #[test]
    fn a_name_that_is_too_long_becomes_a_hash() {
        let name = Names::new("mq").token(&topic(&"t".repeat(150)), "1f", &group(&"g".repeat(150)), 0);
        assert!(name.starts_with("mq:%h") && name.len() < 255, "{name}");
    }
}
