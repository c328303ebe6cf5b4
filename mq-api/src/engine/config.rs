//! The options of a consumer, checked.

use std::time::Duration;

use super::lanes::Ordering;
use crate::{Clock, GroupName, OnTrimmed, TopicName};

/// Holds what the engine of one consumer goes by.
#[derive(Clone, Debug)]
pub(crate) struct EngineConfig {
    pub(crate) topic: TopicName,
    pub(crate) group: GroupName,
    pub(crate) ordering: Ordering,
    pub(crate) prefetch: usize,
    pub(crate) prefetch_bytes: usize,
    pub(crate) max_unacked: usize,
    pub(crate) max_unacked_bytes: usize,
    pub(crate) backoff: Backoff,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) dead_letter: Option<TopicName>,
    /// The dead-letter topic is made where it does not exist.
    pub(crate) create_dead_letter: bool,
    pub(crate) commit_interval: Duration,
    pub(crate) commit_every: usize,
    pub(crate) auto_ack: bool,
    pub(crate) on_trimmed: OnTrimmed,
    pub(crate) outage_after: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) max_hold: Duration,
    pub(crate) clock: Clock,
    pub(crate) sparse_acks: bool,
    pub(crate) durable_attempts: bool,
}

/// Says how long a message that was nacked or dropped waits before it comes again.
///
/// ```
/// use std::time::Duration;
/// use mq_api::Backoff;
///
/// let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
/// assert_eq!(backoff.after(1), Duration::from_millis(100));
/// assert_eq!(backoff.after(3), Duration::from_millis(400));
/// assert_eq!(backoff.after(9), Duration::from_secs(1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Waits for nothing.
    pub const NONE: Self = Self {
        first: Duration::ZERO,
        most: Duration::ZERO,
    };

    /// Waits as long after each attempt.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Backoff;
    ///
    /// let backoff = Backoff::fixed(Duration::from_secs(1));
    /// assert_eq!(backoff.after(1), backoff.after(9));
    /// ```
    #[must_use]
    pub const fn fixed(pause: Duration) -> Self {
        Self {
            first: pause,
            most: pause,
        }
    }

    /// Waits for `first` after the first attempt, then twice as long each time, up to `most`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Backoff;
    ///
    /// let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
    /// assert_eq!(backoff.after(2), Duration::from_millis(200));
    /// assert_eq!(backoff.after(5), Duration::from_secs(1));
    /// ```
    #[must_use]
    pub const fn exponential(first: Duration, most: Duration) -> Self {
        Self { first, most }
    }

    /// Returns the pause after an attempt, 1 being the first.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Backoff;
    ///
    /// assert_eq!(Backoff::default().after(1), Duration::from_millis(100));
    /// assert_eq!(Backoff::NONE.after(1), Duration::ZERO);
    /// ```
    #[must_use]
    pub fn after(&self, attempt: u32) -> Duration {
        let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.most)
    }

    pub(crate) fn most(&self) -> Duration {
        self.most
    }
}

impl Default for Backoff {
    /// 100 ms after the first attempt, doubling to 30 s.
    fn default() -> Self {
        Self::exponential(Duration::from_millis(100), Duration::from_secs(30))
    }
}

/// Says where messages go that were rejected, or have had their last attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    pub(crate) topic: Option<String>,
}

impl DeadLetter {
    /// Names an existing topic instead of the group's own, which is made on demand with one partition.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("broken").await?;
    /// use mq_api::DeadLetter;
    ///
    /// mq.create_topic("failed", 1).await?;
    /// let consumer = mq.consumer("orders", "billing").dead_letter(DeadLetter::topic("failed")).await?;
    /// consumer.consume().await?.reject()?;
    /// consumer.commit().await?;
    /// assert_eq!(mq.consumer("failed", "inspection").await?.consume().await?.payload(), b"broken");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn topic(name: impl Into<String>) -> Self {
        Self {
            topic: Some(name.into()),
        }
    }
}
