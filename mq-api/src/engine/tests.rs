//! The engine against a scripted driver: what it hands over, stores and gives back.

mod script;

use std::time::Duration;

use self::script::{Script, capabilities};
use crate::{
    Backoff, Clock, Delivery, Error, ErrorKind, Lease, OnTrimmed, Ordering, Position, Support,
    driver::{Assignment, AssignmentId, CommitOutcome, Event},
};

const FIRST: AssignmentId = AssignmentId {
    partition: 0,
    epoch: 1,
};

fn offsets(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(Delivery::offset).collect()
}

#[tokio::test(start_paused = true)]
async fn acks_are_stored_by_the_timer_up_to_the_first_gap() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 10));
    script.batch(FIRST, 0, 10..14);
    let mut batch = consumer.consume_batch(10).await.unwrap();
    assert_eq!(offsets(&batch), [10, 11, 12, 13]);
    batch.remove(2).ack().unwrap();
    batch.remove(0).ack().unwrap();
    consumer.commit().await.unwrap();
    let commit = script.last_commit();
    assert_eq!(commit.position, 11);
    assert!(commit.acked_above.iter().eq([&(12..13)]));
    assert_eq!(script.commits().len(), 1, "one commit for both");
}

#[tokio::test(start_paused = true)]
async fn a_nacked_message_comes_back_after_its_delay_and_holds_up_no_other() {
    let script = Script::new();
    let consumer = script
        .open(|builder| builder.backoff(Backoff::fixed(Duration::from_secs(5))))
        .await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..2);
    let begun = tokio::time::Instant::now();
    consumer.consume().await.unwrap().nack().unwrap();
    let second = consumer.consume().await.unwrap();
    assert_eq!((second.offset(), second.attempt()), (1, 1));
    second.ack().unwrap();
    let again = consumer.consume().await.unwrap();
    assert_eq!((again.offset(), again.attempt()), (0, 2));
    assert!(begun.elapsed() >= Duration::from_secs(5));
    again.ack().unwrap();
    consumer.commit().await.unwrap();
    assert_eq!(script.last_commit().position, 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_held_stays_what_it_is_when_others_come_alone_behind_it() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    let mut held = Vec::new();
    for offset in 0..6 {
        script.one(FIRST, 0, offset);
        let delivery = consumer.consume().await.unwrap();
        assert_eq!(delivery.offset(), offset);
        // Every third is let go before the next one comes, so that what lent it is used again.
        if offset % 3 == 2 {
            delivery.ack().unwrap();
        } else {
            held.push(delivery);
        }
    }
    assert_eq!(offsets(&held), [0, 1, 3, 4]);
    for delivery in held {
        assert_eq!(delivery.payload(), delivery.offset().to_string().as_bytes());
        delivery.ack().unwrap();
    }
    consumer.commit().await.unwrap();
    assert_eq!(script.last_commit().position, 6);
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_that_was_stored_and_perhaps_never_was_is_not_overtaken() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    let mut failures = 1;
    script.answer_commits(move || {
        if failures > 0 {
            failures -= 1;
            return Err(Error::new(ErrorKind::Connection, "cut"));
        }
        Ok(CommitOutcome::Stored)
    });
    script.assign(Assignment::new(FIRST, 0).with_attempts(vec![(1, 1)]));
    script.batch(FIRST, 0, 0..4);
    let mut held = Vec::new();
    while held.len() < 4 {
        held.extend(consumer.consume_batch(10).await.unwrap());
    }
    assert_eq!(offsets(&held), [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_second_attempt_is_stored_before_it_is_handed_over() {
    let script = Script::new();
    let consumer = script.open(|builder| builder.backoff(Backoff::NONE)).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..1);
    consumer.consume().await.unwrap().nack().unwrap();
    let again = consumer.consume().await.unwrap();
    assert_eq!(again.attempt(), 2);
    assert_eq!(script.last_commit().attempts, [(0, 2)]);
}

#[tokio::test(start_paused = true)]
async fn after_an_owner_that_vanished_each_hand_over_is_stored_first_one_by_one() {
    let script = Script::new();
    let consumer = script.open(|builder| builder.max_unacked(2)).await;
    script.assign(Assignment::new(FIRST, 0).with_clean(false));
    script.batch(FIRST, 0, 0..4);
    let first = consumer.consume().await.unwrap();
    assert_eq!((first.offset(), first.attempt()), (0, 1));
    assert_eq!(
        script.last_commit().attempts,
        [(0, 1)],
        "nothing behind it is counted"
    );
    first.ack().unwrap();
    consumer.consume().await.unwrap().ack().unwrap();
    assert_eq!(script.last_commit().attempts, [(1, 1)]);
    let commits = script.commits().len();
    let third = consumer.consume().await.unwrap();
    assert_eq!(third.offset(), 2);
    assert_eq!(
        script.commits().len(),
        commits,
        "the danger is passed: hand-over waits for no commit"
    );
}

#[tokio::test(start_paused = true)]
async fn attempts_that_survived_a_crash_reach_the_maximum() {
    let script = Script::new();
    let consumer = script.open(|builder| builder.max_attempts(3)).await;
    script.assign(
        Assignment::new(FIRST, 0)
            .with_attempts(vec![(0, 3)])
            .with_clean(false),
    );
    script.batch(FIRST, 0, 0..2);
    let next = consumer.consume().await.unwrap();
    assert_eq!(next.offset(), 1, "the first has had its attempts");
}

#[tokio::test(start_paused = true)]
async fn what_a_former_owner_acked_is_skipped_and_stays_stored() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0).with_acked_above(vec![1..3, 5..6]));
    script.batch(FIRST, 0, 0..4);
    let batch = consumer.consume_batch(10).await.unwrap();
    assert_eq!(offsets(&batch), [0, 3]);
    for delivery in batch {
        delivery.ack().unwrap();
    }
    consumer.commit().await.unwrap();
    let commit = script.last_commit();
    assert_eq!(commit.position, 4);
    assert!(commit.acked_above.iter().eq([&(5..6)]));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_partition_is_committed_then_released_and_its_acks_are_stale() {
    let script = Script::new();
    let consumer = script
        .open(|builder| builder.commit_interval(Duration::from_secs(60)))
        .await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..3);
    let mut batch = consumer.consume_batch(3).await.unwrap();
    batch.remove(0).ack().unwrap();
    script.event(Event::Revoked(vec![FIRST]));
    script.released(1).await;
    assert_eq!(script.calls(), ["commit 0@1 1", "release 0@1"]);
    let error = batch.pop().unwrap().ack().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleAck);
    assert!(consumer.assignment().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_refused_ends_the_tenure() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..1);
    script.answer_commits(|| Ok(CommitOutcome::Lost));
    consumer.consume().await.unwrap().ack().unwrap();
    let error = consumer.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(consumer.assignment().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_is_tried_again() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..1);
    script.answer_commits(|| Err(Error::new(ErrorKind::Connection, "cut")));
    consumer.consume().await.unwrap().ack().unwrap();
    let committing = tokio::spawn({
        let consumer = consumer.clone();
        async move { consumer.commit().await }
    });
    while script.commits().len() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    script.answer_commits(|| Ok(CommitOutcome::Stored));
    committing.await.unwrap().unwrap();
    assert_eq!(script.last_commit().position, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_channel_gives_back_in_order_with_no_attempt_counted() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..6);
    let mut channel = consumer.channel(4).unwrap();
    let held = channel.recv().await.unwrap();
    assert_eq!((held.offset(), channel.len()), (0, 3));
    drop(channel);
    let rest = consumer.consume_batch(10).await.unwrap();
    assert_eq!(offsets(&rest), [1, 2, 3, 4, 5]);
    assert!(rest.iter().all(|delivery| delivery.attempt() == 1));
}

