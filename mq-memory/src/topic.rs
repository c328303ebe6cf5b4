//! A topic: its partitions and its groups.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use mq_api::{
    Error, ErrorKind, GroupName, Offset, PartitionDescription, Position, Result, TopicDescription, TopicId,
    TopicName,
    driver::{self, CommittedPosition},
};
use tokio::sync::watch;

use crate::{
    broker::Broker,
    error::MemoryError,
    group::Group,
    log::{Keep, Partition},
    queue::Queue,
    sync::lock,
    wakes::Wakes,
};

/// Holds one life of a topic.
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    pub(crate) id: TopicId,
    keep: Keep,
    partitions: Table,
    count: watch::Sender<u32>,
    groups: Mutex<BTreeMap<GroupName, Members>>,
    gone: AtomicBool,
}

/// A group in its mode.
#[derive(Clone)]
pub(crate) enum Members {
    Partitioned(Arc<Group>),
    Shared(Arc<Queue>),
}

impl Topic {
    pub(crate) fn new(name: TopicName, partitions: u32, keep: Keep) -> Self {
        let topic = Self {
            name,
            id: random_id(),
            keep,
            partitions: Table::default(),
            count: watch::Sender::new(0),
            groups: Mutex::default(),
            gone: AtomicBool::new(false),
        };
        topic.push_partitions(partitions);
        topic
    }

    /// Counts the partitions, and tells when they become more.
    pub(crate) fn count(&self) -> watch::Receiver<u32> {
        self.count.subscribe()
    }

    pub(crate) fn partition_count(&self) -> u32 {
        *self.count.borrow()
    }

    pub(crate) fn partition(&self, index: u32) -> Option<&Arc<Partition>> {
        self.partitions.get(index)
    }

