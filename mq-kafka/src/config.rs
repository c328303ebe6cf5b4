//! How to reach the brokers, and how the driver behaves on them.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use mq_api::{Error, ErrorKind, Result, driver::Prefetch, url::ConnectUrl};
use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use crate::client;

/// Says where the brokers are and how the driver uses them.
///
/// ```
/// use std::time::Duration;
/// use mq_kafka::{KafkaConfig, SaslMechanism};
///
/// let config = KafkaConfig::new(["a.example:9092", "b.example:9092"])
///     .with_login("app", "s3cret", SaslMechanism::ScramSha256)
///     .with_session_timeout(Duration::from_secs(10));
/// assert!(!format!("{config:?}").contains("s3cret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// Brokers to begin with, `host:port`; the cluster tells of the others.
    pub brokers: Vec<String>,
    /// Whether connections are TLS. Default: no.
    pub tls: bool,
    /// A file of certificates in PEM to trust instead of the system's. Default: none.
    pub tls_ca: Option<PathBuf>,
    /// The user to log in as. Default: no login.
    pub username: Option<String>,
    /// The password, never shown. Default: none.
    pub password: Option<String>,
    /// How the login is done. Default: SCRAM-SHA-256.
    pub mechanism: SaslMechanism,
    /// How long connecting may take. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long one request may take. Default: 10 s.
    pub request_timeout: Duration,
    /// How long a group member may be silent before others take its partitions over. Default: 6 s, at least 1 s; the
    /// broker has bounds of its own.
    pub session_timeout: Duration,
    /// How the members of a group agree. Default: classic.
    pub group_protocol: GroupProtocol,
    /// Settings of librdkafka by their names, less those that the driver's promises rest on.
    pub properties: BTreeMap<String, String>,
    /// How long a member's thread waits for its client before it looks around and renews leases.
    pub(crate) look: Duration,
}

/// Names how a client logs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaslMechanism {
    /// The password as it is: only over TLS is it hidden from others.
    Plain,
    /// A proof of the password, by SHA-256.
    #[default]
    ScramSha256,
    /// A proof of the password, by SHA-512.
    ScramSha512,
}

/// Names how the members of a group agree on who reads what. All members of a group must have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// The members agree among themselves, by the cooperative assignment.
    #[default]
    Classic,
    /// The broker decides (KIP-848, Kafka 4.0 and later). How long a member may be silent and how often it tells that it
    /// lives are then the broker's settings; `session_timeout` must not be longer than the broker's.
    Consumer,
}

