//! The partitioned consumer on a real server, through the driver traits.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::time::{Duration, Instant};

use mq_amqp::{AmqpConfig, AmqpMq, TokenQueues};
use mq_api::{
    ErrorKind, Position,
    driver::{Commit, CommitOutcome, CommittedRequest, FetchRequest, Mq},
};
use support::*;
use test_brokers::{Broker, RabbitMq};

/// One server for all that breaks nothing: it takes seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_serves_it_all() {
    let rabbit = options().start().unwrap();
    what_is_produced_is_consumed_in_order_with_its_offsets(&rabbit).await;
    commits_survive_the_member_with_acks_above_and_attempts(&rabbit).await;
    partitions_are_spread_and_move_on_join_and_leave(&rabbit).await;
    a_position_is_resolved_before_the_call_returns(&rabbit).await;
    a_seek_goes_both_ways_and_drops_what_was_fetched(&rabbit).await;
    a_partition_that_is_asked_for_anew_after_silence_misses_nothing(&rabbit).await;
    many_full_partitions_are_not_all_sent_ahead_of_what_renews_a_lease(&rabbit).await;
    a_partition_that_is_behind_is_sent_more_ahead_than_its_share(&rabbit).await;
    a_deleted_topic_ends_its_consumers_and_the_next_starts_over(&rabbit).await;
    a_reader_fetches_waits_and_looks_up_times(&rabbit).await;
    topics_are_made_once_grown_listed_and_deleted(&rabbit).await;
}

async fn what_is_produced_is_consumed_in_order_with_its_offsets(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "orders0", 2).await;
    let producer = producer(&mq, &topic).await;
    for partition in 0..2 {
        send_numbers(&*producer, partition, 0..500).await;
    }
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("all", |m| m.received.len() == 1000).await;
    for partition in 0..2 {
        let mine: Vec<(u64, u64)> = member
            .received
            .iter()
            .filter(|(id, ..)| id.partition == partition)
            .map(|(_, offset, number)| (*offset, *number))
            .collect();
        assert_eq!(mine, (0..500).map(|n| (n + 1, n)).collect::<Vec<_>>());
    }
    let late = send(&*producer, 1, vec![mq_api::Message::new("500")]).await;
    assert_eq!(late[0].as_ref().unwrap().offset, None);
    member.until("the late one", |m| m.received.len() == 1001).await;
    mq.close().await.unwrap();
}

async fn commits_survive_the_member_with_acks_above_and_attempts(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "orders1", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..20).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("all", |m| m.received.len() == 20).await;
    let mut commit = Commit::new(member.id(0), 7);
    commit.acked_above = vec![9..12, 15..16];
    commit.attempts = vec![(7, 3)];
    let outcome = member.consumer.commit(vec![commit]).await.pop().unwrap();
    assert_eq!(outcome.unwrap(), CommitOutcome::Stored);
    let stored = async || {
        let request = CommittedRequest::new(topic.clone(), group("g"));
        let mut stored = mq.committed(request).await.unwrap();
        stored.pop().map(|one| (one.position, one.acked_above))
    };
    let expected = Some((7, vec![9..12, 15..16]));
    assert_eq!(stored().await, expected);
    member.consumer.close().await.unwrap();
    // What others read may be gone after a kill of RabbitMQ 4; the next owner writes it again.
    let queues = rabbit.control(&["list_queues", "name"]).unwrap();
    let copy = queues
        .lines()
        .find(|name| name.contains(":orders1:") && name.contains(":at:"))
        .unwrap();
    rabbit.control(&["purge_queue", copy]).unwrap();
    assert_eq!(stored().await, None);

    let mut second = join(&mq, subscription(&topic, "g")).await;
    second.until("assigned", |m| m.assigned.contains_key(&0)).await;
    assert_eq!(stored().await, expected);
    let assignment = &second.assigned[&0];
    assert_eq!(assignment.position, 7);
    assert_eq!(assignment.acked_above, [9..12, 15..16]);
    assert_eq!(assignment.attempts, [(7, 3)]);
    assert!(assignment.clean);
    assert!(assignment.topic_id.is_some());
    second.until("from there on", |m| m.received.len() == 14).await;
    assert_eq!(second.numbers(), (6..20).collect::<Vec<_>>());
}

