//! What has gone wrong with Redis before, each as a test on a real server. Where no file is named, it is here; a name that
//! begins with a letter and a number is a case of the conformance suite.
//!
//! | trap | test |
//! |---|---|
//! | a member that was frozen for longer than its lease delivers and commits nothing that another owns | `C14`; `a_dead_members_partitions_are_taken_over_and_its_late_commit_is_refused` in `partitioned.rs` |
//! | a late commit | the same; in shared mode a late ack: `a_vanished_holders_messages_come_after_its_lease_and_its_late_ack_is_refused` in `shared.rs` |
//! | the server lost the end of its file: what is written later is not skipped | `a_position_beyond_a_lost_tail_skips_nothing` |
//! | a topic deleted and made again: live consumers end, the next start over | `T5`; `a_deleted_topic_ends_its_consumers_and_the_next_starts_over` in `partitioned.rs`, `a_shared_group_outlives_cuts_and_hears_of_its_topics_end` in `shared.rs` |
//! | `OOM` is retryable, ownership stays whole | `a_full_server_is_retryable_and_corrupts_no_ownership`; `a_release_that_the_server_refuses_holds_no_partition_back` in `outages.rs` |
//! | `LOADING` after a restart | `a_server_that_loads_its_data_is_waited_for` |
//! | a script or a command that the user may not call | `a_denied_command_is_permission_denied`, `the_rights_of_the_page_are_enough` |
//! | TLS against a port without it | `tls_against_a_plaintext_port_meets_the_connect_deadline` |
//! | a string of 512 MB that a hostile server announces | `a_hostile_announcement_takes_no_memory`; `F6` |
//! | both protocols | `tls_passwords_and_both_protocols_work_and_bad_ones_are_typed`, `both_protocols_do_all_work` |
//! | a server that may evict keys | `a_server_that_may_evict_keys_is_warned_of_at_connect` |
//! | a blocking read that the response timeout must not cut, and a wake from it | `an_idle_read_outlives_the_command_timeout`, `a_client_with_256_partitions_has_three_connections_and_wakes_at_once` |
//! | a dropped future swallows no message | `C8`; `a_dropped_receive_swallows_nothing_and_close_gives_back_at_once` in `shared.rs` |
//! | a connection that breaks within a reply is no malformed reply | `a_connection_that_ends_within_a_reply_is_broken_and_not_malformed` in `src/guard.rs` |

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod support;

