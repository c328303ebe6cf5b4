//! Waiting for room.

use futures_util::poll;

use super::*;
use crate::ClientOptions;

async fn full(script: &Script) -> (Producer, Vec<crate::PendingReceipt>) {
    script.otherwise(Do::Hold);
    let producer = script
        .open(|p| p.buffer_messages(2).timeout(Duration::from_secs(5)))
        .await;
    let pending = vec![
        producer.enqueue("a").await.unwrap(),
        producer.enqueue("b").await.unwrap(),
    ];
    (producer, pending)
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_makes_senders_wait_in_their_order() {
    let script = Script::new(1, 1);
    let (producer, pending) = full(&script).await;
    let mut third = Box::pin(producer.enqueue("c"));
    let mut fourth = Box::pin(producer.enqueue("d"));
    assert!(poll!(third.as_mut()).is_pending() && poll!(fourth.as_mut()).is_pending());
    assert_eq!(
        what(producer.try_enqueue("e")),
        (ErrorKind::ResourceExhausted, Outcome::NotSent)
    );
    script.otherwise(Do::Store);
    script.store(&script.held().await);
    let (third, fourth) = (third.await.unwrap(), fourth.await.unwrap());
    for receipt in pending.into_iter().chain([third, fourth]) {
        receipt.await.unwrap();
    }
    assert_eq!(script.stored_in(0), ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn one_who_comes_later_does_not_overtake_one_who_waits() {
    let script = Script::new(1, 1);
    let (producer, _pending) = full(&script).await;
    let mut waiting = Box::pin(producer.enqueue(vec![0; 100]));
    assert!(poll!(waiting.as_mut()).is_pending());
    drop(script.held().await);
    until("there is room", || producer.status().buffered_messages < 3).await;
    assert!(producer.try_enqueue("late").is_err() || poll!(waiting.as_mut()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_room_ends_at_the_deadline() {
    let script = Script::new(1, 1);
    let (producer, _pending) = full(&script).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(
        what(producer.produce("c").await),
        (ErrorKind::Timeout, Outcome::NotSent)
    );
    assert!(begun.elapsed() >= Duration::from_secs(5));
    assert_eq!(script.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_before_room_a_message_is_withdrawn_and_after_it_sent() {
    let script = Script::new(1, 1);
    let (producer, pending) = full(&script).await;
    let mut withdrawn = Box::pin(producer.produce("withdrawn"));
    let mut granted = Box::pin(producer.produce("granted, then dropped"));
    let mut last = Box::pin(producer.produce("last"));
    assert!(poll!(withdrawn.as_mut()).is_pending());
    assert!(poll!(granted.as_mut()).is_pending());
    assert!(poll!(last.as_mut()).is_pending());
    drop(withdrawn);
    script.otherwise(Do::Store);
    script.store(&script.held().await);
    // Room has been given to it, but it was not polled again: it is withdrawn, and its room goes on to the next.
    until("all is sent", || producer.status().sent >= 2).await;
    drop(granted);
    last.await.unwrap();
    for receipt in pending {
        receipt.await.unwrap();
    }
    assert_eq!(script.stored_in(0), ["a", "b", "last"]);
    assert_eq!(producer.status().buffered_messages, 0);
    assert_eq!(producer.status().buffered_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_receipt_changes_nothing() {
    let script = Script::new(1, 1);
    let (producer, pending) = full(&script).await;
    drop(pending);
    script.otherwise(Do::Store);
    script.store(&script.held().await);
    producer.flush().await.unwrap();
    assert_eq!(script.stored_in(0), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_bounded_and_a_larger_message_passes_alone() {
    let script = Script::new(1, 1);
    script.otherwise(Do::Hold);
    let producer = script.open(|p| p.buffer_bytes(2000)).await;
    let big = producer.try_enqueue(vec![0; 5000]).unwrap();
    assert!(producer.try_enqueue("small").is_err());
    script.store(&script.held().await);
    big.await.unwrap();
    let _first = producer.try_enqueue(vec![0; 1000]).unwrap();
    assert!(producer.try_enqueue(vec![0; 1000]).is_err());
    assert!(producer.try_enqueue(vec![0; 500]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_budget_of_the_client_bounds_all_its_producers_and_starves_none() {
    let script = Script::new(1, 1);
    script.otherwise(Do::Hold);
    let mq = script.mq_with(ClientOptions::default().with_memory_budget(64 * 1024));
    let (one, two) = (
        mq.producer("one").await.unwrap(),
        mq.producer("two").await.unwrap(),
    );
    let first = one.try_enqueue(vec![0; 60_000]).unwrap();
    assert!(one.try_enqueue(vec![0; 10_000]).is_err(), "the budget is used up");
    let second = two.try_enqueue(vec![0; 10_000]).unwrap();
    let mut third = Box::pin(two.enqueue(vec![0; 10_000]));
    assert!(poll!(third.as_mut()).is_pending());
    script.otherwise(Do::Store);
    // What the one producer gives back lets the other's sender in.
    let batch = script.held().await;
    assert_eq!(batch.messages()[0].payload_or_empty().len(), 60_000);
    script.store(&batch);
    drop(batch);
    let third = third.await.unwrap();
    script.store(&script.held().await);
    for receipt in [first, second, third] {
        receipt.await.unwrap();
    }
    until("all is given back", || mq.inner.budget.used() == 0).await;
}

#[tokio::test]
async fn many_senders_over_a_small_buffer_all_get_through() {
    let script = Script::new(2, 1);
    script.otherwise(Do::StoreFromThread);
    let producer = script.mq().producer("t").buffer_messages(3).await.unwrap();
    let senders: Vec<_> = (0..40)
        .map(|n| {
            let producer = producer.clone();
            tokio::spawn(async move {
                for m in 0..10 {
                    let sending = producer.produce(format!("{n}-{m}"));
                    if (n + m) % 7 == 0 {
                        // Given up at some point or other.
                        let _ = tokio::time::timeout(Duration::from_micros(300), sending).await;
                    } else {
                        sending.await.unwrap();
                    }
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    producer.flush().await.unwrap();
    until("the buffer is empty", || producer.status().buffered_messages == 0).await;
    assert_eq!(producer.status().buffered_bytes, 0);
    let mut stored = script.stored();
    let count = stored.len();
    stored.sort();
    stored.dedup_by(|a, b| a.1 == b.1);
    assert!(
        stored.len() == count && count >= 340,
        "{count} stored, {} different",
        stored.len()
    );
}