async fn partitions_are_spread_and_move_on_join_and_leave(rabbit: &RabbitMq) {
    let (one, two) = (connect(rabbit).await, connect(rabbit).await);
    let topic = create(&one, "orders2", 5).await;
    let mut a = join(&one, subscription(&topic, "g")).await;
    a.until("all to the first", |m| m.assigned.len() == 5).await;
    let kept = a.assigned.clone();
    let mut b = join(&two, subscription(&topic, "g")).await;
    until_both(&mut a, &mut b, "spread", |a, b| {
        a.assigned.len() == 3 && b.assigned.len() == 2
    })
    .await;
    for (partition, assignment) in &a.assigned {
        assert_eq!(kept[partition].id, assignment.id, "what stays is not moved");
    }
    for (partition, assignment) in &b.assigned {
        assert!(assignment.id.epoch > kept[partition].id.epoch);
    }
    b.consumer.close().await.unwrap();
    a.until("all back", |m| m.assigned.len() == 5).await;
    assert!(a.lost.is_empty());
}

async fn a_position_is_resolved_before_the_call_returns(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "orders3", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..10).await;
    let mut latest = subscription(&topic, "latest");
    latest.start = Position::Latest;
    let mut latest = join(&mq, latest).await;
    send_numbers(&*producer, 0, 10..12).await;
    latest.until("two", |m| m.received.len() == 2).await;
    assert_eq!(latest.numbers(), [10, 11]);

    let mut offset = subscription(&topic, "offset");
    offset.start = Position::Offset(4);
    let mut offset = join(&mq, offset).await;
    offset.until("nine", |m| m.received.len() == 9).await;
    assert_eq!(offset.numbers()[0], 3);

    let mut beyond = subscription(&topic, "beyond");
    beyond.start = Position::Offset(14);
    let Err(error) = mq.consumer(beyond).await else {
        panic!("joined beyond the end");
    };
    assert_eq!(error.kind(), ErrorKind::OffsetOutOfRange);
}

async fn a_seek_goes_both_ways_and_drops_what_was_fetched(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "orders4", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..10).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("all", |m| m.received.len() == 10).await;
    let id = member.id(0);
    assert_eq!(member.consumer.seek(id, Position::Offset(3), 1).await.unwrap(), 3);
    member.until("again", |m| m.received.len() == 18).await;
    assert_eq!(member.numbers()[10], 2);
    let end = member.consumer.seek(id, Position::Latest, 2).await.unwrap();
    assert_eq!(end, 11);
    let error = member
        .consumer
        .seek(id, Position::Offset(99), 3)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OffsetOutOfRange);
    member.consumer.pause(&[id], true);
    send_numbers(&*producer, 0, 10..12).await;
    assert!(!member.step(Duration::from_millis(300)).await, "paused");
    member.consumer.pause(&[id], false);
    member.until("resumed", |m| m.received.len() == 20).await;
}

async fn a_partition_that_is_asked_for_anew_after_silence_misses_nothing(rabbit: &RabbitMq) {
    /// When the server has sent nothing for so long, it is asked anew.
    const QUIET: Duration = Duration::from_secs(8);
    const PARTITIONS: u32 = 8;
    let mq = connect(rabbit).await;
    let topic = create(&mq, "silence", PARTITIONS).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    for partition in 0..PARTITIONS {
        send_numbers(&*producer, partition, [0]).await;
    }
    let all = PARTITIONS as usize;
    member
        .until("the first of each", |m| m.received.len() == all)
        .await;
    // To one partition after the other, from before it is asked to after it was.
    let begin = Instant::now();
    for partition in 0..PARTITIONS {
        let due = QUIET - Duration::from_millis(20) + Duration::from_millis(5) * partition;
        while begin.elapsed() < due {
            member.step(due.saturating_sub(begin.elapsed())).await;
        }
        send_numbers(&*producer, partition, [1]).await;
    }
    member
        .until("the second of each", |m| m.received.len() == 2 * all)
        .await;
    for partition in 0..PARTITIONS {
        let came = member
            .received
            .iter()
            .filter(|(id, ..)| id.partition == partition);
        assert_eq!(came.map(|(_, _, number)| *number).collect::<Vec<_>>(), [0, 1]);
    }
    mq.close().await.unwrap();
}

