//! What is known to go wrong with RabbitMQ and its clients, on a real server.
//!
//! | trap | test |
//! |---|---|
//! | wrong password, virtual host, permissions | `who_may_not_come_in_is_told_why` |
//! | wrong authority, wrong host name, plaintext against TLS and the other way round | `tls_is_checked` |
//! | a server that accepts and says nothing | `a_silent_server_meets_the_connect_deadline`, F6 |
//! | a frame of 4 GiB announced | `a_frame_of_4_gib_announced_takes_no_memory`, F6 |
//! | two publishing tasks and a returned message's result | `producers_side_by_side_get_their_own_results` |
//! | a message above the server's limit, 16 MiB on RabbitMQ 4 | `a_message_above_the_servers_limit_is_refused_alone`, P10 |
//! | connections cut by an outside hand | `connections_cut_by_an_outside_hand_come_back`, F2 |
//! | memory alarm, and groups that cannot renew their leases in it | `a_memory_alarm_gives_back_pressure_and_passes` |
//! | `consumer_timeout` | `a_holder_taken_for_stuck_begins_again` |
//! | a member dropped while it waits for a token | `a_member_dropped_while_it_waits_leaves_nothing_active` |
//! | a node of several that is down | `the_next_host_is_tried` |
//! | answers that wait behind deliveries | `partitioned.rs`: `many_full_partitions_are_not_all_sent_ahead_of_what_renews_a_lease` |
//! | heartbeat loss, a late commit | `partitioned.rs`: `a_dead_members_partitions_are_taken_over_and_its_late_commit_is_refused` |
//! | a server killed and back, 404 "home node is down", 541 | `partitioned.rs`: `a_cut_begins_a_new_session_and_a_killed_server_too`, F1; `error.rs`: `every_refusal_has_its_kind` |
//! | a publish into the first quarter second after a start | F1, D2 |
//! | a member frozen and thawed | C14 |
//! | numbers of channels that the client library answers with an old error | `questions_about_what_is_not_there_wear_nothing_out` |
//! | a consumer that is polled when its runtime is gone | `polling_after_the_runtimes_end_does_not_panic` |
//! | a shared member leaves while it copies into the group's queue | `shared_members_that_leave_double_nothing` |
//! | ghost members | `group.rs`: `every_member_is_probed_in_turn`, C7 |
//! | names longer than 255 bytes | `existing.rs`: `what_names_nothing_or_too_much_is_refused_with_its_rule`, T3 |
//!
//! Names such as F1 are cases of the conformance suite.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpListener,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use mq_amqp::{AmqpConfig, AmqpMq};
use mq_api::{
    ErrorKind, Message, Mode, Position,
    driver::{Event, Mq},
    url::ConnectUrl,
};
use support::*;
use test_brokers::{RabbitMq, RabbitMqVersion};

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
    let rabbit = options().with_tls_for(&["localhost"]).start().unwrap();
    who_may_not_come_in_is_told_why(&rabbit).await;
    tls_is_checked(&rabbit).await;
    a_silent_server_meets_the_connect_deadline(&rabbit).await;
    producers_side_by_side_get_their_own_results(&rabbit).await;
    connections_cut_by_an_outside_hand_come_back(&rabbit).await;
    a_message_above_the_servers_limit_is_refused_alone(&rabbit).await;
    a_member_dropped_while_it_waits_leaves_nothing_active(&rabbit).await;
    shared_members_that_leave_double_nothing(&rabbit).await;
    a_holder_taken_for_stuck_begins_again(&rabbit).await;
    the_next_host_is_tried(&rabbit).await;
    questions_about_what_is_not_there_wear_nothing_out(&rabbit).await;
    polling_after_the_runtimes_end_does_not_panic(&rabbit).await;
    a_memory_alarm_gives_back_pressure_and_passes(&rabbit).await;
}

