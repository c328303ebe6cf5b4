//! The shared mode on a real server, through the driver traits.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod support;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{
    ErrorKind, Position, TopicName,
    driver::{CommittedRequest, Mq, QueueConsumer, QueueRecord, Subscription},
    url::ConnectUrl,
};
use mq_redis::{RedisConfig, RedisMq};
use support::*;
use test_brokers::Broker;

const LEASE: Duration = Duration::from_secs(1);

fn sharing(topic: &TopicName) -> Subscription {
    let mut subscription = subscription(topic, "workers");
    subscription.session_timeout = Some(LEASE);
    subscription
}

async fn share(mq: &RedisMq, topic: &TopicName) -> Arc<dyn QueueConsumer> {
    mq.queue_consumer(sharing(topic)).await.unwrap()
}

async fn receive(queue: &dyn QueueConsumer, max: usize) -> Vec<QueueRecord> {
    tokio::time::timeout(PATIENCE, queue.receive(max))
        .await
        .expect("nothing came")
        .unwrap()
}

async fn receive_all(queue: &dyn QueueConsumer, count: usize) -> Vec<QueueRecord> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(receive(queue, count - all.len()).await);
    }
    all
}

async fn nothing_comes(queue: &dyn QueueConsumer, within: Duration) {
    let came = tokio::time::timeout(within, queue.receive(1)).await;
    assert!(came.is_err(), "{came:?}");
}

