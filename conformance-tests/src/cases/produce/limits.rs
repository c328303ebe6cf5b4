//! Batches, limits, flush, and a server that does not answer.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use mq_api::{
    DEFAULT_MAX_METADATA, DEFAULT_MAX_PAYLOAD, Error, ErrorKind, Message, Mq, Outcome,
    driver::{Producer as DriverProducer, SendBatch},
};

use crate::{
    checker::Expect,
    context::{Context, Measured},
    failure::{CaseResult, Failure, ensure, fail, note},
    flow::{each_once, in_order, numbered, refused, take_acked},
    history::How,
    wrap::{Scope, Tweak, Tweaked},
};

/// G10 bad input: a batch gives one result a message, in order, and a bad one fails alone.
pub(super) async fn batch_gives_one_result_a_message(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("batch", 1).await?;
    let producer = mq.producer(&topic).await?;
    let messages = vec![
        Message::from("b-0".to_owned()),
        Message::new(vec![b'x'; DEFAULT_MAX_PAYLOAD + 1]),
        Message::from("b-2".to_owned()),
        Message::new("b-3").with_header("mq-mine", "reserved"),
        Message::new("b-4").with_header("a", "1").with_header("a", "2"),
        Message::from("b-5".to_owned()),
    ];
    let results = producer.produce_batch(messages).await;
    ensure!(results.len() == 6, "6 messages gave {} results", results.len());
    let expected = [
        None,
        Some(ErrorKind::MessageTooLarge),
        None,
        Some(ErrorKind::InvalidMessage),
        Some(ErrorKind::InvalidMessage),
        None,
    ];
    for (at, (result, expected)) in results.iter().zip(expected).enumerate() {
        let kind = result.as_ref().err().map(Error::kind);
        ensure!(
            kind == expected,
            "message {at} of the batch: expected {expected:?}, got {result:?}"
        );
        if let Err(error) = result {
            ensure!(
                error.outcome() == Outcome::NotSent,
                "message {at} of the batch: the outcome is {:?}",
                error.outcome()
            );
        }
    }
    let good = producer.produce_batch(numbered("more", 500)).await;
    for (at, result) in good.into_iter().enumerate() {
        result.map_err(|error| Failure::from(error).during(format!("message {at} of a good batch")))?;
    }
    ensure!(
        producer.produce_batch(Vec::<Message>::new()).await.is_empty(),
        "an empty batch gave results"
    );
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_acked(&cx, &consumer, 503).await?;
    let mut sent: Vec<String> = ["b-0", "b-2", "b-5"].map(str::to_owned).into();
    sent.extend(numbered("more", 500));
    let came: Vec<_> = taken.iter().map(|t| &t.payload).collect();
    in_order("batches of one partition", &came, &sent)
}

/// G18 messages: what is over the limit is refused before it is sent, and disturbs nothing.
pub(super) async fn oversized_message_is_refused_and_the_next_works(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("large", 1).await?;
    let producer = mq.producer(&topic).await?;
    let too_large = [
        (
            "a payload one byte over",
            Message::new(vec![7; DEFAULT_MAX_PAYLOAD + 1]),
        ),
        ("a payload of 8 MiB", Message::new(vec![7; 8 * 1024 * 1024])),
        (
            "a key over the room of the metadata",
            Message::new("k").with_key(vec![7; DEFAULT_MAX_METADATA + 1]),
        ),
        (
            "headers over the room of the metadata",
            Message::new("h").with_header("large", vec![7; DEFAULT_MAX_METADATA]),
        ),
    ];
    let mut sent = Vec::new();
    for (what, message) in too_large {
        let error = refused(what, producer.produce(message).await, ErrorKind::MessageTooLarge)?;
        ensure!(
            error.outcome() == Outcome::NotSent,
            "{what}: the outcome is {:?}",
            error.outcome()
        );
        ensure!(!error.is_retryable(), "{what}: {error} says that it is retryable");
        let next = format!("after {what}");
        producer
            .produce(next.clone())
            .await
            .map_err(|error| Failure::from(error).during(format!("the message after {what}")))?;
        sent.push(next);
    }
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_acked(&cx, &consumer, sent.len()).await?;
    each_once(
        "messages between refused ones",
        taken.iter().map(|t| &t.payload),
        &sent,
    )?;
    crate::flow::nothing(&cx, &consumer, Duration::from_millis(200)).await
}

