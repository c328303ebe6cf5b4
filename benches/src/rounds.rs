//! Rounds: all contenders after each other, again and again, so that what disturbs the machine disturbs all alike.

use std::{fmt, time::Duration};

/// Runs one round and returns a number: messages per second, or nanoseconds; or why it failed.
pub type Run = Box<dyn Fn() -> Result<f64, String>>;

/// One way to do the work.
pub struct Contender {
    /// What it is called in the table.
    pub name: String,
    /// Runs one round.
    pub run: Run,
}

impl fmt::Debug for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contender")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Contender {
    /// Makes a contender.
    pub fn new(name: impl Into<String>, run: impl Fn() -> Result<f64, String> + 'static) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// Says what a row asks of a ratio.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// The ratio is to be at least this.
    AtLeast(f64),
    /// The ratio is to be at most this.
    AtMost(f64),
    /// The ratio is shown only.
    Shown,
}

impl Goal {
    /// Tells whether a ratio holds to it.
    #[must_use]
    pub fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
            Self::Shown => true,
        }
    }
}

/// One line of the table: ours against one contender.
#[derive(Clone, Debug)]
pub struct Row {
    /// The work.
    pub work: String,
    /// Whom it is compared with.
    pub against: String,
    /// Our median.
    pub ours: f64,
    /// The ratio of each round, sorted.
    pub ratios: Vec<f64>,
    /// What is asked.
    pub goal: Goal,
    /// Why there is no number, where there is none.
    pub failed: Option<String>,
}

impl Row {
    /// Returns the middle ratio.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.ratios
            .get(self.ratios.len() / 2)
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// Tells whether the goal is reached.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.failed.is_none() && self.goal.holds(self.median())
    }
}

/// Runs rounds of ours and of another one in turn; the first round of each is not counted.
#[must_use]
pub fn compare(work: &str, rounds: usize, ours: &Contender, other: &Contender, goal: Goal) -> Row {
    let mut row = Row {
        work: work.to_owned(),
        against: other.name.clone(),
        ours: f64::NAN,
        ratios: Vec::new(),
        goal,
        failed: None,
    };
    let mut mine = Vec::new();
    for round in 0..=rounds {
        // Who begins changes with each round.
        let (a, b) = if round % 2 == 0 {
            let a = (ours.run)();
            (a, (other.run)())
        } else {
            let b = (other.run)();
            ((ours.run)(), b)
        };
        match (a, b) {
            (Ok(_), Ok(_)) if round == 0 => {}
            (Ok(a), Ok(b)) => {
                mine.push(a);
                row.ratios.push(a / b);
            }
            (Err(why), _) => row.failed = Some(format!("{}: {why}", ours.name)),
            (_, Err(why)) => row.failed = Some(format!("{}: {why}", other.name)),
        }
    }
    mine.sort_by(f64::total_cmp);
    row.ratios.sort_by(f64::total_cmp);
    row.ours = mine.get(mine.len() / 2).copied().unwrap_or(f64::NAN);
    row
}

/// Turns a count and a time into messages per second.
#[must_use]
pub fn rate(messages: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
    let messages = messages as f64;
    messages / took.as_secs_f64()
}
