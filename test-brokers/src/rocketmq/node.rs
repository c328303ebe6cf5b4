//! One process of a RocketMQ cluster.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::install::{Archiving, Install};
use super::{Plan, plain_options, tls_options};
use crate::error::Context;
use crate::process::{Process, Slot};
use crate::scratch::{self, Scratch};
use crate::{Proxy, ReservedPort, Result, free_port};

/// A broker that was killed recovers its log first, on a busy machine slowly.
const READY_LIMIT: Duration = Duration::from_secs(240);
/// Both kinds take longer than any test wants to wait: what is acknowledged is in the page cache anyway.
const STOP_LIMIT: Duration = Duration::from_secs(5);
const RECORD_LIMIT: Duration = Duration::from_secs(90);
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// Where proxies of masters listen: a master registers an address with its own port.
const PROXY_HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A nameserver, a master or a slave, to be handled on its own.
#[derive(Debug)]
pub struct RocketMqNode {
    kind: Kind,
    install: Install,
    archiving: Archiving,
    options: Vec<String>,
    probe_in_plain_text: bool,
    process: Slot,
    /// How long the log was before the present boot.
    logged: AtomicUsize,
    proxy: Option<Proxy>,
    port: ReservedPort,
    // Held, never read: ports that a master opens beside its own.
    _beside: Vec<ReservedPort>,
    folder: PathBuf,
}

#[derive(Debug)]
enum Kind {
    NameServer,
    Broker {
        name: String,
        role: Role,
        name_servers: Vec<SocketAddr>,
    },
}

/// Which copy of a broker's messages a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The only one.
    Master,
    /// The one that is copied before a send is answered.
    CopiedMaster,
    Slave,
}

impl Role {
    /// What a broker's configuration and its entry in routes say.
    fn words(self) -> (u32, &'static str) {
        match self {
            Self::Master => (0, "ASYNC_MASTER"),
            Self::CopiedMaster => (0, "SYNC_MASTER"),
            Self::Slave => (1, "SLAVE"),
        }
    }

    /// By default a master of version 5 waits for no copy, whatever its role is called, and a slave answers no reads.
    fn settings(self) -> &'static str {
        match self {
            Self::Master => "",
            Self::CopiedMaster => "inSyncReplicas=2",
            Self::Slave => "slaveReadEnable=true",
        }
    }
}

impl RocketMqNode {
    pub(super) fn name_server(plan: &Plan<'_>, index: usize) -> Result<Self> {
        let port = free_port()?;
        let proxy = if plan.options.proxy {
            Some(Proxy::start(port.address())?)
        } else {
            None
        };
        let node = Self::new(
            plan,
            Kind::NameServer,
            &format!("nameserver-{index}"),
            port,
            Vec::new(),
            proxy,
        )?;
        let text = format!("listenPort={}\nbindAddress=127.0.0.1\n", node.port.number());
        scratch::write(&node.configuration_file(), &text)?;
        Ok(node)
    }

