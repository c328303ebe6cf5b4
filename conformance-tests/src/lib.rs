//! The conformance suite that every mq driver passes.
//!
//! A driver implements [`Harness`] in its test file and hands it to [`run`]:
//!
//! ```toml
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! Each case is a test of its own in the summary, named by its number and its claim (`A3_nacked_message_comes_back`),
//! and goes through the public API only. The README of this crate lists the cases and the guarantees that they stand
//! for.

// The drivers' side of the suite is one file for its own tests and for those of the driver in memory.
#[cfg(test)]
extern crate self as conformance_tests;

mod agent;
pub mod calls;
mod capability;
mod cases;
mod checker;
mod context;
mod control;
mod failure;
mod flow;
mod harness;
mod history;
mod member;
#[cfg(test)]
mod mutants;
mod proofs;
mod refusal;
mod report;
mod runner;
mod table;
mod wrap;

pub use self::{
    context::{Measured, Measurement},
    harness::{Fault, Harness, HarnessError, HarnessResult, Nature, Server, ServerKind, StoredFormat, Times},
    report::{CaseReport, Counts, Report, TimeReport, Verdict},
    runner::{run, run_all, run_some, run_to_end, serve_child},
};
