//! What comes again, and when.

use std::time::{Duration, Instant};

use mq_api::{Backoff, Clock, Mode};

use super::{join, nothing_but_new};
use crate::{
    context::{Context, Measured},
    failure::{CaseResult, ensure, note},
    flow::{self, numbered, one, send},
};

/// G11 redelivery: a nacked message comes again and says that it is its second attempt.
pub(super) async fn nacked_message_comes_back(cx: Context) -> CaseResult {
    nacked(cx, Mode::Partitioned, Way::Nack).await
}

/// The same in shared mode.
pub(super) async fn shared_nacked_message_comes_back(cx: Context) -> CaseResult {
    nacked(cx, Mode::Shared, Way::Nack).await
}

/// G11 redelivery: dropping a delivery is a nack.
pub(super) async fn dropped_delivery_comes_back(cx: Context) -> CaseResult {
    nacked(cx, Mode::Partitioned, Way::Drop).await
}

/// The same in shared mode.
pub(super) async fn shared_dropped_delivery_comes_back(cx: Context) -> CaseResult {
    nacked(cx, Mode::Shared, Way::Drop).await
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Nack,
    Drop,
}

async fn nacked(cx: Context, mode: Mode, way: Way) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("nacked", 1).await?;
    let group = cx.name("group");
    let consumer = join(mq, &topic, &group, mode)
        .backoff(Backoff::fixed(Duration::from_millis(50)))
        .await?;
    let producer = mq.producer(&topic).await?;
    send(&cx, &producer, &numbered("n", 1)).await?;
    for attempt in 1..=4 {
        let delivery = one(&cx, &consumer)
            .await
            .map_err(|failure| failure.during(format!("lost: attempt {attempt} after {way:?}")))?;
        ensure!(
            flow::text(&delivery) == "n-0000",
            "{:?} came, and n-0000 was to come again",
            flow::text(&delivery)
        );
        ensure!(
            delivery.attempt() == attempt,
            "delivery number {attempt} says that it is attempt {}",
            delivery.attempt()
        );
        match (attempt, way) {
            (4, _) => delivery.ack()?,
            (_, Way::Nack) => delivery.nack()?,
            (_, Way::Drop) => drop(delivery),
        }
    }
    let status = consumer.status();
    ensure!(
        status.nacked == 3 && status.acked == 1 && status.delivered == 4,
        "4 deliveries, 3 given back and 1 acked, and the status says {} delivered, {} nacked, {} acked",
        status.delivered,
        status.nacked,
        status.acked
    );
    nothing_but_new(&cx, mq, &consumer).await
}

/// G11 redelivery: a message nacked for a while does not come before, and then within the declared slack.
pub(super) async fn nacked_message_waits_its_delay(cx: Context) -> CaseResult {
    delayed(cx, Mode::Partitioned).await
}

/// The same in shared mode.
pub(super) async fn shared_nacked_message_waits_its_delay(cx: Context) -> CaseResult {
    delayed(cx, Mode::Shared).await
}

async fn delayed(cx: Context, mode: Mode) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("delayed", 1).await?;
    let group = cx.name("group");
    let consumer = join(mq, &topic, &group, mode).await?;
    send(&cx, &mq.producer(&topic).await?, &numbered("d", 1)).await?;
    let clock = Clock::system();
    let mut delivery = one(&cx, &consumer).await?;
    let slack = cx.times().redelivery_slack;
    let mut least_late = Duration::MAX;
    // Never early, each time; in time at least once of a few, since a busy machine can hold anybody up.
    for millis in [300, 1000, 400, 700, 300, 500] {
        let delay = Duration::from_millis(millis);
        let before = clock.now();
        let begun = Instant::now();
        delivery.nack_after(delay)?;
        let after = clock.now();
        delivery = one(&cx, &consumer)
            .await
            .map_err(|failure| failure.during(format!("lost: nacked for {delay:?}")))?;
        let stamp = delivery.handed_over_at();
        let waited = stamp.saturating_since(after);
        let early =
            begun.elapsed() < delay || stamp.saturating_since(before) + Duration::from_millis(1) < delay;
        ensure!(
            !early,
            "early: nacked for {delay:?} and handed over again after {waited:?}"
        );
        let late = waited.saturating_sub(delay);
        note!(cx, "nacked for {delay:?}, {late:?} late");
        least_late = least_late.min(late);
        if late <= slack && millis >= 400 {
            break;
        }
    }
    cx.measure(Measured::RedeliverySlack, least_late);
    ensure!(
        least_late <= slack,
        "late: redeliveries came {least_late:?} after their time at best, declared is {slack:?}"
    );
    delivery.ack()?;
    nothing_but_new(&cx, mq, &consumer).await
}
