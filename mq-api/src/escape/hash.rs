//! FNV-1a of 128 bits: small, stable for ever, and spread well enough for names that are checked in full on opening.

const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// Hashes bytes by FNV-1a with 128 bits. It is no defence against names made to collide: check the full name.
///
/// ```
/// use mq_api::escape::fnv1a_128;
///
/// assert_eq!(fnv1a_128(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
/// ```
#[must_use]
pub fn fnv1a_128(bytes: &[u8]) -> u128 {
    bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_the_published_values() {
        for (input, hash) in [
            ("", 0x6c62272e07bb014262b821756295c58d_u128),
            ("a", 0xd228cb696f1a8caf78912b704e4a8964),
            ("ab", 0x08809544bbab1be95aa0733055b69a62),
            ("abc", 0xa68d622cec8b5822836dbc7977af7f3b),
        ] {
            assert_eq!(fnv1a_128(input.as_bytes()), hash, "{input}");
        }
    }
}
