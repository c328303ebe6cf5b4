//! The traits that a driver implements, and what passes between a driver and the portable layer.
//!
//! A driver moves messages, positions and ownership, in batches. It does not validate again, chooses no partition,
//! retries no send, counts no attempt and keeps no ack: the portable types do that once for every backend. Each buffer
//! that it keeps is bounded, and its connections, heartbeats and memberships run in tasks of its own: nothing depends
//! on being polled in time. Every call ends within the deadline that its request carries, or within the driver's own
//! configured request timeout where it carries none.
//!
//! The methods have no default bodies, so that a wrapper around a driver which forgets one does not compile.

mod queue;
mod records;
mod requests;
mod send_batch;
mod slots;

use std::{
    fmt::Debug,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use tokio::sync::watch;

pub use self::{
    queue::{QueueConsumer, QueueReceipt, QueueRecord},
    records::{Record, Records, Segment},
    requests::{
        Assignment, AssignmentId, Batch, Commit, CommitOutcome, CommittedPosition, CommittedRequest, Event,
        FetchRequest, Fetched, NotNow, Prefetch, ProducerRequest, SendWindow, Subscription,
    },
    send_batch::{SendBatch, SendStatus},
    slots::Wakes,
};
pub(crate) use self::{
    records::Held,
    send_batch::{BatchOwner, Landed, Run, Runs, Ticket},
    slots::{Slots, recycle},
};
use crate::{
    Capabilities, Error, Message, Offset, Position, Result, Timestamp, TopicDescription, TopicName, TopicSpec,
};

/// Opens what a connection to one backend offers.
#[async_trait]
pub trait Mq: Debug + Send + Sync + 'static {
    /// Says what the backend can do. It does not change while the connection lives.
    fn capabilities(&self) -> &Capabilities;

    /// Creates a topic and returns when it can be used. The same partition count again is `Ok`, another one
    /// `TopicExists`; a setting that the backend does not have is `Unsupported` or `InvalidConfig`.
    async fn create_topic(&self, spec: TopicSpec) -> Result<()>;

    /// Grows a topic to so many partitions. The same count is `Ok`, a smaller one `InvalidPartition`.
    async fn add_partitions(&self, topic: TopicName, partitions: u32) -> Result<()>;

    /// Deletes topics and all that their groups stored; one result a topic, in order. An unknown topic is `Ok`.
    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>>;

    /// Lists the topics that users made; names that a driver makes for itself are left out.
    async fn list_topics(&self) -> Result<Vec<TopicName>>;

    /// Describes a topic as it is now.
    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription>;

    /// Reads what a group has stored, without joining it. Partitions without a position are left out.
    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>>;

    /// Opens a producer; `TopicNotFound` where there is no such topic.
    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn Producer>>;

    /// Joins a group whose members own partitions. Before it returns, the topic is known to exist and the start of a
    /// new group is resolved to offsets and stored, set-if-absent, so that `Latest` has no race. The join goes on in a
    /// task of the driver's own: dropping the future leaves no membership behind.
    async fn consumer(&self, subscription: Subscription) -> Result<(Arc<dyn Consumer>, Box<dyn Events>)>;

    /// Joins a group whose members compete for single messages.
    async fn queue_consumer(&self, subscription: Subscription) -> Result<Arc<dyn QueueConsumer>>;

    /// Opens a reader; `TopicNotFound` where there is no such topic.
    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn Reader>>;

    /// Ends every connection and task. What it opened was closed before by the portable layer. Idempotent.
    async fn close(&self) -> Result<()>;
}

/// Sends batches of one topic.
#[async_trait]
pub trait Producer: Debug + Send + Sync + 'static {
    /// Tells how many partitions the topic has; the value grows when partitions are added.
    fn partitions(&self) -> watch::Receiver<u32>;

    /// Says how much may be under way at once; the portable layer keeps to it.
    fn window(&self) -> SendWindow;

    /// Takes a batch of one partition without waiting. It is settled later, or within this call, through the batch.
    ///
    /// Batches of one partition come in order, from one thread at a time, and must be stored in that order. It may be
    /// called from any thread; the caller holds no lock. A message whose deadline passes before
    /// [`SendBatch::begin_io`] is settled by the portable layer and must then be skipped.
    fn send(&self, batch: SendBatch);

    /// Stores one message at once and returns its offset, where the backend tells: takes it out of its place, and leaves an
    /// empty one there. Or leaves it as it is and returns [`NotNow`], and it then comes through [`send`](Self::send).
    ///
    /// It is for a backend within this process, which needs no I/O and no wait for that. It is called only where
    /// [`SendWindow::stores_now`] says so, from any thread and from several at once, while nothing that was taken before
    /// is under way. It takes locks that nobody holds for long, and leaves the wakes that it leads to to the caller, who
    /// does them once its locks are free. Every other driver returns [`NotNow`].
    ///
    /// The message is passed in its place so that it is moved once, into the store, and the answer fits in registers: where
    /// either was moved from what had just been written in parts, the processor stalled.
    fn store_now(
        &self,
        partition: u32,
        message: &mut Message,
        wakes: &mut Wakes,
    ) -> Result<Option<Offset>, NotNow>;

    /// Ends the producer. The portable layer has waited for what was under way, up to its deadline; what is still
    /// unsettled settles as `Unknown`, or `NotSent` where that is sure. Idempotent.
    async fn close(&self) -> Result<()>;
}

