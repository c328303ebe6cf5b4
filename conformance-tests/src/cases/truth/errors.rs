//! Every kind of error that a caller can provoke, with what it must say.

use std::{
    error::Error as StdError,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{
    Error, ErrorKind, Message, Mq, Outcome, Position,
    driver::{Producer as DriverProducer, SendBatch},
};

use crate::{
    capability::Capability,
    context::Context,
    failure::{CaseResult, ensure, fail},
    flow::{numbered, refused, send},
    wrap::{Scope, Tweak, Tweaked},
};

/// Stands for a password; it must not be found in any error.
const SECRET: &str = "hunter2-Zx81";

/// Keeps batches instead of sending them, or fails them, as a server does that is silent or gone.
#[derive(Debug, Default)]
struct Silent {
    fails: AtomicBool,
    kept: Mutex<Vec<SendBatch>>,
}

impl Tweak for Silent {
    fn send(&self, _scope: &Scope, _inner: &Arc<dyn DriverProducer>, batch: SendBatch) {
        batch.begin_io(0..batch.len());
        if self.fails.load(Ordering::SeqCst) {
            batch.fail_all(&Error::new(
                ErrorKind::Connection,
                "the connection broke for a test",
            ));
        } else {
            self.kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(batch);
        }
    }
}

/// G10 errors: every bad input gives its kind, says rightly whether to try again and what became of the send,
/// and shows no secret.
pub(super) async fn errors_say_what_they_must(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("errors", 2).await?;
    let group = cx.name("group");
    let producer = mq.producer(&topic).await?;
    send(&cx, &producer, &numbered("e", 4)).await?;

    let names = "a name that breaks the rule";
    permanent(names, mq.create_topic("9lives", 1).await, ErrorKind::InvalidTopic)?;
    permanent(
        names,
        mq.consumer(&topic, "no/group").await,
        ErrorKind::InvalidGroup,
    )?;
    permanent(
        "no partitions",
        mq.create_topic(cx.name("none"), 0).await,
        ErrorKind::InvalidPartition,
    )?;
    permanent(
        "partition 2 of 2",
        producer.produce_to(2, "x").await,
        ErrorKind::InvalidPartition,
    )?;
    let reserved = Message::new("x").with_header("mq-own", SECRET);
    permanent(
        "a reserved header",
        producer.produce(reserved).await,
        ErrorKind::InvalidMessage,
    )?;
    let nameless = Message::new(SECRET).with_header("", "v");
    permanent(
        "a header without a name",
        producer.produce(nameless).await,
        ErrorKind::InvalidMessage,
    )?;
    let large = Message::new(SECRET.repeat(1_000_000));
    permanent(
        "a payload over the limit",
        producer.produce(large).await,
        ErrorKind::MessageTooLarge,
    )?;
    permanent(
        "an option out of its range",
        mq.producer(&topic).buffer_messages(0).await,
        ErrorKind::InvalidConfig,
    )?;
    permanent(
        "an option out of its range",
        mq.consumer(&topic, &group).max_unacked(0).await,
        ErrorKind::InvalidConfig,
    )?;
    permanent(
        "a property that no backend has",
        mq.consumer(&topic, &group)
            .property("no-such-property-at-all", SECRET)
            .await,
        ErrorKind::InvalidConfig,
    )?;
    let unknown = cx.name("unknown");
    permanent(
        "an unknown topic",
        mq.producer(&unknown).await,
        ErrorKind::TopicNotFound,
    )?;
    permanent(
        "an unknown topic",
        mq.consumer(&unknown, &group).await,
        ErrorKind::TopicNotFound,
    )?;
    permanent(
        "an unknown topic",
        mq.describe_topic(&unknown).await,
        ErrorKind::TopicNotFound,
    )?;
    permanent(
        "another partition count",
        mq.create_topic(&topic, 3).await,
        ErrorKind::TopicExists,
    )?;
    if cx.can(Capability::Seek) {
        let consumer = mq.consumer(&topic, &group).await?;
        cx.eventually("the consumer owns its partitions", cx.times().join, || async {
            Ok((consumer.assignment().len() == 2).then_some(()))
        })
        .await?;
        let beyond = consumer.seek(0, Position::Offset(1 << 40)).await;
        permanent("a seek beyond the end", beyond, ErrorKind::OffsetOutOfRange)?;
        permanent(
            "a seek in partition 7 of 2",
            consumer.seek(7, Position::Earliest).await,
            ErrorKind::InvalidPartition,
        )?;
        consumer.close().await?;
        permanent("consume after close", consumer.consume().await, ErrorKind::Closed)?;
    }
    let other = mq.producer(&topic).await?;
    other.close().await?;
    permanent("produce after close", other.produce("x").await, ErrorKind::Closed)?;

    transient(&cx, &topic).await?;
    connecting(&cx).await
}

/// Errors that a later try may not meet: their outcome depends on how far the send had come.
async fn transient(cx: &Context, topic: &str) -> CaseResult {
    let plain = cx.connect().await?;
    let silent = Arc::new(Silent::default());
    let tweak: Arc<dyn Tweak> = silent.clone();
    let mq = Mq::from_driver(Tweaked::new(Arc::clone(plain.driver()), tweak));
    cx.keep(&mq);

    silent.fails.store(true, Ordering::SeqCst);
    let producer = mq.producer(topic).timeout(Duration::from_secs(5)).await?;
    let broken = refused(
        "a connection that broke",
        producer.produce("x").await,
        ErrorKind::Connection,
    )?;
    says("a connection that broke", &broken, true, Outcome::Unknown)?;

    silent.fails.store(false, Ordering::SeqCst);
    let producer = mq
        .producer(topic)
        .timeout(Duration::from_millis(300))
        .buffer_messages(8)
        .close_timeout(Duration::from_millis(300))
        .await?;
    let late = refused(
        "a server that is silent",
        producer.produce("x").await,
        ErrorKind::Timeout,
    )?;
    says("a server that is silent", &late, true, Outcome::Unknown)?;
    let mut pending = Vec::new();
    let full = loop {
        match producer.try_enqueue("x") {
            Ok(one) => pending.push(one),
            Err(error) => break error,
        }
        ensure!(
            pending.len() <= 64,
            "a buffer of 8 messages took {}",
            pending.len()
        );
    };
    ensure!(
        full.kind() == ErrorKind::ResourceExhausted,
        "a full buffer: expected ResourceExhausted, got {:?}: {full}",
        full.kind()
    );
    says("a full buffer", &full, true, Outcome::NotSent)?;
    for one in pending {
        let end = cx
            .within(
                "the end of a send to a silent server",
                Duration::from_secs(5),
                one,
            )
            .await?;
        let error = refused("a send to a silent server", end, ErrorKind::Timeout)?;
        ensure!(
            error.is_retryable(),
            "a send to a silent server: {error} says that it is not retryable"
        );
        clean("a send to a silent server", &error)?;
    }
    Ok(())
}

/// What a bad URL gives; the password in it must not be seen.
async fn connecting(cx: &Context) -> CaseResult {
    let url = cx.url();
    let Some((scheme, rest)) = url.split_once("://") else {
        return Ok(());
    };
    let rest = rest.rsplit_once('@').map_or(rest, |(_, after)| after);
    let separator = if rest.contains('?') { '&' } else { '?' };
    let bad = format!("{scheme}://user:{SECRET}@{rest}{separator}no-such-option-at-all=1");
    let limit = Duration::from_secs(60);
    match cx
        .within("an answer to a bad URL", limit, cx.harness().connect(&bad))
        .await?
    {
        Ok(mq) => {
            cx.keep(&mq);
            fail!("a URL with an unknown option was taken")
        }
        Err(error) => {
            ensure!(
                error.kind() == ErrorKind::InvalidConfig && !error.is_retryable(),
                "a URL with an unknown option: expected InvalidConfig and not retryable, got {:?}: {error}",
                error.kind()
            );
            clean("a URL with an unknown option", &error)
        }
    }
}

/// Checks an error that no later try will avoid.
#[track_caller]
fn permanent<T: std::fmt::Debug>(what: &str, result: mq_api::Result<T>, kind: ErrorKind) -> CaseResult {
    let error = refused(what, result, kind)?;
    says(what, &error, false, Outcome::NotSent)
}

fn says(what: &str, error: &Error, retryable: bool, outcome: Outcome) -> CaseResult {
    ensure!(
        error.is_retryable() == retryable,
        "{what}: {error} says is_retryable = {}",
        error.is_retryable()
    );
    ensure!(
        error.outcome() == outcome,
        "{what}: {error} says outcome = {:?}, it is {outcome:?}",
        error.outcome()
    );
    ensure!(!error.context().is_empty(), "{what}: the error has no context");
    clean(what, error)
}

/// Looks for secrets in everything that an error shows.
fn clean(what: &str, error: &Error) -> CaseResult {
    let mut shown = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        shown.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    ensure!(!shown.contains(SECRET), "{what}: a secret is shown in the error");
    Ok(())
}
