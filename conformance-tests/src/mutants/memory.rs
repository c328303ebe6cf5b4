//! The driver in memory with a tweak in front of it, as a harness.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{Mq, TopicName, url::ConnectUrl};
use mq_memory::MemoryMq;

use crate::{
    harness::{Fault, Harness, HarnessResult, Nature, Server, ServerKind, Times},
    wrap::{Tweak, Tweaked},
};

/// Opens brokers in memory behind one tweak.
pub(super) struct MutantOfMemory {
    tweak: Arc<dyn Tweak>,
}

struct Broker {
    url: String,
    mq: MemoryMq,
}

impl MutantOfMemory {
    pub(super) fn new(tweak: Arc<dyn Tweak>) -> Self {
        Self { tweak }
    }
}

impl fmt::Debug for MutantOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutantOfMemory")
            .field("tweak", &self.tweak)
            .finish()
    }
}

#[async_trait]
impl Harness for MutantOfMemory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        let memory = MemoryMq::from_url(&ConnectUrl::parse(url)?)?;
        let mutant = Tweaked::new(Arc::new(memory), Arc::clone(&self.tweak));
        Ok(Mq::from_driver(mutant))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let url = format!("memory://mutant-{number}?lease=1s&shared_lease=1s");
        let mq = MemoryMq::from_url(&ConnectUrl::parse(&url)?)?;
        if let Some(pause) = self.tweak.loses_sessions_every() {
            let faults = mq.faults();
            tokio::spawn(async move {
                // As long as a case may take, and no longer.
                for _ in 0..200 {
                    tokio::time::sleep(pause).await;
                    faults.drop_connections();
                }
            });
        }
        Ok(Arc::new(Broker { url, mq }))
    }

    fn nature(&self) -> Nature {
        Nature::default().in_process()
    }

    /// Shorter than any real driver's: what a mutant keeps back is given up soon.
    fn times(&self) -> Times {
        Times::default()
            .with_progress(Duration::from_secs(4))
            .with_topic_gone(Duration::from_secs(3))
            .with_partitions_seen(Duration::from_secs(3))
            .with_join(Duration::from_secs(5))
            .with_session_timeout(Duration::from_secs(1))
            .with_message_lease(Duration::from_secs(1))
            .with_crash_takeover(Duration::from_secs(4))
            .with_freeze_takeover(Duration::from_secs(4))
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
