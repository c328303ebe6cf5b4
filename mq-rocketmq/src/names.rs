//! Names of topics and groups as RocketMQ sees them. The formats are frozen: version 1.

use mq_api::{
    Error, ErrorKind, GroupName, Result, TopicName,
    escape::{Escaper, PhysicalName},
};

/// The separator is the one of RocketMQ's own namespaces.
const TOPICS: Escaper = Escaper::new("_-", '|', '%', 127);
const GROUPS: Escaper = Escaper::new("_-", '|', '%', 120);

/// What brokers and nameservers call their own topics.
const INTERNAL: [&str; 12] = [
    "TBW102",
    "SCHEDULE_TOPIC_XXXX",
    "BenchmarkTest",
    "RMQ_SYS_TRANS_HALF_TOPIC",
    "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    "RMQ_SYS_TRACE_TOPIC",
    "TRANS_CHECK_MAX_TIME_TOPIC",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
    "DefaultHeartBeatSyncerTopic",
    "CHECKPOINT_TOPIC",
    "ROCKSDB_OFFSET_TOPIC",
];
const INTERNAL_PREFIXES: [&str; 6] = ["%RETRY%", "%DLQ%", "rmq_sys_", "RMQ_SYS_", "SYNC_", "%SYS%"];

/// Makes physical names.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    namespace: Option<String>,
    raw_topics: bool,
    raw_groups: bool,
}

impl Names {
    pub(crate) fn new(namespace: Option<String>, raw_topics: bool, raw_groups: bool) -> Self {
        Self {
            namespace,
            raw_topics,
            raw_groups,
        }
    }

    /// Names a topic. What is hashed has its full name stored beside it.
    pub(crate) fn topic(&self, topic: &TopicName) -> Result<PhysicalName> {
        if is_internal(topic.as_str()) {
            return Err(Error::new(
                ErrorKind::InvalidTopic,
                format!("topic name {topic:?} is one that RocketMQ keeps for itself"),
            ));
        }
        if self.raw_topics && is_legal(topic.as_str(), 127) && !topic.is_portable() {
            return Ok(Escaper::new("_-%|", '.', '/', 127).join(&[topic.as_str()]));
        }
        Ok(match &self.namespace {
            Some(namespace) => TOPICS.join(&[namespace, topic.as_str()]),
            None => TOPICS.join(&[topic.as_str()]),
        })
    }

    /// Names a group of a topic.
    pub(crate) fn group(&self, topic: &TopicName, group: &GroupName) -> Result<String> {
        if self.raw_groups {
            let name = match &self.namespace {
                Some(namespace) => format!("{namespace}%{group}"),
                None => group.to_string(),
            };
            if !is_legal(&name, 120) {
                return Err(Error::new(
                    ErrorKind::InvalidGroup,
                    format!(
                        "group name {name:?}: RocketMQ takes 1 to 120 letters, digits, `_`, `-`, `%` and `|`"
                    ),
                ));
            }
            return Ok(name);
        }
        Ok(match &self.namespace {
            Some(namespace) => GROUPS.join(&[namespace, group.as_str(), topic.as_str()]),
            None => GROUPS.join(&[group.as_str(), topic.as_str()]),
        }
        .into_name())
    }

    /// Names the topic behind a physical name; none where it is not one that users of this client see, or hashed.
    pub(crate) fn topic_of(&self, physical: &str) -> Option<TopicName> {
        if is_internal(physical) {
            return None;
        }
        let parts = TOPICS.split(physical);
        let name = match (&self.namespace, parts.as_deref()) {
            (None, Some([name])) => name.clone(),
            (Some(namespace), Some([first, name])) if first == namespace => name.clone(),
            (None, _) if self.raw_topics => physical.to_owned(),
            _ => return None,
        };
        TopicName::existing(name).ok()
    }

    /// Tells whether a physical group name is one of a topic's groups.
    pub(crate) fn is_group_of(&self, group: &str, topic: &TopicName) -> bool {
        match (&self.namespace, GROUPS.split(group).as_deref()) {
            (None, Some([_, of])) => of == topic.as_str(),
            (Some(namespace), Some([first, _, of])) => first == namespace && of == topic.as_str(),
            _ => false,
        }
    }

    /// The name that stands for readers, which no broker keeps anything for.
    pub(crate) fn reader_group(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}%mq-reader"),
            None => "mq-reader".to_owned(),
        }
    }
}

fn is_legal(name: &str, most: usize) -> bool {
    (1..=most).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'%' | b'|'))
}

pub(crate) fn is_internal(name: &str) -> bool {
    INTERNAL.contains(&name) || INTERNAL_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).unwrap()
    }

    fn group(name: &str) -> GroupName {
        GroupName::new(name).unwrap()
    }

    #[test]
    fn the_names_of_version_1_stand() {
        let plain = Names::new(None, false, false);
        let spaced = Names::new(Some("dev".into()), false, false);
        assert_eq!(plain.topic(&topic("orders")).unwrap().name(), "orders");
        assert_eq!(plain.topic(&topic("a.b")).unwrap().name(), "a|2eb");
        assert_eq!(spaced.topic(&topic("orders")).unwrap().name(), "dev%orders");
        assert_eq!(plain.group(&topic("a.b"), &group("c")).unwrap(), "c%a|2eb");
        assert_eq!(plain.group(&topic("a"), &group("b.c")).unwrap(), "b|2ec%a");
        assert_eq!(spaced.group(&topic("a"), &group("c")).unwrap(), "dev%c%a");
        assert!(plain.topic(&topic("TBW102")).is_err());
    }

    #[test]
    fn raw_names_go_through() {
        let raw = Names::new(None, true, true);
        assert_eq!(
            raw.topic(&TopicName::existing("9%a|b-").unwrap()).unwrap().name(),
            "9%a|b-"
        );
        assert_eq!(raw.topic(&topic("a.b")).unwrap().name(), "a|2eb");
        assert_eq!(raw.group(&topic("t"), &group("g")).unwrap(), "g");
        assert!(raw.group(&topic("t"), &group("g.h")).is_err());
    }

    #[test]
    fn lists_show_what_users_made() {
        let plain = Names::new(None, false, false);
        let spaced = Names::new(Some("dev".into()), false, false);
        assert_eq!(plain.topic_of("a|2eb").unwrap(), topic("a.b"));
        for internal in ["%RETRY%g", "rmq_sys_wheel_timer", "TBW102", "dev%orders"] {
            assert_eq!(plain.topic_of(internal), None, "{internal}");
        }
        assert_eq!(spaced.topic_of("dev%orders").unwrap(), topic("orders"));
        assert_eq!(spaced.topic_of("orders"), None);
        assert!(plain.is_group_of("c%a|2eb", &topic("a.b")));
        assert!(!plain.is_group_of("c", &topic("c")));
    }
}
