//! Side by side on a real broker: each round runs every contender of a piece of work once, and who begins changes.

use std::{
    fmt,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{meter::Sample, rounds::Goal};

/// Runs one round; says why where it failed, a lost or doubled message included.
pub type Round = Rc<dyn Fn() -> Result<Sample, String>>;

/// Makes a round of what a client does with so many messages.
pub fn round<C: 'static>(
    client: &Rc<C>,
    messages: u64,
    round: fn(&C, u64) -> Result<Sample, String>,
) -> impl Fn() -> Result<Sample, String> + use<C> {
    let client = Rc::clone(client);
    move || round(&client, messages)
}

/// What the numbers of a piece of work mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Messages a second: more is better.
    Rate,
    /// Microseconds: less is better.
    Micros,
    /// Nanoseconds: less is better.
    Nanos,
    /// Bytes of each: less is better.
    Bytes,
    /// Per cent of a processor: less is better.
    Percent,
    /// How many there are: less is better.
    Count,
}

/// One value that a round of a piece of work gives.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name, such as `p99`; empty where there is only one.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
}

/// The figure of work that is measured by its rate.
pub const RATE: &[Figure] = &[Figure {
    name: "",
    unit: Unit::Rate,
}];

/// The figures of work that is measured by the time from the call of `produce` to the hand-over.
pub const LATENCY: &[Figure] = &[micros("p50"), micros("p99"), micros("p99.9")];

/// The figures of work in memory that is measured by the time from a call to the answer to what it sent.
pub const THERE_AND_BACK: &[Figure] = &[nanos("p50"), nanos("p99")];

/// The figure of work in memory that is measured by the time of each message.
pub const EACH: &[Figure] = &[nanos("")];

/// The figures of the promise: the times of `produce` itself, then those of the delivery.
pub const PROMISE: &[Figure] = &[
    micros("publish p50"),
    micros("publish p99"),
    micros("delivery p50"),
    micros("delivery p99"),
];

/// The figure of work that is measured by the memory it takes.
pub const MEMORY: &[Figure] = &[Figure {
    name: "",
    unit: Unit::Bytes,
}];

/// The figures of how long a member takes until it owns every partition.
pub const JOIN: &[Figure] = &[micros("new group"), micros("known group")];

/// The figures of what costs something while nothing happens.
pub const IDLE: &[Figure] = &[
    Figure {
        name: "processor",
        unit: Unit::Percent,
    },
    Figure {
        name: "connections",
        unit: Unit::Count,
    },
];

const fn micros(name: &'static str) -> Figure {
    Figure {
        name,
        unit: Unit::Micros,
    }
}

const fn nanos(name: &'static str) -> Figure {
    Figure {
        name,
        unit: Unit::Nanos,
    }
}

/// How often a piece of work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// How many rounds are counted where time allows.
    pub most: usize,
    /// How many rounds are counted at least.
    pub least: usize,
    /// After how long no further round begins.
    pub time: Duration,
}

impl Rounds {
    /// Counts so many rounds, whatever time they take.
    #[must_use]
    pub const fn exactly(count: usize) -> Self {
        Self {
            most: count,
            least: count,
            time: Duration::ZERO,
        }
    }
}

/// Somebody to be compared with.
pub struct Against {
    name: String,
    round: Round,
    goals: Vec<Goal>,
}

/// A piece of work: ours, and everybody that it is compared with.
pub struct Work {
    name: String,
    figures: &'static [Figure],
    ours: Round,
    against: Vec<Against>,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Against")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Work {
    /// Describes a piece of work by its name, its figures and our way to do it.
    pub fn new(
        name: impl Into<String>,
        figures: &'static [Figure],
        ours: impl Fn() -> Result<Sample, String> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            figures,
            ours: Rc::new(ours),
            against: Vec::new(),
        }
    }

    /// Adds somebody, with what is asked of our ratio to them: one goal for each figure, or none at all.
    #[must_use]
    pub fn against(
        mut self,
        name: impl Into<String>,
        goals: impl Into<Vec<Goal>>,
        round: impl Fn() -> Result<Sample, String> + 'static,
    ) -> Self {
        self.against.push(Against {
            name: name.into(),
            round: Rc::new(round),
            goals: goals.into(),
        });
        self
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs one round that is not counted and then so many that are, or fewer where time is up.
    #[must_use]
    pub fn run(&self, rounds: Rounds) -> Vec<Line> {
        let begun = Instant::now();
        let contenders: Vec<&Round> = std::iter::once(&self.ours)
            .chain(self.against.iter().map(|one| &one.round))
            .collect();
        let mut results: Vec<Result<Vec<Sample>, String>> = vec![Ok(Vec::new()); contenders.len()];
        for round in 0..=rounds.most {
            if round > rounds.least && begun.elapsed() > rounds.time {
                break;
            }
            for turn in 0..contenders.len() {
                let place = (round + turn) % contenders.len();
                let (Some(contender), Some(result)) = (contenders.get(place), results.get_mut(place)) else {
                    continue;
                };
                // One failure ends a contender: it is shown as failed, and is given no second try.
                let Ok(samples) = result else { continue };
                match contender() {
                    Ok(sample) if sample.values.len() == self.figures.len() => {
                        if round > 0 {
                            samples.push(sample);
                        }
                    }
                    Ok(sample) => *result = Err(format!("{sample:?} has not one value for each figure")),
                    Err(why) => *result = Err(why),
                }
            }
        }
        self.lines(&results)
    }

    fn lines(&self, results: &[Result<Vec<Sample>, String>]) -> Vec<Line> {
        let Some((ours, theirs)) = results.split_first() else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        for (place, figure) in self.figures.iter().enumerate() {
            let value = |sample: &Sample| sample.values.get(place).copied().unwrap_or(f64::NAN);
            let mut work = self.name.clone();
            if !figure.name.is_empty() {
                work = format!("{work}, {}", figure.name);
            }
            let mut push = |against: &str, theirs: Option<&Result<Vec<Sample>, String>>, goal: Goal| {
                let (failed, others) = match (ours, theirs) {
                    (Err(why), _) => (Some(format!("mq: {why}")), &[][..]),
                    (_, Some(Err(why))) => (Some(format!("{against}: {why}")), &[][..]),
                    (_, Some(Ok(others))) => (None, others.as_slice()),
                    (_, None) => (None, &[][..]),
                };
                let mine = ours.as_deref().unwrap_or_default();
                lines.push(Line {
                    work: work.clone(),
                    unit: figure.unit,
                    against: against.to_owned(),
                    ours: Spread::of(mine.iter().map(value)),
                    our_cpu: Spread::of(mine.iter().filter_map(|sample| sample.cpu)),
                    theirs: Spread::of(others.iter().map(value)),
                    their_cpu: Spread::of(others.iter().filter_map(|sample| sample.cpu)),
                    rounds: mine.len(),
                    ratio: Spread::of(mine.iter().zip(others).map(|(a, b)| value(a) / value(b))),
                    goal,
                    failed,
                });
            };
            if self.against.is_empty() {
                push("", None, Goal::Shown);
            }
            for (one, result) in self.against.iter().zip(theirs) {
                let goal = one.goals.get(place).copied().unwrap_or(Goal::Shown);
                push(&one.name, Some(result), goal);
            }
        }
        lines
    }
}

