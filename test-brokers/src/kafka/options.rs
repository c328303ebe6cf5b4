//! How Kafka is to be started.

use super::{Kafka, KafkaCluster, install};
use crate::{Cache, Result};

/// How a Kafka broker is to be started: KRaft, one node that is broker and controller, no proxy.
#[derive(Debug, Clone)]
#[must_use = "options start nothing before `start`"]
pub struct KafkaOptions {
    pub(super) proxy: bool,
    pub(super) tls_names: Vec<String>,
    pub(super) lines: Vec<String>,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self {
            proxy: false,
            tls_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            lines: Vec::new(),
        }
    }
}

impl KafkaOptions {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a proxy in front of the plain listener, whose address the broker tells to clients (default: none).
    ///
    /// What brokers and controllers say to each other does not go through it.
    pub fn with_proxy(mut self) -> Self {
        self.proxy = true;
        self
    }

    /// Makes the TLS listeners' certificate for other names (default: `localhost`, `127.0.0.1`).
    pub fn with_tls_for(mut self, names: &[&str]) -> Self {
        self.tls_names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Adds a line to `server.properties`, which wins over those before it.
    pub fn with_config(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Fetches the broker into the cache, so that a later start does not wait for it.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] says what to install, [`crate::Error::Command`] shows what failed.
    pub fn fetch() -> Result<()> {
        install::Install::find(&Cache::open()?).map(drop)
    }

    /// Starts one broker and waits until clients can produce.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] says what to install, [`crate::Error::NotReady`] shows the broker's logs.
    pub fn start(self) -> Result<Kafka> {
        Kafka::launch(self)
    }

    /// Starts a cluster of three: replication factor 3, two in-sync replicas needed.
    ///
    /// # Errors
    /// Those of [`KafkaOptions::start`].
    pub fn start_cluster(self) -> Result<KafkaCluster> {
        KafkaCluster::launch(&self)
    }
}
