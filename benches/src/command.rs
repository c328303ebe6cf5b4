//! The command line that every backend's bench shares.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    results,
    side::{Line, Rounds, Work},
};

/// What a bench was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Fewer rounds of fewer messages.
    pub quick: bool,
    /// The folder for the table and the chart.
    pub write: Option<PathBuf>,
    /// Words; only work whose name holds one of them runs.
    pub only: Vec<String>,
}

impl Options {
    /// Reads the words of a command line.
    #[must_use]
    pub fn parse(words: impl IntoIterator<Item = String>) -> Self {
        let mut options = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--write" => options.write = words.next().map(PathBuf::from),
                _ => options.only.push(word),
            }
        }
        options
    }

    /// Returns how often each piece of work is done: so that a run as a whole ends in minutes.
    #[must_use]
    pub fn rounds(&self) -> Rounds {
        let (most, least, time) = if self.quick { (3, 1, 2) } else { (7, 3, 10) };
        Rounds {
            most,
            least,
            time: Duration::from_secs(time),
        }
    }

    /// Returns a count of messages, a tenth of it for a quick run.
    #[must_use]
    pub fn messages(&self, full: u64) -> u64 {
        if self.quick { full / 10 } else { full }
    }

    /// Tells whether work of this name is asked for.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word.as_str()))
    }
}

/// Runs a bench: prints its table, and writes the table and the chart where that is asked for.
///
/// `prepare` starts the broker and gives what is to be said about it, and the work.
#[allow(clippy::print_stdout, clippy::print_stderr)] // The table is what it is for.
pub fn run(
    backend: &str,
    title: &str,
    prepare: impl FnOnce(&Options) -> Result<(String, Vec<Work>), String>,
) -> ExitCode {
    let options = Options::parse(std::env::args().skip(1));
    let done = prepare(&options).and_then(|(about, works)| {
        let mut lines: Vec<Line> = Vec::new();
        for work in works.iter().filter(|work| options.wants(work.name())) {
            let begun = Instant::now();
            let done = work.run(options.rounds());
            eprintln!("{:5.1} s  {}", begun.elapsed().as_secs_f64(), work.name());
            for why in done.iter().filter_map(|line| line.failed.as_ref()) {
                eprintln!("  FAILED: {why}");
            }
            lines.extend(done);
        }
        let rounds = lines
            .iter()
            .filter(|line| line.failed.is_none())
            .map(|line| line.rounds);
        let (least, most) = (rounds.clone().min(), rounds.max());
        let about = format!(
            "{about} {} to {} rounds of each piece of work{}. {}",
            least.unwrap_or(0),
            most.unwrap_or(0),
            if options.quick {
                ", of a tenth of the messages"
            } else {
                ""
            },
            machine()
        );
        let table = results::markdown(title, &about, &lines);
        println!("{table}");
        if let Some(folder) = &options.write {
            let put = |name: String, text: &str| {
                std::fs::write(folder.join(name), text).map_err(|error| error.to_string())
            };
            put(format!("{backend}.md"), &table)?;
            put(format!("{backend}.svg"), &results::chart(title, &lines))?;
        }
        Ok(lines)
    });
    match done {
        Ok(lines) => ExitCode::from(u8::from(lines.iter().any(|line| line.failed.is_some()))),
        Err(why) => {
            eprintln!("{backend}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Says what the numbers were measured on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1))
        .map_or("an unnamed processor", str::trim);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cores} cores of {model}, Linux {}, client and broker on loopback.",
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_moves_a_tenth() {
        let options = Options::parse(["--quick".into(), "produce".into()]);
        assert_eq!((options.messages(100_000), options.rounds().most), (10_000, 3));
        assert_eq!(options.only, ["produce"]);
    }

    #[test]
    fn work_is_chosen_by_its_name() {
        let options = Options::parse(["ack".to_owned()]);
        assert!(options.wants("consume and ack") && !options.wants("produce"));
    }
}
