//! Kafka's jars and the class data archive that halves the time of a boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::config::{ADMIN, ALICE};
use crate::error::Context;
use crate::maven::{Artifact, class_path, fetch_jars, java, property};
use crate::process::run;
use crate::{Cache, Result};

pub(super) const VERSION: &str = "4.3.1";
const LOG4J: &str = "2.25.4";
const HEAP: &str = "-Xmx256m";
/// Any will do: it only has to be the same on the nodes of a cluster.
const CLUSTER_ID: &str = "bXEtdGVzdC1icm9rZXJzMA";

const LOGGING: &str = "\
status=error
appender.f.type=File
appender.f.name=F
appender.f.fileName=${sys:kafka.log}
appender.f.layout.type=PatternLayout
appender.f.layout.pattern=%d{ISO8601} %p %c{1} %m%n
rootLogger.level=warn
rootLogger.appenderRef.f.ref=F
logger.up.name=kafka.server.KafkaRaftServer
logger.up.level=info
";

/// Jars in the cache.
#[derive(Debug, Clone)]
pub(super) struct Install {
    folder: PathBuf,
}

impl Install {
    /// Fetches the jars, and makes the class data archive, once.
    pub(super) fn find(cache: &Cache) -> Result<Self> {
        let folder = cache.entry(&format!("kafka-{VERSION}"), |folder| {
            java()?;
            fetch_jars(
                cache,
                folder,
                &[
                    // The broker never loads kafka-tools-api, which is published late or not at all.
                    Artifact {
                        group: "org.apache.kafka",
                        name: "kafka_2.13",
                        version: VERSION,
                        without: &["kafka-tools-api"],
                    },
                    Artifact {
                        group: "org.apache.kafka",
                        name: "kafka-tools",
                        version: VERSION,
                        without: &["kafka-tools-api"],
                    },
                    Artifact {
                        group: "org.apache.logging.log4j",
                        name: "log4j-slf4j-impl",
                        version: LOG4J,
                        without: &[],
                    },
                ],
            )?;
            let logging = folder.join("log4j2.properties");
            fs::write(&logging, LOGGING).context(format!("cannot write {}", logging.display()))?;
            super::make_archive(&Self {
                folder: folder.to_path_buf(),
            })
        })?;
        Ok(Self { folder })
    }

    pub(super) fn archive(&self) -> PathBuf {
        self.folder.join("classes.jsa")
    }

    pub(super) fn class_path(&self) -> Result<std::ffi::OsString> {
        class_path(&self.folder.join("lib"))
    }

    /// Returns a JVM that runs one of the jars' classes and logs to `log`.
    pub(super) fn java(&self, main: &str, log: &Path) -> Result<Command> {
        let mut command = self.bare_java(log)?;
        if self.archive().exists() {
            command.arg(property("-XX:SharedArchiveFile=", &self.archive()));
        }
        command.arg("-cp").arg(self.class_path()?).arg(main);
        Ok(command)
    }

    /// Returns a broker that writes the class data archive when it ends.
    pub(super) fn recording_java(&self, main: &str, log: &Path, archive: &Path) -> Result<Command> {
        let mut command = self.bare_java(log)?;
        command
            .arg(property("-XX:ArchiveClassesAtExit=", archive))
            .arg("-cp")
            .arg(self.class_path()?)
            .arg(main);
        Ok(command)
    }

    fn bare_java(&self, log: &Path) -> Result<Command> {
        let mut command = Command::new(java()?);
        command
            .args([
                HEAP,
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",
                "-Xshare:auto",
            ])
            .args(["-Xlog:disable", "-Xlog:all=error:stderr"])
            .args(["-Djava.awt.headless=true", "-Dlog4j2.disableJmx=true"])
            .arg(property(
                "-Dlog4j2.configurationFile=",
                &self.folder.join("log4j2.properties"),
            ))
            .arg(property("-Dkafka.log=", log));
        Ok(command)
    }

    /// Makes the data folder that `properties` name, with the users of the SASL listeners.
    pub(super) fn format(&self, properties: &Path, log: &Path) -> Result<()> {
        let scram =
            |(user, password): (&str, &str)| format!("SCRAM-SHA-256=[name={user},password={password}]");
        let mut command = self.java("kafka.tools.StorageTool", log)?;
        command
            .args(["format", "-t", CLUSTER_ID, "-c"])
            .arg(properties)
            .args(["--add-scram", &scram(ADMIN), "--add-scram", &scram(ALICE)]);
        run(&mut command).map(drop)
    }
}
