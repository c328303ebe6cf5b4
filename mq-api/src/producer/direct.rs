//! The straight way of a message into a driver that stores within the call.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::core::{Core, Target};
use crate::{Message, Receipt, driver::Wakes};

/// How many messages in a row go to one partition where they have no key. With 256 partitions each of them was a batch
/// of its own to its consumer, which made it 2.4 times as dear as with one.
const STREAK: u32 = 8;

/// How many counters the count of stored messages is spread over.
const SHARDS: usize = 16;

/// Says whether messages may go straight to the driver, and counts those that did.
///
/// The way is open while nothing of the producer waits, is under way or is to be sent again. Who takes a message by the
/// long way closes it first, under the producer's lock, so whatever is sent after that, by the same task or by one that
/// has heard of it, goes the long way too and keeps its place; sends that run at the same time have no order. So a
/// straight send takes no lock here and writes nothing that senders to other partitions write.
pub(super) struct Direct {
    closed: AtomicBool,
    /// Whose turn it is among the partitions, for messages without a key.
    turn: AtomicU32,
    stored: [Counter; SHARDS],
}

/// A counter in a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Counter(AtomicU64);

impl Direct {
    pub(super) fn new(open: bool) -> Self {
        Self {
            closed: AtomicBool::new(!open),
            // Producers that start together do not all begin with the same partition.
            turn: AtomicU32::new(fastrand::u32(..)),
            stored: Default::default(),
        }
    }

    /// Sends everything the long way from now on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Opens the way; under the producer's lock, where nothing is under way.
    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// Counts the messages that went this way.
    pub(super) fn stored(&self) -> u64 {
        self.stored
            .iter()
            .map(|count| count.0.load(Ordering::Relaxed))
            .sum()
    }

    #[inline]
    fn count(&self, partition: u32) {
        if let Some(count) = self.stored.get(partition as usize % SHARDS) {
            count.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Core {
    /// Stores a message within the call, where the driver can and nothing is under way; else leaves it in its place. All
    /// that it costs here is a look and a count: no lock, no slots, no batch, no deadline.
    #[inline]
    pub(super) fn store_now(&self, target: Target, message: &mut Message) -> Option<Receipt> {
        if self.direct.closed.load(Ordering::Acquire) {
            return None;
        }
        let partition = match target {
            Target::Partition(partition) | Target::Chosen(partition) => partition,
            Target::Any => self.next_partition(),
        };
        let mut wakes = Wakes::new();
        let offset = self.driver.store_now(partition, message, &mut wakes).ok()?;
        self.direct.count(partition);
        // Else they would be moved from where they have just been written.
        if !wakes.is_empty() {
            wakes.wake_all();
        }
        Some(Receipt::new(partition, offset))
    }

    /// Chooses the partition of a message that is sent alone and has no key: a few in a row share one.
    #[inline]
    fn next_partition(&self) -> u32 {
        match self.partitions() {
            0 | 1 => 0,
            partitions => self.direct.turn.fetch_add(1, Ordering::Relaxed) / STREAK % partitions,
        }
    }
}