    pub(crate) fn try_partition(&self, index: u32) -> Result<&Arc<Partition>> {
        self.partition(index)
            .ok_or_else(|| driver::invalid_partition(&self.name, index, self.partition_count()))
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = &Arc<Partition>> {
        (0..self.partition_count()).filter_map(|index| self.partition(index))
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_gone() {
            Err(MemoryError::NoTopic(self.name.clone()).into())
        } else {
            Ok(())
        }
    }

    pub(crate) fn describe(&self) -> TopicDescription {
        let partitions = self
            .partitions()
            .map(|partition| {
                partition.expire();
                let (first, end) = partition.bounds();
                PartitionDescription::new(partition.index(), first, end)
            })
            .collect();
        TopicDescription::new(self.name.clone(), Some(self.id.clone()), partitions)
    }

    /// Grows to so many partitions; running producers and groups hear of it.
    pub(crate) fn grow(&self, partitions: u32) -> Result<()> {
        let wakes = &mut Wakes::default();
        let groups = lock(&self.groups);
        self.check()?;
        let has = self.partition_count();
        if partitions < has {
            return Err(Error::new(
                ErrorKind::InvalidPartition,
                format!(
                    "topic {:?} has {has} partitions and cannot shrink to {partitions}",
                    self.name
                ),
            ));
        }
        self.push_partitions(partitions);
        for members in groups.values() {
            match members {
                Members::Partitioned(group) => group.grow(partitions, wakes),
                Members::Shared(queue) => queue.grow(self, wakes),
            }
        }
        Ok(())
    }

    /// Ends this life of the topic with all that its groups stored.
    pub(crate) fn end(&self) {
        let wakes = &mut Wakes::default();
        let mut groups = lock(&self.groups);
        self.gone.store(true, Ordering::Release);
        for members in std::mem::take(&mut *groups).into_values() {
            match members {
                Members::Partitioned(group) => group.end(wakes),
                Members::Shared(queue) => queue.end(),
            }
        }
        for partition in self.partitions() {
            partition.end(wakes);
        }
    }

    pub(crate) fn group(&self, name: &GroupName) -> Option<Members> {
        lock(&self.groups).get(name).cloned()
    }

    pub(crate) fn groups(&self) -> Vec<Members> {
        lock(&self.groups).values().cloned().collect()
    }

    /// Finds a partitioned group, or makes it at a start that is stored for every partition at once.
    pub(crate) fn partitioned_group(
        &self,
        name: &GroupName,
        start: Position,
        broker: &Broker,
    ) -> Result<Arc<Group>> {
        let mut groups = lock(&self.groups);
        self.check()?;
        match groups.get(name) {
            Some(Members::Partitioned(group)) => Ok(Arc::clone(group)),
            Some(Members::Shared(_)) => Err(self.other_mode(name, "shared")),
            None => {
                let group = Arc::new(Group::new(
                    self.id.clone(),
                    Arc::clone(&broker.timer),
                    Arc::clone(&broker.faults),
                    self.starts(start)?,
                ));
                groups.insert(name.clone(), Members::Partitioned(Arc::clone(&group)));
                Ok(group)
            }
        }
    }

    /// Finds a shared group, or makes it at a start that is stored for every partition at once.
    pub(crate) fn shared_group(
        self: &Arc<Self>,
        name: &GroupName,
        start: Position,
        broker: &Broker,
    ) -> Result<Arc<Queue>> {
        let mut groups = lock(&self.groups);
        self.check()?;
        match groups.get(name) {
            Some(Members::Shared(queue)) => Ok(Arc::clone(queue)),
            Some(Members::Partitioned(_)) => Err(self.other_mode(name, "partitioned")),
            None => {
                let queue = Queue::new(self, self.starts(start)?, broker);
                groups.insert(name.clone(), Members::Shared(Arc::clone(&queue)));
                Ok(queue)
            }
        }
    }

    pub(crate) fn committed(&self, group: &GroupName) -> Vec<CommittedPosition> {
        match self.group(group) {
            None => Vec::new(),
            Some(Members::Partitioned(group)) => group.committed(),
            Some(Members::Shared(queue)) => queue.committed(),
        }
    }

    fn starts(&self, start: Position) -> Result<Vec<Offset>> {
        self.partitions()
            .map(|partition| resolve(partition, start))
            .collect()
    }

    fn other_mode(&self, group: &GroupName, has: &'static str) -> mq_api::Error {
        MemoryError::OtherMode {
            topic: self.name.clone(),
            group: group.clone(),
            has,
        }
        .into()
    }

    fn push_partitions(&self, up_to: u32) {
        let now = self.partition_count();
        for index in now..up_to {
            self.partitions
                .set(index, Arc::new(Partition::new(index, self.keep)));
        }
        if up_to > now {
            self.count.send_replace(up_to);
        }
    }
}

/// Turns a position into an offset; one below what is retained stays, one beyond the end is refused.
pub(crate) fn resolve(partition: &Partition, position: Position) -> Result<Offset> {
    let (first, end) = partition.bounds();
    match position {
        Position::Earliest => Ok(first),
        Position::Offset(offset) if offset <= end => Ok(offset),
        Position::Offset(offset) => Err(MemoryError::BeyondEnd {
            partition: partition.index(),
            offset,
            end,
        }
        .into()),
        Position::Time(time) => Ok(partition.offset_at(time)),
        // `Latest`; a kind of position that is added later must be added here.
        _ => Ok(end),
    }
}

/// Chunks of a table that doubles: 1, 2, 4, up to 2048 partitions.
const CHUNKS: usize = 12;

/// Finds partitions by number without a lock. It only grows; each cell is written once.
#[derive(Default)]
struct Table {
    chunks: [OnceLock<Chunk>; CHUNKS + 1],
}

type Chunk = Box<[OnceLock<Arc<Partition>>]>;

impl Table {
    fn get(&self, index: u32) -> Option<&Arc<Partition>> {
        let (chunk, at) = Self::place(index);
        self.chunks.get(chunk)?.get()?.get(at)?.get()
    }

    fn set(&self, index: u32, partition: Arc<Partition>) {
        let (chunk, at) = Self::place(index);
        if let Some(chunk_cell) = self.chunks.get(chunk) {
            let cells = chunk_cell.get_or_init(|| (0..1 << chunk).map(|_| OnceLock::new()).collect());
            if let Some(cell) = cells.get(at) {
                let _ = cell.set(partition);
            }
        }
    }

    fn place(index: u32) -> (usize, usize) {
        let number = u64::from(index) + 1;
        let chunk = number.ilog2();
        (chunk as usize, (number - (1 << chunk)) as usize)
    }
}

/// Makes an id that no other life of a topic has, from the keys that the standard library seeds its maps with.
fn random_id() -> TopicId {
    let half = || RandomState::new().hash_one(0);
    TopicId::new(format!("{:016x}{:016x}", half(), half()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_places_every_partition_up_to_the_limit_apart() {
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..crate::signal::MAX_PARTITIONS {
            let (chunk, at) = Table::place(index);
            assert!(chunk <= CHUNKS && at < 1 << chunk);
            assert!(seen.insert((chunk, at)));
        }
    }
}
