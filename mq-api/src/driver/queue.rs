//! The shared mode: members compete for single messages.

use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::Record;
use crate::{Moment, Result};

/// Takes single messages out of a group that shares them. All calls are in batches; none depends on another being
/// polled.
#[async_trait]
pub trait QueueConsumer: Debug + Send + Sync + 'static {
    /// Waits for at least one message and returns at most `max`. What a dropped call had received is returned by a
    /// later one, or goes back to the group without delay. `TopicNotFound` once the topic is gone; a retryable error
    /// once per outage, after which the call may be repeated at once: the driver itself waits between tries.
    async fn receive(&self, max: usize) -> Result<Vec<QueueRecord>>;

    /// Settles messages for good; one result a receipt, in order. `StaleAck` where the backend can tell that the
    /// message is another member's by now.
    async fn ack(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<()>>;

    /// Gives messages back, each to come again after its delay.
    async fn nack(&self, receipts: Vec<(QueueReceipt, Duration)>) -> Vec<Result<()>>;

    /// Keeps messages for another lease. Returns the receipt to use from now on and the end of the lease.
    async fn extend(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<(QueueReceipt, Moment)>>;

    /// Says how long a message is kept for a member that does not extend it.
    fn lease(&self) -> Duration;

    /// Leaves the group; what was not settled goes back. Idempotent.
    async fn close(&self) -> Result<()>;
}

/// Names one hand-over of one message to the backend, in the driver's own bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueReceipt(pub Bytes);

/// Holds a message that this member has for a while.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueueRecord {
    /// The partition that it was produced to.
    pub partition: u32,
    /// The message; its offset where the backend tells, else 0.
    pub record: Record,
    /// How to settle it.
    pub receipt: QueueReceipt,
    /// How often it has been handed to a member, this time included, as the backend counts.
    pub attempt: u32,
    /// Until when it is this member's.
    pub lease_until: Moment,
}

impl QueueRecord {
    /// Makes a record.
    ///
    /// ```
    /// # use mq_api::{Message, Moment, Timestamp};
    /// use mq_api::driver::{QueueReceipt, QueueRecord, Record};
    ///
    /// let record = Record::new(7, Timestamp::from_millis(0), Message::new("paid"));
    /// let held = QueueRecord::new(0, record, QueueReceipt("7-0".into()), 1, Moment::from_nanos(30));
    /// assert_eq!((held.record.offset, held.attempt), (7, 1));
    /// ```
    #[must_use]
    pub fn new(
        partition: u32,
        record: Record,
        receipt: QueueReceipt,
        attempt: u32,
        lease_until: Moment,
    ) -> Self {
        Self {
            partition,
            record,
            receipt,
            attempt,
            lease_until,
        }
    }
}
