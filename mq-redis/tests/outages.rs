//! What an outage must not leave behind: names that nobody bears, locks that nobody opens, owners that gave up.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod support;

use std::{collections::BTreeSet, pin::pin, sync::atomic::Ordering, time::Duration};

use mq_api::{
    ErrorKind,
    driver::{Event, Mq},
};
use mq_redis::RedisMq;
use support::{tap::Tap, *};
use test_brokers::{Broker, ProxyMode};

/// A session may be heard of while the answer to its join is lost; the others must not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_whose_answer_is_lost_leaves_no_ghost() {
    let redis = options().start().unwrap();
    let tap = Tap::start(redis.address());
    let mut config = config(&redis);
    config.port = tap.address.port();
    let mq = RedisMq::connect_with(config).await.unwrap();
    let topic = create(&mq, "orders", 2).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 2).await;
    tap.joins_to_break.store(2, Ordering::SeqCst);
    tap.cut();
    member
        .until("assigned again", |m| m.lost.len() == 2 && m.assigned.len() == 2)
        .await;
    assert_eq!(tap.joins_to_break.load(Ordering::SeqCst), 0);
    let log = redis.command(&["XRANGE", "mq:{orders}:g:g", "-", "+"]).unwrap();
    let words: Vec<&str> = log.lines().map(str::trim).collect();
    let who = |said: &str| -> BTreeSet<&str> {
        words
            .windows(4)
            .filter(|four| four[0] == "mq1" && four[2] == "say" && four[3] == said)
            .map(|four| four[1])
            .collect()
    };
    let (joined, left) = (who("join"), who("bye"));
    assert_eq!((joined.len(), left.len()), (4, 3), "{log}");
    assert!(joined.is_superset(&left), "{log}");
}

/// The register still names a living session as the owner: without its end, the partition would be nobody's for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_the_server_refuses_holds_no_partition_back() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 2).await;
    let mut first = join(&mq, subscription(&topic, "g")).await;
    first.until("both", |m| m.assigned.len() == 2).await;
    let mut second = join(&mq, subscription(&topic, "g")).await;
    let ids = loop {
        if let Event::Revoked(ids) = first.next_event(PATIENCE).await.unwrap().unwrap() {
            break ids;
        }
    };
    redis.command(&["CONFIG", "SET", "maxmemory", "1mb"]).unwrap();
    let error = first.consumer.release(ids.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    for id in ids {
        first.assigned.remove(&id.partition);
    }
    until_both(&mut first, &mut second, "one each", |a, b| {
        a.assigned.len() == 1 && b.assigned.len() == 1
    })
    .await;
}

/// A call that reconnects, and is then neither polled nor dropped, holds up nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_polled_holds_up_no_other() {
    let redis = options().with_proxy().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 1).await;
    let proxy = redis.proxy().unwrap();
    proxy.set_mode(ProxyMode::Blackhole).unwrap();
    redis.cut_connections().unwrap();
    let mut stopped = pin!(async {
        // The first call may still meet the connection that is gone.
        while mq.list_topics().await.is_err() {}
    });
    for _ in 0..20 {
        assert!(futures_util::poll!(&mut stopped).is_pending());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.set_mode(ProxyMode::Pass).unwrap();
    let mut tries = 0;
    while let Err(error) = tokio::time::timeout(PATIENCE, mq.describe_topic(topic.clone()))
        .await
        .unwrap()
    {
        tries += 1;
        assert!(error.is_retryable() && tries < 100, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stopped.await;
}
