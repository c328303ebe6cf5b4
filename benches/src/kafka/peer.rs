//! The same work by other libraries: here by `sea-streamer-kafka`, which puts librdkafka's Rust wrapper behind an interface
//! of its own.

mod ruststream;
mod shove;

use std::{
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use mq_api::Mode;
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    types::RDKafkaErrorCode,
};
use sea_streamer_kafka::{
    AutoOffsetReset, KafkaConsumerOptions, KafkaProducerOptions, KafkaStreamer, SendFuture,
};
use sea_streamer_types::{
    Buffer, Consumer, ConsumerGroup, ConsumerMode, ConsumerOptions, Message, Producer, StreamKey, Streamer,
};

use super::{Outcome, Raw, STILL, text};
use crate::{
    meter::{Meter, Sample},
    ours::{Sending, TAKE, verify},
    payload::{Check, Payloads},
    rounds::Goal,
    side::{self, Work},
    standard::Standard,
};

/// Lists the work that other libraries do beside ours.
pub(super) fn works(all: &Standard, raw: &Rc<Raw>) -> [Work; 2] {
    let many = all.many;
    let by = |round| side::round(raw, many, round);
    let none = [Goal::Shown];
    [
        all.produce(Sending::InFlight(1000), 100)
            .against(
                "sea-streamer-kafka",
                none,
                by(|raw, many| raw.sea_produce(many, 100, 1000)),
            )
            .against(
                "ruststream-rdkafka, 1000 tasks",
                none,
                by(|raw, many| raw.ruststream_produce(many, 100, 1000)),
            )
            .against(
                "shove, 1000 tasks",
                none,
                by(|raw, many| raw.shove_produce(many, 100, 1000)),
            ),
        all.consume(many, 100, Mode::Partitioned)
            .against(
                "sea-streamer-kafka",
                none,
                by(|raw, many| raw.sea_consume(many, 100)),
            )
            .against(
                "ruststream-rdkafka, batches",
                none,
                by(|raw, many| raw.ruststream_consume(many, 100)),
            )
            .against(
                "shove, batches",
                none,
                by(|raw, many| raw.shove_consume(many, 100)),
            ),
    ]
}

/// How long after its end a group's last commit may be missing.
const SEEN: Duration = Duration::from_secs(10);

impl Raw {
    /// Checks that a group that has ended, perhaps a moment ago, has stored that all messages of a topic are consumed.
    fn committed(&self, group: &str, topic: &str, messages: u64) -> Outcome<()> {
        let asking: BaseConsumer = self.reading(group).create().map_err(text)?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, 0);
        let by = Instant::now() + SEEN;
        loop {
            let list = asking.committed_offsets(asked.clone(), STILL).map_err(text)?;
            let stored = list
                .find_partition(topic, 0)
                .and_then(|one| one.offset().to_raw());
            if stored.and_then(|offset| u64::try_from(offset).ok()) == Some(messages) {
                return Ok(());
            }
            if Instant::now() > by {
                return Err(format!("{stored:?} of {messages} is committed"));
            }
            let pause = async { tokio::time::sleep(Duration::from_millis(50)).await };
            self.runtime.block_on(pause);
        }
    }

    async fn sea_streamer(&self) -> Outcome<KafkaStreamer> {
        let url = format!("kafka://{}", self.brokers);
        KafkaStreamer::connect(url.parse().map_err(text)?, Default::default())
            .await
            .map_err(text)
    }

    /// Sends with so many messages in flight, from one task.
    fn sea_produce(&self, messages: u64, size: usize, in_flight: usize) -> Outcome<Sample> {
        let payloads = Payloads::new(size);
        self.runtime.block_on(async {
            let topic = self.topic().await?;
            let streamer = self.sea_streamer().await?;
            let mut options = KafkaProducerOptions::default();
            for (name, value) in self.sending().config_map() {
                options.add_custom_option(name, value);
            }
            let stream = StreamKey::new(&topic).map_err(text)?;
            let producer = streamer.create_producer(stream, options).await.map_err(text)?;
            let first = producer.send(&payloads.of(0)[..]).map_err(text)?;
            first.await.map_err(text)?;
            let meter = Meter::start();
            let mut pending = VecDeque::<SendFuture>::with_capacity(in_flight);
            for number in 1..messages {
                if pending.len() == in_flight
                    && let Some(oldest) = pending.pop_front()
                {
                    oldest.await.map_err(text)?;
                }
                pending.push_back(producer.send(&payloads.of(number)[..]).map_err(text)?);
            }
            for sent in pending {
                sent.await.map_err(text)?;
            }
            let sample = meter.stop(messages - 1);
            producer.end().await.map_err(text)?;
            self.holds(&topic, messages)?;
            self.remove(&topic).await?;
            Ok(sample)
        })
    }

    /// Consumes in a group what is stored, and stores the position of each message, which is committed after each 1,000:
    /// a commit of its own waits for the answer each time.
    fn sea_consume(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let group = self.name();
        let (sample, check) = self.runtime.block_on(async {
            let topic = self.stored(messages, size).await?;
            let streamer = self.sea_streamer().await?;
            let mut options = KafkaConsumerOptions::new(ConsumerMode::LoadBalanced);
            options.set_group_id(ConsumerGroup::new(&group));
            options.set_auto_offset_reset(AutoOffsetReset::Earliest);
            options.set_enable_auto_commit(false);
            options.set_enable_auto_offset_store(false);
            for (name, value) in self.reading(&group).config_map() {
                options.add_custom_option(name, value);
            }
            let stream = StreamKey::new(&topic).map_err(text)?;
            let mut consumer = streamer.create_consumer(&[stream], options).await.map_err(text)?;
            let (mut check, mut meter) = (Check::default(), None);
            for number in 1..=messages {
                let place = {
                    let message = consumer.next().await.map_err(text)?;
                    check.take(message.message().as_bytes());
                    (message.stream_key(), message.shard_id(), message.sequence())
                };
                meter.get_or_insert_with(Meter::start);
                consumer.store_offset_with(&place).map_err(text)?;
                if number.is_multiple_of(TAKE as u64) {
                    consumer
                        .inner()
                        .commit_consumer_state(CommitMode::Async)
                        .map_err(text)?;
                }
            }
            let last = consumer.inner().commit_consumer_state(CommitMode::Sync);
            let sample = meter.map(|meter| meter.stop(messages - 1));
            match last {
                // The commit before it has stored everything.
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NoOffset) => {}
                last => last.map_err(text)?,
            }
            Ok::<_, String>((sample, check))
        })?;
        verify(check, messages)?;
        sample.ok_or_else(|| "nothing came".to_owned())
    }
}
