//! What names one hand-over of one message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mq_api::{Result, driver::QueueReceipt};

use crate::{error, format::EntryId};

const VERSION: u8 = 1;

/// A receipt never leaves the process; it says which lease it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Receipt {
    pub(super) partition: u32,
    pub(super) id: EntryId,
    pub(super) attempt: u32,
}

const LENGTH: usize = 1 + 4 + 8 + 8 + 4;

impl Receipt {
    pub(super) fn encode(&self) -> QueueReceipt {
        let mut bytes = BytesMut::with_capacity(LENGTH);
        bytes.put_u8(VERSION);
        bytes.put_u32(self.partition);
        bytes.put_u64(self.id.ms);
        bytes.put_u64(self.id.seq);
        bytes.put_u32(self.attempt);
        QueueReceipt(bytes.freeze())
    }

    pub(super) fn decode(receipt: &QueueReceipt) -> Result<Self> {
        let mut bytes: Bytes = receipt.0.clone();
        if bytes.len() != LENGTH || bytes.get_u8() != VERSION {
            return Err(error::newer_format("a receipt", "unknown"));
        }
        Ok(Self {
            partition: bytes.get_u32(),
            id: EntryId {
                ms: bytes.get_u64(),
                seq: bytes.get_u64(),
            },
            attempt: bytes.get_u32(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_read_back_and_another_is_refused() {
        let receipt = Receipt {
            partition: 7,
            id: EntryId { ms: 1, seq: 2 },
            attempt: 3,
        };
        assert_eq!(Receipt::decode(&receipt.encode()).unwrap(), receipt);
        assert!(Receipt::decode(&QueueReceipt(Bytes::from_static(b"\x02abc"))).is_err());
        assert!(Receipt::decode(&QueueReceipt(Bytes::new())).is_err());
    }
}
