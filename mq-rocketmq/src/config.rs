//! How to reach the cluster, and how the driver behaves on it.

use std::{fmt, path::PathBuf, time::Duration};

use mq_api::{Error, ErrorKind, Result, url::ConnectUrl};

use crate::{
    client::NameserverSource,
    delays::Delays,
    remoting::{Compression, TlsOptions},
};

/// Says where the nameservers are and how the driver uses the cluster.
///
/// ```
/// use std::time::Duration;
/// use mq_rocketmq::RocketMqConfig;
///
/// let config = RocketMqConfig::new(["127.0.0.1:9876"])
///     .with_credentials("app", "s3cret")
///     .with_session_timeout(Duration::from_secs(6));
/// assert!(!format!("{config:?}").contains("s3cret"));
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct RocketMqConfig {
    /// Where the nameservers are.
    pub nameservers: NameserverSource,
    /// How TLS is set up, towards nameservers and brokers alike. Default: none.
    pub tls: Option<TlsOptions>,
    /// The access key of the cluster's access control. Default: none.
    pub access_key: Option<String>,
    /// The secret of the access key, never shown. Default: none.
    pub secret_key: Option<String>,
    /// What topics and groups are put under, in RocketMQ's own form `namespace%name`. Default: none.
    pub namespace: Option<String>,
    /// Whether a name that is legal on RocketMQ is used as it is, without escapes. Default: no.
    pub raw_names: bool,
    /// Whether a group is called by its name alone, as members in other languages call it. Default: no.
    pub raw_groups: bool,
    /// How long one call may take. Default: 10 s.
    pub call_timeout: Duration,
    /// How long a group member may be silent before others take its partitions over. Default: 6 s, at least 1 s.
    pub session_timeout: Duration,
    /// How long a message of a shared group is kept for a member. Default: 15 s, at least 1 s.
    pub message_lease: Duration,
    /// How often routes are asked for. Default: 5 s.
    pub route_refresh: Duration,
    /// How often brokers are told of this client's groups. Default: 20 s.
    pub heartbeat_interval: Duration,
    /// A file that keeps routes, for a start while every nameserver is down. Default: none.
    pub route_snapshot: Option<PathBuf>,
    /// The cluster to make topics in. Default: every one that the nameservers know.
    pub cluster_name: Option<String>,
    /// A part of client ids that operators read. Default: `mq`.
    pub instance: String,
    /// The header that travels as RocketMQ's tag. Default: none; tags of others are read as the header `TAGS`.
    pub tag_header: Option<String>,
    /// How delays are sent. Default: as times.
    pub delays: Delays,
    /// How payloads are compressed when they are sent. Default: not at all.
    pub compression: Option<Compression>,
    /// From how many bytes on a payload is compressed. Default: 4 KiB.
    pub compression_threshold: usize,
    /// The largest payload that is taken from a compressed message, in bytes. Default: 32 MiB.
    pub max_payload: usize,
}

const DEFAULT_PORT: u16 = 9876;
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// The level that clients in other languages compress with.
const ZLIB_LEVEL: u8 = 5;
/// What the servers' clients in other languages read addresses from.
const ADDRESSES: &str = "NAMESRV_ADDR";

impl RocketMqConfig {
    /// Takes the defaults for a list of nameservers, each `host:port`.
    #[must_use]
    pub fn new(nameservers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let list = nameservers.into_iter().map(Into::into).collect();
        Self::from_source(NameserverSource::List(list))
    }

    /// Takes the defaults for nameservers that are found in another way.
    #[must_use]
    pub fn from_source(nameservers: NameserverSource) -> Self {
        Self {
            nameservers,
            tls: None,
            access_key: None,
            secret_key: None,
            namespace: None,
            raw_names: false,
            raw_groups: false,
            call_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(6),
            message_lease: Duration::from_secs(15),
            route_refresh: Duration::from_secs(5),
            heartbeat_interval: Duration::from_secs(20),
            route_snapshot: None,
            cluster_name: None,
            instance: "mq".to_owned(),
            tag_header: None,
            delays: Delays::Timer,
            compression: None,
            compression_threshold: 4096,
            max_payload: 32 * 1024 * 1024,
        }
    }

    /// Sets who this client is.
    #[must_use]
    pub fn with_credentials(mut self, access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        self.access_key = Some(access_key.into());
        self.secret_key = Some(secret_key.into());
        self
    }

    /// Asks for TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets what topics and groups are put under.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Lets names that are legal on RocketMQ be used as they are.
    #[must_use]
    pub fn with_raw_names(mut self, raw: bool) -> Self {
        self.raw_names = raw;
        self
    }