async fn many_full_partitions_are_not_all_sent_ahead_of_what_renews_a_lease(rabbit: &RabbitMq) {
    const PARTITIONS: u32 = 48;
    const EACH: u64 = 400;
    const BYTES_A_SECOND: u32 = 10_000_000;
    /// All there is takes three times as much.
    const MOST_HELD: usize = 8 * 1024 * 1024;
    let mq = connect(rabbit).await;
    let topic = create(&mq, "full", PARTITIONS).await;
    let producer = producer(&mq, &topic).await;
    for partition in 0..PARTITIONS {
        let messages = (0..EACH).map(|number| mq_api::Message::new(format!("{number:01000}")));
        for result in send(&*producer, partition, messages.collect()).await {
            result.unwrap();
        }
    }
    let line = SlowLine::start(rabbit.address(), BYTES_A_SECOND).await;
    let by_the_line = AmqpConfig::new("127.0.0.1", line.address.port())
        .with_user("app", "secret")
        .with_session_timeout(Duration::from_secs(15));
    let slow = AmqpMq::connect_with(by_the_line).await.unwrap();
    let mut member = join(&slow, subscription(&topic, "g")).await;
    let all = usize::try_from(u64::from(PARTITIONS) * EACH).unwrap();
    member.until("all", |m| m.received.len() >= all).await;
    assert!(line.most_held() < MOST_HELD, "{} bytes", line.most_held());
    slow.close().await.unwrap();
    mq.close().await.unwrap();
}

/// Returns how many messages the server may send ahead on each channel that may be sent more than so many.
fn sent_ahead(rabbit: &RabbitMq, least: u32) -> Vec<u32> {
    let channels = rabbit.control(&["list_channels", "prefetch_count"]).unwrap();
    channels
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter(|ahead| *ahead > least)
        .collect()
}

/// One of many whose others are quiet is lent more than its share, until it is quiet too.
async fn a_partition_that_is_behind_is_sent_more_ahead_than_its_share(rabbit: &RabbitMq) {
    const PARTITIONS: u32 = 64;
    const SHARE: u32 = 8192 / PARTITIONS;
    const MANY: u64 = 20_000;
    let mq = connect(rabbit).await;
    let topic = create(&mq, "behind", PARTITIONS).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 7, 0..MANY).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    let all = usize::try_from(MANY).unwrap();
    member
        .until("all", |m| {
            m.received.len() == all && m.assigned.len() == PARTITIONS as usize
        })
        .await;
    assert!(member.numbers().into_iter().eq(0..MANY));
    let lent = sent_ahead(rabbit, 2 * SHARE);
    assert!(lent.len() == 1 && lent[0] > 3 * SHARE, "{lent:?}");
    // The loan goes back, and what is sent later comes as before.
    let begun = Instant::now();
    while !sent_ahead(rabbit, 2 * SHARE).is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        member.step(Duration::from_millis(500)).await;
    }
    send_numbers(&*producer, 7, [MANY]).await;
    member.until("one more", |m| m.received.len() == all + 1).await;
    mq.close().await.unwrap();
}

async fn a_deleted_topic_ends_its_consumers_and_the_next_starts_over(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "orders5", 2).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..10).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("all", |m| m.received.len() == 10).await;
    member.commit(0, 10).await.unwrap();
    mq.delete_topics(vec![topic.clone()])
        .await
        .pop()
        .unwrap()
        .unwrap();
    let refused = send(&*producer, 0, vec![mq_api::Message::new("0")]).await;
    assert_eq!(refused[0].as_ref().unwrap_err().kind(), ErrorKind::TopicNotFound);
    create(&mq, "orders5", 2).await;
    member.until("gone", |m| m.topic_gone).await;
    let again = support::producer(&mq, &topic).await;
    send_numbers(&*again, 0, 100..103).await;
    let mut next = join(&mq, subscription(&topic, "g")).await;
    next.until("from the start", |m| m.received.len() == 3).await;
    assert_eq!(next.numbers(), [100, 101, 102]);
}

