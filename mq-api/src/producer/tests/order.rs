//! Retries: what is sent again, and what order forbids.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_surely_was_not_stored_is_sent_again() {
    let script = Script::new(1, 1);
    script.next([LOST, LOST, Do::Drop]);
    let producer = script.open(|p| p).await;
    let begun = tokio::time::Instant::now();
    producer.produce("m").await.unwrap();
    assert_eq!(script.sent().len(), 4);
    assert_eq!(producer.status().retried, 3);
    // 50, 100 and 200 ms.
    assert!(
        begun.elapsed() >= Duration::from_millis(350),
        "{:?}",
        begun.elapsed()
    );
    until("the buffer is empty", || producer.status().buffered_messages == 0).await;
    assert_eq!(producer.core.client.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn later_messages_wait_behind_a_retry() {
    let script = Script::new(1, 1);
    script.next([LOST]);
    let producer = script.open(|p| p).await;
    let mut pending = Vec::new();
    for text in ["a", "b", "c"] {
        pending.push(producer.enqueue_to(0, text).await.unwrap());
    }
    assert_eq!(script.sent().len(), 1);
    for receipt in pending {
        receipt.await.unwrap();
    }
    assert_eq!(script.stored_in(0), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_stores_at_once_gets_nothing_past_a_message_that_is_to_be_sent_again() {
    let script = Script::with_window(
        1,
        crate::driver::SendWindow::new(1, 1000, 1 << 20).with_store_now(),
    );
    script.next([LOST]);
    let producer = script.open(|p| p).await;
    let first = producer.enqueue_to(0, "a").await.unwrap();
    let second = producer.enqueue_to(0, "b").await.unwrap();
    assert_eq!(
        script.stored_in(0),
        [""; 0],
        "the second one waits behind the first"
    );
    first.await.unwrap();
    second.await.unwrap();
    for text in ["c", "d"] {
        producer.produce_to(0, text).await.unwrap();
    }
    assert_eq!(script.stored_in(0), ["a", "b", "c", "d"]);
    let batches = script.sent();
    assert!(
        !batches.iter().any(|(_, texts)| texts.contains(&"d".to_owned())),
        "with nothing under way it needs no batch: {batches:?}"
    );
    assert_eq!(producer.status().sent, 4);
    producer.close().await.unwrap();
    assert_eq!(producer.produce("e").await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_failed_message_is_not_stored_behind_a_later_one() {
    let script = Script::new(1, 2);
    script.next([Do::Hold, Do::Hold]);
    let producer = script.open(|p| p).await;
    let first = producer.enqueue_to(0, "a").await.unwrap();
    let second = producer.enqueue_to(0, "b").await.unwrap();
    let (one, two) = (script.held().await, script.held().await);
    one.fail_all(&script::failure(ErrorKind::Connection, Outcome::NotSent));
    drop(one);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(script.sent().len(), 2, "it waits for what is under way");
    script.store(&two);
    drop(two);
    second.await.unwrap();
    assert_eq!(what(first.await), (ErrorKind::Connection, Outcome::NotSent));
    assert_eq!(script.stored_in(0), ["b"]);
    assert_eq!(producer.status().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_later_message_of_unknown_outcome_forbids_a_retry_too() {
    let script = Script::new(1, 2);
    script.next([Do::Hold, Do::Hold]);
    let producer = script.open(|p| p).await;
    let first = producer.enqueue_to(0, "a").await.unwrap();
    let second = producer.enqueue_to(0, "b").await.unwrap();
    let (one, two) = (script.held().await, script.held().await);
    one.fail_all(&script::failure(ErrorKind::Connection, Outcome::NotSent));
    drop(one);
    two.begin_io(0..1);
    drop(two);
    assert_eq!(what(first.await), (ErrorKind::Connection, Outcome::NotSent));
    assert_eq!(what(second.await), (ErrorKind::Interrupted, Outcome::Unknown));
}

#[tokio::test(start_paused = true)]
async fn batches_that_all_failed_are_sent_again_in_order() {
    let script = Script::new(1, 3);
    script.next([Do::Hold, Do::Hold, Do::Hold]);
    let producer = script.open(|p| p).await;
    let mut pending = Vec::new();
    for text in ["a", "b", "c", "d"] {
        pending.push(producer.enqueue_to(0, text).await.unwrap());
    }
    let mut batches = vec![script.held().await, script.held().await, script.held().await];
    while let Some(batch) = batches.pop() {
        batch.fail_all(&script::failure(ErrorKind::Connection, Outcome::NotSent));
    }
    for receipt in pending {
        receipt.await.unwrap();
    }
    assert_eq!(script.stored_in(0), ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn of_one_batch_what_failed_before_a_stored_one_stays_failed() {
    let script = Script::new(1, 1);
    script.next([Do::Hold]);
    let producer = script.open(|p| p).await;
    let sending = tokio::spawn({
        let producer = producer.clone();
        async move { producer.produce_batch(["a", "b", "c"]).await }
    });
    let batch = script.held().await;
    assert_eq!(batch.len(), 3);
    let lost = script::failure(ErrorKind::Connection, Outcome::NotSent);
    batch.fail(0..1, &lost);
    batch.begin_io(1..2);
    batch.complete_one(1, None);
    batch.fail(2..3, &lost);
    drop(batch);
    let results = sending.await.unwrap();
    assert!(
        results[0].is_err() && results[1].is_ok() && results[2].is_ok(),
        "{results:?}"
    );
    assert_eq!(script.stored_in(0), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn reorder_on_retry_sends_again_all_the_same() {
    let script = Script::new(1, 2);
    script.next([Do::Hold, Do::Store]);
    let producer = script.open(|p| p.reorder_on_retry(true)).await;
    let first = producer.enqueue_to(0, "a").await.unwrap();
    producer.enqueue_to(0, "b").await.unwrap().await.unwrap();
    script
        .held()
        .await
        .fail_all(&script::failure(ErrorKind::Connection, Outcome::NotSent));
    first.await.unwrap();
    assert_eq!(script.stored_in(0), ["b", "a"]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_never_sent_again_unasked() {
    let unknown = Do::Fail(ErrorKind::Connection, Outcome::Unknown);
    let script = Script::new(1, 1);
    script.next([
        unknown.clone(),
        Do::BeginAndDrop,
        unknown.clone(),
        Do::BeginAndDrop,
    ]);
    let careful = script.open(|p| p).await;
    assert_eq!(
        what(careful.produce("m").await),
        (ErrorKind::Connection, Outcome::Unknown)
    );
    assert_eq!(
        what(careful.produce("m").await),
        (ErrorKind::Interrupted, Outcome::Unknown)
    );
    assert_eq!(script.sent().len(), 2);
    let daring = script.mq().producer("t").resend_unknown(true).await.unwrap();
    daring.produce("m").await.unwrap();
    assert_eq!(script.sent().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn after_one_unknown_try_a_message_is_never_said_to_be_not_sent() {
    let script = Script::new(1, 1);
    script.next([Do::Fail(ErrorKind::Connection, Outcome::Unknown)]);
    script.otherwise(LOST);
    let producer = script
        .open(|p| p.resend_unknown(true).timeout(Duration::from_secs(3)))
        .await;
    assert_eq!(
        what(producer.produce("m").await),
        (ErrorKind::Timeout, Outcome::Unknown)
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_succeed_is_not_sent_again() {
    let script = Script::new(1, 1);
    script.next([Do::Fail(ErrorKind::PermissionDenied, Outcome::NotSent)]);
    let producer = script.open(|p| p).await;
    assert_eq!(
        what(producer.produce("m").await),
        (ErrorKind::PermissionDenied, Outcome::NotSent)
    );
    assert_eq!(script.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_taken_out_of_its_batch_is_not_sent_again() {
    let script = Script::new(1, 1);
    script.next([Do::Hold]);
    let producer = script.open(|p| p).await;
    let pending = producer.enqueue("m").await.unwrap();
    let mut batch = script.held().await;
    assert_eq!(batch.take_messages().count(), 1);
    assert_eq!((batch.len(), batch.messages().len()), (1, 0));
    batch.fail_all(&script::failure(ErrorKind::Connection, Outcome::NotSent));
    drop(batch);
    assert_eq!(what(pending.await), (ErrorKind::Connection, Outcome::NotSent));
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_moves_away_from_a_partition_that_keeps_failing() {
    let script = Script::new(2, 1);
    let producer = script.open(|p| p.timeout(Duration::from_secs(5))).await;
    let first = producer.core.lock().stick(1).0;
    producer.core.lock().unstick(first);
    let other = 1 - first;
    // The next message without a key goes to `other`, which is gone.
    script.next([LOST, LOST]);
    let receipt = producer.produce("m").await.unwrap();
    assert_eq!(receipt.partition, first);
    let partitions: Vec<u32> = script.sent().iter().map(|(partition, _)| *partition).collect();
    assert_eq!(partitions, [other, other, first]);
    // One with a key stays to its end.
    script.otherwise(LOST);
    let keyed = Message::new("k").with_key(key_of(other, 2));
    assert_eq!(
        what(producer.produce(keyed).await),
        (ErrorKind::Timeout, Outcome::NotSent)
    );
    assert!(
        script.sent()[3..]
            .iter()
            .all(|(partition, _)| *partition == other)
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_moves_half_way_round() {
    let script = Script::new(5, 1);
    let producer = script.open(|p| p.retries(2)).await;
    script.next([LOST, LOST]);
    let to = producer.produce("m").await.unwrap().partition;
    let from = script.sent()[0].0;
    assert_eq!(to, (from + 2) % 5);
    // The next ones pass by the partition that failed.
    for _ in 0..8 {
        assert_ne!(producer.produce("m").await.unwrap().partition, from);
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_failed_messages_without_a_key_gets_some_again_later() {
    let script = Script::new(2, 1);
    let producer = script.open(|p| p).await;
    script.next([LOST, LOST]);
    let alive = producer.produce("m").await.unwrap().partition;
    for _ in 0..10 {
        assert_eq!(producer.produce("m").await.unwrap().partition, alive);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    producer.produce("m").await.unwrap();
    assert_eq!(producer.produce("m").await.unwrap().partition, 1 - alive);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_sent_again_as_often_as_the_option_says() {
    let script = Script::new(2, 1);
    let producer = script.open(|p| p.retries(2)).await;
    script.otherwise(LOST);
    for _ in 0..2 {
        let error = producer.produce_to(1, "m").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Connection, Outcome::NotSent)
        );
    }
    assert_eq!(script.sent().len(), 6);
    assert_eq!(producer.status().retried, 4);
    // Of one batch, each message counts for itself.
    script.otherwise(Do::Store);
    script.next([LOST, LOST]);
    let first = producer.enqueue_to(1, "a").await.unwrap();
    let second = producer.enqueue_to(1, "b").await.unwrap();
    first.await.unwrap();
    second.await.unwrap();
    until("the buffer is empty", || producer.status().buffered_messages == 0).await;
    assert_eq!(producer.core.client.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_does_not_move_behind_later_ones() {
    let script = Script::new(2, 2);
    script.otherwise(LOST);
    let producer = script.open(|p| p.timeout(Duration::from_secs(2))).await;
    let stuck = producer.enqueue("m").await.unwrap();
    let home = script.sent()[0].0;
    script.next([Do::Store]);
    producer.produce_to(1 - home, "later").await.unwrap();
    assert_eq!(what(stuck.await), (ErrorKind::Timeout, Outcome::NotSent));
    assert!(script.stored_in(1 - home) == ["later"]);
}
