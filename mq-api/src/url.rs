//! Connection URLs, as every driver reads them.

mod options;

use std::fmt;

use percent_encoding::percent_decode_str;

pub use self::options::UrlOptions;
use crate::{ClientOptions, Error, ErrorKind, Result};

/// Holds the parts of `scheme://user:password@host1:1,host2:2/path?option=value`.
///
/// Parts are percent-decoded. The password is never shown: not by `Debug`, not by `Display`, not in an error.
///
/// ```
/// use mq_api::url::ConnectUrl;
///
/// # fn main() -> mq_api::Result<()> {
/// let url = ConnectUrl::parse("rediss://app:s%40crit@a:1,b:2/0?prefix=test&pool=4")?;
/// assert_eq!(url.scheme(), "rediss");
/// assert_eq!(url.password(), Some("s@crit"));
/// assert_eq!(url.hosts()[1].address(6379), "b:2");
/// assert_eq!(url.path(), "0");
/// let mut options = url.options();
/// assert_eq!(options.take("prefix").as_deref(), Some("test"));
/// assert_eq!(options.take_number::<u32>("pool")?, Some(4));
/// options.finish()?;
/// assert!(!format!("{url} {url:?}").contains("crit"));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ConnectUrl {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<Host>,
    path: String,
    options: Vec<(String, String)>,
}

/// Names a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Host {
    /// The name or address; an IPv6 address without its brackets.
    pub name: String,
    /// The port, where the URL names one.
    pub port: Option<u16>,
}

impl ConnectUrl {
    /// Takes a URL apart.
    ///
    /// ```
    /// use mq_api::{ErrorKind, url::ConnectUrl};
    ///
    /// # fn main() -> mq_api::Result<()> {
    /// let url = ConnectUrl::parse("redis://app@a:1,b/0")?;
    /// assert_eq!((url.user(), url.hosts().len()), (Some("app"), 2));
    /// let error = ConnectUrl::parse("redis://a:0").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the part and the rule that it breaks.
    pub fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| invalid("the URL has no `://` after its scheme"))?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(legal) {
            return Err(invalid(
                "the scheme of the URL is not a letter followed by letters, digits, `+`, `-` or `.`",
            ));
        }
        if rest.contains('#') {
            return Err(invalid(
                "the URL has a `#`; written as `%23` it may be part of a name",
            ));
        }
        if rest.chars().any(|c| c.is_control() || c == ' ') {
            return Err(invalid(
                "the URL has a space or control character; write it in percent form",
            ));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => (None, None),
            Some((user, password)) => (
                Some(decode("user", user)?).filter(|user| !user.is_empty()),
                Some(decode("password", password)?).filter(|password| !password.is_empty()),
            ),
        };
        // A login with an unescaped `/` would make a host of its first half: such a host is not shown.
        let secret = login.is_some() || url.contains('@');
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            hosts: parse_hosts(hosts, secret)?,
            path: decode("path", path.strip_suffix('/').unwrap_or(path))?,
            options: parse_options(query)?,
        })
    }

    /// Returns the scheme in lower case.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// assert_eq!(ConnectUrl::parse("AMQPS://a")?.scheme(), "amqps");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns the user.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// assert_eq!(ConnectUrl::parse("redis://us%3Aer:x@a")?.user(), Some("us:er"));
    /// assert_eq!(ConnectUrl::parse("redis://:x@a")?.user(), None);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Returns the password; it must not reach a log or an error.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let url = ConnectUrl::parse("redis://app:s%40crit@a")?;
    /// assert_eq!(url.password(), Some("s@crit"));
    /// assert_eq!(url.to_string(), "redis://app:***@a");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Returns the servers in order; none for a backend that lives in this process.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let url = ConnectUrl::parse("redis://a:1,[::1]")?;
    /// assert_eq!((url.hosts()[0].name.as_str(), url.hosts()[0].port), ("a", Some(1)));
    /// assert_eq!((url.hosts()[1].name.as_str(), url.hosts()[1].port), ("::1", None));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Returns the servers, for a backend that needs at least one.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// assert_eq!(ConnectUrl::parse("redis://a")?.require_hosts()?.len(), 1);
    /// assert!(ConnectUrl::parse("redis://")?.require_hosts().is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] where there is none.
    pub fn require_hosts(&self) -> Result<&[Host]> {
        if self.hosts.is_empty() {
            return Err(invalid(format!("the {} URL names no host", self.scheme)));
        }
        Ok(&self.hosts)
    }

    /// Returns what follows the servers, without the slash before it; maybe empty.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// assert_eq!(ConnectUrl::parse("amqp://a/v%2Fhost")?.path(), "v/host");
    /// assert_eq!(ConnectUrl::parse("amqp://a/")?.path(), "");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the options for the driver to take out one by one: all but those that every client has, see
    /// [`client_options`](Self::client_options).
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?prefix=test&request_timeout=5s")?.options();
    /// assert_eq!(options.take("prefix").as_deref(), Some("test"));
    /// options.finish()?; // `request_timeout` is not among them
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn options(&self) -> UrlOptions {
        let own = |(name, _): &&(String, String)| !CLIENT_OPTIONS.contains(&name.as_str());
        UrlOptions::new(self.options.iter().filter(own).cloned().collect())
    }

    /// Returns the options that every client has: `request_timeout`, `close_timeout` and `memory_budget`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let url = ConnectUrl::parse("redis://a?request_timeout=5s")?;
    /// assert_eq!(url.client_options()?.request_timeout, Duration::from_secs(5));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the option and its rule.
    pub fn client_options(&self) -> Result<ClientOptions> {
        self.apply_to(ClientOptions::default())
    }

    /// Sets in `options` what the URL says, and leaves the rest.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::{ClientOptions, url::ConnectUrl};
    /// # fn main() -> mq_api::Result<()> {
    /// let options = ClientOptions::default().with_close_timeout(Duration::from_secs(1));
    /// let options = ConnectUrl::parse("redis://a?request_timeout=5s")?.apply_to(options)?;
    /// assert_eq!(options.request_timeout, Duration::from_secs(5));
    /// assert_eq!(options.close_timeout, Duration::from_secs(1));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the option and its rule.
    pub fn apply_to(&self, mut options: ClientOptions) -> Result<ClientOptions> {
        let mut given = UrlOptions::new(self.options.clone());
        if let Some(timeout) = given.take_duration("request_timeout")? {
            options.request_timeout = timeout;
        }
        if let Some(timeout) = given.take_duration("close_timeout")? {
            options.close_timeout = timeout;
        }
        if let Some(bytes) = given.take_size("memory_budget")? {
            options.memory_budget = bytes;
        }
        options.validate()?;
        Ok(options)
    }
}

