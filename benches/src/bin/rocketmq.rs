//! Measures the RocketMQ driver against RocketMQ's own clients in Java and Go and one in Rust, on one cluster.
//! `cargo xtask bench --backend rocketmq` runs it.

use std::process::ExitCode;

use benches::{
    command,
    rocketmq::{self, Programs},
};
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
        let programs = Programs::build()?;
        let about = format!(
            "One nameserver and one master of version 5.5.0 with `ASYNC_FLUSH` for all contenders; RocketMQ's client 5.5.0 \
             in one JVM of its own, which the first round warms up, its client in Go, 2.1.2, and the crate \
             `rocketmq-client-rust`, 1.0.0, each in a process of its own. Positions are stored every 0.2 s here, every \
             second in Java and by the crate, every five in Go, which has no option for it. The crate refuses some of \
             1000 messages in flight, so that it has 256.{}",
            programs.missing()
        );
        Ok((about, rocketmq::works(cluster, &programs, options)?))
    })
}
