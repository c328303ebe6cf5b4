//! The backends, and the brokers that somebody else runs.

use std::env;
use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Names a backend that has brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Backend {
    /// Redis or Valkey.
    Redis,
    /// Apache Kafka.
    Kafka,
    /// RabbitMQ.
    Amqp,
    /// Apache RocketMQ.
    RocketMq,
}

impl Backend {
    /// All backends that have brokers.
    pub const ALL: [Self; 4] = [Self::Redis, Self::Kafka, Self::Amqp, Self::RocketMq];

    /// Returns the name that commands and cargo features use: `redis`, `kafka`, `amqp`, `rocketmq`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Kafka => "kafka",
            Self::Amqp => "amqp",
            Self::RocketMq => "rocketmq",
        }
    }

    /// Returns the environment variable that points tests at a broker that runs already.
    #[must_use]
    pub fn url_variable(self) -> &'static str {
        match self {
            Self::Redis => "MQ_TEST_REDIS_URL",
            Self::Kafka => "MQ_TEST_KAFKA_URL",
            Self::Amqp => "MQ_TEST_AMQP_URL",
            Self::RocketMq => "MQ_TEST_ROCKETMQ_URL",
        }
    }

    /// Returns the URL of the broker that somebody else runs, if [`Backend::url_variable`] names one.
    ///
    /// Such a broker can be neither killed nor frozen nor cut, so that fault cases have to be left out.
    #[must_use]
    pub fn external_url(self) -> Option<String> {
        env::var(self.url_variable())
            .ok()
            .filter(|url| !url.trim().is_empty())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.name() == name)
            .ok_or_else(|| Error::Invalid {
                what: "the backend's name".into(),
                value: name.into(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for backend in Backend::ALL {
            assert_eq!(backend.name().parse::<Backend>().unwrap(), backend);
        }
        assert!("memory".parse::<Backend>().is_err());
    }
}
