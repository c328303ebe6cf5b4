//! What the portable layer asks of a driver, and what comes back.

use std::{ops::Range, time::Duration};

use super::Records;
use crate::{Clock, Error, GroupName, Lease, Offset, OnTrimmed, Position, Start, TopicId, TopicName};

/// Asks for a producer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProducerRequest {
    /// The topic.
    pub topic: TopicName,
    /// The most messages that one batch should hold; the driver's window may say less.
    pub max_batch: usize,
}

impl ProducerRequest {
    /// Asks for a producer of a topic.
    ///
    /// ```
    /// # use mq_api::{TopicName, driver};
    /// # fn main() -> mq_api::Result<()> {
    /// let topic = TopicName::new("orders")?;
    /// let request = driver::ProducerRequest::new(topic);
    /// assert_eq!((request.topic.as_str(), request.max_batch), ("orders", 1024));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn new(topic: TopicName) -> Self {
        Self {
            topic,
            max_batch: 1024,
        }
    }
}

/// Bounds what may be under way between the portable layer and a driver's producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendWindow {
    /// Batches of one partition that may be under way at once and still keep their order.
    pub batches_per_partition: usize,
    /// The most messages in one batch.
    pub batch_messages: usize,
    /// The most bytes in one batch, by [`Message::weight`](crate::Message::weight); one message may be larger.
    pub batch_bytes: usize,
    /// Whether [`Producer::store_now`](super::Producer::store_now) is worth a call.
    pub stores_now: bool,
}

impl SendWindow {
    /// Makes a window.
    ///
    /// ```
    /// use mq_api::driver::SendWindow;
    ///
    /// let window = SendWindow::new(1, 500, 1024 * 1024);
    /// assert_eq!((window.batches_per_partition, window.batch_messages), (1, 500));
    /// assert!(!window.stores_now);
    /// ```
    #[must_use]
    pub fn new(batches_per_partition: usize, batch_messages: usize, batch_bytes: usize) -> Self {
        Self {
            batches_per_partition,
            batch_messages,
            batch_bytes,
            stores_now: false,
        }
    }

    /// Says that messages may be stored within the call.
    ///
    /// ```
    /// # use mq_api::driver::SendWindow;
    /// let window = SendWindow::new(1, 500, 1024 * 1024).with_store_now();
    /// assert!(window.stores_now);
    /// ```
    #[must_use]
    pub fn with_store_now(mut self) -> Self {
        self.stores_now = true;
        self
    }
}

/// Says that [`Producer::store_now`](super::Producer::store_now) has left a message where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotNow;

/// Bounds what is fetched ahead of hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// Messages of one partition.
    pub messages: usize,
    /// Bytes of one partition.
    pub bytes: usize,
}

/// Asks to join a group.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Subscription {
    /// The topic.
    pub topic: TopicName,
    /// The group.
    pub group: GroupName,
    /// Where the group begins where it is new to the topic.
    pub start: Start,
    /// What to do when retention has overtaken the position. The engine applies it; a driver that cannot report
    /// `Trimmed` before it moves on may apply `Earliest` itself and report it.
    pub on_trimmed: OnTrimmed,
    /// How much the driver may fetch ahead for each partition; the engine pauses a partition beyond it.
    pub prefetch: Prefetch,
    /// How long a member may be silent before others take over its partitions; none: the driver's default.
    pub session_timeout: Option<Duration>,
    /// The clock of leases; tests inject their own.
    pub clock: Clock,
    /// Settings of the one backend; a name that it does not know is `InvalidConfig`.
    pub properties: Vec<(String, String)>,
}

impl Subscription {
    /// Asks to join a group with the default options.
    ///
    /// ```
    /// # use mq_api::{GroupName, Start, TopicName, driver};
    /// # fn main() -> mq_api::Result<()> {
    /// let topic = TopicName::new("orders")?;
    /// let subscription = driver::Subscription::new(topic, GroupName::new("billing")?);
    /// assert_eq!(subscription.start, Start::Earliest);
    /// assert_eq!(subscription.prefetch.messages, 1000);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn new(topic: TopicName, group: GroupName) -> Self {
        Self {
            topic,
            group,
            start: Start::Earliest,
            on_trimmed: OnTrimmed::default(),
            prefetch: Prefetch {
                messages: 1000,
                bytes: 8 * 1024 * 1024,
            },
            session_timeout: None,
            clock: Clock::system(),
            properties: Vec::new(),
        }
    }
}

