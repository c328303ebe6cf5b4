//! The conformance suite on brokers in memory.

mod harness;

use std::{process::ExitCode, time::Duration};

use conformance_tests::Times;

use self::harness::MemoryBrokers;

fn main() -> ExitCode {
    let times = Times::default()
        .with_session_timeout(Duration::from_secs(2))
        .with_message_lease(Duration::from_secs(4))
        .with_crash_takeover(Duration::from_secs(5))
        .with_freeze_takeover(Duration::from_secs(5))
        .with_retention(Duration::from_secs(5));
    conformance_tests::run(MemoryBrokers::new("conformance", times))
}
