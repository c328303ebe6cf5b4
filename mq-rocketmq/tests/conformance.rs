//! The conformance suite on real clusters: a shared one, and one of its own for each case that breaks it.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Nature, Server, ServerKind, Times};
use mq_api::{Mq, url::ConnectUrl};
use mq_rocketmq::RocketMq;
use test_brokers::{Backend, BrokerServer, ExternalServer, FAULTS, RocketMqOptions};

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
        let server = BrokerServer::start(|| RocketMqOptions::new().with_proxy().start()).await?;
        Ok(Arc::new(server))
    }

    fn url_at(&self, address: SocketAddr) -> Option<String> {
        Some(format!("rocketmq://{address}"))
    }

    fn nature(&self) -> Nature {
        Nature::default().delays_by_itself()
    }

    fn times(&self) -> Times {
        Times::default()
            // A broker counts a silent member for two minutes.
            .with_freeze_takeover(Duration::from_secs(130))
            // What POP brings back is late by the broker's own clockwork; redeliveries of other modes are the engine's.
            .with_redelivery_slack(Duration::from_secs(6))
            .with_message_lease(Duration::from_secs(20))
    }

    fn faults(&self) -> &'static [Fault] {
        FAULTS
    }

    fn must_supply_faults(&self) -> bool {
        Backend::RocketMq.external_url().is_none()
    }
}

fn main() -> ExitCode {
    conformance_tests::run(Rocket)
}
