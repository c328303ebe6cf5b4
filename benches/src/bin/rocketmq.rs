//! Measures the RocketMQ driver against RocketMQ's own clients in Java and Go on one cluster.
//! `cargo xtask bench --backend rocketmq` runs it.

use std::process::ExitCode;

use benches::{command, rocketmq};
use test_brokers::RocketMqOptions;

fn main() -> ExitCode {
    command::run("rocketmq", "RocketMQ", |options| {
        let cluster = RocketMqOptions::new()
            // All that the JVM has, as an operator runs it; and no send refused where the machine is busy.
            .with_java_option("-XX:TieredStopAtLevel=4")
            .with_java_option("-Xmx512m")
            .with_config("waitTimeMillsInSendQueue=5000")
            .start()
            .map_err(|error| error.to_string())?;
        let go = rocketmq::build_go()?;
        let mut about = "One nameserver and one master of version 5.5.0 with `ASYNC_FLUSH` for all contenders; RocketMQ's \
                         client 5.5.0 in one JVM of its own, which the first round warms up, and its client in Go, \
                         2.1.2, in a process of its own. Positions are stored every 0.2 s here, every second in Java, every five \
                         in Go, which has no option for it."
            .to_owned();
        if go.is_none() {
            about.push_str(" Go is not installed here, so that its rows are missing.");
        }
        Ok((about, rocketmq::works(cluster, go.as_deref(), options)?))
    })
}
