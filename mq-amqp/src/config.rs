//! How to reach the server, and how the driver behaves on it.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use mq_api::{Error, ErrorKind, Result, url::ConnectUrl};

use crate::existing::ExistingTopic;

/// Says where the server is and how the driver uses it.
///
/// ```
/// use std::time::Duration;
/// use mq_amqp::AmqpConfig;
///
/// let config = AmqpConfig::new("127.0.0.1", 5672)
///     .with_user("app", "s3cret")
///     .with_session_timeout(Duration::from_secs(6));
/// assert!(!format!("{config:?}").contains("s3cret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AmqpConfig {
    /// The server's name or address.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// Other nodes of the same cluster, by name and port. Where one cannot be reached the next is tried. Default: none.
    pub other_hosts: Vec<(String, u16)>,
    /// Whether the connection is TLS. Default: no.
    pub tls: bool,
    /// A file of certificates in PEM to trust instead of the system's. Default: none.
    pub tls_ca: Option<PathBuf>,
    /// The user. Default: `guest`.
    pub username: String,
    /// The password, never shown. Default: `guest`.
    pub password: String,
    /// The virtual host. Default: `/`.
    pub vhost: String,
    /// What the name of every queue and exchange begins with, so that several environments can share a virtual host.
    /// Default: `mq`.
    pub prefix: String,
    /// What kind of queues hold the positions of groups. Default: classic.
    pub tokens: TokenQueues,
    /// The topics that stand for queues and exchanges that others made. Default: none.
    pub existing: BTreeMap<String, ExistingTopic>,
    /// How long connecting may take, the handshakes included, of all hosts together. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long one request to the server may take. Default: 10 s.
    pub request_timeout: Duration,
    /// How long a group member may be silent before the server gives its partitions away, 3 s at least. The heartbeat is
    /// a third of it, in whole seconds. Default: 6 s.
    pub session_timeout: Duration,
}

/// Names a kind of queue for the positions of groups. All clients of a server say the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenQueues {
    /// They live on one node, and survive its death as soon as they are declared.
    #[default]
    Classic,
    /// They are copied to other nodes. RabbitMQ 3.10 loses one whose node is killed within three seconds of its
    /// declaration.
    Quorum,
}

pub(crate) const MIN_SESSION_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_PORT: u16 = 5672;
const DEFAULT_TLS_PORT: u16 = 5671;
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// What the protocol can carry in a short string.
const MAX_SHORT: usize = 255;

impl AmqpConfig {
    /// Takes the defaults for a server.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            other_hosts: Vec::new(),
            tls: false,
            tls_ca: None,
            username: "guest".to_owned(),
            password: "guest".to_owned(),
            vhost: "/".to_owned(),
            prefix: "mq".to_owned(),
            tokens: TokenQueues::default(),
            existing: BTreeMap::new(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(6),
        }
    }

    /// Adds another node of the same cluster, to be tried where those before it cannot be reached.
    #[must_use]
    pub fn with_other_host(mut self, host: impl Into<String>, port: u16) -> Self {
        self.other_hosts.push((host.into(), port));
        self
    }

    /// Lets a topic stand for what others made on the server.
    #[must_use]
    pub fn with_existing(mut self, topic: impl Into<String>, what: ExistingTopic) -> Self {
        self.existing.insert(topic.into(), what);
        self
    }

    /// Sets the user and its password.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.username = user.into();
        self.password = password.into();
        self
    }

    /// Sets the virtual host.
    #[must_use]
    pub fn with_vhost(mut self, vhost: impl Into<String>) -> Self {
        self.vhost = vhost.into();
        self
    }

    /// Asks for TLS, trusting the certificates of a PEM file or, without one, the usual authorities.
    #[must_use]
    pub fn with_tls(mut self, ca: Option<PathBuf>) -> Self {
        self.tls = true;
        self.tls_ca = ca;
        self
    }

    /// Sets what every name begins with.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets what kind of queues hold the positions of groups.
    #[must_use]
    pub fn with_tokens(mut self, tokens: TokenQueues) -> Self {
        self.tokens = tokens;
        self
    }

    /// Sets how long connecting may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long one request may take.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how long a group member may be silent.
    #[must_use]
    pub fn with_session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// Takes a URL apart: `amqp://user:password@host:port/vhost`, or `amqps` for TLS, and the options `prefix`,
    /// `tokens` (`classic` or `quorum`), `connect_timeout`, `command_timeout`, `session_timeout` and `tls_ca`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the part and its rule.
    pub fn from_url(url: &ConnectUrl) -> Result<Self> {
        let rule = |what: String| Error::new(ErrorKind::InvalidConfig, what);
        let Some((host, others)) = url.require_hosts()?.split_first() else {
            return Err(rule("the amqp URL names no host".to_owned()));
        };
        let (tls, default_port) = match url.scheme() {
            "amqp" => (false, DEFAULT_PORT),
            "amqps" => (true, DEFAULT_TLS_PORT),
            other => {
                return Err(rule(format!(
                    "scheme {other:?}: an amqp URL begins with `amqp` or `amqps`"
                )));
            }
        };
        let mut config = Self::new(&host.name, host.port.unwrap_or(default_port));
        config.tls = tls;
        for other in others {
            config = config.with_other_host(&other.name, other.port.unwrap_or(default_port));
        }
        if let Some(user) = url.user() {
            config.username = user.to_owned();
        }
        if let Some(password) = url.password() {
            config.password = password.to_owned();
        }
        if !url.path().is_empty() {
            config.vhost = url.path().to_owned();
        }
        let mut options = url.options();
        if let Some(prefix) = options.take("prefix") {
            config.prefix = prefix;
        }
        let kinds = [("classic", TokenQueues::Classic), ("quorum", TokenQueues::Quorum)];
        if let Some(tokens) = options.take_word("tokens", &kinds)? {
            config.tokens = tokens;
        }
        config.tls_ca = options.take("tls_ca").map(PathBuf::from);
        if let Some(timeout) = options.take_duration("connect_timeout")? {
            config.connect_timeout = timeout;
        }
        if let Some(timeout) = options.take_duration("command_timeout")? {
            config.request_timeout = timeout;
        }
        if let Some(timeout) = options.take_duration("session_timeout")? {
            config.session_timeout = timeout;
        }
        options.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what can be checked without a server.
    pub(crate) fn validate(&self) -> Result<()> {
        let rule = |what: String| Err(Error::new(ErrorKind::InvalidConfig, what));
        for host in self.hosts() {
            if host.name.is_empty() {
                return rule("the host is empty".to_owned());
            }
            if host.port == 0 {
                return rule("port 0 cannot be connected to".to_owned());
            }
        }
        for (topic, existing) in &self.existing {
            existing.validate(topic)?;
        }
        if self.prefix.is_empty() || self.prefix.len() > 64 {
            return rule(format!("prefix {:?}: it has 1 to 64 characters", self.prefix));
        }
        for (what, text) in [("user", &self.username), ("virtual host", &self.vhost)] {
            if text.is_empty() || text.len() > MAX_SHORT {
                return rule(format!("the {what} has {} bytes: it has 1 to 255", text.len()));
            }
        }
        for (name, value, least) in [
            ("connect_timeout", self.connect_timeout, Duration::from_millis(1)),
            ("request_timeout", self.request_timeout, Duration::from_millis(1)),
            ("session_timeout", self.session_timeout, MIN_SESSION_TIMEOUT),
        ] {
            if value < least || value > MAX_TIMEOUT {
                return rule(format!("{name} {value:?}: it is {least:?} to {MAX_TIMEOUT:?}"));
            }
        }
        if self.tls && !cfg!(feature = "tls") {
            return rule("this build of mq-amqp has no TLS; turn its feature `tls` on".to_owned());
        }
        if !self.tls && self.tls_ca.is_some() {
            return rule("option `tls_ca` needs the scheme `amqps`".to_owned());
        }
        Ok(())
    }

    /// Returns the heartbeat that finds a silent member within its session timeout: the server waits for two to three
    /// of them.
    pub(crate) fn heartbeat(&self) -> u16 {
        heartbeat_of(self.session_timeout)
    }

    /// Returns the hosts in the order in which they are tried.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let first = (&self.host, &self.port);
        let others = self.other_hosts.iter().map(|(name, port)| (name, port));
        std::iter::once(first)
            .chain(others)
            .map(|(name, port)| Host {
                name: name.clone(),
                port: *port,
            })
            .collect()
    }
}

