//! Records, handed over as a lease on what holds them.

use std::{fmt, ops::Range, sync::Arc};

use crate::{Message, Offset, Timestamp};

/// Holds a message as the backend stored it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The offset in its partition.
    pub offset: Offset,
    /// When it was stored, by the clock that the driver's page names; or the sender's own time, where the backend
    /// keeps only that.
    pub stored_at: Timestamp,
    /// The message.
    pub message: Message,
}

impl Record {
    /// Makes a record.
    #[must_use]
    pub fn new(offset: Offset, stored_at: Timestamp, message: Message) -> Self {
        Self {
            offset,
            stored_at,
            message,
        }
    }
}

/// Holds records that can be lent out without a copy.
pub trait Segment: Send + Sync + 'static {
    /// Returns one record. It is only called with an index within the range that the driver gave with the segment.
    fn record(&self, index: u32) -> &Record;
}

impl Segment for Vec<Record> {
    fn record(&self, index: u32) -> &Record {
        &self[index as usize]
    }
}

impl Segment for Record {
    fn record(&self, _index: u32) -> &Record {
        self
    }
}

/// Lends a run of records in a segment: a reference and a range, never a copy.
#[derive(Clone)]
pub struct Records {
    segment: Arc<dyn Segment>,
    range: Range<u32>,
}

impl Records {
    /// Lends the records of a segment that lie in a range, in the order of their offsets.
    #[must_use]
    pub fn new(segment: Arc<dyn Segment>, range: Range<u32>) -> Self {
        Self { segment, range }
    }

    /// Counts the records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Goes through the records in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Record> {
        self.range.clone().map(|index| self.segment.record(index))
    }

    /// Returns the segment and the range in it.
    #[must_use]
    pub fn into_parts(self) -> (Arc<dyn Segment>, Range<u32>) {
        (self.segment, self.range)
    }
}

impl From<Vec<Record>> for Records {
    fn from(records: Vec<Record>) -> Self {
        let end = u32::try_from(records.len()).unwrap_or(u32::MAX);
        Self {
            segment: Arc::new(records),
            range: 0..end,
        }
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