/// G1 close and flush: after a flush everything enqueued before it has its result.
pub(super) async fn flush_settles_what_was_enqueued(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("flush", 3).await?;
    let producer = mq.producer(&topic).await?;
    let mut sent = Vec::new();
    for round in 0..5 {
        let mut pending = Vec::new();
        for payload in numbered(&format!("round{round}"), 400) {
            pending.push(producer.enqueue(payload.clone()).await?);
            sent.push(payload);
        }
        producer.flush().await?;
        for (at, one) in pending.into_iter().enumerate() {
            match one.now_or_never() {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => fail!("round {round}: message {at} of 400 has no result after the flush"),
            }
        }
        let status = producer.status();
        ensure!(
            status.buffered_messages == 0 && status.in_flight_messages == 0,
            "round {round}: after the flush {} messages are buffered and {} under way",
            status.buffered_messages,
            status.in_flight_messages
        );
    }
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_acked(&cx, &consumer, sent.len()).await?;
    each_once("flushed messages", taken.iter().map(|t| &t.payload), &sent)
}

/// Fails every send while it is on, as a connection that is cut does.
#[derive(Debug, Default)]
struct CutSends {
    cut: AtomicBool,
}

impl Tweak for CutSends {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn DriverProducer>, batch: SendBatch) {
        if self.cut.load(Ordering::SeqCst) {
            let error = Error::new(ErrorKind::Connection, "the connection is cut for a test")
                .with_outcome(Outcome::Unknown)
                .with_retryable(false);
            batch.fail_all(&error);
        } else {
            inner.send(batch);
        }
    }
}

/// G1 one-way sends: they arrive without anybody waiting, and those that fail here are counted.
pub(super) async fn one_way_sends_arrive_and_failures_are_counted(cx: Context) -> CaseResult {
    let topic = cx.topic("oneway", 2).await?;
    let plain = cx.connect().await?;
    let cut = Arc::new(CutSends::default());
    let tweak: Arc<dyn Tweak> = cut.clone();
    let mq = Mq::from_driver(Tweaked::new(Arc::clone(plain.driver()), tweak));
    cx.keep(&mq);
    let producer = mq.producer(&topic).await?;
    let sent = numbered("oneway", 500);
    for payload in &sent {
        producer.send_one_way(payload.clone())?;
    }
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_acked(&cx, &consumer, sent.len()).await?;
    each_once("one-way sends", taken.iter().map(|t| &t.payload), &sent)?;
    let failures = producer.status().one_way_failures;
    ensure!(
        failures == 0,
        "all one-way sends arrived and {failures} failures are counted"
    );

    cut.cut.store(true, Ordering::SeqCst);
    for payload in numbered("cut", 20) {
        producer.send_one_way(payload)?;
    }
    cx.eventually(
        "20 failures of one-way sends are counted",
        cx.times().progress,
        || async { Ok((producer.status().one_way_failures == 20).then_some(())) },
    )
    .await
    .map_err(|failure| failure.during(format!("{} are counted", producer.status().one_way_failures)))?;
    cut.cut.store(false, Ordering::SeqCst);
    producer.send_one_way("mended")?;
    let taken = take_acked(&cx, &consumer, 1).await?;
    each_once(
        "the one-way send after the cut",
        taken.iter().map(|t| &t.payload),
        ["mended"],
    )
}

