//! Which queue of which broker a partition number means.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::remoting::{RemotingError, TopicRoute};

/// The version that records begin with.
const VERSION: &str = "1";
/// The most partitions of a topic, so that a record stays a record.
const MAX_PARTITIONS: usize = 65_536;
/// The permission to read a queue.
const READ: i32 = 4;
/// The permission to write to a queue.
const WRITE: i32 = 2;

/// One queue of one broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueRef {
    /// The broker.
    pub broker: Arc<str>,
    /// The number of the queue on that broker.
    pub queue: i32,
}

/// The partitions of a topic: the queue that each number means.
///
/// RocketMQ numbers queues per broker, and a route leaves out the queues of a broker that is down. So that numbers
/// stand, the layout of a topic made here is kept in the nameservers as `1 broker-a:0:4 broker-b:0:4`: a version,
/// then runs of queues with broker, first queue and count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    queues: Vec<QueueRef>,
}

impl Layout {
    /// Spreads partitions over brokers, in the order of their names, the first ones getting one more where it does
    /// not divide.
    pub fn spread(brokers: &[Arc<str>], partitions: usize) -> Self {
        let mut layout = Self::default();
        layout.grow(brokers, partitions);
        layout
    }

    /// Adds queues until there are so many partitions: each goes to the broker with the fewest, those that exist keep
    /// their numbers.
    pub fn grow(&mut self, brokers: &[Arc<str>], partitions: usize) {
        let mut brokers = brokers.to_vec();
        brokers.sort();
        brokers.dedup();
        let mut counts: Vec<(Arc<str>, i32)> = brokers
            .into_iter()
            .map(|broker| (broker.clone(), self.queues_on(&broker)))
            .collect();
        let before: Vec<i32> = counts.iter().map(|(_, count)| *count).collect();
        for _ in self.queues.len()..partitions {
            let fewest = counts.iter_mut().min_by_key(|(_, count)| *count);
            if let Some((_, count)) = fewest {
                *count += 1;
            }
        }
        for ((broker, count), before) in counts.into_iter().zip(before) {
            self.queues.extend((before..count).map(|queue| QueueRef {
                broker: broker.clone(),
                queue,
            }));
        }
    }

    /// Numbers the queues of a route: by broker name, then by queue.
    pub fn of_route(route: &TopicRoute) -> Self {
        let mut runs: Vec<(&str, i32)> = route
            .queues
            .iter()
            .filter_map(|queues| {
                let count = if queues.perm & READ != 0 {
                    queues.read_queue_nums
                } else if queues.perm & WRITE != 0 {
                    queues.write_queue_nums
                } else {
                    0
                };
                (count > 0).then_some((queues.broker_name.as_str(), count))
            })
            .collect();
        runs.sort_unstable();
        runs.dedup_by_key(|(broker, _)| *broker);
        let mut layout = Self::default();
        for (broker, count) in runs {
            let broker: Arc<str> = broker.into();
            let room = MAX_PARTITIONS.saturating_sub(layout.queues.len());
            let count = count.min(i32::try_from(room).unwrap_or(i32::MAX));
            layout.queues.extend((0..count).map(|queue| QueueRef {
                broker: broker.clone(),
                queue,
            }));
        }
        layout
    }

    /// Adds the queues of another layout that are missing here, after those that are there.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        let known: std::collections::HashSet<_> = self.queues.iter().cloned().collect();
        self.queues.extend(
            other
                .queues
                .iter()
                .filter(|queue| !known.contains(*queue))
                .cloned(),
        );
        self.queues.truncate(MAX_PARTITIONS);
        self
    }

    /// The queues by partition number.
    pub fn queues(&self) -> &[QueueRef] {
        &self.queues
    }

    /// The number of partitions.
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// Tells whether there is no partition.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// The queue that a partition means.
    pub fn queue(&self, partition: u32) -> Option<&QueueRef> {
        self.queues.get(usize::try_from(partition).ok()?)
    }

    /// The partition that a queue belongs to.
    pub fn partition(&self, broker: &str, queue: i32) -> Option<u32> {
        let at = self
            .queues
            .iter()
            .position(|q| q.queue == queue && *q.broker == *broker)?;
        u32::try_from(at).ok()
    }

    /// The brokers, each once, in the order of their first partition.
    pub fn brokers(&self) -> Vec<Arc<str>> {
        let mut brokers: Vec<Arc<str>> = Vec::new();
        for queue in &self.queues {
            if !brokers.contains(&queue.broker) {
                brokers.push(queue.broker.clone());
            }
        }
        brokers
    }

    /// The queues that a broker needs to have: one more than the highest number.
    pub fn queues_on(&self, broker: &str) -> i32 {
        self.queues
            .iter()
            .filter(|q| *q.broker == *broker)
            .map(|q| q.queue.saturating_add(1))
            .max()
            .unwrap_or(0)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VERSION)?;
        let mut rest = self.queues.as_slice();
        while let Some(first) = rest.first() {
            let run = rest
                .iter()
                .zip(first.queue..)
                .take_while(|(queue, number)| queue.broker == first.broker && queue.queue == *number)
                .count();
            write!(f, " {}:{}:{run}", first.broker, first.queue)?;
            rest = rest.get(run..).unwrap_or_default();
        }
        Ok(())
    }
}

