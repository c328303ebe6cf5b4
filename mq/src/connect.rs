//! Opens a client from a URL.

use std::time::Duration;

use mq_api::{ClientOptions, Error, ErrorKind, Mq, Result, url::ConnectUrl};

/// Schemes, each with the cargo feature that compiles its driver in. A scheme that is not here has no driver.
const SCHEMES: &[(&str, &str)] = &[
    ("amqp", "amqp"),
    ("amqps", "amqp"),
    ("memory", "memory"),
    ("kafka", "kafka"),
    ("kafka+tls", "kafka"),
    ("redis", "redis"),
    ("rediss", "redis"),
    ("rocketmq", "rocketmq"),
    ("rocketmq+tls", "rocketmq"),
];

/// Opens a client of the backend that a URL names, with the default options.
///
/// A URL is `scheme://user:password@host1:1,host2:2/path?option=value`; parts that a backend does not have are refused.
/// Every backend takes the options `request_timeout`, `close_timeout` and `memory_budget`, see
/// [`ClientOptions`](crate::ClientOptions); a time is written `250ms`, `5s`, `2m` or `1h`, a size `4096` or `16MiB`.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main]
/// # async fn main() -> mq::Result<()> {
/// let mq = mq::connect("memory://shop?request_timeout=5s").await?;
/// assert_eq!(mq.capabilities().backend, "memory");
/// # mq.close().await
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a URL that is malformed, a scheme that is unknown or
/// not compiled in, and an option that is unknown, malformed or out of its range. From the backend
/// [`Connection`](crate::ErrorKind::Connection), [`Authentication`](crate::ErrorKind::Authentication),
/// [`PermissionDenied`](crate::ErrorKind::PermissionDenied), [`Tls`](crate::ErrorKind::Tls) and
/// [`Timeout`](crate::ErrorKind::Timeout). No error shows the password.
///
/// # Cancel safety
/// Dropping the future opens nothing.
pub async fn connect(url: impl AsRef<str>) -> Result<Mq> {
    connect_with(url, ConnectOptions::default()).await
}

/// Opens a client of the backend that a URL names.
///
/// Where the URL sets an option that `options` sets too, the URL counts: it is what an operator changes without a new
/// build.
///
/// ```
/// use std::time::Duration;
/// use mq::{ClientOptions, ConnectOptions};
///
/// # #[cfg(feature = "memory")]
/// # #[tokio::main]
/// # async fn main() -> mq::Result<()> {
/// let client = ClientOptions::default().with_memory_budget(64 * 1024 * 1024);
/// let options = ConnectOptions::default().with_client(client).with_connect_timeout(Duration::from_secs(5));
/// let mq = mq::connect_with("memory://", options).await?;
/// # mq.close().await
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
///
/// # Errors
/// As [`connect`].
///
/// # Cancel safety
/// Dropping the future opens nothing.
pub async fn connect_with(url: impl AsRef<str>, options: ConnectOptions) -> Result<Mq> {
    open(url.as_ref(), options)
        .await
        .map_err(|error| error.with_operation("connect"))
}

/// Holds what [`connect_with`] goes by, beside the URL.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// The options of the client.
    pub client: ClientOptions,
    /// How long opening the connection may take, 1 ms to 1 h. Default 30 s.
    pub connect_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            client: ClientOptions::default(),
            connect_timeout: Duration::from_secs(30),
        }
    }
}

impl ConnectOptions {
    /// Sets the options of the client.
    ///
    /// ```
    /// use mq::{ClientOptions, ConnectOptions};
    ///
    /// let client = ClientOptions::default().with_memory_budget(64 * 1024 * 1024);
    /// let options = ConnectOptions::default().with_client(client);
    /// assert_eq!(options.client.memory_budget, 64 * 1024 * 1024);
    /// ```
    #[must_use]
    pub fn with_client(mut self, client: ClientOptions) -> Self {
        self.client = client;
        self
    }

    /// Sets how long opening the connection may take, 1 ms to 1 h.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq::ConnectOptions;
    ///
    /// let options = ConnectOptions::default().with_connect_timeout(Duration::from_secs(5));
    /// assert_eq!(options.connect_timeout, Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    fn validate(&self) -> Result<()> {
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        if range.contains(&self.connect_timeout) {
            return self.client.validate();
        }
        Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "option `connect_timeout` is {:?}, it must lie within {:?} to {:?}",
                self.connect_timeout,
                range.start(),
                range.end()
            ),
        ))
    }
}

async fn open(url: &str, options: ConnectOptions) -> Result<Mq> {
    options.validate()?;
    let url = ConnectUrl::parse(url)?;
    let limit = options.connect_timeout;
    match tokio::time::timeout(limit, dispatch(&url, options.client)).await {
        Ok(opened) => opened,
        Err(_) => Err(Error::timeout("connecting", limit)),
    }
}

