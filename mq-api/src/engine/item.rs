//! One message on its way through the engine: a lease on a batch and its place in the window.

use std::{fmt, sync::Arc};

use super::settle::Settle;
use crate::driver::{AssignmentId, Held, Record};

/// Holds what all messages of one fetched batch share; one allocation a batch, not one a message.
pub(crate) struct Source {
    pub(crate) segment: Held,
    pub(crate) owner: Arc<dyn Settle>,
    pub(crate) assignment: AssignmentId,
    pub(crate) generation: u64,
    /// How many messages the batch holds alive.
    pub(crate) len: u32,
}

/// Points at one message of a batch.
#[derive(Clone)]
pub(crate) struct Item {
    pub(crate) source: Arc<Source>,
    pub(crate) index: u32,
    pub(crate) seq: u64,
    /// What the message weighs, so that settling it need not look at it.
    pub(crate) weight: u32,
    /// The coming hand-over has been stored already.
    pub(crate) stored: Flag,
}

/// A yes or no in a word of its own. What surrounds a `bool` keeps its own tag in it, as an `Option` does, and is then
/// copied in pieces of one, three and seven bytes: the stalls of that were a tenth of a message there and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Flag {
    No,
    Yes,
}

impl From<bool> for Flag {
    #[inline]
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Flag {
    #[inline]
    pub(crate) fn is_set(self) -> bool {
        self == Self::Yes
    }
}

impl Item {
    pub(crate) fn record(&self) -> &Record {
        self.source.segment.record(self.index)
    }

    /// Copies the message out of its batch, so that a message which waits for long does not hold a large batch alive.
    pub(crate) fn detached(self) -> Self {
        const SMALL: u32 = 16;
        if self.source.len < SMALL {
            return self;
        }
        let record = self.record();
        let copy = Record::new(record.offset, record.stored_at, record.message.detached());
        let source = Source {
            segment: Held::One(copy),
            owner: Arc::clone(&self.source.owner),
            assignment: self.source.assignment,
            generation: self.source.generation,
            len: 1,
        };
        Self {
            source: Arc::new(source),
            index: 0,
            ..self
        }
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item")
            .field("seq", &self.seq)
            .field("offset", &self.record().offset)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.seq.cmp(&other.seq)
    }
}
