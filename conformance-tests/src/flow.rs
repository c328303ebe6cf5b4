//! The steps that most cases take: send, take, compare.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use mq_api::{Consumer, Delivery, Error, ErrorKind, Message, Offset, Producer, Receipt};

use crate::{
    context::Context,
    failure::{CaseResult, Failure, ensure, fail, note},
};

/// How many items of a list a failure shows.
const SHOWN: usize = 12;

/// Remembers a delivery that was settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) payload: String,
    pub(crate) partition: u32,
    pub(crate) offset: Offset,
    pub(crate) attempt: u32,
    pub(crate) epoch: u64,
}

impl Taken {
    /// Remembers a delivery.
    pub(crate) fn of(delivery: &Delivery) -> Self {
        Self {
            payload: text(delivery),
            partition: delivery.partition(),
            offset: delivery.offset(),
            attempt: delivery.attempt(),
            epoch: delivery.epoch(),
        }
    }
}

/// Returns a delivery's payload as text.
pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.payload()).into_owned()
}

/// Makes the payloads `prefix-0` to `prefix-(n-1)`; the numbers have four digits, so that they sort.
pub(crate) fn numbered(prefix: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{prefix}-{i:04}")).collect()
}

/// Sends payloads without a key, pipelined and in order, and waits for all receipts.
pub(crate) async fn send(cx: &Context, producer: &Producer, payloads: &[String]) -> CaseResult<Vec<Receipt>> {
    send_messages(cx, producer, payloads.iter().cloned().map(Message::from)).await
}

/// Sends messages, pipelined and in order, and waits for all receipts.
pub(crate) async fn send_messages(
    cx: &Context,
    producer: &Producer,
    messages: impl IntoIterator<Item = Message>,
) -> CaseResult<Vec<Receipt>> {
    let mut pending = Vec::new();
    for message in messages {
        pending.push(producer.enqueue(message).await?);
    }
    settle_sends(cx, producer, pending).await
}

/// Sends payloads to one partition, pipelined and in order, and waits for all receipts.
pub(crate) async fn send_to(
    cx: &Context,
    producer: &Producer,
    partition: u32,
    payloads: &[String],
) -> CaseResult<Vec<Receipt>> {
    let mut pending = Vec::new();
    for payload in payloads {
        pending.push(producer.enqueue_to(partition, payload.clone()).await?);
    }
    settle_sends(cx, producer, pending).await
}

async fn settle_sends(
    cx: &Context,
    producer: &Producer,
    pending: Vec<mq_api::PendingReceipt>,
) -> CaseResult<Vec<Receipt>> {
    let mut receipts = Vec::with_capacity(pending.len());
    for (at, one) in pending.into_iter().enumerate() {
        let receipt = one.await.map_err(|error| {
            Failure::from(error).during(format!("message {at} sent to {}", producer.topic()))
        })?;
        receipts.push(receipt);
    }
    cx.count_sent(receipts.len());
    note!(cx, "sent {} messages to {}", receipts.len(), producer.topic());
    Ok(receipts)
}

/// Waits for one delivery within the progress time.
pub(crate) async fn one(cx: &Context, consumer: &Consumer) -> CaseResult<Delivery> {
    one_within(cx, consumer, cx.times().progress).await
}

/// Waits for one delivery within a limit.
pub(crate) async fn one_within(cx: &Context, consumer: &Consumer, limit: Duration) -> CaseResult<Delivery> {
    let delivery = cx
        .within(
            format!("a message for group {} of {}", consumer.group(), consumer.topic()),
            limit,
            consumer.consume(),
        )
        .await
        .inspect_err(|_| note!(cx, "the consumer that waits: {:?}", consumer.status()))??;
    cx.count_delivered(delivery.attempt());
    note!(
        cx,
        "group {} got {:?} (partition {}, offset {}, attempt {}, epoch {})",
        consumer.group(),
        shorten(&text(&delivery)),
        delivery.partition(),
        delivery.offset(),
        delivery.attempt(),
        delivery.epoch()
    );
    Ok(delivery)
}

/// Waits for `n` deliveries and keeps them un-settled.
pub(crate) async fn take(cx: &Context, consumer: &Consumer, n: usize) -> CaseResult<Vec<Delivery>> {
    let mut taken = Vec::with_capacity(n);
    while taken.len() < n {
        match one(cx, consumer).await {
            Ok(delivery) => taken.push(delivery),
            Err(failure) => {
                let came: Vec<_> = taken.iter().map(text).collect();
                return Err(failure.during(format!("{} of {n} messages came: {}", taken.len(), list(&came))));
            }
        }
    }
    Ok(taken)
}

/// Waits for `n` deliveries and acks each at once.
pub(crate) async fn take_acked(cx: &Context, consumer: &Consumer, n: usize) -> CaseResult<Vec<Taken>> {
    let mut taken = Vec::with_capacity(n);
    while taken.len() < n {
        match one(cx, consumer).await {
            Ok(delivery) => {
                taken.push(Taken::of(&delivery));
                delivery.ack()?;
            }
            Err(failure) => {
                let came: Vec<_> = taken.iter().map(|t| &t.payload).collect();
                return Err(failure.during(format!("{} of {n} messages came: {}", taken.len(), list(&came))));
            }
        }
    }
    Ok(taken)
}