/// G9 no unbounded wait: with a server that does not answer, memory stays bounded and each send ends in its
/// deadline with an outcome that holds; then it goes on.
pub(super) async fn sends_to_a_frozen_server_end_in_their_deadline(cx: Context) -> CaseResult {
    const DEADLINE: Duration = Duration::from_secs(3);
    const SLACK: Duration = Duration::from_secs(2);
    const BUFFER: usize = 200;
    const BYTES: usize = 1024 * 1024;
    const TASKS: usize = 500;
    const PARTITIONS: u32 = 2;
    let mq = cx.mq().await?;
    let topic = cx.topic("frozen", PARTITIONS).await?;
    let producer = mq
        .producer(&topic)
        .timeout(DEADLINE)
        .buffer_messages(BUFFER)
        .buffer_bytes(BYTES)
        .await?;
    let history = cx.history().clone();
    let mut before = history.sender(&producer, "before");
    before.send_all(50, None, 100).await;

    cx.fault("freeze", cx.server().freeze()).await?;
    let frozen = Instant::now();
    let tasks = (0..TASKS).map(|task| {
        let mut sender = history.sender(&producer, &format!("frozen{task}"));
        tokio::spawn(async move {
            let begun = Instant::now();
            let result = sender.send(None, 1000).await;
            (result, begun.elapsed())
        })
    });
    let tasks: Vec<_> = tasks.collect();
    // A plain timer for the same time, begun behind them all: it is late by what the machine adds.
    let timer = tokio::spawn(async move {
        let begun = Instant::now();
        tokio::time::sleep(DEADLINE).await;
        begun.elapsed().saturating_sub(DEADLINE)
    });
    let mut most = 0;
    while frozen.elapsed() < DEADLINE / 2 {
        let status = producer.status();
        most = most.max(status.buffered_messages);
        // Beside what is in the buffer, one message may be on its way into each partition.
        ensure!(
            status.buffered_messages <= BUFFER + PARTITIONS as usize && status.buffered_bytes <= BYTES + 4096,
            "memory is not bounded: {} messages of {} bytes are buffered, the bounds are {BUFFER} and {BYTES}",
            status.buffered_messages,
            status.buffered_bytes
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut outcomes = (0, 0, 0);
    let machine = timer.await?;
    note!(cx, "a plain timer of {DEADLINE:?} was {machine:?} late");
    for task in tasks {
        let (result, took) = task.await?;
        ensure!(
            took <= DEADLINE + SLACK + machine,
            "a send with a deadline of {DEADLINE:?} ended after {took:?}, where a plain timer was {machine:?} late: {result:?}"
        );
        match result {
            Ok(_) => outcomes.0 += 1,
            Err(error) => {
                ensure!(
                    error.is_retryable(),
                    "a send to a frozen server ended with {error}, which is not retryable"
                );
                match error.outcome() {
                    Outcome::NotSent => outcomes.1 += 1,
                    Outcome::Unknown => outcomes.2 += 1,
                }
            }
        }
    }
    note!(
        cx,
        "at most {most} buffered; Ok {}, NotSent {}, Unknown {}",
        outcomes.0,
        outcomes.1,
        outcomes.2
    );
    ensure!(
        outcomes.0 < TASKS,
        "a frozen server answered all {TASKS} sends: the harness did not freeze it"
    );
    ensure!(
        outcomes.1 > 0,
        "none of {TASKS} sends through a buffer of {BUFFER} ended as NotSent"
    );

    cx.fault("thaw", cx.server().thaw()).await?;
    let thawed = Instant::now();
    let mut after = history.sender(&producer, "after");
    let first = cx.within("a send after the thaw", cx.times().progress, async {
        while after.send(None, 100).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    first.await?;
    cx.measure(Measured::Recovery, thawed.elapsed());
    after.send_all(50, None, 100).await;

    let group = cx.name("group");
    let consumer = mq.consumer(&topic, &group).await?;
    let stored: BTreeSet<String> = history
        .records()
        .into_iter()
        .filter_map(|record| match record.what {
            crate::history::What::Sent {
                payload,
                result: crate::history::SendResult::Stored(..),
                ..
            } => Some(payload),
            _ => None,
        })
        .collect();
    let mut missing = stored;
    while !missing.is_empty() {
        let next = cx
            .within(
                "the next message after the thaw",
                cx.times().progress,
                consumer.consume(),
            )
            .await;
        let Ok(delivery) = next else { break };
        let delivery = delivery?;
        history.handed_over(&group, "m", &delivery);
        missing.remove(&crate::flow::text(&delivery));
        history.settle(&group, "m", delivery, How::Ack)?;
    }
    // What was answered `NotSent` must not come late either.
    while let Ok(delivery) = tokio::time::timeout(Duration::from_secs(1), consumer.consume()).await {
        let delivery = delivery?;
        history.handed_over(&group, "m", &delivery);
        history.settle(&group, "m", delivery, How::Ack)?;
    }
    let mut expect = Expect::complete_for([&group]);
    // Sends that are repeated by hand after a failure have no order among them.
    expect.ordered = false;
    history.check(&expect)
}