fn numbers(records: &[QueueRecord]) -> Vec<u64> {
    records
        .iter()
        .map(|record| number(&record.record.message))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_goes_to_one_and_an_acked_one_never_again() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "jobs", 2).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..50).await;
    send_numbers(&*producer, 1, 50..100).await;
    let (a, b) = (share(&mq, &topic).await, share(&mq, &topic).await);
    let mut seen = BTreeSet::new();
    while seen.len() < 100 {
        for queue in [&a, &b] {
            if let Ok(records) = tokio::time::timeout(Duration::from_millis(200), queue.receive(7)).await {
                let records = records.unwrap();
                for number in numbers(&records) {
                    assert!(seen.insert(number), "{number} came twice");
                }
                for result in queue.ack(records.into_iter().map(|r| r.receipt).collect()).await {
                    result.unwrap();
                }
            }
        }
    }
    nothing_comes(&*a, LEASE * 2).await;
    let committed = mq
        .committed(CommittedRequest::new(topic, group("workers")))
        .await
        .unwrap();
    let positions: Vec<u64> = committed.iter().map(|position| position.position).collect();
    assert_eq!(positions, [50, 50]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nacked_message_comes_back_after_its_delay_short_or_long() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "jobs", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..1).await;
    let queue = share(&mq, &topic).await;
    for (attempt, delay) in [
        (1, Duration::ZERO),
        (2, Duration::from_millis(300)),
        (3, LEASE * 2 + Duration::from_millis(500)),
        (4, Duration::from_millis(100)),
    ] {
        let record = receive(&*queue, 10).await.pop().unwrap();
        assert_eq!(record.attempt, attempt);
        let given_back = Instant::now();
        queue
            .nack(vec![(record.receipt, delay)])
            .await
            .pop()
            .unwrap()
            .unwrap();
        let again = receive(&*queue, 10).await.pop().unwrap();
        let after = given_back.elapsed();
        assert!(after >= delay, "{after:?} is before {delay:?}");
        assert!(
            after < delay + Duration::from_millis(400),
            "{after:?} is late for {delay:?}"
        );
        assert_eq!(again.attempt, attempt + 1);
        // The next round begins where this one ended.
        queue
            .nack(vec![(again.receipt, Duration::ZERO)])
            .await
            .pop()
            .unwrap()
            .unwrap();
        let once_more = receive(&*queue, 10).await.pop().unwrap();
        queue.ack(vec![once_more.receipt]).await.pop().unwrap().unwrap();
        send_numbers(&*producer, 0, 0..1).await;
        for _ in 0..attempt {
            let record = receive(&*queue, 1).await.pop().unwrap();
            queue
                .nack(vec![(record.receipt, Duration::ZERO)])
                .await
                .pop()
                .unwrap()
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vanished_holders_messages_come_after_its_lease_and_its_late_ack_is_refused() {
    let redis = options().start().unwrap();
    let (one, two) = (connect(&redis).await, connect(&redis).await);
    let topic = create(&one, "jobs", 1).await;
    let producer = producer(&one, &topic).await;
    send_numbers(&*producer, 0, 0..3).await;
    let holder = share(&one, &topic).await;
    let held = receive_all(&*holder, 3).await;
    let since = Instant::now();
    let heir = share(&two, &topic).await;
    let inherited = receive_all(&*heir, 3).await;
    assert!(
        since.elapsed() >= LEASE - Duration::from_millis(100),
        "{:?}",
        since.elapsed()
    );
    assert!(
        inherited.iter().all(|record| record.attempt == 2),
        "{inherited:?}"
    );
    for result in holder.ack(held.into_iter().map(|r| r.receipt).collect()).await {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::StaleAck);
    }
    for result in heir.ack(inherited.into_iter().map(|r| r.receipt).collect()).await {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extended_message_stays_with_its_holder() {
    // Long enough for a busy machine to extend in time.
    const LEASE: Duration = Duration::from_secs(2);
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "jobs", 1).await;
    send_numbers(&*producer(&mq, &topic).await, 0, 0..1).await;
    let member = || {
        let mut subscription = sharing(&topic);
        subscription.session_timeout = Some(LEASE);
        mq.queue_consumer(subscription)
    };
    let (holder, other) = (member().await.unwrap(), member().await.unwrap());
    let mut record = receive(&*holder, 1).await.pop().unwrap();
    let until = Instant::now() + LEASE * 3;
    while Instant::now() < until {
        nothing_comes(&*other, LEASE / 6).await;
        let extended = holder.extend(vec![record.receipt]).await.pop().unwrap();
        let (receipt, lease_until) = extended.unwrap();
        assert!(lease_until > record.lease_until);
        record.receipt = receipt;
    }
    holder.ack(vec![record.receipt]).await.pop().unwrap().unwrap();
    nothing_comes(&*other, LEASE * 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_receive_swallows_nothing_and_close_gives_back_at_once() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "jobs", 1).await;
    let producer = producer(&mq, &topic).await;
    let queue = share(&mq, &topic).await;
    let mut first = Vec::new();
    for round in 0..50 {
        let limit = Duration::from_micros(50 * (round % 7));
        // Mostly dropped while the server is asked.
        if let Ok(records) = tokio::time::timeout(limit, queue.receive(1)).await {
            first.extend(records.unwrap());
        }
        send_numbers(&*producer, 0, [round]).await;
    }
    let missing = 50 - first.len();
    first.extend(receive_all(&*queue, missing).await);
    assert_eq!(numbers(&first).into_iter().collect::<BTreeSet<_>>().len(), 50);
    let attempts: Vec<u32> = first.iter().map(|record| record.attempt).collect();
    assert_eq!(attempts, vec![1; 50]);
    let closing = Instant::now();
    queue.close().await.unwrap();
    let next = share(&mq, &topic).await;
    let again = receive_all(&*next, 50).await;
    assert!(closing.elapsed() < LEASE / 2, "{:?}", closing.elapsed());
    assert!(again.iter().all(|record| record.attempt == 2));
    let members = redis
        .command(&["XINFO", "CONSUMERS", "mq:{jobs:0}", "workers"])
        .unwrap();
    assert_eq!(members.matches("idle").count(), 2, "{members}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_group_outlives_cuts_and_hears_of_its_topics_end() {
    let redis = options().with_proxy().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "jobs", 1).await;
    let producer = producer(&mq, &topic).await;
    let queue = share(&mq, &topic).await;
    send_numbers(&*producer, 0, [1]).await;
    assert_eq!(numbers(&receive(&*queue, 1).await), [1]);
    redis.cut_connections().unwrap();
    let told = tokio::time::timeout(PATIENCE, queue.receive(1)).await.unwrap();
    match told {
        Err(error) => assert!(error.is_retryable(), "{error}"),
        // It was back before anybody asked, and what it held fell due.
        Ok(records) => assert_eq!(numbers(&records), [1]),
    }
    for _ in 0..100 {
        if send(&*producer, 0, vec![mq_api::Message::new("2")]).await[0].is_ok() {
            break;
        }
    }
    let mut seen = Vec::new();
    while !seen.contains(&2) {
        match tokio::time::timeout(PATIENCE, queue.receive(1)).await.unwrap() {
            Ok(records) => seen.extend(numbers(&records)),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    mq.delete_topics(vec![topic.clone()])
        .await
        .pop()
        .unwrap()
        .unwrap();
    create(&mq, "jobs", 1).await;
    let error = loop {
        match tokio::time::timeout(PATIENCE, queue.receive(1)).await.unwrap() {
            Err(error) if !error.is_retryable() => break error,
            _ => {}
        }
    };
    assert_eq!(error.kind(), ErrorKind::TopicNotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_has_one_mode() {
    let redis = options().start().unwrap();
    let (one, two) = (connect(&redis).await, connect(&redis).await);
    let topic = create(&one, "jobs", 1).await;
    let _queue = share(&one, &topic).await;
    let Err(error) = two.consumer(sharing(&topic)).await else {
        panic!("joined in another mode");
    };
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.context().contains("shared mode"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_can_begin_at_the_end() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "jobs", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..5).await;
    let mut latest = sharing(&topic);
    latest.start = Position::Latest;
    let queue = mq.queue_consumer(latest).await.unwrap();
    send_numbers(&*producer, 0, 5..7).await;
    assert_eq!(numbers(&receive_all(&*queue, 2).await), [5, 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_others_fill_is_a_topic_of_one_partition() {
    let redis = options().start().unwrap();
    for number in 0..5 {
        redis
            .command(&["XADD", "sensors/roof", "*", "reading", &number.to_string()])
            .unwrap();
    }
    let url = ConnectUrl::parse(&format!("{}?names=raw&protocol=3", redis.url())).unwrap();
    let config = RedisConfig::from_url(&url).unwrap();
    let mq = RedisMq::connect_with(config).await.unwrap();
    let topic = TopicName::existing("sensors/roof").unwrap();
    let description = mq.describe_topic(topic.clone()).await.unwrap();
    assert_eq!((description.partitions.len(), description.id), (1, None));
    let queue = share(&mq, &topic).await;
    let records = receive_all(&*queue, 5).await;
    assert_eq!(numbers(&records), [0, 1, 2, 3, 4]);
    assert_eq!(records[0].record.message.headers().text("reading"), Some("0"));
    for result in queue.ack(records.into_iter().map(|r| r.receipt).collect()).await {
        result.unwrap();
    }
    let reader = mq.reader(topic.clone()).await.unwrap();
    let middle = {
        let fetched = reader
            .fetch(mq_api::driver::FetchRequest::new(0, Position::Earliest, 10))
            .await
            .unwrap();
        assert_eq!(fetched.records.len(), 5);
        fetched.records.iter().nth(2).unwrap().offset
    };
    let fetched = reader
        .fetch(mq_api::driver::FetchRequest::new(0, Position::Offset(middle), 10))
        .await
        .unwrap();
    assert_eq!(fetched.records.len(), 3);
    let Err(error) = mq.consumer(subscription(&topic, "g")).await else {
        panic!("owned a foreign stream");
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
