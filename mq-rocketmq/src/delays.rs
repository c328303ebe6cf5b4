//! How delays travel: as times, or as the levels of brokers that keep no timers.

use std::time::Duration;

use mq_api::{Due, Timestamp};

/// What each level of a broker's default `messageDelayLevel` stands for, in seconds.
const LEVELS: [u64; 18] = [
    1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200,
];
/// The longest delay that timers take by default.
const LONGEST_TIMER: Duration = Duration::from_secs(3 * 24 * 3600);
/// How late brokers are with timers of a second's precision, their default.
const TIMER_PRECISION: Duration = Duration::from_millis(1500);

/// Says how the delay of a message is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delays {
    /// As a time, which brokers from version 5 on keep to, up to three days.
    #[default]
    Timer,
    /// As the lowest of the 18 default levels that is not shorter, up to two hours: for brokers of version 4, and those
    /// with `timerWheelEnable=false`.
    Levels,
}

impl Delays {
    /// Returns the longest delay that can be sent.
    #[must_use]
    pub fn longest(self) -> Duration {
        match self {
            Self::Timer => LONGEST_TIMER,
            Self::Levels => LEVELS.last().copied().map_or(Duration::ZERO, Duration::from_secs),
        }
    }

    /// Returns how late a delayed message may be; with levels that is the widest gap between two of them.
    pub(crate) fn precision(self) -> Duration {
        match self {
            Self::Timer => TIMER_PRECISION,
            Self::Levels => {
                let gaps = LEVELS.iter().zip(LEVELS.iter().skip(1)).map(|(a, b)| b - a);
                gaps.max().map_or(Duration::ZERO, Duration::from_secs) + TIMER_PRECISION
            }
        }
    }

    /// Returns the property that delays a message, and its value.
    pub(crate) fn property(self, due: Due) -> (&'static str, String) {
        match (self, due) {
            (Self::Timer, Due::After(delay)) => ("TIMER_DELAY_MS", delay.as_millis().to_string()),
            (Self::Timer, Due::At(at)) => ("TIMER_DELIVER_MS", at.as_millis().max(1).to_string()),
            (Self::Levels, Due::After(delay)) => ("DELAY", level(delay).to_string()),
            (Self::Levels, Due::At(at)) => {
                let left = at.as_millis().saturating_sub(Timestamp::now().as_millis());
                let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
                ("DELAY", level(left).to_string())
            }
        }
    }
}

/// The lowest level that is not shorter than a delay; the highest one where there is none, and none for no delay.
fn level(delay: Duration) -> usize {
    if delay.is_zero() {
        return 0;
    }
    let shorter = LEVELS.partition_point(|level| Duration::from_secs(*level) < delay);
    (shorter + 1).min(LEVELS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_never_shorter_than_the_delay() {
        for (millis, expected) in [
            (0, 0),
            (1, 1),
            (1_000, 1),
            (1_001, 2),
            (5_000, 2),
            (600_000, 14),
            (7_200_000, 18),
            (9_000_000, 18),
        ] {
            assert_eq!(level(Duration::from_millis(millis)), expected, "{millis} ms");
        }
        let (name, value) = Delays::Levels.property(Due::After(Duration::from_secs(7)));
        assert_eq!((name, value.as_str()), ("DELAY", "3"));
        let past = Timestamp::from_millis(1);
        assert_eq!(Delays::Levels.property(Due::At(past)).1, "0");
        assert_eq!(Delays::Timer.property(Due::At(past)).0, "TIMER_DELIVER_MS");
        assert_eq!(Delays::Levels.longest(), Duration::from_secs(7200));
    }
}
