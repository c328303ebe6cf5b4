//! The tests: which packages, which servers, in which rows.

use std::process::Command;

use test_brokers::{Backend, KafkaOptions, RabbitMqVersion, RedisVersion, RocketMqOptions};

use crate::Result;
use crate::cargo::{Package, cargo, packages, succeeds, test_binaries};
use crate::summary::{Summary, run_tests};

/// Set for tests that have slow rows of their own.
const FULL_VARIABLE: &str = "MQ_TEST_FULL";

/// All servers of the Redis driver.
const REDIS_SERVERS: [RedisVersion; 3] = [RedisVersion::V7, RedisVersion::V8, RedisVersion::Valkey];
/// All servers of the RabbitMQ driver.
const RABBITMQ_SERVERS: [RabbitMqVersion; 2] = [RabbitMqVersion::V3, RabbitMqVersion::V4];

/// What `cargo xtask test` was asked for.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Nothing named is everything.
    pub(crate) targets: Vec<Target>,
    pub(crate) full: bool,
    pub(crate) redis: RedisVersion,
    pub(crate) rabbitmq: RabbitMqVersion,
    /// For the test binaries.
    pub(crate) arguments: Vec<String>,
}

/// A backend, the one without a server included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Memory,
    Broker(Backend),
}

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Broker(backend) => backend.name(),
        }
    }

    /// Says whether a package's tests are this target's.
    fn owns(self, package: &str) -> bool {
        match self {
            Self::Memory => matches!(package, "mq-api" | "mq-memory" | "mq" | "conformance-tests"),
            Self::Broker(backend) => package == "mq" || package == format!("mq-{backend}"),
        }
    }
}

/// Runs the selected tests and prints the closing line. Returns whether all passed.
pub(crate) fn test(selection: &Selection) -> Result<bool> {
    let all = packages()?;
    let brokers: Vec<Backend> = Backend::ALL
        .into_iter()
        .filter(|backend| {
            selection.targets.is_empty() || selection.targets.contains(&Target::Broker(*backend))
        })
        .collect();
    for backend in &brokers {
        fetch(*backend, selection)?;
    }

    let mut summary = run_tests(with_versions(&mut test_command(selection, &all), selection))?;
    if !selection.targets.is_empty() {
        // The brokers' own tests, of the selected kinds only.
        let mut own = cargo();
        own.args(["test", "--no-fail-fast", "-p", "test-brokers", "--lib"]);
        let started: Vec<_> = brokers
            .iter()
            .filter(|backend| backend.external_url().is_none())
            .collect();
        own.args(started.iter().flat_map(|backend| ["--test", backend.name()]));
        if !started.is_empty() {
            summary += run_tests(with_versions(&mut own, selection))?;
        }
    }
    if selection.full {
        summary += full_rows(selection, &brokers, &all)?;
    }
    let mut not_run = Vec::new();
    if selection.targets.is_empty() && !selection.full {
        let rows = rows(selection, &mut not_run);
        summary += run_rows(selection, &all, &rows)?;
    }
    for row in not_run {
        println!("NOT RUN: {row}");
    }
    if !summary.failures.is_empty() {
        println!("\nwhat failed, once more:\n");
        summary.failures.iter().for_each(|failure| println!("{failure}"));
    }
    println!("{} passed, {} failed", summary.passed, summary.failed);
    Ok(summary.failed == 0)
}

/// Hands the suite a broker that runs already, by the binary of `conformance-tests`.
pub(crate) fn conformance(url: &str, rest: &[String]) -> Result<bool> {
    let scheme = url.split([':', '+']).next().unwrap_or_default();
    let backend = match scheme {
        "rediss" => "redis",
        "amqps" => "amqp",
        other => other,
    };
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "-p",
        "conformance-tests",
        "--bin",
        "conformance",
    ]);
    let has_feature = packages()?.iter().any(|package| {
        package.name == "conformance-tests" && package.features.iter().any(|name| name == backend)
    });
    if has_feature {
        command.args(["--features", backend]);
    }
    succeeds(command.arg("--").arg(url).args(rest))
}

