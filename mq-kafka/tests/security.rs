//! TLS, logins and permissions, each failure with its kind.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::time::{Duration, Instant};

use mq_api::{ErrorKind, Mq};
use mq_kafka::{KafkaConfig, KafkaMq, SaslMechanism};
use test_brokers::{Kafka, KafkaListener, KafkaOptions};

async fn login(kafka: &Kafka, (user, password): (&str, &str)) -> Mq {
    let config = KafkaConfig::new([kafka.bootstrap(KafkaListener::SaslTls)])
        .with_tls(Some(kafka.certificates().ca_file()))
        .with_login(user, password, SaslMechanism::ScramSha256);
    Mq::from_driver(KafkaMq::connect_with(config).await.unwrap())
}

async fn a_user_without_permission_is_told_so(kafka: &Kafka) {
    let admin = login(kafka, Kafka::ADMIN).await;
    admin.create_topic("private", 1).await.unwrap();
    admin.create_topic("public", 1).await.unwrap();
    for (kind, name) in [("--topic", "private"), ("--group", "guarded")] {
        kafka
            .tool(
                "org.apache.kafka.tools.AclCommand",
                &[
                    "--bootstrap-server",
                    &kafka.bootstrap(KafkaListener::Plain),
                    "--add",
                    "--allow-principal",
                    "User:admin",
                    "--operation",
                    "All",
                    kind,
                    name,
                ],
            )
            .unwrap();
    }
    let alice = login(kafka, Kafka::ALICE).await;
    let begin = Instant::now();
    for refused in [
        alice.producer("private").await.map(drop),
        alice.consumer("private", "free").await.map(drop),
        alice.reader("private").await.map(drop),
        alice.describe_topic("private").await.map(drop),
        alice.consumer("public", "guarded").await.map(drop),
        alice.committed("public", "guarded").await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(!error.is_retryable());
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    // What is refused is no trouble for what is not.
    alice
        .producer("public")
        .await
        .unwrap()
        .produce("hello")
        .await
        .unwrap();
    let consumer = alice.consumer("public", "free").await.unwrap();
    consumer.consume().await.unwrap().ack().unwrap();
    alice.close().await.unwrap();
    admin
        .producer("private")
        .await
        .unwrap()
        .produce("secret")
        .await
        .unwrap();
    admin.close().await.unwrap();
}

async fn what_does_not_fit_the_listener_is_told_in_the_connect_deadline(kafka: &Kafka) {
    let (user, password) = Kafka::ALICE;
    let at = |listener| KafkaConfig::new([kafka.bootstrap(listener)]);
    let ca = || Some(kafka.certificates().ca_file());
    let by_address = kafka
        .bootstrap(KafkaListener::Tls)
        .replace("localhost", "127.0.0.1");
    for (what, config, kinds) in [
        (
            "a certificate for another name",
            KafkaConfig::new([by_address]).with_tls(ca()),
            &[ErrorKind::Tls][..],
        ),
        (
            "an authority that nobody knows",
            at(KafkaListener::Tls).with_tls(None),
            &[ErrorKind::Tls],
        ),
        (
            "a wrong password",
            at(KafkaListener::SaslTls)
                .with_tls(ca())
                .with_login(user, "wr0ng", SaslMechanism::Plain),
            &[ErrorKind::Authentication],
        ),
        (
            "a user that nobody knows",
            at(KafkaListener::Sasl).with_login("mallory", "wr0ng", SaslMechanism::ScramSha256),
            &[ErrorKind::Authentication],
        ),
        (
            "a mechanism that is off",
            at(KafkaListener::Sasl).with_login(user, password, SaslMechanism::ScramSha512),
            &[ErrorKind::Authentication],
        ),
        (
            "a login where none is asked for",
            at(KafkaListener::Plain).with_login(user, password, SaslMechanism::Plain),
            &[ErrorKind::Authentication, ErrorKind::Connection],
        ),
        ("no login", at(KafkaListener::Sasl), &[ErrorKind::Connection]),
        (
            "plain text against TLS",
            at(KafkaListener::Tls),
            &[ErrorKind::Connection],
        ),
        (
            "TLS against plain text",
            at(KafkaListener::Plain).with_tls(ca()),
            &[ErrorKind::Connection, ErrorKind::Tls],
        ),
    ] {
        let begin = Instant::now();
        let error = KafkaMq::connect_with(config).await.unwrap_err();
        assert!(kinds.contains(&error.kind()), "{what}: {error}");
        assert!(
            begin.elapsed() < Duration::from_secs(6),
            "{what}: {:?}",
            begin.elapsed()
        );
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("wr0ng") && !shown.contains(password), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_logins_and_tls_fail_by_their_kinds() {
    // Not for 127.0.0.1, by which it is reached too.
    let kafka = KafkaOptions::new().with_tls_for(&["localhost"]).start().unwrap();
    what_does_not_fit_the_listener_is_told_in_the_connect_deadline(&kafka).await;
    a_user_without_permission_is_told_so(&kafka).await;
}
