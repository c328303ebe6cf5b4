//! Close while the server does not answer.

use std::time::Duration;

use mq_api::ClientOptions;
use tokio::time::Instant;

use crate::{
    cases::steps::reader,
    context::Context,
    failure::{CaseResult, ensure, note},
    flow::{one, send_to},
};

/// Z5: with the server frozen, close of a producer with messages under way, of a consumer with acks to store, of a reader
/// and of the client each end within their close timeouts; what was enqueued is settled then. Guarantees 7 and 9.
pub(super) async fn close_is_bounded_with_the_server_frozen(cx: Context) -> CaseResult {
    const CLOSE: Duration = Duration::from_secs(2);
    // A close may take its time for the flush and again for the driver's own end; a busy machine adds to that.
    const LIMIT: Duration = Duration::from_secs(2 * CLOSE.as_secs() + 3);
    let topic = cx.topic("frozen", 2).await?;
    let options = ClientOptions::default().with_close_timeout(CLOSE);
    let mq = cx.connect_with(options).await?;
    let producer = mq.producer(&topic).close_timeout(CLOSE).await?;
    let consumer = mq.consumer(&topic, &topic).close_timeout(CLOSE).await?;
    let other_producer = mq.producer(&topic).close_timeout(CLOSE).await?;
    let other = mq.consumer(&topic, "other").close_timeout(CLOSE).await?;
    let reader = reader(&cx, &mq, &topic).await?;
    send_to(&cx, &producer, 0, &["one".to_owned(), "two".to_owned()]).await?;
    for consumer in [&consumer, &other] {
        one(&cx, consumer).await?.ack()?;
    }

    cx.fault("freeze", cx.server().freeze()).await?;
    let mut pending = Vec::new();
    for producer in [&producer, &other_producer] {
        for _ in 0..10 {
            pending.push(producer.enqueue_to(1, "under way").await?);
        }
    }
    let mut took = Vec::new();
    for (what, limit, close) in [
        (
            "producer",
            LIMIT,
            Box::pin(producer.close()) as futures_util::future::BoxFuture<'_, _>,
        ),
        ("consumer", LIMIT, Box::pin(consumer.close())),
        (
            "reader",
            LIMIT,
            Box::pin(async {
                match &reader {
                    Some(reader) => reader.close().await,
                    None => Ok(()),
                }
            }),
        ),
        // It closes one more producer and consumer, then itself.
        ("client", 3 * LIMIT, Box::pin(mq.close())),
    ] {
        let begun = Instant::now();
        let result = cx
            .within(
                format!("hangs: close of the {what} with the server frozen"),
                limit,
                close,
            )
            .await?;
        let elapsed = begun.elapsed();
        note!(cx, "close of the {what} took {elapsed:?} and gave {result:?}");
        // A close that holds up its thread holds up its deadline too.
        ensure!(
            elapsed <= limit,
            "hangs: close of the {what} with the server frozen took {elapsed:?}, its limit is {limit:?}"
        );
        took.push((what, begun.elapsed()));
    }
    let count = pending.len();
    for (place, receipt) in pending.into_iter().enumerate() {
        let result = cx
            .within(
                format!("the receipt of message {place} of {count} after close"),
                Duration::from_secs(5),
                receipt,
            )
            .await?;
        ensure!(
            result.is_err(),
            "message {place} was sent while the server was frozen, and its receipt is {result:?}; closes took {took:?}"
        );
    }
    cx.fault("thaw", cx.server().thaw()).await
}