#[tokio::test(start_paused = true)]
async fn a_nack_blocks_its_key_and_only_it() {
    let script = Script::new();
    let consumer = script
        .open(|builder| {
            builder
                .ordering(Ordering::Key)
                .backoff(Backoff::fixed(Duration::from_secs(1)))
        })
        .await;
    script.assign(Assignment::new(FIRST, 0));
    // Even offsets have key a, odd ones key b.
    script.batch(FIRST, 0, 0..6);
    let first = consumer.consume().await.unwrap();
    let second = consumer.consume().await.unwrap();
    assert_eq!((first.offset(), second.offset()), (0, 1));
    assert!(consumer.try_consume().unwrap().is_none(), "both keys are busy");
    first.nack().unwrap();
    second.ack().unwrap();
    let third = consumer.consume().await.unwrap();
    assert_eq!(third.offset(), 3, "the other key goes on");
    let again = consumer.consume().await.unwrap();
    assert_eq!((again.offset(), again.attempt()), (0, 2));
    again.ack().unwrap();
    assert_eq!(consumer.consume().await.unwrap().offset(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_handed_over_after_the_lease() {
    let clock = Clock::manual();
    let script = Script::with_clock(&clock);
    let consumer = script.open(|builder| builder).await;
    let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(5));
    script.assign(Assignment::new(FIRST, 0).with_lease(lease));
    script.batch(FIRST, 0, 0..2);
    let held = consumer.consume().await.unwrap();
    clock.advance(Duration::from_secs(6));
    assert!(consumer.try_consume().unwrap().is_none());
    assert_eq!(held.ack().unwrap_err().kind(), ErrorKind::StaleAck);
    assert!(consumer.assignment().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_settlement_after_a_long_freeze_is_taken_though_nobody_has_looked_at_the_lease() {
    for (way, settle) in [
        ("ack", Delivery::ack as fn(Delivery) -> crate::Result<()>),
        ("nack", Delivery::nack),
        ("reject", Delivery::reject),
    ] {
        let clock = Clock::manual();
        let script = Script::with_clock(&clock);
        let consumer = script.open(|builder| builder).await;
        let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(5));
        script.assign(Assignment::new(FIRST, 0).with_lease(lease.clone()));
        script.batch(FIRST, 0, 0..2);
        let held = consumer.consume_batch(2).await.unwrap();
        clock.advance(Duration::from_secs(6));
        // The driver's own task, which wakes later, renews nothing that has run out.
        assert!(!lease.renew(clock.now() + Duration::from_secs(5)));
        for delivery in held {
            assert_eq!(settle(delivery).unwrap_err().kind(), ErrorKind::StaleAck, "{way}");
        }
        assert_eq!(consumer.status().stale_acks, 2, "{way}");
        consumer.close().await.unwrap();
        assert!(script.commits().is_empty(), "{way}: {:?}", script.commits());
    }
}

#[tokio::test(start_paused = true)]
async fn acks_in_one_call_after_a_long_freeze_are_refused_too() {
    let clock = Clock::manual();
    let script = Script::with_clock(&clock);
    let consumer = script.open(|builder| builder).await;
    let lease = Lease::new(clock.clone(), clock.now() + Duration::from_secs(5));
    script.assign(Assignment::new(FIRST, 0).with_lease(lease));
    script.batch(FIRST, 0, 0..2);
    let held = consumer.consume_batch(2).await.unwrap();
    clock.advance(Duration::from_secs(6));
    assert_eq!(consumer.ack_all(held).unwrap_err().kind(), ErrorKind::StaleAck);
    assert_eq!(consumer.status().acked, 0);
}

#[tokio::test(start_paused = true)]
async fn pause_is_refused_by_name_where_the_driver_declares_none() {
    let script = Script::new();
    let mut can = capabilities();
    can.pause = Support::Unsupported;
    let consumer = script.client(can).consumer("topic", "group").await.unwrap();
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..1);
    for refused in [
        consumer.pause(),
        consumer.resume(),
        consumer.pause_partitions(&[0]),
        consumer.resume_partitions(&[0]),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.context().contains("script"), "{error}");
    }
    assert_eq!(
        consumer.consume().await.unwrap().offset(),
        0,
        "nothing was paused"
    );
    consumer.close().await.unwrap();
    assert_eq!(consumer.pause().unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn going_on_at_the_latest_is_refused_where_the_driver_cannot_seek() {
    let mut can = capabilities();
    can.seek = Support::Unsupported;
    let client = Script::new().client(can);
    let opened = client.consumer("topic", "group").on_trimmed(OnTrimmed::Latest);
    assert_eq!(opened.await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn a_start_and_a_seek_by_time_are_refused_where_the_driver_knows_no_times() {
    let script = Script::new();
    let client = script.client(capabilities());
    let at = Position::Time(crate::Timestamp::from_millis(1));
    let opened = client.consumer("topic", "group").start_at(at).await;
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Unsupported);
    let consumer = client.consumer("topic", "group").await.unwrap();
    script.assign(Assignment::new(FIRST, 0));
    assert_eq!(
        consumer.seek(0, at).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test(start_paused = true)]
async fn a_seek_drops_what_was_fetched_before_it() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..5);
    let held = consumer.consume().await.unwrap();
    assert_eq!(consumer.seek(0, Position::Offset(3)).await.unwrap(), 3);
    script.batch(FIRST, 0, 5..7);
    script.batch(FIRST, 1, 3..5);
    assert_eq!(held.ack().unwrap_err().kind(), ErrorKind::StaleAck);
    let batch = consumer.consume_batch(10).await.unwrap();
    assert_eq!(offsets(&batch), [3, 4]);
    assert_eq!(
        consumer.seek(7, Position::Earliest).await.unwrap_err().kind(),
        ErrorKind::InvalidPartition
    );
}

#[tokio::test(start_paused = true)]
async fn the_window_is_bounded_and_acks_release_it() {
    let script = Script::new();
    let consumer = script.open(|builder| builder.max_unacked(3)).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..5);
    let mut held = consumer.consume_batch(10).await.unwrap();
    assert_eq!(held.len(), 3);
    assert!(consumer.try_consume().unwrap().is_none());
    assert!(consumer.status().partitions[0].window_full);
    held.remove(1).ack().unwrap();
    assert_eq!(consumer.consume().await.unwrap().offset(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_reported_once_and_the_consumer_goes_on() {
    let script = Script::new();
    let consumer = script
        .open(|builder| builder.outage_after(Duration::from_secs(2)))
        .await;
    script.assign(Assignment::new(FIRST, 0));
    script.event(Event::Outage(Error::new(ErrorKind::Connection, "refused")));
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Other calls leave the report to those that wait for messages.
    consumer.pause().unwrap();
    consumer.resume().unwrap();
    drop(consumer.channel(4).unwrap());
    let error = consumer.consume().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.is_retryable());
    let waiting = tokio::time::timeout(Duration::from_secs(60), consumer.consume()).await;
    assert!(waiting.is_err(), "one error an outage");
    script.event(Event::Recovered);
    script.batch(FIRST, 0, 0..1);
    assert_eq!(consumer.consume().await.unwrap().offset(), 0);
}

#[tokio::test(start_paused = true)]
async fn with_automatic_acks_a_message_is_committed_before_it_is_handed_over() {
    let script = Script::new();
    let consumer = script.open(crate::ConsumerBuilder::auto_ack).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..4);
    let delivery = consumer.consume().await.unwrap();
    assert_eq!(script.last_commit().position, 4);
    drop(delivery);
    consumer.close().await.unwrap();
    assert_eq!(
        script.last_commit().position,
        1,
        "what was only fetched goes back"
    );
}

#[tokio::test(start_paused = true)]
async fn with_automatic_acks_a_close_takes_back_what_a_commit_under_way_stores_ahead() {
    let script = Script::new();
    let consumer = script.open(crate::ConsumerBuilder::auto_ack).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..4);
    drop(consumer.consume().await.unwrap());
    // The commit that stores the second batch ahead is under way, or fails, as the close begins.
    let mut failures = 1;
    script.answer_commits(move || {
        failures -= 1;
        if failures >= 0 {
            return Err(Error::new(ErrorKind::Connection, "cut"));
        }
        Ok(CommitOutcome::Stored)
    });
    script.batch(FIRST, 0, 4..8);
    assert!(consumer.try_consume().unwrap().is_some());
    consumer.close().await.unwrap();
    assert_eq!(script.last_commit().position, 2);
}

#[tokio::test(start_paused = true)]
async fn close_stores_what_is_acked_and_ends_every_call() {
    let script = Script::new();
    let consumer = script
        .open(|builder| builder.commit_interval(Duration::from_secs(60)))
        .await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..2);
    consumer.consume().await.unwrap().ack().unwrap();
    let held = consumer.consume().await.unwrap();
    let waiting = tokio::spawn({
        let consumer = consumer.clone();
        async move { consumer.consume().await }
    });
    tokio::task::yield_now().await;
    let (first, second) = tokio::join!(consumer.close(), consumer.close());
    assert!(first.is_ok() && second.is_ok() && consumer.close().await.is_ok());
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(held.ack().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(script.calls(), ["commit 0@1 1", "close"]);
    assert_eq!(consumer.commit().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_is_assigned_while_closing_goes_back_by_leaving() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..1);
    consumer.consume().await.unwrap().ack().unwrap();
    let unreachable = Error::new(ErrorKind::Connection, "away");
    let mut failures = 3;
    script.answer_commits(move || {
        failures -= 1;
        if failures >= 0 {
            Err(unreachable.clone())
        } else {
            Ok(CommitOutcome::Stored)
        }
    });
    let closing = tokio::spawn({
        let consumer = consumer.clone();
        async move { consumer.close().await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let (partition, epoch) = (1, 1);
    script.assign(Assignment::new(AssignmentId { partition, epoch }, 0));
    closing.await.unwrap().unwrap();
    assert!(!script.calls().iter().any(|call| call.starts_with("release")));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_commits_and_leaves() {
    let script = Script::new();
    let consumer = script
        .open(|builder| builder.commit_interval(Duration::from_secs(60)))
        .await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..2);
    consumer.consume().await.unwrap().ack().unwrap();
    let held = consumer.consume().await.unwrap();
    drop(consumer);
    script.closed().await;
    assert_eq!(script.calls(), ["commit 0@1 1", "close"]);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn cancelled_calls_lose_and_reorder_nothing() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    let mut seen = Vec::new();
    for round in 0..200u64 {
        {
            let (a, b) = (consumer.consume(), consumer.consume());
            tokio::pin!(a, b);
            assert!(futures_util::poll!(a.as_mut()).is_pending());
            assert!(futures_util::poll!(b.as_mut()).is_pending());
            script.batch(FIRST, 0, round..round + 1);
            // The first was woken; both are dropped before they look.
        }
        let delivery = tokio::time::timeout(Duration::from_secs(5), consumer.consume())
            .await
            .unwrap()
            .unwrap();
        seen.push((delivery.offset(), delivery.attempt()));
        delivery.ack().unwrap();
    }
    assert_eq!(seen, (0..200).map(|offset| (offset, 1)).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_after_its_wake_hands_it_to_the_next() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    for round in 0..50 {
        let mut woken = Box::pin(consumer.consume());
        let mut next = Box::pin(consumer.consume());
        assert!(futures_util::poll!(woken.as_mut()).is_pending());
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        script.batch(FIRST, 0, round..round + 1);
        drop(woken);
        let delivery = tokio::time::timeout(Duration::from_millis(5), next)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(delivery.offset(), round);
        delivery.ack().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_topic_ends_the_consumer() {
    let script = Script::new();
    let consumer = script.open(|builder| builder).await;
    script.event(Event::TopicGone);
    assert_eq!(
        consumer.consume().await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
    assert_eq!(
        consumer.consume().await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
    assert!(consumer.close().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_is_not_read_gives_partitions_back() {
    let script = Script::new();
    let _consumer = script.open(|builder| builder).await;
    script.assign(Assignment::new(FIRST, 0));
    script.batch(FIRST, 0, 0..2);
    script.event(Event::Revoked(vec![FIRST]));
    script.released(1).await;
    assert_eq!(script.calls(), ["release 0@1"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_partition_is_paused_and_its_neighbour_flows_on() {
    let script = Script::new();
    let consumer = script.open(|builder| builder.prefetch(4).max_unacked(4)).await;
    let second = AssignmentId {
        partition: 1,
        epoch: 1,
    };
    script.assign(Assignment::new(FIRST, 0));
    script.assign(Assignment::new(second, 0));
    script.batch(FIRST, 0, 0..4);
    let held = consumer.consume_batch(4).await.unwrap();
    script.batch(FIRST, 0, 4..8);
    script.batch(second, 0, 0..1);
    assert_eq!(consumer.consume().await.unwrap().partition(), 1);
    assert_eq!(script.paused(), [(0, true), (0, false), (0, true)]);
    consumer.ack_all(held).unwrap();
    assert_eq!(offsets(&consumer.consume_batch(8).await.unwrap()), [4, 5, 6, 7]);
}
