//! The driver in memory with a tweak in front of it, as a harness.

#[path = "../../../mq-memory/tests/harness/mod.rs"]
pub(super) mod brokers;

use std::{sync::Arc, time::Duration};

use mq_api::Mq;

use self::brokers::MemoryBrokers;
use crate::{
    harness::Times,
    wrap::{Tweak, Tweaked},
};

/// Says to a re-executed process which mutant it is to run a case on.
pub(super) const MUTANT: &str = "MQ_CONFORMANCE_MUTANT";

/// Opens brokers in memory behind one tweak; `name` tells a child process which.
pub(super) fn mutant_of_memory(name: &str, tweak: Arc<dyn Tweak>) -> MemoryBrokers {
    behind(name, Arc::clone(&tweak)).with_each(move |faults| {
        if let Some(pause) = tweak.loses_sessions_every() {
            tokio::spawn(async move {
                // As long as a case may take, and no longer.
                for _ in 0..200 {
                    tokio::time::sleep(pause).await;
                    faults.drop_connections();
                }
            });
        }
    })
}

/// Opens brokers in memory behind a tweak that makes another driver of it, held to nothing but what it declares.
pub(super) fn driver_on_memory(backend: &'static str, name: &str, tweak: Arc<dyn Tweak>) -> MemoryBrokers {
    behind(name, tweak).called(backend)
}

fn behind(name: &str, tweak: Arc<dyn Tweak>) -> MemoryBrokers {
    MemoryBrokers::new("mutant", times())
        .behind(move |memory| Mq::from_driver(Tweaked::new(Arc::new(memory), Arc::clone(&tweak))))
        .with_child_environment(MUTANT, name)
}

/// Shorter than any real driver's: what a mutant keeps back is given up soon.
fn times() -> Times {
    Times::default()
        .with_progress(Duration::from_secs(4))
        .with_topic_gone(Duration::from_secs(3))
        .with_partitions_seen(Duration::from_secs(3))
        .with_join(Duration::from_secs(5))
        .with_session_timeout(Duration::from_secs(1))
        .with_message_lease(Duration::from_secs(1))
        .with_crash_takeover(Duration::from_secs(4))
        .with_freeze_takeover(Duration::from_secs(4))
        .with_retention(Duration::from_secs(3))
}