/// Warms the cache, so that no test waits for a download.
fn fetch(backend: Backend, selection: &Selection) -> Result<()> {
    if backend.external_url().is_some() {
        return Ok(());
    }
    match backend {
        Backend::Redis => selection.redis.fetch()?,
        Backend::Kafka => KafkaOptions::fetch()?,
        Backend::Amqp => selection.rabbitmq.fetch()?,
        Backend::RocketMq => RocketMqOptions::fetch()?,
        other => return Err(format!("no way to fetch {other} is known").into()),
    }
    Ok(())
}

fn with_versions<'a>(command: &'a mut Command, selection: &Selection) -> &'a mut Command {
    command
        .env(RedisVersion::VARIABLE, selection.redis.value())
        .env(RabbitMqVersion::VARIABLE, selection.rabbitmq.value());
    if selection.full {
        command.env(FULL_VARIABLE, "1");
    }
    command
}

fn test_command(selection: &Selection, all: &[Package]) -> Command {
    let wanted = |package: &&Package| {
        selection.targets.is_empty() || selection.targets.iter().any(|target| target.owns(&package.name))
    };
    let chosen: Vec<&Package> = all.iter().filter(wanted).collect();
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    command.args(chosen.iter().flat_map(|package| ["-p", package.name.as_str()]));
    let features = features(&selection.targets, &chosen);
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    if !selection.arguments.is_empty() {
        command.arg("--").args(&selection.arguments);
    }
    command
}

/// What the names of features end with that pull in other libraries to measure: no test is in them.
const PEERS: &str = "peers";

/// Returns all features of the packages but those that pull in a backend that was not selected, or peers.
fn features(targets: &[Target], packages: &[&Package]) -> Vec<String> {
    let others: Vec<&str> = [Target::Memory]
        .into_iter()
        .chain(Backend::ALL.map(Target::Broker))
        .filter(|target| !targets.is_empty() && !targets.contains(target))
        .map(Target::name)
        .collect();
    packages
        .iter()
        .flat_map(|package| package.features.iter().map(move |feature| (package, feature)))
        .filter(|(_, feature)| !others.contains(&feature.as_str()) && !feature.ends_with(PEERS))
        .map(|(package, feature)| format!("{}/{feature}", package.name))
        .collect()
}

/// A driver's tests on other versions of its server than the one they have run on.
struct Rows {
    package: &'static str,
    /// Where not all: the one of its test binaries that is run.
    only: Option<&'static str>,
    variable: &'static str,
    values: Vec<&'static str>,
}

/// Returns the rows of the default run whose servers can be fetched.
///
/// Nobody has asked for these rows by name: one whose server cannot be fetched today is told of and fails nothing.
fn rows(selection: &Selection, not_run: &mut Vec<String>) -> Vec<Rows> {
    let mut fetched = |package: &str, value: &'static str, fetched: test_brokers::Result<()>| {
        let told = fetched.map_err(|cause| {
            not_run.push(format!(
                "the tests of {package} on `{value}`, which cannot be fetched: {cause}"
            ));
        });
        told.is_ok().then_some(value)
    };
    let mut all = Vec::new();
    if Backend::Redis.external_url().is_none() {
        let others = REDIS_SERVERS
            .iter()
            .filter(|version| **version != selection.redis);
        let package = "mq-redis";
        all.push(Rows {
            package,
            only: None,
            variable: RedisVersion::VARIABLE,
            values: others
                .filter_map(|version| fetched(package, version.value(), version.fetch()))
                .collect(),
        });
    }
    if Backend::Amqp.external_url().is_none() {
        let others = RABBITMQ_SERVERS
            .iter()
            .filter(|version| **version != selection.rabbitmq);
        let package = "mq-amqp";
        all.push(Rows {
            package,
            // The rest would take as long again.
            only: Some("conformance"),
            variable: RabbitMqVersion::VARIABLE,
            values: others
                .filter_map(|version| fetched(package, version.value(), version.fetch()))
                .collect(),
        });
    }
    all.retain(|rows| !rows.values.is_empty());
    all
}

