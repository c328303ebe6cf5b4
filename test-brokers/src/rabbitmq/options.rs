//! How RabbitMQ is to be started.

use std::env;
use std::path::PathBuf;

use super::RabbitMq;
use super::install::Install;
use crate::{Error, Result};

/// Says which server is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RabbitMqVersion {
    /// RabbitMQ from `PATH`, else 3.10 of Debian 12.
    #[default]
    V3,
    /// RabbitMQ 4 of Debian's development release.
    V4,
}

impl RabbitMqVersion {
    /// The environment variable that chooses the version: `3` or `4`.
    pub const VARIABLE: &'static str = "MQ_TEST_RABBITMQ_VERSION";

    /// Returns the version that [`RabbitMqVersion::VARIABLE`] names, the default without it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another name.
    pub fn from_environment() -> Result<Self> {
        let value = env::var(Self::VARIABLE).unwrap_or_default();
        match [Self::V3, Self::V4]
            .into_iter()
            .find(|version| version.value() == value)
        {
            Some(version) => Ok(version),
            None if value.is_empty() => Ok(Self::V3),
            None => Err(Error::Invalid {
                what: Self::VARIABLE.into(),
                value,
            }),
        }
    }

    /// Returns what [`RabbitMqVersion::VARIABLE`] says for this version.
    #[must_use]
    pub fn value(self) -> &'static str {
        match self {
            Self::V3 => "3",
            Self::V4 => "4",
        }
    }

    /// Fetches the server into the cache, so that a later start does not wait for it.
    ///
    /// # Errors
    /// [`Error::Missing`] says what to install, [`Error::Command`] shows what failed.
    pub fn fetch(self) -> Result<()> {
        Install::find(self).map(drop)
    }
}

/// How a RabbitMQ server is to be started: one node, no plugins, no proxy.
#[derive(Debug, Clone)]
#[must_use = "options start nothing before `start`"]
pub struct RabbitMqOptions {
    pub(super) version: RabbitMqVersion,
    pub(super) proxy: bool,
    pub(super) tls_names: Vec<String>,
    pub(super) lines: Vec<String>,
    pub(super) data: Option<PathBuf>,
}

impl Default for RabbitMqOptions {
    fn default() -> Self {
        Self {
            version: RabbitMqVersion::default(),
            proxy: false,
            tls_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            lines: Vec::new(),
            data: None,
        }
    }
}

impl RabbitMqOptions {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses the server (default: [`RabbitMqVersion::V3`]).
    pub fn with_version(mut self, version: RabbitMqVersion) -> Self {
        self.version = version;
        self
    }

    /// Puts a proxy in front of the plain port, so that connections can be cut (default: none).
    pub fn with_proxy(mut self) -> Self {
        self.proxy = true;
        self
    }

    /// Makes the TLS port's certificate for other names (default: `localhost`, `127.0.0.1`).
    pub fn with_tls_for(mut self, names: &[&str]) -> Self {
        self.tls_names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Adds a line to `rabbitmq.conf`, which wins over those before it.
    pub fn with_config(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Keeps what the server stores in a folder that is there already (default: in one that goes with the server).
    pub fn with_data_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.data = Some(folder.into());
        self
    }

    /// Starts the server and waits until its queues are back.
    ///
    /// # Errors
    /// [`Error::Missing`] says what to install, [`Error::NotReady`] shows the server's logs.
    pub fn start(self) -> Result<RabbitMq> {
        RabbitMq::launch(self)
    }
}