async fn a_reader_fetches_waits_and_looks_up_times(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "orders6", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..5).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let between = mq_api::Timestamp::now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    send_numbers(&*producer, 0, 5..10).await;
    let reader = mq.reader(topic.clone()).await.unwrap();
    assert_eq!(reader.bounds().await.unwrap(), [(1, 11)]);
    assert_eq!(reader.offset_at(0, between).await.unwrap(), 6);
    assert_eq!(
        reader
            .offset_at(0, mq_api::Timestamp::from_millis(0))
            .await
            .unwrap(),
        1
    );
    let far = mq_api::Timestamp::from_millis(i64::MAX);
    assert_eq!(reader.offset_at(0, far).await.unwrap(), 11);
    // At most so many: a fetch returns what has come.
    let (mut offsets, mut next) = (Vec::new(), 3);
    while next < 7 {
        let most = usize::try_from(7 - next).unwrap();
        let request = FetchRequest::new(0, Position::Offset(next), most).with_wait(PATIENCE);
        let fetched = reader.fetch(request).await.unwrap();
        assert!(fetched.next_offset > next, "nothing from offset {next} on");
        offsets.extend(fetched.records.iter().map(|record| record.offset));
        next = fetched.next_offset;
    }
    assert_eq!((offsets, next), (vec![3, 4, 5, 6], 7));
    let request = FetchRequest::new(0, Position::Latest, 4).with_wait(Duration::from_secs(10));
    let (fetched, ()) = tokio::join!(reader.fetch(request), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        send_numbers(&*producer, 0, [10]).await;
    });
    assert_eq!(fetched.unwrap().next_offset, 12);
    let error = reader
        .fetch(FetchRequest::new(0, Position::Offset(13), 1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OffsetOutOfRange);
}

