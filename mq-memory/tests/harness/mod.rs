//! Brokers in memory as the conformance suite takes them: for this driver's own run, and for the mutants of it that prove
//! the suite.
//!
//! Their faults are injected: a restart or a cut ends every session, membership and lease, and every send that is not
//! stored.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Nature, Server, ServerKind, Times};
use mq_api::{Mq, TopicName, url::ConnectUrl};
use mq_memory::{Faults, MemoryMq};

/// Makes a client of a driver.
type Open = dyn Fn(MemoryMq) -> Mq + Send + Sync;

/// Does something with a broker that was just made.
type Made = dyn Fn(Faults) + Send + Sync;

/// Starts brokers in memory, kept alive by a connection of the suite's own.
pub(crate) struct MemoryBrokers {
    /// What the driver calls itself.
    backend: &'static str,
    prefix: &'static str,
    message_lease: Duration,
    times: Times,
    open: Arc<Open>,
    made: Arc<Made>,
    child_environment: Vec<(&'static str, String)>,
}

impl MemoryBrokers {
    /// Names the brokers by a prefix. Members that ask for no session timeout have a long one, so that a machine which
    /// stands still for a moment takes no partition from them.
    pub(crate) fn new(prefix: &'static str, times: Times) -> Self {
        Self {
            backend: "memory",
            prefix,
            message_lease: times.message_lease,
            times,
            open: Arc::new(Mq::from_driver),
            made: Arc::new(|_| {}),
            child_environment: Vec::new(),
        }
    }

    /// Puts something in front of the driver.
    #[allow(dead_code, reason = "the driver's own run has nothing in front of it")]
    pub(crate) fn behind(mut self, open: impl Fn(MemoryMq) -> Mq + Send + Sync + 'static) -> Self {
        self.open = Arc::new(open);
        self
    }

    /// Takes what is in front of the driver for a driver of its own, by another name: what it must declare is not known.
    #[allow(dead_code, reason = "for mutants")]
    pub(crate) fn called(mut self, backend: &'static str) -> Self {
        self.backend = backend;
        self
    }

    /// Has something done with each broker.
    #[allow(dead_code, reason = "for mutants")]
    pub(crate) fn with_each(mut self, made: impl Fn(Faults) + Send + Sync + 'static) -> Self {
        self.made = Arc::new(made);
        self
    }

    /// Sets what child processes find in their environment.
    #[allow(dead_code, reason = "for mutants")]
    pub(crate) fn with_child_environment(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.child_environment.push((name, value.into()));
        self
    }
}

impl fmt::Debug for MemoryBrokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBrokers")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Harness for MemoryBrokers {
    fn name(&self) -> &str {
        self.backend
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        Ok((self.open)(MemoryMq::from_url(&ConnectUrl::parse(url)?)?))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (prefix, lease) = (self.prefix, self.message_lease.as_millis());
        let url = format!("memory://{prefix}-{number}?lease=30s&shared_lease={lease}ms");
        let mq = MemoryMq::from_url(&ConnectUrl::parse(&url)?)?;
        (self.made)(mq.faults());
        Ok(Arc::new(Broker { url, mq }))
    }

    fn nature(&self) -> Nature {
        Nature::default().in_process()
    }

    fn times(&self) -> Times {
        self.times.clone()
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

    fn child_environment(&self) -> Vec<(&'static str, String)> {
        self.child_environment.clone()
    }
}

/// A broker and its faults.
struct Broker {
    url: String,
    mq: MemoryMq,
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
