//! A real RabbitMQ through everything that tests do to it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use test_brokers::{Broker, Error, RabbitMq, RabbitMqOptions, RabbitMqVersion};

fn options() -> RabbitMqOptions {
    RabbitMqOptions::new().with_version(RabbitMqVersion::from_environment().unwrap())
}

/// Connects as a client does, through the proxy, and waits for the server's first frame.
fn greet(server: &RabbitMq, limit: Duration) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server.proxy().unwrap().address())?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let mut frame = [0; 7];
    stream.read_exact(&mut frame)?;
    assert_eq!(frame[0], 1, "not a method frame: {frame:?}");
    Ok(stream)
}

#[test]
fn queues_survive_a_kill_a_freeze_and_a_restart() {
    let server = options().with_proxy().start().unwrap();
    let url = server.url();
    assert!(url.starts_with("amqp://app:secret@127.0.0.1:"));
    server.control(&["add_vhost", "other"]).unwrap();
    let limit = Duration::from_secs(10);
    let mut standing = greet(&server, limit).unwrap();

    server.freeze().unwrap();
    assert!(server.is_running());
    let silent = greet(&server, Duration::from_millis(300)).unwrap_err();
    assert!(matches!(
        silent.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    server.thaw().unwrap();
    greet(&server, limit).unwrap();

    assert!(server.cut_connections().unwrap() >= 1);
    let mut rest = Vec::new();
    // What was sent before the cut may still be read; then comes the end.
    let _ = standing.read_to_end(&mut rest);
    assert!(matches!(standing.read(&mut [0; 8]), Ok(0) | Err(_)));
    greet(&server, limit).unwrap();

    server.kill().unwrap();
    assert!(!server.is_running());
    assert!(matches!(server.kill(), Err(Error::NotRunning { .. })));
    server.start().unwrap();
    assert!(server.control(&["list_vhosts"]).unwrap().contains("other"));

    server.restart().unwrap();
    assert_eq!(server.url(), url);
    assert!(server.control(&["list_vhosts"]).unwrap().contains("other"));
    assert!(server.control(&["no_such_command"]).is_err());
}

#[test]
fn two_servers_live_side_by_side() {
    let (one, two) = (
        options().start().unwrap(),
        options().with_config("heartbeat = 2").start().unwrap(),
    );
    assert_ne!(one.address(), two.address());
    assert!(TcpStream::connect(one.address()).is_ok());
    let address = two.address();
    two.freeze().unwrap();
    drop(two);
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert!(one.is_running());
    assert!(one.certificates().ca_file().exists());
    assert!(one.tls_url().starts_with("amqps://app:secret@localhost:"));
}
