//! What goes to the dead letters, and what happens while they cannot be written.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mq_api::{
    Backoff, DeadLetter, Error, ErrorKind, GroupName, Message, Mode, Mq, Outcome, TopicName,
    dead_letter_topic,
    driver::{Producer as DriverProducer, SendBatch},
};

use super::{join, nothing_but_new};
use crate::{
    capability::Capability,
    context::Context,
    failure::{CaseResult, ensure, note},
    flow::{self, numbered, one, send_messages},
    wrap::{Scope, Tweak, Tweaked},
};

/// Refuses writes to one topic while it is shut.
#[derive(Debug)]
struct Gate {
    topic: TopicName,
    shut: AtomicBool,
    refused: AtomicUsize,
}

impl Tweak for Gate {
    fn send(&self, scope: &Scope, inner: &Arc<dyn DriverProducer>, batch: SendBatch) {
        if scope.topic == self.topic && self.shut.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            let error = Error::new(
                ErrorKind::ResourceExhausted,
                "the dead letters are shut for a test",
            );
            batch.fail_all(&error.with_outcome(Outcome::NotSent));
        } else {
            inner.send(batch);
        }
    }
}

/// A client whose dead letters of one group can be shut.
struct Shuttable {
    mq: Mq,
    gate: Arc<Gate>,
    letters: String,
}

async fn shuttable(cx: &Context, topic: &str, group: &str) -> CaseResult<Shuttable> {
    let plain = cx.connect().await?;
    let letters = dead_letter_topic(&TopicName::new(topic)?, &GroupName::new(group)?);
    cx.delete_later(letters.as_str());
    let gate = Arc::new(Gate {
        topic: letters.clone(),
        shut: AtomicBool::new(false),
        refused: AtomicUsize::new(0),
    });
    let tweak: Arc<dyn Tweak> = gate.clone();
    let mq = Mq::from_driver(Tweaked::new(Arc::clone(plain.driver()), tweak));
    cx.keep(&mq);
    Ok(Shuttable {
        mq,
        gate,
        letters: letters.as_str().to_owned(),
    })
}

/// G13 dead letters: a rejected message goes there with where it came from, does not come again, and a commit
/// waits for it.
pub(super) async fn rejected_message_ends_in_the_dead_letters(cx: Context) -> CaseResult {
    rejected(cx, Mode::Partitioned).await
}

/// The same in shared mode.
pub(super) async fn shared_rejected_message_ends_in_the_dead_letters(cx: Context) -> CaseResult {
    rejected(cx, Mode::Shared).await
}

