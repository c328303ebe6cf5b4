//! What goes in comes out.

use bytes::Bytes;
use mq_api::{DEFAULT_MAX_METADATA, DEFAULT_MAX_PAYLOAD, ErrorKind, Message, Timestamp};

use crate::{
    capability::Capability,
    context::Context,
    failure::{CaseResult, ensure, fail, note},
    flow::{self, refused},
};

/// Header names that a broker or a client of one gives a meaning to.
const INTERPRETED: &[&str] = &[
    "TAGS",
    "KEYS",
    "DELAY",
    "WAIT",
    "UNIQ_KEY",
    "TRAN_MSG",
    "PGROUP",
    "TIMER_DELAY_MS",
    "CC",
    "BCC",
    "x-delay",
    "x-death",
    "x-match",
    "x-stream-offset",
    "content-type",
    "content-encoding",
    "correlation-id",
    "reply-to",
    "id",
    "key",
    "value",
    "payload",
    "timestamp",
    "partition",
    "offset",
    "topic",
    "__kafka",
    "k",
    "p",
    "v",
    "h",
    "",
];

/// G18 messages: payload, key, id, timestamp and headers come out as they went in.
pub(super) async fn message_survives_the_round_trip(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("trip", 1).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let messages = messages(&cx);
    for (what, message) in &messages {
        producer
            .produce(message.clone())
            .await
            .map_err(|error| crate::failure::Failure::from(error).during(what))?;
        cx.count_sent(1);
    }
    for (what, sent) in &messages {
        let delivery = flow::one(&cx, &consumer)
            .await
            .map_err(|failure| failure.during(format!("lost: {what}")))?;
        compare(what, sent, delivery.message())?;
        ensure!(
            delivery.attempt() == 1,
            "{what}: the first delivery says attempt {}",
            delivery.attempt()
        );
        delivery.ack()?;
    }
    if !cx.can(Capability::Tombstone) {
        let error = refused(
            "a tombstone where there are none",
            producer.produce(Message::tombstone("k")).await,
            ErrorKind::Unsupported,
        )?;
        note!(cx, "tombstone: {error}");
    }
    Ok(())
}

/// Returns the messages to send, each with what is special about it.
fn messages(cx: &Context) -> Vec<(String, Message)> {
    let mut all: Vec<(String, Message)> = Vec::new();
    let mut add = |what: &str, message: Message| all.push((what.to_owned(), message));
    add("an empty payload", Message::new(""));
    if cx.can(Capability::Tombstone) {
        add("a tombstone", Message::tombstone("gone"));
        add(
            "an empty payload with a key, beside a tombstone",
            Message::new("").with_key("gone"),
        );
    }
    add("a payload of NULs", Message::new(vec![0; 1000]));
    add(
        "a payload that is not UTF-8",
        Message::new(vec![0xff, 0xfe, 0x80, 0xc3, 0x28]),
    );
    add("every byte", Message::new((0..=255).collect::<Vec<u8>>()));
    add("a payload like a protocol", Message::new("*1\r\n$4\r\nPING\r\n"));
    add("no key", Message::new("no key"));
    add("an empty key", Message::new("empty key").with_key(""));
    add(
        "a binary key",
        Message::new("binary key").with_key(vec![0, 1, 2, 255, b'\r', b'\n']),
    );
    add("an id", Message::new("id").with_id("id-\u{1}-\n-é"));
    add(
        "a timestamp",
        Message::new("timestamp").with_timestamp(Timestamp::from_millis(1_600_000_000_123)),
    );
    add(
        "an empty header value",
        Message::new("h").with_header("empty", ""),
    );
    add(
        "binary header values",
        Message::new("h")
            .with_header("nul", vec![0])
            .with_header("bytes", (0..=255).collect::<Vec<u8>>())
            .with_header("odd", "\u{1}\u{2}\n="),
    );
    add(
        "odd header names",
        Message::new("h")
            .with_header("a\u{1}b", "1")
            .with_header("a\u{2}b", "2")
            .with_header("a\nb", "3")
            .with_header("a=b", "4")
            .with_header("a b", "5")
            .with_header("A b", "6")
            .with_header("é", "7")
            .with_header("x".repeat(200), "8"),
    );
    let mut interpreted = Message::new("names that brokers interpret");
    for name in INTERPRETED.iter().filter(|name| !name.is_empty()) {
        interpreted = interpreted.with_header(*name, format!("value of {name}"));
    }
    add("header names that brokers interpret", interpreted);
    let mut many = Message::new("64 headers");
    for at in 0..64 {
        many = many.with_header(format!("header-{:02}", 63 - at), format!("{at}"));
    }
    add("64 headers in their order", many);
    add(
        "metadata at the limit",
        full_metadata(Message::new("full of headers")),
    );
    add("a payload at the limit", Message::new(noise(DEFAULT_MAX_PAYLOAD)));
    add(
        "payload and metadata at the limit",
        full_metadata(Message::new(noise(DEFAULT_MAX_PAYLOAD))),
    );
    all
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::fill(&mut bytes);
    bytes
}

