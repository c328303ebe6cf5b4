//! Jars out of Maven's repository, and the JVM that runs them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Context;
use crate::process::{on_path, run};
use crate::{Cache, Error, Result};

const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// One artifact with all that it needs at run time.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// Artifacts of the same group that are not needed.
    pub(crate) without: &'static [&'static str],
}

/// Copies the artifacts and their dependencies into `folder/lib`.
pub(crate) fn fetch_jars(cache: &Cache, folder: &Path, artifacts: &[Artifact]) -> Result<()> {
    let maven = on_path("mvn").ok_or_else(|| Error::Missing {
        what: "mvn".into(),
        hint: "install Maven (Debian: maven), or fill the cache folder on another machine".into(),
    })?;
    let pom = folder.join("pom.xml");
    fs::write(&pom, project(artifacts)).context(format!("cannot write {}", pom.display()))?;
    // One download at a time: Maven does not lock its repository.
    let _held = cache.lock("maven")?;
    let attempt = || {
        let mut command = Command::new(&maven);
        command
            .args(["-B", "-ntp", "-q", "-f"])
            .arg(&pom)
            .arg(PLUGIN)
            .arg("-DincludeScope=runtime")
            .arg(property("-Dmaven.repo.local=", &cache.root().join("maven")))
            .arg(property("-DoutputDirectory=", &folder.join("lib")))
            .current_dir(folder);
        run(&mut command)
    };
    // A download breaks now and then; what has come is kept.
    attempt().or_else(|_| attempt()).or_else(|_| attempt()).map(drop)
}

/// Returns the `java` to run: of `JAVA_HOME`, else on `PATH`.
pub(crate) fn java() -> Result<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    home.filter(|java| java.exists())
        .or_else(|| on_path("java"))
        .ok_or_else(|| Error::Missing {
            what: "java".into(),
            hint: "install a Java runtime, 17 or newer (Debian: openjdk-17-jre-headless)".into(),
        })
}

/// Returns the class path of a folder's jars, explicit and sorted: a class data archive holds to it.
pub(crate) fn class_path(folder: &Path) -> Result<OsString> {
    let entries = fs::read_dir(folder).context(format!("cannot list {}", folder.display()))?;
    let mut jars: Vec<OsString> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("jar")))
        .map(PathBuf::into_os_string)
        .collect();
    jars.sort();
    Ok(jars.join(OsStr::new(":")))
}

/// Joins the name of a property and a path, which need not be text.
pub(crate) fn property(name: &str, path: &Path) -> OsString {
    let mut property = OsString::from(name);
    property.push(path);
    property
}

fn project(artifacts: &[Artifact]) -> String {
    let dependencies = artifacts.iter().fold(String::new(), |all, artifact| {
        let Artifact { group, name, version, without } = artifact;
        let exclusions = without.iter().fold(String::new(), |all, name| {
            all + &format!("<exclusion><groupId>{group}</groupId><artifactId>{name}</artifactId></exclusion>")
        });
        all + &format!(
            "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version>\
             <exclusions>{exclusions}</exclusions></dependency>\n"
        )
    });
    format!(
        r#"<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>test</groupId><artifactId>jars</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>
{dependencies}</dependencies></project>
"#
    )
}
