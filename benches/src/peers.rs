//! In-memory queues of other libraries: the same payloads, one by one, acked and checked.

use std::{
    fmt::Display,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::Stream;
use mq_bridge::{
    CanonicalMessage,
    endpoints::memory::{MemoryConsumer, MemoryPublisher},
    traits::{MessageConsumer, MessageDisposition, MessagePublisher},
};
use omniqueue::backends::InMemoryBackend;
use ruststream::{IncomingMessage, OutgoingMessage, Publisher, Subscriber, memory::MemoryBroker};
use tokio::{runtime::Runtime, task::coop};

use crate::{
    core::Load,
    meter::{Meter, Sample},
    payload::{Check, Payloads},
};

/// A round of another library.
pub type Round = fn(&Runtime, &Load) -> Result<Sample, String>;

/// The libraries, by name.
pub const ALL: [(&str, Round); 3] = [
    ("omniqueue", omniqueue),
    ("mq-bridge", mq_bridge),
    ("ruststream", ruststream),
];

fn text(error: impl Display) -> String {
    error.to_string()
}

/// Runs a sender and a receiver as tasks of their own, and judges what came.
async fn exchange(
    load: &Load,
    sender: impl Future<Output = Result<(), String>> + Send + 'static,
    receiver: impl Future<Output = Result<Check, String>> + Send + 'static,
) -> Result<Sample, String> {
    let meter = Meter::start();
    let (sender, receiver) = (tokio::spawn(sender), tokio::spawn(receiver));
    let sent = sender.await.expect("the sender does not panic");
    let received = receiver.await.expect("the receiver does not panic");
    sent?;
    let check = received?;
    let sample = meter.stop(load.messages);
    if check == Check::expected(load.messages, 1) {
        Ok(sample)
    } else {
        Err(format!("received {check:?} of {}", load.messages))
    }
}

fn payloads(load: &Load) -> impl Iterator<Item = Bytes> + Send + 'static {
    let (count, payloads): (u64, Arc<Payloads>) = (load.messages, Arc::clone(&load.payloads));
    (0..count).map(move |index| payloads.of(index))
}

/// Runs a round of `omniqueue`. Its queue has no bound, so its sender never waits.
///
/// # Errors
/// Says what was lost or doubled, or what a call answered.
pub fn omniqueue(runtime: &Runtime, load: &Load) -> Result<Sample, String> {
    runtime.block_on(async {
        let pair = InMemoryBackend::builder().build_pair().await;
        let (producer, mut consumer) = pair.map_err(text)?;
        // The queue ends with its producer.
        let producer = Arc::new(producer);
        let (queue, count) = (Arc::clone(&producer), load.messages);
        let payloads = payloads(load);
        let sender = async move {
            for payload in payloads {
                queue.send_raw(&payload).await.map_err(text)?;
                coop::consume_budget().await;
            }
            Ok(())
        };
        let receiver = async move {
            let mut check = Check::default();
            for _ in 0..count {
                let delivery = consumer.receive().await.map_err(text)?;
                check.take(delivery.borrow_payload().unwrap_or_default());
                delivery.ack().await.map_err(|(error, _)| text(error))?;
            }
            Ok(check)
        };
        let result = exchange(load, sender, receiver).await;
        drop(producer);
        result
    })
}

/// Runs a round of `mq-bridge`, over its channel for 1024 sends.
///
/// # Errors
/// Says what was lost or doubled, or what a call answered.
pub fn mq_bridge(runtime: &Runtime, load: &Load) -> Result<Sample, String> {
    /// Its channels live as long as the process and are known by name.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    runtime.block_on(async {
        let name = format!("bench{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let publisher = MemoryPublisher::new_local(&name, 1024);
        let mut consumer = MemoryConsumer::new_local(&name, 1024);
        let count = load.messages;
        let payloads = payloads(load);
        let sender = async move {
            for (id, payload) in (1..).zip(payloads) {
                let message = CanonicalMessage::new_bytes(payload, Some(id));
                publisher.send(message).await.map_err(text)?;
                coop::consume_budget().await;
            }
            Ok(())
        };
        let receiver = async move {
            let mut check = Check::default();
            for _ in 0..count {
                let received = consumer.receive().await.map_err(text)?;
                check.take(&received.message.payload);
                (received.commit)(MessageDisposition::Ack).await.map_err(text)?;
            }
            Ok(check)
        };
        exchange(load, sender, receiver).await
    })
}

/// Runs a round of `ruststream`. Its queue has no bound, so its sender never waits; it takes payloads that are its own.
///
/// # Errors
/// Says what was lost or doubled, or what a call answered.
pub fn ruststream(runtime: &Runtime, load: &Load) -> Result<Sample, String> {
    runtime.block_on(async {
        let broker = MemoryBroker::new();
        let publisher = broker.publisher();
        let mut subscriber = broker.subscribe("t");
        let count = load.messages;
        let payloads = payloads(load);
        let sender = async move {
            for payload in payloads {
                let message = OutgoingMessage::new("t", &payload[..]);
                publisher.publish(message, None).await.map_err(text)?;
                coop::consume_budget().await;
            }
            Ok(())
        };
        let receiver = async move {
            let mut check = Check::default();
            let mut stream = pin!(subscriber.stream());
            for _ in 0..count {
                let next = poll_fn(|cx| stream.as_mut().poll_next(cx)).await;
                let message = next.ok_or("the stream ended")?.map_err(text)?;
                check.take(message.payload());
                message.ack().await.map_err(text)?;
            }
            Ok(check)
        };
        exchange(load, sender, receiver).await
    })
}
