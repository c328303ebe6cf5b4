//! RabbitMQ.

mod install;
mod options;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use options::{RabbitMqOptions, RabbitMqVersion};

use install::Install;

use crate::error::Context;
use crate::process::{Process, Slot, run};
use crate::scratch::{self, Scratch};
use crate::{Backend, Broker, Certificates, Proxy, ReservedPort, Result, free_port};

/// A start takes five seconds of one core, and after a kill the server recovers its queues: with forty processes beside it
/// two minutes were not enough.
const READY_LIMIT: Duration = Duration::from_secs(240);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// What the server logs when its queues are back, some time after its port is open.
const READY: &str = "Server startup complete";

/// A RabbitMQ server in a folder and on ports of its own, with an Erlang port mapper of its own.
#[derive(Debug)]
pub struct RabbitMq {
    install: Install,
    // Before `scratch`: fields are dropped in this order, and processes must be gone before their folder is.
    process: Slot,
    port_mapper: Slot,
    proxy: Option<Proxy>,
    ports: Ports,
    certificates: Certificates,
    data: PathBuf,
    // One control command at a time: they share one port.
    controlling: Mutex<()>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Ports {
    plain: ReservedPort,
    tls: ReservedPort,
    distribution: ReservedPort,
    mapper: ReservedPort,
    control: ReservedPort,
}

impl RabbitMq {
    /// The user that may do everything on the virtual host `/`, and its password.
    pub const USER: (&str, &str) = ("app", "secret");

    fn launch(options: RabbitMqOptions) -> Result<Self> {
        let install = Install::find(options.version)?;
        let scratch = Scratch::new("rabbitmq")?;
        let ports = Ports {
            plain: free_port()?,
            tls: free_port()?,
            distribution: free_port()?,
            mapper: free_port()?,
            control: free_port()?,
        };
        let proxy = if options.proxy {
            Some(Proxy::start(ports.plain.address())?)
        } else {
            None
        };
        let names: Vec<&str> = options.tls_names.iter().map(String::as_str).collect();
        let certificates = Certificates::generate(&scratch.path().join("tls"), &names)?;
        let server = Self {
            install,
            process: Slot::new("rabbitmq"),
            port_mapper: Slot::new("epmd"),
            proxy,
            ports,
            certificates,
            data: options.data.unwrap_or_else(|| scratch.path().join("data")),
            controlling: Mutex::new(()),
            scratch,
        };
        server.write_files(&options.lines)?;
        server.start()?;
        Ok(server)
    }

    /// Returns the address that the server itself listens on, past the proxy.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.ports.plain.address()
    }

    /// Returns the URL for another user and another virtual host, through the proxy where there is one.
    ///
    /// `vhost` stands in the URL as it is given: encode what is special there.
    #[must_use]
    pub fn url_for(&self, user: &str, password: &str, vhost: &str) -> String {
        format!("amqp://{user}:{password}@{}/{vhost}", self.client_address())
    }

