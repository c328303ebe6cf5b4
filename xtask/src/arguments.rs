//! The command line.

use std::fmt;

use test_brokers::{Backend, RabbitMqVersion, RedisVersion};

use crate::suite::{Selection, Target};

pub(crate) const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [--backend memory|redis|kafka|amqp|rocketmq]... [--full] [--redis 8|valkey] [--rabbitmq 4] [-- ARGS]
      Fetches the servers that the tests need, runs the tests of the named backends (default: all) and ends with
      the line `N passed, N failed`. Where no backend is named, mq-redis is tested on Redis 8 and Valkey too, and the
      suite of mq-amqp on RabbitMQ 4; what of these cannot be fetched is named as NOT RUN before that line. --full adds the slow rows: other server versions,
      clusters, long fuzzing. ARGS go to the test binaries.
  conformance URL [ARGS]
      Runs the conformance suite against a broker that runs already and prints its table.
  brokers start|stop redis|kafka|amqp|rocketmq
      Starts a broker to play with and prints its URL; ends it.
  bench [--backend memory|redis|kafka|amqp|rocketmq]... [--quick] [--write] [WORDS]
      Starts the brokers, measures ours side by side with the raw clients and the peers (on memory with tokio's
      channels), and prints the tables of ratios. --quick moves a tenth of the messages. --write puts the tables and
      the charts into benches/results and all together into benches/RESULTS.md. Of WORDS one must be in a work's name.
  gates
      Counts allocations and, under callgrind, instructions a message, and checks the limits in benches/limits.txt.
  ci [fmt] [clippy] [docs] [features] [deny] [gates] [test]
      Runs what CI runs, or the named steps of it.

MQ_TEST_CACHE names the folder for fetched servers (default: ~/.cache/mq-test-brokers). MQ_TEST_REDIS_URL,
MQ_TEST_KAFKA_URL, MQ_TEST_AMQP_URL and MQ_TEST_ROCKETMQ_URL point the suite at brokers that run already. MQ_TEST_FULL,
MQ_TEST_REDIS_VERSION and MQ_TEST_RABBITMQ_VERSION are what --full, --redis and --rabbitmq set for the tests.";

/// One command with its arguments.
#[derive(Debug)]
pub(crate) enum Task {
    Help,
    Test(Selection),
    Conformance(String, Vec<String>),
    Brokers(BrokerCommand),
    Bench(Bench),
    Gates,
    Ci(Vec<CiStep>),
}

/// What is to be measured.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Bench {
    /// Nothing named is everything.
    pub(crate) targets: Vec<Target>,
    pub(crate) quick: bool,
    pub(crate) write: bool,
    /// Words that choose the work.
    pub(crate) only: Vec<String>,
}

/// What is to be done with a broker for a person.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BrokerCommand {
    Start(Backend),
    Stop(Backend),
    /// Runs in the background on behalf of `Start`.
    Hold(Backend),
}

/// A step of CI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CiStep {
    Fmt,
    Clippy,
    Docs,
    Features,
    Deny,
    Gates,
    Test,
}

impl CiStep {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Fmt, "fmt"),
        (Self::Clippy, "clippy"),
        (Self::Docs, "docs"),
        (Self::Features, "features"),
        (Self::Deny, "deny"),
        (Self::Gates, "gates"),
        (Self::Test, "test"),
    ];

    fn parse(name: &str) -> Result<Self, UsageError> {
        let known = Self::ALL.into_iter().find(|(_, known)| *known == name);
        known
            .map(|(step, _)| step)
            .ok_or_else(|| UsageError::value("step", name))
    }
}

/// A command line that cannot be understood.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl UsageError {
    fn value(what: &str, value: &str) -> Self {
        Self(format!("unknown {what} `{value}`"))
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n\n{USAGE}", self.0)
    }
}

impl std::error::Error for UsageError {}

impl Task {
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, UsageError> {
        let mut words = words.into_iter();
        let Some(command) = words.next() else {
            return Ok(Self::Help);
        };
        match command.as_str() {
            "help" | "--help" | "-h" => Ok(Self::Help),
            "test" => selection(words).map(Self::Test),
            "conformance" => {
                let url = words
                    .next()
                    .ok_or_else(|| UsageError("conformance needs a URL".into()))?;
                Ok(Self::Conformance(url, words.collect()))
            }
            "brokers" => broker_command(words).map(Self::Brokers),
            "bench" => bench(words).map(Self::Bench),
            "gates" => Ok(Self::Gates),
            "ci" => {
                let named = words
                    .map(|name| CiStep::parse(&name))
                    .collect::<Result<Vec<_>, _>>()?;
                let all = || CiStep::ALL.into_iter().map(|(step, _)| step).collect();
                Ok(Self::Ci(if named.is_empty() { all() } else { named }))
            }
            other => Err(UsageError::value("command", other)),
        }
    }
}

