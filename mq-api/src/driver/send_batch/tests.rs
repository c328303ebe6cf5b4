use super::*;
use crate::{ErrorKind, Outcome};

fn batch(count: usize) -> (SendBatch, Vec<SendStatus>) {
    let messages = (0..count).map(|n| Message::new(format!("{n}"))).collect();
    SendBatch::new(3, messages, Instant::now() + Duration::from_secs(5))
}

fn lost() -> Error {
    Error::new(ErrorKind::Connection, "lost").with_outcome(Outcome::NotSent)
}

async fn results(statuses: Vec<SendStatus>) -> Vec<Result<Option<Offset>, Outcome>> {
    let mut results = Vec::new();
    for status in statuses {
        results.push(match status.await {
            Ok(receipt) => {
                assert_eq!(receipt.partition, 3);
                Ok(receipt.offset)
            }
            Err(error) => Err(error.outcome()),
        });
    }
    results
}

#[tokio::test]
async fn dense_offsets_count_from_the_first() {
    let (batch, statuses) = batch(3);
    assert!(batch.begin_io(0..3));
    batch.complete_all(Some(7));
    assert_eq!(results(statuses).await, [Ok(Some(7)), Ok(Some(8)), Ok(Some(9))]);
    let (batch, statuses) = self::batch(2);
    batch.complete_all(None);
    assert_eq!(results(statuses).await, [Ok(None), Ok(None)]);
}

#[tokio::test]
async fn the_first_settlement_wins() {
    let (batch, statuses) = batch(3);
    batch.complete_one(1, Some(5));
    batch.fail(0..2, &lost());
    batch.complete_all(Some(100));
    batch.fail_all(&lost());
    assert!(!batch.begin_io(0..3) && !batch.begin_one(0));
    assert_eq!(
        results(statuses).await,
        [Err(Outcome::NotSent), Ok(Some(5)), Ok(Some(102))]
    );
}

#[tokio::test]
async fn what_is_dropped_unsettled_is_unknown_once_it_has_begun() {
    let (batch, statuses) = batch(3);
    batch.complete_one(0, None);
    batch.begin_one(1);
    drop(batch);
    assert_eq!(
        results(statuses).await,
        [Ok(None), Err(Outcome::Unknown), Err(Outcome::NotSent)]
    );
}

#[tokio::test]
async fn indexes_beyond_the_end_do_nothing() {
    let (batch, statuses) = batch(1);
    assert!(!batch.begin_one(1) && !batch.begin_one(usize::MAX));
    batch.complete_one(1, None);
    batch.complete_one(usize::MAX, None);
    batch.fail(1..9, &lost());
    #[expect(clippy::reversed_empty_ranges, reason = "a driver may get it wrong")]
    batch.fail(5..2, &lost());
    assert!(batch.begin_io(0..9));
    batch.complete_all(Some(1));
    assert_eq!(results(statuses).await, [Ok(Some(1))]);
}

#[tokio::test]
async fn an_empty_batch_is_no_trouble() {
    let (batch, statuses) = batch(0);
    assert!(batch.is_empty() && statuses.is_empty() && batch.begin_io(0..0));
    assert!(batch.deadline() <= Instant::now());
    batch.complete_all(None);
}

#[tokio::test]
async fn messages_can_be_taken_and_settled_afterwards() {
    let (mut batch, statuses) = batch(2);
    assert_eq!(batch.messages().len(), 2);
    assert_eq!(batch.take_messages().len(), 2);
    assert_eq!((batch.messages().len(), batch.len()), (0, 2));
    batch.complete_all(Some(0));
    assert_eq!(results(statuses).await, [Ok(Some(0)), Ok(Some(1))]);
}

#[test]
fn a_thread_without_a_runtime_wakes_who_waits() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for round in 0..200 {
        let (batch, statuses) = batch(2);
        let settling = std::thread::spawn(move || {
            if round % 2 == 0 {
                std::thread::yield_now();
            }
            batch.begin_io(0..2);
            batch.complete_one(1, Some(1));
            batch.complete_one(0, Some(0));
        });
        let results = runtime.block_on(results(statuses));
        assert_eq!(results, [Ok(Some(0)), Ok(Some(1))]);
        settling.join().unwrap();
    }
}