/// The middle and the ends of the values of all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle value.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// Sorts values; without any there is no spread.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = values.collect();
        all.sort_by(f64::total_cmp);
        Some(Self {
            median: *all.get(all.len() / 2)?,
            low: *all.first()?,
            high: *all.last()?,
        })
    }
}

/// One line of the results: one figure of ours against one contender.
#[derive(Clone, Debug)]
pub struct Line {
    /// The work, and the figure's name.
    pub work: String,
    /// What the numbers mean.
    pub unit: Unit,
    /// Whom it is compared with; empty where it is with nobody.
    pub against: String,
    /// Our values.
    pub ours: Option<Spread>,
    /// Our processor time, in microseconds a message.
    pub our_cpu: Option<Spread>,
    /// Their values.
    pub theirs: Option<Spread>,
    /// Their processor time, in microseconds a message.
    pub their_cpu: Option<Spread>,
    /// Ours divided by theirs, round by round.
    pub ratio: Option<Spread>,
    /// How many rounds the ratio is of.
    pub rounds: usize,
    /// What is asked of the ratio's median.
    pub goal: Goal,
    /// Who failed and why.
    pub failed: Option<String>,
}

impl Line {
    /// Returns the verdict in a word.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (&self.failed, self.goal, self.ratio) {
            (Some(_), ..) => "FAILED",
            (None, Goal::Shown, _) | (None, _, None) => "",
            (None, goal, Some(ratio)) if goal.holds(ratio.median) => "holds",
            _ => "missed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn no_round_begins_after_the_time_but_those_that_must() {
        let count = Rc::new(Cell::new(0));
        let seen = Rc::clone(&count);
        let work = Work::new("produce", RATE, move || {
            seen.set(seen.get() + 1);
            Ok(Sample::of([1.0]))
        });
        let short = Rounds {
            least: 2,
            ..Rounds::exactly(7)
        };
        assert_eq!((work.run(short).len(), count.get()), (1, 3));
    }

    #[test]
    fn a_ratio_is_ours_over_theirs_of_the_same_round_and_the_first_round_is_not_counted() {
        let mine = Cell::new(0.0);
        let work = Work::new("produce", RATE, move || {
            mine.set(mine.get() + 10.0);
            Ok(Sample::of([mine.get()]))
        })
        .against("raw", [Goal::AtLeast(2.0)], || Ok(Sample::of([10.0])));
        let [line] = work.run(Rounds::exactly(3)).try_into().unwrap();
        let ratio = Spread {
            median: 3.0,
            low: 2.0,
            high: 4.0,
        };
        assert_eq!((line.ratio, line.verdict()), (Some(ratio), "holds"));
    }

    #[test]
    fn who_loses_a_message_is_failed_and_not_fast() {
        let work = Work::new("consume", RATE, || Ok(Sample::of([1.0])))
            .against("lossy", [], || Err("999 of 1000 came".into()))
            .against("raw", [Goal::AtLeast(1.5)], || Ok(Sample::of([1.0])));
        let lines = work.run(Rounds::exactly(1));
        let verdicts: Vec<_> = lines.iter().map(Line::verdict).collect();
        assert_eq!(verdicts, ["FAILED", "missed"]);
        assert_eq!(lines[0].failed.as_deref(), Some("lossy: 999 of 1000 came"));
    }

    #[test]
    fn each_figure_has_its_goal() {
        let work = Work::new("end to end", LATENCY, || Ok(Sample::of([1.0, 2.0, 9.0]))).against(
            "raw",
            [Goal::AtMost(1.2), Goal::AtMost(1.2)],
            || Ok(Sample::of([1.0, 1.0, 1.0])),
        );
        let verdicts: Vec<_> = work
            .run(Rounds::exactly(1))
            .iter()
            .map(|line| (line.work.clone(), line.verdict()))
            .collect();
        assert_eq!(
            verdicts,
            [
                ("end to end, p50".to_owned(), "holds"),
                ("end to end, p99".to_owned(), "missed"),
                ("end to end, p99.9".to_owned(), "")
            ]
        );
    }
}
