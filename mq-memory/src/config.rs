//! What can be set about a broker in memory.

use std::time::Duration;

use mq_api::{Result, url::ConnectUrl};

use crate::{error::MemoryError, signal};

/// Sets what a broker in memory keeps and how it behaves; every connection to one name shares it.
///
/// ```
/// use std::time::Duration;
/// use mq_memory::{MemoryConfig, MemoryMq};
///
/// # fn main() -> mq_api::Result<()> {
/// let config = MemoryConfig::default().with_retention_age(Duration::from_secs(3600));
/// let mq = MemoryMq::with_config(config)?;
/// # let _ = mq; Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// How long messages are kept where the topic does not say. Default 7 days.
    pub retention_age: Duration,
    /// How many bytes a partition keeps where the topic does not say, by
    /// [`Message::weight`](mq_api::Message::weight). Default 1 GiB.
    pub retention_bytes: u64,
    /// The most partitions that a topic can have, at most 4096. Default 1024.
    pub max_partitions: u32,
    /// How long a group member may go without renewal before others take over. Default none: in one process a
    /// member cannot vanish unseen.
    pub lease: Option<Duration>,
    /// How long a member of a shared group keeps a message that it does not extend. Default 30 s.
    pub shared_lease: Duration,
    /// How many messages of a shared group may be handed out and not settled; at the bound only messages that come
    /// again are handed out. Default 1,000,000.
    pub max_unsettled: usize,
    /// How long a member may take to give a partition back before it is taken away, where the subscription does not
    /// say. Default 30 s.
    pub revoke_timeout: Duration,
    /// How long a call waits for a broker that an injected fault has frozen. Default 30 s.
    pub request_timeout: Duration,
    /// The longest delay of a message. Default 365 days.
    pub max_delay: Duration,
    /// The most messages that may wait for their time. Default 1,000,000.
    pub max_delayed: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            retention_age: Duration::from_secs(7 * DAY),
            retention_bytes: 1 << 30,
            max_partitions: 1024,
            lease: None,
            shared_lease: Duration::from_secs(30),
            max_unsettled: 1_000_000,
            revoke_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            max_delay: Duration::from_secs(365 * DAY),
            max_delayed: 1_000_000,
        }
    }
}

impl MemoryConfig {
    /// Sets how long messages are kept where the topic does not say.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_retention_age(Duration::from_secs(3600));
    /// assert_eq!(config.retention_age, Duration::from_secs(3600));
    /// ```
    #[must_use]
    pub fn with_retention_age(mut self, age: Duration) -> Self {
        self.retention_age = age;
        self
    }

    /// Sets how many bytes a partition keeps where the topic does not say.
    ///
    /// ```
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_retention_bytes(1 << 20);
    /// assert_eq!(config.retention_bytes, 1 << 20);
    /// ```
    #[must_use]
    pub fn with_retention_bytes(mut self, bytes: u64) -> Self {
        self.retention_bytes = bytes;
        self
    }

