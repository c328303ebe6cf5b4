//! What a run says: a table by theme for people, JSON for programs.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    context::{Measured, Measurement, Remains},
    harness::Times,
};

/// Says how a driver did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The backend, as its harness names it.
    pub backend: String,
    /// The cases that ran, in the order of the list.
    pub cases: Vec<CaseReport>,
    /// The times that were measured, each with its ceiling.
    pub times: Vec<TimeReport>,
    /// What was sent and received in all cases together.
    pub counts: Counts,
}

/// Says how one case went.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CaseReport {
    /// The number in the list of cases, such as `A3`.
    pub id: String,
    /// The claim, such as `nacked_message_comes_back`.
    pub name: String,
    /// What it is about.
    pub theme: String,
    /// How it went.
    pub verdict: Verdict,
    /// Why, where it did not simply pass.
    pub detail: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What happened, line by line; only of a case that failed.
    pub log: Vec<String>,
    /// Messages answered `Ok`.
    pub sent: u64,
    /// Hand-overs.
    pub delivered: u64,
    /// Hand-overs with an attempt above 1.
    pub repeated: u64,
    /// What was measured.
    pub measured: Vec<Measurement>,
}

/// Says how a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// The claim holds.
    Passed,
    /// The backend declares that it cannot, and refuses with the typed error.
    Refused,
    /// The claim makes no sense on this backend.
    NotApplicable,
    /// The harness lacks the fault that the case needs.
    LeftOut,
    /// The claim does not hold.
    Failed,
}

/// Counts messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counts {
    /// Messages answered `Ok`.
    pub sent: u64,
    /// Hand-overs.
    pub delivered: u64,
    /// Hand-overs with an attempt above 1.
    pub repeated: u64,
}

/// Sums up one kind of measured time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TimeReport {
    /// What was measured.
    pub what: Measured,
    /// How often.
    pub samples: usize,
    /// The middle one, in milliseconds.
    pub median_millis: f64,
    /// The longest, in milliseconds.
    pub most_millis: f64,
    /// What the driver declares, in milliseconds, where it does.
    pub ceiling_millis: Option<f64>,
}

impl CaseReport {
    pub(crate) fn new(
        case: &crate::cases::Case,
        verdict: Verdict,
        detail: String,
        took: Duration,
        remains: Remains,
    ) -> Self {
        Self {
            id: case.id.to_owned(),
            name: case.name.to_owned(),
            theme: format!("{:?}", case.theme),
            verdict,
            detail,
            seconds: took.as_secs_f64(),
            log: if verdict == Verdict::Failed {
                remains.log
            } else {
                Vec::new()
            },
            sent: remains.sent,
            delivered: remains.delivered,
            repeated: remains.repeated,
            measured: remains.measured,
        }
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Refused => "refused, as declared",
            Self::NotApplicable => "not applicable",
            Self::LeftOut => "left out",
            Self::Failed => "FAILED",
        }
    }
}

impl Report {
    pub(crate) fn new(backend: &str, declared: &Times, cases: Vec<CaseReport>) -> Self {
        let mut counts = Counts::default();
        let mut samples: BTreeMap<Measured, Vec<f64>> = BTreeMap::new();
        for case in &cases {
            counts.sent += case.sent;
            counts.delivered += case.delivered;
            counts.repeated += case.repeated;
            for one in &case.measured {
                samples.entry(one.what).or_default().push(one.millis);
            }
        }
        let times = samples
            .into_iter()
            .map(|(what, mut millis)| {
                millis.sort_by(f64::total_cmp);
                TimeReport {
                    what,
                    samples: millis.len(),
                    median_millis: millis.get(millis.len() / 2).copied().unwrap_or_default(),
                    most_millis: millis.last().copied().unwrap_or_default(),
                    ceiling_millis: ceiling(what, declared).map(|time| time.as_secs_f64() * 1000.0),
                }
            })
            .collect();
        Self {
            backend: backend.to_owned(),
            cases,
            times,
            counts,
        }
    }

    /// Tells whether no case failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.cases.iter().any(|case| case.verdict == Verdict::Failed)
    }

    /// Counts the cases that ended so.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|case| case.verdict == verdict).count()
    }

    /// Returns what is known of each case that failed: what it saw, and its log.
    #[must_use]
    pub fn explain_failures(&self) -> String {
        let mut out = String::new();
        for case in self.cases.iter().filter(|case| case.verdict == Verdict::Failed) {
            let _ = writeln!(out, "---- {}_{}\n{}", case.id, case.name, case.detail);
            for line in &case.log {
                let _ = writeln!(out, "    {line}");
            }
        }
        out
    }

    /// Returns the report as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Nothing in it can fail to be written: strings, numbers and lists.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

fn ceiling(what: Measured, times: &Times) -> Option<Duration> {
    match what {
        Measured::WakeUp => Some(times.wake_up),
        Measured::RedeliverySlack => Some(times.redelivery_slack),
        Measured::CloseTakeover => Some(times.close_takeover),
        Measured::CrashTakeover => Some(times.crash_takeover),
        Measured::FreezeTakeover => Some(times.freeze_takeover),
        Measured::TopicGone => Some(times.topic_gone),
        Measured::PartitionsSeen => Some(times.partitions_seen),
        Measured::Recovery => Some(times.progress),
        Measured::DelayLate => None,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        let mut theme = "";
        for case in &self.cases {
            if case.theme != theme {
                theme = &case.theme;
                let _ = writeln!(out, "\n{theme}");
            }
            let claim = case.name.replace('_', " ");
            let _ = write!(
                out,
                "  {:<4} {claim:<72} {:>7.2} s  {}",
                case.id,
                case.seconds,
                case.verdict.word()
            );
            if case.verdict != Verdict::Passed && !case.detail.is_empty() {
                let first = case.detail.lines().next().unwrap_or_default();
                let _ = write!(out, ": {first}");
            }
            out.push('\n');
        }
        if !self.times.is_empty() {
            let _ = writeln!(out, "\nTimes in ms           samples   median     most  declared");
            for time in &self.times {
                let what = format!("{:?}", time.what);
                let ceiling = time
                    .ceiling_millis
                    .map_or("-".to_owned(), |ceiling| format!("{ceiling:.0}"));
                let _ = writeln!(
                    out,
                    "  {what:<18} {:>8} {:>8.1} {:>8.1} {ceiling:>9}",
                    time.samples, time.median_millis, time.most_millis
                );
            }
        }
        let _ = writeln!(
            out,
            "\n{}: {} cases: {} passed, {} refused as declared, {} not applicable, {} left out, {} failed; \
             {} messages sent, {} delivered, {} of them repeated",
            self.backend,
            self.cases.len(),
            self.count(Verdict::Passed),
            self.count(Verdict::Refused),
            self.count(Verdict::NotApplicable),
            self.count(Verdict::LeftOut),
            self.count(Verdict::Failed),
            self.counts.sent,
            self.counts.delivered,
            self.counts.repeated
        );
        f.write_str(&out)
    }
}
