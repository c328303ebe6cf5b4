//! Measures the Redis driver against the raw client on one server. `cargo xtask bench --backend redis` runs it.

use std::process::ExitCode;

use benches::{command, redis};
use test_brokers::{AppendFsync, RedisOptions, RedisVersion};

fn main() -> ExitCode {
    command::run("redis", "Redis", |options| {
        let version = RedisVersion::from_environment().map_err(|error| error.to_string())?;
        let server = RedisOptions::new()
            .with_version(version)
            .with_append_fsync(AppendFsync::EverySecond)
            .start()
            .map_err(|error| error.to_string())?;
        let about = format!(
            "One server of version `{}` with `appendonly yes` and `appendfsync everysec` for all contenders.",
            version.value()
        );
        Ok((about, redis::works(server, options)?))
    })
}
