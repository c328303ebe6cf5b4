//! The conformance suite on real brokers: a shared one, and one of its own for each case that breaks it.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Server, ServerKind, StoredFormat};
use mq_api::{Mq, url::ConnectUrl};
use mq_kafka::KafkaMq;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
};
use test_brokers::{Backend, Broker, BrokerServer, ExternalServer, KafkaOptions};

/// How long one request of the harness's own may take.
const LIMIT: Duration = Duration::from_secs(20);

struct Kafka;

#[async_trait]
impl Harness for Kafka {
    fn name(&self) -> &str {
        "kafka"
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        let url = ConnectUrl::parse(url)?;
        Ok(Mq::from_driver_with(
            KafkaMq::connect(&url).await?,
            url.client_options()?,
        ))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        if let Some(url) = Backend::Kafka.external_url() {
            return Ok(Arc::new(ExternalServer::new(url)));
        }
        let server = BrokerServer::start(|| KafkaOptions::new().with_proxy().start()).await?;
        Ok(Arc::new(
            server.with_trim(|kafka, topic, partition, before| async move {
                trim(&kafka.url(), &topic, partition, before).await
            }),
        ))
    }

    fn url_at(&self, address: SocketAddr) -> Option<String> {
        Some(format!("kafka://{address}"))
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
        Backend::Kafka.external_url().is_none()
    }

    fn formats(&self) -> Vec<Arc<dyn StoredFormat>> {
        vec![Arc::new(CommitMetadata)]
    }
}

async fn trim(url: &str, topic: &str, partition: u32, before: u64) -> HarnessResult<()> {
    let driver = KafkaMq::connect(&ConnectUrl::parse(url)?).await?;
    let admin: AdminClient<DefaultClientContext> = driver.native_config().create()?;
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(
        topic,
        i32::try_from(partition)?,
        Offset::Offset(i64::try_from(before)?),
    )?;
    let limit = Some(LIMIT);
    let options = AdminOptions::new()
        .request_timeout(limit)
        .operation_timeout(limit);
    for element in admin.delete_records(&offsets, &options).await?.elements() {
        element.error()?;
    }
    Ok(())
}

/// What stands beside a group's position.
struct CommitMetadata;

#[async_trait]
impl StoredFormat for CommitMetadata {
    fn name(&self) -> &'static str {
        "commit metadata"
    }

    fn versions(&self) -> Vec<u32> {
        vec![1]
    }

    async fn plant(&self, mq: &Mq, url: &str, topic: &str, group: &str, version: u32) -> HarnessResult<()> {
        let id = mq.describe_topic(topic).await?.id.ok_or("the topic has no id")?;
        let beside = match version {
            1 => format!("mq1 t={} s=c", id.as_str()),
            newer => format!("mq{newer} ?whither"),
        };
        let driver = KafkaMq::connect(&ConnectUrl::parse(url)?).await?;
        let mut settings = driver.native_config();
        settings.set("group.id", group).set("enable.auto.commit", "false");
        let topic = topic.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut offsets = TopicPartitionList::new();
            let mut element = offsets.add_partition(&topic, 0);
            element.set_metadata(beside);
            element.set_offset(Offset::Offset(1))?;
            let consumer: BaseConsumer = settings.create()?;
            consumer.commit(&offsets, CommitMode::Sync)
        })
        .await??;
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance_tests::run(Kafka)
}
