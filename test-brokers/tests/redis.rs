//! A real Redis through everything that tests do to it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use test_brokers::{AppendFsync, Broker, Error, ProxyMode, Redis, RedisOptions, RedisVersion};

fn options() -> RedisOptions {
    RedisOptions::new().with_version(RedisVersion::from_environment().unwrap())
}

/// Connects as a client does, through the proxy.
fn connect(redis: &Redis) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(redis.proxy().unwrap().address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(stream)
}

fn ping(client: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    client.get_mut().write_all(b"PING\r\n")?;
    let mut line = String::new();
    client.read_line(&mut line)?;
    Ok(line)
}

#[test]
fn data_survives_a_kill_and_a_restart() {
    let redis = options().start().unwrap();
    assert!(redis.url().starts_with("redis://127.0.0.1:"));
    let url = redis.url();
    redis.command(&["SET", "a", "1"]).unwrap();

    redis.kill().unwrap();
    assert!(!redis.is_running());
    assert!(matches!(redis.command(&["PING"]), Err(Error::Io { .. })));
    assert!(matches!(redis.kill(), Err(Error::NotRunning { .. })));
    assert!(matches!(redis.freeze(), Err(Error::NotRunning { .. })));
    redis.start().unwrap();
    assert_eq!(redis.command(&["GET", "a"]).unwrap(), "1");
    assert!(matches!(redis.start(), Err(Error::Running { .. })));

    redis.command(&["SET", "a", "2"]).unwrap();
    redis.restart().unwrap();
    assert_eq!(redis.command(&["GET", "a"]).unwrap(), "2");
    assert_eq!(redis.url(), url);
    assert!(redis.logs().contains("Ready to accept connections"));
}

#[test]
fn a_frozen_server_is_silent_until_it_is_thawed() {
    let redis = options().with_proxy().start().unwrap();
    let mut client = connect(&redis);
    assert_eq!(ping(&mut client).unwrap(), "+PONG\r\n");
    redis.freeze().unwrap();
    assert!(redis.is_running());
    client
        .get_mut()
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    client.get_mut().write_all(b"PING\r\n").unwrap();
    let silent = client.read_line(&mut String::new()).unwrap_err();
    assert!(matches!(
        silent.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    redis.thaw().unwrap();
    client
        .get_mut()
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert_eq!(line, "+PONG\r\n");
}

#[test]
fn a_frozen_server_is_gone_after_its_drop() {
    let redis = options().start().unwrap();
    let address = redis.address();
    redis.freeze().unwrap();
    drop(redis);
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn cut_connections_end_and_new_ones_are_served() {
    let redis = options().with_proxy().start().unwrap();
    let (mut one, mut two) = (connect(&redis), connect(&redis));
    ping(&mut one).unwrap();
    ping(&mut two).unwrap();
    assert_eq!(redis.cut_connections().unwrap(), 2);
    for client in [&mut one, &mut two] {
        assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
    assert_eq!(ping(&mut connect(&redis)).unwrap(), "+PONG\r\n");

    redis.proxy().unwrap().set_mode(ProxyMode::Refuse).unwrap();
    let refused = TcpStream::connect(redis.proxy().unwrap().address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(redis.is_running());
}

#[test]
fn a_cut_needs_the_proxy() {
    let redis = options().start().unwrap();
    assert!(matches!(redis.cut_connections(), Err(Error::NoProxy { .. })));
}

#[test]
fn password_users_tls_and_configuration_are_set() {
    let redis = options()
        .with_append_fsync(AppendFsync::EverySecond)
        .with_password("secret")
        .with_acl_user("ro on >read ~* &* +@read +@connection")
        .with_config("maxmemory 100mb")
        .with_tls()
        .start()
        .unwrap();
    assert!(redis.url().starts_with("redis://:secret@127.0.0.1:"));
    assert!(
        redis
            .url_for("ro", "read")
            .starts_with("redis://ro:read@127.0.0.1:")
    );
    assert!(
        redis
            .tls_url()
            .unwrap()
            .starts_with("rediss://:secret@localhost:")
    );
    assert!(redis.certificates().unwrap().ca_file().exists());
    assert_eq!(
        redis.command(&["CONFIG", "GET", "appendfsync"]).unwrap(),
        "appendfsync\neverysec"
    );
    assert_eq!(
        redis.command(&["CONFIG", "GET", "maxmemory"]).unwrap(),
        "maxmemory\n104857600"
    );
    assert!(redis.command(&["ACL", "LIST"]).unwrap().contains("user ro on"));
    let refused = redis.command(&["NO-SUCH-COMMAND"]).unwrap_err();
    assert!(matches!(refused, Error::Command { .. }));
}

#[test]
fn a_bad_configuration_shows_the_server_log() {
    let Err(Error::NotReady { logs, .. }) = options().with_config("no-such-setting 1").start() else {
        panic!("started");
    };
    assert!(logs.contains("no-such-setting"), "{logs}");
}

#[test]
fn a_start_takes_well_under_a_second_once_fetched() {
    drop(options().start().unwrap());
    let begin = Instant::now();
    drop(options().start().unwrap());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