/// Identifies one tenure of one partition by one member: a later tenure has a higher epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignmentId {
    /// The partition.
    pub partition: u32,
    /// Grows with each tenure of the partition in the group, whoever has it, where the backend can tell; otherwise
    /// with each tenure by this member.
    pub epoch: u64,
}

/// Hands a partition to this member with what the group has stored for it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Assignment {
    /// The partition and the tenure.
    pub id: AssignmentId,
    /// Which life of the topic it is, where the backend tells.
    pub topic_id: Option<TopicId>,
    /// Where to go on: nothing below it is un-acked. Fetching begins here, with generation 0.
    pub position: Offset,
    /// Acked offsets at or above the position, where the backend stores them; sorted, apart, not empty.
    pub acked_above: Vec<Range<Offset>>,
    /// How often un-acked messages have been handed over, where the backend stores it; sorted by offset.
    pub attempts: Vec<(Offset, u32)>,
    /// Whether the last owner gave it back in order, or there was none. After an owner that vanished, attempts are
    /// stored before each hand-over until it is sure that the message which ended that owner has been passed.
    pub clean: bool,
    /// Until when it may be used; none where nobody can take it over unasked.
    pub lease: Option<Lease>,
}

impl Assignment {
    /// Makes an assignment that begins at a position, with nothing acked above it and no attempts known.
    ///
    /// ```
    /// use mq_api::driver::{Assignment, AssignmentId};
    ///
    /// let assignment = Assignment::new(AssignmentId { partition: 0, epoch: 1 }, 7);
    /// assert_eq!(assignment.position, 7);
    /// assert!(assignment.clean && assignment.acked_above.is_empty());
    /// ```
    #[must_use]
    pub fn new(id: AssignmentId, position: Offset) -> Self {
        Self {
            id,
            topic_id: None,
            position,
            acked_above: Vec::new(),
            attempts: Vec::new(),
            clean: true,
            lease: None,
        }
    }

    /// Sets which life of the topic it is.
    ///
    /// ```
    /// # use mq_api::{TopicId, driver::{Assignment, AssignmentId}};
    /// # let id = AssignmentId { partition: 0, epoch: 1 };
    /// let assignment = Assignment::new(id, 7).with_topic_id(TopicId::new("life-2"));
    /// assert_eq!(assignment.topic_id, Some(TopicId::new("life-2")));
    /// ```
    #[must_use]
    pub fn with_topic_id(mut self, id: TopicId) -> Self {
        self.topic_id = Some(id);
        self
    }

    /// Sets what is acked at or above the position.
    ///
    /// ```
    /// # use mq_api::driver::{Assignment, AssignmentId};
    /// # let id = AssignmentId { partition: 0, epoch: 1 };
    /// let assignment = Assignment::new(id, 7).with_acked_above(vec![9..12]);
    /// assert_eq!(assignment.acked_above[0], 9..12);
    /// ```
    #[must_use]
    pub fn with_acked_above(mut self, ranges: Vec<Range<Offset>>) -> Self {
        self.acked_above = ranges;
        self
    }

    /// Sets how often messages have been handed over.
    ///
    /// ```
    /// # use mq_api::driver::{Assignment, AssignmentId};
    /// # let id = AssignmentId { partition: 0, epoch: 1 };
    /// let assignment = Assignment::new(id, 7).with_attempts(vec![(7, 2)]);
    /// assert_eq!(assignment.attempts[0], (7, 2));
    /// ```
    #[must_use]
    pub fn with_attempts(mut self, attempts: Vec<(Offset, u32)>) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets whether the last owner gave it back in order.
    ///
    /// ```
    /// # use mq_api::driver::{Assignment, AssignmentId};
    /// # let id = AssignmentId { partition: 0, epoch: 1 };
    /// let assignment = Assignment::new(id, 7).with_clean(false);
    /// assert!(!assignment.clean);
    /// ```
    #[must_use]
    pub fn with_clean(mut self, clean: bool) -> Self {
        self.clean = clean;
        self
    }