async fn topics_are_made_once_grown_listed_and_deleted(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let spec = |n| mq_api::TopicSpec::new("orders7", n).unwrap();
    let all = (0..8).map(|_| mq.create_topic(spec(3)));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(
        mq.create_topic(spec(4)).await.unwrap_err().kind(),
        ErrorKind::TopicExists
    );
    let name = topic("orders7");
    let producer = producer(&mq, &name).await;
    let mut member = join(&mq, subscription(&name, "g")).await;
    member.until("three", |m| m.assigned.len() == 3).await;
    mq.add_partitions(name.clone(), 5).await.unwrap();
    assert_eq!(
        mq.add_partitions(name.clone(), 2).await.unwrap_err().kind(),
        ErrorKind::InvalidPartition
    );
    member.until("five", |m| m.assigned.len() == 5).await;
    let mut partitions = producer.partitions();
    tokio::time::timeout(PATIENCE, partitions.wait_for(|count| *count == 5))
        .await
        .unwrap()
        .unwrap();
    send_numbers(&*producer, 4, [7]).await;
    member.until("seven", |m| m.numbers() == [7]).await;
    // The position of an added partition is stored as any other.
    let epoch = member.id(4).epoch;
    assert_eq!(member.commit(4, 2).await.unwrap(), CommitOutcome::Stored);
    let stored = mq
        .committed(CommittedRequest::new(name.clone(), group("g")))
        .await
        .unwrap();
    assert!(
        stored.iter().any(|one| (one.partition, one.position) == (4, 2)),
        "{stored:?}"
    );
    assert_eq!(member.id(4).epoch, epoch);
    create(&mq, "other.x", 1).await;
    let listed = mq.list_topics().await.unwrap();
    assert!(
        listed.contains(&name) && listed.contains(&topic("other.x")),
        "{listed:?}"
    );
    let description = mq.describe_topic(name.clone()).await.unwrap();
    assert_eq!(description.partitions.len(), 5);
    for result in mq.delete_topics(vec![name.clone(), topic("unknown")]).await {
        result.unwrap();
    }
    assert!(!mq.list_topics().await.unwrap().contains(&name));
    let error = mq.describe_topic(name.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TopicNotFound);
    member.consumer.close().await.unwrap();
    let left = rabbit.control(&["list_queues", "name"]).unwrap();
    assert!(!left.contains(name.as_str()), "{left}");
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_members_partitions_are_taken_over_and_its_late_commit_is_refused() {
    let rabbit = options().with_proxy().start().unwrap();
    let zombie_mq = AmqpMq::connect_with(config(&rabbit).with_session_timeout(Duration::from_secs(3)))
        .await
        .unwrap();
    let direct = AmqpMq::connect_with(
        AmqpConfig::new("127.0.0.1", rabbit.address().port())
            .with_user("app", "secret")
            .with_session_timeout(Duration::from_secs(15)),
    )
    .await
    .unwrap();
    let topic = create(&direct, "orders", 2).await;
    let mut zombie = join(&zombie_mq, subscription(&topic, "g")).await;
    zombie.until("assigned", |m| m.assigned.len() == 2).await;
    let old = zombie.assigned.clone();
    // Its words no longer reach the server, nor do the server's reach it.
    rabbit
        .proxy()
        .unwrap()
        .set_mode(test_brokers::ProxyMode::Blackhole)
        .unwrap();
    let mut heir = join(&direct, subscription(&topic, "g")).await;
    heir.until("taken over", |m| m.assigned.len() == 2).await;
    for (partition, assignment) in &heir.assigned {
        assert!(assignment.id.epoch > old[partition].id.epoch);
        assert!(!assignment.clean);
        let lease = old[partition].lease.clone().unwrap();
        assert!(!lease.stands_at(lease.clock().now()), "two leases stand at once");
    }
    let results = zombie.consumer.commit(vec![Commit::new(old[&0].id, 1)]).await;
    assert!(
        matches!(results[0], Ok(CommitOutcome::Lost) | Err(_)),
        "{results:?}"
    );
    rabbit
        .proxy()
        .unwrap()
        .set_mode(test_brokers::ProxyMode::Pass)
        .unwrap();
    until_both(&mut zombie, &mut heir, "both at work", |a, b| {
        a.assigned.len() == 1 && b.assigned.len() == 1
    })
    .await;
    assert_eq!(
        heir.commit(*heir.assigned.keys().next().unwrap(), 0)
            .await
            .unwrap(),
        CommitOutcome::Stored
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_begins_a_new_session_and_a_killed_server_too() {
    // RabbitMQ 3.10 forgets quorum queues when it is killed sooner after the first of them was declared.
    const WRITTEN_DOWN: Duration = Duration::from_millis(3500);
    let rabbit = options().with_proxy().start().unwrap();
    let mq = connect(&rabbit).await;
    let topic = create(&mq, "orders", 2).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 2).await;
    let by_quorum = AmqpMq::connect_with(config(&rabbit).with_tokens(TokenQueues::Quorum))
        .await
        .unwrap();
    let other = create(&by_quorum, "others", 1).await;
    let mut quorate = join(&by_quorum, subscription(&other, "g")).await;
    quorate.until("assigned", |m| m.assigned.len() == 1).await;
    let declared = tokio::time::Instant::now();

    let first = member.assigned.clone();
    rabbit.cut_connections().unwrap();
    member.until("lost", |m| m.lost.len() == 2).await;
    member
        .until("again", |m| m.assigned.len() == 2 && m.recoveries > 0)
        .await;
    assert!(member.id(0).epoch > first[&0].id.epoch);

    quorate
        .until("lost and again", |m| !m.lost.is_empty() && m.assigned.len() == 1)
        .await;
    tokio::time::sleep_until(declared + WRITTEN_DOWN).await;
    let stored = quorate.next[&0] + 3;
    send_numbers(&*support::producer(&by_quorum, &other).await, 0, 0..5).await;
    assert_eq!(quorate.commit(0, stored).await.unwrap(), CommitOutcome::Stored);
    let lost = quorate.lost.len();

    rabbit.kill().unwrap();
    rabbit.start().unwrap();
    member.until("lost", |m| m.lost.len() >= 4).await;
    member.until("again", |m| m.assigned.len() == 2).await;
    for _ in 0..100 {
        if send(&*producer, 0, vec![mq_api::Message::new("5")]).await[0].is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    member.until("one", |m| m.numbers().contains(&5)).await;
    quorate
        .until("its position again", |m| {
            m.lost.len() > lost && m.assigned.get(&0).is_some_and(|a| a.position == stored)
        })
        .await;
}
