//! Partitioned groups: ownership, positions, fencing.

use mq_api::{
    ErrorKind, Position, TopicSpec,
    driver::{Commit, CommitOutcome, CommittedRequest, Event, Mq, ProducerRequest},
};

use crate::support::*;

#[tokio::test]
async fn a_member_gets_every_partition_and_every_message_in_order() {
    let mq = broker(2).await;
    send(&mq, 0, ["a", "b"]).await;
    let mut member = join(&mq).await;
    let assigned = member.assigned().await;
    assert_eq!(partitions(&assigned), [0, 1]);
    assert!(
        assigned
            .iter()
            .all(|a| a.clean && a.lease.is_none() && a.topic_id.is_some())
    );
    assert_eq!(member.batch().await, (0, vec!["a".to_owned(), "b".to_owned()]));
    assert!(member.now().is_none());
    send(&mq, 1, ["c"]).await;
    assert_eq!(member.batch().await, (1, vec!["c".to_owned()]));
    assert!(member.now().is_none());
}

#[tokio::test]
async fn a_second_member_gets_its_half_only_after_the_first_has_released_it() {
    let mq = broker(4).await;
    let mut first = join(&mq).await;
    let assigned = first.assigned().await;
    let mut second = join(&mq).await;
    let revoked = first.revoked().await;
    assert_eq!(revoked.len(), 2);
    assert!(second.now().is_none(), "the owner has not let go yet");
    let commit = first.commit(revoked[0], 0).await;
    assert_eq!(commit, CommitOutcome::Stored);
    first.consumer.release(revoked.clone()).await.unwrap();
    let taken = second.assigned().await;
    assert_eq!(taken.len(), 2);
    for assignment in &taken {
        let before = assigned
            .iter()
            .find(|a| a.id.partition == assignment.id.partition)
            .unwrap();
        assert!(assignment.id.epoch > before.id.epoch && assignment.clean);
    }
    assert_eq!(first.commit(revoked[0], 0).await, CommitOutcome::Lost);
}

#[tokio::test]
async fn what_is_committed_comes_with_the_next_tenure() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b", "c", "d"]).await;
    let mut member = join(&mq).await;
    let id = member.assigned().await[0].id;
    let mut commit = Commit::new(id, 1);
    commit.acked_above = range(2, 3);
    commit.attempts = vec![(1, 3)];
    assert_eq!(
        member.consumer.commit(vec![commit]).await.remove(0).unwrap(),
        CommitOutcome::Stored
    );
    member.consumer.close().await.unwrap();
    assert_eq!(member.next().await.unwrap_err().kind(), ErrorKind::Closed);
    let mut next = join(&mq).await;
    let assigned = next.assigned().await.remove(0);
    assert_eq!(
        (assigned.position, assigned.acked_above, assigned.attempts),
        (1, range(2, 3), vec![(1, 3)])
    );
    assert!(assigned.clean);
    assert_eq!(next.batch().await.1, ["b", "c", "d"]);
    let committed = mq
        .committed(CommittedRequest::new(topic(), group()))
        .await
        .unwrap();
    assert_eq!(committed[0].position, 1);
}

#[tokio::test]
async fn a_deleted_topic_ends_its_members_and_a_new_one_starts_over() {
    let mq = broker(1).await;
    send(&mq, 0, ["a"]).await;
    let mut member = join(&mq).await;
    let old = member.assigned().await.remove(0);
    member.commit(old.id, 1).await;
    let producer = producer(&mq).await;
    mq.delete_topics(vec![topic()]).await.remove(0).unwrap();
    assert!(matches!(member.next().await, Ok(Event::TopicGone)));
    let refused = try_send(&producer, 0, "b").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TopicNotFound);
    assert!(mq.producer(ProducerRequest::new(topic())).await.is_err());
    mq.create_topic(TopicSpec::new("orders", 1).unwrap())
        .await
        .unwrap();
    send(&mq, 0, ["c"]).await;
    let mut next = join(&mq).await;
    let new = next.assigned().await.remove(0);
    assert_ne!(new.topic_id, old.topic_id);
    assert_eq!(next.batch().await.1, ["c"]);
    assert_eq!(member.next().await.unwrap_err().kind(), ErrorKind::TopicNotFound);
}

