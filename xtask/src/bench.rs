//! The benches, run and written down.

use std::fs;
use std::path::{Path, PathBuf};

use test_brokers::Backend;

use crate::Result;
use crate::arguments::Bench;
use crate::cargo::{cargo, packages, succeeds};
use crate::suite::Target;

/// What stands above the tables of all backends.
const HEAD: &str = "\
# Side by side

What this library costs against the raw clients and against its peers, measured by `cargo xtask bench --write`. All
contenders of a piece of work run in turn, round by round, in one run on one machine, with the same payloads, the same
durability, windows and acks, and every message is checked: who loses or doubles one is shown as FAILED. The ratio is
ours divided by theirs: above 1 is better for rates, below 1 for times and memory. CPU is the processor time of the
client's process for one message. Absolute numbers do not travel to other machines; ratios mostly do.

Peers: in memory `omniqueue`, `mq-bridge` and `ruststream`; on Kafka `sea-streamer`, `ruststream` and `shove`; on RabbitMQ
`ruststream`; on Redis `sea-streamer`, `mq-bridge` and `shove`; on RocketMQ `rocketmq-client-rust`. Where a peer can only await
each message it sends, it sends from many tasks. Not measured: `omniqueue` on RabbitMQ, which asks for no confirms, and on
Redis, where it needs an older client and a TLS library built for it alone; `mq-bridge` on Kafka, which asks for another build
of librdkafka; `mq-bridge` and `shove` on RabbitMQ, which bring a second TLS library in C; `ruststream` on Redis, which it has
not.

Where it is shown what grows on a broker (partitions, other topics, what is not acked), ours is beside ours: each member owns
all its partitions first, and the clock runs for the second half of the messages. What a join takes has rows of its own.

Why a goal is missed stands, by profiles, in `docs/architecture.md` for memory, and for each broker in the page of its
driver, `src/docs.md`.
";

/// Measures the chosen backends, or all that have a bench.
pub(crate) fn run(bench: &Bench) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches");
    let folder = root.join("results");
    let features: Vec<String> = packages()?
        .into_iter()
        .filter(|package| package.name == "benches")
        .flat_map(|package| package.features)
        .collect();
    let all = [Target::Memory]
        .into_iter()
        .chain(Backend::ALL.map(Target::Broker));
    let (mut passed, mut any) = (true, false);
    for target in all {
        if !bench.targets.is_empty() && !bench.targets.contains(&target) {
            continue;
        }
        let named = |wanted: &str| features.iter().any(|name| name == wanted);
        let known = target == Target::Memory || named(target.name());
        if !known {
            let absent = format!("{} has no bench yet", target.name());
            if bench.targets.contains(&target) {
                return Err(absent.into());
            }
            println!("{absent}");
            continue;
        }
        any = true;
        let peers = named(&format!("{}-peers", target.name()));
        passed &= measure(target, bench, &folder, peers)?;
    }
    if bench.write && any {
        fs::write(root.join("RESULTS.md"), assemble(&folder)?)?;
    }
    Ok(passed)
}

/// Builds and runs the bench of one backend, with its peers where it has any.
fn measure(target: Target, bench: &Bench, folder: &Path, peers: bool) -> Result<bool> {
    let (bin, features) = match target {
        Target::Memory => ("core", "peers".to_owned()),
        Target::Broker(backend) if peers => (backend.name(), format!("{backend}-peers")),
        Target::Broker(backend) => (backend.name(), backend.to_string()),
    };
    let chosen = [
        "--release",
        "-p",
        "benches",
        "--features",
        &features,
        "--bin",
        bin,
    ];
    if !succeeds(cargo().arg("build").args(chosen))? {
        return Ok(false);
    }
    let mut command = cargo();
    command.args(["run", "--quiet"]).args(chosen).arg("--");
    if bench.quick {
        command.arg("--quick");
    }
    if bench.write {
        fs::create_dir_all(folder)?;
        command.arg("--write").arg(folder);
    }
    succeeds(command.args(&bench.only))
}

/// Joins the tables of all backends that were ever measured.
fn assemble(folder: &Path) -> Result<String> {
    let mut text = HEAD.to_owned();
    for target in [Target::Memory]
        .into_iter()
        .chain(Backend::ALL.map(Target::Broker))
    {
        let name = target.name();
        let place: PathBuf = folder.join(format!("{name}.md"));
        if !place.exists() {
            text.push_str(&format!("\n`{name}` is not measured yet.\n"));
            continue;
        }
        text.push_str(&format!("\n{}\n", fs::read_to_string(place)?.trim()));
        if folder.join(format!("{name}.svg")).exists() {
            text.push_str(&format!("\n![Ratios on {name}](results/{name}.svg)\n"));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_name_what_is_not_measured_and_show_each_chart() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("redis.md"), "## Redis\n\n| table |\n").unwrap();
        fs::write(folder.path().join("redis.svg"), "<svg/>").unwrap();
        let text = assemble(folder.path()).unwrap();
        assert!(
            text.contains("## Redis\n\n| table |\n\n![Ratios on redis](results/redis.svg)"),
            "{text}"
        );
        assert!(text.contains("`memory` is not measured yet."), "{text}");
    }
}