/// Runs the rows by the binaries that are built already.
fn run_rows(selection: &Selection, all: &[Package], rows: &[Rows]) -> Result<Summary> {
    let mut summary = Summary::default();
    for row in rows {
        let package = row.package;
        let mut binaries = match test_binaries(&test_command(selection, all), package) {
            Ok(binaries) => binaries,
            Err(cause) => {
                summary += Summary::broken(&format!("the tests of {package} on {:?}: {cause}", row.values));
                continue;
            }
        };
        binaries.retain(|binary| row.only.is_none_or(|name| binary.name == name));
        for value in &row.values {
            for binary in &binaries {
                let mut command = binary.command();
                command.env(row.variable, value).args(&selection.arguments);
                println!("{package} on `{value}`:");
                summary += run_tests(&mut command)?;
            }
        }
    }
    Ok(summary)
}

/// Runs the drivers again on the servers' other versions.
fn full_rows(selection: &Selection, brokers: &[Backend], all: &[Package]) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut row = |backend: Backend, variable: &str, value: &str| -> Result<()> {
        let mut command = row_command(backend, all);
        summary += run_tests(command.env(variable, value).env(FULL_VARIABLE, "1"))?;
        Ok(())
    };
    if brokers.contains(&Backend::Redis) {
        for version in REDIS_SERVERS {
            if version != selection.redis {
                version.fetch()?;
                row(Backend::Redis, RedisVersion::VARIABLE, version.value())?;
            }
        }
    }
    if brokers.contains(&Backend::Amqp) {
        for version in RABBITMQ_SERVERS {
            if version != selection.rabbitmq {
                version.fetch()?;
                row(Backend::Amqp, RabbitMqVersion::VARIABLE, version.value())?;
            }
        }
    }
    Ok(summary)
}

fn row_command(backend: Backend, all: &[Package]) -> Command {
    let selection = Selection {
        targets: vec![Target::Broker(backend)],
        ..Selection::default()
    };
    let driver: Vec<&Package> = all
        .iter()
        .filter(|package| package.name == format!("mq-{backend}"))
        .collect();
    let mut command = cargo();
    command.args(["test", "--no-fail-fast", "-p", &format!("mq-{backend}")]);
    let features = features(&selection.targets, &driver);
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> Vec<Package> {
        let package = |name: &str, features: &[&str]| Package {
            name: name.into(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        };
        vec![
            package("mq", &["amqp", "json", "kafka", "memory", "redis", "rocketmq"]),
            package("mq-api", &["json"]),
            package("mq-kafka", &[]),
            package("mq-memory", &[]),
            package("mq-redis", &["tls"]),
            package("xtask", &[]),
        ]
    }

    fn line(selection: &Selection) -> String {
        crate::cargo::line_of(&test_command(selection, &workspace()))
    }

    #[test]
    fn one_backend_builds_no_other() {
        let selection = Selection {
            targets: vec![Target::Broker(Backend::Redis)],
            ..Selection::default()
        };
        assert_eq!(
            line(&selection),
            "cargo test --no-fail-fast -p mq -p mq-redis --features mq/json,mq/redis,mq-redis/tls"
        );
        let selection = Selection {
            targets: vec![Target::Memory],
            ..Selection::default()
        };
        assert_eq!(
            line(&selection),
            "cargo test --no-fail-fast -p mq -p mq-api -p mq-memory --features mq/json,mq/memory,mq-api/json"
        );
    }

    #[test]
    fn without_a_name_everything_is_tested() {
        let all = line(&Selection::default());
        assert!(
            all.contains("-p mq-kafka") && all.contains("-p xtask") && all.contains("mq/rocketmq"),
            "{all}"
        );
    }

    #[test]
    fn arguments_reach_the_test_binaries() {
        let selection = Selection {
            arguments: vec!["T1".into()],
            ..Selection::default()
        };
        assert!(line(&selection).ends_with(" -- T1"));
    }
}
