//! A real RocketMQ through everything that tests do to it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::ErrorKind;
use std::net::TcpStream;

use test_brokers::{Broker, Error, ProxyMode, RocketMqOptions};

#[test]
fn topics_survive_a_kill_a_freeze_and_a_restart() {
    let cluster = RocketMqOptions::new().with_proxy().start().unwrap();
    let url = cluster.url();
    assert!(url.starts_with("rocketmq://127.0.0.1:"));
    let master = cluster.masters()[0].address().to_string();
    assert!(master.starts_with("127.0.0.2:"));
    cluster
        .tool(&["updateTopic", "-b", &master, "-t", "orders", "-r", "4", "-w", "4"])
        .unwrap();

    cluster.kill().unwrap();
    assert!(!cluster.is_running());
    assert!(matches!(cluster.kill(), Err(Error::NotRunning { .. })));
    cluster.start().unwrap();
    assert!(cluster.tool(&["topicList"]).unwrap().contains("orders"));

    cluster.freeze().unwrap();
    assert!(cluster.is_running());
    cluster.thaw().unwrap();
    // The route names the proxy, so that clients know no way past it.
    assert!(
        cluster
            .tool(&["topicRoute", "-t", "orders"])
            .unwrap()
            .contains(&master)
    );

    // One of the two, while the other goes on.
    let broker = &cluster.masters()[0];
    broker.kill().unwrap();
    assert!(cluster.name_servers()[0].is_running());
    cluster.start_node(broker).unwrap();
    assert!(
        cluster
            .tool(&["topicRoute", "-t", "orders"])
            .unwrap()
            .contains(&master)
    );

    let proxy = cluster.masters()[0].proxy().unwrap();
    let standing = TcpStream::connect(proxy.address()).unwrap();
    while proxy.connections() == 0 {
        std::thread::yield_now();
    }
    assert!(cluster.cut_connections().unwrap() >= 1);
    drop(standing);
    proxy.set_mode(ProxyMode::Refuse).unwrap();
    assert_eq!(
        TcpStream::connect(proxy.address()).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    cluster.restart().unwrap();
    assert_eq!(cluster.url(), url);
}

#[test]
fn two_nameservers_route_to_two_masters() {
    let cluster = RocketMqOptions::new()
        .with_name_servers(2)
        .with_masters(2)
        .start()
        .unwrap();
    assert_eq!(cluster.url().matches(',').count(), 1);
    cluster.name_servers()[0].kill().unwrap();
    let listed = cluster.tool(&["clusterList"]).unwrap();
    assert!(
        listed.contains("broker-a") && listed.contains("broker-b"),
        "{listed}"
    );
    cluster.start_node(&cluster.name_servers()[0]).unwrap();
}

#[test]
fn a_cluster_speaks_tls_and_checks_access() {
    let cluster = RocketMqOptions::new()
        .with_tls()
        .with_access_control()
        .start()
        .unwrap();
    assert!(cluster.url().starts_with("rocketmq+tls://"));
    assert!(cluster.certificates().unwrap().ca_file().exists());
    // The tool has no credentials: it reaches the nameserver by TLS and is turned away by the master.
    assert!(cluster.tool(&["clusterList"]).is_ok());
    let master = cluster.masters()[0].address().to_string();
    let refused = cluster.tool(&["updateTopic", "-b", &master, "-t", "orders"]);
    let text = refused.unwrap_or_else(|error| error.to_string());
    assert!(!text.contains("success"), "{text}");
}
