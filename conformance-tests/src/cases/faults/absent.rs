//! A server that is away for a while.

use std::time::Duration;

use mq_api::ErrorKind;
use tokio::time::{Instant, sleep};

use super::peers::{CONNECT, unreachable};
use crate::{
    cases::steps::{retried, take_until_through_outages},
    context::{Context, Measured},
    failure::{CaseResult, ensure, fail, note},
    flow::{in_order, numbered, send_to, take_acked, text},
};

/// F5: while the server is away, produce and connect fail with typed errors in their deadlines and `consume` tells of the
/// outage once; when it is back, what was opened before works again by itself. Guarantee 9.
pub(super) async fn server_that_comes_back_is_used_again(cx: Context) -> CaseResult {
    const OUTAGE_AFTER: Duration = Duration::from_secs(1);
    const SEND: Duration = Duration::from_secs(2);
    let mq = cx.mq().await?;
    let topic = cx.topic("away", 1).await?;
    let producer = mq.producer(&topic).timeout(SEND).await?;
    let consumer = mq.consumer(&topic, &topic).outage_after(OUTAGE_AFTER).await?;
    let (member, sender) = (consumer.clone(), producer.clone());
    cx.show("the member", move || format!("{:?}", member.status()));
    cx.show("the producer", move || format!("{:?}", sender.status()));
    let before = numbered("before", 5);
    send_to(&cx, &producer, 0, &before).await?;
    let came = take_acked(&cx, &consumer, before.len()).await?;
    in_order(
        "before the outage",
        &crate::cases::steps::payloads(&came),
        &before,
    )?;
    consumer.commit().await?;

    for round in 0..2 {
        cx.fault("kill", cx.server().kill()).await?;
        let told = cx
            .within(
                format!("the error of outage {round}"),
                OUTAGE_AFTER + Duration::from_secs(15),
                consumer.consume(),
            )
            .await?;
        match told {
            Err(error) if error.kind() == ErrorKind::Connection && error.is_retryable() => {
                note!(cx, "consume tells: {error}");
            }
            Err(error) => fail!(
                "an outage was to be a retryable connection error, consume gave {:?}: {error}",
                error.kind()
            ),
            Ok(delivery) => fail!("with the server away consume gave {:?}", text(&delivery)),
        }
        cx.stays_pending(
            "consume told of one outage twice, or gave a message, with the server away,",
            2 * OUTAGE_AFTER,
            consumer.consume(),
        )
        .await?;
        ensure!(
            consumer.status().outage,
            "the server is away, and the status shows no outage"
        );

        let begun = Instant::now();
        let sent = cx
            .within(
                "a produce with the server away",
                SEND + Duration::from_secs(3),
                producer.produce("away"),
            )
            .await?;
        note!(cx, "produce gave {sent:?} after {:?}", begun.elapsed());
        ensure!(
            sent.as_ref().is_err_and(mq_api::Error::is_retryable),
            "a produce with the server away was to fail as worth a retry, it gave {sent:?}"
        );
        let connected = cx
            .within(
                "a connect with the server away",
                CONNECT,
                cx.harness().connect(cx.url()),
            )
            .await?;
        unreachable("a connect with the server away", connected.map(drop))?;

        cx.fault("start", cx.server().start()).await?;
        let ready = Instant::now();
        let after = numbered(&format!("after{round}"), 5);
        for payload in &after {
            retried(&cx, "a produce with the server back", cx.times().progress, || {
                producer.produce_to(0, payload.clone())
            })
            .await?;
        }
        take_until_through_outages(&cx, &consumer, &after, cx.times().progress).await?;
        cx.measure(Measured::Recovery, ready.elapsed());
        cx.eventually("the end of the outage in the status", cx.times().progress, || {
            let over = !consumer.status().outage;
            async move { Ok(over.then_some(())) }
        })
        .await?;
        // Between outages, so that the second is one of its own.
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
