//! Proofs for rules that the portable layer keeps by itself, so that no driver can break them: what the case checks is run
//! on calls that do.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use mq_api::{Error, ErrorKind, Mode, Result};
use tokio::task::JoinSet;

use super::memory::mutant_of_memory;
use crate::{
    cases::{
        self,
        close::{
            lifecycle::{all_end_closed, same},
            refusals::check,
        },
        modes::shared::other_modes_are_refused,
    },
    context::Context,
    failure::CaseResult,
    harness::{Harness, ServerKind},
    wrap::Nothing,
};

/// Makes the context of a case on memory.
async fn context(id: &str) -> Context {
    let case = cases::all().find(|case| case.id == id).unwrap();
    let harness: Arc<dyn Harness> = Arc::new(mutant_of_memory("none", Arc::new(Nothing)));
    let server = harness.server(ServerKind::Own).await.unwrap();
    let mq = harness.connect(&server.url()).await.unwrap();
    let capabilities = mq.capabilities().clone();
    Context::new(case, harness, server, capabilities, Default::default())
}

#[track_caller]
fn says(result: CaseResult, words: &str) {
    let text = result.expect_err("a broken rule passed").to_string();
    assert!(text.contains(words), "{text:?} does not say {words:?}");
}

fn failure() -> Error {
    Error::new(ErrorKind::Interrupted, "it did not go well")
}

#[tokio::test]
async fn z1_fails_where_callers_of_close_get_different_results() {
    let cx = context("Z1").await;
    let calls = Arc::new(AtomicU32::new(0));
    // The first caller is told the error, those behind it that all is well.
    let first_only = || {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        ready(if first { Err(failure()) } else { Ok(()) })
    };
    says(
        same(&cx, "consumer", Some(ErrorKind::Interrupted), first_only).await,
        "got different results",
    );
    // Each is told something else.
    let each_its_own = || {
        let number = calls.fetch_add(1, Ordering::SeqCst);
        ready(Err(Error::new(
            ErrorKind::Interrupted,
            format!("failure {number}"),
        )))
    };
    says(
        same(&cx, "consumer", Some(ErrorKind::Interrupted), each_its_own).await,
        "got different results",
    );
    says(
        same(&cx, "producer", Some(ErrorKind::Interrupted), || ready(Ok(()))).await,
        "was to give Some(Interrupted)",
    );
    let well = same(&cx, "reader", Some(ErrorKind::Interrupted), || {
        ready(Err(failure()))
    });
    assert!(well.await.is_ok());
}

#[tokio::test]
async fn z2_fails_where_a_call_of_something_closed_is_not_closed() {
    let cx = context("Z2").await;
    let answers = |result: Result<()>| {
        let calls = vec![("flush", Err(Error::closed("producer"))), ("produce", result)];
        check(&cx, "producer", ready(calls))
    };
    says(
        answers(Ok(())).await,
        "produce of a closed producer: expected Closed, got Ok",
    );
    says(answers(Err(failure())).await, "expected Closed, got Interrupted");
    assert!(answers(Err(Error::closed("producer"))).await.is_ok());
}

#[tokio::test]
async fn z4_fails_where_a_waiting_call_outlives_the_close() {
    let cx = context("Z4").await;
    let waiting = |last: Option<Result<()>>| {
        let mut calls: JoinSet<(&'static str, Result<()>)> = JoinSet::new();
        calls.spawn(ready(("consume", Err(Error::closed("consumer")))));
        calls.spawn(async move {
            match last {
                Some(result) => ("next of a reader", result),
                None => pending().await,
            }
        });
        all_end_closed(&cx, Duration::from_millis(200), calls)
    };
    says(
        waiting(None).await,
        "the end of 1 calls that waited when all was closed",
    );
    says(
        waiting(Some(Ok(()))).await,
        "next of a reader that waited when it was closed",
    );
    assert!(waiting(Some(Err(Error::closed("reader")))).await.is_ok());
}

#[tokio::test]
async fn s4_fails_where_a_group_is_opened_in_two_modes() {
    let modes = [Mode::Partitioned, Mode::Shared, Mode::Broadcast];
    let refused = || Err(Error::new(ErrorKind::InvalidConfig, "another mode"));
    let lax = |mode| {
        ready(if mode == Mode::Broadcast {
            Ok(())
        } else {
            refused()
        })
    };
    says(
        other_modes_are_refused(Mode::Partitioned, &modes, lax).await,
        "Broadcast on a group that is Partitioned: expected InvalidConfig, got Ok",
    );
    let strict = other_modes_are_refused(Mode::Shared, &modes, |_| ready(refused()));
    assert!(strict.await.is_ok());
}
