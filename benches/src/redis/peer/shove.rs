//! The same work by `shove`, a framework of handlers. It carries text alone on Redis, so that a payload is as long as the
//! others' and names its number in digits. Its groups begin at the end of a stream, so that a stream is filled for each
//! round after the group was made.

use std::sync::OnceLock;

use bytes::Bytes;
use shove::{
    BatchConsumerOptions, Broker, Codec, NotSequenced, QueueTopology, Redis, ShoveError, Topic,
    TopologyBuilder,
    redis::{RedisConfig, RedisMode},
};

use super::super::{Outcome, Raw, text};
use crate::{
    handler::Counting,
    meter::{Meter, Sample},
    ours::TAKE,
    payload::Payloads,
    tasks::by_tasks,
};

/// Writes the number that a payload begins with as 16 digits and the rest as so many letters.
struct Digits;

impl Codec<Bytes> for Digits {
    const NAME: &'static str = "digits";

    fn encode(value: &Bytes) -> shove::error::Result<Vec<u8>> {
        let number = value
            .first_chunk()
            .map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        let mut text = format!("{number:016x}").into_bytes();
        text.resize(value.len().max(16), b'x');
        Ok(text)
    }

    fn decode(bytes: &[u8]) -> shove::error::Result<Bytes> {
        let digits = bytes
            .get(..16)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let number = number.ok_or_else(|| ShoveError::Codec {
            codec: Self::NAME,
            source: "no number".into(),
        })?;
        Ok(Bytes::copy_from_slice(&number.to_le_bytes()))
    }
}

static NAME: OnceLock<QueueTopology> = OnceLock::new();

/// The stream that is written and read: a topic is a type, so it has one name in a run.
struct Stream;

impl Topic for Stream {
    type Message = Bytes;
    type Codec = Digits;

    fn topology() -> &'static QueueTopology {
        NAME.get_or_init(|| TopologyBuilder::new("shoved").build())
    }
}

impl NotSequenced for Stream {}

impl Raw {
    async fn shove(&self, group: &str) -> Outcome<Broker<Redis>> {
        let url = format!("redis://{}", self.server.address());
        let config = RedisConfig::new(RedisMode::Standalone { url }).with_group(group);
        let broker = Broker::<Redis>::new(config).await.map_err(text)?;
        broker.topology().declare::<Stream>().await.map_err(text)?;
        Ok(broker)
    }

    /// Sends from so many tasks, each awaiting the answer to its message: a send has no other answer.
    async fn shove_fill(broker: &Broker<Redis>, messages: u64, size: usize, tasks: u64) -> Outcome<Sample> {
        let publisher = broker.publisher().await.map_err(text)?;
        let payloads = Payloads::new(size);
        let meter = Meter::start();
        let sent = by_tasks(0..messages, tasks, |numbers| {
            let (publisher, payloads) = (publisher.clone(), payloads.clone());
            async move {
                for number in numbers {
                    publisher.publish::<Stream>(&payloads.of(number)).await?;
                }
                Ok::<_, ShoveError>(())
            }
        });
        sent.await.map_err(text)?;
        Ok(meter.stop(messages))
    }

    pub(super) fn shove_produce(&self, messages: u64, size: usize, tasks: u64) -> Outcome<Sample> {
        let sample = self.runtime.block_on(async {
            let broker = self.shove(&self.name()).await?;
            let sample = Self::shove_fill(&broker, messages, size, tasks).await?;
            broker.close().await;
            Ok::<_, String>(sample)
        })?;
        let key = Stream::topology().queue();
        self.holds(key, messages)?;
        self.remove(key)?;
        Ok(sample)
    }

    /// Consumes in a group, in batches of at most 1,000. The clock stops with the last hand-over; the acks of that batch are
    /// not in it, but must be there.
    pub(super) fn shove_group(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let group = self.name();
        let counting = Counting::new(messages);
        self.runtime.block_on(async {
            let broker = self.shove(&group).await?;
            Self::shove_fill(&broker, messages, size, 1000).await?;
            let options = BatchConsumerOptions::new()
                .with_max_batch_size(TAKE)
                .with_shutdown(counting.enough());
            let consumer = broker.batch_consumer();
            let run = consumer.run::<Stream, _>(counting.clone(), (), options);
            counting.until_enough(run).await?;
            broker.close().await;
            Ok::<_, String>(())
        })?;
        let key = Stream::topology().queue();
        self.acked(key, &group, messages)?;
        self.remove(key)?;
        counting.sample()
    }
}
