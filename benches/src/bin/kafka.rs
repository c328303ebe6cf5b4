//! Measures the Kafka driver against librdkafka's Rust wrapper on one broker. `cargo xtask bench --backend kafka` runs it.

use std::process::ExitCode;

use benches::{command, kafka};
use test_brokers::KafkaOptions;

fn main() -> ExitCode {
    command::run("kafka", "Kafka", |options| {
        let broker = KafkaOptions::new()
            // It does not count itself as gone where the machine is busy.
            .with_config("broker.session.timeout.ms=30000")
            .start()
            .map_err(|error| error.to_string())?;
        let about = "One broker of version 4.3.1, `acks=all`, idempotent producers and `linger.ms=0` for all contenders; \
                     rdkafka 0.39 with librdkafka 2.12.1 on both sides.";
        Ok((about.to_owned(), kafka::works(broker, options)?))
    })
}
