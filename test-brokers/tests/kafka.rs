//! A real Kafka through everything that tests do to it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::ErrorKind;
use std::net::TcpStream;

use test_brokers::{Broker, Error, Kafka, KafkaListener, KafkaOptions, ProxyMode};

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

/// Runs the topic tool as a client that knows nothing but the first address.
fn topics(kafka: &Kafka, address: &str, arguments: &[&str]) -> String {
    let mut all = vec!["--bootstrap-server", address];
    all.extend(arguments);
    kafka.tool(TOPICS, &all).unwrap()
}

#[test]
fn topics_survive_a_kill_a_freeze_and_a_restart() {
    let kafka = KafkaOptions::new().with_proxy().start().unwrap();
    let url = kafka.url();
    let address = kafka.bootstrap(KafkaListener::Plain);
    assert_eq!(url, format!("kafka://{address}"));
    topics(
        &kafka,
        &address,
        &["--create", "--topic", "orders", "--partitions", "3"],
    );

    kafka.kill().unwrap();
    assert!(!kafka.is_running());
    assert!(matches!(kafka.stop(), Err(Error::NotRunning { .. })));
    kafka.start().unwrap();
    assert_eq!(topics(&kafka, &address, &["--list"]).trim(), "orders");

    kafka.freeze().unwrap();
    assert!(kafka.is_running());
    kafka.thaw().unwrap();
    assert!(topics(&kafka, &address, &["--describe"]).contains("PartitionCount: 3"));

    kafka.restart().unwrap();
    assert_eq!(kafka.url(), url);
    assert_eq!(topics(&kafka, &address, &["--list"]).trim(), "orders");

    // Clients know no way past the proxy.
    let standing = TcpStream::connect(kafka.proxy().unwrap().address()).unwrap();
    while kafka.proxy().unwrap().connections() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(kafka.cut_connections().unwrap(), 1);
    drop(standing);
    kafka.proxy().unwrap().set_mode(ProxyMode::Refuse).unwrap();
    let refused = TcpStream::connect(kafka.proxy().unwrap().address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn every_listener_serves_its_clients() {
    let kafka = KafkaOptions::new().start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (user, password) = Kafka::ALICE;
    let trust = format!(
        "ssl.truststore.type=PEM\nssl.truststore.location={}\n",
        kafka.certificates().ca_file().display()
    );
    let login = |module: &str, mechanism: &str| {
        format!(
            "sasl.mechanism={mechanism}\nsasl.jaas.config=org.apache.kafka.common.security.{module} required \
             username=\"{user}\" password=\"{password}\";\n"
        )
    };
    let plain = login("plain.PlainLoginModule", "PLAIN");
    let scram = login("scram.ScramLoginModule", "SCRAM-SHA-256");
    for (listener, properties) in [
        (
            KafkaListener::Sasl,
            format!("security.protocol=SASL_PLAINTEXT\n{plain}"),
        ),
        (
            KafkaListener::Sasl,
            format!("security.protocol=SASL_PLAINTEXT\n{scram}"),
        ),
        (KafkaListener::Tls, format!("security.protocol=SSL\n{trust}")),
        (
            KafkaListener::SaslTls,
            format!("security.protocol=SASL_SSL\n{scram}{trust}"),
        ),
    ] {
        let file = folder.path().join("client.properties");
        std::fs::write(&file, &properties).unwrap();
        let address = kafka.bootstrap(listener);
        let listed = topics(
            &kafka,
            &address,
            &["--list", "--command-config", file.to_str().unwrap()],
        );
        assert_eq!(listed.trim(), "", "{listener:?}");
    }
}

#[test]
fn a_cluster_goes_on_without_one_of_its_three() {
    let cluster = KafkaOptions::new().start_cluster().unwrap();
    let [one, two, _] = cluster.nodes() else {
        panic!("not three")
    };
    assert_eq!(cluster.url().matches(',').count(), 2);
    two.kill().unwrap();
    assert!(cluster.is_running());
    let address = one.bootstrap(KafkaListener::Plain);
    topics(
        one,
        &address,
        &["--create", "--topic", "orders", "--replication-factor", "2"],
    );
    cluster.start().unwrap();
    assert!(two.is_running());
    let listed = topics(one, &two.bootstrap(KafkaListener::Plain), &["--list"]);
    assert_eq!(listed.trim(), "orders");
}