    /// Sets the lease.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Clock, Lease, driver::{Assignment, AssignmentId}};
    /// # let id = AssignmentId { partition: 0, epoch: 1 };
    /// let clock = Clock::manual();
    /// let until = clock.now() + Duration::from_secs(30);
    /// let assignment = Assignment::new(id, 7).with_lease(Lease::new(clock, until));
    /// assert_eq!(assignment.lease.map(|lease| lease.until()), Some(until));
    /// ```
    #[must_use]
    pub fn with_lease(mut self, lease: Lease) -> Self {
        self.lease = Some(lease);
        self
    }
}

/// Tells the engine what has happened to a group member.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Partitions are this member's from now on.
    Assigned(Vec<Assignment>),
    /// The group wants partitions back: the engine stops their hand-out, commits, and calls
    /// [`Consumer::release`](super::Consumer::release).
    Revoked(Vec<AssignmentId>),
    /// Partitions are already gone: a lease ran out, or the session ended. Nothing is committed for them.
    Lost(Vec<AssignmentId>),
    /// Messages of one partition.
    Batch(Batch),
    /// Retention has overtaken the position of a partition: offsets from `from` up to `to` are gone. The batches that
    /// follow begin at `to` or above.
    Trimmed {
        /// The partition and tenure.
        assignment: AssignmentId,
        /// What was to be read next.
        from: Offset,
        /// The oldest offset that is retained.
        to: Offset,
    },
    /// The topic was deleted, or deleted and made again. The consumer ends with `TopicNotFound`.
    TopicGone,
    /// The backend cannot be reached; the driver keeps trying. Repeated ones of one outage are ignored.
    Outage(Error),
    /// The backend is reached again.
    Recovered,
}

/// Holds messages of one partition under one epoch and generation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Batch {
    /// The partition and tenure.
    pub assignment: AssignmentId,
    /// Counts the seeks of the tenure, 0 before the first.
    pub generation: u64,
    /// The messages in order; maybe none, where all that was there was skipped.
    pub records: Records,
    /// The offset to fetch next: above every record, and above what was skipped.
    pub next_offset: Offset,
}

impl Batch {
    /// Makes a batch.
    ///
    /// ```
    /// # use mq_api::{Message, Timestamp};
    /// use mq_api::driver::{AssignmentId, Batch, Record, Records};
    ///
    /// # let id = AssignmentId { partition: 0, epoch: 1 };
    /// let record = Record::new(7, Timestamp::from_millis(0), Message::new("paid"));
    /// let batch = Batch::new(id, 0, Records::from(vec![record]), 8);
    /// assert_eq!((batch.records.len(), batch.next_offset), (1, 8));
    /// ```
    #[inline]
    #[must_use]
    pub fn new(assignment: AssignmentId, generation: u64, records: Records, next_offset: Offset) -> Self {
        Self {
            assignment,
            generation,
            records,
            next_offset,
        }
    }
}

/// Asks to store how far a partition is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// The partition and tenure.
    pub assignment: AssignmentId,
    /// The lowest offset that is not acked; nothing below it comes again.
    pub position: Offset,
    /// Acked offsets above the position, sorted and apart; a backend without `sparse_acks` leaves them out. Where not
    /// all of them fit, the farthest are dropped.
    pub acked_above: Vec<Range<Offset>>,
    /// How often un-acked messages have been handed over, sorted by offset, only those above one; a backend without
    /// `durable_attempts` leaves them out. Where not all fit, the farthest are dropped.
    pub attempts: Vec<(Offset, u32)>,
}

impl Commit {
    /// Asks to store a position.
    ///
    /// ```
    /// use mq_api::driver::{AssignmentId, Commit};
    ///
    /// let commit = Commit::new(AssignmentId { partition: 0, epoch: 1 }, 7);
    /// assert_eq!(commit.position, 7);
    /// assert!(commit.acked_above.is_empty() && commit.attempts.is_empty());
    /// ```
    #[must_use]
    pub fn new(assignment: AssignmentId, position: Offset) -> Self {
        Self {
            assignment,
            position,
            acked_above: Vec::new(),
            attempts: Vec::new(),
        }
    }
}

