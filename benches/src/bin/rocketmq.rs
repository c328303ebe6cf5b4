//! Measures the RocketMQ driver against RocketMQ's own client in Java on one cluster.
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
        let about = "One nameserver and one master of version 5.5.0 with `ASYNC_FLUSH` for all contenders; RocketMQ's \
                     client 5.5.0 in one JVM of its own, which the first round warms up.";
        Ok((about.to_owned(), rocketmq::works(cluster, options)?))
    })
}
