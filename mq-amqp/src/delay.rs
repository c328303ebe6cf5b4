//! Delayed messages: they wait in queues whose messages expire, one queue for each bit of the delay.
//!
//! A delay is counted in units of 50 ms, rounded up, and written into the routing key in binary, highest bit first:
//! `0.0.1.0.1.<partition>`. The queue of a bit holds a message for as long as the bit is worth and dead-letters it to the
//! exchange of the bit below; an exchange passes on what has a 0 there. Behind the lowest bit stands the exchange that
//! the partitions are bound to. So any delay needs the same few queues, and within a queue all wait equally long: the
//! one at the head is always the next.
//!
//! | name | what it is |
//! |---|---|
//! | `mq:delay:<bit>` | topic exchange, and quorum queue that dead-letters at least once |
//! | `mq:delay:out` | topic exchange to the partitions |
//! | `mq:delay:lost` | exchange and queue of what has no place any more, as its topic was deleted; the last 1000 of a day |

use std::time::Duration;

use lapin::{
    ExchangeKind,
    options::{ExchangeBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use mq_api::Result;

use crate::{
    link::{Chan, short, text},
    names::Names,
    topic::Topic,
};

/// How fine delays are.
const UNIT: Duration = Duration::from_millis(50);
/// How many bits a delay has.
const BITS: u32 = 26;
/// The longest delay, about 38 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_millis(50 * ((1 << BITS) - 1) - 1000);
/// How late a delayed message may be in ordinary running: the rounding, and a step from queue to queue for each bit.
pub(crate) const PRECISION: Duration = Duration::from_millis(500);
/// The server's clock ticks in milliseconds at each step.
const TICKS: Duration = Duration::from_millis(10);
const KEPT_LOST: i64 = 1000;
const KEPT_LOST_MS: i64 = 24 * 3600 * 1000;

/// Where a message is sent so that it arrives after a delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) exchange: String,
    pub(crate) key: String,
}

/// Names the place of a partition in routing keys: one word.
fn place(topic: &Topic, partition: u32) -> String {
    format!("{}-{partition}", topic.id)
}

pub(crate) fn route(names: &Names, topic: &Topic, partition: u32, delay: Duration) -> Route {
    let units = (delay + TICKS)
        .as_millis()
        .div_ceil(UNIT.as_millis())
        .clamp(1, (1 << BITS) - 1);
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    let highest = units.ilog2();
    let mut key = String::with_capacity(96);
    for bit in (0..BITS).rev() {
        key.push_str(if units >> bit & 1 == 1 { "1." } else { "0." });
    }
    key.push_str(&place(topic, partition));
    Route {
        exchange: names.delay(&highest.to_string()),
        key,
    }
}

/// Declares what all delays of a prefix share.
pub(crate) async fn make(chan: &Chan, names: &Names) -> Result<()> {
    let out = names.delay("out");
    let lost = names.delay("lost");
    let durable = QueueDeclareOptions::durable();
    let long = AMQPValue::LongLongInt;
    let mut few = FieldTable::default();
    few.insert("x-queue-type".into(), text("quorum"));
    few.insert("x-max-length".into(), long(KEPT_LOST));
    few.insert("x-message-ttl".into(), long(KEPT_LOST_MS));
    chan.declare_exchange(&lost, ExchangeKind::Fanout, FieldTable::default())
        .await?;
    chan.declare(&lost, durable, few).await?;
    chan.bind(&lost, &lost, "").await?;
    let mut rest = FieldTable::default();
    rest.insert("alternate-exchange".into(), text(&lost));
    chan.declare_exchange(&out, ExchangeKind::Topic, rest).await?;
    for bit in 0..BITS {
        let name = names.delay(&bit.to_string());
        let below = match bit.checked_sub(1) {
            Some(below) => names.delay(&below.to_string()),
            None => out.clone(),
        };
        let worth = i64::try_from(UNIT.as_millis()).unwrap_or(i64::MAX) << bit;
        let mut waiting = FieldTable::default();
        waiting.insert("x-queue-type".into(), text("quorum"));
        waiting.insert("x-message-ttl".into(), long(worth));
        waiting.insert("x-dead-letter-exchange".into(), text(&below));
        waiting.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        waiting.insert("x-overflow".into(), text("reject-publish"));
        chan.declare_exchange(&name, ExchangeKind::Topic, FieldTable::default())
            .await?;
        chan.declare(&name, durable, waiting).await?;
        let before = "*.".repeat((BITS - 1 - bit) as usize);
        chan.bind(&name, &name, &format!("{before}1.#")).await?;
        bind_exchange(chan, &below, &name, &format!("{before}0.#")).await?;
    }
    Ok(())
}

/// Lets delayed messages of a partition arrive.
pub(crate) async fn bind(chan: &Chan, names: &Names, topic: &Topic, partition: u32) -> Result<()> {
    let queue = names.partition(&topic.name, &topic.id, partition);
    let key = format!("#.{}", place(topic, partition));
    chan.bind(&queue, &names.delay("out"), &key).await
}

async fn bind_exchange(chan: &Chan, to: &str, from: &str, key: &str) -> Result<()> {
    let bind = chan.native().exchange_bind(
        short(to)?,
        short(from)?,
        short(key)?,
        ExchangeBindOptions::default(),
        FieldTable::default(),
    );
    chan.within("binding an exchange", bind).await
}

#[cfg(test)]
mod tests {
    use mq_api::TopicName;

    use super::*;

    fn routed(delay: Duration) -> Route {
        let topic = Topic {
            name: TopicName::new("orders").unwrap(),
            id: "1f".to_owned(),
        };
        route(&Names::new("mq"), &topic, 3, delay)
    }

    #[test]
    fn a_delay_is_rounded_up_into_bits() {
        let short = routed(Duration::from_millis(1));
        assert_eq!(short.exchange, "mq:delay:0");
        assert_eq!(short.key, format!("{}1.1f-3", "0.".repeat(25)));
        let second = routed(Duration::from_secs(1));
        // 21 units.
        assert_eq!(second.exchange, "mq:delay:4");
        assert_eq!(second.key, format!("{}1.0.1.0.1.1f-3", "0.".repeat(21)));
        let longest = routed(MAX_DELAY);
        assert_eq!(longest.exchange, "mq:delay:25");
        assert!(longest.key.starts_with("1.1.1.1."));
        assert!(longest.key.len() < 200);
    }
}
