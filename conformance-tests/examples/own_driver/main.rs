//! A third party's driver and the harness that lets the suite run on it.
//!
//! `cargo run -p conformance-tests --example own_driver` prints every case and the report; arguments select cases, as
//! with any test executable. A driver of your own has this `main` in a test file with `harness = false`.
//!
//! The driver keeps its messages in this process and does only what every driver must, and what costs it a few lines.
//! What it does not declare in its capabilities (shared groups, delays, offsets by time and more) is refused by name,
//! and the suite checks that refusal.

mod driver;
mod group;

use std::{process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Nature, Server, ServerKind, Times};
use mq_api::{Mq, TopicName, url::ConnectUrl};

use crate::driver::{Log, NAME, OwnMq};

/// Connects the suite to the driver. Drivers of a real broker start one in `server` and connect to its URL.
#[derive(Clone, Default)]
struct Own {
    log: Log,
}

#[async_trait]
impl Harness for Own {
    fn name(&self) -> &str {
        NAME
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        let url = ConnectUrl::parse(url)?;
        // The driver has no options; `finish` refuses the ones that are left.
        url.options().finish()?;
        Ok(Mq::from_driver_with(
            OwnMq::new(self.log.clone()),
            url.client_options()?,
        ))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        Ok(Arc::new(self.clone()))
    }

    /// Without this, the cases that need two processes would be run.
    fn nature(&self) -> Nature {
        Nature::default().in_process()
    }

    /// What is not in this list leaves its cases out, by name in the report.
    fn faults(&self) -> &'static [Fault] {
        &[Fault::Trim]
    }

    /// The suite holds the driver to these; a short session makes the cases with frozen members quick.
    fn times(&self) -> Times {
        Times::default()
            .with_session_timeout(Duration::from_secs(2))
            .with_freeze_takeover(Duration::from_secs(5))
    }
}

#[async_trait]
impl Server for Own {
    fn url(&self) -> String {
        format!("{NAME}://")
    }

    async fn trim(&self, topic: &str, partition: u32, before: u64) -> HarnessResult<()> {
        self.log.topic(&TopicName::new(topic)?)?.trim(partition, before)?;
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance_tests::run(Own::default())
}
