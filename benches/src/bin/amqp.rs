//! Measures the RabbitMQ driver against lapin on one server. `cargo xtask bench --backend amqp` runs it.

use std::process::ExitCode;

use benches::{amqp, command};
use test_brokers::{RabbitMqOptions, RabbitMqVersion};

/// What the server may hold before it takes nothing more: groups of hundreds of partitions, which stay as long as their
/// topic, make hundreds of queues each. A server takes two fifths of the machine's memory by itself, a test server much
/// less.
const MEMORY: &str = "vm_memory_high_watermark.absolute = 4GB";

fn main() -> ExitCode {
    command::run("amqp", "RabbitMQ", |options| {
        let version = RabbitMqVersion::from_environment().map_err(|error| error.to_string())?;
        let server = RabbitMqOptions::new()
            .with_version(version)
            .with_config(MEMORY)
            .start()
            .map_err(|error| error.to_string())?;
        let about = format!(
            "One server of version `{}`; stream queues, confirms and `mandatory` for ours and for lapin, which is 4.12 on \
             both sides; the server may take 4 GB before its memory alarm. Peers cannot say where a stream is to be read \
             from: theirs are classic durable queues.",
            version.value()
        );
        Ok((about, amqp::works(server, options)?))
    })
}
