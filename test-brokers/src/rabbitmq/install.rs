//! Where RabbitMQ and its Erlang come from.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::RabbitMqVersion;
use crate::debian::{DebianRoot, subfolders};
use crate::error::Context;
use crate::process::on_path;
use crate::scratch;
use crate::{Cache, Error, Result};

/// What the start scripts call is "essential" in Debian, so that no package depends on it.
const PACKAGES: [&str; 10] = [
    "rabbitmq-server",
    "erlang-base",
    "bubblewrap",
    "dash",
    "coreutils",
    "grep",
    "sed",
    "mawk",
    "hostname",
    "util-linux",
];
/// Where Debian's package keeps the scripts that do not change the user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// A server that can be started.
#[derive(Debug)]
pub(super) enum Install {
    /// Installed on this machine; the folder holds its scripts.
    OnMachine(PathBuf),
    /// Unpacked, of the machine's own release: it runs from where it lies, with its own libraries.
    Relocated(DebianRoot),
    /// Unpacked, of another release with another libc: it runs in a mount namespace that has it as its root.
    Boxed(DebianRoot),
}

impl Install {
    pub(super) fn find(version: RabbitMqVersion) -> Result<Self> {
        if version == RabbitMqVersion::V3 {
            if Path::new(SCRIPTS).join("rabbitmq-server").exists() {
                return Ok(Self::OnMachine(PathBuf::from(SCRIPTS)));
            }
            if let Some(folder) = on_path("rabbitmq-server").as_deref().and_then(Path::parent) {
                return Ok(Self::OnMachine(folder.to_path_buf()));
            }
        }
        let suite = match version {
            RabbitMqVersion::V3 => "bookworm",
            RabbitMqVersion::V4 => "sid",
        };
        let root = DebianRoot::fetch(
            &Cache::open()?,
            &format!("rabbitmq-server-{suite}"),
            suite,
            &PACKAGES,
        )?;
        if machine_release().as_deref() == Some(suite) {
            Ok(Self::Relocated(root))
        } else {
            Ok(Self::Boxed(root))
        }
    }

    /// Puts into `folder` what its commands need.
    pub(super) fn prepare(&self, folder: &Path) -> Result<()> {
        let Self::Relocated(root) = self else {
            return Ok(());
        };
        // Debian's `erl` names the place that it was packaged for, whatever ERL_ROOTDIR says.
        let erlang = root.path().join("usr/lib/erlang");
        let programs = only_subfolder(&erlang, "erts-")?.join("bin");
        let script = format!(
            "#!/bin/sh\nexport ROOTDIR='{}' BINDIR='{}' EMU=beam PROGNAME=erl\nexec \"$BINDIR/erlexec\" \"$@\"\n",
            erlang.display(),
            programs.display()
        );
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).context(format!("cannot make {}", bin.display()))?;
        scratch::write(&bin.join("erl"), &script)?;
        fs::set_permissions(bin.join("erl"), fs::Permissions::from_mode(0o755))
            .context("cannot make Erlang's script executable")
    }

    /// Returns a command for one of RabbitMQ's scripts or Erlang's programs that works in `folder` and sees `data`, with
    /// an environment that holds nothing but what the program needs to be found.
    pub(super) fn command(&self, program: &str, folder: &Path, data: &Path) -> Result<Command> {
        let mut command;
        match self {
            Self::OnMachine(scripts) => {
                let script = scripts.join(program);
                command = Command::new(if script.exists() {
                    script
                } else {
                    PathBuf::from(program)
                });
                command.env_clear().env("PATH", machine_path());
            }
            Self::Relocated(root) => {
                let erlang = root.path().join("usr/lib/erlang");
                let home = only_subfolder(&root.path().join("usr/lib/rabbitmq/lib"), "rabbitmq_server-")?;
                let script = home.join("sbin").join(program);
                command = Command::new(if script.exists() {
                    script
                } else {
                    erlang.join("bin").join(program)
                });
                let mut path = folder.join("bin").into_os_string();
                path.push(":");
                path.push(erlang.join("bin"));
                path.push(":");
                path.push(machine_path());
                command
                    .env_clear()
                    .env("PATH", path)
                    .env("ESCRIPT_EMULATOR", folder.join("bin/erl"))
                    .env("RABBITMQ_HOME", home)
                    .env("LD_LIBRARY_PATH", root.library_path()?);
            }
            Self::Boxed(root) => {
                command = match on_path("bwrap") {
                    Some(bwrap) => Command::new(bwrap),
                    None => root.command("bwrap")?,
                };
                command
                    .env_clear()
                    .env("PATH", "/usr/lib/rabbitmq/bin:/usr/lib/erlang/bin:/usr/bin:/bin");
                command
                    .arg("--bind")
                    .args([root.path(), Path::new("/")])
                    .args(["--proc", "/proc", "--dev-bind", "/dev", "/dev", "--tmpfs", "/tmp"])
                    .args([
                        "--ro-bind",
                        "/etc/passwd",
                        "/etc/passwd",
                        "--ro-bind",
                        "/etc/hosts",
                        "/etc/hosts",
                    ])
                    .arg("--bind")
                    .args([folder, folder])
                    .arg("--bind")
                    .args([data, data])
                    .arg("--chdir")
                    .args([folder, Path::new(program)]);
            }
        }
        command.current_dir(folder);
        Ok(command)
    }
}

fn machine_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"))
}

/// Returns the code name of the Debian release that this machine runs, if it runs one.
fn machine_release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

fn only_subfolder(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = subfolders(folder, |name| name.starts_with(prefix))?;
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(PathBuf::from(only)),
        _ => Err(Error::Invalid {
            what: format!("the content of {}", folder.display()),
            value: found.join(OsStr::new(", ")).to_string_lossy().into_owned(),
        }),
    }
}
