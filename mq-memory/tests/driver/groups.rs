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