impl GroupProtocol {
    const NAMES: [(&'static str, Self); 2] = [("classic", Self::Classic), ("consumer", Self::Consumer)];
}

impl SaslMechanism {
    const NAMES: [(&'static str, Self); 3] = [
        ("PLAIN", Self::Plain),
        ("SCRAM-SHA-256", Self::ScramSha256),
        ("SCRAM-SHA-512", Self::ScramSha512),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

pub(crate) const MIN_SESSION_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_PORT: u16 = 9092;
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// How often clients look for new partitions and new leaders by themselves.
const METADATA_REFRESH_MS: u32 = 2000;
/// The largest message that leaves this process, key and headers included.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// The settings that the driver makes itself: by an option of its own, or because a promise rests on them.
const OWN: &[(&str, &str)] = &[
    ("bootstrap.servers", "the hosts of the URL say it"),
    ("metadata.broker.list", "the hosts of the URL say it"),
    ("security.protocol", "the scheme and the user of the URL say it"),
    ("sasl.username", "the user of the URL says it"),
    ("sasl.password", "the password of the URL says it"),
    ("sasl.mechanism", "option `mechanism` says it"),
    ("sasl.mechanisms", "option `mechanism` says it"),
    ("ssl.ca.location", "option `ca` says it"),
    ("session.timeout.ms", "option `session_timeout` says it"),
    ("heartbeat.interval.ms", "it follows from `session_timeout`"),
    ("acks", "`Ok` means stored on every replica in sync"),
    (
        "request.required.acks",
        "`Ok` means stored on every replica in sync",
    ),
    (
        "enable.idempotence",
        "order and the absence of doubles rest on it",
    ),
    (
        "enable.gapless.guarantee",
        "one failed message would end the producer",
    ),
    ("max.in.flight", "order rests on it"),
    ("max.in.flight.requests.per.connection", "order rests on it"),
    ("retries", "outcomes rest on it"),
    ("message.send.max.retries", "outcomes rest on it"),
    ("transactional.id", "transactions are not part of the contract"),
    ("delivery.report.only.error", "receipts rest on it"),
    ("produce.offset.report", "receipts rest on it"),
    ("partitioner", "the portable layer chooses partitions"),
    ("partitioner_cb", "the portable layer chooses partitions"),
    ("message.max.bytes", "the limits of the producer say it"),
    ("allow.auto.create.topics", "an unknown topic is an error"),
    ("group.id", "the name of the group is it"),
    ("group.protocol", "option `group_protocol` says it"),
    (
        "group.remote.assignor",
        "every member of a group must have the same one",
    ),
    (
        "group.instance.id",
        "a member that leaves gives its partitions back at once",
    ),
    (
        "partition.assignment.strategy",
        "every member of a group must have the same one",
    ),
    ("enable.auto.commit", "only what is acknowledged is committed"),
    ("auto.commit.enable", "only what is acknowledged is committed"),
    (
        "auto.commit.interval.ms",
        "only what is acknowledged is committed",
    ),
    (
        "enable.auto.offset.store",
        "only what is acknowledged is committed",
    ),
    ("offset.store.method", "only what is acknowledged is committed"),
    ("auto.offset.reset", "the start of a group says it"),
    ("isolation.level", "messages of aborted transactions are not seen"),
    ("enable.partition.eof", "the driver sets it where it needs it"),
    ("max.poll.interval.ms", "the driver polls by itself"),
    ("plugin.library.paths", "a URL must not load code"),
    ("log.queue", "the driver reads the log"),
];

impl KafkaConfig {
    /// Takes the defaults for brokers named `host:port`.
    #[must_use]
    pub fn new<B: Into<String>>(brokers: impl IntoIterator<Item = B>) -> Self {
        Self {
            brokers: brokers.into_iter().map(Into::into).collect(),
            tls: false,
            tls_ca: None,
            username: None,
            password: None,
            mechanism: SaslMechanism::default(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(6),
            group_protocol: GroupProtocol::default(),
            properties: BTreeMap::new(),
            look: client::LOOK,
        }
    }

    /// Asks for TLS, trusting the certificates of a PEM file or, without one, the system's.
    #[must_use]
    pub fn with_tls(mut self, ca: Option<PathBuf>) -> Self {
        self.tls = true;
        self.tls_ca = ca;
        self
    }

    /// Sets the login.
    #[must_use]
    pub fn with_login(
        mut self,
        user: impl Into<String>,
        password: impl Into<String>,
        mechanism: SaslMechanism,
    ) -> Self {
        self.username = Some(user.into());
        self.password = Some(password.into());
        self.mechanism = mechanism;
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

    /// Sets how the members of a group agree.
    #[must_use]
    pub fn with_group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.group_protocol = protocol;
        self
    }

    /// Sets one of librdkafka's own settings.
    #[must_use]
    pub fn with_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// Sets how long a member's thread waits for its client before it looks around; tests show with it that nothing else
    /// rests on that.
    #[doc(hidden)]
    #[must_use]
    pub fn with_look(mut self, look: Duration) -> Self {
        self.look = look;
        self
    }

    /// Takes a URL apart: `kafka://user:password@host1:port,host2:port`, or `kafka+tls` for TLS, and the options
    /// `mechanism` (`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`), `ca`, `connect_timeout`, `command_timeout`,
    /// `session_timeout`, `group_protocol` (`classic`, `consumer`), and `librdkafka.x` for each setting `x` of the library.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the part and its rule.
    pub fn from_url(url: &ConnectUrl) -> Result<Self> {
        let hosts = url.require_hosts()?.iter().map(|host| host.address(DEFAULT_PORT));
        let mut config = Self::new(hosts);
        config.tls = match url.scheme() {
            "kafka" => false,
            "kafka+tls" => true,
            other => {
                return Err(rule(format!(
                    "scheme {other:?}: a kafka URL begins with `kafka` or `kafka+tls`"
                )));
            }
        };
        config.username = url.user().map(str::to_owned);
        config.password = url.password().map(str::to_owned);
        if !url.path().is_empty() {
            return Err(rule(format!("path {:?}: a kafka URL has none", url.path())));
        }
        let mut options = url.options();
        if let Some(mechanism) = options.take_word("mechanism", &SaslMechanism::NAMES)? {
            if config.username.is_none() {
                return Err(rule(
                    "option `mechanism`: the URL names no user to log in".to_owned(),
                ));
            }
            config.mechanism = mechanism;
        }
        if let Some(ca) = options.take("ca") {
            if !config.tls {
                return Err(rule(
                    "option `ca`: only a `kafka+tls` URL has certificates".to_owned(),
                ));
            }
            config.tls_ca = Some(PathBuf::from(ca));
        }
        if let Some(timeout) = options.take_duration("connect_timeout")? {
            config.connect_timeout = timeout;
        }
        if let Some(timeout) = options.take_duration("command_timeout")? {
            config.request_timeout = timeout;
        }
        if let Some(timeout) = options.take_duration("session_timeout")? {
            config.session_timeout = timeout;
        }
        if let Some(protocol) = options.take_word("group_protocol", &GroupProtocol::NAMES)? {
            config.group_protocol = protocol;
        }
        config.properties = options.take_prefixed("librdkafka.").into_iter().collect();
        options.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what can be checked without a broker.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.brokers.is_empty() || self.brokers.iter().any(String::is_empty) {
            return Err(rule("a broker has no name".to_owned()));
        }
        if self.username.is_some() != self.password.is_some() {
            return Err(rule("a login has a user and a password".to_owned()));
        }
        for (name, value, least) in [
            ("connect_timeout", self.connect_timeout, Duration::from_millis(1)),
            ("request_timeout", self.request_timeout, Duration::from_millis(1)),
            ("session_timeout", self.session_timeout, MIN_SESSION_TIMEOUT),
        ] {
            if value < least || value > MAX_TIMEOUT {
                return Err(rule(format!(
                    "{name} {value:?}: it is {least:?} to {MAX_TIMEOUT:?}"
                )));
            }
        }
        check_properties(self.properties.keys().map(String::as_str))
    }

    /// Names the brokers for errors and logs, without credentials.
    pub(crate) fn address(&self) -> String {
        self.brokers.join(",")
    }

    /// Returns what every client of the library gets.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set_log_level(RDKafkaLogLevel::Warning);
        client
            .set("bootstrap.servers", self.address())
            .set("client.id", "mq-kafka")
            .set("allow.auto.create.topics", "false")
            .set("enable.metrics.push", "false")
            .set("log.connection.close", "false")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set(
                "topic.metadata.refresh.interval.ms",
                METADATA_REFRESH_MS.to_string(),
            )
            .set("topic.metadata.propagation.max.ms", "1000")
            .set(
                "socket.timeout.ms",
                millis(self.request_timeout.max(Duration::from_secs(2))),
            )
            .set("isolation.level", "read_committed");
        let protocol = match (self.tls, self.username.is_some()) {
            (false, false) => "PLAINTEXT",
            (true, false) => "SSL",
            (false, true) => "SASL_PLAINTEXT",
            (true, true) => "SASL_SSL",
        };
        client.set("security.protocol", protocol);
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            client
                .set("sasl.mechanism", self.mechanism.name())
                .set("sasl.username", user)
                .set("sasl.password", password);
        }
        if let Some(ca) = &self.tls_ca {
            client.set("ssl.ca.location", ca.to_string_lossy());
        }
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        client
    }

    /// Returns what a producer gets.
    pub(crate) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        set_unless_given(&mut client, &self.properties, "linger.ms", "0");
        set_unless_given(&mut client, &self.properties, "message.timeout.ms", "60000");
        // The portable layer bounds what is under way; these must not be in its way.
        set_unless_given(
            &mut client,
            &self.properties,
            "queue.buffering.max.messages",
            "10000000",
        );
        // Of several small messages; one large one is a batch of its own.
        set_unless_given(&mut client, &self.properties, "batch.size", "1000000");
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.max.bytes", MAX_MESSAGE.to_string());
        client
    }

    /// Returns what reads partitions, in a group or alone.
    pub(crate) fn reading(&self, group: &str, prefetch: Prefetch) -> ClientConfig {
        let mut client = self.client();
        // What is here while the library rests because enough is here must last: it rests for the whole of its back-off,
        // whoever takes messages meanwhile. With 4000 of 100 bytes a fast reader waited half of its time.
        let messages = prefetch.messages.saturating_mul(20).clamp(1000, 100_000);
        let kibibytes = (prefetch.bytes / 1024).clamp(64, 1024 * 1024);
        for (name, value) in [
            ("fetch.wait.max.ms", "100".to_owned()),
            // A reader that falls behind would stop for a second otherwise.
            ("fetch.queue.backoff.ms", "5".to_owned()),
            ("fetch.error.backoff.ms", "100".to_owned()),
            ("queued.min.messages", messages.to_string()),
            ("queued.max.messages.kbytes", kibibytes.to_string()),
        ] {
            set_unless_given(&mut client, &self.properties, name, &value);
        }
        client
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error");
        client
    }

    /// Returns what a member of a group gets.
    pub(crate) fn member(&self, group: &str, prefetch: Prefetch, session: Duration) -> ClientConfig {
        let mut client = self.reading(group, prefetch);
        match self.group_protocol {
            GroupProtocol::Classic => client
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", millis(session))
                .set("heartbeat.interval.ms", millis(heartbeat(session))),
            // The rest of it is the broker's to say.
            GroupProtocol::Consumer => client.set("group.protocol", "consumer"),
        };
        client
            // In batches the library counts the mark of the end as a message, and passes over the next one after a
            // rebalance.
            .set("enable.partition.eof", "false")
            .set(
                "max.poll.interval.ms",
                millis(session.max(Duration::from_secs(300))),
            );
        client
    }
}

/// Returns how often a member tells that it lives.
pub(crate) fn heartbeat(session: Duration) -> Duration {
    (session / 10).clamp(Duration::from_millis(100), Duration::from_secs(3))
}

/// Refuses settings of the library that the driver makes itself.
pub(crate) fn check_properties<'a>(mut names: impl Iterator<Item = &'a str>) -> Result<()> {
    let refused = names.find_map(|name| OWN.iter().find(|(own, _)| *own == name));
    match refused {
        Some((name, why)) => Err(rule(format!(
            "setting `{name}` of librdkafka cannot be changed: {why}"
        ))),
        None => Ok(()),
    }
}

fn set_unless_given(client: &mut ClientConfig, given: &BTreeMap<String, String>, name: &str, value: &str) {
    if !given.contains_key(name) {
        client.set(name, value);
    }
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}

fn rule(what: String) -> Error {
    Error::new(ErrorKind::InvalidConfig, what)
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of settings may be secrets: names only.
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("mechanism", &self.mechanism)
            .field("session_timeout", &self.session_timeout)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_url(url: &str) -> Result<KafkaConfig> {
        KafkaConfig::from_url(&ConnectUrl::parse(url).unwrap())
    }

    #[test]
    fn a_url_names_brokers_login_and_settings() {
        let config = from_url(
            "kafka+tls://app:s%40crit@a,b:1/?mechanism=PLAIN&ca=/tmp/ca.pem&session_timeout=8s&librdkafka.linger.ms=5",
        )
        .unwrap();
        assert_eq!(config.brokers, ["a:9092", "b:1"]);
        assert_eq!(config.mechanism, SaslMechanism::Plain);
        let client = config.producer();
        for (name, value) in [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.password", "s@crit"),
            ("ssl.ca.location", "/tmp/ca.pem"),
            ("linger.ms", "5"),
            ("acks", "all"),
        ] {
            assert_eq!(client.get(name), Some(value), "{name}");
        }
        assert!(!format!("{config:?}").contains("crit"));
        assert!(client.create_native_config().is_ok());
    }

    #[test]
    fn a_bad_url_is_refused_by_name() {
        for (url, words) in [
            ("kafka://", "no host"),
            ("kafka://a/path", "path"),
            ("redis://a", "scheme"),
            ("kafka://a?mechanism=PLAIN", "mechanism"),
            ("kafka://u:hunter2@a?mechanism=GSSAPI", "mechanism"),
            ("kafka://u:hunter2@a?mechanism=OAUTHBEARER", "mechanism"),
            ("kafka://a?librdkafka.sasl.mechanisms=GSSAPI", "sasl.mechanisms"),
            ("kafka://u@a", "password"),
            ("kafka://a?ca=x", "ca"),
            ("kafka://a?session_timeout=1ms", "session_timeout"),
            ("kafka://a?connect_timeout=2h", "connect_timeout"),
            ("kafka://a?colour=red", "colour"),
            ("kafka://a?group_protocol=gossip", "group_protocol"),
            ("kafka://a?librdkafka.acks=0", "acks"),
            ("kafka://a?librdkafka.enable.idempotence=false", "idempotence"),
            (
                "kafka://a?librdkafka.isolation.level=read_uncommitted",
                "isolation",
            ),
            ("kafka://a?librdkafka.plugin.library.paths=x.so", "plugin"),
        ] {
            let error = from_url(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}: {error}");
            assert!(error.context().contains(words), "{url}: {error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn every_setting_is_one_that_the_library_knows() {
        let config = KafkaConfig::new(["a:1"]);
        let prefetch = Prefetch {
            messages: 1000,
            bytes: 8 << 20,
        };
        for client in [
            config.client(),
            config.producer(),
            config.reading("g", prefetch),
            config.member("g", prefetch, Duration::from_secs(6)),
            config
                .clone()
                .with_group_protocol(GroupProtocol::Consumer)
                .member("g", prefetch, Duration::from_secs(6)),
        ] {
            client.create_native_config().unwrap();
        }
    }
}