async fn rejected(cx: Context, mode: Mode) -> CaseResult {
    let topic = cx.topic("rejected", 1).await?;
    let group = cx.name("group");
    let Shuttable { mq, gate, letters } = shuttable(&cx, &topic, &group).await?;
    let consumer = join(&mq, &topic, &group, mode)
        .dead_letter(DeadLetter::default())
        .await?;
    let messages = ["kept", "rejected", "kept too"].map(|payload| {
        Message::new(payload)
            .with_key("a key")
            .with_header("mine", "value")
            .with_id("an id")
    });
    send_messages(&cx, &mq.producer(&topic).await?, messages).await?;

    gate.shut.store(true, Ordering::SeqCst);
    let mut origin = None;
    for _ in 0..3 {
        let delivery = one(&cx, &consumer).await?;
        if flow::text(&delivery) == "rejected" {
            origin = Some((delivery.partition(), delivery.offset(), delivery.timestamp()));
            delivery.reject()?;
        } else {
            delivery.ack()?;
        }
    }
    let Some((partition, offset, stored_at)) = origin else {
        crate::failure::fail!("lost: the message to reject never came")
    };
    cx.eventually("the dead letter is tried", cx.times().progress, || async {
        Ok((gate.refused.load(Ordering::SeqCst) > 0).then_some(()))
    })
    .await?;
    cx.stays_pending(
        "a commit returned while the rejected message was in no dead letter",
        Duration::from_millis(500),
        consumer.commit(),
    )
    .await?;
    if mode == Mode::Partitioned {
        let committed = mq.committed(&topic, &group).await?;
        ensure!(
            committed
                .iter()
                .all(|p| p.position <= offset && !p.acked_above.iter().any(|r| r.contains(&offset))),
            "the rejected message at offset {offset} is in no dead letter, and committed is {committed:?}"
        );
    }
    gate.shut.store(false, Ordering::SeqCst);
    cx.within(
        "a commit after the dead letter",
        cx.times().progress,
        consumer.commit(),
    )
    .await??;

    let letter = read_letter(&cx, &letters).await?;
    ensure!(
        letter.payload() == "rejected" && letter.0.key().map(|k| &k[..]) == Some(b"a key"),
        "the dead letter holds {:?} with key {:?}",
        letter.payload(),
        letter.0.key()
    );
    ensure!(
        letter.0.id() == Some("an id") && letter.header("mine") == Some("value"),
        "the dead letter has lost its id or its headers: {:?}, {:?}",
        letter.0.id(),
        letter.0.headers()
    );
    let expected = [
        ("mq-origin-topic", topic.clone()),
        ("mq-origin-group", group.clone()),
        ("mq-origin-partition", partition.to_string()),
        ("mq-origin-offset", offset.to_string()),
        ("mq-origin-timestamp", stored_at.as_millis().to_string()),
        ("mq-attempts", "1".to_owned()),
        ("mq-reason", "rejected".to_owned()),
    ];
    for (name, value) in expected {
        ensure!(
            letter.header(name) == Some(&value),
            "the dead letter says {name} = {:?}, and it is {value:?}",
            letter.header(name)
        );
    }
    let status = consumer.status();
    ensure!(
        status.rejected == 1 && status.dead_lettered == 1,
        "one message was rejected, and the status says {} rejected, {} in the dead letters",
        status.rejected,
        status.dead_lettered
    );
    consumer.close().await?;
    let other = cx.connect().await?;
    let consumer = join(&other, &topic, &group, mode).await?;
    nothing_but_new(&cx, &other, &consumer).await
}

/// G13 dead letters: a message that has had its last attempt goes there.
pub(super) async fn last_attempt_ends_in_the_dead_letters(cx: Context) -> CaseResult {
    attempts(cx, Mode::Partitioned).await
}

/// The same in shared mode.
pub(super) async fn shared_last_attempt_ends_in_the_dead_letters(cx: Context) -> CaseResult {
    attempts(cx, Mode::Shared).await
}

async fn attempts(cx: Context, mode: Mode) -> CaseResult {
    const MOST: u32 = 3;
    let mq = cx.mq().await?;
    let topic = cx.topic("attempts", 1).await?;
    let letters = cx.topic("letters", 2).await?;
    let group = cx.name("group");
    let consumer = join(mq, &topic, &group, mode)
        .max_attempts(MOST)
        .dead_letter(DeadLetter::topic(&letters))
        .backoff(Backoff::fixed(Duration::from_millis(20)))
        .await?;
    send_messages(
        &cx,
        &mq.producer(&topic).await?,
        [Message::new("poison"), Message::new("good")],
    )
    .await?;
    let mut seen = 0;
    let mut good = 0;
    while seen < MOST || good == 0 {
        let delivery = one(&cx, &consumer).await?;
        if flow::text(&delivery) == "good" {
            good += 1;
            delivery.ack()?;
            continue;
        }
        seen += 1;
        ensure!(
            delivery.attempt() == seen && seen <= MOST,
            "delivery {seen} of a message with at most {MOST} attempts says attempt {}",
            delivery.attempt()
        );
        delivery.nack()?;
    }
    cx.within("a commit", cx.times().progress, consumer.commit())
        .await??;
    let letter = read_letter(&cx, &letters).await?;
    ensure!(
        letter.payload() == "poison",
        "the dead letter holds {:?}",
        letter.payload()
    );
    let (attempts, reason) = (letter.header("mq-attempts"), letter.header("mq-reason"));
    ensure!(
        attempts == Some("3") && reason == Some("attempts"),
        "the dead letter says mq-attempts = {attempts:?}, mq-reason = {reason:?}"
    );
    nothing_but_new(&cx, mq, &consumer).await
}

