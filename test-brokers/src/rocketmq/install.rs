//! RocketMQ's jars and the JVM that runs them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::maven::{Artifact, class_path, fetch_jars, java, property};
use crate::{Cache, Result};

pub(super) const VERSION: &str = "5.5.0";

/// Says what a JVM does with the archive of its classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Archiving {
    /// Reads it, if there is one.
    Use,
    /// Writes it when it ends.
    Record,
}

/// Jars in the cache.
#[derive(Debug, Clone)]
pub(super) struct Install {
    folder: PathBuf,
}

impl Install {
    /// Fetches the jars, once.
    pub(super) fn find(cache: &Cache) -> Result<Self> {
        let folder = cache.entry(&format!("rocketmq-{VERSION}"), |folder| {
            java()?;
            let artifact = |name| Artifact {
                group: "org.apache.rocketmq",
                name,
                version: VERSION,
                without: &[],
            };
            let names = [
                "rocketmq-namesrv",
                "rocketmq-broker",
                "rocketmq-tools",
                "rocketmq-client",
            ];
            fetch_jars(cache, folder, &names.map(artifact))?;
            super::make_archives(&Self {
                folder: folder.to_path_buf(),
            })
        })?;
        Ok(Self { folder })
    }

    pub(super) fn class_path(&self) -> Result<OsString> {
        class_path(&self.folder.join("lib"))
    }

    /// Returns the class data archive of a class that is run: it saves more than half of the time of a boot.
    pub(super) fn archive(&self, class: &str) -> PathBuf {
        self.folder.join(format!("{class}.jsa"))
    }

    /// Returns a JVM that runs one of the jars' classes and writes nowhere but into `folder`.
    pub(super) fn java(
        &self,
        class: &str,
        heap: &str,
        folder: &Path,
        options: &[String],
        archiving: Archiving,
    ) -> Result<Command> {
        let mut command = Command::new(java()?);
        let archive = self.archive(class);
        match archiving {
            Archiving::Record => {
                command.arg(property("-XX:ArchiveClassesAtExit=", &archive));
            }
            Archiving::Use if archive.exists() => {
                command.arg(property("-XX:SharedArchiveFile=", &archive));
            }
            Archiving::Use => {}
        }
        command.args(["-Xlog:disable", "-Xlog:all=error:stderr"]);
        command
            .args([
                "-Xms32m",
                heap,
                "-XX:MaxDirectMemorySize=512m",
                "-XX:+UseSerialGC",
                "-Xss512k",
            ])
            .args([
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",
                "-Xshare:auto",
                "-XX:+ExitOnOutOfMemoryError",
            ])
            .arg(property("-XX:ErrorFile=", &folder.join("hs_err.log")))
            // Store and logs go below user.home; netty and rocksdb unpack libraries into the temporary folder.
            .arg(property("-Drocketmq.home.dir=", folder))
            .arg(property("-Duser.home=", folder))
            .arg(property("-Djava.io.tmpdir=", &folder.join("tmp")))
            .arg(property(
                "-Drocketmq.client.logRoot=",
                &folder.join("client-logs"),
            ))
            .args([
                "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
                "--add-opens=java.base/java.nio=ALL-UNNAMED",
            ])
            .args(options)
            .arg("-cp")
            .arg(self.class_path()?)
            .arg(class)
            .env("MALLOC_ARENA_MAX", "2")
            .current_dir(folder);
        Ok(command)
    }
}
