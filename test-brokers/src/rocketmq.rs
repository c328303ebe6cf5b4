//! Apache RocketMQ: nameservers, masters and slaves.

mod install;
mod node;
mod options;
mod program;

use std::path::Path;

pub use node::RocketMqNode;
pub use options::RocketMqOptions;
pub use program::JavaProgram;

use install::{Archiving, Install};
use node::Role;

use crate::error::Context;
use crate::maven::property;
use crate::process::{at_once, run};
use crate::scratch::Scratch;
use crate::{Backend, Broker, Cache, Certificates, Proxy, Result};

/// A RocketMQ cluster in a folder and on ports of its own.
///
/// As a [`Broker`] it is handled as a whole; [`RocketMq::name_servers`], [`RocketMq::masters`] and
/// [`RocketMq::slaves`] are handled one by one. Topics are not made by themselves.
#[derive(Debug)]
pub struct RocketMq {
    // Before `scratch`: fields are dropped in this order, and processes must be gone before their folder is.
    masters: Vec<RocketMqNode>,
    slaves: Vec<RocketMqNode>,
    name_servers: Vec<RocketMqNode>,
    install: Install,
    certificates: Option<Certificates>,
    // Held, never read: where the masters' messages are, if not in `scratch`.
    _stores: Option<Scratch>,
    scratch: Scratch,
}

/// What the nodes of a cluster are made from.
struct Plan<'a> {
    options: &'a RocketMqOptions,
    install: &'a Install,
    archiving: Archiving,
    certificates: Option<&'a Certificates>,
    scratch: &'a Scratch,
    stores: &'a Scratch,
}

impl RocketMq {
    /// The super user of [`RocketMqOptions::with_access_control`], and its password.
    pub const ADMIN: (&str, &str) = ("admin", "admin-secret");

    fn launch(options: &RocketMqOptions) -> Result<Self> {
        let cluster = Self::prepare(options, Install::find(&Cache::open()?)?, Archiving::Use)?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Writes all that the nodes need.
    fn prepare(options: &RocketMqOptions, install: Install, archiving: Archiving) -> Result<Self> {
        let scratch = Scratch::new("rocketmq")?;
        // A master refuses messages on a disk that is 90 % full, and from 85 % on deletes what it can; no setting moves
        // these marks up.
        let stores = Scratch::in_memory("rocketmq")?;
        let certificates = match &options.tls_names {
            Some(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Some(Certificates::generate(&scratch.path().join("tls"), &names)?)
            }
            None => None,
        };
        let plan = Plan {
            options,
            install: &install,
            archiving,
            certificates: certificates.as_ref(),
            scratch: &scratch,
            stores: stores.as_ref().unwrap_or(&scratch),
        };
        let name_servers = (0..options.name_servers)
            .map(|index| RocketMqNode::name_server(&plan, index))
            .collect::<Result<Vec<_>>>()?;
        let addresses: Vec<_> = name_servers.iter().map(RocketMqNode::direct_address).collect();
        let role = if options.slaves {
            Role::CopiedMaster
        } else {
            Role::Master
        };
        let brokers = |role: Role| {
            ('a'..='z')
                .take(options.masters)
                .map(|letter| format!("broker-{letter}"))
                .map(|name| RocketMqNode::broker(&plan, &name, role, addresses.clone()))
                .collect::<Result<Vec<_>>>()
        };
        let masters = brokers(role)?;
        let slaves = if options.slaves {
            brokers(Role::Slave)?
        } else {
            Vec::new()
        };
        Ok(Self {
            masters,
            slaves,
            name_servers,
            install,
            certificates,
            _stores: stores,
            scratch,
        })
    }

    /// Returns the nameservers.
    #[must_use]
    pub fn name_servers(&self) -> &[RocketMqNode] {
        &self.name_servers
    }

    /// Returns the masters, `broker-a` first.
    #[must_use]
    pub fn masters(&self) -> &[RocketMqNode] {
        &self.masters
    }

    /// Returns the slaves, that of `broker-a` first, if [`RocketMqOptions::with_slaves`] asked for them.
    #[must_use]
    pub fn slaves(&self) -> &[RocketMqNode] {
        &self.slaves
    }

    /// Starts one node of this cluster again and waits until it is ready, a master until it is routed to.
    ///
    /// # Errors
    /// Those of [`Broker::start`].
    pub fn start_node(&self, node: &RocketMqNode) -> Result<()> {
        node.spawn(&self.scratch)?;
        node.wait_until_ready()
    }

    /// Returns the certificates, if [`RocketMqOptions::with_tls`] asked for them.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Runs a command of RocketMQ's own administration tool, such as `topicList`, against this cluster's
    /// nameservers that live and returns what it wrote. A JVM starts for it: about two seconds.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the end of what it wrote.
    pub fn tool(&self, words: &[&str]) -> Result<String> {
        let folder = self.scratch.path().join("tools");
        std::fs::create_dir_all(folder.join("tmp")).context(format!("cannot make {}", folder.display()))?;
        let class = "org.apache.rocketmq.tools.command.MQAdminStartup";
        let options = self.certificates.as_ref().map_or_else(plain_options, tls_options);
        let mut command = self
            .install
            .java(class, "-Xmx64m", &folder, &options, Archiving::Use)?;
        run(command.args(words).args(["-n", &self.living_name_servers()]))
    }

    /// Starts a JVM that runs a program of a test's own, one source file, with RocketMQ's Java client on its class path
    /// and this cluster's nameservers that live in its environment. Options of the JVM win over those before them.
    ///
    /// A JVM that has the compiler in it is needed, as a JDK is.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] says what to install, [`crate::Error::Io`].
    pub fn java_program(&self, source: &Path, options: &[&str]) -> Result<JavaProgram> {
        let folder = self.scratch.path().join("programs");
        std::fs::create_dir_all(folder.join("tmp")).context(format!("cannot make {}", folder.display()))?;
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let class = source.to_string_lossy();
        let mut command = self
            .install
            .java(&class, "-Xmx256m", &folder, &options, Archiving::Use)?;
        command.env("NAMESRV_ADDR", self.living_name_servers());
        JavaProgram::start(command)
    }

    fn living_name_servers(&self) -> String {
        let living = self.name_servers.iter().filter(|node| node.is_running());
        let addresses: Vec<String> = living.map(|node| node.address().to_string()).collect();
        addresses.join(";")
    }

    fn nodes(&self) -> impl Iterator<Item = &RocketMqNode> {
        self.name_servers.iter().chain(&self.masters).chain(&self.slaves)
    }

    fn each(&self, act: impl Fn(&RocketMqNode) -> Result<()>) -> Result<()> {
        if !self.is_running() {
            return Err(crate::Error::NotRunning {
                server: "rocketmq".into(),
            });
        }
        self.nodes().filter(|node| node.is_running()).try_for_each(act)
    }
}

impl Broker for RocketMq {
    fn backend(&self) -> Backend {
        Backend::RocketMq
    }

    fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "rocketmq+tls"
        } else {
            "rocketmq"
        };
        let addresses: Vec<String> = self
            .name_servers
            .iter()
            .map(|node| node.address().to_string())
            .collect();
        format!("{scheme}://{}", addresses.join(","))
    }

    /// Each node has its own, so that there is none of the whole.
    fn proxy(&self) -> Option<&Proxy> {
        None
    }

    fn is_running(&self) -> bool {
        self.nodes().any(RocketMqNode::is_running)
    }

    /// Starts the nodes that do not run.
    fn start(&self) -> Result<()> {
        let absent: Vec<_> = self.nodes().filter(|node| !node.is_running()).collect();
        if absent.is_empty() {
            return Err(crate::Error::Running {
                server: "rocketmq".into(),
            });
        }
        // All at once: the nameserver is up long before a master looks for it.
        absent.iter().try_for_each(|node| node.spawn(&self.scratch))?;
        self.nodes().try_for_each(RocketMqNode::wait_until_ready)
    }

    fn stop(&self) -> Result<()> {
        // At once: each of them takes its time.
        let living: Vec<_> = self.nodes().filter(|node| node.is_running()).collect();
        at_once(living.iter().map(|node| || node.stop()))
    }

    fn kill(&self) -> Result<()> {
        self.each(RocketMqNode::kill)
    }

    fn freeze(&self) -> Result<()> {
        self.each(RocketMqNode::freeze)
    }

    fn thaw(&self) -> Result<()> {
        self.each(RocketMqNode::thaw)
    }

    fn logs(&self) -> String {
        self.nodes().map(RocketMqNode::logs).collect()
    }

    fn cut_connections(&self) -> Result<usize> {
        self.nodes()
            .map(|node| {
                let proxy = node.proxy().ok_or(crate::Error::NoProxy {
                    server: "rocketmq".into(),
                })?;
                Ok(proxy.cut())
            })
            .sum()
    }
}

impl Drop for RocketMq {
    fn drop(&mut self) {
        crate::broker::show_logs_of_failed_test(self);
    }
}

/// Runs a nameserver and a master once from boot to end and keeps the classes that they loaded.
fn make_archives(install: &Install) -> Result<()> {
    let cluster = RocketMq::prepare(&RocketMqOptions::default(), install.clone(), Archiving::Record)?;
    cluster.start()?;
    cluster
        .masters
        .iter()
        .chain(&cluster.name_servers)
        .try_for_each(RocketMqNode::stop_patiently)
}

/// Returns the JVM options by which RocketMQ's servers speak no TLS: by default each boot makes an RSA key for a
/// certificate of its own, which takes longer than all the rest.
fn plain_options() -> Vec<String> {
    vec!["-Dtls.server.mode=disabled".into()]
}

/// Returns the JVM options by which RocketMQ's servers and clients speak nothing but TLS.
fn tls_options(certificates: &Certificates) -> Vec<String> {
    let path = |name: &str, path: &Path| property(name, path).to_string_lossy().into_owned();
    vec![
        "-Dtls.server.mode=enforcing".into(),
        "-Dtls.enable=true".into(),
        "-Dtls.test.mode.enable=false".into(),
        "-Dtls.config.file=/dev/null".into(),
        "-Dtls.server.need.client.auth=none".into(),
        "-Dtls.server.authClient=false".into(),
        "-Dtls.client.authServer=false".into(),
        path("-Dtls.server.certPath=", &certificates.certificate_file()),
        path("-Dtls.server.keyPath=", &certificates.key_file()),
        path("-Dtls.client.trustCertPath=", &certificates.ca_file()),
    ]
}
