//! Drivers that declare less than the one in memory can. Each is a whole driver to the suite: every case passes on it or is
//! refused as declared, so that a case which needs a capability says so.

use std::sync::Arc;

use mq_api::{Capabilities, Support};

use super::memory::{brokers::MemoryBrokers, driver_on_memory};
use crate::{
    capability::Capability,
    cases::{self, Isolation},
    report::Verdict,
    runner::{self, Suite},
    wrap::Tweak,
};

/// What the drivers go without, each by a name.
const DRIVERS: &[(&str, &[Capability])] = &[
    ("without-reader", &[Capability::Reader]),
    ("without-seek", &[Capability::Seek]),
    ("without-pause", &[Capability::Pause]),
    ("without-lag", &[Capability::Lag]),
    ("one-mode", &[Capability::Shared, Capability::Broadcast]),
    ("bare", &[]),
];

#[derive(Debug)]
struct Lacks(&'static str, &'static [Capability]);

impl Tweak for Lacks {
    fn capabilities(&self, declared: Capabilities) -> Capabilities {
        let mut can = declared.clone();
        can.backend = self.0;
        if self.1.is_empty() {
            // What no driver can be without, what this one shows whatever it declares, and the limits.
            can = Capabilities::new(self.0);
            can.partitioned = declared.partitioned;
            can.receipt_offset = declared.receipt_offset;
            can.delayed_receipt_offset = declared.delayed_receipt_offset;
            can.max_partitions = declared.max_partitions;
        }
        for capability in self.1 {
            match capability {
                Capability::Reader => can.reader = Support::Unsupported,
                Capability::Seek => can.seek = Support::Unsupported,
                Capability::Pause => can.pause = Support::Unsupported,
                Capability::Lag => can.lag = Support::Unsupported,
                Capability::Shared => {
                    can.shared = Support::Unsupported;
                    can.shared_latest = Support::Unsupported;
                }
                Capability::Broadcast => can.broadcast = Support::Unsupported,
                other => panic!("{other:?} is not taken away here"),
            }
        }
        can
    }
}

/// Makes the harness of one of the drivers.
pub(super) fn by_name(name: &str) -> Option<MemoryBrokers> {
    let (name, without) = DRIVERS.iter().find(|(other, _)| *other == name)?;
    Some(driver_on_memory(name, name, Arc::new(Lacks(name, without))))
}

/// `MQ_CONFORMANCE_LACKS` names one driver.
#[test]
fn what_is_not_declared_is_refused_and_fails_no_case() {
    let runtime = runner::runtime(4).unwrap();
    let only = std::env::var("MQ_CONFORMANCE_LACKS").ok();
    let chosen = DRIVERS
        .iter()
        .filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name));
    for (name, _) in chosen {
        // The cases that break a server ask for nothing optional but what they name; those that count a process are long.
        let chosen: Vec<_> = cases::all()
            .filter(|case| *name == "bare" || case.isolation != Isolation::OwnServer || case.id == "C15")
            .filter(|case| case.isolation != Isolation::Alone || matches!(case.id, "Z7"))
            .collect();
        let harness = Arc::new(by_name(name).unwrap());
        let suite = Arc::new(Suite::new(harness, chosen.len()));
        let failed = runtime.block_on(async {
            let runs: Vec<_> = chosen
                .into_iter()
                .map(|case| {
                    let suite = Arc::clone(&suite);
                    tokio::spawn(async move { suite.run(case).await })
                })
                .collect();
            let mut failed = Vec::new();
            for run in runs {
                let report = run.await.unwrap();
                if report.verdict == Verdict::Failed {
                    failed.push(format!("{}_{}: {}", report.id, report.name, report.detail));
                }
            }
            failed
        });
        assert!(failed.is_empty(), "the driver {name}:\n{}", failed.join("\n"));
    }
}
