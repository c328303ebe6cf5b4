//! Steps that several themes take: markers, which show that nothing more comes without waiting for a while, and going
//! on through outages, as a user's own loop does.

use std::{future::Future, time::Duration};

use mq_api::{Consumer, Delivery, Error, Mq, Producer, Reader};
use tokio::time::Instant;

use crate::{
    capability::Capability,
    context::Context,
    failure::{CaseResult, Failure, ensure, note},
    flow::{Taken, list, one, send_to},
};

/// Opens a reader where the backend has them: what a case claims of everything that a client opens holds without one too.
pub(crate) async fn reader(cx: &Context, mq: &Mq, topic: &str) -> CaseResult<Option<Reader>> {
    if !cx.can(Capability::Reader) {
        return Ok(None);
    }
    Ok(Some(mq.reader(topic).await?))
}

/// Takes and acks until a marker comes; returns what came before it.
pub(crate) async fn take_up_to(cx: &Context, consumer: &Consumer, marker: &str) -> CaseResult<Vec<Taken>> {
    let mut before = Vec::new();
    loop {
        let delivery = one(cx, consumer)
            .await
            .map_err(|failure| failure.during(format!("waiting for {marker:?} after {}", list(&before))))?;
        let taken = Taken::of(&delivery);
        delivery.ack()?;
        if taken.payload == marker {
            return Ok(before);
        }
        before.push(taken);
    }
}

/// Sends a marker to a partition and checks that the consumer gets it next: what went before is settled or another's.
pub(crate) async fn nothing_but_the_marker(
    cx: &Context,
    producer: &Producer,
    consumer: &Consumer,
    partition: u32,
) -> CaseResult {
    let marker = cx.name("marker");
    send_to(cx, producer, partition, std::slice::from_ref(&marker)).await?;
    let more = take_up_to(cx, consumer, &marker).await?;
    ensure!(
        more.is_empty(),
        "unexpected: {} messages came that were settled or another member's: {}",
        more.len(),
        list(&more)
    );
    Ok(())
}

/// Checks that each of these was handed over for the first time, as far as the counts say.
pub(crate) fn all_first_attempts(what: &str, taken: &[Taken]) -> CaseResult {
    for one in taken {
        ensure!(
            one.attempt == 1,
            "{what}: {:?} came as attempt {}, and nobody had been handed it before",
            one.payload,
            one.attempt
        );
    }
    Ok(())
}

/// Returns the payloads of what came.
pub(crate) fn payloads(taken: &[Taken]) -> Vec<&str> {
    taken.iter().map(|one| one.payload.as_str()).collect()
}

/// Consumes as a user does who goes on after errors that are worth a retry.
pub(crate) async fn one_through_outages(
    cx: &Context,
    consumer: &Consumer,
    until: Instant,
) -> CaseResult<Option<Delivery>> {
    loop {
        match tokio::time::timeout_at(until, consumer.consume()).await {
            Ok(Ok(delivery)) => {
                cx.count_delivered(delivery.attempt());
                return Ok(Some(delivery));
            }
            Ok(Err(error)) if error.is_retryable() => note!(cx, "consume goes on after: {error}"),
            Ok(Err(error)) => {
                return Err(Failure::from(error).during("consume met what is not worth a retry"));
            }
            Err(_) => return Ok(None),
        }
    }
}

/// Takes and acks until each of the payloads has come at least once, through outages; returns all that came.
pub(crate) async fn take_until_through_outages(
    cx: &Context,
    consumer: &Consumer,
    sent: &[String],
    limit: Duration,
) -> CaseResult<Vec<Taken>> {
    let until = Instant::now() + limit;
    let mut missing: std::collections::BTreeSet<&str> = sent.iter().map(String::as_str).collect();
    let mut taken = Vec::new();
    while !missing.is_empty() {
        let Some(delivery) = one_through_outages(cx, consumer, until).await? else {
            let lost: Vec<_> = missing.into_iter().collect();
            return Err(Failure::new(format!(
                "lost: {} of {} messages did not come within {limit:?}: {}",
                lost.len(),
                sent.len(),
                list(&lost)
            )));
        };
        let one = Taken::of(&delivery);
        // A stale ack is no harm: the message comes again.
        if let Err(error) = delivery.ack() {
            note!(cx, "ack of {:?}: {error}", one.payload);
        }
        missing.remove(one.payload.as_str());
        taken.push(one);
    }
    Ok(taken)
}

/// Repeats a call that failed with an error worth a retry, until the limit.
pub(crate) async fn retried<T, F: Future<Output = Result<T, Error>>>(
    cx: &Context,
    what: &str,
    limit: Duration,
    mut call: impl FnMut() -> F,
) -> CaseResult<T> {
    let until = Instant::now() + limit;
    loop {
        match tokio::time::timeout_at(until, call()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if error.is_retryable() && Instant::now() < until => {
                note!(cx, "{what} is repeated after: {error}");
                // Between tries of a call that fails at once.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(Err(error)) => return Err(Failure::from(error).during(what)),
            Err(_) => return Err(Failure::new(format!("{what} did not succeed within {limit:?}"))),
        }
    }
}
