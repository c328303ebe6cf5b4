//! Flush, close, dropped handles, and a runtime that ends.

use super::*;

#[tokio::test(start_paused = true)]
async fn flush_waits_for_what_was_taken_before_and_no_more() {
    let script = Script::new(2, 1);
    script.otherwise(Do::Hold);
    let producer = script.open(|p| p).await;
    let _a = producer.enqueue_to(0, "a").await.unwrap();
    let _b = producer.enqueue_to(0, "b").await.unwrap();
    let flushing = tokio::spawn({
        let producer = producer.clone();
        async move { producer.flush().await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let _later = producer.enqueue_to(1, "later").await.unwrap();
    assert!(!flushing.is_finished());
    script.store(&script.held().await);
    let later = script.held().await;
    script.store(&script.held().await);
    flushing.await.unwrap().unwrap();
    drop(later);
    producer.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn close_sends_what_was_taken_and_every_caller_gets_its_result() {
    let script = Script::new(1, 1);
    script.next([Do::Hold]);
    let producer = script.open(|p| p).await;
    let a = producer.enqueue("a").await.unwrap();
    let b = producer.enqueue("b").await.unwrap();
    let closing = tokio::spawn({
        let producer = producer.clone();
        async move { tokio::join!(producer.close(), producer.close()) }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(
        what(producer.produce("late").await),
        (ErrorKind::Closed, Outcome::NotSent)
    );
    assert_eq!(what(producer.try_enqueue("late")).0, ErrorKind::Closed);
    assert_eq!(what(producer.flush().await).0, ErrorKind::Closed);
    script.store(&script.held().await);
    let (first, second) = closing.await.unwrap();
    assert!(first.is_ok() && second.is_ok() && producer.close().await.is_ok());
    a.await.unwrap();
    b.await.unwrap();
    assert_eq!(script.stored_in(0), ["a", "b"]);
    assert_eq!(script.closes(), 1);
}

#[tokio::test]
async fn close_returns_as_soon_as_the_last_send_is_settled() {
    for what in [Do::StoreFromThread, Do::Hold] {
        let script = Script::new(1, 1);
        script.otherwise(what);
        let producer = script.open(|p| p).await;
        let pending = producer.enqueue("a").await.unwrap();
        let begun = std::time::Instant::now();
        let closing = tokio::spawn({
            let producer = producer.clone();
            async move { producer.close().await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some(batch) = script.take_held(0) {
            assert!(!closing.is_finished());
            script.store(&batch);
        }
        closing.await.unwrap().unwrap();
        pending.await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn close_ends_in_its_time_and_says_what_became_of_the_rest() {
    let script = Script::new(1, 2);
    script.otherwise(Do::Hold);
    let producer = script
        .open(|p| p.buffer_messages(3).close_timeout(Duration::from_secs(2)))
        .await;
    let mut pending = Vec::new();
    for text in ["begun", "handed over", "waiting"] {
        pending.push(producer.enqueue(text).await.unwrap());
    }
    let waiting = tokio::spawn({
        let producer = producer.clone();
        async move { producer.produce("no room").await }
    });
    let (one, two) = (script.held().await, script.held().await);
    one.begin_io(0..1);
    let begun = tokio::time::Instant::now();
    let (first, second) = tokio::join!(producer.close(), producer.close());
    assert!(
        begun.elapsed() < Duration::from_millis(2600),
        "{:?}",
        begun.elapsed()
    );
    let error = first.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.context().contains("3 messages"), "{error}");
    assert_eq!(error.to_string(), second.unwrap_err().to_string());
    let mut results = pending.into_iter();
    for outcome in [Outcome::Unknown, Outcome::NotSent, Outcome::NotSent] {
        assert_eq!(what(results.next().unwrap().await), (ErrorKind::Closed, outcome));
    }
    assert_eq!(
        what(waiting.await.unwrap()),
        (ErrorKind::Closed, Outcome::NotSent)
    );
    // Batches that come back after the end do no harm.
    drop((one, two));
    assert_eq!(producer.status().buffered_messages, 0);
    assert_eq!(producer.core.client.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_that_goes_lets_the_rest_be_sent() {
    let script = Script::new(1, 1);
    script.next([Do::Hold]);
    let producer = script.open(|p| p).await;
    let a = producer.enqueue("a").await.unwrap();
    let b = producer.enqueue("b").await.unwrap();
    drop(producer.clone());
    assert_eq!(producer.status().buffered_messages, 2);
    drop(producer);
    script.store(&script.held().await);
    a.await.unwrap();
    b.await.unwrap();
    until("the driver's producer is closed", || script.closes() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_keeps_a_closed_producer_alive() {
    let script = Script::new(1, 1);
    let producer = script.mq().producer("t").await.unwrap();
    producer.produce("pooled").await.unwrap();
    let core = std::sync::Arc::downgrade(&producer.core);
    drop(producer);
    until("the producer is gone", || core.strong_count() == 0).await;
}

#[test]
fn a_runtime_that_ends_is_no_panic_and_no_hang() {
    let script = Script::new(1, 1);
    script.otherwise(Do::Hold);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (producer, pending) = runtime.block_on(async {
        let producer = script.open(|p| p).await;
        let pending = [
            producer.enqueue("a").await.unwrap(),
            producer.enqueue("b").await.unwrap(),
        ];
        (producer, pending)
    });
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().build().unwrap();
    other.block_on(async {
        for receipt in pending {
            assert_eq!(what(receipt.await), (ErrorKind::Interrupted, Outcome::NotSent));
        }
        assert_eq!(what(producer.produce("c").await).0, ErrorKind::Closed);
        assert_eq!(what(producer.close().await).0, ErrorKind::Interrupted);
    });
    drop(producer);
}

#[tokio::test]
async fn a_producer_of_a_closed_client_is_refused() {
    let script = Script::new(1, 1);
    let mq = script.mq();
    let producer = mq.producer("t").await.unwrap();
    mq.close().await.unwrap();
    assert_eq!(what(producer.produce("m").await).0, ErrorKind::Closed);
    assert_eq!(what(mq.producer("t").await).0, ErrorKind::Closed);
    assert!(producer.close().await.is_ok());
}
