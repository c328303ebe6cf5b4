//! Servers out of Debian packages, unpacked without root.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Context;
use crate::process::{on_path, run};
use crate::{Cache, Error, Result};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";

/// Packages of a Debian release with all that they need, libc included, in a folder of the cache.
#[derive(Debug, Clone)]
pub(crate) struct DebianRoot {
    root: PathBuf,
}

impl DebianRoot {
    /// Unpacks `packages` of `suite` into the cache entry `name`, once. `purpose` goes into the error.
    ///
    /// # Errors
    /// [`Error::Missing`] where the machine has no apt or not Debian's keys.
    pub(crate) fn fetch(cache: &Cache, name: &str, suite: &str, packages: &[&str]) -> Result<Self> {
        let root = cache.entry(name, |folder| {
            let needed = [on_path("apt-get").is_some(), on_path("dpkg").is_some(), Path::new(KEYRING).exists()];
            if needed.contains(&false) {
                return Err(Error::Missing {
                    what: packages.join(", "),
                    hint: format!(
                        "install it on PATH; it is fetched by itself only where apt-get, dpkg and {KEYRING} exist"
                    ),
                });
            }
            unpack(folder, suite, packages)
        })?;
        Ok(Self { root })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// Returns a command that runs `/usr/bin/<program>` of this root with the root's own loader and libraries,
    /// so that the release need not be that of the machine.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.loader()?);
        command
            .arg("--library-path")
            .arg(self.library_path()?)
            // Redis picks its role by the name it is called by.
            .args(["--argv0", program])
            .arg(self.root.join("usr/bin").join(program));
        Ok(command)
    }

    /// Returns the folders of the root's libraries, as the loader takes them.
    pub(crate) fn library_path(&self) -> Result<OsString> {
        Ok(self.library_folders()?.join(OsStr::new(":")))
    }

    fn library_folders(&self) -> Result<Vec<OsString>> {
        let mut folders = Vec::new();
        // Older releases still ship some packages outside /usr.
        for lib in ["usr/lib", "lib"] {
            if self.root.join(lib).exists() {
                folders.extend(subfolders(&self.root.join(lib), |name| {
                    name.contains("-linux-gnu")
                })?);
            }
        }
        Ok(folders)
    }

    fn loader(&self) -> Result<PathBuf> {
        // Not through /lib64, whose link is absolute and would lead to the machine's own loader.
        self.library_folders()?
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flat_map(|entries| entries.flatten())
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"))
            })
            .ok_or_else(|| Error::Missing {
                what: format!("the loader in {}", self.root.display()),
                hint: "remove that folder, it will be unpacked again".into(),
            })
    }
}

/// Returns the folders directly under `folder` whose names fit, sorted.
pub(crate) fn subfolders(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(folder).context(format!("cannot list {}", folder.display()))?;
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| fits(&entry.file_name().to_string_lossy()) && entry.path().is_dir())
        .map(|entry| entry.path().into_os_string())
        .collect();
    found.sort();
    Ok(found)
}

fn unpack(root: &Path, suite: &str, packages: &[&str]) -> Result<()> {
    let apt = root.join(".apt");
    for folder in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(apt.join(folder)).context("cannot make apt's folders")?;
    }
    let write =
        |name: &str, text: String| fs::write(apt.join(name), text).context("cannot write apt's files");
    // An empty status: nothing counts as installed, so the whole closure comes, libc included.
    write("status", String::new())?;
    write(
        "sources.list",
        format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()),
    )?;
    write("apt.conf", configuration(&apt)?)?;
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("APT_CONFIG", apt.join("apt.conf"))
            .env("LC_ALL", "C")
            .arg("-qq")
            .args(arguments);
        run(&mut command)
    };
    apt_get(&["update"])?;
    let mut install = vec!["install", "-y", "--download-only"];
    install.extend(packages);
    apt_get(&install)?;
    let archives = fs::read_dir(apt.join("archives")).context("cannot list the packages")?;
    for archive in archives.flatten().map(|entry| entry.path()) {
        if archive.extension() == Some(OsStr::new("deb")) {
            run(Command::new("dpkg").arg("-x").arg(&archive).arg(root))?;
        }
    }
    fs::remove_dir_all(&apt).context("cannot remove apt's folders")?;
    link_usr(root)
}

/// Gives apt folders of its own, and nothing of the machine's configuration but how it reaches the network.
fn configuration(apt: &Path) -> Result<String> {
    let machine = run(Command::new("apt-config").arg("dump"))?;
    let network = machine
        .lines()
        .filter(|line| {
            ["Acquire::http", "Acquire::https", "Acquire::Check-"]
                .iter()
                .any(|p| line.starts_with(p))
        })
        .fold(String::new(), |all, line| all + line + "\n");
    let apt = apt.display();
    Ok(format!(
        r#"Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::State::lists "{apt}/lists"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}";
APT::Install-Recommends "false"; APT::Sandbox::User "root";
Acquire::Languages "none"; Acquire::Retries "3";
{network}"#
    ))
}

/// Returns the mirror that the machine itself uses, if it is a Debian.
fn mirror() -> String {
    let deb822 = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let list = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let uris = deb822.lines().filter_map(|line| line.strip_prefix("URIs:"));
    let entries = list.lines().filter_map(|line| line.strip_prefix("deb "));
    uris.chain(entries)
        .flat_map(str::split_whitespace)
        .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        .map_or_else(|| MIRROR.to_owned(), str::to_owned)
}

/// Packages of a merged-usr release expect the links that the base system would have made.
fn link_usr(root: &Path) -> Result<()> {
    let link = |target: &str, name: &str| {
        let path = root.join(name);
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        std::os::unix::fs::symlink(target, &path).context(format!("cannot link {}", path.display()))
    };
    for folder in ["bin", "sbin", "lib", "lib64"] {
        if root.join("usr").join(folder).exists() {
            link(&format!("usr/{folder}"), folder)?;
        }
    }
    for (program, name) in [("dash", "sh"), ("mawk", "awk")] {
        if root.join("usr/bin").join(program).exists() {
            link(program, &format!("usr/bin/{name}"))?;
        }
    }
    Ok(())
}