use std::{
    collections::BTreeSet,
    fmt::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mq_api::{
    ErrorKind, Message, Outcome, Position, TopicSpec,
    driver::{CommitOutcome, CommittedRequest, FetchRequest, Mq},
    url::ConnectUrl,
};
use mq_redis::{RedisConfig, RedisMq, RedisProtocol};
use support::*;
use test_brokers::{AppendFsync, Broker, JunkServer, ProxyMode, SilentServer, refused_address};

fn at(address: std::net::SocketAddr) -> RedisConfig {
    RedisConfig::new("127.0.0.1", address.port())
        .with_connect_timeout(Duration::from_secs(1))
        .with_request_timeout(Duration::from_secs(2))
}

/// Memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_and_a_silent_server_are_typed_errors_in_time() {
    let begin = Instant::now();
    let error = RedisMq::connect_with(at(refused_address().unwrap().address()))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Connection, Outcome::NotSent)
    );

    let silent = SilentServer::start().unwrap();
    let error = RedisMq::connect_with(at(silent.address())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let error = RedisMq::connect_with(at(silent.address()).with_tls(None))
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Tls),
        "{error}"
    );

    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_announcement_takes_no_memory() {
    let begin = Instant::now();
    let before = resident();
    for prefix in [
        &b""[..],
        b"$536870912\r\n",
        b"*100000000\r\n",
        b"+",
        b"*1\r\n*1\r\n*1\r\n",
    ] {
        let junk = JunkServer::start_with(prefix.to_vec(), JunkServer::DEFAULT_LENGTH).unwrap();
        for protocol in [RedisProtocol::Resp2, RedisProtocol::Resp3] {
            let error = RedisMq::connect_with(at(junk.address()).with_protocol(protocol))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{prefix:?}: {error}");
        }
        drop(junk);
    }
    assert!(resident() < before + 64 * 1024 * 1024, "{before} {}", resident());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_against_a_plaintext_port_meets_the_connect_deadline() {
    let redis = options().start().unwrap();
    let begin = Instant::now();
    let error = RedisMq::connect_with(at(redis.address()).with_tls(None))
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Tls),
        "{error}"
    );
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_passwords_and_both_protocols_work_and_bad_ones_are_typed() {
    let redis = options()
        .with_password("s3cret/@")
        .with_acl_user("app on >apppass ~* &* +@all")
        .with_tls()
        .start()
        .unwrap();
    let ca = redis.certificates().unwrap().ca_file().display().to_string();
    let port = redis.address().port();
    let tls_port = redis.tls_url().unwrap().rsplit(':').next().unwrap().to_owned();
    for url in [
        format!("redis://:s3cret%2F%40@127.0.0.1:{port}"),
        format!("redis://app:apppass@127.0.0.1:{port}/3?protocol=3"),
        format!("rediss://:s3cret%2F%40@localhost:{tls_port}?tls_ca={ca}"),
        format!("rediss://app:apppass@localhost:{tls_port}/1?tls_ca={ca}&protocol=3&prefix=other"),
    ] {
        let mq = RedisMq::connect(&ConnectUrl::parse(&url).unwrap()).await.unwrap();
        let topic = create(&mq, "orders", 1).await;
        let producer = producer(&mq, &topic).await;
        let mut member = join(&mq, subscription(&topic, "g")).await;
        send_numbers(&*producer, 0, 0..5).await;
        member.until("five", |m| m.received.len() == 5).await;
        assert_eq!(member.commit(0, 5).await.unwrap(), CommitOutcome::Stored);
        mq.delete_topics(vec![topic]).await.pop().unwrap().unwrap();
        mq.close().await.unwrap();
    }
    for (url, kind) in [
        (
            format!("redis://:wrong@127.0.0.1:{port}"),
            ErrorKind::Authentication,
        ),
        (
            format!("redis://nobody:x@127.0.0.1:{port}?protocol=3"),
            ErrorKind::Authentication,
        ),
        (format!("redis://127.0.0.1:{port}"), ErrorKind::Authentication),
        (
            format!("redis://:s3cret%2F%40@127.0.0.1:{port}/999"),
            ErrorKind::InvalidConfig,
        ),
        // The system does not know this authority.
        (
            format!("rediss://:s3cret%2F%40@localhost:{tls_port}"),
            ErrorKind::Tls,
        ),
    ] {
        let error = RedisMq::connect(&ConnectUrl::parse(&url).unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{url}: {error}");
        assert!(!error.is_retryable());
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("wrong@"), "{shown}");
    }
    for url in [
        "redis://h:1?colour=red",
        "redis://h:1?protocol=4",
        "redis://h:1,h:2",
        "redis://h:1/x",
        "http://h:1",
        "redis://h:1?session_timeout=1ms",
    ] {
        let error = RedisMq::connect(&ConnectUrl::parse(url).unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
    }
}

/// Each kind of reply that the driver reads comes in another shape where the protocol is the newer one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_do_all_work() {
    let redis = options().start().unwrap();
    for protocol in [RedisProtocol::Resp2, RedisProtocol::Resp3] {
        let mq = RedisMq::connect_with(config(&redis).with_protocol(protocol))
            .await
            .unwrap();
        let topic = create(&mq, &format!("all-{protocol:?}"), 2).await;
        let producer = producer(&mq, &topic).await;
        send_numbers(&*producer, 0, 0..3).await;
        let delayed = Message::new("3").with_delay(Duration::from_millis(50));
        send(&*producer, 1, vec![delayed]).await[0].as_ref().unwrap();
        let mut member = join(&mq, subscription(&topic, "g")).await;
        member.until("all", |m| m.received.len() == 4).await;
        assert_eq!(member.commit(0, 2).await.unwrap(), CommitOutcome::Stored);
        let request = CommittedRequest::new(topic.clone(), group("g"));
        let stored = mq.committed(request).await.unwrap();
        assert_eq!((stored[0].partition, stored[0].position), (0, 2));
        let reader = mq.reader(topic.clone()).await.unwrap();
        assert_eq!(reader.bounds().await.unwrap(), [(0, 3), (0, 1)]);
        let all = FetchRequest::new(0, Position::Earliest, 10);
        assert_eq!(reader.fetch(all).await.unwrap().records.len(), 3);
        let queue = mq.queue_consumer(subscription(&topic, "workers")).await.unwrap();
        let mut came = BTreeSet::new();
        while came.len() < 4 {
            for record in queue.receive(10).await.unwrap() {
                came.insert(number(&record.record.message));
                queue.ack(vec![record.receipt]).await.pop().unwrap().unwrap();
            }
        }
        let request = CommittedRequest::new(topic.clone(), group("workers"));
        let stored = mq.committed(request).await.unwrap();
        assert_eq!((stored[0].position, stored[1].position), (3, 1));
        assert_eq!(mq.list_topics().await.unwrap(), std::slice::from_ref(&topic));
        assert_eq!(
            mq.describe_topic(topic.clone()).await.unwrap().partitions.len(),
            2
        );
        mq.delete_topics(vec![topic]).await.pop().unwrap().unwrap();
        member.until("gone", |m| m.topic_gone).await;
        mq.close().await.unwrap();
    }
}

