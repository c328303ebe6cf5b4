//! Apache Kafka in KRaft mode, alone or as a cluster of three.

mod cluster;
mod config;
mod install;
mod options;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use cluster::KafkaCluster;
pub use options::KafkaOptions;

use install::Install;

use crate::process::{Process, Slot, run};
use crate::scratch::{self, Scratch};
use crate::{Backend, Broker, Cache, Certificates, Error, Proxy, ReservedPort, Result, free_port};

/// A broker that was killed recovers its logs first, and waits until its old session is over.
const READY_LIMIT: Duration = Duration::from_secs(240);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// What the broker logs when clients can produce.
const READY: &[u8] = b"Kafka Server started";

/// Names a listener of a Kafka broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KafkaListener {
    /// Plain text, through the proxy where there is one.
    Plain,
    /// Plain text with a login: SASL PLAIN or SCRAM-SHA-256.
    Sasl,
    /// TLS without a login.
    Tls,
    /// TLS with a login.
    SaslTls,
}

/// A Kafka broker in a folder and on ports of its own, with its authorizer on.
///
/// Topics are not made by themselves. Who comes without a login may do everything.
#[derive(Debug)]
pub struct Kafka {
    node: Node,
    install: Install,
    // Before `scratch`: fields are dropped in this order, and the server must be gone before its folder is.
    process: Slot,
    certificates: Certificates,
    scratch: Scratch,
}

/// The ports of one node, all on the loopback interface.
#[derive(Debug)]
struct Node {
    id: usize,
    client: ReservedPort,
    internal: ReservedPort,
    controller: ReservedPort,
    sasl: ReservedPort,
    tls: ReservedPort,
    sasl_tls: ReservedPort,
    proxy: Option<Proxy>,
}

impl Node {
    fn new(id: usize, with_proxy: bool) -> Result<Self> {
        let client = free_port()?;
        let proxy = if with_proxy {
            Some(Proxy::start(client.address())?)
        } else {
            None
        };
        Ok(Self {
            id,
            client,
            internal: free_port()?,
            controller: free_port()?,
            sasl: free_port()?,
            tls: free_port()?,
            sasl_tls: free_port()?,
            proxy,
        })
    }

    fn advertised(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.client.address(), Proxy::address)
    }

    fn voter(&self) -> String {
        format!("{}@{}", self.id, self.controller.address())
    }
}

impl Kafka {
    /// The super user of the SASL listeners, and its password.
    pub const ADMIN: (&str, &str) = config::ADMIN;
    /// An ordinary user of the SASL listeners, and its password.
    pub const ALICE: (&str, &str) = config::ALICE;

    fn launch(options: KafkaOptions) -> Result<Self> {
        let node = Node::new(1, options.proxy)?;
        let voters = [node.voter()];
        let kafka = Self::prepare(Install::find(&Cache::open()?)?, node, &voters, &options)?;
        kafka.start()?;
        Ok(kafka)
    }

    /// Writes all that the broker needs and formats its data folder.
    fn prepare(install: Install, node: Node, voters: &[String], options: &KafkaOptions) -> Result<Self> {
        let scratch = Scratch::new("kafka")?;
        let names: Vec<&str> = options.tls_names.iter().map(String::as_str).collect();
        let certificates = Certificates::generate(&scratch.path().join("tls"), &names)?;
        let text = config::properties(&node, scratch.path(), &certificates, voters, &options.lines);
        let process = Slot::new(format!("kafka node {}", node.id));
        let kafka = Self {
            node,
            install,
            process,
            certificates,
            scratch,
        };
        scratch::write(&kafka.properties_file(), &text)?;
        kafka
            .install
            .format(&kafka.properties_file(), &kafka.log_file())?;
        Ok(kafka)
    }

