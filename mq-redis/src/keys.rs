//! The keys that the driver uses. Everything of one partition is on one cluster slot.
//!
//! | key | holds |
//! |---|---|
//! | `mq:{T}:meta` | the topic's description, a register |
//! | `mq:{T}:groups` | hash of the groups and their modes |
//! | `mq:{T}:upkeep` | lock of the client that applies retention, for a moment |
//! | `mq:{T}:g:G` | the log of group G: what its members say |
//! | `mq:{T:p}` | partition p, a stream with the ids `0-1`, `0-2`, ... |
//! | `mq:{T:p}:g:G` | how far group G is in partition p, a register |
//! | `mq:{T:p}:g:G:due` | sorted set of what members of a shared group gave back for long |
//! | `mq:{T:p}:delay` | sorted set of delayed messages by due time |

use mq_api::{GroupName, TopicName, escape::Escaper};

/// Makes keys under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: escape(prefix),
        }
    }

    pub(crate) fn meta(&self, topic: &TopicName) -> String {
        format!("{}:{{{}}}:meta", self.prefix, escape(topic.as_str()))
    }

    /// Matches the description of every topic. The prefix holds no character that a pattern gives a meaning to.
    pub(crate) fn all_meta(&self) -> String {
        format!("{}:{{*}}:meta", self.prefix)
    }

    pub(crate) fn groups(&self, topic: &TopicName) -> String {
        format!("{}:{{{}}}:groups", self.prefix, escape(topic.as_str()))
    }

    pub(crate) fn upkeep(&self, topic: &TopicName) -> String {
        format!("{}:{{{}}}:upkeep", self.prefix, escape(topic.as_str()))
    }

    pub(crate) fn log(&self, topic: &TopicName, group: &GroupName) -> String {
        format!(
            "{}:{{{}}}:g:{}",
            self.prefix,
            escape(topic.as_str()),
            escape(group.as_str())
        )
    }

    pub(crate) fn partition(&self, topic: &TopicName, partition: u32) -> String {
        format!("{}:{{{}:{partition}}}", self.prefix, escape(topic.as_str()))
    }

    pub(crate) fn register(&self, topic: &TopicName, partition: u32, group: &GroupName) -> String {
        format!(
            "{}:g:{}",
            self.partition(topic, partition),
            escape(group.as_str())
        )
    }

    /// Names a consumer group of the server.
    pub(crate) fn queue_group(&self, group: &GroupName) -> String {
        escape(group.as_str())
    }

    /// The set of a shared group's messages that were given back for longer than a lease.
    pub(crate) fn due(&self, topic: &TopicName, partition: u32, group: &GroupName) -> String {
        format!("{}:due", self.register(topic, partition, group))
    }

    pub(crate) fn delay(&self, topic: &TopicName, partition: u32) -> String {
        format!("{}:delay", self.partition(topic, partition))
    }
}

/// Letters, digits, `.`, `_` and `-` stay, every other byte becomes `%` and two hex digits: portable names stay as they
/// are, and no two names meet. A key may be as long as it likes, so nothing is hashed.
const ESCAPER: Escaper = Escaper::new("._-", '%', ':', usize::MAX);

fn escape(name: &str) -> String {
    ESCAPER.join(&[name]).into_name()
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
        let keys = Keys::new("mq");
        let mut all = Vec::new();
        for (t, g) in [
            ("a.b", "c"),
            ("a", "b.c"),
            ("a", "c"),
            ("a:0", "c"),
            ("a%3a0", "c"),
            ("a", "c:g:d"),
            ("a:g:c", "d"),
            ("a_b", "c"),
            ("A.b", "c"),
            ("a}", "c"),
            ("a", "delay"),
        ] {
            let (t, g) = (topic(t), group(g));
            all.extend([
                keys.log(&t, &g),
                keys.register(&t, 0, &g),
                keys.register(&t, 1, &g),
            ]);
        }
        for t in ["a", "a:0", "a%3a0", "a.b", "a}", "meta", "groups"] {
            all.extend([
                keys.meta(&topic(t)),
                keys.groups(&topic(t)),
                keys.partition(&topic(t), 0),
                keys.delay(&topic(t), 0),
            ]);
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn the_keys_of_version_one_are_frozen() {
        let keys = Keys::new("mq");
        let (t, g) = (topic("orders.eu"), group("billing"));
        assert_eq!(keys.meta(&t), "mq:{orders.eu}:meta");
        assert_eq!(keys.groups(&t), "mq:{orders.eu}:groups");
        assert_eq!(keys.log(&t, &g), "mq:{orders.eu}:g:billing");
        assert_eq!(keys.partition(&t, 3), "mq:{orders.eu:3}");
        assert_eq!(keys.register(&t, 3, &g), "mq:{orders.eu:3}:g:billing");
        assert_eq!(keys.delay(&t, 3), "mq:{orders.eu:3}:delay");
        assert_eq!(Keys::new("a b*").meta(&t), "a%20b%2a:{orders.eu}:meta");
    }
}