#[tokio::test]
async fn latest_is_fixed_when_the_call_returns() {
    let mq = broker(1).await;
    send(&mq, 0, ["before"]).await;
    let mut subscription = subscription();
    subscription.start = Position::Latest;
    let mut member = join_as(&mq, subscription).await;
    send(&mq, 0, ["after"]).await;
    member.assigned().await;
    assert_eq!(member.batch().await.1, ["after"]);
}

#[tokio::test]
async fn extra_members_are_idle_until_an_owner_leaves() {
    let mq = broker(1).await;
    let mut first = join(&mq).await;
    first.assigned().await;
    let mut second = join(&mq).await;
    assert!(second.now().is_none() && first.now().is_none());
    first.consumer.close().await.unwrap();
    assert!(second.assigned().await[0].clean);
}

#[tokio::test]
async fn a_member_that_vanishes_leaves_an_unclean_tenure_behind() {
    let mq = broker(1).await;
    for part in ["events", "consumer"] {
        let mut member = join(&mq).await;
        member.assigned().await;
        let mut next = join(&mq).await;
        let Member { consumer, mut events } = member;
        if part == "events" {
            drop(events);
        } else {
            drop(consumer);
            let ended = std::future::poll_fn(|cx| events.poll_event(cx)).await;
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::Closed);
        }
        assert!(!next.assigned().await[0].clean, "dropped {part}");
        next.consumer.close().await.unwrap();
    }
    assert!(join(&mq).await.assigned().await[0].clean);
}

#[tokio::test]
async fn a_member_that_does_not_let_go_loses_the_partition_after_its_session_timeout() {
    let mq = broker(2).await;
    let mut slow = subscription();
    slow.session_timeout = Some(std::time::Duration::from_millis(30));
    let mut first = join_as(&mq, slow).await;
    first.assigned().await;
    let mut second = join(&mq).await;
    let revoked = first.revoked().await;
    let taken = second.assigned().await;
    assert_eq!(taken[0].id.partition, revoked[0].partition);
    assert!(!taken[0].clean);
    assert_eq!(first.lost().await, revoked);
    assert_eq!(first.commit(revoked[0], 0).await, CommitOutcome::Lost);
    first.consumer.release(revoked).await.unwrap();
    assert!(
        second.now().is_none(),
        "a late release takes nothing from the new owner"
    );
}

#[tokio::test]
async fn a_seek_goes_both_ways_and_marks_what_follows() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b", "c"]).await;
    let mut member = join(&mq).await;
    let id = member.assigned().await[0].id;
    assert_eq!(member.batch().await.1.len(), 3);
    let seek = |to, generation| member.consumer.seek(id, to, generation);
    assert_eq!(seek(Position::Offset(1), 1).await.unwrap(), 1);
    let beyond = seek(Position::Offset(4), 2).await.unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::OffsetOutOfRange);
    match member.next().await.unwrap() {
        Event::Batch(batch) => assert_eq!(
            (batch.generation, batch.records.len(), batch.next_offset),
            (1, 2, 3)
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(member.consumer.seek(id, Position::Earliest, 2).await.unwrap(), 0);
    assert_eq!(member.consumer.seek(id, Position::Latest, 3).await.unwrap(), 3);
    assert!(member.now().is_none());
    send(&mq, 0, ["d"]).await;
    match member.next().await.unwrap() {
        Event::Batch(batch) => assert_eq!((batch.generation, batch.records.len()), (3, 1)),
        other => panic!("{other:?}"),
    }
    member.consumer.release(vec![id]).await.unwrap();
    let stale = member.consumer.seek(id, Position::Earliest, 4).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Interrupted);
}

#[tokio::test]
async fn a_paused_partition_holds_back_no_other() {
    let mq = broker(2).await;
    let mut member = join(&mq).await;
    let ids = ids(&member.assigned().await);
    member.consumer.pause(&ids[..1], true);
    send(&mq, 0, ["held"]).await;
    send(&mq, 1, ["flows"]).await;
    assert_eq!(member.batch().await, (1, vec!["flows".to_owned()]));
    assert!(member.now().is_none());
    member.consumer.pause(&ids[..1], false);
    assert_eq!(member.batch().await, (0, vec!["held".to_owned()]));
}

