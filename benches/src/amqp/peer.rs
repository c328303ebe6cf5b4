//! The same work by `ruststream-lapin`, the transport of a framework of handlers. It cannot say where a stream is to be
//! read from, so its queues are classic durable ones, which are filled anew for each round.

use std::num::NonZeroU16;

use futures_util::StreamExt;
use ruststream::{Broker, ConnectedBroker, IncomingMessage, OutgoingMessage, Publisher, Subscriber};
use ruststream_lapin::{ConnectedLapinBroker, LapinBroker, LapinPublish, RabbitQueue};

use super::{AHEAD, Outcome, Raw, STILL, fill, text};
use crate::{
    meter::{Meter, Sample},
    ours::verify,
    payload::{Check, Payloads},
    tasks::by_tasks,
};

impl Raw {
    async fn ruststream(&self) -> Outcome<ConnectedLapinBroker> {
        let broker = LapinBroker::new(self.url.as_str());
        let broker = match NonZeroU16::new(AHEAD) {
            Some(ahead) => broker.prefetch(ahead),
            None => broker,
        };
        broker.connect().await.map_err(text)
    }

    /// Sends from so many tasks, each awaiting the confirm of its message: a send has no other answer.
    pub(super) fn ruststream_produce(&self, messages: u64, size: usize, tasks: u64) -> Outcome<Sample> {
        self.runtime.block_on(async {
            let (chan, queue) = self.queue("classic").await?;
            let broker = self.ruststream().await?;
            let publisher = broker.publisher(LapinPublish::default().persistent(true).confirms());
            let payloads = Payloads::new(size);
            let payload = payloads.of(0);
            let first = OutgoingMessage::new(&queue, &payload);
            publisher.publish(first, None).await.map_err(text)?;
            let meter = Meter::start();
            let sent = by_tasks(1..messages, tasks, |numbers| {
                let (publisher, queue, payloads) = (publisher.clone(), queue.clone(), payloads.clone());
                async move {
                    for number in numbers {
                        let payload = payloads.of(number);
                        let message = OutgoingMessage::new(&queue, &payload);
                        publisher.publish(message, None).await?;
                    }
                    Ok::<_, ruststream_lapin::AmqpError>(())
                }
            });
            sent.await.map_err(text)?;
            let sample = meter.stop(messages - 1);
            broker.shutdown().await.map_err(text)?;
            let left = chan
                .queue_purge(queue.as_str().into(), Default::default())
                .await
                .map_err(text)?;
            self.remove(&chan, &queue).await?;
            if u64::from(left) == messages {
                Ok(sample)
            } else {
                Err(format!("{left} of {messages} messages are stored"))
            }
        })
    }

    /// Consumes what a queue holds and acks each message, which is the only ack there is.
    pub(super) fn ruststream_consume(&self, messages: u64, size: usize) -> Outcome<Sample> {
        self.runtime.block_on(async {
            let (chan, queue) = self.queue("classic").await?;
            fill(&chan, &queue, messages, size, 1000).await?;
            let broker = self.ruststream().await?;
            let mut subscriber = broker.subscribe(RabbitQueue::new(&*queue)).await.map_err(text)?;
            let (mut check, mut meter) = (Check::default(), None);
            {
                let mut coming = Box::pin(subscriber.stream());
                for _ in 0..messages {
                    let message = tokio::time::timeout(STILL, coming.next()).await.map_err(text)?;
                    let message = message.ok_or("the stream ended")?.map_err(text)?;
                    check.take(message.payload());
                    message.ack().await.map_err(text)?;
                    meter.get_or_insert_with(Meter::start);
                }
            }
            let sample = meter.map(|meter| meter.stop(messages - 1));
            broker.shutdown().await.map_err(text)?;
            self.remove(&chan, &queue).await?;
            verify(check, messages)?;
            sample.ok_or_else(|| "nothing came".to_owned())
        })
    }
}
