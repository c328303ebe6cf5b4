//! The conformance suite on real servers: a shared one, and one of its own for each case that breaks it.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Fault, Harness, HarnessResult, Server, ServerKind, StoredFormat, Times};
use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use mq_amqp::AmqpMq;
use mq_api::{Mq, TopicSpec, url::ConnectUrl};
use test_brokers::{Backend, Broker, BrokerServer, ExternalServer, RabbitMqOptions, RabbitMqVersion};

struct RabbitMq;

#[async_trait]
impl Harness for RabbitMq {
    fn name(&self) -> &str {
        "amqp"
    }

    async fn connect(&self, url: &str) -> mq_api::Result<Mq> {
        let url = ConnectUrl::parse(url)?;
        Ok(Mq::from_driver_with(
            AmqpMq::connect(&url).await?,
            url.client_options()?,
        ))
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        if let Some(url) = Backend::Amqp.external_url() {
            return Ok(Arc::new(ExternalServer::new(url)));
        }
        let version = RabbitMqVersion::from_environment()?;
        let server =
            BrokerServer::start(move || RabbitMqOptions::new().with_version(version).with_proxy().start())
                .await?;
        Ok(Arc::new(server.with_trim(trim)))
    }

    fn url_at(&self, address: SocketAddr) -> Option<String> {
        Some(format!("amqp://{address}"))
    }

    fn times(&self) -> Times {
        Times::default().with_message_lease(Duration::from_secs(6))
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
        Backend::Amqp.external_url().is_none()
    }

    fn to_be_trimmed(&self, topic: TopicSpec) -> TopicSpec {
        // More than the case's messages, and small enough to be filled in a moment.
        topic.with_retention_bytes(TRIM_BOUND)
    }

    fn formats(&self) -> Vec<Arc<dyn StoredFormat>> {
        vec![Arc::new(Token)]
    }
}

/// The bound in bytes of the topic that is trimmed; its segments are a quarter of it.
const TRIM_BOUND: u64 = 64 * 1024;

/// A stream lets go whole segments when it begins another, and keeps the last: what is no message fills them until the
/// first is gone.
async fn trim(
    rabbit: Arc<test_brokers::RabbitMq>,
    topic: String,
    partition: u32,
    before: u64,
) -> HarnessResult<()> {
    const MOST: usize = 20;
    const AT_ONCE: usize = 10;
    let url = ConnectUrl::parse(&rabbit.url())?;
    let driver = AmqpMq::connect(&url).await?;
    let channel = driver.native().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mq = Mq::from_driver(driver);
    let id = mq.describe_topic(&topic).await?.id.ok_or("the topic has no id")?;
    let queue = format!("mq:{topic}:{}:{partition}", id.as_str());
    let mut headers = FieldTable::default();
    headers.insert("mq1".into(), AMQPValue::LongLongInt(0));
    headers.insert("begin".into(), AMQPValue::Boolean(true));
    let filler = BasicProperties::default().with_headers(headers);
    for _ in 0..MOST {
        for _ in 0..AT_ONCE {
            channel
                .basic_publish(
                    "".into(),
                    queue.as_str().into(),
                    BasicPublishOptions::default(),
                    &[0; 1024],
                    filler.clone(),
                )
                .await?
                .await?;
        }
        let described = mq.describe_topic(&topic).await?;
        let first = described
            .partitions
            .get(partition as usize)
            .map(|one| one.first_offset);
        if first.is_some_and(|first| first >= before) {
            mq.close().await?;
            return Ok(());
        }
    }
    Err(format!("{} KiB later the first message is still there", MOST * AT_ONCE).into())
}

/// How far a group is in a partition.
struct Token;

#[async_trait]
impl StoredFormat for Token {
    fn name(&self) -> &'static str {
        "token"
    }

    fn versions(&self) -> Vec<u32> {
        vec![1]
    }

    /// The driver's own record has offset 0, and the first message offset 1.
    fn position(&self) -> u64 {
        2
    }

    async fn plant(&self, mq: &Mq, url: &str, topic: &str, group: &str, version: u32) -> HarnessResult<()> {
        let id = mq.describe_topic(topic).await?.id.ok_or("the topic has no id")?;
        let driver = AmqpMq::connect(&ConnectUrl::parse(url)?).await?;
        let channel = driver.native().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let body = match version {
            1 => b"mq1 token epoch=0 seq=0 next=2".to_vec(),
            newer => format!("mq{newer} whither?").into_bytes(),
        };
        let classic = || {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
            arguments
        };
        let mut token = classic();
        token.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        let mut copy = classic();
        copy.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
        for (what, arguments) in [("token", token), ("at", copy)] {
            let queue = format!("mq:{topic}:{}:g:{group}:{what}:0", id.as_str());
            channel
                .queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments)
                .await?;
            channel
                .basic_publish(
                    "".into(),
                    queue.as_str().into(),
                    BasicPublishOptions::default(),
                    &body,
                    BasicProperties::default().with_delivery_mode(2),
                )
                .await?
                .await?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance_tests::run(RabbitMq)
}
