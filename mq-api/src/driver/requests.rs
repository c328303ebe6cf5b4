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
    #[must_use]
    pub fn with_store_now(mut self) -> Self {
        self.stores_now = true;
        self
    }
}

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
    #[must_use]
    pub fn with_topic_id(mut self, id: TopicId) -> Self {
        self.topic_id = Some(id);
        self
    }

    /// Sets what is acked at or above the position.
    #[must_use]
    pub fn with_acked_above(mut self, ranges: Vec<Range<Offset>>) -> Self {
        self.acked_above = ranges;
        self
    }

    /// Sets how often messages have been handed over.
    #[must_use]
    pub fn with_attempts(mut self, attempts: Vec<(Offset, u32)>) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets whether the last owner gave it back in order.
    #[must_use]
    pub fn with_clean(mut self, clean: bool) -> Self {
        self.clean = clean;
        self
    }

    /// Sets the lease.
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
    #[must_use]
    pub fn new(partition: u32, position: Offset) -> Self {
        Self {
            partition,
            position,
            acked_above: Vec::new(),
        }
    }

    /// Sets what is acked above the position.
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
    #[must_use]
    pub fn new(records: Records, next_offset: Offset) -> Self {
        Self { records, next_offset }
    }
}
