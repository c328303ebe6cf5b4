//! The conformance suite on real servers: a shared one, and one of its own for each case that breaks it.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Server, ServerKind, StoredFormat, Times};
use mq_api::{Mq, url::ConnectUrl};
use mq_redis::RedisMq;
use test_brokers::{Backend, BrokerServer, ExternalServer, RedisOptions, RedisVersion};

struct Redis;

#[async_trait]
impl Harness for Redis {
    fn name(&self) -> &str {
        "redis"
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        let url = ConnectUrl::parse(url)?;
        Ok(Mq::from_driver_with(
            RedisMq::connect(&url).await?,
            url.client_options()?,
        ))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        if let Some(url) = Backend::Redis.external_url() {
            return Ok(Arc::new(ExternalServer::new(url)));
        }
        let version = RedisVersion::from_environment()?;
        let server =
            BrokerServer::start(move || RedisOptions::new().with_version(version).with_proxy().start())
                .await?;
        Ok(Arc::new(server.with_trim(
            |redis, topic, partition, before| async move {
                let lowest = format!("0-{}", before + 1);
                redis.command(&["XTRIM", &format!("mq:{{{topic}:{partition}}}"), "MINID", &lowest])?;
                Ok(())
            },
        )))
    }

    fn url_at(&self, address: SocketAddr) -> Option<String> {
        Some(format!("redis://{address}"))
    }

    fn times(&self) -> Times {
        Times::default()
            .with_message_lease(Duration::from_secs(6))
            .with_retention(Duration::from_secs(10))
    }

    fn faults(&self) -> &'static [Fault] {
        &[
            Fault::Restart,
            Fault::Kill,
            Fault::Freeze,
            Fault::Cut,
            Fault::Trim,
        ]
    }

    fn must_supply_faults(&self) -> bool {
        Backend::Redis.external_url().is_none()
    }

    fn proves_the_rest(&self) -> bool {
        Backend::Redis.external_url().is_none()
    }

    fn formats(&self) -> Vec<Arc<dyn StoredFormat>> {
        vec![Arc::new(Position)]
    }
}

/// How far a group is in a partition.
struct Position;

#[async_trait]
impl StoredFormat for Position {
    fn name(&self) -> &'static str {
        "position register"
    }

    fn versions(&self) -> Vec<u32> {
        vec![1]
    }

    async fn plant(&self, mq: &Mq, url: &str, topic: &str, group: &str, version: u32) -> HarnessResult<()> {
        let id = mq.describe_topic(topic).await?.id.ok_or("the topic has no id")?;
        let driver = RedisMq::connect(&ConnectUrl::parse(url)?).await?;
        let mut entry = redis::cmd("XADD");
        entry
            .arg(format!("mq:{{{topic}:0}}:g:{group}"))
            .arg("MAXLEN")
            .arg(1);
        match version {
            1 => entry
                .arg("0-1")
                .arg("mq1")
                .arg(id.as_str())
                .arg(&["owner", "", "ttl", "0", "next", "1"]),
            newer => entry
                .arg("9-0")
                .arg(format!("mq{newer}"))
                .arg("?")
                .arg("whither")
                .arg("?"),
        };
        entry.exec_async(&mut driver.native().await?).await?;
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance_tests::run(Redis)
}
