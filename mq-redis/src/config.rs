//! How to reach the server, and how the driver behaves on it.

use std::{fmt, path::PathBuf, time::Duration};

use mq_api::{Error, ErrorKind, Result, url::ConnectUrl};

/// Says where the server is and how the driver uses it.
///
/// ```
/// use std::time::Duration;
/// use mq_redis::RedisConfig;
///
/// let config = RedisConfig::new("127.0.0.1", 6379)
///     .with_password("s3cret")
///     .with_session_timeout(Duration::from_secs(6));
/// assert!(!format!("{config:?}").contains("s3cret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisConfig {
    /// The server's name or address.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// Whether the connection is TLS. Default: no.
    pub tls: bool,
    /// A file of certificates in PEM to trust instead of the system's. Default: none.
    pub tls_ca: Option<PathBuf>,
    /// The ACL user. Default: the server's default user.
    pub username: Option<String>,
    /// The password, never shown. Default: none.
    pub password: Option<String>,
    /// The database that is selected. Default: 0.
    pub database: i64,
    /// Which protocol is spoken. Default: RESP2.
    pub protocol: RedisProtocol,
    /// What every key begins with, so that several environments can share a server. Default: `mq`.
    pub prefix: String,
    /// Whether a topic that this library did not create is the stream whose key is the topic's name. Default: no.
    pub raw_names: bool,
    /// How long connecting may take, the handshakes included. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long one command may take. Default: 10 s.
    pub request_timeout: Duration,
    /// How long a group member may be silent before others take its partitions over. Default: 6 s, at least 500 ms.
    pub session_timeout: Duration,
    /// The largest string that is taken from the server, in bytes. Default: 64 MiB.
    pub max_bulk: usize,
}

/// Names a version of the Redis protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisProtocol {
    /// What every server speaks.
    #[default]
    Resp2,
    /// What Redis 6 and newer speak too.
    Resp3,
}

pub(crate) const MIN_SESSION_TIMEOUT: Duration = Duration::from_millis(500);
const DEFAULT_PORT: u16 = 6379;
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

impl RedisConfig {
    /// Takes the defaults for a server.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            tls: false,
            tls_ca: None,
            username: None,
            password: None,
            database: 0,
            protocol: RedisProtocol::default(),
            prefix: "mq".to_owned(),
            raw_names: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(6),
            max_bulk: 64 * 1024 * 1024,
        }
    }

    /// Sets the password.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Sets the ACL user and its password.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.username = Some(user.into());
        self.password = Some(password.into());
        self
    }

    /// Asks for TLS, trusting the certificates of a PEM file or, without one, the usual authorities.
    #[must_use]
    pub fn with_tls(mut self, ca: Option<PathBuf>) -> Self {
        self.tls = true;
        self.tls_ca = ca;
        self
    }

    /// Sets the database.
    #[must_use]
    pub fn with_database(mut self, database: i64) -> Self {
        self.database = database;
        self
    }

    /// Sets the protocol.
    #[must_use]
    pub fn with_protocol(mut self, protocol: RedisProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets what every key begins with.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Lets streams that others made be opened by their keys.
    #[must_use]
    pub fn with_raw_names(mut self, raw: bool) -> Self {
        self.raw_names = raw;
        self
    }

    /// Sets how long connecting may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long one command may take.
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

    /// Takes a URL apart: `redis://user:password@host:port/database`, or `rediss` for TLS, and the options `protocol`
    /// (2 or 3), `prefix`, `names` (`raw`), `connect_timeout`, `command_timeout`, `session_timeout`, `tls_ca` and
    /// `max_bulk`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the part and its rule.
    pub fn from_url(url: &ConnectUrl) -> Result<Self> {
        let rule = |what: String| Error::new(ErrorKind::InvalidConfig, what);
        let host = match url.require_hosts()? {
            [host] => host,
            _ => {
                return Err(rule(
                    "the redis URL names several hosts; one server is used".to_owned(),
                ));
            }
        };
        let mut config = Self::new(&host.name, host.port.unwrap_or(DEFAULT_PORT));
        config.tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            other => {
                return Err(rule(format!(
                    "scheme {other:?}: a redis URL begins with `redis` or `rediss`"
                )));
            }
        };
        config.username = url.user().map(str::to_owned);
        config.password = url.password().map(str::to_owned);
        if !url.path().is_empty() {
            config.database = url
                .path()
                .parse()
                .map_err(|_| rule(format!("path {:?}: it is the number of a database", url.path())))?;
        }
        let mut options = url.options();
        config.protocol = match options.take("protocol").as_deref() {
            None | Some("2") => RedisProtocol::Resp2,
            Some("3") => RedisProtocol::Resp3,
            Some(other) => return Err(rule(format!("option `protocol` {other:?}: it is 2 or 3"))),
        };
        config.raw_names = match options.take("names").as_deref() {
            None | Some("escaped") => false,
            Some("raw") => true,
            Some(other) => {
                return Err(rule(format!(
                    "option `names` {other:?}: it is `escaped` or `raw`"
                )));
            }
        };
        if let Some(prefix) = options.take("prefix") {
            config.prefix = prefix;
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
        if let Some(bytes) = options.take_size("max_bulk")? {
            config.max_bulk = bytes;
        }
        options.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what can be checked without a server.
    pub(crate) fn validate(&self) -> Result<()> {
        let rule = |what: String| Err(Error::new(ErrorKind::InvalidConfig, what));
        if self.host.is_empty() {
            return rule("the host is empty".to_owned());
        }
        if self.port == 0 {
            return rule("port 0 cannot be connected to".to_owned());
        }
        if self.prefix.is_empty() || self.prefix.len() > 128 {
            return rule(format!("prefix {:?}: it has 1 to 128 characters", self.prefix));
        }
        if self.database < 0 {
            return rule(format!("database {}: it is 0 or above", self.database));
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
            return rule("this build of mq-redis has no TLS; turn its feature `tls` on".to_owned());
        }
        Ok(())
    }

    /// Names the server for errors and logs, without credentials.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("address", &self.address())
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("database", &self.database)
            .field("protocol", &self.protocol)
            .field("prefix", &self.prefix)
            .field("session_timeout", &self.session_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_setting_is_named_with_its_rule() {
        let good = RedisConfig::new("localhost", 6379);
        assert!(good.validate().is_ok());
        for (bad, words) in [
            (RedisConfig::new("", 6379), "host"),
            (RedisConfig::new("localhost", 0), "port 0"),
            (good.clone().with_prefix(""), "prefix"),
            (good.clone().with_database(-1), "database -1"),
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
}
