//! Delayed messages and retention on a real server.

mod support;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use mq_api::{
    Message, Position, TopicSpec,
    driver::{FetchRequest, Mq},
};
use mq_redis::RedisMq;
use support::{tap::Tap, *};
use test_brokers::Broker;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_comes_when_it_is_due_and_no_sooner() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 2).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    let sent = Instant::now();
    let delays = [700u64, 300, 500];
    for delay in delays {
        let message = Message::new(delay.to_string())
            .with_key("k")
            .with_header("a:b", "1:2")
            .with_delay(Duration::from_millis(delay));
        let receipt = send(&*producer, 1, vec![message]).await.pop().unwrap().unwrap();
        assert_eq!(receipt.offset, None);
    }
    let mut came = Vec::new();
    while came.len() < 3 {
        member.step(PATIENCE).await;
        while came.len() < member.received.len() {
            let number = member.received[came.len()].2;
            let after = sent.elapsed();
            assert!(
                after >= Duration::from_millis(number),
                "{number} came after {after:?}"
            );
            assert!(
                after < Duration::from_millis(number + 400),
                "{number} came after {after:?}"
            );
            came.push(number);
        }
    }
    assert_eq!(came, [300, 500, 700]);
}

/// What is stored between a move and its answer is not of what the answer speaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_delayed_while_others_are_moved_is_not_late() {
    let redis = options().start().unwrap();
    let tap = Tap::start(redis.address());
    let mut config = config(&redis);
    config.port = tap.address.port();
    let mq = RedisMq::connect_with(config).await.unwrap();
    let topic = create(&mq, "orders", 1).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 1).await;
    tap.moves_late_by.store(200, Ordering::SeqCst);
    let mut late = Vec::new();
    for round in 0..8 {
        for (number, delay) in [(2 * round, 20), (2 * round + 1, 5)] {
            let delay = Duration::from_millis(delay);
            let message = Message::new(number.to_string()).with_delay(delay);
            send(&*producer, 0, vec![message]).await.pop().unwrap().unwrap();
            let stored = Instant::now();
            member
                .until("delayed", |m| m.numbers().contains(&(number as u64)))
                .await;
            late.push(stored.elapsed().saturating_sub(delay));
        }
        // The answer of the last move has come.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // As late as the answer of the move before; the looks for forgotten messages are more than a second apart. One is
    // forgiven to a busy machine.
    late.sort();
    assert!(late[late.len() - 2] < Duration::from_millis(800), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_messages_outlive_their_sender_and_the_server() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 1).await;
    let producer = producer(&mq, &topic).await;
    for number in 0..20 {
        let message = Message::new(number.to_string()).with_delay(Duration::from_millis(1500));
        send(&*producer, 0, vec![message]).await.pop().unwrap().unwrap();
    }
    mq.close().await.unwrap();
    drop((producer, mq));
    redis.kill().unwrap();
    redis.start().unwrap();
    let mq = connect(&redis).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("all", |m| m.received.len() == 20).await;
    assert_eq!(
        redis.command(&["EXISTS", "mq:{orders:0}:delay"]).unwrap().trim(),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_to_a_deleted_topic_is_refused_and_makes_nothing() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 1).await;
    let producer = producer(&mq, &topic).await;
    mq.delete_topics(vec![topic]).await.pop().unwrap().unwrap();
    let message = Message::new("x").with_delay(Duration::from_secs(1));
    let error = send(&*producer, 0, vec![message])
        .await
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), mq_api::ErrorKind::TopicNotFound);
    let left = redis.command(&["KEYS", "*orders:0*"]).unwrap();
    assert_eq!(left.trim(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_by_age_and_by_bytes_removes_the_oldest() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let aged = TopicSpec::new("aged", 1)
        .unwrap()
        .with_retention_age(Duration::from_secs(2));
    let sized = TopicSpec::new("sized", 1).unwrap().with_retention_bytes(100_000);
    mq.create_topic(aged).await.unwrap();
    mq.create_topic(sized).await.unwrap();
    let (aged, sized) = (topic("aged"), topic("sized"));
    let to_aged = producer(&mq, &aged).await;
    send_numbers(&*to_aged, 0, 0..10).await;
    let to_sized = producer(&mq, &sized).await;
    let kilobyte = vec![b'1'; 1000];
    for _ in 0..5 {
        let messages = (0..100).map(|_| Message::new(kilobyte.clone())).collect();
        for result in send(&*to_sized, 0, messages).await {
            result.unwrap();
        }
    }
    let aged = mq.reader(aged).await.unwrap();
    let sized = mq.reader(sized).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let old = aged.bounds().await.unwrap()[0];
        let large = sized.bounds().await.unwrap()[0];
        if old == (10, 10) && large.0 > 350 && large.0 < 460 && large.1 == 500 {
            break;
        }
        assert!(Instant::now() < deadline, "{old:?} {large:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let fetched = sized
        .fetch(FetchRequest::new(0, Position::Offset(0), 1))
        .await
        .unwrap();
    assert!(fetched.records.iter().next().unwrap().offset > 350);
}
