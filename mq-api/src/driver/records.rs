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
    ///
    /// ```
    /// use mq_api::{Message, Timestamp, driver::Record};
    ///
    /// let record = Record::new(7, Timestamp::from_millis(1000), Message::new("paid"));
    /// assert_eq!(record.offset, 7);
    /// assert_eq!(record.message.payload_or_empty(), b"paid");
    /// ```
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

/// What holds records.
#[derive(Clone)]
pub(crate) enum Held {
    Segment(Arc<dyn Segment>),
    /// One record by itself: it lives in the memory that the portable layer needs for a batch anyway, one allocation less
    /// a message for a reader that keeps up with single sends.
    One(Record),
}

impl Held {
    /// Takes it, and leaves an empty message.
    pub(crate) fn take(&mut self) -> Self {
        let empty = Record::new(0, Timestamp::from_millis(0), Message::new(""));
        std::mem::replace(self, Self::One(empty))
    }

    #[inline]
    pub(crate) fn record(&self, index: u32) -> &Record {
        match self {
            Self::Segment(segment) => segment.record(index),
            Self::One(record) => record,
        }
    }
}

/// Lends a run of records in a segment: a reference and a range, never a copy.
#[derive(Clone)]
pub struct Records {
    held: Held,
    range: Range<u32>,
    weight: Option<usize>,
}

impl Records {
    /// Lends the records of a segment that lie in a range, in the order of their offsets.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use mq_api::{Message, Timestamp, driver::{Record, Records}};
    /// # let record = |offset| Record::new(offset, Timestamp::from_millis(0), Message::new("paid"));
    /// let segment = Arc::new(vec![record(7), record(8), record(9)]);
    /// let records = Records::new(segment, 1..3);
    /// assert_eq!(records.iter().next().map(|record| record.offset), Some(8));
    /// ```
    #[must_use]
    pub fn new(segment: Arc<dyn Segment>, range: Range<u32>) -> Self {
        Self {
            held: Held::Segment(segment),
            range,
            weight: None,
        }
    }

    /// Says what the messages weigh together, by [`Message::weight`], where the driver knows: else the portable layer adds
    /// it up, which is a look at each record.
    ///
    /// ```
    /// # use mq_api::{Message, Timestamp, driver::{Record, Records}};
    /// # let record = Record::new(7, Timestamp::from_millis(0), Message::new("paid"));
    /// let weight = record.message.weight();
    /// let records = Records::from(vec![record]).with_weight(weight);
    /// assert_eq!(records.weight(), weight);
    /// ```
    #[must_use]
    pub fn with_weight(mut self, bytes: usize) -> Self {
        self.weight = Some(bytes);
        self
    }

    /// Returns what the messages weigh together, in bytes.
    ///
    /// ```
    /// # use mq_api::{Message, Timestamp, driver::{Record, Records}};
    /// # let record = |offset| Record::new(offset, Timestamp::from_millis(0), Message::new("paid"));
    /// let records = Records::from(vec![record(7), record(8)]);
    /// assert_eq!(records.weight(), 2 * Message::new("paid").weight());
    /// ```
    #[must_use]
    pub fn weight(&self) -> usize {
        match (self.weight, &self.held) {
            (Some(weight), _) => weight,
            (None, Held::One(record)) => record.message.weight(),
            (None, Held::Segment(_)) => self.iter().map(|record| record.message.weight()).sum(),
        }
    }

    /// Counts the records.
    ///
    /// ```
    /// # use mq_api::{Message, Timestamp, driver::{Record, Records}};
    /// # let record = Record::new(7, Timestamp::from_millis(0), Message::new("paid"));
    /// let records = Records::from(vec![record]);
    /// assert_eq!(records.len(), 1);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Tells whether there are none.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use mq_api::{Message, Timestamp, driver::{Record, Records}};
    /// # let record = Record::new(7, Timestamp::from_millis(0), Message::new("paid"));
    /// let records = Records::new(Arc::new(vec![record]), 0..0);
    /// assert!(records.is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Goes through the records in order.
    ///
    /// ```
    /// # use mq_api::{Message, Timestamp, driver::{Record, Records}};
    /// # let record = |offset| Record::new(offset, Timestamp::from_millis(0), Message::new("paid"));
    /// let records = Records::from(vec![record(7), record(9)]);
    /// let offsets: Vec<u64> = records.iter().map(|record| record.offset).collect();
    /// assert_eq!(offsets, [7, 9]);
    /// ```
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Record> {
        self.range.clone().map(|index| self.held.record(index))
    }

    /// Returns the segment and the range in it.
    ///
    /// ```
    /// # use mq_api::{Message, Timestamp, driver::{Record, Records, Segment}};
    /// # let record = Record::new(7, Timestamp::from_millis(0), Message::new("paid"));
    /// let (segment, range) = Records::from(vec![record]).into_parts();
    /// assert_eq!(range, 0..1);
    /// assert_eq!(segment.record(0).offset, 7);
    /// ```
    #[must_use]
    pub fn into_parts(self) -> (Arc<dyn Segment>, Range<u32>) {
        let segment = match self.held {
            Held::Segment(segment) => segment,
            Held::One(record) => Arc::new(record),
        };
        (segment, self.range)
    }

    /// Returns the index of the first record in what holds them.
    #[inline]
    pub(crate) fn first_index(&self) -> u32 {
        self.range.start
    }

    /// Tells whether it is one record by itself, as drivers within the process hand over what comes alone.
    #[inline]
    pub(crate) fn is_one(&self) -> bool {
        matches!(self.held, Held::One(_))
    }

    #[inline]
    pub(crate) fn held_mut(&mut self) -> &mut Held {
        &mut self.held
    }

    #[inline]
    pub(crate) fn into_held(self) -> (Held, Range<u32>) {
        (self.held, self.range)
    }
}

impl From<Record> for Records {
    /// Hands one record over.
    #[inline]
    fn from(record: Record) -> Self {
        Self {
            held: Held::One(record),
            range: 0..1,
            weight: None,
        }
    }
}

impl From<Vec<Record>> for Records {
    fn from(records: Vec<Record>) -> Self {
        let end = u32::try_from(records.len()).unwrap_or(u32::MAX);
        Self {
            held: Held::Segment(Arc::new(records)),
            range: 0..end,
            weight: None,
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
