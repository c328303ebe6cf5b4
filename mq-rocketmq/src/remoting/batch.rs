//! The body of a request that stores several messages of one queue.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::RemotingError;
use super::properties::PropertyWriter;

/// The bytes of an entry without body and properties.
const ENTRY: usize = 22;

/// Appends messages to the body of a batch.
#[derive(Debug)]
pub struct BatchWriter<'a> {
    out: &'a mut BytesMut,
}

impl<'a> BatchWriter<'a> {
    /// Begins a batch at the end of `out`.
    pub fn new(out: &'a mut BytesMut) -> Self {
        Self { out }
    }

    /// Appends one message, whose properties are written in place.
    ///
    /// # Errors
    ///
    /// What `properties` says, or [`RemotingError::Malformed`] when a length does not fit; the batch is as it
    /// was then.
    pub fn push(
        &mut self,
        flag: i32,
        body: &[u8],
        properties: impl FnOnce(&mut PropertyWriter<'_>) -> Result<(), RemotingError>,
    ) -> Result<(), RemotingError> {
        let start = self.out.len();
        let outcome = self.build(start, flag, body, properties);
        if outcome.is_err() {
            self.out.truncate(start);
        }
        outcome
    }

    fn build(
        &mut self,
        start: usize,
        flag: i32,
        body: &[u8],
        properties: impl FnOnce(&mut PropertyWriter<'_>) -> Result<(), RemotingError>,
    ) -> Result<(), RemotingError> {
        let too_long =
            |_| RemotingError::malformed("batch", "a part is longer than its length field can say");
        self.out.put_u32(0);
        // Magic number and checksum; brokers fill them in.
        self.out.put_u64(0);
        self.out.put_i32(flag);
        self.out.put_u32(u32::try_from(body.len()).map_err(too_long)?);
        self.out.put_slice(body);
        let length_at = self.out.len();
        self.out.put_u16(0);
        let mut writer = PropertyWriter::new(self.out);
        properties(&mut writer)?;
        let properties_len = u16::try_from(writer.len()).map_err(too_long)?;
        let size = u32::try_from(self.out.len() - start).map_err(too_long)?;
        if let Some(slot) = self.out.get_mut(length_at..length_at + 2) {
            slot.copy_from_slice(&properties_len.to_be_bytes());
        }
        if let Some(slot) = self.out.get_mut(start..start + 4) {
            slot.copy_from_slice(&size.to_be_bytes());
        }
        Ok(())
    }
}

/// One message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchEntry {
    /// The number that the producer gave.
    pub flag: i32,
    /// The body.
    pub body: Bytes,
    /// The text of the properties.
    pub properties: Bytes,
}

/// Reads the body of a batch.
///
/// # Errors
///
/// [`RemotingError::Malformed`] when the bytes are not a batch.
pub fn decode_batch(mut rest: Bytes) -> Result<Vec<BatchEntry>, RemotingError> {
    let broken = |rule| RemotingError::malformed("batch", rule);
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let size = rest
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_be_bytes)
            .unwrap_or(0) as usize;
        if size < ENTRY || size > rest.len() {
            return Err(broken(
                "the length of an entry is below the least or beyond the body",
            ));
        }
        let mut entry = rest.split_to(size);
        entry.advance(12);
        let flag = entry.get_i32();
        let body_len = entry.get_u32() as usize;
        if body_len > size - ENTRY {
            return Err(broken("a body is longer than its entry"));
        }
        let body = entry.split_to(body_len);
        let properties_len = usize::from(entry.get_u16());
        if properties_len != entry.len() {
            return Err(broken("properties and entry end apart"));
        }
        entries.push(BatchEntry {
            flag,
            body,
            properties: entry,
        });
    }
    Ok(entries)
}
