//! How a Redis server is to be started.

use std::env;

use super::{Redis, fetch};
use crate::{Error, Result};

/// Says which server is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RedisVersion {
    /// Redis from `PATH` if it is 7.0 or newer, else 7.0 of Debian 12.
    #[default]
    V7,
    /// Redis 8.0 of Debian 13.
    V8,
    /// Valkey of Debian's development release.
    Valkey,
}

impl RedisVersion {
    /// The environment variable that chooses the version: `7`, `8` or `valkey`.
    pub const VARIABLE: &'static str = "MQ_TEST_REDIS_VERSION";

    /// Returns the version that [`RedisVersion::VARIABLE`] names, the default without it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another name.
    pub fn from_environment() -> Result<Self> {
        match env::var(Self::VARIABLE).unwrap_or_default().as_str() {
            "" | "7" => Ok(Self::V7),
            "8" => Ok(Self::V8),
            "valkey" => Ok(Self::Valkey),
            other => Err(Error::Invalid {
                what: Self::VARIABLE.into(),
                value: other.into(),
            }),
        }
    }

    /// Returns what [`RedisVersion::VARIABLE`] says for this version.
    #[must_use]
    pub fn value(self) -> &'static str {
        match self {
            Self::V7 => "7",
            Self::V8 => "8",
            Self::Valkey => "valkey",
        }
    }

    /// Fetches the server into the cache, so that a later start does not wait for it.
    ///
    /// # Errors
    /// [`Error::Missing`] says what to install, [`Error::Command`] shows what failed.
    pub fn fetch(self) -> Result<()> {
        fetch(self)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V7 => "redis",
            Self::V8 => "redis 8",
            Self::Valkey => "valkey",
        }
    }

    /// Returns the Debian release, the package and the program.
    pub(super) fn package(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::V7 => ("bookworm", "redis-server", "redis-server"),
            Self::V8 => ("trixie", "redis-server", "redis-server"),
            Self::Valkey => ("sid", "valkey-server", "valkey-server"),
        }
    }
}

/// Says when the append-only file reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AppendFsync {
    /// Before every answer: what was answered survives kill -9 and a power cut.
    #[default]
    Always,
    /// Once a second, which is Redis's own default.
    EverySecond,
    /// When the kernel likes.
    Never,
}

impl AppendFsync {
    pub(super) fn setting(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySecond => "everysec",
            Self::Never => "no",
        }
    }
}

/// How a Redis server is to be started: the append-only file on and fsynced always, no password, no proxy.
#[derive(Debug, Clone, Default)]
#[must_use = "options start nothing before `start`"]
pub struct RedisOptions {
    pub(super) version: RedisVersion,
    pub(super) append_fsync: AppendFsync,
    pub(super) proxy: bool,
    pub(super) password: Option<String>,
    pub(super) users: Vec<String>,
    pub(super) tls_names: Option<Vec<String>>,
    pub(super) lines: Vec<String>,
}

impl RedisOptions {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses the server (default: [`RedisVersion::V7`]).
    pub fn with_version(mut self, version: RedisVersion) -> Self {
        self.version = version;
        self
    }

    /// Chooses when the append-only file reaches the disk (default: [`AppendFsync::Always`]).
    pub fn with_append_fsync(mut self, append_fsync: AppendFsync) -> Self {
        self.append_fsync = append_fsync;
        self
    }

    /// Puts a proxy in front of the plain port, so that connections can be cut (default: none).
    pub fn with_proxy(mut self) -> Self {
        self.proxy = true;
        self
    }

    /// Asks the default user for a password, which becomes part of the URL (default: none).
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Adds a user by the words that follow `user` in the configuration: `ro on >secret ~* &* +@read`.
    pub fn with_acl_user(mut self, rule: impl Into<String>) -> Self {
        self.users.push(rule.into());
        self
    }

    /// Opens a TLS port whose certificate is for `localhost` and `127.0.0.1` (default: none).
    pub fn with_tls(self) -> Self {
        self.with_tls_for(&["localhost", "127.0.0.1"])
    }

    /// Opens a TLS port whose certificate is for other names.
    pub fn with_tls_for(mut self, names: &[&str]) -> Self {
        self.tls_names = Some(names.iter().map(|name| (*name).to_owned()).collect());
        self
    }

    /// Adds a line to the configuration, which wins over those before it.
    pub fn with_config(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// [`Error::Missing`] says what to install, [`Error::NotReady`] shows the server's log.
    pub fn start(self) -> Result<Redis> {
        Redis::launch(self)
    }
}
