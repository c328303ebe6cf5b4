//! What a producer gets back.

use crate::Offset;

/// Says where a message was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Receipt {
    /// The partition.
    pub partition: u32,
    /// The offset, where the backend reports it; see
    /// [`Capabilities::receipt_offset`](crate::Capabilities::receipt_offset).
    pub offset: Option<Offset>,
}

impl Receipt {
    /// Makes a receipt.
    ///
    /// ```
    /// use mq_api::Receipt;
    /// let receipt = Receipt::new(2, Some(41));
    /// assert_eq!((receipt.partition, receipt.offset), (2, Some(41)));
    /// ```
    #[must_use]
    pub fn new(partition: u32, offset: Option<Offset>) -> Self {
        Self { partition, offset }
    }
}