    /// Sets the most partitions that a topic can have.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// use mq_memory::MemoryConfig;
    ///
    /// let mq = Mq::from_driver(MemoryMq::with_config(MemoryConfig::default().with_max_partitions(8))?);
    /// let error = mq.create_topic("orders", 9).await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::InvalidPartition);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_max_partitions(mut self, partitions: u32) -> Self {
        self.max_partitions = partitions;
        self
    }

    /// Sets how long a group member may go without renewal.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_lease(Duration::from_secs(5));
    /// assert_eq!(config.lease, Some(Duration::from_secs(5)));
    /// ```
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Sets how long a member of a shared group keeps a message.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_shared_lease(Duration::from_secs(5));
    /// assert_eq!(config.shared_lease, Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn with_shared_lease(mut self, lease: Duration) -> Self {
        self.shared_lease = lease;
        self
    }

    /// Sets how many messages of a shared group may be handed out and not settled.
    ///
    /// ```
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_max_unsettled(1000);
    /// assert_eq!(config.max_unsettled, 1000);
    /// ```
    #[must_use]
    pub fn with_max_unsettled(mut self, messages: usize) -> Self {
        self.max_unsettled = messages;
        self
    }

    /// Sets how long a member may take to give a partition back.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_revoke_timeout(Duration::from_secs(5));
    /// assert_eq!(config.revoke_timeout, Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn with_revoke_timeout(mut self, timeout: Duration) -> Self {
        self.revoke_timeout = timeout;
        self
    }

    /// Sets how long a call waits for a frozen broker.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_request_timeout(Duration::from_secs(5));
    /// assert_eq!(config.request_timeout, Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets the longest delay of a message.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_max_delay(Duration::from_secs(3600));
    /// assert_eq!(config.max_delay, Duration::from_secs(3600));
    /// ```
    #[must_use]
    pub fn with_max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// Sets the most messages that may wait for their time.
    ///
    /// ```
    /// use mq_memory::MemoryConfig;
    ///
    /// let config = MemoryConfig::default().with_max_delayed(1000);
    /// assert_eq!(config.max_delayed, 1000);
    /// ```
    #[must_use]
    pub fn with_max_delayed(mut self, messages: usize) -> Self {
        self.max_delayed = messages;
        self
    }

    /// Takes the options out of a URL; none where it has none.
    pub(crate) fn from_url(url: &ConnectUrl) -> Result<Option<Self>> {
        let default = Self::default();
        let mut options = url.options();
        let config = Self {
            retention_age: options
                .take_duration("retention_age")?
                .unwrap_or(default.retention_age),
            retention_bytes: options
                .take_size("retention_bytes")?
                .map_or(default.retention_bytes, |bytes| bytes as u64),
            max_partitions: options
                .take_number("max_partitions")?
                .unwrap_or(default.max_partitions),
            lease: options.take_duration("lease")?,
            shared_lease: options
                .take_duration("shared_lease")?
                .unwrap_or(default.shared_lease),
            max_unsettled: options
                .take_number("max_unsettled")?
                .unwrap_or(default.max_unsettled),
            revoke_timeout: options
                .take_duration("revoke_timeout")?
                .unwrap_or(default.revoke_timeout),
            request_timeout: default.request_timeout,
            max_delay: options.take_duration("max_delay")?.unwrap_or(default.max_delay),
            max_delayed: options.take_number("max_delayed")?.unwrap_or(default.max_delayed),
        };
        options.finish()?;
        config.validate()?;
        Ok((config != Self::default()).then_some(config))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |context: String| Err(MemoryError::BadOption(context).into());
        if self.max_partitions == 0 || self.max_partitions > signal::MAX_PARTITIONS {
            return bad(format!(
                "max_partitions of {}: it must be 1 to {}",
                self.max_partitions,
                signal::MAX_PARTITIONS
            ));
        }
        if self.max_unsettled == 0 {
            return bad("max_unsettled of 0: it must be at least 1".to_owned());
        }
        let durations = [
            ("lease", self.lease.unwrap_or(LEAST_LEASE), LEAST_LEASE),
            ("shared_lease", self.shared_lease, LEAST_LEASE),
            ("retention_age", self.retention_age, Duration::from_millis(1)),
            ("revoke_timeout", self.revoke_timeout, Duration::from_millis(1)),
            ("request_timeout", self.request_timeout, Duration::from_millis(1)),
        ];
        for (name, value, least) in durations {
            if value < least || value > MOST {
                return bad(format!("{name} of {value:?}: it must be {least:?} to {MOST:?}"));
            }
        }
        if self.max_delay > MOST {
            return bad(format!(
                "max_delay of {:?}: it must be at most {MOST:?}",
                self.max_delay
            ));
        }
        Ok(())
    }
}

pub(crate) const LEAST_LEASE: Duration = Duration::from_millis(20);
/// Ten years: what is longer is taken for a mistake, and would overflow clocks.
const MOST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use mq_api::ErrorKind;

    use super::*;

    #[test]
    fn an_option_out_of_range_is_refused_by_name() {
        let config = MemoryConfig::default;
        for (config, name) in [
            (config().with_max_partitions(0), "max_partitions"),
            (config().with_max_partitions(5000), "max_partitions"),
            (config().with_lease(Duration::ZERO), "lease"),
            (config().with_shared_lease(Duration::MAX), "shared_lease"),
            (config().with_request_timeout(Duration::ZERO), "request_timeout"),
            (config().with_max_delay(Duration::MAX), "max_delay"),
        ] {
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.context().starts_with(name), "{error}");
        }
        assert!(config().validate().is_ok());
    }
}