/// A read that finds nothing waits for longer than any command may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_read_outlives_the_command_timeout() {
    let redis = options().start().unwrap();
    let config = config(&redis).with_request_timeout(Duration::from_millis(500));
    let mq = RedisMq::connect_with(config).await.unwrap();
    let topic = create(&mq, "orders", 1).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 1).await;
    let idle = Instant::now();
    while idle.elapsed() < Duration::from_secs(2) {
        member.step(Duration::from_millis(100)).await;
    }
    send_numbers(&*producer, 0, [1]).await;
    member.until("one", |m| m.received.len() == 1).await;
    assert_eq!((member.outages, member.lost.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_command_is_permission_denied() {
    let redis = options()
        .with_acl_user("ro on >secret ~* &* +@read +@connection +info +time")
        .with_acl_user("noscript on >secret ~* &* +@all -eval -client|unblock")
        .start()
        .unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 1).await;
    let url = ConnectUrl::parse(&redis.url_for("ro", "secret")).unwrap();
    let ro = RedisMq::connect(&url).await.unwrap();
    let refused = send(&*producer(&ro, &topic).await, 0, vec![Message::new("x")]).await;
    let error = refused[0].as_ref().unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::PermissionDenied, Outcome::NotSent)
    );
    let Err(error) = ro.consumer(subscription(&topic, "g")).await else {
        panic!("joined without the right");
    };
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);

    // Without scripts there are no delayed messages, and without waking a read changes take a little longer.
    let url = ConnectUrl::parse(&redis.url_for("noscript", "secret")).unwrap();
    let mq = RedisMq::connect(&url).await.unwrap();
    let producer = producer(&mq, &topic).await;
    let delayed = Message::new("x").with_delay(Duration::from_secs(1));
    let error = send(&*producer, 0, vec![delayed])
        .await
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 1).await;
    send_numbers(&*producer, 0, 0..3).await;
    member.until("three", |m| m.received.len() == 3).await;
}

/// The rights that the driver's page asks for are enough for everything that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_the_page_are_enough() {
    let page = include_str!("../src/docs.md");
    let rule = page
        .split_once("user app ")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(rule, _)| rule.split_whitespace().collect::<Vec<_>>().join(" "))
        .unwrap();
    let redis = options()
        .with_config("acllog-max-len 100")
        .with_acl_user(format!("app {rule}"))
        .start()
        .unwrap();
    let url = format!("{}?session_timeout=2s", redis.url_for("app", "secret"));
    let mq = RedisMq::connect(&ConnectUrl::parse(&url).unwrap()).await.unwrap();
    let sized = TopicSpec::new("orders", 2)
        .unwrap()
        .with_retention_bytes(50_000)
        .with_retention_age(Duration::from_secs(60));
    mq.create_topic(sized).await.unwrap();
    let name = topic("orders");
    mq.add_partitions(name.clone(), 3).await.unwrap();
    let producer = producer(&mq, &name).await;
    let mut member = join(&mq, subscription(&name, "g")).await;
    member.until("all", |m| m.assigned.len() == 3).await;
    send_numbers(&*producer, 0, 0..3).await;
    let delayed = Message::new("3").with_delay(Duration::from_millis(50));
    send(&*producer, 0, vec![delayed]).await[0].as_ref().unwrap();
    member
        .until("the delayed one too", |m| m.received.len() == 4)
        .await;
    assert_eq!(member.commit(0, 4).await.unwrap(), CommitOutcome::Stored);
    member.consumer.close().await.unwrap();

    let mut sharing = subscription(&name, "workers");
    sharing.session_timeout = Some(Duration::from_secs(1));
    let queue = mq.queue_consumer(sharing).await.unwrap();
    let mut came = Vec::new();
    for delay in [
        Duration::ZERO,
        Duration::from_secs(2),
        Duration::ZERO,
        Duration::ZERO,
    ] {
        let records = tokio::time::timeout(PATIENCE, queue.receive(1)).await.unwrap();
        let record = records.unwrap().pop().unwrap();
        came.push(number(&record.record.message));
        let (receipt, _) = queue.extend(vec![record.receipt]).await.pop().unwrap().unwrap();
        queue.nack(vec![(receipt, delay)]).await.pop().unwrap().unwrap();
    }
    while came.len() < 20 && came.iter().collect::<BTreeSet<_>>().len() < 4 {
        let records = tokio::time::timeout(PATIENCE, queue.receive(1)).await.unwrap();
        for record in records.unwrap() {
            came.push(number(&record.record.message));
            queue.ack(vec![record.receipt]).await.pop().unwrap().unwrap();
        }
    }
    queue.close().await.unwrap();

    let reader = mq.reader(name.clone()).await.unwrap();
    reader
        .offset_at(0, mq_api::Timestamp::from_millis(0))
        .await
        .unwrap();
    assert_eq!(mq.list_topics().await.unwrap(), std::slice::from_ref(&name));
    mq.delete_topics(vec![name]).await.pop().unwrap().unwrap();
    mq.close().await.unwrap();
    // What runs in the background may be refused without a word.
    let log = redis.command(&["ACL", "LOG"]).unwrap();
    let words: Vec<&str> = log.lines().map(str::trim).collect();
    let refused: Vec<&str> = words
        .windows(2)
        .filter(|two| two[0] == "object" && two[1] != "client|setinfo")
        .map(|two| two[1])
        .collect();
    assert!(refused.is_empty(), "{refused:?}: {log}");
}

