//! The conformance suite on brokers in memory. Their faults are injected: a restart or a cut ends every session,
//! membership and lease, and every send that is not stored.

use std::{process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Nature, Server, ServerKind, Times};
use mq_api::{Mq, TopicName, url::ConnectUrl};
use mq_memory::MemoryMq;

struct Memory;

/// A broker, kept alive by the suite's own connection.
struct Broker {
    url: String,
    mq: MemoryMq,
}

#[async_trait]
impl Harness for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        Ok(Mq::from_driver(MemoryMq::from_url(&ConnectUrl::parse(url)?)?))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let url = format!("memory://conformance-{number}?lease=2s&shared_lease=2s");
        let mq = MemoryMq::from_url(&ConnectUrl::parse(&url)?)?;
        Ok(Arc::new(Broker { url, mq }))
    }

    fn nature(&self) -> Nature {
        Nature::default().in_process()
    }

    fn times(&self) -> Times {
        Times::default()
            .with_session_timeout(Duration::from_secs(2))
            .with_message_lease(Duration::from_secs(2))
            .with_crash_takeover(Duration::from_secs(5))
            .with_freeze_takeover(Duration::from_secs(5))
    }

    fn faults(&self) -> &'static [Fault] {
        &[
            Fault::Restart,
            Fault::Kill,
            Fault::Freeze,
            Fault::Cut,
            Fault::Trim,
        ]
    }

    fn must_supply_faults(&self) -> bool {
        true
    }
}

#[async_trait]
impl Server for Broker {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn restart(&self) -> HarnessResult<()> {
        self.mq.faults().restart();
        Ok(())
    }

    async fn kill(&self) -> HarnessResult<()> {
        self.mq.faults().cut();
        Ok(())
    }

    async fn start(&self) -> HarnessResult<()> {
        self.mq.faults().restart();
        Ok(())
    }

    async fn freeze(&self) -> HarnessResult<()> {
        self.mq.faults().freeze();
        Ok(())
    }

    async fn thaw(&self) -> HarnessResult<()> {
        self.mq.faults().thaw();
        Ok(())
    }

    async fn cut_connections(&self) -> HarnessResult<()> {
        self.mq.faults().drop_connections();
        Ok(())
    }

    async fn trim(&self, topic: &str, partition: u32, before: u64) -> HarnessResult<()> {
        Ok(self.mq.trim(&TopicName::new(topic)?, partition, before)?)
    }
}

fn main() -> ExitCode {
    conformance_tests::run(Memory)
}
