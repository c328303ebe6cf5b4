//! The same work by `mq-bridge`, whose publisher and consumer take batches.

use std::sync::Arc;

use mq_bridge::{
    CanonicalMessage,
    endpoints::redis_streams::{RedisStreamsConsumer, RedisStreamsPublisher},
    models::RedisStreamsConfig,
    traits::{MessageConsumer, MessageDisposition, MessagePublisher, SentBatch},
};

use super::super::{Outcome, Raw, text};
use crate::{
    meter::{Meter, Sample},
    ours::{STILL, TAKE, verify},
    payload::{Check, Payloads},
    tasks::by_tasks,
};

impl Raw {
    fn bridge(&self, key: &str) -> RedisStreamsConfig {
        RedisStreamsConfig::new(format!("redis://{}", self.server.address())).with_stream(key)
    }

    /// Sends batches of a size, one pipeline each, from so many tasks that await theirs.
    pub(super) fn bridge_produce(
        &self,
        messages: u64,
        size: usize,
        batch: u64,
        tasks: u64,
    ) -> Outcome<Sample> {
        let key = self.name();
        let payloads = Payloads::new(size);
        let sample = self.runtime.block_on(async {
            let publisher = RedisStreamsPublisher::new(&self.bridge(&key)).await;
            let publisher = Arc::new(publisher.map_err(text)?);
            let meter = Meter::start();
            let sent = by_tasks(0..messages.div_ceil(batch), tasks, |batches| {
                let (publisher, payloads) = (Arc::clone(&publisher), payloads.clone());
                async move {
                    for first in batches.map(|index| index * batch) {
                        let numbers = first..(first + batch).min(messages);
                        let batch_of = numbers.map(|number| {
                            CanonicalMessage::new_bytes(payloads.of(number), Some(u128::from(number)))
                        });
                        match publisher.send_batch(batch_of.collect()).await {
                            Ok(SentBatch::Ack) => {}
                            Ok(_) => return Err("a part is not stored".to_owned()),
                            Err(error) => return Err(text(error)),
                        }
                    }
                    Ok(())
                }
            });
            sent.await?;
            Ok::<_, String>(meter.stop(messages))
        })?;
        self.holds(&key, messages)?;
        self.remove(&key)?;
        Ok(sample)
    }

    /// Consumes in a group what is stored, in batches of at most 1,000, and waits for the acks of each.
    pub(super) fn bridge_group(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let group = self.name();
        let (key, sample, check) = self.runtime.block_on(async {
            let key = self.stored(messages, size).await?;
            let config = RedisStreamsConfig {
                read_from_start: true,
                internal_buffer_size: Some(TAKE),
                ..self.bridge(&key).with_group(&*group)
            };
            let meter = Meter::start();
            let mut consumer = RedisStreamsConsumer::new(&config).await.map_err(text)?;
            let (mut check, mut left) = (Check::default(), messages);
            while left > 0 {
                let batch = tokio::time::timeout(STILL, consumer.receive_batch(TAKE)).await;
                let batch = batch.map_err(text)?.map_err(text)?;
                left = left.saturating_sub(batch.messages.len() as u64);
                for message in &batch.messages {
                    check.take(&message.payload);
                }
                let acks = vec![MessageDisposition::Ack; batch.messages.len()];
                (batch.commit)(acks).await.map_err(text)?;
            }
            Ok::<_, String>((key, meter.stop(messages), check))
        })?;
        self.acked(&key, &group, messages)?;
        verify(check, messages)?;
        Ok(sample)
    }
}
