//! Deadlines.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_deadline_before_the_bytes_leave_is_not_sent_and_after_it_unknown() {
    let script = Script::new(1, 2);
    script.otherwise(Do::Hold);
    let producer = script.open(|p| p.timeout(Duration::from_secs(2))).await;
    let early = producer.enqueue("early").await.unwrap();
    let late = producer.enqueue("late").await.unwrap();
    let (one, two) = (script.held().await, script.held().await);
    assert!(two.begin_io(0..1));
    let begun = tokio::time::Instant::now();
    assert_eq!(what(early.await), (ErrorKind::Timeout, Outcome::NotSent));
    assert_eq!(what(late.await), (ErrorKind::Timeout, Outcome::Unknown));
    assert!(
        begun.elapsed() <= Duration::from_millis(2100),
        "{:?}",
        begun.elapsed()
    );
    assert!(!one.begin_one(0), "what was given up must be skipped");
    // What comes too late changes nothing, and is counted once.
    two.complete_all(Some(1));
    assert_eq!(producer.status().failed, 2);
    drop((one, two));
    assert_eq!((producer.status().failed, producer.status().sent), (2, 0));
    assert_eq!(producer.status().buffered_messages, 0);
}

#[tokio::test(start_paused = true)]
async fn what_waits_too_long_never_reaches_the_driver() {
    let script = Script::new(1, 1);
    script.next([Do::Hold]);
    let producer = script.open(|p| p.timeout(Duration::from_secs(1))).await;
    let first = producer.enqueue("first").await.unwrap();
    let second = producer.enqueue("second").await.unwrap();
    let batch = script.held().await;
    assert_eq!(what(second.await), (ErrorKind::Timeout, Outcome::NotSent));
    drop(first);
    drop(batch);
    producer.produce("third").await.unwrap();
    assert_eq!(script.stored_in(0), ["third"]);
}

#[tokio::test(start_paused = true)]
async fn the_driver_sees_the_deadline() {
    let script = Script::new(1, 1);
    script.otherwise(Do::Hold);
    let producer = script.open(|p| p.timeout(Duration::from_secs(7))).await;
    let before = tokio::time::Instant::now();
    let _pending = producer.enqueue("m").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let batch = script.held().await;
    let after = tokio::time::Instant::from_std(batch.deadline()) - before;
    assert!(
        after >= Duration::from_secs(7) && after < Duration::from_millis(7100),
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn retries_end_at_the_deadline_and_name_the_last_failure() {
    let script = Script::new(1, 1);
    script.otherwise(LOST);
    let producer = script.open(|p| p.timeout(Duration::from_secs(4))).await;
    let begun = tokio::time::Instant::now();
    let error = producer.produce_to(0, "m").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Timeout, Outcome::NotSent)
    );
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "connection: as the script says");
    assert!(begun.elapsed() >= Duration::from_secs(4) && begun.elapsed() < Duration::from_millis(4200));
}

#[tokio::test(start_paused = true)]
async fn the_task_sleeps_once_nothing_is_under_way() {
    let script = Script::new(1, 1);
    script.next([Do::Hold]);
    let producer = script.open(|p| p.timeout(Duration::from_secs(1))).await;
    let pending = producer.enqueue("m").await.unwrap();
    assert!(producer.core.lock().wakes_at.is_some());
    let batch = script.held().await;
    script.store(&batch);
    drop(batch);
    pending.await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(producer.core.lock().wakes_at, None);
}
