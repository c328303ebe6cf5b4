//! What a reader returns.

use std::{fmt, sync::Arc};

use crate::{
    Headers, Message, Offset, Timestamp,
    driver::{Record, Records, Segment},
};

/// Holds a message that a reader has found, and where it was.
#[derive(Clone)]
pub struct ReadMessage {
    segment: Arc<dyn Segment>,
    index: u32,
    partition: u32,
}

impl ReadMessage {
    pub(super) fn all(partition: u32, records: Records) -> impl Iterator<Item = Self> {
        let (segment, range) = records.into_parts();
        range.map(move |index| Self {
            segment: Arc::clone(&segment),
            index,
            partition,
        })
    }

    /// Returns the message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.record().message
    }

    /// Returns the payload, empty for a tombstone.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.message().payload_or_empty()
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.message().key().map(|key| &key[..])
    }

    /// Returns the headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.message().headers()
    }

    /// Returns the partition.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns the offset.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.record().offset
    }

    /// Returns when the message was stored, by the clock that the driver's page names.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        self.record().stored_at
    }

    fn record(&self) -> &Record {
        self.segment.record(self.index)
    }
}

impl fmt::Debug for ReadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadMessage")
            .field("partition", &self.partition)
            .field("offset", &self.offset())
            .field("message", self.message())
            .finish_non_exhaustive()
    }
}
