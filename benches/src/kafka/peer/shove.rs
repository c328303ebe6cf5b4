//! The same work by `shove`, a framework of handlers: batches are handed to one, which counts.

use std::sync::OnceLock;

use bytes::Bytes;
use shove::{
    BatchConsumerOptions, Broker, Codec, Kafka, NotSequenced, QueueTopology, Topic, TopologyBuilder,
    kafka::KafkaConfig,
};

use super::super::{Outcome, Raw, TAKE, text};
use crate::{
    handler::Counting,
    meter::{Meter, Sample},
    payload::Payloads,
    tasks::by_tasks,
};

/// Payloads as they are, without the copies of the codec that comes with it.
struct Plain;

impl Codec<Bytes> for Plain {
    const NAME: &'static str = "plain";

    fn encode(value: &Bytes) -> shove::error::Result<Vec<u8>> {
        Ok(value.to_vec())
    }

    fn encode_bytes(value: &Bytes) -> shove::error::Result<Bytes> {
        Ok(value.clone())
    }

    fn decode(bytes: &[u8]) -> shove::error::Result<Bytes> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn decode_owned(bytes: Bytes) -> shove::error::Result<Bytes> {
        Ok(bytes)
    }
}

/// Names the topics that are written and read: a topic is a type, so it has one name in a run.
static WRITTEN: OnceLock<QueueTopology> = OnceLock::new();
static READ: OnceLock<QueueTopology> = OnceLock::new();

struct Written;

impl Topic for Written {
    type Message = Bytes;
    type Codec = Plain;

    fn topology() -> &'static QueueTopology {
        WRITTEN.get_or_init(|| TopologyBuilder::new("written").build())
    }
}

struct Read;

impl Topic for Read {
    type Message = Bytes;
    type Codec = Plain;

    fn topology() -> &'static QueueTopology {
        READ.get_or_init(|| TopologyBuilder::new("read").build())
    }
}

impl NotSequenced for Read {}

impl Raw {
    async fn shove(&self) -> Outcome<Broker<Kafka>> {
        let config = KafkaConfig::new(&self.brokers)
            .with_producer_linger_ms(0)
            .with_producer_batch_size(1_000_000);
        Broker::new(config).await.map_err(text)
    }

    /// Sends from so many tasks, each awaiting the report of its message: a send has no other answer.
    pub(super) fn shove_produce(&self, messages: u64, size: usize, tasks: u64) -> Outcome<Sample> {
        self.runtime.block_on(async {
            if WRITTEN.get().is_none() {
                let topic = self.topic().await?;
                let _ = WRITTEN.set(TopologyBuilder::new(topic).build());
            }
            let topic = Written::topology().queue();
            let before = self.count(topic)?;
            let broker = self.shove().await?;
            let publisher = broker.publisher().await.map_err(text)?;
            let payloads = Payloads::new(size);
            let first = publisher.publish::<Written>(&payloads.of(0)).await;
            first.map_err(text)?;
            let meter = Meter::start();
            let sent = by_tasks(1..messages, tasks, |numbers| {
                let (publisher, payloads) = (publisher.clone(), payloads.clone());
                async move {
                    for number in numbers {
                        publisher.publish::<Written>(&payloads.of(number)).await?;
                    }
                    Ok::<_, shove::ShoveError>(())
                }
            });
            sent.await.map_err(text)?;
            let sample = meter.stop(messages - 1);
            broker.close().await;
            let stored = self.count(topic)? - before;
            if stored == messages {
                Ok(sample)
            } else {
                Err(format!("{stored} of {messages} messages are stored"))
            }
        })
    }

    /// Consumes in a group what is stored, in batches of at most 1,000, each of which is committed before the next. The clock
    /// stops with the last hand-over; the commit of that batch is not in it, but must be there.
    pub(super) fn shove_consume(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let group = self.name();
        let counting = Counting::new(messages);
        let topic = self.runtime.block_on(async {
            let stored = self.stored(messages, size).await?;
            let topic = READ.get_or_init(|| TopologyBuilder::new(stored).build());
            let broker = self.shove().await?;
            let options = BatchConsumerOptions::new()
                .with_group_id(&*group)
                .with_max_batch_size(TAKE)
                .with_shutdown(counting.enough());
            let consumer = broker.batch_consumer();
            let run = consumer.run::<Read, _>(counting.clone(), (), options);
            counting.until_enough(run).await?;
            broker.close().await;
            Ok::<_, String>(topic.queue())
        })?;
        self.committed(&group, topic, messages)?;
        counting.sample()
    }
}
