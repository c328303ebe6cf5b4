//! Measures the RabbitMQ driver against lapin on one server. `cargo xtask bench --backend amqp` runs it.

use std::process::ExitCode;

use benches::{amqp, command};
use test_brokers::{RabbitMqOptions, RabbitMqVersion};

fn main() -> ExitCode {
    command::run("amqp", "RabbitMQ", |options| {
        let version = RabbitMqVersion::from_environment().map_err(|error| error.to_string())?;
        let server = RabbitMqOptions::new()
            .with_version(version)
            .start()
            .map_err(|error| error.to_string())?;
        let about = format!(
            "One server of version `{}`; stream queues, confirms and `mandatory` for ours and for lapin, which is 4.12 on \
             both sides. Peers cannot say where a stream is to be read from: theirs are classic durable queues.",
            version.value()
        );
        Ok((about, amqp::works(server, options)?))
    })
}