    /// Returns the address that clients of a listener connect to first.
    #[must_use]
    pub fn bootstrap(&self, listener: KafkaListener) -> String {
        match listener {
            KafkaListener::Plain => self.node.advertised().to_string(),
            KafkaListener::Sasl => self.node.sasl.address().to_string(),
            KafkaListener::Tls => format!("localhost:{}", self.node.tls.number()),
            KafkaListener::SaslTls => format!("localhost:{}", self.node.sasl_tls.number()),
        }
    }

    /// Returns the certificates of the TLS listeners.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Runs a class of Kafka's own jars, such as `org.apache.kafka.tools.ConsumerGroupCommand`, to its end and
    /// returns what it wrote. A JVM starts for it: about a second.
    ///
    /// # Errors
    /// [`Error::Command`] with the end of what it wrote.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        run(self
            .install
            .java(class, &self.scratch.path().join("tools.log"))?
            .args(arguments))
    }

    /// Returns the class path of Kafka's jars, the Java client included, for programs of a test's own.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn class_path(&self) -> Result<std::ffi::OsString> {
        self.install.class_path()
    }

    fn properties_file(&self) -> PathBuf {
        self.scratch.path().join("server.properties")
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("server.log")
    }

    /// Starts the process and returns how long the log was before.
    fn spawn(&self) -> Result<usize> {
        let mut command = self.install.java("kafka.Kafka", &self.log_file())?;
        command.arg(self.properties_file());
        self.spawn_by(command)
    }

    fn spawn_by(&self, command: std::process::Command) -> Result<usize> {
        let logged = fs::metadata(self.log_file()).map_or(0, |data| data.len());
        let output = self.scratch.path().join("out.log");
        self.process
            .fill(|name| Process::spawn(name, command, &output, &self.scratch))?;
        Ok(usize::try_from(logged).unwrap_or(usize::MAX))
    }

    fn wait_until_ready(&self, logged: usize) -> Result<()> {
        self.process.wait_until_ready(
            READY_LIMIT,
            || self.logs(),
            || {
                let log = fs::read(self.log_file()).unwrap_or_default();
                let new = log.get(logged..).unwrap_or_default();
                Ok(new.windows(READY.len()).any(|part| part == READY))
            },
        )
    }
}

impl Broker for Kafka {
    fn backend(&self) -> Backend {
        Backend::Kafka
    }

    fn url(&self) -> String {
        format!("kafka://{}", self.node.advertised())
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.node.proxy.as_ref()
    }

    fn is_running(&self) -> bool {
        self.process.is_running()
    }

    fn start(&self) -> Result<()> {
        let logged = self.spawn()?;
        self.wait_until_ready(logged)
    }

    fn stop(&self) -> Result<()> {
        self.process.terminate(None, STOP_LIMIT)
    }

    fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    fn freeze(&self) -> Result<()> {
        self.process.freeze()
    }

    fn thaw(&self) -> Result<()> {
        self.process.thaw()
    }

    fn logs(&self) -> String {
        scratch::tails(&[self.scratch.path().join("out.log"), self.log_file()])
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        crate::broker::show_logs_of_failed_test(self);
    }
}

/// Runs a broker once from boot to end and keeps the classes that it loaded: each later boot saves a second.
fn make_archive(install: &Install) -> Result<()> {
    let node = Node::new(1, false)?;
    let voters = [node.voter()];
    let archive = install.archive();
    let unfinished = archive.with_extension("unfinished");
    let kafka = Kafka::prepare(install.clone(), node, &voters, &KafkaOptions::default())?;
    let mut command = install.recording_java("kafka.Kafka", &kafka.log_file(), &unfinished)?;
    command.arg(kafka.properties_file());
    let logged = kafka.spawn_by(command)?;
    kafka.wait_until_ready(logged)?;
    kafka.stop()?;
    if unfinished.exists() {
        fs::rename(&unfinished, &archive).map_err(|source| Error::Io {
            context: format!("cannot make {}", archive.display()),
            source,
        })?;
    }
    Ok(())
}