fn selection(mut words: impl Iterator<Item = String>) -> Result<Selection, UsageError> {
    let mut selection = Selection::default();
    while let Some(word) = words.next() {
        let (name, joined) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        if name == "--" {
            selection.arguments.extend(words);
            break;
        }
        if name == "--full" && joined.is_none() {
            selection.full = true;
            continue;
        }
        if !["--backend", "--redis", "--rabbitmq"].contains(&name.as_str()) {
            return Err(UsageError::value("option", &name));
        }
        let value = joined
            .or_else(|| words.next())
            .ok_or_else(|| UsageError(format!("{name} needs a value")))?;
        match (name.as_str(), value.as_str()) {
            ("--backend", backend) => selection.targets.push(target(backend)?),
            ("--redis", "8") => selection.redis = RedisVersion::V8,
            ("--redis", "valkey") => selection.redis = RedisVersion::Valkey,
            ("--rabbitmq", "4") => selection.rabbitmq = RabbitMqVersion::V4,
            (_, value) => return Err(UsageError::value(&format!("value of {name}"), value)),
        }
    }
    Ok(selection)
}

fn target(name: &str) -> Result<Target, UsageError> {
    match name {
        "memory" => Ok(Target::Memory),
        broker => broker
            .parse()
            .map(Target::Broker)
            .map_err(|_| UsageError::value("backend", broker)),
    }
}

fn bench(mut words: impl Iterator<Item = String>) -> Result<Bench, UsageError> {
    let mut bench = Bench::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => bench.quick = true,
            "--write" => bench.write = true,
            "--backend" => {
                let name = words
                    .next()
                    .ok_or_else(|| UsageError("--backend needs a value".into()))?;
                bench.targets.push(target(&name)?);
            }
            option if option.starts_with("--") => return Err(UsageError::value("option", option)),
            _ => bench.only.push(word),
        }
    }
    Ok(bench)
}

fn broker_command(mut words: impl Iterator<Item = String>) -> Result<BrokerCommand, UsageError> {
    let (Some(verb), Some(name), None) = (words.next(), words.next(), words.next()) else {
        return Err(UsageError("brokers needs start or stop, and a name".into()));
    };
    let backend: Backend = name.parse().map_err(|_| UsageError::value("broker", &name))?;
    match verb.as_str() {
        "start" => Ok(BrokerCommand::Start(backend)),
        "stop" => Ok(BrokerCommand::Stop(backend)),
        "hold" => Ok(BrokerCommand::Hold(backend)),
        other => Err(UsageError::value("verb", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, UsageError> {
        Task::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn test_options_are_read_in_both_spellings() {
        let Task::Test(selection) =
            parse("test --backend redis --backend=memory --redis valkey --full -- T1 --nocapture").unwrap()
        else {
            panic!("not a test");
        };
        assert_eq!(
            selection.targets,
            [Target::Broker(Backend::Redis), Target::Memory]
        );
        assert_eq!(selection.redis, RedisVersion::Valkey);
        assert!(selection.full);
        assert_eq!(selection.arguments, ["T1", "--nocapture"]);
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (line, named) in [
            ("tset", "`tset`"),
            ("test --backend zeromq", "`zeromq`"),
            ("test --backend", "--backend needs a value"),
            ("test --redis 5", "`5`"),
            ("test --fast", "`--fast`"),
            ("brokers start", "needs start or stop"),
            ("brokers burn redis", "`burn`"),
            ("ci lint", "`lint`"),
            ("bench --backend", "--backend needs a value"),
            ("bench --backend zeromq", "`zeromq`"),
            ("bench --backend memory --slow", "`--slow`"),
            ("conformance", "needs a URL"),
        ] {
            let text = parse(line).unwrap_err().to_string();
            assert!(text.contains(named), "{line}: {text}");
        }
    }

    #[test]
    fn ci_without_steps_is_all_of_them() {
        let Task::Ci(steps) = parse("ci").unwrap() else {
            panic!("not ci")
        };
        assert_eq!(steps.len(), 7);
        let Task::Ci(steps) = parse("ci deny fmt").unwrap() else {
            panic!("not ci")
        };
        assert_eq!(steps, [CiStep::Deny, CiStep::Fmt]);
    }
}
