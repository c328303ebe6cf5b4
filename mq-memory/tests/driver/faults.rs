//! Faults on demand.

use std::time::{Duration, Instant};

use mq_api::{
    ErrorKind, Message, Outcome, TopicSpec,
    driver::{Commit, CommitOutcome, Event, Mq, SendBatch},
};
use mq_memory::{MemoryConfig, MemoryMq, SendFault};

use crate::support::*;

async fn outcomes(mq: &MemoryMq, count: usize) -> Vec<Option<Outcome>> {
    let producer = producer(mq).await;
    let mut seen = Vec::new();
    for status in start(&producer, 0, vec![Message::new("x"); count]) {
        seen.push(status.await.err().map(|error| error.outcome()));
    }
    seen
}

async fn stored(mq: &MemoryMq) -> u64 {
    mq.describe_topic(topic()).await.unwrap().partitions[0].next_offset
}

#[tokio::test]
async fn the_nth_send_fails_as_asked_and_only_it() {
    let mq = broker(1).await;
    let faults = mq.faults();
    faults.fail_nth_send(2, SendFault::NotSent);
    faults.fail_nth_send(3, SendFault::Lost);
    faults.fail_nth_send(5, SendFault::AnswerLost);
    let (not_sent, unknown) = (Some(Outcome::NotSent), Some(Outcome::Unknown));
    assert_eq!(
        outcomes(&mq, 6).await,
        [None, not_sent, unknown, None, unknown, None]
    );
    assert_eq!(stored(&mq).await, 4);
    faults.fail_nth_send(1, SendFault::NotSent);
    faults.clear();
    assert_eq!(outcomes(&mq, 1).await, [None]);
}

#[tokio::test]
async fn a_send_that_failed_unsent_can_be_read_from_its_batch_and_sent_again() {
    let mq = broker(1).await;
    mq.faults().fail_nth_send(1, SendFault::NotSent);
    let producer = producer(&mq).await;
    let failed = try_send(&producer, 0, "a").await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Connection);
    assert!(failed.is_retryable());
    assert_eq!(try_send(&producer, 0, "a").await.unwrap().offset, Some(0));
}

#[tokio::test]
async fn random_failures_are_the_same_for_the_same_seed() {
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let mq = broker(1).await;
        mq.faults().fail_sends_at_random(seed, 0.3, SendFault::Lost);
        runs.push(outcomes(&mq, 200).await);
    }
    let failed = runs[0].iter().flatten().count();
    assert!((20..120).contains(&failed), "{failed} of 200 failed");
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn a_restart_ends_sessions_and_keeps_what_was_answered() {
    let mq = broker(2).await;
    send(&mq, 0, ["a", "b"]).await;
    let mut member = join(&mq).await;
    let before = member.assigned().await;
    assert_eq!(member.batch().await.1.len(), 2);
    let mut commit = Commit::new(before[0].id, 1);
    commit.attempts = vec![(1, 2)];
    member.consumer.commit(vec![commit]).await.remove(0).unwrap();
    mq.faults().restart();
    assert_eq!(member.lost().await, ids(&before));
    assert!(matches!(member.next().await, Ok(Event::Outage(error)) if error.is_retryable()));
    assert!(matches!(member.next().await, Ok(Event::Recovered)));
    let after = member.assigned().await;
    assert!(
        after
            .iter()
            .zip(&before)
            .all(|(a, b)| a.id.epoch > b.id.epoch && !a.clean)
    );
    assert_eq!((after[0].position, &after[0].attempts), (1, &vec![(1, 2)]));
    assert_eq!(after[0].topic_id, before[0].topic_id);
    assert_eq!(member.commit(before[0].id, 2).await, CommitOutcome::Lost);
    assert_eq!(member.batch().await.1, ["b"]);
}

#[tokio::test]
async fn a_cut_broker_refuses_everything_until_it_is_back() {
    let mq = MemoryMq::connect("cut-off").unwrap();
    create(&mq, 1).await;
    let mut member = join(&mq).await;
    let before = member.assigned().await;
    let producer = producer(&mq).await;
    mq.faults().cut();
    assert_eq!(
        MemoryMq::connect("cut-off").unwrap_err().kind(),
        ErrorKind::Connection
    );
    assert_eq!(mq.list_topics().await.unwrap_err().kind(), ErrorKind::Connection);
    let refused = try_send(&producer, 0, "x").await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.outcome()),
        (ErrorKind::Connection, Outcome::NotSent)
    );
    assert_eq!(member.lost().await, ids(&before));
    assert!(matches!(member.next().await, Ok(Event::Outage(_))));
    assert!(member.now().is_none());
    mq.faults().reconnect();
    assert!(matches!(member.next().await, Ok(Event::Recovered)));
    assert!(member.assigned().await[0].id.epoch > before[0].id.epoch);
    assert_eq!(try_send(&producer, 0, "x").await.unwrap().offset, Some(0));
    mq.faults().cut_for(Duration::from_millis(20));
    assert!(matches!(member.next().await, Ok(Event::Lost(_))));
    assert!(matches!(member.next().await, Ok(Event::Outage(_))));
    assert!(matches!(member.next().await, Ok(Event::Recovered)));
}

