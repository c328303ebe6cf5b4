//! How RocketMQ is to be started.

use super::{RocketMq, install};
use crate::{Cache, Result};

/// How a RocketMQ cluster is to be started: one nameserver, one master, no TLS, no access control, no proxy.
#[derive(Debug, Clone)]
#[must_use = "options start nothing before `start`"]
pub struct RocketMqOptions {
    pub(super) name_servers: usize,
    pub(super) masters: usize,
    pub(super) slaves: bool,
    pub(super) proxy: bool,
    pub(super) tls_names: Option<Vec<String>>,
    pub(super) lines: Vec<String>,
    pub(super) java_options: Vec<String>,
}

impl Default for RocketMqOptions {
    fn default() -> Self {
        Self {
            name_servers: 1,
            masters: 1,
            slaves: false,
            proxy: false,
            tls_names: None,
            lines: Vec::new(),
            java_options: Vec::new(),
        }
    }
}

impl RocketMqOptions {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts this many nameservers (default: 1; less is taken as 1).
    pub fn with_name_servers(mut self, count: usize) -> Self {
        self.name_servers = count.max(1);
        self
    }

    /// Starts this many masters, at most 26, called `broker-a`, `broker-b`, ... (default: 1; less is taken as 1).
    pub fn with_masters(mut self, count: usize) -> Self {
        self.masters = count.clamp(1, 26);
        self
    }

    /// Gives each master a slave, which reads may go to, and has the masters answer a send only when it is copied
    /// (default: none).
    ///
    /// A slave copies the masters' list of topics every ten seconds; [`RocketMqNode::has_topic`] tells whether it has one.
    ///
    /// [`RocketMqNode::has_topic`]: super::RocketMqNode::has_topic
    pub fn with_slaves(mut self) -> Self {
        self.slaves = true;
        self
    }

    /// Puts a proxy in front of each nameserver and each master (default: none).
    ///
    /// The masters register the proxies' addresses, which are on 127.0.0.2 and have the masters' own ports.
    pub fn with_proxy(mut self) -> Self {
        self.proxy = true;
        self
    }

    /// Lets nameservers and masters take nothing but TLS, with a certificate for `localhost`, `127.0.0.1` and
    /// `127.0.0.2` (default: no TLS).
    pub fn with_tls(self) -> Self {
        self.with_tls_for(&["localhost", "127.0.0.1", "127.0.0.2"])
    }

    /// Lets nameservers and masters take nothing but TLS, with a certificate for other names.
    pub fn with_tls_for(mut self, names: &[&str]) -> Self {
        self.tls_names = Some(names.iter().map(|name| (*name).to_owned()).collect());
        self
    }

    /// Turns the masters' access control (version 2) on; [`RocketMq::ADMIN`] may do everything.
    pub fn with_access_control(self) -> Self {
        let (user, password) = RocketMq::ADMIN;
        let auth = "org.apache.rocketmq.auth";
        [
            "authenticationEnabled=true".to_owned(),
            format!(
                "authenticationProvider={auth}.authentication.provider.DefaultAuthenticationProvider"
            ),
            format!(
                "authenticationMetadataProvider={auth}.authentication.provider.LocalAuthenticationMetadataProvider"
            ),
            format!(r#"initAuthenticationUser={{"username":"{user}","password":"{password}"}}"#),
            format!(
                r#"innerClientAuthenticationCredentials={{"accessKey":"{user}","secretKey":"{password}"}}"#
            ),
            "authorizationEnabled=true".to_owned(),
            format!("authorizationProvider={auth}.authorization.provider.DefaultAuthorizationProvider"),
            format!(
                "authorizationMetadataProvider={auth}.authorization.provider.LocalAuthorizationMetadataProvider"
            ),
        ]
        .into_iter()
        .fold(self, Self::with_config)
    }

    /// Adds a line to the masters' configuration, which wins over those before it.
    pub fn with_config(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Adds an option of the JVM, for nameservers and masters, which wins over those before it.
    pub fn with_java_option(mut self, option: impl Into<String>) -> Self {
        self.java_options.push(option.into());
        self
    }

    /// Fetches the servers into the cache, so that a later start does not wait for them.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] says what to install, [`crate::Error::Command`] shows what failed.
    pub fn fetch() -> Result<()> {
        install::Install::find(&Cache::open()?).map(drop)
    }

    /// Starts the cluster and waits until every master is routed to.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] says what to install, [`crate::Error::NotReady`] shows the servers' logs.
    pub fn start(self) -> Result<RocketMq> {
        RocketMq::launch(&self)
    }
}
