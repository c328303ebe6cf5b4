//! The id that a client gives each message, in the form that RocketMQ's tools read.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The characters of a key.
const LEN: usize = 32;
const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Makes unique keys: 32 upper-case hexadecimal digits, of 4 bytes for an address, 2 for a process and 4 for an
/// instance, 4 for the milliseconds since the month began and 2 that count.
///
/// The first ten bytes are random here, so that they tell nothing and two processes in containers with the same
/// address and process id stay apart.
#[derive(Debug)]
pub struct UniqueKeys {
    fixed: [u8; 20],
    count: AtomicU32,
}

impl UniqueKeys {
    /// Begins a new series.
    pub fn new() -> Self {
        let mut fixed = [0; 20];
        for (digit, slot) in fixed.iter_mut().enumerate() {
            // The first digit of a real address is never 0, and some tools show it.
            let least = usize::from(digit == 0);
            *slot = HEX[fastrand::usize(least..16)];
        }
        Self {
            fixed,
            count: AtomicU32::new(0),
        }
    }

    /// Makes the next key, for a message made now.
    pub fn next(&self) -> UniqueKey {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let into_month = now.saturating_sub(month_start(now));
        // In u64: dividing 128 bits costs more than all the rest.
        let millis = into_month.as_secs() * 1000 + u64::from(into_month.subsec_millis());
        let count = u64::from(self.count.fetch_add(1, Ordering::Relaxed) & 0xffff);
        let mut digits = (millis & 0xffff_ffff) << 16 | count;
        let mut key = [b'0'; LEN];
        let (fixed, tail) = key.split_at_mut(self.fixed.len());
        fixed.copy_from_slice(&self.fixed);
        for slot in tail.iter_mut().rev() {
            *slot = HEX[(digits & 15) as usize];
            digits >>= 4;
        }
        UniqueKey(key)
    }
}

impl Default for UniqueKeys {
    fn default() -> Self {
        Self::new()
    }
}

/// A unique key, without an allocation of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniqueKey([u8; LEN]);

impl UniqueKey {
    /// The 32 digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The first moment of the month, in UTC, since the epoch.
fn month_start(since_epoch: Duration) -> Duration {
    const DAY: u64 = 86_400;
    let days = since_epoch.as_secs() / DAY;
    // Howard Hinnant's civil_from_days, for days after 1970: years begin in March, so that a leap day ends one.
    let shifted = days + 719_468;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5;
    Duration::from_secs((days - day_of_month) * DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_where_calendars_say() {
        for (moment, start) in [
            (0, 0),
            (951_825_599, 949_363_200),     // 2000-02-29T11:59:59 -> 2000-02-01
            (1_709_251_200, 1_709_251_200), // 2024-03-01
            (1_735_689_599, 1_733_011_200), // 2024-12-31T23:59:59 -> 2024-12-01
            (4_107_542_399, 4_105_123_200), // 2100-02-28T23:59:59 -> 2100-02-01
        ] {
            assert_eq!(
                month_start(Duration::from_secs(moment)),
                Duration::from_secs(start),
                "{moment}"
            );
        }
    }

    #[test]
    fn keys_differ_and_are_hexadecimal() {
        let keys = UniqueKeys::new();
        let made: std::collections::HashSet<_> = (0..1000).map(|_| keys.next()).collect();
        assert_eq!(made.len(), 1000);
        for key in made {
            assert_eq!(key.as_str().len(), 32);
            assert!(key.as_str().bytes().all(|b| HEX.contains(&b)));
        }
    }
}
