//! What close does, and what everybody gets who calls it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{Error, ErrorKind, Mq, Result, driver};
use tokio::task::JoinSet;

use crate::{
    cases::steps::{nothing_but_the_marker, payloads, reader},
    context::Context,
    failure::{CaseResult, ensure, fail},
    flow::{in_order, numbered, one, refused, send_to, take_acked},
    wrap::{Scope, Tweak, Tweaked},
};

/// Closes everything, then says that it did not go well, in other words each time.
#[derive(Debug, Default)]
struct FailingClose {
    failures: AtomicU64,
}

impl FailingClose {
    fn failure(&self, what: &str) -> Error {
        let count = self.failures.fetch_add(1, Ordering::SeqCst);
        Error::new(
            ErrorKind::Interrupted,
            format!("injected failure {count} of the {what}"),
        )
    }
}

#[async_trait]
impl Tweak for FailingClose {
    async fn close_producer(&self, _scope: &Scope, inner: &dyn driver::Producer) -> Result<()> {
        inner.close().await?;
        Err(self.failure("producer"))
    }

    async fn close_consumer(&self, _scope: &Scope, inner: &dyn driver::Consumer) -> Result<()> {
        inner.close().await?;
        Err(self.failure("consumer"))
    }

    async fn close_reader(&self, _scope: &Scope, inner: &dyn driver::Reader) -> Result<()> {
        inner.close().await?;
        Err(self.failure("reader"))
    }
}

/// Opens a client whose children fail when they are closed.
async fn client_that_fails_to_close(cx: &Context) -> CaseResult<Mq> {
    let plain = cx.connect().await?;
    let tweaked = Tweaked::new(Arc::clone(plain.driver()), Arc::new(FailingClose::default()));
    Ok(Mq::from_driver(tweaked))
}

/// Z1: whoever closes, at the same time, earlier or later, gets the same result, be it `Ok` or an error. Guarantee 7.
pub(super) async fn every_caller_of_close_gets_the_same_result(cx: Context) -> CaseResult {
    let topic = cx.topic("same", 1).await?;
    for fails in [false, true] {
        let mq = if fails {
            client_that_fails_to_close(&cx).await?
        } else {
            cx.connect().await?
        };
        let producer = mq.producer(&topic).await?;
        let consumer = mq.consumer(&topic, &topic).await?;
        let reader = reader(&cx, &mq, &topic).await?;
        send_to(&cx, &producer, 0, &["m".to_owned()]).await?;
        take_acked(&cx, &consumer, 1).await?;
        let expected = fails.then_some(ErrorKind::Interrupted);
        same(&cx, "producer", expected, || {
            let producer = producer.clone();
            async move { producer.close().await }
        })
        .await?;
        same(&cx, "consumer", expected, || {
            let consumer = consumer.clone();
            async move { consumer.close().await }
        })
        .await?;
        if let Some(reader) = reader {
            same(&cx, "reader", expected, || {
                let reader = reader.clone();
                async move { reader.close().await }
            })
            .await?;
        }
        same(&cx, "client", expected, || {
            let mq = mq.clone();
            async move { mq.close().await }
        })
        .await?;
    }
    Ok(())
}

/// Closes from eight tasks at once and then twice more, and compares what each gets.
pub(crate) async fn same<F: Future<Output = Result<()>> + Send + 'static>(
    cx: &Context,
    what: &str,
    expected: Option<ErrorKind>,
    close: impl Fn() -> F,
) -> CaseResult {
    let limit = cx.times().progress;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        tasks.spawn(close());
    }
    let mut results = Vec::new();
    while let Some(result) = cx
        .within(
            format!("the concurrent closes of the {what}"),
            limit,
            tasks.join_next(),
        )
        .await?
    {
        results.push(result?);
    }
    for _ in 0..2 {
        results.push(
            cx.within(format!("a later close of the {what}"), limit, close())
                .await?,
        );
    }
    let told: Vec<_> = results.iter().map(|result| format!("{result:?}")).collect();
    ensure!(
        told.iter().all(|one| *one == told[0]),
        "the callers of close of the {what} got different results: {told:?}"
    );
    // The result of a client is that of its children, which were closed before it and had failed then.
    let kind = results[0].as_ref().err().map(Error::kind);
    ensure!(
        kind == expected || (what == "client" && kind.is_none()),
        "close of the {what} was to give {expected:?}, it gave {}",
        told[0]
    );
    Ok(())
}

/// Z3: close of a producer sends what was enqueued and not awaited; everything is there, in order. Guarantee 7.
pub(super) async fn close_flushes_what_was_enqueued(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("flush", 1).await?;
    for (round, by_client) in [false, true].into_iter().enumerate() {
        let client = cx.connect().await?;
        let producer = client.producer(&topic).await?;
        let sent = numbered(&format!("r{round}"), 500);
        let mut pending = Vec::new();
        for payload in &sent {
            pending.push(producer.enqueue_to(0, payload.clone()).await?);
        }
        let limit = cx.times().progress;
        if by_client {
            cx.within("close of the client", limit, client.close()).await??;
        } else {
            cx.within("close of the producer", limit, producer.close())
                .await??;
        }
        cx.count_sent(sent.len());
        let group = format!("group-{round}");
        let consumer = mq.consumer(&topic, &group).await?;
        let came = take_acked(&cx, &consumer, (round + 1) * sent.len()).await?;
        in_order(
            "what was enqueued before a close",
            &payloads(&came[round * sent.len()..]),
            &sent,
        )?;
        for (payload, receipt) in sent.iter().zip(pending) {
            let receipt = cx.within("a receipt after close", limit, receipt).await?;
            if let Err(error) = receipt {
                fail!("{payload} was enqueued before the close and stored, its receipt says {error}");
            }
        }
    }
    Ok(())
}