/// G13 dead letters: while they cannot be written nothing is lost, and the status says so.
pub(super) async fn nothing_is_lost_while_dead_letters_cannot_be_written(cx: Context) -> CaseResult {
    let topic = cx.topic("shut", 1).await?;
    let group = cx.name("group");
    let Shuttable { mq, gate, letters } = shuttable(&cx, &topic, &group).await?;
    gate.shut.store(true, Ordering::SeqCst);
    let open = || {
        mq.consumer(&topic, &group)
            .dead_letter(DeadLetter::default())
            .close_timeout(Duration::from_secs(1))
    };
    let consumer = open().await?;
    let sent = numbered("s", 5);
    send_messages(
        &cx,
        &mq.producer(&topic).await?,
        sent.iter().cloned().map(Message::from),
    )
    .await?;
    let mut rejected = None;
    for at in 0..sent.len() {
        let delivery = one(&cx, &consumer).await?;
        if at == 2 {
            rejected = Some(flow::text(&delivery));
            delivery.reject()?;
        } else {
            delivery.ack()?;
        }
    }
    cx.eventually(
        "the status tells of dead letters that fail",
        cx.times().progress,
        || async {
            let status = consumer.status();
            let waiting: usize = status.partitions.iter().map(|p| p.dead_lettering).sum();
            Ok((status.dead_letter_failures > 0 && waiting == 1 && status.dead_lettered == 0).then_some(()))
        },
    )
    .await
    .map_err(|failure| failure.during(format!("the status is {:?}", consumer.status())))?;

    // A close cannot store what is in no dead letter; the message comes to the next member.
    let closed = cx
        .within(
            "a close while dead letters fail",
            Duration::from_secs(20),
            consumer.close(),
        )
        .await?;
    note!(cx, "close while dead letters fail: {closed:?}");
    let consumer = open().await?;
    // Without sparse acks, what was acked behind the rejected message comes again too.
    let mut missing: BTreeSet<String> = if cx.can(Capability::SparseAcks) {
        rejected.iter().cloned().collect()
    } else {
        sent[2..].iter().cloned().collect()
    };
    while !missing.is_empty() {
        let delivery = one(&cx, &consumer).await.map_err(|failure| {
            failure.during("lost: the message that was rejected and is in no dead letter")
        })?;
        let payload = flow::text(&delivery);
        missing.remove(&payload);
        if Some(payload) == rejected {
            delivery.reject()?;
        } else {
            delivery.ack()?;
        }
    }
    gate.shut.store(false, Ordering::SeqCst);
    cx.within(
        "a commit after the dead letters work",
        cx.times().progress,
        consumer.commit(),
    )
    .await??;
    let letter = read_letter(&cx, &letters).await?;
    ensure!(
        Some(letter.payload()) == rejected,
        "the dead letter holds {:?}, rejected was {rejected:?}",
        letter.payload()
    );
    nothing_but_new(&cx, &mq, &consumer).await
}

/// A copy of a dead letter.
pub(super) struct Letter(Message);

impl Letter {
    pub(super) fn payload(&self) -> String {
        String::from_utf8_lossy(self.0.payload_or_empty()).into_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().text(name)
    }
}

/// Takes the one dead letter; a second one is a failure.
pub(super) async fn read_letter(cx: &Context, letters: &str) -> CaseResult<Letter> {
    let mq = cx.mq().await?;
    let reader = cx
        .eventually("the dead-letter topic is there", cx.times().progress, || async {
            match mq.consumer(letters, "reader").await {
                Ok(consumer) => Ok(Some(consumer)),
                Err(error) if error.kind() == ErrorKind::TopicNotFound => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await?;
    let letter = one(cx, &reader)
        .await
        .map_err(|failure| failure.during("lost: the dead letter never came"))?;
    flow::nothing(cx, &reader, Duration::from_millis(200))
        .await
        .map_err(|failure| failure.during("there is more than one dead letter"))?;
    let copy = letter.message().clone();
    letter.ack()?;
    reader.close().await?;
    Ok(Letter(copy))
}
