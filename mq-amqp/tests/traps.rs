//! What is known to go wrong with RabbitMQ and its clients, on a real server.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use mq_amqp::{AmqpConfig, AmqpMq};
use mq_api::{ErrorKind, Message, driver::Mq, url::ConnectUrl};
use support::*;
use test_brokers::RabbitMq;

async fn refusal(config: AmqpConfig) -> ErrorKind {
    let begun = Instant::now();
    let error = AmqpMq::connect_with(config.with_connect_timeout(Duration::from_secs(3)))
        .await
        .err()
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{error} came late");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    error.kind()
}

/// One server for all that breaks nothing: it takes seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_serves_it_all() {
    let rabbit = options().start().unwrap();
    who_may_not_come_in_is_told_why(&rabbit).await;
    tls_is_checked(&rabbit).await;
    a_silent_server_meets_the_connect_deadline(&rabbit).await;
    producers_side_by_side_get_their_own_results(&rabbit).await;
    connections_cut_by_an_outside_hand_come_back(&rabbit).await;
    a_memory_alarm_gives_back_pressure_and_passes(&rabbit).await;
}

async fn who_may_not_come_in_is_told_why(rabbit: &RabbitMq) {
    let good = config(rabbit);
    let wrong = good.clone().with_user("app", "hunter2");
    assert_eq!(refusal(wrong).await, ErrorKind::Authentication);
    let nowhere = good.clone().with_vhost("nowhere");
    assert_eq!(refusal(nowhere).await, ErrorKind::InvalidConfig);
    rabbit.control(&["add_user", "guest2", "hunter2"]).unwrap();
    let outside = good.clone().with_user("guest2", "hunter2");
    assert_eq!(refusal(outside.clone()).await, ErrorKind::PermissionDenied);
    rabbit
        .control(&["set_permissions", "guest2", "^nothing$", "^nothing$", "^nothing$"])
        .unwrap();
    let mq = AmqpMq::connect_with(outside).await.unwrap();
    let spec = mq_api::TopicSpec::new("forbidden", 1).unwrap();
    let error = mq.create_topic(spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

async fn tls_is_checked(rabbit: &RabbitMq) {
    let url = ConnectUrl::parse(&rabbit.tls_url()).unwrap();
    let bare = AmqpConfig::from_url(&url).unwrap();
    let port = bare.port;
    let trusted = |config: AmqpConfig| config.with_tls(Some(rabbit.certificates().ca_file().to_path_buf()));
    let mq = AmqpMq::connect_with(trusted(bare.clone())).await.unwrap();
    mq.close().await.unwrap();
    assert_eq!(refusal(bare).await, ErrorKind::Tls);
    let plain = config(rabbit);
    assert_eq!(refusal(trusted(plain.clone())).await, ErrorKind::Tls);
    let mut mistaken = plain;
    mistaken.port = port;
    let kind = refusal(mistaken).await;
    assert!(
        matches!(
            kind,
            ErrorKind::Connection | ErrorKind::Protocol | ErrorKind::Timeout | ErrorKind::Tls
        ),
        "{kind:?}"
    );
}

async fn a_silent_server_meets_the_connect_deadline(_rabbit: &RabbitMq) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    assert_eq!(
        refusal(AmqpConfig::new("127.0.0.1", port)).await,
        ErrorKind::Timeout
    );
}

async fn producers_side_by_side_get_their_own_results(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let (kept, doomed) = (create(&mq, "kept", 1).await, create(&mq, "doomed", 1).await);
    let (stays, goes) = (producer(&mq, &kept).await, producer(&mq, &doomed).await);
    send_numbers(&*stays, 0, 0..1).await;
    send_numbers(&*goes, 0, 0..1).await;
    mq.delete_topics(vec![doomed]).await.pop().unwrap().unwrap();
    let many = |n: u64| (0..n).map(|n| Message::new(n.to_string())).collect();
    let (good, bad) = tokio::join!(send(&*stays, 0, many(500)), send(&*goes, 0, many(500)));
    assert!(good.iter().all(Result::is_ok));
    for result in bad {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::TopicNotFound);
    }
}

async fn connections_cut_by_an_outside_hand_come_back(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "cut", 1).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 1).await;
    rabbit.control(&["close_all_connections", "by hand"]).unwrap();
    member.until("lost", |m| !m.lost.is_empty()).await;
    member.until("again", |m| m.assigned.len() == 1).await;
    for _ in 0..100 {
        if send(&*producer, 0, vec![Message::new("5")]).await[0].is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    member.until("one", |m| m.numbers().contains(&5)).await;
    member.consumer.close().await.unwrap();
}

async fn a_memory_alarm_gives_back_pressure_and_passes(rabbit: &RabbitMq) {
    let mq = connect(rabbit).await;
    let topic = create(&mq, "alarm", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, 0..1).await;
    rabbit
        .control(&["set_vm_memory_high_watermark", "absolute", "1MB"])
        .unwrap();
    let (batch, waiting) =
        mq_api::driver::SendBatch::new(0, vec![Message::new("1")], Instant::now() + PATIENCE);
    producer.send(batch);
    let mut waiting = waiting.into_iter().next().unwrap();
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(
        early.is_err(),
        "the server took a message without memory: {early:?}"
    );
    rabbit
        .control(&["set_vm_memory_high_watermark", "absolute", "512MB"])
        .unwrap();
    let receipt = tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    assert_eq!(receipt.unwrap().partition, 0);
}
