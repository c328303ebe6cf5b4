//! The cases by theme, and what the runner must know of each.

mod builds;
pub(crate) mod close;
mod codec;
mod consume;
mod delay;
mod faults;
pub(crate) mod modes;
mod positions;
mod produce;
mod resources;
mod settle;
mod steps;
mod topics;
mod truth;
mod versions;

use std::{future::Future, pin::Pin, time::Duration};

use crate::{
    capability::Capability,
    context::Context,
    failure::CaseResult,
    harness::{Fault, Nature},
};

/// Shortens a boxed future.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Lists one claim of the contract and how it is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// The claim's number in the list of cases, such as `A3`.
    pub(crate) id: &'static str,
    /// The claim in words, such as `nacked_message_comes_back`.
    pub(crate) name: &'static str,
    /// What it is about.
    pub(crate) theme: Theme,
    /// What the backend must be able to do; where it cannot, the typed refusal is checked instead.
    pub(crate) needs: &'static [Capability],
    /// What the harness must be able to do to the server.
    pub(crate) faults: &'static [Fault],
    /// Where it runs.
    pub(crate) isolation: Isolation,
    /// When it is given up.
    pub(crate) deadline: Duration,
    /// The check.
    pub(crate) run: fn(Context) -> BoxFuture<CaseResult>,
}

/// Says where a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// At once with others on one server.
    Shared,
    /// On a server of its own, to which it may do anything.
    OwnServer,
    /// Alone in a child process, whose threads, tasks, descriptors and processor time it counts.
    Alone,
    /// On the shared server when all others are done: it judges what they found.
    Last,
}

/// Groups the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Theme {
    Topics,
    Produce,
    Consume,
    Settle,
    Positions,
    Modes,
    Delay,
    Codec,
    Close,
    Faults,
    Versions,
    Truth,
}

/// Makes a [`Case`] of its number, its theme and its function, whose name is the claim.
macro_rules! case {
    ($id:literal, $theme:ident, $function:ident) => {
        $crate::cases::Case::new($id, stringify!($function), $crate::cases::Theme::$theme, |cx| {
            Box::pin($function(cx))
        })
    };
}
use case;

impl Case {
    /// Makes a case that needs nothing, runs beside others and has two minutes.
    pub(crate) const fn new(
        id: &'static str,
        name: &'static str,
        theme: Theme,
        run: fn(Context) -> BoxFuture<CaseResult>,
    ) -> Self {
        Self {
            id,
            name,
            theme,
            needs: &[],
            faults: &[],
            isolation: Isolation::Shared,
            deadline: Duration::from_secs(120),
            run,
        }
    }

    /// Names what the backend must be able to do.
    pub(crate) const fn needs(mut self, needs: &'static [Capability]) -> Self {
        self.needs = needs;
        self
    }

    /// Gives the case a server of its own, to which the harness must be able to do this.
    pub(crate) const fn breaks_its_server(mut self, faults: &'static [Fault]) -> Self {
        self.faults = faults;
        self.isolation = Isolation::OwnServer;
        self
    }

    /// Runs the case alone in a child process.
    pub(crate) const fn alone(mut self) -> Self {
        self.isolation = Isolation::Alone;
        self
    }

    /// Runs the case when all others are done.
    pub(crate) const fn last(mut self) -> Self {
        self.isolation = Isolation::Last;
        self
    }

    /// Sets when the case is given up.
    pub(crate) const fn within_seconds(mut self, seconds: u64) -> Self {
        self.deadline = Duration::from_secs(seconds);
        self
    }

    /// Returns the name in the runner's summary, such as `A3_nacked_message_comes_back`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}_{}", self.id, self.name)
    }
}

/// Returns every case, in the order of the list.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        topics::CASES,
        produce::CASES,
        consume::CASES,
        settle::CASES,
        positions::CASES,
        modes::CASES,
        delay::CASES,
        codec::CASES,
        close::CASES,
        faults::CASES,
        versions::CASES,
        builds::CASES,
        truth::CASES,
    ]
    .into_iter()
    .flatten()
}

/// Says why a case cannot be on a backend of this nature. The list is fixed here, so that no driver can lengthen it.
pub(crate) fn not_applicable(case: &Case, nature: Nature) -> Option<&'static str> {
    const TWO_PROCESSES: &[&str] = &["C2b"];
    const NO_ADDRESS: &[&str] = &["F4", "F6"];
    const MOVER: &[&str] = &["D3"];
    if nature.in_process && TWO_PROCESSES.contains(&case.id) {
        Some("the messages live in one process, and the case needs two")
    } else if nature.in_process && NO_ADDRESS.contains(&case.id) {
        Some("there is no address that could be absent or silent")
    } else if nature.delays_by_itself && MOVER.contains(&case.id) {
        Some("the backend itself holds delayed messages back")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
