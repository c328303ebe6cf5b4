//! What a death of a server, and a power cut, leave of messages that were answered `Ok`: what is the same for each server.
//!
//! Messages are sent for a while, the server is stopped, and later it is seen which of those that were answered are left.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

type Outcome<T> = Result<T, String>;

/// What happens to the server at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is killed, and starts again on the disk that it wrote to.
    Kill,
    /// It starts again on what a power cut would have left of that disk.
    PowerCut,
}

impl Fault {
    const ALL: [(Self, &str); 2] = [(Self::Kill, "`kill -9`"), (Self::PowerCut, "power cut")];
}

/// The numbers of messages that were answered `Ok`, and when.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Mutex<Vec<(u64, Instant)>>>);

impl Answers {
    /// Notes that a message was answered now.
    pub fn note(&self, number: u64) {
        self.lock().push((number, Instant::now()));
    }

    /// Waits until what is on its way to the senders has been noted, and returns all with the moment that this was.
    /// Outside of any runtime, with the server stopped.
    #[must_use]
    pub fn last(&self) -> (Vec<(u64, Instant)>, Instant) {
        #[expect(clippy::disallowed_methods, reason = "outside of any runtime")]
        std::thread::sleep(Duration::from_millis(200));
        (self.lock().clone(), Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of the messages of one round.
#[derive(Clone, Debug)]
pub struct Left {
    answered: usize,
    lost: usize,
    /// How long before the fault the oldest of the lost messages had been answered.
    oldest: Option<Duration>,
}

impl Left {
    /// Counts those that were answered until the fault and are not stored.
    pub fn of((answers, at): &(Vec<(u64, Instant)>, Instant), stored: impl Fn(u64) -> bool) -> Self {
        let lost = answers.iter().filter(|(number, _)| !stored(*number));
        Self {
            answered: answers.len(),
            lost: lost.clone().count(),
            oldest: lost.map(|(_, answered)| at.duration_since(*answered)).max(),
        }
    }
}

/// What stands above the columns of [`rows`].
pub const COLUMNS: &str = "fault | answered `Ok` | lost, round by round | the oldest lost one was answered |";

/// Measures both faults, so many rounds each, and writes a row of a table for each, behind what each begins with.
///
/// # Errors
/// Says what could not be done, such as mounting.
pub fn rows(begin: &str, rounds: usize, mut round: impl FnMut(Fault) -> Outcome<Left>) -> Outcome<String> {
    let mut out = String::new();
    for (fault, words) in Fault::ALL {
        let all = (0..rounds)
            .map(|_| round(fault))
            .collect::<Outcome<Vec<Left>>>()?;
        let answered: usize = all.iter().map(|left| left.answered).sum();
        let lost: Vec<String> = all.iter().map(|left| left.lost.to_string()).collect();
        let oldest = all.iter().filter_map(|left| left.oldest).max();
        out.push_str(&format!(
            "{begin}| {words} | {answered} | {} | {} |\n",
            lost.join(", "),
            oldest.map_or_else(
                || "-".to_owned(),
                |oldest| format!("{:.1} s before", oldest.as_secs_f64())
            )
        ));
    }
    Ok(out)
}

/// Waits for as long as messages are sent before the fault: at least the first time, and by chance up to the second
/// longer.
pub async fn before_the_fault((least, more): (Duration, Duration)) {
    tokio::time::sleep(least + more.mul_f64(fastrand::f64())).await;
}

/// Prints a table of five rounds, or of one with `--quick`.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is what a program is for"
)]
pub fn print(table: impl FnOnce(usize) -> Outcome<String>) -> ExitCode {
    let quick = std::env::args().any(|argument| argument == "--quick");
    match table(if quick { 1 } else { 5 }) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