/// Fills a message's key and headers to exactly the portable limit.
fn full_metadata(message: Message) -> Message {
    let mut message = message.with_key(noise(1000));
    for at in 0.. {
        let room = DEFAULT_MAX_METADATA - message.metadata_len();
        if room < 700 {
            break;
        }
        message = message.with_header(format!("filler-{at:03}"), noise(500));
    }
    // The last one takes what is left; its own cost is what it adds with an empty value.
    let mut probe = message.clone();
    probe.headers_mut().append("last", Bytes::new());
    let room = DEFAULT_MAX_METADATA - probe.metadata_len();
    message.with_header("last", noise(room))
}

fn compare(what: &str, sent: &Message, came: &Message) -> CaseResult {
    match (sent.payload(), came.payload()) {
        (None, None) => {}
        (Some(sent), Some(came)) if sent == came => {}
        (None, Some(_)) => fail!(
            "{what}: a tombstone came as a payload of {} bytes",
            came.payload_or_empty().len()
        ),
        (Some(sent), None) => fail!("{what}: a payload of {} bytes came as a tombstone", sent.len()),
        (Some(sent), Some(came)) => {
            let at = sent.iter().zip(came.iter()).position(|(a, b)| a != b);
            fail!(
                "{what}: corrupted: {} bytes were sent, {} came, the first difference at {at:?}",
                sent.len(),
                came.len()
            )
        }
    }
    ensure!(
        sent.key() == came.key(),
        "{what}: the key {:?} came as {:?}",
        sent.key(),
        came.key()
    );
    ensure!(
        sent.id() == came.id(),
        "{what}: the id {:?} came as {:?}",
        sent.id(),
        came.id()
    );
    if let Some(timestamp) = sent.timestamp() {
        ensure!(
            came.timestamp() == Some(timestamp),
            "{what}: the timestamp {timestamp:?} came as {:?}",
            came.timestamp()
        );
    }
    let pairs = |message: &Message| -> Vec<(String, Option<Bytes>)> {
        message
            .headers()
            .iter()
            .map(|header| (header.name().to_owned(), header.value().cloned()))
            .collect()
    };
    let (sent, came) = (pairs(sent), pairs(came));
    if sent != came {
        let lost: Vec<_> = sent.iter().filter(|pair| !came.contains(pair)).collect();
        let new: Vec<_> = came.iter().filter(|pair| !sent.contains(pair)).collect();
        ensure!(
            lost.is_empty() && new.is_empty(),
            "{what}: headers {} did not come, {} were not sent",
            flow::list(&lost),
            flow::list(&new)
        );
        fail!(
            "{what}: the headers came in another order: {:?}",
            came.iter().map(|(name, _)| name).collect::<Vec<_>>()
        );
    }
    Ok(())
}
