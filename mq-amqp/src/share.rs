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
/// How large a message is taken to be before one was seen, by what all may take.
pub(crate) const FIRST_GUESS: usize = 1024;
/// How many questions that the server answers with a burst of messages are asked at once.
const BURSTS: usize = 8;

/// Belongs to a connection.
#[derive(Debug)]
pub(crate) struct Shares {
    readers: AtomicUsize,
    bursts: Semaphore,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            readers: AtomicUsize::new(0),
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
    fn who_has_gone_leaves_its_share_to_the_others() {
        let shares = Arc::new(Shares::default());
        let (_one, other) = (shares.join(), shares.join());
        let half = shares.ahead(100);
        drop(other);
        assert_eq!(shares.ahead(100), 2 * half);
    }
}