/// Z4: close wakes every call that waits: `consume`, a batch, a channel, a reader; each is `Closed`. Guarantee 7.
pub(super) async fn close_ends_a_pending_consume(cx: Context) -> CaseResult {
    let topic = cx.topic("pending", 1).await?;
    for by_client in [false, true] {
        let mq = cx.connect().await?;
        let consumer = mq.consumer(&topic, &topic).await?;
        let reader = reader(&cx, &mq, &topic).await?;
        let mut waiting = JoinSet::new();
        let one = consumer.clone();
        waiting.spawn(async move { ("consume", one.consume().await.map(drop)) });
        let batch = consumer.clone();
        waiting.spawn(async move { ("consume_batch", batch.consume_batch(10).await.map(drop)) });
        let mut channel = consumer.channel(4)?;
        waiting.spawn(async move { ("recv of a channel", channel.recv().await.map(drop)) });
        if let Some(next) = reader.clone() {
            waiting.spawn(async move { ("next of a reader", next.next().await.map(drop)) });
        }
        // All must be waiting; there is nothing to see of that from outside.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        ensure!(
            waiting.try_join_next().is_none(),
            "with nothing to consume a call returned before the close"
        );
        let limit = cx.times().progress;
        if by_client {
            cx.within("close of the client", limit, mq.close()).await??;
        } else {
            cx.within("close of the consumer", limit, consumer.close())
                .await??;
            if let Some(reader) = reader {
                cx.within("close of the reader", limit, reader.close()).await??;
            }
        }
        all_end_closed(&cx, limit, waiting).await?;
    }
    Ok(())
}

/// Waits for calls that waited when everything was closed, and checks that each is `Closed`.
pub(crate) async fn all_end_closed(
    cx: &Context,
    limit: Duration,
    mut waiting: JoinSet<(&'static str, Result<()>)>,
) -> CaseResult {
    while let Some(ended) = cx
        .within(
            format!(
                "the end of {} calls that waited when all was closed",
                waiting.len()
            ),
            limit,
            waiting.join_next(),
        )
        .await?
    {
        let (call, result) = ended?;
        refused(
            &format!("{call} that waited when it was closed"),
            result,
            ErrorKind::Closed,
        )?;
    }
    Ok(())
}

/// Z6: a client closes what it has opened, and the errors of all of them come back together; with none it is `Ok`.
/// Guarantee 7.
pub(super) async fn client_closes_its_children(cx: Context) -> CaseResult {
    let limit = cx.times().progress;
    for fails in [false, true] {
        let topic = cx.topic("children", 1).await?;
        let mq = if fails {
            client_that_fails_to_close(&cx).await?
        } else {
            cx.connect().await?
        };
        let producer = mq.producer(&topic).await?;
        let second = mq.producer(&topic).await?;
        let consumer = mq.consumer(&topic, &topic).await?;
        let reader = reader(&cx, &mq, &topic).await?;
        send_to(&cx, &producer, 0, &["m".to_owned()]).await?;
        one(&cx, &consumer).await?.ack()?;
        let closed = cx.within("close of the client", limit, mq.close()).await?;
        if fails {
            let error = refused(
                "close of a client whose children fail",
                closed,
                ErrorKind::Interrupted,
            )?;
            let text = error.to_string();
            let told = |what: &str| text.matches(&format!("of the {what}")).count();
            let readers = usize::from(reader.is_some());
            ensure!(
                told("producer") == 2 && told("consumer") == 1 && told("reader") == readers,
                "two producers, a consumer and {readers} readers failed to close, the client's error tells only: {text}"
            );
        } else {
            closed?;
        }
        let mut calls = vec![
            ("produce", producer.produce("m").await.map(drop)),
            (
                "produce of the second producer",
                second.produce("m").await.map(drop),
            ),
            (
                "consume",
                cx.within("consume", limit, consumer.consume()).await?.map(drop),
            ),
        ];
        if let Some(reader) = reader {
            let next = cx.within("next", limit, reader.next()).await?;
            calls.push(("next of the reader", next.map(drop)));
        }
        for (what, result) in calls {
            refused(
                &format!("{what} after the client was closed"),
                result,
                ErrorKind::Closed,
            )?;
        }
        // What was acked is stored: close commits.
        let mq = cx.mq().await?;
        let (after, producer) = (mq.consumer(&topic, &topic).await?, mq.producer(&topic).await?);
        nothing_but_the_marker(&cx, &producer, &after, 0)
            .await
            .map_err(|failure| failure.during("the client was closed after an ack"))?;
    }
    Ok(())
}
