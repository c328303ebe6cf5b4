//! The clock of a round: wall time, the client's processor time, and percentiles of single times.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::sync::mpsc;

/// What one round gave: one value for each figure of its work, and the client's processor time.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The values, in the order of the work's figures.
    pub values: Vec<f64>,
    /// Processor time of this process in microseconds a message, user and system together.
    pub cpu: Option<f64>,
}

impl Sample {
    /// Makes a sample of values that have no processor time.
    #[must_use]
    pub fn of(values: impl Into<Vec<f64>>) -> Self {
        Self {
            values: values.into(),
            cpu: None,
        }
    }

    /// Gives the figures of [`LATENCY`](crate::side::LATENCY).
    #[must_use]
    pub fn latency(mut delivered: Times) -> Self {
        Self::of([0.5, 0.99, 0.999].map(|part| delivered.percentile(part)))
    }

    /// Gives the figures of [`PROMISE`](crate::side::PROMISE).
    #[must_use]
    pub fn promise(mut published: Times, mut delivered: Times) -> Self {
        let values = [&mut published, &mut delivered]
            .into_iter()
            .flat_map(|times| [times.percentile(0.5), times.percentile(0.99)]);
        Self::of(values.collect::<Vec<_>>())
    }
}

/// Runs while the messages move. The brokers are processes of their own, so that their work is not in it.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    begun: Instant,
    cpu: Duration,
}

impl Meter {
    /// Starts both clocks.
    #[must_use]
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            cpu: processor_time(),
        }
    }

    /// Stops, and gives messages a second and the processor time of each.
    #[must_use]
    pub fn stop(self, messages: u64) -> Sample {
        let took = self.begun.elapsed();
        let cpu = processor_time().saturating_sub(self.cpu);
        #[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
        let messages = messages as f64;
        Sample {
            values: vec![messages / took.as_secs_f64()],
            cpu: Some(cpu.as_secs_f64() * 1e6 / messages),
        }
    }
}

fn processor_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(tv_sec).unwrap_or(0),
        u32::try_from(tv_nsec).unwrap_or(0),
    )
}

/// Ticks at a steady rate, and makes up for late calls, so that the rate holds.
///
/// A thread sleeps for the times of the ticks. A timer of the runtime would count whole milliseconds from when the last
/// answer came, so that what is sent next would keep step with a broker that works once a millisecond: RocketMQ's does.
#[derive(Debug)]
pub struct Pace {
    ticks: mpsc::Receiver<()>,
}

/// How many ticks may be late before the thread waits.
const LATE: usize = 4096;

/// Starts a pace of one tick each `gap`, the first at once.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a thread of its own, no worker")]
pub fn steady(gap: Duration) -> Pace {
    let (sender, ticks) = mpsc::channel(LATE);
    // Ends within a gap after the pace was dropped.
    thread::spawn(move || {
        let mut next = Instant::now();
        while sender.blocking_send(()).is_ok() {
            next += gap;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
    Pace { ticks }
}

impl Pace {
    /// Waits for the next tick.
    ///
    /// # Cancel safety
    /// A dropped future takes no tick.
    pub async fn tick(&mut self) {
        // The thread ends after this has been dropped, never before.
        let _ = self.ticks.recv().await;
    }
}

/// Single times, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Times {
    all: Vec<f64>,
}

impl Times {
    /// Takes a time in.
    pub fn take(&mut self, time: Duration) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "nanoseconds of a bench lie far below 2^52"
        )]
        self.all.push(time.as_nanos() as f64 / 1e3);
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.all.len() as u64
    }

    /// Returns the time under which this part of all lie.
    #[must_use]
    pub fn percentile(&mut self, part: f64) -> f64 {
        self.all.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a few thousand values"
        )]
        let index = (self.all.len() as f64 * part) as usize;
        let last = self.all.len().saturating_sub(1);
        self.all.get(index.min(last)).copied().unwrap_or(f64::NAN)
    }
}

/// Returns the memory of this process that is in RAM, in bytes.
///
/// # Errors
/// Where the system does not tell.
pub fn resident() -> Result<f64, String> {
    let text = std::fs::read_to_string("/proc/self/statm").map_err(|error| error.to_string())?;
    let pages: f64 = text
        .split(' ')
        .nth(1)
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("no count of pages in `{text}`"))?;
    #[expect(clippy::cast_precision_loss, reason = "the size of a page")]
    let page = rustix::param::page_size() as f64;
    Ok(pages * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_places_in_the_sorted_times() {
        let mut times = Times::default();
        for number in (1..=1000).rev() {
            times.take(Duration::from_micros(number));
        }
        assert_eq!(Sample::latency(times).values, [501.0, 991.0, 1000.0]);
    }

    #[test]
    fn a_late_call_is_made_up_for() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (gap, begun) = (Duration::from_millis(100), Instant::now());
            let mut pace = steady(gap);
            pace.tick().await;
            tokio::time::sleep(5 * gap).await;
            for _ in 0..6 {
                pace.tick().await;
            }
            assert!(begun.elapsed() >= 6 * gap);
            assert!(begun.elapsed() < 10 * gap, "{:?}", begun.elapsed());
        });
    }

    #[test]
    fn a_round_without_times_has_no_percentile() {
        assert!(Times::default().percentile(0.5).is_nan());
    }

    #[test]
    fn resident_memory_sees_a_large_buffer() {
        let before = resident().unwrap();
        let large = vec![1_u8; 64 << 20];
        assert!(resident().unwrap() - before > 48e6, "{}", large.len());
    }
}
