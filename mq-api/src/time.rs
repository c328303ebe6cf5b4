//! Points in time: wall time for messages, a clock that counts suspend for leases.

use std::{
    fmt,
    ops::{Add, Sub},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Marks a point in time in UTC milliseconds since the epoch. Messages carry it; no duration or lease comes from it.
///
/// ```
/// use std::time::Duration;
/// use mq_api::Timestamp;
///
/// let begin = Timestamp::from_millis(1_700_000_000_000);
/// let later = begin.saturating_add(Duration::from_secs(2));
/// assert_eq!(later.saturating_since(begin), Duration::from_secs(2));
/// assert_eq!(begin.saturating_since(later), Duration::ZERO);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Takes milliseconds since 1970-01-01 UTC.
    ///
    /// ```
    /// use mq_api::Timestamp;
    /// assert_eq!(Timestamp::from_millis(1_700_000_000_000).as_millis(), 1_700_000_000_000);
    /// assert!(Timestamp::from_millis(-1) < Timestamp::from_millis(0));
    /// ```
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns milliseconds since 1970-01-01 UTC.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use mq_api::Timestamp;
    /// assert_eq!(Timestamp::from(SystemTime::UNIX_EPOCH).as_millis(), 0);
    /// ```
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Reads this machine's wall clock.
    ///
    /// ```
    /// use mq_api::Timestamp;
    /// assert!(Timestamp::now() > Timestamp::from_millis(1_700_000_000_000));
    /// ```
    #[must_use]
    pub fn now() -> Self {
        let now: Self = SystemTime::now().into();
        if TOLD.load(Ordering::Relaxed) < now.0 {
            TOLD.fetch_max(now.0, Ordering::AcqRel);
        }
        now
    }

    /// Reads this machine's wall clock as of its last tick, 1 to 10 ms ago as a rule, for a fifth of what
    /// [`now`](Self::now) costs. It is never earlier than what `now` has told in this process just before, so that "from
    /// now on" holds for what is stamped with it.
    ///
    /// ```
    /// use mq_api::Timestamp;
    /// let told = Timestamp::now();
    /// assert!(Timestamp::recent() >= told);
    /// ```
    #[must_use]
    pub fn recent() -> Self {
        /// Ticks are shorter than this; a difference beyond it means that the clock was set back.
        const LONGEST_TICK: i64 = 20;
        let recent = system_wall_tick();
        let told = TOLD.load(Ordering::Acquire);
        if told > recent && told - recent <= LONGEST_TICK {
            Self(told)
        } else {
            Self(recent)
        }
    }

    /// Adds a duration, stopping at the largest value.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Timestamp;
    /// let later = Timestamp::from_millis(1_000).saturating_add(Duration::from_secs(2));
    /// assert_eq!(later, Timestamp::from_millis(3_000));
    /// ```
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// Returns the time from `earlier` to here, zero where `earlier` is later.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Timestamp;
    /// let (begin, end) = (Timestamp::from_millis(1_000), Timestamp::from_millis(3_000));
    /// assert_eq!(end.saturating_since(begin), Duration::from_secs(2));
    /// assert_eq!(begin.saturating_since(end), Duration::ZERO);
    /// ```
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// The last time that [`Timestamp::now`] has told: part of reading the machine's clock, of which there is one.
static TOLD: AtomicI64 = AtomicI64::new(i64::MIN);

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_wall_tick() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec
        .saturating_mul(1000)
        .saturating_add(now.tv_nsec / 1_000_000)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system_wall_tick() -> i64 {
    Timestamp::from(SystemTime::now()).0
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        Self(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => millis(after),
            Err(before) => -millis(before.duration()),
        })
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Marks a point on the clock that leases are measured by, in nanoseconds since this machine started.
///
/// On Linux the clock counts the time that the machine was suspended, and all processes of a machine read the same one.
/// Elsewhere it is the process's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// Takes nanoseconds since the clock's zero.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Moment;
    /// assert_eq!(Moment::from_nanos(5) + Duration::from_nanos(2), Moment::from_nanos(7));
    /// ```
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns nanoseconds since the clock's zero.
    ///
    /// ```
    /// use mq_api::Moment;
    /// assert_eq!(Moment::from_nanos(5).as_nanos(), 5);
    /// ```
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time from `earlier` to here, zero where `earlier` is later.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Moment;
    /// let (begin, end) = (Moment::from_nanos(5), Moment::from_nanos(7));
    /// assert_eq!(end.saturating_since(begin), Duration::from_nanos(2));
    /// assert_eq!(begin.saturating_since(end), Duration::ZERO);
    /// ```
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Reads [`Moment`]s: the machine's clock, or one that a test moves by hand.
///
/// ```
/// use std::time::Duration;
/// use mq_api::{Clock, Lease};
///
/// let clock = Clock::manual();
/// let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(10));
/// assert!(lease.stands_at(clock.now()));
/// clock.advance(Duration::from_secs(11));
/// assert!(!lease.stands_at(clock.now()));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock {
    manual: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// Takes the machine's clock.
    ///
    /// ```
    /// use mq_api::Clock;
    /// let clock = Clock::system();
    /// let before = clock.now();
    /// assert!(clock.now() >= before);
    /// ```
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// Makes a clock that stands still until [`advance`](Self::advance) moves it; its clones move with it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Clock;
    /// let clock = Clock::manual();
    /// let before = clock.now();
    /// clock.clone().advance(Duration::from_secs(2));
    /// assert_eq!(clock.now(), before + Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn manual() -> Self {
        Self {
            manual: Some(Arc::new(AtomicU64::new(system_nanos()))),
        }
    }

    /// Moves a manual clock on. Does nothing to the machine's clock.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Clock;
    /// let clock = Clock::manual();
    /// let before = clock.now();
    /// clock.advance(Duration::from_secs(2));
    /// assert_eq!(clock.now(), before + Duration::from_secs(2));
    /// ```
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.manual {
            manual.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Tells in which step of the machine's coarse clock it is; none for a clock that is moved by hand, or where the
    /// system has no such clock.
    pub(crate) fn tick(&self) -> Option<Tick> {
        match &self.manual {
            None => system_tick(),
            Some(_) => None,
        }
    }

    /// Reads the clock.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::Clock;
    /// let clock = Clock::manual();
    /// let before = clock.now();
    /// clock.advance(Duration::from_secs(2));
    /// assert_eq!(clock.now().saturating_since(before), Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn now(&self) -> Moment {
        let now = self.read();
        if self.manual.is_none() && READ.load(Ordering::Relaxed) < now.0 {
            READ.fetch_max(now.0, Ordering::AcqRel);
        }
        now
    }

    /// Reads the clock for a decision, of which nobody is told.
    pub(crate) fn read(&self) -> Moment {
        Moment(match &self.manual {
            None => system_nanos(),
            Some(manual) => manual.load(Ordering::SeqCst),
        })
    }

    /// Returns the last time that [`now`](Self::now) has told anybody in this process, by the machine's clock: what is
    /// stamped with it is not earlier than what led to it. It says nothing of manual clocks, which have no
    /// [`tick`](Self::tick) either.
    pub(crate) fn told() -> Moment {
        Moment(READ.load(Ordering::Acquire))
    }
}

