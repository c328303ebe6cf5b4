//! How much the server may send ahead of acks on one connection, shared by all partitions that are read on it.
//!
//! What the server answers comes behind what it has delivered. A member's lease is renewed by answers: were every one of
//! hundreds of partitions sent ahead as if it were alone, they would come too late.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many messages may be on their way on one connection.
const MESSAGES: usize = 8192;
/// How many bytes may be on their way on one connection: what a slow network carries in a part of the shortest lease.
const BYTES: usize = 4 * 1024 * 1024;
/// What is lent beside that to those that are behind, in bytes, so that one of hundreds whose others are quiet is not held to
/// a hundredth.
const LENT: usize = BYTES / 4;
/// What a small message counts for.
const LEAST_SIZE: usize = BYTES / MESSAGES;
/// How large a message is taken to be before one was seen, by what all may take.
pub(crate) const FIRST_GUESS: usize = 1024;
/// How many questions that the server answers with a burst of messages are asked at once.
const BURSTS: usize = 8;

/// Belongs to a connection.
#[derive(Debug)]
pub(crate) struct Shares {
    readers: AtomicUsize,
    /// How many bytes are not lent.
    spare: AtomicUsize,
    bursts: Semaphore,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            readers: AtomicUsize::new(0),
            spare: AtomicUsize::new(LENT),
            bursts: Semaphore::new(BURSTS),
        }
    }
}

impl Shares {
    /// Counts one more partition that is read, or soon will be, until the answer is dropped.
    pub(crate) fn join(self: &Arc<Self>) -> Share {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Share(Arc::clone(self))
    }

    /// Returns how many messages of a size may be sent ahead to each partition, one at least.
    pub(crate) fn ahead(&self, size: usize) -> usize {
        let readers = self.readers.load(Ordering::Relaxed).max(1);
        (BYTES / readers / size.max(1)).min(MESSAGES / readers).max(1)
    }

    /// Returns how many messages of a size could be lent to who gives a loan back first.
    pub(crate) fn lendable(&self, size: usize, back: &Loan) -> usize {
        lendable_of(self.spare.load(Ordering::Relaxed) + back.bytes, size)
    }

    /// Lends so many messages of a size, or fewer, until the answer is dropped.
    pub(crate) fn lend(self: &Arc<Self>, messages: usize, size: usize) -> Loan {
        let each = size.max(LEAST_SIZE);
        let lent = |spare: usize| messages.min(lendable_of(spare, size));
        let before = self
            .spare
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spare| {
                Some(spare - lent(spare) * each)
            })
            .unwrap_or(0);
        let messages = lent(before);
        Loan {
            bytes: messages * each,
            messages,
            shares: Some(Arc::clone(self)),
        }
    }

    /// Waits for the turn of a question that a burst answers; none where the connection is over.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.bursts.acquire().await.ok()
    }
}

/// Counts one partition among those that are read on a connection.
#[derive(Debug)]
pub(crate) struct Share(Arc<Shares>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Half of what is there, in messages of a size, so that something is left for the next one.
fn lendable_of(spare: usize, size: usize) -> usize {
    spare / 2 / size.max(LEAST_SIZE)
}

/// What one partition may be sent ahead beyond its share.
#[derive(Debug, Default)]
pub(crate) struct Loan {
    bytes: usize,
    messages: usize,
    shares: Option<Arc<Shares>>,
}

impl Loan {
    /// Returns how many messages it was made for.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Tells whether messages have become so large that it is broken.
    pub(crate) fn is_outgrown_by(&self, size: usize) -> bool {
        self.messages.saturating_mul(size) > self.bytes.saturating_mul(2)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(shares) = &self.shares {
            shares.spare.fetch_add(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_ahead_on_a_connection_is_bounded_however_many_read() {
        for count in [1, 3, 16, 256, 1000] {
            let shares = Arc::new(Shares::default());
            let all: Vec<Share> = (0..count).map(|_| shares.join()).collect();
            for size in [100, 1024, 2048] {
                let messages = all.len() * shares.ahead(size);
                assert!(
                    messages <= MESSAGES && messages * size <= BYTES,
                    "{count} of {size}"
                );
                assert!(messages * 2 > MESSAGES.min(BYTES / size), "{count} of {size}");
            }
            // A message that is larger than the share must come all the same.
            assert_eq!(shares.ahead(BYTES * 2), 1);
        }
    }

    #[test]
    fn what_is_lent_is_bounded_and_comes_back() {
        let shares = Arc::new(Shares::default());
        let loans: Vec<Loan> = (0..100).map(|_| shares.lend(512, 100)).collect();
        let messages: Vec<usize> = loans.iter().map(Loan::messages).collect();
        assert_eq!(messages[..6], [512, 512, 512, 256, 128, 64]);
        assert!(messages.iter().sum::<usize>() * LEAST_SIZE <= LENT);
        assert_eq!(shares.lendable(100, &loans[99]), 0);
        assert_eq!(shares.lendable(100, &loans[0]), 256);
        drop(loans);
        assert_eq!(shares.lendable(100, &Loan::default()), 1024);
        // Large messages count for what they are.
        let large = shares.lend(512, 64 * 1024);
        assert_eq!(large.messages(), 8);
        assert!(!large.is_outgrown_by(128 * 1024) && large.is_outgrown_by(129 * 1024));
        assert!(!Loan::default().is_outgrown_by(BYTES));
    }

    #[test]
    fn who_has_gone_leaves_its_share_to_the_others() {
        let shares = Arc::new(Shares::default());
        let (_one, other) = (shares.join(), shares.join());
        let half = shares.ahead(100);
        drop(other);
        assert_eq!(shares.ahead(100), 2 * half);
    }
}
