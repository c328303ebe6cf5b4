//! Redis and Valkey.

mod options;
mod resp;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub use options::{AppendFsync, RedisOptions, RedisVersion};
use resp::Client;

use crate::debian::DebianRoot;
use crate::process::{Process, Slot, on_path, run};
use crate::scratch::{self, Scratch};
use crate::{Backend, Broker, Cache, Certificates, Proxy, ReservedPort, Result, free_port};

/// Loading a large append-only file on a busy machine takes its time.
const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A Redis or Valkey server with its append-only file on, in a folder and on ports of its own.
#[derive(Debug)]
pub struct Redis {
    options: RedisOptions,
    program: Program,
    // Before `scratch`: fields are dropped in this order, and the server must be gone before its folder is.
    process: Slot,
    proxy: Option<Proxy>,
    port: ReservedPort,
    tls_port: Option<ReservedPort>,
    certificates: Option<Certificates>,
    scratch: Scratch,
}

impl Redis {
    pub(crate) fn launch(options: RedisOptions) -> Result<Self> {
        let name = options.version.name();
        let program = Program::find(options.version)?;
        let scratch = Scratch::new("redis")?;
        let port = free_port()?;
        let proxy = if options.proxy {
            Some(Proxy::start(port.address())?)
        } else {
            None
        };
        let (tls_port, certificates) = match &options.tls_names {
            Some(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let certificates = Certificates::generate(&scratch.path().join("tls"), &names)?;
                (Some(free_port()?), Some(certificates))
            }
            None => (None, None),
        };
        let redis = Self {
            options,
            program,
            process: Slot::new(name),
            proxy,
            port,
            tls_port,
            certificates,
            scratch,
        };
        scratch::write(&redis.scratch.path().join("redis.conf"), &redis.configuration())?;
        redis.start()?;
        Ok(redis)
    }

    /// Returns the address that the server itself listens on, past the proxy.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Returns the URL for a user other than the default one, through the proxy where there is one.
    #[must_use]
    pub fn url_for(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@{}", self.client_address())
    }

    /// Returns the URL of the TLS port, past the proxy, if [`RedisOptions::with_tls`] asked for one.
    ///
    /// The host is `localhost`; [`Redis::certificates`] tells what to trust.
    #[must_use]
    pub fn tls_url(&self) -> Option<String> {
        let port = self.tls_port.as_ref()?.number();
        Some(format!("rediss://{}localhost:{port}", self.login()))
    }

    /// Returns the certificates of the TLS port, if there is one.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Sends a command past the proxy and returns its answer as text, elements of arrays one a line.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with Redis's own text, [`crate::Error::Io`].
    pub fn command(&self, words: &[&str]) -> Result<String> {
        self.client()?.call(words)
    }

    /// Starts the server again without waiting until it has loaded its data: it answers `LOADING` until then.
    ///
    /// # Errors
    /// Those of [`Broker::start`].
    pub fn start_loading(&self) -> Result<()> {
        let mut command = self.program.command()?;
        command
            .arg(self.scratch.path().join("redis.conf"))
            .current_dir(self.scratch.path());
        self.process
            .fill(|name| Process::spawn(name, command, &self.log_file(), &self.scratch))?;
        self.process.wait_until_ready(
            READY_LIMIT,
            || self.logs(),
            || Ok(TcpStream::connect(self.address()).is_ok()),
        )
    }

    fn client(&self) -> Result<Client> {
        let mut client = Client::connect(self.address())?;
        if let Some(password) = &self.options.password {
            client.call(&["AUTH", password])?;
        }
        Ok(client)
    }

    fn client_address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.address(), Proxy::address)
    }

    fn login(&self) -> String {
        self.options
            .password
            .as_ref()
            .map_or_else(String::new, |password| format!(":{password}@"))
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    fn configuration(&self) -> String {
        let folder = self.scratch.path().display();
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("port {}", self.port.number()),
            format!("dir {folder}"),
            "daemonize no".into(),
            "appendonly yes".into(),
            format!("appendfsync {}", self.options.append_fsync.setting()),
            "save \"\"".into(),
            "maxmemory-policy noeviction".into(),
        ];
        if let (Some(port), Some(certificates)) = (&self.tls_port, &self.certificates) {
            lines.extend([
                format!("tls-port {}", port.number()),
                format!("tls-cert-file {}", certificates.certificate_file().display()),
                format!("tls-key-file {}", certificates.key_file().display()),
                format!("tls-ca-cert-file {}", certificates.ca_file().display()),
                "tls-auth-clients no".into(),
            ]);
        }
        if let Some(password) = &self.options.password {
            lines.push(format!("user default on >{password} ~* &* +@all"));
        }
        lines.extend(self.options.users.iter().map(|user| format!("user {user}")));
        lines.extend(self.options.lines.iter().cloned());
        lines.join("\n") + "\n"
    }
}

impl Broker for Redis {
    fn backend(&self) -> Backend {
        Backend::Redis
    }

    fn url(&self) -> String {
        format!("redis://{}{}", self.login(), self.client_address())
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    fn is_running(&self) -> bool {
        self.process.is_running()
    }

    fn start(&self) -> Result<()> {
        self.start_loading()?;
        self.process.wait_until_ready(
            READY_LIMIT,
            || self.logs(),
            || Ok(self.command(&["PING"]).is_ok()),
        )
    }

    fn stop(&self) -> Result<()> {
        self.process.terminate(None, STOP_LIMIT)
    }

    fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    fn freeze(&self) -> Result<()> {
        self.process.freeze()
    }

    fn thaw(&self) -> Result<()> {
        self.process.thaw()
    }

    fn logs(&self) -> String {
        scratch::tails(&[self.log_file()])
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        crate::broker::show_logs_of_failed_test(self);
    }
}

/// Where a server's program comes from.
#[derive(Debug)]
enum Program {
    OnPath(PathBuf),
    Unpacked(DebianRoot, &'static str),
}

impl Program {
    fn find(version: RedisVersion) -> Result<Self> {
        let (suite, package, program) = version.package();
        if version == RedisVersion::V7
            && let Some(path) = on_path(program)
            && run(Command::new(&path).arg("--version")).is_ok_and(|text| is_new_enough(&text))
        {
            return Ok(Self::OnPath(path));
        }
        let entry = format!("{program}-{suite}");
        let root = DebianRoot::fetch(&Cache::open()?, &entry, suite, &[package])?;
        Ok(Self::Unpacked(root, program))
    }

    fn command(&self) -> Result<Command> {
        match self {
            Self::OnPath(path) => Ok(Command::new(path)),
            Self::Unpacked(root, program) => root.command(program),
        }
    }
}

/// Says whether `Redis server v=7.0.15 sha=...` names 7.0 or newer.
fn is_new_enough(version: &str) -> bool {
    version
        .split_once("v=")
        .and_then(|(_, rest)| rest.split('.').next())
        .and_then(|major| major.parse::<u32>().ok())
        .is_some_and(|major| major >= 7)
}

/// Fetches what [`RedisOptions::start`] needs, so that a later start does not wait for it.
pub(crate) fn fetch(version: RedisVersion) -> Result<()> {
    Program::find(version).map(drop)
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn old_servers_are_not_taken_from_path() {
        assert!(is_new_enough(
            "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"
        ));
        assert!(is_new_enough("Redis server v=10.0.1 sha=0"));
        assert!(!is_new_enough("Redis server v=6.2.1 sha=0"));
        assert!(!is_new_enough("what"));
    }
}