/// Returns how much memory this process uses, in bytes.
fn memory() -> usize {
    let words = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = words
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_of_4_gib_announced_takes_no_memory() {
    const MOST: usize = 64 * 1024 * 1024;
    let liar = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = liar.local_addr().unwrap().port();
    let lies = std::thread::spawn(move || {
        let (mut socket, _) = liar.accept().unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.read_exact(&mut [0; 8]).unwrap();
        // A method on channel 0, and then as much of it as is taken.
        socket.write_all(&[1, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap();
        let mut taken = 0;
        while taken < 4 * MOST && socket.write_all(&[0; 65536]).is_ok() {
            taken += 65536;
        }
        taken
    });
    let before = memory();
    let kind = refusal(AmqpConfig::new("127.0.0.1", port)).await;
    assert!(
        matches!(
            kind,
            ErrorKind::Protocol | ErrorKind::Connection | ErrorKind::Timeout
        ),
        "{kind:?}"
    );
    let grown = memory().saturating_sub(before);
    assert!(grown < MOST, "{grown} bytes for a frame that is not there");
    let taken = lies.join().unwrap();
    assert!(taken < MOST, "{taken} bytes were read");
}

async fn a_message_above_the_servers_limit_is_refused_alone(rabbit: &RabbitMq) {
    let limit = |bytes: usize| {
        let set = format!(
            "application:set_env(rabbit, max_message_size, {bytes}), persistent_term:put(max_message_size, {bytes})."
        );
        rabbit.control(&["eval", &set]).unwrap();
    };
    limit(1024 * 1024);
    let mq = connect(rabbit).await;
    let topic = create(&mq, "large", 1).await;
    let producer = producer(&mq, &topic).await;
    let result = send(&*producer, 0, vec![Message::new(vec![7; 2 * 1024 * 1024])])
        .await
        .pop()
        .unwrap();
    let error = result.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::MessageTooLarge, mq_api::Outcome::NotSent),
        "{error}"
    );
    send_numbers(&*producer, 0, [5]).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("the next one", |m| m.numbers() == [5]).await;
    mq.close().await.unwrap();
    limit(16 * 1024 * 1024);
}

async fn a_member_dropped_while_it_waits_leaves_nothing_active(rabbit: &RabbitMq) {
    let (one, two) = (connect(rabbit).await, connect(rabbit).await);
    let topic = create(&one, "dropped", 2).await;
    let mut stays = join(&one, subscription(&topic, "g")).await;
    stays.until("both", |m| m.assigned.len() == 2).await;
    // It is asked for one of them and does not answer yet: the other member waits for the token.
    let waits = join(&two, subscription(&topic, "g")).await;
    let begun = Instant::now();
    loop {
        let queues = rabbit.control(&["list_queues", "name", "consumers"]).unwrap();
        if queues
            .lines()
            .any(|line| line.contains("mq:dropped:") && line.contains(":token:") && line.ends_with("\t2"))
        {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody waits: {queues}");
    }
    drop(waits);
    stays
        .until("given back and taken again", |m| {
            m.assigned.len() == 2 && m.assigned.values().any(|assignment| assignment.id.epoch > 1)
        })
        .await;
    let producer = producer(&one, &topic).await;
    for partition in 0..2 {
        send_numbers(&*producer, partition, [u64::from(partition)]).await;
    }
    stays.until("of both", |m| m.received.len() == 2).await;
    stays.consumer.close().await.unwrap();
}

/// Members leave while they copy into the group's queue.
async fn shared_members_that_leave_double_nothing(rabbit: &RabbitMq) {
    const ALL: usize = 6000;
    let mq = mq_api::Mq::from_driver(connect(rabbit).await);
    mq.create_topic("left", 1).await.unwrap();
    let producer = mq.producer("left").await.unwrap();
    let numbers = (0..ALL).map(|number| number.to_string());
    for result in producer.produce_batch(numbers).await {
        result.unwrap();
    }
    let mut seen = std::collections::HashSet::new();
    let mut at_once = 1;
    while seen.len() < ALL {
        let consumer = mq.consumer("left", "g").mode(Mode::Shared).await.unwrap();
        // The last of 20 members takes what is left.
        at_once = if at_once < 20 { at_once + 1 } else { ALL };
        for _ in 0..at_once.min(ALL - seen.len()) {
            let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
                .await
                .expect("a message")
                .unwrap();
            let number = String::from_utf8(delivery.payload().to_vec()).unwrap();
            delivery.ack().unwrap();
            assert!(seen.insert(number.clone()), "{number} came twice");
        }
        consumer.close().await.unwrap();
    }
    mq.close().await.unwrap();
}

async fn a_holder_taken_for_stuck_begins_again(rabbit: &RabbitMq) {
    if RabbitMqVersion::from_environment().unwrap() != RabbitMqVersion::V3 {
        // RabbitMQ 4.3 leaves the holder of a classic queue's message alone.
        return;
    }
    let holders = |timeout: u32, look: u32| {
        let set = format!(
            "application:set_env(rabbit, consumer_timeout, {timeout}), \
             application:set_env(rabbit, channel_tick_interval, {look})."
        );
        rabbit.control(&["eval", &set]).unwrap();
    };
    holders(1500, 300);
    let mq = connect(rabbit).await;
    let topic = create(&mq, "stuck", 1).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("lost", |m| !m.lost.is_empty()).await;
    holders(1_800_000, 60_000);
    member.until("taken again", |m| m.assigned.len() == 1).await;
    let producer = producer(&mq, &topic).await;
    send_numbers(&*producer, 0, [5]).await;
    member.until("at work", |m| m.numbers().contains(&5)).await;
    mq.close().await.unwrap();
}

async fn the_next_host_is_tried(rabbit: &RabbitMq) {
    let good = config(rabbit);
    let mut several = good.clone().with_other_host(good.host.clone(), good.port);
    // Nobody listens there as long as it is held.
    let refused = test_brokers::refused_address().unwrap();
    several.port = refused.number();
    let mq = AmqpMq::connect_with(several).await.unwrap();
    create(&mq, "anywhere", 1).await;
    mq.close().await.unwrap();
}

async fn questions_about_what_is_not_there_wear_nothing_out(rabbit: &RabbitMq) {
    let channels = |most: u32| {
        let set = format!("application:set_env(rabbit, channel_max, {most}).");
        rabbit.control(&["eval", &set]).unwrap();
    };
    channels(16);
    let mq = connect(rabbit).await;
    let there = create(&mq, "there", 1).await;
    let producer = producer(&mq, &there).await;
    let mut member = join(&mq, subscription(&there, "g")).await;
    member.until("assigned", |m| m.assigned.len() == 1).await;
    for _ in 0..60 {
        // The server ends a channel with each of these answers.
        let error = mq.describe_topic(topic("elsewhere")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TopicNotFound, "{error}");
        mq.describe_topic(there.clone()).await.unwrap();
    }
    send_numbers(&*producer, 0, [5]).await;
    member.until("the next one", |m| m.numbers() == [5]).await;
    assert!(member.lost.is_empty() && member.outages == 0);
    mq.close().await.unwrap();
    channels(2047);
}

async fn polling_after_the_runtimes_end_does_not_panic(rabbit: &RabbitMq) {
    let config = config(rabbit);
    let polls = move || {
        let mut noop = Context::from_waker(Waker::noop());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (mut member, consumer) = runtime.block_on(async {
            let driver = AmqpMq::connect_with(config).await.unwrap();
            let topic = create(&driver, "orphaned", 1).await;
            let producer = producer(&driver, &topic).await;
            send_numbers(&*producer, 0, 0..9).await;
            let mut member = join(&driver, subscription(&topic, "member")).await;
            member.until("the first", |m| !m.received.is_empty()).await;
            let mq = mq_api::Mq::from_driver(driver);
            let consumer = mq.consumer(&topic, "consumer").await.unwrap();
            consumer.consume().await.unwrap().ack().unwrap();
            // What fetches has to open a channel again, which has a deadline.
            member
                .consumer
                .seek(member.id(0), Position::Earliest, 1)
                .await
                .unwrap();
            (member, consumer)
        });
        runtime.shutdown_timeout(PATIENCE);
        for _ in 0..20 {
            let _ = member.events.poll_event(&mut noop);
            let mut consume = std::pin::pin!(consumer.consume());
            let _ = consume.as_mut().poll(&mut noop);
        }
    };
    tokio::task::spawn_blocking(polls).await.unwrap();
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
    assert_eq!(refusal(bare.clone()).await, ErrorKind::Tls);
    let mut misnamed = trusted(bare);
    // The certificate is for another name of the same address.
    misnamed.host = "127.0.0.1".to_owned();
    assert_eq!(refusal(misnamed).await, ErrorKind::Tls);
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
    let mut soon_over = subscription(&topic, "g");
    soon_over.session_timeout = Some(Duration::from_secs(3));
    let mut member = join(&mq, soon_over).await;
    member.until("the first", |m| m.numbers().contains(&0)).await;
    rabbit
        .control(&["set_vm_memory_high_watermark", "absolute", "1MB"])
        .unwrap();
    the_outage_is_told_to_be_a_full_server(&mut member).await;
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
    member
        .until("what was sent meanwhile", |m| m.numbers().contains(&1))
        .await;
}

/// On a busy machine there may be another outage before.
async fn the_outage_is_told_to_be_a_full_server(member: &mut Member) {
    let deadline = Instant::now() + PATIENCE;
    let mut told = Vec::new();
    while Instant::now() < deadline {
        match member.next_event(Duration::from_millis(100)).await {
            Some(Ok(Event::Outage(error))) if error.kind() == ErrorKind::ResourceExhausted => return,
            Some(Ok(Event::Outage(error))) => told.push(error),
            Some(event) => drop(event.unwrap()),
            None => {}
        }
    }
    panic!("other outages were told: {told:?}");
}
