//! Which partition a key belongs to.

use std::{fmt, sync::Arc};

/// Maps keys to partitions; a key stays in its partition while the partition count stands.
///
/// The default is murmur2 as Kafka's Java client computes it, so that one key means one partition number on every
/// backend and for every client that does the same. The formats are frozen.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Partitioner {
    /// Murmur2 with the sign bit cleared, modulo the partition count, as Kafka's Java client.
    #[default]
    Murmur2,
    /// CRC-32 (IEEE), modulo the partition count, as librdkafka's `consistent` partitioner.
    Crc32,
    /// The hash of a Java `String` of the key's UTF-8 text with the sign bit cleared, modulo the partition count. A key
    /// that is not UTF-8 is hashed byte by byte.
    JavaHash,
    /// A function of the key and the partition count; a result out of range fails the send.
    Custom(Arc<CustomPartitioner>),
}

/// Maps a key to one of so many partitions.
type CustomPartitioner = dyn Fn(&[u8], u32) -> u32 + Send + Sync;

impl Partitioner {
    /// Wraps a function of the key and the partition count.
    ///
    /// ```
    /// use mq_api::Partitioner;
    /// let by_length = Partitioner::custom(|key, partitions| key.len() as u32 % partitions);
    /// assert_eq!(by_length.partition(b"user-7", 4), 2);
    /// ```
    pub fn custom(partition: impl Fn(&[u8], u32) -> u32 + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(partition))
    }

    /// Returns the partition of a key among so many; 0 where there are none.
    ///
    /// ```
    /// use mq_api::Partitioner;
    /// assert_eq!(Partitioner::Murmur2.partition(b"foobar", 1000), 166);
    /// ```
    #[must_use]
    pub fn partition(&self, key: &[u8], partitions: u32) -> u32 {
        let hash = match self {
            Self::Murmur2 => murmur2(key) & 0x7fff_ffff,
            Self::Crc32 => crc32(key),
            Self::JavaHash => java_hash(key) & 0x7fff_ffff,
            Self::Custom(partition) => return partition(key, partitions),
        };
        hash.checked_rem(partitions).unwrap_or(0)
    }
}

impl fmt::Debug for Partitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Murmur2 => "Murmur2",
            Self::Crc32 => "Crc32",
            Self::JavaHash => "JavaHash",
            Self::Custom(_) => "Custom",
        })
    }
}

/// Computes `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // The length is an `int` there; keys are far shorter than its range.
    let mut hash = SEED ^ (data.len() as u32);
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = chunk
            .iter()
            .rev()
            .fold(0u32, |k, byte| (k << 8) | u32::from(*byte));
        k = k.wrapping_mul(M);
        k ^= k >> R;
        k = k.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let tail = rest
            .iter()
            .rev()
            .fold(0u32, |k, byte| (k << 8) | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Computes CRC-32 with the reflected IEEE polynomial, as zlib.
fn crc32(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32_table();
    !data.iter().fold(u32::MAX, |crc, byte| {
        (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)]
    })
}

const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

/// Computes `java.lang.String.hashCode`, over UTF-16 units.
fn java_hash(data: &[u8]) -> u32 {
    let step = |hash: u32, unit: u32| hash.wrapping_mul(31).wrapping_add(unit);
    match std::str::from_utf8(data) {
        Ok(text) => text
            .encode_utf16()
            .fold(0, |hash, unit| step(hash, u32::from(unit))),
        Err(_) => data.iter().fold(0, |hash, byte| step(hash, u32::from(*byte))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_is_that_of_kafkas_java_client() {
        // The vectors of `UtilsTest.testMurmur2` in Apache Kafka.
        for (key, hash) in [
            (&b"21"[..], -973_932_308_i32),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key).cast_signed(), hash, "{key:?}");
        }
    }

    #[test]
    fn golden_partitions() {
        let all = |key: &[u8]| {
            [Partitioner::Murmur2, Partitioner::Crc32, Partitioner::JavaHash]
                .map(|partitioner| partitioner.partition(key, 1000))
        };
        assert_eq!(all(b""), [681, 0, 0]);
        assert_eq!(all(b"foobar"), [166, 69, 685]);
        assert_eq!(all(b"user-7"), [364, 745, 829]);
    }

    #[test]
    fn crc32_and_java_hash_give_the_published_values() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(java_hash(b"hello").cast_signed(), 99_162_322);
        assert_eq!(java_hash("é".as_bytes()), 233);
        assert_eq!(java_hash(&[0xff, 1]), 255 * 31 + 1);
    }

    #[test]
    fn no_partitions_is_no_panic() {
        assert_eq!(Partitioner::Murmur2.partition(b"k", 0), 0);
        assert_eq!(Partitioner::custom(|_, n| n).partition(b"k", 3), 3);
    }
}