/// One server to connect to; it is shown as errors and logs name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

pub(crate) fn heartbeat_of(session_timeout: Duration) -> u16 {
    u16::try_from(session_timeout.as_secs() / 3)
        .unwrap_or(u16::MAX)
        .max(1)
}

impl fmt::Debug for AmqpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConfig")
            .field("hosts", &self.hosts())
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("password", &"***")
            .field("vhost", &self.vhost)
            .field("prefix", &self.prefix)
            .field("existing", &self.existing)
            .field("session_timeout", &self.session_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_setting_is_named_with_its_rule() {
        let good = AmqpConfig::new("localhost", 5672);
        assert!(good.validate().is_ok());
        for (bad, words) in [
            (AmqpConfig::new("", 5672), "host"),
            (AmqpConfig::new("localhost", 0), "port 0"),
            (good.clone().with_prefix(""), "prefix"),
            (good.clone().with_vhost("v".repeat(256)), "virtual host"),
            (good.clone().with_user("u".repeat(256), "p"), "user"),
            (
                good.clone().with_session_timeout(Duration::ZERO),
                "session_timeout",
            ),
            (
                good.clone().with_request_timeout(Duration::MAX),
                "request_timeout",
            ),
        ] {
            let error = bad.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.context().contains(words), "{error}");
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let url = ConnectUrl::parse("amqps://app:pw@h/v%2F1?session_timeout=9s&prefix=test&tls_ca=/ca.pem")
            .unwrap();
        let config = AmqpConfig::from_url(&url).unwrap();
        assert_eq!((config.port, config.vhost.as_str()), (5671, "v/1"));
        assert_eq!((config.prefix.as_str(), config.heartbeat()), ("test", 3));
        let several = AmqpConfig::from_url(&ConnectUrl::parse("amqp://a,b:7,[::1]").unwrap()).unwrap();
        let hosts: Vec<String> = several.hosts().iter().map(Host::to_string).collect();
        assert_eq!(hosts, ["a:5672", "b:7", "[::1]:5672"]);
        let plain = AmqpConfig::from_url(&ConnectUrl::parse("amqp://h").unwrap()).unwrap();
        assert_eq!((plain.port, plain.vhost.as_str()), (5672, "/"));
        for bad in ["redis://h", "amqp://h?names=odd", "amqp://h?tls_ca=/x"] {
            let error = AmqpConfig::from_url(&ConnectUrl::parse(bad).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad}");
        }
    }
}