#[tokio::test]
async fn a_frozen_broker_makes_calls_and_sends_wait_and_goes_on_in_order() {
    let mq = broker(1).await;
    let mut member = join(&mq).await;
    member.assigned().await;
    send(&mq, 0, ["before"]).await;
    let producer = producer(&mq).await;
    mq.faults().freeze();
    let sends = [
        start(&producer, 0, vec![Message::new("a"); 2]),
        start(&producer, 0, vec!["b".into()]),
    ];
    assert!(member.now().is_none(), "nothing is given out");
    let call = tokio::spawn({
        let mq = mq.clone();
        async move { mq.list_topics().await }
    });
    tokio::task::yield_now().await;
    assert!(!call.is_finished());
    mq.faults().thaw();
    assert_eq!(call.await.unwrap().unwrap(), [topic()]);
    let mut offsets = Vec::new();
    for status in sends.into_iter().flatten() {
        offsets.push(status.await.unwrap().offset.unwrap());
    }
    assert_eq!(offsets, [1, 2, 3]);
    assert_eq!(member.batch().await.1, ["before", "a", "a", "b"]);
}

#[tokio::test]
async fn a_freeze_ends_by_itself_and_a_call_gives_up_before_that() {
    // Long enough for a busy machine to come to the call.
    const FREEZE: Duration = Duration::from_secs(1);
    let mq = MemoryMq::with_config(MemoryConfig::default().with_request_timeout(Duration::from_millis(20)))
        .unwrap();
    create(&mq, 1).await;
    let producer = producer(&mq).await;
    let start = Instant::now();
    mq.faults().freeze_for(FREEZE);
    let error = mq.list_topics().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Timeout, Outcome::NotSent)
    );
    try_send(&producer, 0, "x").await.unwrap();
    assert!(start.elapsed() >= FREEZE);
}

#[tokio::test]
async fn a_send_under_way_is_unknown_after_a_restart_and_not_stored() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    mq.faults().freeze();
    let under_way = start(&producer, 0, vec![Message::new("x")]).remove(0);
    mq.faults().restart();
    let error = under_way.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Connection, Outcome::Unknown)
    );
    assert_eq!(stored(&mq).await, 0);
    assert_eq!(try_send(&producer, 0, "y").await.unwrap().offset, Some(0));
}

#[tokio::test]
async fn a_closed_producer_gives_up_what_was_not_stored() {
    let mq = broker(1).await;
    let (first, second) = (producer(&mq).await, producer(&mq).await);
    mq.faults().freeze();
    let given_up = start(&first, 0, vec![Message::new("x")]).remove(0);
    let kept = start(&second, 0, vec![Message::new("y")]).remove(0);
    first.close().await.unwrap();
    assert_eq!(given_up.await.unwrap_err().outcome(), Outcome::NotSent);
    mq.faults().thaw();
    assert_eq!(kept.await.unwrap().offset, Some(0));
    assert_eq!(
        try_send(&first, 0, "x").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[tokio::test]
async fn a_slow_broker_takes_its_time_and_keeps_the_order() {
    const SLOW: Duration = Duration::from_millis(30);
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    mq.faults().slow_down(SLOW);
    let begin = Instant::now();
    mq.list_topics().await.unwrap();
    assert!(begin.elapsed() >= SLOW);
    let begin = Instant::now();
    let first = start(&producer, 0, vec![Message::new("a")]).remove(0);
    mq.faults().slow_down(Duration::ZERO);
    let second = start(&producer, 0, vec![Message::new("b")]).remove(0);
    assert_eq!(second.await.unwrap().offset, Some(1));
    assert_eq!(first.await.unwrap().offset, Some(0));
    assert!(begin.elapsed() >= SLOW);
}

#[tokio::test]
async fn partitions_are_revoked_and_taken_away_on_demand() {
    let mq = broker(1).await;
    let faults = mq.faults();
    assert!(!faults.revoke(&topic(), &group(), 0), "there is no such group");
    let mut member = join(&mq).await;
    let first = member.assigned().await[0].id;
    assert!(faults.revoke(&topic(), &group(), 0));
    assert_eq!(member.revoked().await, [first]);
    member.consumer.release(vec![first]).await.unwrap();
    let second = member.assigned().await.remove(0);
    assert!(second.clean && second.id.epoch > first.epoch);
    assert!(faults.take_away(&topic(), &group(), 0));
    assert_eq!(member.lost().await, [second.id]);
    assert!(!member.assigned().await[0].clean);
}

#[tokio::test]
async fn what_was_given_up_before_it_was_stored_is_skipped() {
    let mq = broker(1).await;
    let producer = producer(&mq).await;
    mq.faults().freeze();
    let (batch, statuses) = SendBatch::new(0, vec!["a".into(), "b".into()], Instant::now() + PATIENCE);
    // As the portable layer does when the deadline of the first has passed.
    batch.fail(
        0..1,
        &mq_api::Error::timeout("produce", PATIENCE).with_outcome(Outcome::NotSent),
    );
    producer.send(batch);
    mq.faults().thaw();
    let mut offsets = Vec::new();
    for status in statuses {
        offsets.push(status.await.ok().and_then(|receipt| receipt.offset));
    }
    assert_eq!(offsets, [None, Some(0)]);
    mq.create_topic(TopicSpec::new("other", 1).unwrap())
        .await
        .unwrap();
}
