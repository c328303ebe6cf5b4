//! The conformance suite on real clusters: a shared one, and one of its own for each case that breaks it.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Nature, Server, ServerKind, Times};
use mq_api::{Mq, url::ConnectUrl};
use mq_rocketmq::{RocketMq, remoting::Plain};
use test_brokers::{Backend, Broker, BrokerServer, ExternalServer, RocketMqOptions};
use tokio::time::Instant;

struct Rocket;

#[async_trait]
impl Harness for Rocket {
    fn name(&self) -> &str {
        "rocketmq"
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        let url = ConnectUrl::parse(url)?;
        Ok(Mq::from_driver_with(
            RocketMq::connect(&url).await?,
            url.client_options()?,
        ))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        if let Some(url) = Backend::RocketMq.external_url() {
            return Ok(Arc::new(ExternalServer::new(url)));
        }
        let server = BrokerServer::start(|| {
            let small = ["mappedFileSizeCommitLog=5242880", "cleanResourceInterval=500"];
            let options = RocketMqOptions::new().with_proxy();
            small
                .into_iter()
                .fold(options, RocketMqOptions::with_config)
                .start()
        })
        .await?;
        Ok(Arc::new(
            server.with_trim(|broker, topic, partition, before| async move {
                trim(&broker.url(), &topic, partition, before).await
            }),
        ))
    }

    fn url_at(&self, address: SocketAddr) -> Option<String> {
        Some(format!("rocketmq://{address}"))
    }

    fn nature(&self) -> Nature {
        Nature::default().delays_by_itself()
    }

    fn times(&self) -> Times {
        Times::default()
            // A broker counts a silent member for two minutes, and looks every ten seconds.
            .with_freeze_takeover(Duration::from_secs(140))
            // What POP brings back is late by the broker's own clockwork; redeliveries of other modes are the engine's.
            .with_redelivery_slack(Duration::from_secs(6))
            .with_message_lease(Duration::from_secs(20))
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
        Backend::RocketMq.external_url().is_none()
    }
}

/// Removes the oldest file of the log, which holds the messages of all topics: fills it, and asks for a cleaning
/// while files may be deleted as soon as they are full.
async fn trim(url: &str, topic: &str, partition: u32, before: u64) -> HarnessResult<()> {
    const UPDATE_BROKER_CONFIG: Plain = Plain(25);
    const DELETE_EXPIRED_COMMITLOG: Plain = Plain(329);
    let driver = RocketMq::connect(&ConnectUrl::parse(url)?).await?;
    let mq = Mq::from_driver(driver.clone());
    mq.create_topic("filler", 1).await?;
    let producer = mq.producer("filler").await?;
    let session = driver.native();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for _ in 0..12 {
            producer.produce(vec![0; 900 * 1024]).await?;
        }
        for broker in session.cluster().masters(deadline).await? {
            session
                .ask(
                    &broker,
                    &UPDATE_BROKER_CONFIG,
                    b"fileReservedTime=0\n".as_slice(),
                    deadline,
                )
                .await?;
            session
                .ask(&broker, &DELETE_EXPIRED_COMMITLOG, &(), deadline)
                .await?;
        }
        for _ in 0..10 {
            let described = mq.describe_topic(topic).await?;
            let first = described
                .partitions
                .get(partition as usize)
                .map(|one| one.first_offset);
            if first.is_some_and(|first| first >= before) {
                for broker in session.cluster().masters(deadline).await? {
                    session
                        .ask(
                            &broker,
                            &UPDATE_BROKER_CONFIG,
                            b"fileReservedTime=72\n".as_slice(),
                            deadline,
                        )
                        .await?;
                }
                return Ok(mq.close().await?);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        if Instant::now() > deadline {
            return Err("the broker keeps what it was to remove".into());
        }
    }
}

fn main() -> ExitCode {
    conformance_tests::run(Rocket)
}