    pub(super) fn broker(
        plan: &Plan<'_>,
        name: &str,
        role: Role,
        name_servers: Vec<SocketAddr>,
    ) -> Result<Self> {
        // A master opens the port two below its own as well (its "VIP" port).
        let (port, below) = ReservedPort::with_one_below(2)?;
        let replicating = free_port()?;
        let proxy = if plan.options.proxy {
            let address = SocketAddr::from((PROXY_HOST, port.number()));
            Some(Proxy::start_at(address, port.address())?)
        } else {
            None
        };
        let addresses: Vec<String> = name_servers.iter().map(SocketAddr::to_string).collect();
        let replication_port = replicating.number();
        let kind = Kind::Broker {
            name: name.to_owned(),
            role,
            name_servers,
        };
        let (id, role_name) = role.words();
        let replication = role.settings();
        let folder = match role {
            Role::Slave => format!("{name}-slave"),
            Role::Master | Role::CopiedMaster => name.to_owned(),
        };
        let node = Self::new(plan, kind, &folder, port, vec![below, replicating], proxy)?;
        let text = format!(
            "brokerClusterName=test
brokerName={name}
brokerId={id}
brokerRole={role_name}
{replication}
namesrvAddr={name_servers}
bindAddress=127.0.0.1
brokerIP1={advertised}
brokerIP2=127.0.0.1
listenPort={port}
haListenPort={replication_port}
storePathRootDir={store}
storePathCommitLog={store}/commitlog
autoCreateTopicEnable=false
autoCreateSubscriptionGroup=true
enableRetryTopicV2=true
# The defaults preallocate a gigabyte and more.
mappedFileSizeCommitLog=67108864
mappedFileSizeConsumeQueue=600000
mappedFileSizeTimerLog=10485760
messageIndexEnable=false
diskMaxUsedSpaceRatio=95
cleanFileForciblyEnable=false
timerPrecisionMs=100
transactionTimeOut=1000
transactionCheckInterval=1000
# Below transactionTimeOut, else finished transactions are checked again and committed twice.
transactionOpBatchInterval=500
registerNameServerPeriod=10000
",
            name_servers = addresses.join(";"),
            advertised = node.address().ip(),
            port = node.port.number(),
            store = plan.stores.path().join(&folder).join("store").display(),
        );
        let text = plan
            .options
            .lines
            .iter()
            .fold(text, |all, line| all + line + "\n");
        scratch::write(&node.configuration_file(), &text)?;
        Ok(node)
    }

    fn new(
        plan: &Plan<'_>,
        kind: Kind,
        name: &str,
        port: ReservedPort,
        beside: Vec<ReservedPort>,
        proxy: Option<Proxy>,
    ) -> Result<Self> {
        let folder = plan.scratch.path().join(name);
        std::fs::create_dir_all(folder.join("tmp")).context(format!("cannot make {}", folder.display()))?;
        let mut options = plan.certificates.map_or_else(plain_options, tls_options);
        options.extend(plan.options.java_options.iter().cloned());
        Ok(Self {
            kind,
            install: plan.install.clone(),
            archiving: plan.archiving,
            options,
            probe_in_plain_text: plan.certificates.is_none(),
            process: Slot::new(format!("rocketmq {name}")),
            logged: AtomicUsize::new(0),
            proxy,
            port,
            _beside: beside,
            folder,
        })
    }

