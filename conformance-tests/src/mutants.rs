//! The proof that each case can fail: for each at least one mutant of the driver in memory, different in one behaviour,
//! that fails it for the right reason.
//!
//! A theme's file lists its [`Proof`]s. The case runs through the same runner as in a driver's tests; the mutant sits
//! between the portable layer and the driver.

mod close;
mod consume;
mod consume_tweaks;
mod faults;
mod lacks;
mod memory;
mod modes;
mod positions;
mod produce;
mod read_tweaks;
mod rules;
mod sends;
mod settle;
mod topics;
mod truth;

use std::{collections::BTreeSet, sync::Arc};

use self::memory::{MUTANT, mutant_of_memory};
use crate::{
    cases,
    report::Verdict,
    runner::{self, Suite},
    wrap::Tweak,
};

/// Pairs a case with a mutant that must fail it.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// The case's number.
    case: &'static str,
    /// What the mutant does, in words; it names the proof.
    mutant: &'static str,
    /// Makes the mutant.
    tweak: fn() -> Arc<dyn Tweak>,
    /// What the failure must say.
    says: &'static str,
}

/// All proofs, theme by theme.
const PROOFS: &[&[Proof]] = &[
    topics::PROOFS,
    produce::PROOFS,
    consume::PROOFS,
    settle::PROOFS,
    positions::PROOFS,
    modes::PROOFS,
    close::PROOFS,
    faults::PROOFS,
    truth::PROOFS,
];

fn proofs() -> impl Iterator<Item = &'static Proof> {
    PROOFS.iter().copied().flatten()
}

#[test]
fn every_case_has_a_mutant_that_fails_it() {
    // What memory cannot run is proved by a mutant around the first real driver that can, in that driver's tests.
    let elsewhere = crate::proofs::PROOFS.iter().map(|proof| proof.case);
    let proved: BTreeSet<&str> = proofs().map(|proof| proof.case).chain(elsewhere).collect();
    let bare: Vec<String> = cases::all()
        .filter(|case| !proved.contains(case.id))
        .map(cases::Case::full_name)
        .collect();
    assert!(bare.is_empty(), "no mutant proves that these can fail: {bare:#?}");
}

#[test]
fn every_proof_is_about_a_case() {
    let known: BTreeSet<&str> = cases::all().map(|case| case.id).collect();
    let stray: Vec<_> = proofs().filter(|proof| !known.contains(proof.case)).collect();
    assert!(stray.is_empty(), "{stray:?}");
}

/// Runs every proof, several at once; `MQ_CONFORMANCE_PROOF_FILTER` names one case.
#[test]
fn every_mutant_fails_its_case_for_the_right_reason() {
    let runtime = runner::runtime(4).unwrap();
    let only = std::env::var("MQ_CONFORMANCE_PROOF_FILTER").ok();
    let wrong = runtime.block_on(async {
        let turns = Arc::new(tokio::sync::Semaphore::new(12));
        let runs: Vec<_> = proofs()
            .filter(|proof| only.as_deref().is_none_or(|only| proof.case == only))
            .map(|proof| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move {
                    let _turn = turns.acquire().await;
                    judge(proof).await
                })
            })
            .collect();
        let mut wrong = Vec::new();
        for run in runs {
            wrong.extend(run.await.unwrap());
        }
        wrong
    });
    assert!(
        wrong.is_empty(),
        "{} mutants were not caught as they should be:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// How often a case is run on a mutant until it fails for the right reason. What some mutants do shows only where threads
/// meet in a certain way, which one run may miss, or another rule of the case may notice it first.
const TRIES: usize = 8;

/// Runs a case on its mutant; says what is wrong unless it fails for the right reason.
async fn judge(proof: &'static Proof) -> Option<String> {
    let case = cases::all().find(|case| case.id == proof.case)?;
    let run = || async {
        let harness = Arc::new(mutant_of_memory(proof.mutant, (proof.tweak)()));
        Suite::new(harness, 1).run(case).await
    };
    let mut report = run().await;
    for _ in 1..TRIES {
        if report.verdict == Verdict::Failed && report.detail.contains(proof.says) {
            break;
        }
        report = run().await;
    }
    if report.verdict == Verdict::Failed && report.detail.contains(proof.says) {
        return None;
    }
    Some(format!(
        "{}, with a driver that {}: {:?}, expected a failure that says {:?}\n  {}\n    {}",
        case.full_name(),
        proof.mutant,
        report.verdict,
        proof.says,
        report.detail,
        report.log.join("\n    ")
    ))
}

/// Serves as a child process of a proof; does nothing when it is run as a test.
#[test]
fn serve_child() {
    let (Ok(case), Ok(mutant)) = (std::env::var(runner::ALONE), std::env::var(MUTANT)) else {
        return;
    };
    let proof = proofs().find(|proof| proof.case == case && proof.mutant == mutant);
    let served = match (proof, lacks::by_name(&mutant)) {
        (Some(proof), _) => runner::serve_child(mutant_of_memory(proof.mutant, (proof.tweak)())),
        (None, Some(lacking)) => runner::serve_child(lacking),
        (None, None) => None,
    };
    assert!(served.is_some(), "not started as a child of {mutant:?}");
}
