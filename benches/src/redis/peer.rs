//! The same work by other libraries: here by `sea-streamer-redis`, which puts consumer groups of the server behind an
//! interface of its own.

mod bridge;
mod shove;

use std::{collections::VecDeque, rc::Rc};

use mq_api::Mode;
use sea_streamer_redis::{AutoCommit, AutoStreamReset, RedisConsumerOptions, RedisStreamer, SendFuture};
use sea_streamer_types::{
    Buffer, Consumer, ConsumerGroup, ConsumerMode, ConsumerOptions, Message, Producer, StreamKey, Streamer,
};

use super::{Outcome, Raw, text};
use crate::{
    meter::{Meter, Sample},
    ours::{Sending, verify},
    payload::{Check, Payloads},
    rounds::Goal,
    side::{self, Work},
    standard::Standard,
};

/// How many messages it takes at once, and acks together, as the raw client does here.
const BATCH: usize = 100;

/// Lists the work that other libraries do beside ours.
pub(super) fn works(all: &Standard, raw: &Rc<Raw>) -> [Work; 2] {
    let many = all.many;
    let by = |round| side::round(raw, many, round);
    let none = [Goal::Shown];
    [
        all.produce(Sending::InFlight(1000), 100)
            .against(
                "sea-streamer-redis",
                none,
                by(|raw, many| raw.sea_produce(many, 100, 1000)),
            )
            .against(
                "mq-bridge, 2 batches of 500",
                none,
                by(|raw, many| raw.bridge_produce(many, 100, 500, 2)),
            )
            .against(
                "shove, 1000 tasks",
                none,
                by(|raw, many| raw.shove_produce(many, 100, 1000)),
            ),
        all.consume(many, 100, Mode::Shared)
            .against(
                "sea-streamer-redis, 100 at once",
                [Goal::AtLeast(1.5)],
                by(|raw, many| raw.sea_group(many, 100)),
            )
            .against(
                "mq-bridge, 1000 at once",
                none,
                by(|raw, many| raw.bridge_group(many, 100)),
            )
            .against(
                "shove, 1000 at once",
                none,
                by(|raw, many| raw.shove_group(many, 100)),
            ),
    ]
}

impl Raw {
    /// Checks that a stream holds all messages.
    fn holds(&self, key: &str, messages: u64) -> Outcome<()> {
        let stored = self.server.command(&["XLEN", key]).map_err(text)?;
        if stored.trim() == messages.to_string() {
            Ok(())
        } else {
            Err(format!("{} of {messages} messages are stored", stored.trim()))
        }
    }

    /// Checks that a group has read all messages of a stream and that none of them waits for its ack.
    fn acked(&self, key: &str, group: &str, messages: u64) -> Outcome<()> {
        let asked = self.server.command(&["XPENDING", key, group]).map_err(text)?;
        let pending = asked.lines().next().unwrap_or_default().trim().to_owned();
        if pending == "0" {
            Ok(())
        } else {
            Err(format!("{pending} of {messages} messages have no ack"))
        }
    }

    async fn sea_streamer(&self) -> Outcome<RedisStreamer> {
        let url = format!("redis://{}", self.server.address());
        RedisStreamer::connect(url.parse().map_err(text)?, Default::default())
            .await
            .map_err(text)
    }

    /// Sends with so many messages in flight, from one task.
    fn sea_produce(&self, messages: u64, size: usize, in_flight: usize) -> Outcome<Sample> {
        let key = self.name();
        let payloads = Payloads::new(size);
        let sample = self.runtime.block_on(async {
            let streamer = self.sea_streamer().await?;
            let stream = StreamKey::new(&key).map_err(text)?;
            let producer = streamer
                .create_producer(stream, Default::default())
                .await
                .map_err(text)?;
            let meter = Meter::start();
            let mut pending = VecDeque::<SendFuture>::with_capacity(in_flight);
            for number in 0..messages {
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
            let sample = meter.stop(messages);
            producer.end().await.map_err(text)?;
            Ok::<_, String>(sample)
        })?;
        self.holds(&key, messages)?;
        self.remove(&key)?;
        Ok(sample)
    }

    /// Consumes in a group what is stored, acks each message, and waits for the acks.
    fn sea_group(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let group = self.name();
        let (sample, check) = self.runtime.block_on(async {
            let key = self.stored_in("msg", messages, size).await?;
            let streamer = self.sea_streamer().await?;
            let mut options = RedisConsumerOptions::new(ConsumerMode::LoadBalanced);
            options
                .set_consumer_group(ConsumerGroup::new(&group))
                .map_err(text)?;
            options.set_auto_stream_reset(AutoStreamReset::Earliest);
            options.set_auto_commit(AutoCommit::Disabled);
            options.set_batch_size(BATCH);
            let stream = StreamKey::new(&key).map_err(text)?;
            let meter = Meter::start();
            let mut consumer = streamer.create_consumer(&[stream], options).await.map_err(text)?;
            let mut check = Check::default();
            for number in 1..=messages {
                let message = consumer.next().await.map_err(text)?;
                check.take(message.message().as_bytes());
                consumer.ack(&message).map_err(text)?;
                if number.is_multiple_of(BATCH as u64) || number == messages {
                    consumer.commit().map_err(text)?.await.map_err(text)?;
                }
            }
            let sample = meter.stop(messages);
            consumer.end().await.map_err(text)?;
            Ok::<_, String>((sample, check))
        })?;
        verify(check, messages)?;
        Ok(sample)
    }
}