/// The options that the portable layer takes; drivers do not see them.
const CLIENT_OPTIONS: [&str; 3] = ["request_timeout", "close_timeout", "memory_budget"];

impl Host {
    /// Returns `name:port`, with brackets around an IPv6 address and with a default for the port.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let url = ConnectUrl::parse("redis://a,[::1]:7")?;
    /// assert_eq!(url.hosts()[0].address(6379), "a:6379");
    /// assert_eq!(url.hosts()[1].address(6379), "[::1]:7");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn address(&self, default_port: u16) -> String {
        let port = self.port.unwrap_or(default_port);
        if self.name.contains(':') {
            format!("[{}]:{port}", self.name)
        } else {
            format!("{}:{port}", self.name)
        }
    }
}

impl std::str::FromStr for ConnectUrl {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        Self::parse(url)
    }
}

impl fmt::Display for ConnectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if let Some(user) = &self.user {
            f.write_str(user)?;
        }
        if self.password.is_some() {
            f.write_str(":***")?;
        }
        if self.user.is_some() || self.password.is_some() {
            f.write_str("@")?;
        }
        for (at, host) in self.hosts.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let name = &host.name;
            match (name.contains(':'), host.port) {
                (true, Some(port)) => write!(f, "{comma}[{name}]:{port}")?,
                (true, None) => write!(f, "{comma}[{name}]")?,
                (false, Some(port)) => write!(f, "{comma}{name}:{port}")?,
                (false, None) => write!(f, "{comma}{name}")?,
            }
        }
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ConnectUrl {
    // Option values may be secrets: names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<&String> = self.options.iter().map(|(name, _)| name).collect();
        f.debug_struct("ConnectUrl")
            .field("url", &format_args!("{self}"))
            .field("options", &options)
            .finish()
    }
}

/// Makes the error of a URL.
fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, context).with_operation("connect")
}

/// Decodes a part strictly; the part's text may be a secret and is not shown.
fn decode(part: &str, text: &str) -> Result<String> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|b| *b == b'%') {
        let digits = rest.get(at + 1..at + 3).unwrap_or_default();
        if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(invalid(format!(
                "the {part} of the URL has a `%` that is not followed by two hexadecimal digits"
            )));
        }
        rest = rest.get(at + 3..).unwrap_or_default();
    }
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded.into_owned()),
        Ok(_) => Err(invalid(format!("the {part} of the URL has a NUL character"))),
        Err(_) => Err(invalid(format!("the {part} of the URL is not UTF-8"))),
    }
}

fn parse_hosts(hosts: &str, secret: bool) -> Result<Vec<Host>> {
    if hosts.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |host: &str, rule: &str| {
        let shown = if secret {
            "a host of the URL".to_owned()
        } else {
            format!("host {host:?} of the URL")
        };
        invalid(format!("{shown} {rule}"))
    };
    hosts
        .split(',')
        .map(|host| {
            let (name, port) = match host.strip_prefix('[') {
                Some(rest) => {
                    let (name, port) = rest
                        .split_once(']')
                        .ok_or_else(|| wrong(host, "has no `]` after its IPv6 address"))?;
                    match port.strip_prefix(':') {
                        Some(port) => (name, Some(port)),
                        None if port.is_empty() => (name, None),
                        None => return Err(wrong(host, "has text after its `]`")),
                    }
                }
                None => match host.split_once(':') {
                    Some((name, port)) => (name, Some(port)),
                    None => (host, None),
                },
            };
            let name = decode("host", name)?;
            if name.is_empty() {
                return Err(wrong(host, "is empty"));
            }
            let port = match port {
                None => None,
                Some(port) => match port.parse() {
                    Ok(port) if port > 0 => Some(port),
                    _ => return Err(wrong(host, "has a port that is not a number from 1 to 65535")),
                },
            };
            Ok(Host { name, port })
        })
        .collect()
}

fn parse_options(query: &str) -> Result<Vec<(String, String)>> {
    let mut options: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            invalid("an option of the URL has no `=`; options are written `name=value`, joined by `&`")
        })?;
        let name = decode("option name", name)?;
        if name.is_empty() {
            return Err(invalid("an option of the URL has no name"));
        }
        if options.iter().any(|(other, _)| *other == name) {
            return Err(invalid(format!("option `{name}` of the URL is given twice")));
        }
        let value = decode(&format!("value of option `{name}`"), value)?;
        options.push((name, value));
    }
    Ok(options)
}

#[cfg(test)]
mod tests;