    /// Returns the address that clients use: the proxy's where there is one.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.port.address(), Proxy::address)
    }

    /// Returns the proxy in front of this process, if the options asked for one.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Says whether the process is alive, be it frozen.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// [`crate::Error::NotRunning`], and [`crate::Error::NotEnded`].
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Asks the process to end and waits so long that it writes its class data archive.
    pub(super) fn stop_patiently(&self) -> Result<()> {
        self.process.terminate(None, RECORD_LIMIT)
    }

    /// Asks the process to end and kills it after five seconds, which it mostly needs.
    ///
    /// # Errors
    /// [`crate::Error::NotRunning`], and [`crate::Error::NotEnded`].
    pub fn stop(&self) -> Result<()> {
        self.process.terminate(None, STOP_LIMIT)
    }

    /// Stops the process with SIGSTOP; nothing is answered from the return on.
    ///
    /// # Errors
    /// [`crate::Error::NotRunning`], [`crate::Error::NotStopped`].
    pub fn freeze(&self) -> Result<()> {
        self.process.freeze()
    }

    /// Lets the process go on after [`RocketMqNode::freeze`].
    ///
    /// # Errors
    /// [`crate::Error::NotRunning`].
    pub fn thaw(&self) -> Result<()> {
        self.process.thaw()
    }

    pub(super) fn direct_address(&self) -> SocketAddr {
        self.port.address()
    }

    pub(super) fn spawn(&self, scratch: &Scratch) -> Result<()> {
        let (class, heap) = match &self.kind {
            Kind::NameServer => ("org.apache.rocketmq.namesrv.NamesrvStartup", "-Xmx64m"),
            Kind::Broker { .. } => ("org.apache.rocketmq.broker.BrokerStartup", "-Xmx256m"),
        };
        let mut command = self
            .install
            .java(class, heap, &self.folder, &self.options, self.archiving)?;
        command.arg("-c").arg(self.configuration_file());
        let output = self.folder.join("out.log");
        let logged = std::fs::read(self.log_file()).map_or(0, |log| log.len());
        self.logged.store(logged, Ordering::SeqCst);
        self.process
            .fill(|name| Process::spawn(name, command, &output, scratch))
    }

    /// Says whether this broker knows a topic (request code 351), by the name that RocketMQ has for it.
    #[must_use]
    pub fn has_topic(&self, topic: &str) -> bool {
        ask(self.port.address(), 351, topic).is_ok_and(|answer| answer.contains(r#""code":0"#))
    }

    /// Waits until the port is open, and for a broker until every nameserver that lives routes to it.
    pub(super) fn wait_until_ready(&self) -> Result<()> {
        self.process.wait_until_ready(
            READY_LIMIT,
            || self.logs(),
            || {
                if !connects(self.port.address()) {
                    return Ok(false);
                }
                Ok(match &self.kind {
                    Kind::NameServer => true,
                    Kind::Broker {
                        name,
                        role,
                        name_servers,
                    } if self.probe_in_plain_text => {
                        let id = role.words().0;
                        let living = name_servers.iter().filter(|address| connects(**address));
                        let routes: Vec<bool> = living.map(|address| routes(*address, name, id)).collect();
                        routes.contains(&true) && !routes.contains(&false)
                    }
                    Kind::Broker { .. } => self.has_registered(),
                })
            },
        )
    }

    /// Reads from the log what cannot be asked where only TLS is spoken.
    fn has_registered(&self) -> bool {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        let new = log.get(self.logged.load(Ordering::SeqCst)..).unwrap_or_default();
        let text = String::from_utf8_lossy(new);
        // A master that boots before its nameserver listens tells of itself once more, ten seconds later.
        text.contains("boot success") && text.contains("to name server completed")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("logs/rocketmqlogs").join(match &self.kind {
            Kind::NameServer => "namesrv.log",
            Kind::Broker { .. } => "broker.log",
        })
    }

    pub(super) fn logs(&self) -> String {
        let all = scratch::tails(&[self.folder.join("out.log"), self.log_file()]);
        // What the logging library says of its own configuration fills the output.
        all.lines()
            .filter(|line| !line.contains("|-INFO in "))
            .fold(String::new(), |all, line| all + line + "\n")
    }

    fn configuration_file(&self) -> PathBuf {
        Path::new(&self.folder).join("server.conf")
    }
}

fn connects(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, PROBE_LIMIT).is_ok()
}

/// Asks a nameserver for the route of the topic that every broker has, its own name (request code 105).
fn routes(name_server: SocketAddr, broker: &str, id: u32) -> bool {
    ask(name_server, 105, broker).is_ok_and(|answer| {
        // Keys are numbers without quotes, unless the version of the request says that it can read JSON.
        let addresses = answer.split("brokerAddrs").nth(1).unwrap_or_default();
        let entries = addresses.split('}').next().unwrap_or_default();
        let keys = [format!("{{{id}:"), format!(",{id}:"), format!("\"{id}\":")];
        keys.iter().any(|key| entries.contains(key))
    })
}

/// Asks one question about a topic and returns the answer as it came.
fn ask(server: SocketAddr, code: u32, topic: &str) -> std::io::Result<String> {
    let header = format!(
        r#"{{"code":{code},"language":"OTHER","version":479,"opaque":1,"flag":0,"serializeTypeCurrentRPC":"JSON","extFields":{{"topic":"{topic}"}}}}"#
    );
    let mut stream = TcpStream::connect_timeout(&server, PROBE_LIMIT)?;
    stream.set_read_timeout(Some(PROBE_LIMIT))?;
    let length = u32::try_from(header.len()).unwrap_or_default();
    stream.write_all(&(length + 4).to_be_bytes())?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(header.as_bytes())?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut answer = Vec::new();
    // What is asked for here is small; whoever announces more is no server of RocketMQ's.
    stream
        .take(u64::from(u32::from_be_bytes(size).min(64 * 1024)))
        .read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