    /// Calls groups by their names alone, so that members in other languages can share them.
    #[must_use]
    pub fn with_raw_groups(mut self, raw: bool) -> Self {
        self.raw_groups = raw;
        self
    }

    /// Sets how long one call may take.
    #[must_use]
    pub fn with_call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Sets how long a group member may be silent.
    #[must_use]
    pub fn with_session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// Sets how long a message of a shared group is kept for a member.
    #[must_use]
    pub fn with_message_lease(mut self, lease: Duration) -> Self {
        self.message_lease = lease;
        self
    }

    /// Sets the header that travels as RocketMQ's tag.
    #[must_use]
    pub fn with_tag_header(mut self, header: impl Into<String>) -> Self {
        self.tag_header = Some(header.into());
        self
    }

    /// Sets how delays are sent.
    #[must_use]
    pub fn with_delays(mut self, delays: Delays) -> Self {
        self.delays = delays;
        self
    }

    /// Compresses payloads from so many bytes on.
    #[must_use]
    pub fn with_compression(mut self, compression: Compression, threshold: usize) -> Self {
        self.compression = Some(compression);
        self.compression_threshold = threshold;
        self
    }

    /// Takes a URL apart: `rocketmq://access_key:secret@host:port,host2:port`, or `rocketmq+tls`, with the options
    /// that the crate's page lists. Without hosts, nameservers come from the option `resolver` or the variable
    /// `NAMESRV_ADDR`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the part and its rule.
    pub fn from_url(url: &ConnectUrl) -> Result<Self> {
        let tls = match url.scheme() {
            "rocketmq" => false,
            "rocketmq+tls" => true,
            other => {
                return rule(format!(
                    "scheme {other:?}: a rocketmq URL begins with `rocketmq` or `rocketmq+tls`"
                ));
            }
        };
        if !url.path().is_empty() {
            return rule(format!("path {:?}: a rocketmq URL has none", url.path()));
        }
        let mut options = url.options();
        let resolver = options.take("resolver");
        let nameservers = match (url.hosts(), resolver) {
            ([], Some(address)) => NameserverSource::Http(address),
            ([], None) => match std::env::var(ADDRESSES) {
                Ok(list) if !list.trim().is_empty() => NameserverSource::parse_list(&list),
                _ => {
                    return rule(format!(
                        "the rocketmq URL names no host, nor does `resolver` or the variable {ADDRESSES}"
                    ));
                }
            },
            (_, Some(_)) => {
                return rule("option `resolver`: the URL names hosts already".to_owned());
            }
            (hosts, None) => {
                NameserverSource::List(hosts.iter().map(|host| host.address(DEFAULT_PORT)).collect())
            }
        };
        let mut config = Self::from_source(nameservers);
        config.access_key = url.user().map(str::to_owned);
        config.secret_key = url.password().map(str::to_owned);
        let files = TlsOptions {
            ca_file: options.take("tls_ca").map(PathBuf::from),
            certificate_file: options.take("tls_cert").map(PathBuf::from),
            key_file: options.take("tls_key").map(PathBuf::from),
            server_name: options.take("tls_name"),
            insecure: options.take_bool("tls_insecure")?.unwrap_or(false),
        };
        if tls {
            config.tls = Some(files);
        } else if files.ca_file.is_some()
            || files.certificate_file.is_some()
            || files.key_file.is_some()
            || files.server_name.is_some()
            || files.insecure
        {
            return rule("options `tls_...` go with the scheme `rocketmq+tls`".to_owned());
        }
        config.namespace = options.take("namespace");
        if let Some(raw) = options.take_word("names", &[("escaped", false), ("raw", true)])? {
            config.raw_names = raw;
        }
        if let Some(raw) = options.take_word("group", &[("per_topic", false), ("raw", true)])? {
            config.raw_groups = raw;
        }
        for (name, slot) in [
            ("call_timeout", &mut config.call_timeout),
            ("session_timeout", &mut config.session_timeout),
            ("message_lease", &mut config.message_lease),
            ("route_refresh", &mut config.route_refresh),
            ("heartbeat_interval", &mut config.heartbeat_interval),
        ] {
            if let Some(time) = options.take_duration(name)? {
                *slot = time;
            }
        }
        config.route_snapshot = options.take("route_snapshot").map(PathBuf::from);
        config.cluster_name = options.take("cluster");
        if let Some(instance) = options.take("instance") {
            config.instance = instance;
        }
        config.tag_header = options.take("tag_header");
        let delays = [("timer", Delays::Timer), ("levels", Delays::Levels)];
        if let Some(delays) = options.take_word("delays", &delays)? {
            config.delays = delays;
        }
        let kinds = [
            ("none", None),
            ("zlib", Some(Compression::Zlib(ZLIB_LEVEL))),
            ("zstd", Some(Compression::Zstd)),
        ];
        if let Some(kind) = options.take_word("compression", &kinds)? {
            config.compression = kind;
        }
        if let Some(bytes) = options.take_size("compression_threshold")? {
            config.compression_threshold = bytes;
        }
        if let Some(bytes) = options.take_size("max_payload")? {
            config.max_payload = bytes;
        }
        options.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what can be checked without a server.
    pub(crate) fn validate(&self) -> Result<()> {
        if let NameserverSource::List(list) = &self.nameservers
            && list.is_empty()
        {
            return rule("no nameserver is named".to_owned());
        }
        let plain = |name: &str, least: usize, most: usize| {
            (least..=most).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if let Some(namespace) = &self.namespace
            && !plain(namespace, 1, 32)
        {
            return rule(format!(
                "namespace {namespace:?}: it has 1 to 32 letters, digits, `_` and `-`"
            ));
        }
        if !plain(&self.instance, 1, 64) {
            return rule(format!(
                "instance {:?}: it has 1 to 64 letters, digits, `_` and `-`",
                self.instance
            ));
        }
        if self.access_key.is_some() != self.secret_key.is_some() {
            return rule("access key and secret go together".to_owned());
        }
        for (name, value, least) in [
            ("call_timeout", self.call_timeout, Duration::from_millis(1)),
            ("session_timeout", self.session_timeout, MIN_SESSION_TIMEOUT),
            ("message_lease", self.message_lease, MIN_SESSION_TIMEOUT),
            ("route_refresh", self.route_refresh, Duration::from_millis(100)),
            (
                "heartbeat_interval",
                self.heartbeat_interval,
                Duration::from_secs(1),
            ),
        ] {
            if value < least || value > MAX_TIMEOUT {
                return rule(format!("{name} {value:?}: it is {least:?} to {MAX_TIMEOUT:?}"));
            }
        }
        Ok(())
    }
}

/// The shortest time after which others may take over.
pub(crate) const MIN_SESSION_TIMEOUT: Duration = Duration::from_secs(1);

fn rule<T>(what: String) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidConfig, what))
}

