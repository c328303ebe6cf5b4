//! Codecs: typed payloads.

use mq_api::{DeadLetter, ErrorKind, GroupName, Message, TopicName, dead_letter_topic};
use serde::{Deserialize, Serialize};

use crate::{
    cases::{Case, case},
    context::Context,
    failure::{CaseResult, ensure},
    flow::{one, refused, text},
};

pub(super) const CASES: &[Case] = &[case!("J1", Codec, json_round_trip_and_typed_failure)];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    lines: Vec<(String, f64)>,
    note: Option<String>,
}

/// J1: a typed value makes the round trip as JSON; a payload that is not such a value gives a typed error that does
/// not show it, the delivery is still there, and rejecting it brings it to the dead letter. Guarantee 10.
async fn json_round_trip_and_typed_failure(cx: Context) -> CaseResult {
    const SECRET: &str = "{\"card\":\"4111-1111\"";
    let mq = cx.mq().await?;
    let topic = cx.topic("json", 1).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq
        .consumer(&topic, &topic)
        .dead_letter(DeadLetter::default())
        .await?;
    let dead = dead_letter_topic(&TopicName::new(&topic)?, &GroupName::new(&topic)?);
    cx.delete_later(dead.as_str());

    let order = Order {
        id: u64::MAX,
        customer: "Zoë \u{0} \"quoted\"".to_owned(),
        lines: vec![("tea".to_owned(), 2.5), (String::new(), -0.125)],
        note: None,
    };
    producer.produce(Message::json(&order)?).await?;
    producer.produce(Message::new(SECRET)).await?;
    producer.produce(Message::json(&order)?).await?;
    cx.count_sent(3);

    let first = one(&cx, &consumer).await?;
    let read: Order = first.json()?;
    ensure!(read == order, "sent {order:?}, read {read:?}");
    first.ack()?;

    let broken = one(&cx, &consumer).await?;
    let error = refused(
        "JSON that breaks off",
        broken.json::<Order>(),
        ErrorKind::InvalidMessage,
    )?;
    let shown = format!("{error} {error:?}");
    ensure!(!shown.contains("4111"), "the error shows the payload: {shown}");
    broken.reject()?;
    consumer.commit().await?;

    let last = one(&cx, &consumer).await?;
    ensure!(
        last.json::<Order>()? == order,
        "after a rejected message came {:?}",
        text(&last)
    );
    last.ack()?;

    let letters = mq.consumer(dead.as_str(), "letters").await?;
    let letter = one(&cx, &letters).await?;
    ensure!(
        text(&letter) == SECRET,
        "the rejected message was to be in the dead letter, {:?} is",
        text(&letter)
    );
    letter.ack()?;
    Ok(())
}