/// Opens the driver of the URL's scheme.
#[allow(unused_variables, reason = "a build without any backend opens nothing")]
async fn dispatch(url: &ConnectUrl, client: ClientOptions) -> Result<Mq> {
    match url.scheme() {
        #[cfg(feature = "memory")]
        "memory" => {
            let client = url.apply_to(client)?;
            let driver = mq_memory::MemoryMq::from_url(url)?;
            Ok(Mq::from_driver_with(driver, client))
        }
        #[cfg(feature = "amqp")]
        "amqp" | "amqps" => {
            let client = url.apply_to(client)?;
            let driver = mq_amqp::AmqpMq::connect(url).await?;
            Ok(Mq::from_driver_with(driver, client))
        }
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+tls" => {
            let client = url.apply_to(client)?;
            let driver = mq_kafka::KafkaMq::connect(url).await?;
            Ok(Mq::from_driver_with(driver, client))
        }
        #[cfg(feature = "redis")]
        "redis" | "rediss" => {
            let client = url.apply_to(client)?;
            let driver = mq_redis::RedisMq::connect(url).await?;
            Ok(Mq::from_driver_with(driver, client))
        }
        #[cfg(feature = "rocketmq")]
        "rocketmq" | "rocketmq+tls" => {
            let client = url.apply_to(client)?;
            let driver = mq_rocketmq::RocketMq::connect(url).await?;
            Ok(Mq::from_driver_with(driver, client))
        }
        other => Err(no_driver(other)),
    }
}

fn no_driver(scheme: &str) -> Error {
    let context = match SCHEMES.iter().find(|(known, _)| *known == scheme) {
        Some((_, feature)) => format!(
            "the driver of scheme `{scheme}` is not compiled in: turn on the cargo feature `{feature}` of the crate `mq`"
        ),
        None => {
            let known: Vec<String> = SCHEMES.iter().map(|(known, _)| format!("`{known}`")).collect();
            format!("scheme `{scheme}` of the URL is not one of {}", known.join(", "))
        }
    };
    Error::new(ErrorKind::InvalidConfig, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(url: &str) -> Error {
        connect(url).await.map(drop).unwrap_err()
    }

    #[tokio::test]
    async fn a_bad_url_is_refused_by_name_and_without_its_password() {
        for (url, named) in [
            ("", "://"),
            ("orders", "://"),
            ("hunter2@host", "://"),
            ("://host", "scheme"),
            ("carrier-pigeon://app:hunter2@loft", "carrier-pigeon"),
            ("memory://app:hunter2@name", "memory"),
            ("memory://a?speed=hunter2", "speed"),
            ("memory://a?request_timeout=soon", "request_timeout"),
            ("memory://a?request_timeout=0s", "request_timeout"),
            ("memory://app:hunter2%zz@name", "password"),
            ("memory://app:hunter2@name:99999", "port"),
        ] {
            let error = refusal(url).await;
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}: {error}");
            assert_eq!(error.operation(), Some("connect"), "{url}");
            let text = format!("{error} {error:?}");
            assert!(text.contains(named), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
    }

    #[tokio::test]
    async fn an_unknown_scheme_lists_those_that_there_are() {
        let error = refusal("carrier-pigeon://loft").await;
        for (scheme, _) in SCHEMES {
            assert!(error.context().contains(scheme), "{error}");
        }
    }

    #[tokio::test]
    async fn a_scheme_that_is_not_compiled_in_names_the_feature_to_turn_on() {
        let compiled = |feature| match feature {
            "amqp" => cfg!(feature = "amqp"),
            "memory" => cfg!(feature = "memory"),
            "kafka" => cfg!(feature = "kafka"),
            "redis" => cfg!(feature = "redis"),
            "rocketmq" => cfg!(feature = "rocketmq"),
            other => panic!("feature {other:?} is not in this list"),
        };
        for (scheme, feature) in SCHEMES {
            let error = no_driver(scheme);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(
                error.context().contains(&format!("cargo feature `{feature}`")),
                "{error}"
            );
            if !compiled(*feature) {
                let refused = refusal(&format!("{scheme}://a")).await;
                assert_eq!(refused.context(), error.context());
            }
        }
    }

    #[tokio::test]
    async fn a_connect_timeout_out_of_range_is_refused() {
        for timeout in [Duration::ZERO, Duration::from_secs(3601)] {
            let options = ConnectOptions::default().with_connect_timeout(timeout);
            let error = connect_with("memory://", options).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.context().contains("connect_timeout"), "{error}");
        }
    }
}