    /// Returns the URL of the TLS port, past the proxy; [`RabbitMq::certificates`] tells what to trust.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let (user, password) = Self::USER;
        format!("amqps://{user}:{password}@localhost:{}", self.ports.tls.number())
    }

    /// Returns the certificates of the TLS port.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Runs `rabbitmqctl` with the given words and returns what it wrote. It takes a second or two.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the end of what it wrote.
    pub fn control(&self, words: &[&str]) -> Result<String> {
        let _held = self.controlling.lock().unwrap_or_else(PoisonError::into_inner);
        run(self.command("rabbitmqctl")?.arg("--quiet").args(words))
    }

    /// Starts the server again and waits only until its port is open: its queues are not back then.
    ///
    /// # Errors
    /// Those of [`Broker::start`].
    pub fn start_listening(&self) -> Result<()> {
        self.spawn().map(drop)
    }

    /// Starts the processes, waits for the port and returns how long the log was before.
    fn spawn(&self) -> Result<usize> {
        if !self.port_mapper.is_running() {
            let mut command = self.command("epmd")?;
            let port = self.ports.mapper.number().to_string();
            command.args(["-port", &port, "-address", "127.0.0.1"]);
            self.spawn_in(&self.port_mapper, command)?;
            self.port_mapper.wait_until_ready(
                READY_LIMIT,
                || self.logs(),
                || Ok(TcpStream::connect(self.ports.mapper.address()).is_ok()),
            )?;
        }
        let logged = fs::read(self.log_file()).unwrap_or_default().len();
        let command = self.command("rabbitmq-server")?;
        self.spawn_in(&self.process, command)?;
        self.process.wait_until_ready(
            READY_LIMIT,
            || self.logs(),
            || Ok(TcpStream::connect(self.address()).is_ok()),
        )?;
        Ok(logged)
    }

    fn spawn_in(&self, slot: &Slot, command: Command) -> Result<()> {
        slot.fill(|name| Process::spawn(name, command, &self.output_file(), &self.scratch))
    }

    /// Returns a command with the environment that tells all of RabbitMQ's and Erlang's programs their place.
    fn command(&self, program: &str) -> Result<Command> {
        let folder = self.scratch.path();
        let node = format!("mq{}@localhost", self.ports.plain.number());
        let mut command = self.install.command(program, folder, &self.data)?;
        command
            .env("HOME", folder)
            .env("LANG", "C.UTF-8")
            // The script becomes the server instead of waiting for it, and signals reach the server itself.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_NODENAME", node)
            .env("RABBITMQ_USE_LONGNAME", "false")
            .env("RABBITMQ_MNESIA_BASE", &self.data)
            .env("RABBITMQ_MNESIA_DIR", self.data.join("node"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_LOGS", self.log_file())
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.number().to_string())
            .env(
                "RABBITMQ_CTL_DIST_PORT_MIN",
                self.ports.control.number().to_string(),
            )
            .env(
                "RABBITMQ_CTL_DIST_PORT_MAX",
                self.ports.control.number().to_string(),
            )
            .env("ERL_EPMD_PORT", self.ports.mapper.number().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                // No busy waiting: tests run beside it on few cores. What expired while the server started, and met a queue
                // that was not there yet, is moved on after this time; it is three minutes without it.
                "-rabbit dead_letter_worker_publisher_confirm_timeout 5000 \
                 -start_epmd false -kernel inet_dist_use_interface {127,0,0,1} \
                 +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            )
            .env("RABBITMQ_CTL_ERL_ARGS", "-start_epmd false +S 1:1");
        Ok(command)
    }

    fn write_files(&self, lines: &[String]) -> Result<()> {
        let folder = self.scratch.path();
        for made in [&self.data, &folder.join("log")] {
            fs::create_dir_all(made).context("cannot make the server's folders")?;
        }
        self.install.prepare(folder)?;
        scratch::write(&folder.join("enabled_plugins"), "[].\n")?;
        scratch::write(&folder.join("rabbitmq.conf"), &self.configuration(lines))
    }

    fn configuration(&self, lines: &[String]) -> String {
        let (user, password) = Self::USER;
        let text = format!(
            "listeners.tcp.1 = {plain}
listeners.ssl.1 = {tls}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_none
default_user = {user}
default_pass = {password}
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
log.console = false
log.file.level = info
",
            plain = self.ports.plain.address(),
            tls = self.ports.tls.address(),
            ca = self.certificates.ca_file().display(),
            certificate = self.certificates.certificate_file().display(),
            key = self.certificates.key_file().display(),
        );
        lines.iter().fold(text, |all, line| all + line + "\n")
    }

    fn client_address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.address(), Proxy::address)
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("log/server.log")
    }

    fn output_file(&self) -> PathBuf {
        self.scratch.path().join("log/out")
    }
}

impl Broker for RabbitMq {
    fn backend(&self) -> Backend {
        Backend::Amqp
    }

    fn url(&self) -> String {
        let (user, password) = Self::USER;
        format!("amqp://{user}:{password}@{}", self.client_address())
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    fn is_running(&self) -> bool {
        self.process.is_running()
    }

    fn start(&self) -> Result<()> {
        let logged = self.spawn()?;
        self.process.wait_until_ready(
            READY_LIMIT,
            || self.logs(),
            || {
                let log = fs::read(self.log_file()).unwrap_or_default();
                Ok(String::from_utf8_lossy(log.get(logged..).unwrap_or_default()).contains(READY))
            },
        )
    }

    fn stop(&self) -> Result<()> {
        self.process.terminate(Some("beam.smp"), STOP_LIMIT)
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
        scratch::tails(&[self.output_file(), self.log_file()])
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        crate::broker::show_logs_of_failed_test(self);
    }
}
