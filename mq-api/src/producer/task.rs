//! The producer's own task: it sends what has gathered once the window has room again, gives up what is over its
//! deadline, and closes. It sleeps while nothing is under way.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{task::coop, time::Instant};

use super::{core::Core, effects::Effects, state::Life};
use crate::{Error, ErrorKind, Outcome, Result, mq::deadline};

/// What is left at least for the close of the driver's producer when the flush has used up its time.
const MIN_DRIVER_CLOSE: Duration = Duration::from_millis(500);

/// Runs until the producer is closed, or its last handle is dropped, and everything is settled.
///
/// The guard comes from outside, so that a runtime which ends before the first poll is noticed too.
pub(super) async fn run(guard: Guard) {
    let core = Arc::clone(&guard.0);
    tracing::debug!(
        messaging.system = core.client.driver.capabilities().backend,
        messaging.destination.name = %core.topic,
        partitions = core.partitions(),
        "producer opened"
    );
    let mut partitions = core.watch.clone();
    let mut watching = true;
    let mut close_by = None;
    loop {
        coop::consume_budget().await;
        core.grow(*partitions.borrow_and_update());
        let step = step(&core);
        for partition in step.listed {
            core.pump(partition);
        }
        let mut wake_at = step.next;
        if step.closing {
            let by = *close_by.get_or_insert_with(|| Instant::now() + core.options.close_timeout);
            if step.drained || by <= Instant::now() {
                break;
            }
            wake_at = Some(wake_at.map_or(by, |at| at.min(by)));
        }
        let sleep = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = core.notify.notified() => {}
            () = sleep => {}
            changed = partitions.changed(), if watching => watching = changed.is_ok(),
            () = budget_freed(&core), if step.waits_for_budget => {}
        }
    }
    let result = close(&core, close_by).await;
    tracing::debug!(
        messaging.destination.name = %core.topic,
        error = result.as_ref().err().map(tracing::field::display),
        "producer closed"
    );
    core.close.finish(result);
    drop(guard);
}

/// What one look at the state has shown.
struct Step {
    listed: Vec<u32>,
    next: Option<Instant>,
    closing: bool,
    drained: bool,
    waits_for_budget: bool,
}

fn step(core: &Core) -> Step {
    let mut fx = Effects::default();
    let step = {
        let mut state = core.lock();
        let next = state.tick(Instant::now(), core.options.timeout, &core.window, &mut fx);
        state.settle(&mut fx, &core.options, &core.client.budget);
        let listed = state.take_listed();
        let closing = state.life == Life::Closing;
        Step {
            next,
            closing,
            drained: closing && listed.is_empty() && state.lowest_open().is_none(),
            waits_for_budget: state.waits_for_budget(&core.options, &core.client.budget),
            listed,
        }
    };
    // What it asks the task for, this very loop does.
    fx.notify = false;
    core.finish(&mut fx);
    step
}

/// Waits until somebody gives bytes back to the client's budget.
async fn budget_freed(core: &Core) {
    let blocked = core.client.budget.block();
    let mut freed = pin!(blocked.freed());
    freed.as_mut().enable();
    // Bytes may have come back before the future was enabled.
    core.admit_waiting();
    freed.await;
}

async fn close(core: &Core, close_by: Option<Instant>) -> Result<()> {
    let left = core.abandon(|outcome| {
        Error::new(
            ErrorKind::Closed,
            "the producer was closed before the send was settled",
        )
        .with_operation("produce")
        .with_outcome(outcome)
    });
    let rest = close_by.map_or(Duration::ZERO, |by| by.saturating_duration_since(Instant::now()));
    let closed = deadline("close", rest.max(MIN_DRIVER_CLOSE), core.driver.close()).await;
    if left > 0 {
        return Err(Error::new(
            ErrorKind::Timeout,
            format!(
                "{left} messages to topic {:?} were not settled within {:?}",
                core.topic, core.options.close_timeout
            ),
        )
        .with_operation("close"));
    }
    closed
}

/// Ends what is open when the runtime ends the task before it is done.
pub(super) struct Guard(pub(super) Arc<Core>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.close.begin();
        self.0
            .abandon(|outcome| interrupted(outcome).with_operation("produce"));
        self.0
            .close
            .finish(Err(interrupted(Outcome::Unknown).with_operation("close")));
    }
}

fn interrupted(outcome: Outcome) -> Error {
    Error::new(
        ErrorKind::Interrupted,
        "the runtime ended before the producer was closed",
    )
    .with_outcome(outcome)
}