/// Says what became of a commit that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It is stored.
    Stored,
    /// The tenure is over: nothing was stored. The engine treats the assignment as lost.
    Lost,
}

/// Asks what a group has stored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommittedRequest {
    /// The topic.
    pub topic: TopicName,
    /// The group.
    pub group: GroupName,
}

impl CommittedRequest {
    /// Asks for a group's positions in a topic.
    ///
    /// ```
    /// # use mq_api::{GroupName, TopicName, driver};
    /// # fn main() -> mq_api::Result<()> {
    /// let topic = TopicName::new("orders")?;
    /// let request = driver::CommittedRequest::new(topic, GroupName::new("billing")?);
    /// assert_eq!((request.topic.as_str(), request.group.as_str()), ("orders", "billing"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn new(topic: TopicName, group: GroupName) -> Self {
        Self { topic, group }
    }
}

/// Tells what a group has stored for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommittedPosition {
    /// The partition.
    pub partition: u32,
    /// The lowest offset that is not acked.
    pub position: Offset,
    /// Acked offsets above it, where the backend stores them.
    pub acked_above: Vec<Range<Offset>>,
}

impl CommittedPosition {
    /// Makes a position.
    ///
    /// ```
    /// use mq_api::CommittedPosition;
    ///
    /// let committed = CommittedPosition::new(3, 7);
    /// assert_eq!((committed.partition, committed.position), (3, 7));
    /// assert!(committed.acked_above.is_empty());
    /// ```
    #[must_use]
    pub fn new(partition: u32, position: Offset) -> Self {
        Self {
            partition,
            position,
            acked_above: Vec::new(),
        }
    }

    /// Sets what is acked above the position.
    ///
    /// ```
    /// # use mq_api::CommittedPosition;
    /// let committed = CommittedPosition::new(3, 7).with_acked_above(vec![9..12]);
    /// assert_eq!(committed.acked_above[0], 9..12);
    /// ```
    #[must_use]
    pub fn with_acked_above(mut self, ranges: Vec<Range<Offset>>) -> Self {
        self.acked_above = ranges;
        self
    }
}

/// Asks a reader for messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FetchRequest {
    /// The partition.
    pub partition: u32,
    /// Where to begin.
    pub position: Position,
    /// The most messages.
    pub max_messages: usize,
    /// About the most bytes; one message may be larger.
    pub max_bytes: usize,
    /// How long to wait where there is nothing yet.
    pub wait: Duration,
}

impl FetchRequest {
    /// Asks for up to so many messages from a position on, without waiting.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::{Position, driver::FetchRequest};
    ///
    /// let request = FetchRequest::new(0, Position::Offset(7), 100);
    /// assert_eq!((request.max_messages, request.wait), (100, Duration::ZERO));
    /// ```
    #[must_use]
    pub fn new(partition: u32, position: Position, max_messages: usize) -> Self {
        Self {
            partition,
            position,
            max_messages,
            max_bytes: 4 * 1024 * 1024,
            wait: Duration::ZERO,
        }
    }

    /// Sets how long to wait where there is nothing yet.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Position, driver::FetchRequest};
    /// let wait = Duration::from_secs(1);
    /// let request = FetchRequest::new(0, Position::Earliest, 100).with_wait(wait);
    /// assert_eq!(request.wait, wait);
    /// ```
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// Returns what a reader found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fetched {
    /// The messages in order, maybe none.
    pub records: Records,
    /// The offset to ask for next: above every record, and above what was skipped.
    pub next_offset: Offset,
}

impl Fetched {
    /// Makes an answer.
    ///
    /// ```
    /// # use mq_api::{Message, Timestamp};
    /// use mq_api::driver::{Fetched, Record, Records};
    ///
    /// let record = Record::new(7, Timestamp::from_millis(0), Message::new("paid"));
    /// let fetched = Fetched::new(Records::from(vec![record]), 8);
    /// assert_eq!((fetched.records.len(), fetched.next_offset), (1, 8));
    /// ```
    #[must_use]
    pub fn new(records: Records, next_offset: Offset) -> Self {
        Self { records, next_offset }
    }
}