impl FromStr for Layout {
    type Err = RemotingError;

    /// Reads a record. A version that this client does not know is an error, never an empty layout.
    fn from_str(text: &str) -> Result<Self, RemotingError> {
        let broken = |rule: &'static str| RemotingError::malformed("topic layout", rule);
        let mut parts = text.split(' ');
        if parts.next() != Some(VERSION) {
            return Err(broken("its version is unknown"));
        }
        let mut layout = Self::default();
        for part in parts {
            let mut fields = part.rsplitn(3, ':');
            let count = fields.next().and_then(|n| n.parse::<i32>().ok());
            let first = fields.next().and_then(|n| n.parse::<i32>().ok());
            let (Some(count), Some(first), Some(broker)) = (count, first, fields.next()) else {
                return Err(broken("a run is not broker, first queue and count"));
            };
            let end = first
                .checked_add(count)
                .filter(|_| first >= 0 && count > 0 && !broker.is_empty());
            let Some(end) = end else {
                return Err(broken("a run is empty or out of range"));
            };
            if layout.queues.len() + count as usize > MAX_PARTITIONS {
                return Err(broken("more than 65536 partitions"));
            }
            let broker: Arc<str> = broker.into();
            layout.queues.extend((first..end).map(|queue| QueueRef {
                broker: broker.clone(),
                queue,
            }));
        }
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remoting::QueueRoute;

    fn brokers(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn the_record_of_version_1_stands() {
        let layout = Layout::spread(&brokers(&["broker-b", "broker-a"]), 5);
        assert_eq!(layout.to_string(), "1 broker-a:0:3 broker-b:0:2");
        assert_eq!("1 broker-a:0:3 broker-b:0:2".parse::<Layout>().unwrap(), layout);
        assert_eq!(layout.queue(3).unwrap().queue, 0);
        assert_eq!(layout.partition("broker-b", 1), Some(4));
    }

    #[test]
    fn growth_moves_no_number() {
        let mut layout = Layout::spread(&brokers(&["a", "b"]), 4);
        layout.grow(&brokers(&["a", "b", "c"]), 8);
        assert_eq!(layout.to_string(), "1 a:0:2 b:0:2 a:2:1 b:2:1 c:0:2");
        assert_eq!(layout.to_string().parse::<Layout>().unwrap(), layout);
        assert_eq!(layout.queues_on("a"), 3);
    }

    #[test]
    fn unknown_versions_and_broken_records_are_errors() {
        for text in [
            "",
            "2 a:0:1",
            "1 a",
            "1 a:0",
            "1 :0:1",
            "1 a:0:0",
            "1 a:-1:2",
            "1 a:0:70000",
            "1 a:2147483647:9",
        ] {
            assert!(text.parse::<Layout>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_route_is_numbered_by_broker_and_queue() {
        let queue = |name: &str, read, perm| QueueRoute {
            broker_name: name.to_owned(),
            read_queue_nums: read,
            write_queue_nums: 9,
            perm,
            topic_sys_flag: 0,
        };
        let route = TopicRoute {
            queues: vec![
                queue("b", 1, 6),
                queue("a", 2, 6),
                queue("c", 5, 0),
                queue("d", -1, 6),
            ],
            ..TopicRoute::default()
        };
        let layout = Layout::of_route(&route);
        assert_eq!(layout.to_string(), "1 a:0:2 b:0:1");
        let older: Layout = "1 b:0:2".parse().unwrap();
        assert_eq!(older.union(&layout).to_string(), "1 b:0:2 a:0:2");
    }
}