impl fmt::Debug for RocketMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocketMqConfig")
            .field("nameservers", &self.nameservers)
            .field("tls", &self.tls.is_some())
            .field("access_key", &self.access_key)
            .field("secret_key", &self.secret_key.as_ref().map(|_| "***"))
            .field("namespace", &self.namespace)
            .field("session_timeout", &self.session_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<RocketMqConfig> {
        RocketMqConfig::from_url(&ConnectUrl::parse(url).unwrap())
    }

    #[test]
    fn a_url_names_nameservers_and_options() {
        let config = read(
            "rocketmq+tls://app:s%40crit@a:1,b/?namespace=dev&names=raw&group=raw&session_timeout=3s&tls_insecure=true\
             &compression=zlib&compression_threshold=1KiB",
        )
        .unwrap();
        let hosts = vec!["a:1".to_owned(), "b:9876".to_owned()];
        assert_eq!(config.nameservers, NameserverSource::List(hosts));
        assert_eq!(config.secret_key.as_deref(), Some("s@crit"));
        assert!(config.raw_names && config.raw_groups && config.tls.is_some());
        assert_eq!(config.session_timeout, Duration::from_secs(3));
        assert_eq!(config.compression, Some(Compression::Zlib(5)));
        assert_eq!(config.compression_threshold, 1024);
        assert!(!format!("{config:?}").contains("crit"));
        let resolved = read("rocketmq:///?resolver=http://a/ns").unwrap();
        assert_eq!(resolved.nameservers, NameserverSource::Http("http://a/ns".into()));
    }

    #[test]
    fn a_bad_setting_is_named_with_its_rule() {
        for (url, words) in [
            ("kafka://a", "scheme"),
            ("rocketmq://a/path", "path"),
            ("rocketmq://a?colour=red", "colour"),
            ("rocketmq://a?names=odd", "names"),
            ("rocketmq://a?compression=lz4", "compression"),
            ("rocketmq://a?session_timeout=1ms", "session_timeout"),
            ("rocketmq://a?namespace=a%25b", "namespace"),
            ("rocketmq://a?tls_ca=x", "rocketmq+tls"),
            ("rocketmq://a?resolver=http://b", "resolver"),
            ("rocketmq://user@a", "secret"),
        ] {
            let error = read(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(error.context().contains(words), "{error}");
        }
    }
}