/// Takes warnings down.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<String>>);

impl tracing::field::Visit for Warnings {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let mut all = self.0.lock().unwrap();
        let _ = write!(all, "{field}={value:?} ");
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_server_that_may_evict_keys_is_warned_of_at_connect() {
    let redis = options().start().unwrap();
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    connect(&redis).await.close().await.unwrap();
    assert_eq!(*warnings.0.lock().unwrap(), "");
    for policy in ["allkeys-lru", "volatile-ttl"] {
        redis
            .command(&["CONFIG", "SET", "maxmemory-policy", policy])
            .unwrap();
        connect(&redis).await.close().await.unwrap();
        let warned = std::mem::take(&mut *warnings.0.lock().unwrap());
        assert!(
            warned.contains(&format!("maxmemory_policy=\"{policy}\"")),
            "{warned}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_is_retryable_and_corrupts_no_ownership() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 2).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    send_numbers(&*producer, 0, 0..5).await;
    member
        .until("five", |m| m.received.len() == 5 && m.assigned.len() == 2)
        .await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1mb"]).unwrap();
    let refused = send(&*producer, 0, vec![Message::new("x")]).await;
    let error = refused[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert_eq!(error.outcome(), Outcome::NotSent);
    assert!(error.is_retryable());
    let error = member.commit(0, 5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    // Longer than the lease: nobody can write, so nobody owns anything, and that is known.
    let full = Instant::now();
    while full.elapsed() < Duration::from_secs(3) {
        member.step(Duration::from_millis(50)).await;
    }
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    member.until("back", |m| m.assigned.len() == 2).await;
    // What was not committed comes again, once to an owner.
    member.until("again", |m| m.received.len() == 10).await;
    assert_eq!(member.commit(0, 5).await.unwrap(), CommitOutcome::Stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    let redis = Arc::new(
        options()
            .with_append_fsync(AppendFsync::EverySecond)
            .with_config("key-load-delay 300")
            .with_config("loading-process-events-interval-bytes 1024")
            .start()
            .unwrap(),
    );
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 1).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    send_numbers(&*producer, 0, 0..2000).await;
    member.until("all", |m| m.received.len() == 2000).await;
    redis.kill().unwrap();
    redis.start_loading().unwrap();
    let answer = redis.command(&["GET", "x"]);
    let loading = format!("{answer:?}").contains("LOADING");
    let result = send(&*producer, 0, vec![Message::new("2000")])
        .await
        .pop()
        .unwrap();
    if loading && let Err(error) = &result {
        assert!(error.is_retryable(), "{error}");
    }
    member
        .until("again", |m| m.recoveries > 0 && m.assigned.len() == 1)
        .await;
    let mut tries = 0;
    while send(&*producer, 0, vec![Message::new("2001")]).await[0].is_err() {
        tries += 1;
        assert!(tries < 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    member.until("flows again", |m| m.numbers().contains(&2001)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_beyond_a_lost_tail_skips_nothing() {
    let redis = options().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 1).await;
    let sender = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    send_numbers(&*sender, 0, 0..10).await;
    member.until("ten", |m| m.received.len() == 10).await;
    member.commit(0, 10).await.unwrap();
    member.consumer.close().await.unwrap();
    mq.close().await.unwrap();
    drop((member, sender, mq));
    // As after a power cut: the register survived, the end of the partition did not.
    redis.command(&["DEL", "mq:{orders:0}"]).unwrap();
    for seq in 1..=4 {
        let id = format!("0-{seq}");
        redis
            .command(&["XADD", "mq:{orders:0}", &id, "mq1", "1", "payload", "0"])
            .unwrap();
    }
    let mq = connect(&redis).await;
    let sender = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 1).await;
    assert_eq!(member.assigned[&0].position, 4);
    send_numbers(&*sender, 0, 100..103).await;
    member.until("what is new", |m| m.received.len() == 3).await;
    assert_eq!(member.numbers(), [100, 101, 102]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_left_is_unknown_and_what_has_not_is_not_sent() {
    let redis = options().with_proxy().start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "orders", 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, [0]).await;
    let proxy = redis.proxy().unwrap();
    proxy.set_mode(ProxyMode::Blackhole).unwrap();
    let ((), results) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            redis.cut_connections().unwrap();
        },
        send(&*producer, 0, vec![Message::new("1")])
    );
    let error = results[0].as_ref().unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Connection, Outcome::Unknown)
    );
    // Now nobody is there: nothing leaves, and the deadline says so.
    proxy.set_mode(ProxyMode::Refuse).unwrap();
    redis.cut_connections().unwrap();
    let (batch, waiting) = mq_api::driver::SendBatch::new(
        0,
        vec![Message::new("2")],
        Instant::now() + Duration::from_millis(500),
    );
    producer.send(batch);
    for status in waiting {
        let error = status.await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
    }
    proxy.set_mode(ProxyMode::Pass).unwrap();
    let mut tries = 0;
    while send(&*producer, 0, vec![Message::new("3")]).await[0].is_err() {
        tries += 1;
        assert!(tries < 100);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_256_partitions_has_three_connections_and_wakes_at_once() {
    let redis = options()
        .with_append_fsync(AppendFsync::EverySecond)
        .start()
        .unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "wide", 256).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("all", |m| m.assigned.len() == 256).await;
    send_numbers(&*producer, 200, [7]).await;
    member.until("seven", |m| m.received.len() == 1).await;
    let clients = redis.command(&["CLIENT", "LIST"]).unwrap();
    let ours = clients
        .lines()
        .filter(|line| line.contains("cmd=") && !line.contains("cmd=client|list"))
        .count();
    assert_eq!(ours, 3, "{clients}");
    // The read is blocked by now; a seek, a pause and what comes after it must not wait for its end.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = Instant::now();
    member
        .consumer
        .seek(member.id(200), Position::Earliest, 1)
        .await
        .unwrap();
    member.until("again", |m| m.received.len() == 2).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = Instant::now();
    let reader = mq.reader(topic.clone()).await.unwrap();
    let request = FetchRequest::new(9, Position::Earliest, 1).with_wait(Duration::from_secs(10));
    let (fetched, ()) = tokio::join!(reader.fetch(request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send_numbers(&*producer, 9, [1]).await;
    });
    assert_eq!(fetched.unwrap().records.len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_message_passes_and_one_over_the_servers_limit_is_refused() {
    let redis = options().with_config("proto-max-bulk-len 2mb").start().unwrap();
    let mq = connect(&redis).await;
    let topic = create(&mq, "large", 1).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    let digits = vec![b'1'; 19];
    let mut payload = vec![b'0'; 960 * 1024 - digits.len()];
    payload.extend(&digits);
    send(&*producer, 0, vec![Message::new(payload)]).await[0]
        .as_ref()
        .unwrap();
    member.until("large", |m| m.received.len() == 1).await;
    let result = send(&*producer, 0, vec![Message::new(vec![b'1'; 3 * 1024 * 1024])])
        .await
        .pop()
        .unwrap();
    let error = result.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::MessageTooLarge | ErrorKind::Connection),
        "{error}"
    );
    let mut tries = 0;
    while send(&*producer, 0, vec![Message::new("3")]).await[0].is_err() {
        tries += 1;
        assert!(tries < 100);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
