//! The same work by `sea-streamer-redis`, which puts consumer groups of the server behind an interface of its own.

use std::collections::VecDeque;

use sea_streamer_redis::{AutoCommit, AutoStreamReset, RedisConsumerOptions, RedisStreamer, SendFuture};
use sea_streamer_types::{
    Buffer, Consumer, ConsumerGroup, ConsumerMode, ConsumerOptions, Message, Producer, StreamKey, Streamer,
};

use super::{Outcome, Raw, text};
use crate::{
    meter::{Meter, Sample},
    ours::verify,
    payload::{Check, Payloads},
};

/// How many messages it takes at once, and acks together, as the raw client does here.
const BATCH: usize = 100;

impl Raw {
    async fn sea_streamer(&self) -> Outcome<RedisStreamer> {
        let url = format!("redis://{}", self.server.address());
        RedisStreamer::connect(url.parse().map_err(text)?, Default::default())
            .await
            .map_err(text)
    }

    /// Sends with so many messages in flight, from one task.
    pub(super) fn sea_produce(&self, messages: u64, size: usize, in_flight: usize) -> Outcome<Sample> {
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
        self.remove(&key)?;
        Ok(sample)
    }

    /// Consumes in a group what is stored, acks each message, and waits for the acks.
    pub(super) fn sea_group(&self, messages: u64, size: usize) -> Outcome<Sample> {
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
