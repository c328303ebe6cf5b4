//! The payloads that every contender sends, and the check that every contender makes.

use bytes::Bytes;

/// How many different payloads there are.
const VARIETY: u64 = 1024;

/// Holds payloads that name their own place, made before the clock runs.
#[derive(Clone, Debug)]
pub struct Payloads {
    all: Vec<Bytes>,
}

impl Payloads {
    /// Makes payloads of so many bytes, at least 8.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let make = |index: u64| {
            let mut bytes = index.to_le_bytes().to_vec();
            bytes.resize(size.max(8), 0xAB);
            let bytes = Bytes::from(bytes);
            // The first clone of a fresh buffer allocates its counter; every contender sends shared ones.
            drop(bytes.clone());
            bytes
        };
        Self {
            all: (0..VARIETY).map(make).collect(),
        }
    }

    /// Returns the payload of the message with this number.
    #[must_use]
    pub fn of(&self, number: u64) -> Bytes {
        self.all
            .get(usize::try_from(number % VARIETY).unwrap_or(0))
            .cloned()
            .unwrap_or_default()
    }
}

/// Adds up what was received, so that a contender that loses or doubles a message is found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Check {
    count: u64,
    sum: u64,
}

impl Check {
    /// Takes a received payload in.
    pub fn take(&mut self, payload: &[u8]) {
        let number = payload
            .first_chunk::<8>()
            .map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        self.count += 1;
        self.sum = self.sum.wrapping_add(number);
    }

    /// Adds what another receiver took.
    pub fn add(&mut self, other: Self) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Returns what must have come after so many messages, each so many times.
    #[must_use]
    pub fn expected(messages: u64, times: u64) -> Self {
        let (rounds, rest) = (messages / VARIETY, messages % VARIETY);
        let sum = rounds * (VARIETY * (VARIETY - 1) / 2) + (0..rest).sum::<u64>();
        Self {
            count: messages * times,
            sum: sum * times,
        }
    }
}
