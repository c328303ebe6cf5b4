//! Three brokers that are one cluster.

use super::install::Install;
use super::{Kafka, KafkaOptions, Node};
use crate::process::at_once;
use crate::{Backend, Broker, Cache, Proxy, Result};

const NODES: usize = 3;

/// A cluster of three brokers, each of which is a controller too.
///
/// As a [`Broker`] it is handled as a whole; [`KafkaCluster::nodes`] are handled one by one.
#[derive(Debug)]
pub struct KafkaCluster {
    nodes: Vec<Kafka>,
}

impl KafkaCluster {
    pub(super) fn launch(options: &KafkaOptions) -> Result<Self> {
        let install = Install::find(&Cache::open()?)?;
        let nodes = (1..=NODES)
            .map(|id| Node::new(id, options.proxy))
            .collect::<Result<Vec<_>>>()?;
        let voters: Vec<String> = nodes.iter().map(Node::voter).collect();
        let nodes = nodes
            .into_iter()
            .map(|node| Kafka::prepare(install.clone(), node, &voters, options))
            .collect::<Result<Vec<_>>>()?;
        let cluster = Self { nodes };
        cluster.start()?;
        Ok(cluster)
    }

    /// Returns the brokers.
    #[must_use]
    pub fn nodes(&self) -> &[Kafka] {
        &self.nodes
    }

    fn each(&self, act: impl Fn(&Kafka) -> Result<()>) -> Result<()> {
        self.nodes
            .iter()
            .filter(|node| node.is_running())
            .try_for_each(act)
    }
}

impl Broker for KafkaCluster {
    fn backend(&self) -> Backend {
        Backend::Kafka
    }

    fn url(&self) -> String {
        let addresses: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.node.advertised().to_string())
            .collect();
        format!("kafka://{}", addresses.join(","))
    }

    /// Each node has its own, so that there is none of the whole.
    fn proxy(&self) -> Option<&Proxy> {
        None
    }

    fn is_running(&self) -> bool {
        self.nodes.iter().any(Kafka::is_running)
    }

    /// Starts the nodes that do not run.
    fn start(&self) -> Result<()> {
        // All at once: none is ready before a majority is there.
        let mut starting = Vec::new();
        for node in self.nodes.iter().filter(|node| !node.is_running()) {
            starting.push((node, node.spawn()?));
        }
        starting
            .into_iter()
            .try_for_each(|(node, logged)| node.wait_until_ready(logged))
    }

    fn stop(&self) -> Result<()> {
        // One after another a node would wait in vain for a controller to let it go.
        let living: Vec<_> = self.nodes.iter().filter(|node| node.is_running()).collect();
        at_once(living.iter().map(|node| || node.stop()))
    }

    fn kill(&self) -> Result<()> {
        self.each(Kafka::kill)
    }

    fn freeze(&self) -> Result<()> {
        self.each(Kafka::freeze)
    }

    fn thaw(&self) -> Result<()> {
        self.each(Kafka::thaw)
    }

    fn logs(&self) -> String {
        self.nodes.iter().map(Kafka::logs).collect()
    }

    fn cut_connections(&self) -> Result<usize> {
        self.nodes.iter().map(Kafka::cut_connections).sum()
    }
}
