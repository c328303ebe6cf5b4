//! How far a group is behind the end of a topic.

use crate::{Offset, TopicDescription, driver::CommittedPosition};

/// Tells how far a group is behind, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// One entry a partition, in order.
    pub partitions: Vec<PartitionLag>,
}

/// Tells how far a group is behind in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionLag {
    /// The partition.
    pub partition: u32,
    /// What the group has stored; none where it has stored nothing.
    pub committed: Option<Offset>,
    /// The next offset that the partition will give.
    pub end: Offset,
    /// The offsets from the committed one, or the first that is retained, to the end. Where offsets are not dense it is
    /// more than the messages that are left.
    pub lag: u64,
}

impl Lag {
    /// Sums the lag over all partitions.
    ///
    /// ```
    /// # use mq_api::Mq;
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// mq.producer("orders").await?.produce("paid").await?;
    /// let lag = mq.lag("orders", "billing").await?;
    /// assert_eq!(lag.total(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn total(&self) -> u64 {
        self.partitions
            .iter()
            .fold(0, |sum, partition| sum.saturating_add(partition.lag))
    }

    /// Puts together what is stored and what is there.
    pub(crate) fn of(topic: &TopicDescription, committed: &[CommittedPosition]) -> Self {
        let partitions = topic
            .partitions
            .iter()
            .map(|bounds| {
                let stored = committed
                    .iter()
                    .find(|position| position.partition == bounds.partition)
                    .map(|position| position.position);
                let from = stored.unwrap_or(0).max(bounds.first_offset);
                PartitionLag {
                    partition: bounds.partition,
                    committed: stored,
                    end: bounds.next_offset,
                    lag: bounds.next_offset.saturating_sub(from),
                }
            })
            .collect();
        Self { partitions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PartitionDescription, TopicName};

    #[test]
    fn lag_is_the_end_minus_the_committed_offset() {
        let topic = TopicDescription::new(
            TopicName::new("t").unwrap(),
            None,
            vec![
                PartitionDescription::new(0, 0, 10),
                PartitionDescription::new(1, 5, 8),
                PartitionDescription::new(2, 5, 8),
            ],
        );
        let lag = Lag::of(
            &topic,
            &[CommittedPosition::new(0, 4), CommittedPosition::new(2, 1)],
        );
        let all: Vec<_> = lag.partitions.iter().map(|p| (p.committed, p.lag)).collect();
        assert_eq!(all, [(Some(4), 6), (None, 3), (Some(1), 3)]);
        assert_eq!(lag.total(), 12);
    }
}