#[tokio::test]
async fn ownership_events_come_before_messages_and_while_all_is_paused() {
    let mq = broker(2).await;
    let mut member = join(&mq).await;
    let ids = ids(&member.assigned().await);
    send(&mq, 0, ["a"]).await;
    let _second = join(&mq).await;
    assert_eq!(member.revoked().await.len(), 1);
    member.consumer.pause(&ids, true);
    let _third = join(&mq).await;
    assert!(member.now().is_none());
    member.consumer.pause(&ids, false);
    assert_eq!(member.batch().await.0, 0);
}

#[tokio::test]
async fn partitions_take_turns() {
    let mq = broker(2).await;
    let mut few = subscription();
    few.prefetch.messages = 2;
    send(&mq, 0, ["a", "b", "c", "d"]).await;
    send(&mq, 1, ["e", "f", "g"]).await;
    let mut member = join_as(&mq, few).await;
    member.assigned().await;
    let mut turns = Vec::new();
    for _ in 0..4 {
        turns.push(member.batch().await.0);
    }
    assert_eq!(turns, [0, 1, 0, 1]);
}

#[tokio::test]
async fn added_partitions_reach_running_producers_and_groups() {
    let mq = broker(1).await;
    let mut subscription = subscription();
    subscription.start = Position::Latest;
    let mut member = join_as(&mq, subscription).await;
    member.assigned().await;
    let producer = producer(&mq).await;
    let count = producer.partitions();
    mq.add_partitions(topic(), 3).await.unwrap();
    mq.add_partitions(topic(), 3).await.unwrap();
    assert_eq!(*count.borrow(), 3);
    try_send(&producer, 2, "a").await.unwrap();
    let added = member.assigned().await;
    assert_eq!(partitions(&added), [1, 2]);
    assert_eq!(member.batch().await, (2, vec!["a".to_owned()]));
    let fewer = mq.add_partitions(topic(), 2).await.unwrap_err();
    assert_eq!(fewer.kind(), ErrorKind::InvalidPartition);
    let missing = try_send(&producer, 3, "x").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::InvalidPartition);
}

#[tokio::test]
async fn groups_are_independent_and_a_start_beyond_the_end_is_refused() {
    let mq = broker(1).await;
    send(&mq, 0, ["a", "b"]).await;
    let mut first = join(&mq).await;
    first.assigned().await;
    assert_eq!(first.batch().await.1.len(), 2);
    let mut other = subscription();
    other.group = mq_api::GroupName::new("other").unwrap();
    other.start = Position::Offset(3);
    let refused = mq.consumer(other.clone()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::OffsetOutOfRange);
    other.start = Position::Offset(1);
    let mut second = join_as(&mq, other.clone()).await;
    assert_eq!(second.assigned().await[0].position, 1);
    assert_eq!(second.batch().await.1, ["b"]);
    assert!(
        mq.committed(CommittedRequest::new(
            topic(),
            mq_api::GroupName::new("none").unwrap()
        ))
        .await
        .unwrap()
        .is_empty()
    );
}

#[tokio::test]
async fn nothing_is_left_of_a_join_whose_answer_is_dropped() {
    let mq = broker(1).await;
    drop(mq.consumer(subscription()).await.unwrap());
    assert_eq!(partitions(&join(&mq).await.assigned().await), [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_member_is_woken_for_every_message() {
    let mq = broker(1).await;
    let mut member = join(&mq).await;
    member.assigned().await;
    let (back, mut turns) = tokio::sync::mpsc::channel(1);
    let consumer = tokio::spawn(async move {
        for expected in 0..2000 {
            match member.next().await.unwrap() {
                Event::Batch(batch) => assert_eq!(batch.next_offset, expected + 1),
                other => panic!("{other:?}"),
            }
            back.send(()).await.unwrap();
        }
    });
    let producer = producer(&mq).await;
    for _ in 0..2000 {
        try_send(&producer, 0, "x").await.unwrap();
        turns.recv().await.unwrap();
    }
    consumer.await.unwrap();
}