/// Yields what happens to one group member: ownership and messages. It has exactly one owner.
pub trait Events: Send + 'static {
    /// Returns the next event, or registers the waker. Ownership events come before messages, are never stuck behind
    /// them, and come even while every partition is paused. An error ends the consumer: it is terminal, and what comes
    /// after it is not asked for. The waker may be woken from any thread, but not while a lock is held that this
    /// method takes.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>>;

    /// Tells whether [`poll_event`](Self::poll_event) would find nothing now, where that costs much less than to ask it;
    /// `false` where it is not known. It registers no waker.
    fn is_empty(&self) -> bool {
        false
    }
}

/// Controls one group member. No method waits for [`Events::poll_event`].
#[async_trait]
pub trait Consumer: Debug + Send + Sync + 'static {
    /// Stores positions, each fenced by its epoch where the backend can; one result a commit, in order.
    /// Of one partition at most one commit is under way.
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>>;

    /// Gives assignments back after `Revoked`: hand-out has stopped and the last commit is done; another member may
    /// have them. Assignments that are gone already are skipped.
    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()>;

    /// Moves an assignment and returns the offset that it resolved to. Batches from there on carry `generation`; what
    /// was fetched before is dropped by its older one. An offset beyond the end is `OffsetOutOfRange`.
    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset>;

    /// Stops or starts the fetching of assignments. It is a hint that takes effect soon: it must not block, and a few
    /// batches that are under way may still come. Assignments that are gone are skipped.
    fn pause(&self, assignments: &[AssignmentId], paused: bool);

    /// Leaves the group: releases what is still held, without a commit. Idempotent, and remembered through reconnects.
    async fn close(&self) -> Result<()>;
}

/// Reads partitions without a group.
#[async_trait]
pub trait Reader: Debug + Send + Sync + 'static {
    /// Returns messages from a position on: at once where there are some, else when one comes or `wait` is over (then
    /// none). A position below what is retained goes on at the earliest; one beyond the end is `OffsetOutOfRange`.
    /// Dropping the future has no effect on later calls.
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched>;

    /// Returns the offset of the first message stored at or after a time, the next offset where there is none.
    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset>;

    /// Returns the first offset retained and the next offset to be given, of each partition in order.
    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>>;

    /// Ends the reader. Idempotent.
    async fn close(&self) -> Result<()>;
}

/// Makes the error of a partition that a topic does not have.
///
/// ```
/// # use mq_api::{ErrorKind, TopicName, driver};
/// # fn main() -> mq_api::Result<()> {
/// let error = driver::invalid_partition(&TopicName::new("orders")?, 7, 4);
/// assert_eq!(error.kind(), ErrorKind::InvalidPartition);
/// assert!(error.context().contains("partitions 0 to 3"));
/// # Ok(()) }
/// ```
#[must_use]
pub fn invalid_partition(topic: &TopicName, partition: u32, partitions: u32) -> Error {
    Error::new(
        crate::ErrorKind::InvalidPartition,
        format!(
            "partition {partition} of topic {topic:?}: it has partitions 0 to {}",
            partitions.saturating_sub(1)
        ),
    )
}

/// Makes the error of a topic that does not exist.
///
/// ```
/// # use mq_api::{ErrorKind, TopicName, driver};
/// # fn main() -> mq_api::Result<()> {
/// let error = driver::topic_not_found(&TopicName::new("orders")?);
/// assert_eq!(error.kind(), ErrorKind::TopicNotFound);
/// # Ok(()) }
/// ```
#[must_use]
pub fn topic_not_found(topic: &TopicName) -> Error {
    Error::new(
        crate::ErrorKind::TopicNotFound,
        format!("topic {topic:?} does not exist"),
    )
}

/// Makes the error of a topic that exists with another partition count.
///
/// ```
/// # use mq_api::{ErrorKind, TopicName, driver};
/// # fn main() -> mq_api::Result<()> {
/// let error = driver::topic_exists(&TopicName::new("orders")?, 4, 5);
/// assert_eq!(error.kind(), ErrorKind::TopicExists);
/// assert!(error.context().contains("with 4 partitions"));
/// # Ok(()) }
/// ```
#[must_use]
pub fn topic_exists(topic: &TopicName, has: u32, asked: u32) -> Error {
    Error::new(
        crate::ErrorKind::TopicExists,
        format!("topic {topic:?} exists with {has} partitions, {asked} were asked for"),
    )
}
