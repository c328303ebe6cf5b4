//! The same work by `ruststream-rdkafka`, the transport of a framework of handlers, without the framework.

use futures_util::StreamExt;
use ruststream::{BatchSubscriber, Broker, ConnectedBroker, IncomingMessage, OutgoingMessage, Publisher};
use ruststream_rdkafka::{Commit, ConnectedKafkaBroker, KafkaBroker, KafkaPublish, KafkaTopic};

use super::super::{COMMIT_INTERVAL, Outcome, Raw, STILL, TAKE, text};
use crate::{
    meter::{Meter, Sample},
    ours::verify,
    payload::{Check, Payloads},
    tasks::by_tasks,
};

impl Raw {
    async fn ruststream(&self) -> Outcome<ConnectedKafkaBroker> {
        let mut broker = KafkaBroker::new([self.brokers.clone()]);
        for (name, value) in self.sending().config_map() {
            broker = broker.producer_config(name, value);
        }
        broker.connect().await.map_err(text)
    }

    /// Sends from so many tasks, each awaiting the report of its message: a send has no other answer.
    pub(super) fn ruststream_produce(&self, messages: u64, size: usize, tasks: u64) -> Outcome<Sample> {
        self.runtime.block_on(async {
            let topic = self.topic().await?;
            let broker = self.ruststream().await?;
            let publisher = broker.publisher(KafkaPublish::default());
            let payloads = Payloads::new(size);
            let payload = payloads.of(0);
            let first = OutgoingMessage::new(&topic, &payload);
            publisher.publish(first, None).await.map_err(text)?;
            let meter = Meter::start();
            let sent = by_tasks(1..messages, tasks, |numbers| {
                let (publisher, topic, payloads) = (publisher.clone(), topic.clone(), payloads.clone());
                async move {
                    for number in numbers {
                        let payload = payloads.of(number);
                        let message = OutgoingMessage::new(&topic, &payload);
                        publisher.publish(message, None).await?;
                    }
                    Ok::<_, ruststream_rdkafka::KafkaError>(())
                }
            });
            sent.await.map_err(text)?;
            let sample = meter.stop(messages - 1);
            broker.shutdown().await.map_err(text)?;
            self.holds(&topic, messages)?;
            self.remove(&topic).await?;
            Ok(sample)
        })
    }

    /// Consumes in a group what is stored, in batches of at most 1,000, and acks each message. The positions go out at the
    /// interval that ours has. The clock stops with the last ack; the last commit, which its close makes, is not in it, but
    /// must be there.
    pub(super) fn ruststream_consume(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let group = self.name();
        let (topic, sample, check) = self.runtime.block_on(async {
            let topic = self.stored(messages, size).await?;
            let broker = self.ruststream().await?;
            let mut source = KafkaTopic::new(&*topic).group(&*group).commit(Commit::Tracked);
            for (name, value) in self.reading(&group).config_map() {
                // It commits by the client's timer, from positions that acks store.
                if name != "enable.auto.commit" && name != "enable.auto.offset.store" {
                    source = source.config(name, value);
                }
            }
            let interval = COMMIT_INTERVAL.as_millis().to_string();
            let source = source.config("auto.commit.interval.ms", interval);
            let mut subscriber = broker.subscribe_with(source).await.map_err(text)?;
            let (mut check, mut meter, mut left, mut first) = (Check::default(), None, messages, 0);
            {
                let size = TAKE.try_into().map_err(text)?;
                let mut coming = Box::pin(subscriber.batches(size));
                while left > 0 {
                    let batch = tokio::time::timeout(STILL, coming.next()).await.map_err(text)?;
                    let batch = batch.ok_or("the stream ended")?.map_err(text)?;
                    meter.get_or_insert_with(|| {
                        first = batch.len() as u64;
                        Meter::start()
                    });
                    left = left.saturating_sub(batch.len() as u64);
                    for message in batch {
                        check.take(message.payload());
                        message.ack().await.map_err(text)?;
                    }
                }
            }
            let sample = meter.map(|meter| meter.stop(messages - first));
            let closing = tokio::task::spawn_blocking(move || drop(subscriber));
            closing.await.map_err(text)?;
            broker.shutdown().await.map_err(text)?;
            Ok::<_, String>((topic, sample, check))
        })?;
        self.committed(&group, &topic, messages)?;
        verify(check, messages)?;
        sample.ok_or_else(|| "nothing came".to_owned())
    }
}
