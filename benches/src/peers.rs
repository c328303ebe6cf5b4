//! In-memory queues of other libraries: the same payloads, one by one, acked and checked.

use std::{sync::Arc, time::Instant};

use omniqueue::backends::InMemoryBackend;
use tokio::runtime::Runtime;

use crate::{core::Work, payload::Check, rounds::rate};

/// Runs a round of `omniqueue`. Its queue has no bound, so its sender never waits.
///
/// # Errors
/// Says what was lost or doubled, or what a call answered.
pub fn omniqueue(runtime: &Runtime, work: &Work) -> Result<f64, String> {
    runtime.block_on(async {
        let (producer, mut consumer) = InMemoryBackend::builder()
            .build_pair()
            .await
            .map_err(|error| error.to_string())?;
        let (count, payloads) = (work.messages, Arc::clone(&work.payloads));
        let begun = Instant::now();
        let sender = tokio::spawn(async move {
            for index in 0..count {
                producer.send_raw(&payloads.of(index)).await?;
                tokio::task::coop::consume_budget().await;
            }
            // The queue ends with its producer.
            Ok::<_, omniqueue::QueueError>(producer)
        });
        let receiver = tokio::spawn(async move {
            let mut check = Check::default();
            for _ in 0..count {
                let delivery = consumer.receive().await?;
                check.take(delivery.borrow_payload().unwrap_or_default());
                delivery.ack().await.map_err(|(error, _)| error)?;
            }
            Ok::<_, omniqueue::QueueError>(check)
        });
        let sent = sender.await.expect("the sender does not panic");
        let received = receiver.await.expect("the receiver does not panic");
        sent.map_err(|error| error.to_string())?;
        let check = received.map_err(|error| error.to_string())?;
        if check == Check::expected(count, 1) {
            Ok(rate(count, begun.elapsed()))
        } else {
            Err(format!("received {check:?} of {count}"))
        }
    })
}