/// The last time that [`Clock::now`] has told of the machine's clock, of which there is one.
static READ: AtomicU64 = AtomicU64::new(0);

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system_nanos() -> u64 {
    use std::{sync::OnceLock, time::Instant};
    static ZERO: OnceLock<Instant> = OnceLock::new();
    u64::try_from(ZERO.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Names one step of the machine's coarse clock, which steps every 1 to 10 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick(u64);

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_tick() -> Option<Tick> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).ok()?, u64::try_from(now.tv_nsec).ok()?);
    Some(Tick(seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos)))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system_tick() -> Option<Tick> {
    None
}

/// Says until when an assignment may be used. The driver renews it from a task of its own; the engine reads it before
/// every hand-over. Clones share the same end.
#[derive(Clone)]
pub struct Lease {
    until: Arc<AtomicU64>,
    clock: Clock,
}

impl Lease {
    /// Makes a lease that ends at `until` by `clock`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Clock, Lease};
    /// let clock = Clock::manual();
    /// let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(10));
    /// assert!(lease.stands_at(clock.now()));
    /// ```
    #[must_use]
    pub fn new(clock: Clock, until: Moment) -> Self {
        Self {
            until: Arc::new(AtomicU64::new(until.as_nanos())),
            clock,
        }
    }

    /// Moves the end to `until`, never backwards. A lease that has run out stays so: returns `false` and changes nothing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Clock, Lease};
    /// let clock = Clock::manual();
    /// let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(10));
    /// assert!(lease.renew(clock.now() + Duration::from_secs(20)));
    /// clock.advance(Duration::from_secs(30));
    /// assert!(!lease.renew(clock.now() + Duration::from_secs(20)));
    /// ```
    pub fn renew(&self, until: Moment) -> bool {
        let now = self.clock.read().as_nanos();
        let renewed = self
            .until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |end| {
                if end <= now {
                    None
                } else {
                    Some(end.max(until.as_nanos()))
                }
            });
        let Ok(end) = renewed else { return false };
        // This thread may have been held up in between: whoever looked meanwhile has seen the lease end.
        if self.clock.read().as_nanos() < end {
            return true;
        }
        self.revoke();
        false
    }

    /// Ends the lease now, for good.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Clock, Lease};
    /// let clock = Clock::manual();
    /// let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(10));
    /// lease.clone().revoke();
    /// assert!(!lease.stands_at(clock.now()));
    /// assert!(!lease.renew(clock.now() + Duration::from_secs(20)));
    /// ```
    pub fn revoke(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// Returns when the lease ends.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Clock, Lease};
    /// let clock = Clock::manual();
    /// let end = clock.now() + Duration::from_secs(10);
    /// assert_eq!(Lease::new(clock, end).until(), end);
    /// ```
    #[must_use]
    pub fn until(&self) -> Moment {
        Moment(self.until.load(Ordering::Acquire))
    }

    /// Tells whether the lease stands at `now`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Clock, Lease};
    /// let clock = Clock::manual();
    /// let end = clock.now() + Duration::from_secs(10);
    /// let lease = Lease::new(clock.clone(), end);
    /// assert!(lease.stands_at(clock.now()));
    /// assert!(!lease.stands_at(end));
    /// ```
    #[must_use]
    pub fn stands_at(&self, now: Moment) -> bool {
        now < self.until()
    }

    /// Returns the clock that the lease is measured by.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{Clock, Lease};
    /// let clock = Clock::manual();
    /// let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(10));
    /// clock.advance(Duration::from_secs(2));
    /// assert_eq!(lease.clock().now(), clock.now());
    /// ```
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("until", &self.until())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_has_run_out_cannot_be_renewed() {
        let clock = Clock::manual();
        let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(1));
        assert!(lease.renew(clock.now() + Duration::from_secs(2)));
        clock.advance(Duration::from_secs(3));
        assert!(!lease.stands_at(clock.now()));
        assert!(!lease.renew(clock.now() + Duration::from_secs(2)));
        assert!(!lease.stands_at(clock.now()));
    }

    #[test]
    fn a_lease_never_moves_backwards() {
        let clock = Clock::manual();
        let end = clock.now() + Duration::from_secs(5);
        let lease = Lease::new(clock.clone(), end);
        assert!(lease.renew(clock.now() + Duration::from_secs(1)));
        assert_eq!(lease.until(), end);
    }

    #[test]
    fn a_recent_time_is_never_before_one_that_was_told() {
        for _ in 0..1000 {
            let told = Timestamp::now();
            let recent = Timestamp::recent();
            assert!(recent >= told, "{recent:?} is before {told:?}");
            assert!(recent.saturating_since(told) < Duration::from_secs(60));
        }
    }

    #[test]
    fn the_machine_clock_moves_on() {
        let clock = Clock::system();
        let first = clock.now();
        while clock.now() == first {}
        assert!(clock.now() > first);
    }
}