/// Takes and acks until each of the payloads has come at least once, whatever else comes; returns all that came.
pub(crate) async fn take_until(
    cx: &Context,
    consumer: &Consumer,
    payloads: impl IntoIterator<Item = impl Into<String>>,
) -> CaseResult<Vec<Taken>> {
    let mut missing: BTreeSet<String> = payloads.into_iter().map(Into::into).collect();
    let mut taken = Vec::new();
    while !missing.is_empty() {
        match one(cx, consumer).await {
            Ok(delivery) => {
                let one = Taken::of(&delivery);
                delivery.ack()?;
                missing.remove(&one.payload);
                taken.push(one);
            }
            Err(failure) => {
                return Err(failure.during(format!(
                    "lost: {} messages never came: {}; {} came",
                    missing.len(),
                    list(&missing.iter().collect::<Vec<_>>()),
                    taken.len()
                )));
            }
        }
    }
    Ok(taken)
}

/// Watches that nothing is handed over for a while.
pub(crate) async fn nothing(cx: &Context, consumer: &Consumer, during: Duration) -> CaseResult {
    match tokio::time::timeout(during, consumer.consume()).await {
        Err(_) => {
            note!(cx, "group {} got nothing for {during:?}", consumer.group());
            Ok(())
        }
        Ok(Ok(delivery)) => {
            let (seen, offset, attempt) = (text(&delivery), delivery.offset(), delivery.attempt());
            fail!(
                "unexpected: group {} of {} got {:?} (partition {}, offset {offset}, attempt {attempt}) and should get nothing",
                consumer.group(),
                consumer.topic(),
                shorten(&seen),
                delivery.partition(),
            )
        }
        Ok(Err(error)) => Err(error.into()),
    }
}

/// Compares what came with what was sent, each exactly once: says what was lost, unexpected or came more than once.
pub(crate) fn each_once<S: AsRef<str>, E: AsRef<str>>(
    what: &str,
    came: impl IntoIterator<Item = S>,
    sent: impl IntoIterator<Item = E>,
) -> CaseResult {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for payload in came {
        *counts.entry(payload.as_ref().to_owned()).or_default() += 1;
    }
    let sent: BTreeSet<String> = sent
        .into_iter()
        .map(|payload| payload.as_ref().to_owned())
        .collect();
    let lost: Vec<_> = sent
        .iter()
        .filter(|payload| !counts.contains_key(*payload))
        .collect();
    let unexpected: Vec<_> = counts.keys().filter(|payload| !sent.contains(*payload)).collect();
    let doubled: Vec<_> = counts
        .iter()
        .filter(|(_, n)| **n > 1)
        .map(|(payload, _)| payload)
        .collect();
    // A take ends when as many have come as were sent: one that came and should not kept another one from being taken.
    let came: usize = counts.values().sum();
    let kept_out = came <= sent.len() && !(unexpected.is_empty() && doubled.is_empty());
    let word = if kept_out {
        "not among those that were taken"
    } else {
        "lost"
    };
    ensure!(
        lost.is_empty() && unexpected.is_empty() && doubled.is_empty(),
        "{what}: of {} messages {} {word}: {}; {} unexpected: {}; {} came more than once: {}",
        sent.len(),
        lost.len(),
        list(&lost),
        unexpected.len(),
        list(&unexpected),
        doubled.len(),
        list(&doubled)
    );
    Ok(())
}

/// Compares what came with what was sent, in order.
pub(crate) fn in_order<S: AsRef<str>, E: AsRef<str>>(what: &str, came: &[S], sent: &[E]) -> CaseResult {
    each_once(what, came, sent)?;
    for (at, (came, sent)) in came.iter().zip(sent).enumerate() {
        ensure!(
            came.as_ref() == sent.as_ref(),
            "{what}: reordered: at place {at} came {:?}, sent was {:?}",
            shorten(came.as_ref()),
            shorten(sent.as_ref())
        );
    }
    Ok(())
}

/// Checks that a call failed with a kind, and returns the error.
#[track_caller]
pub(crate) fn refused<T: Debug>(what: &str, result: Result<T, Error>, kind: ErrorKind) -> CaseResult<Error> {
    match result {
        Ok(value) => Err(Failure::new(format!(
            "{what}: expected {kind:?}, got Ok({value:?})"
        ))),
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(Failure::new(format!(
            "{what}: expected {kind:?}, got {:?}: {error}",
            error.kind()
        ))),
    }
}

/// Shows the first items of a list.
pub(crate) fn list<T: Debug>(items: &[T]) -> String {
    let mut shown = items
        .iter()
        .take(SHOWN)
        .map(|item| format!("{item:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    if items.len() > SHOWN {
        shown.push_str(&format!(", and {} more", items.len() - SHOWN));
    }
    format!("[{shown}]")
}

/// Shortens a payload for the log.
pub(crate) fn shorten(payload: &str) -> String {
    if payload.chars().count() > 60 {
        let start: String = payload.chars().take(60).collect();
        format!("{start}... ({} bytes)", payload.len())
    } else {
        payload.to_owned()
    }
}
