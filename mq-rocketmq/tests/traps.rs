//! What RocketMQ is known to surprise clients with, on real clusters.
//!
//! Each fact and the test that holds the driver to it; names without a file are in this one, `suite` is the conformance
//! suite on real clusters (`tests/conformance.rs`) with the case's number.
//!
//! | fact | test |
//! |---|---|
//! | sends under way together are stored in any order | `facts`: `order_holds_with_a_thousand_sends_in_flight`; `suite` P6 |
//! | a commit of a group that does not exist is refused, silently if one-way | `extensions`: `brokers_keep_to_what_the_driver_knows_of_them` |
//! | a new group on a small topic is told 0 (`setZeroIfNotFound`) | the same; `client`: `stored_offsets_are_asked_for_without_the_zero_of_small_topics`; `facts`: `a_position_beyond_the_end_goes_on_at_the_end` |
//! | what comes back by POP is acked on the retry topic; acks twice or late are answered | `facts`: `a_popped_message_that_came_back_is_settled_on_the_retry_topic_only`; `suite` A2s, A3s |
//! | an outcome told twice delivers twice | `facts`: `trouble_of_every_kind_loses_nothing` (transactions) |
//! | a broker asks after the outcome that it was told | the same |
//! | one commit makes a broker spin | such tests have clusters of their own |
//! | a long poll overruns its wait | `extensions`: `brokers_keep_to_what_the_driver_knows_of_them` |
//! | receipts of delayed messages name another queue's offset | `messages_of_every_shape_go_through` |
//! | an empty body that comes alone fails | the same; `facts`: `brokers_refuse_by_the_codes_that_the_driver_knows` |
//! | a body over 16 MiB costs the connection | `extensions`: `brokers_keep_to_what_the_driver_knows_of_them` |
//! | a topic that is created again is overwritten; senseless counts are taken | `facts`: `creating_again_changes_nothing_though_a_broker_overwrites` |
//! | a pull gives 32 messages | `extensions`: `brokers_keep_to_what_the_driver_knows_of_them` |
//! | a broker that is killed forgets young commits | `facts`: `trouble_of_every_kind_loses_nothing` (positions) |
//! | commits are taken unchecked; pulls beyond the end are moved | `facts`: `a_position_beyond_the_end_goes_on_at_the_end` |
//! | empty keys and values are dropped, U+0002 cuts | `facts`: `every_byte_survives_in_keys_ids_and_headers` |
//! | batched messages get no unique key | `facts`: `order_holds_with_a_thousand_sends_in_flight` |
//! | overload is code 2, and nothing is stored | `facts`: `trouble_of_every_kind_loses_nothing` (overload); `connection`: `overload_is_busy_and_not_sent` |
//! | a broker whose queue of sends is full stores a batch and loses the answer | a timeout, `Unknown`: `suite` P13 has one |
//! | every refusal of access control has one code | `tls_and_access_control_tell_who_may_come_in` |
//! | a frozen member is listed for two minutes | `suite` C14 |
//! | a member is listed once for each connection | `facts`: `members_are_counted_once_though_a_broker_lists_each_connection` |
//! | a lock outlives its holder by a minute | `extensions`: `brokers_keep_to_what_the_driver_knows_of_them`; `facts`: `the_queue_of_a_member_that_died_is_taken_over_long_before_its_lock_ends` |
//! | a frozen broker stores what timed out | `suite` P13, F3 |
//! | a killed broker leaves the route at once, and its slave stays in it | `a_dead_master_fails_its_partitions_and_moves_no_key`; `extensions`: `a_slave_is_read_while_the_master_is_gone` |
//! | a slave answers reads only with `slaveReadEnable`, a master waits for it only with `inSyncReplicas=2` | the latter, whose cluster is set up so |
//! | a dead nameserver | the same; `facts`: `trouble_of_every_kind_loses_nothing` (nameserver); `client`: `a_silent_or_dead_nameserver_leaves_time_for_the_next` |
//!
//! What users asked of the Go client: a consumer that pulls (`suite` R1 to R7), what a closed client leaves behind
//! (`suite` Z7, Z8: tasks, threads and descriptors; `client`: `a_dropped_cluster_and_session_leave_no_task_and_no_connection`),
//! lost and wrong offsets (`facts`, above; `extensions`: `an_operator_moves_a_group_that_is_at_work`), rebalances (`suite` C4
//! to C7), two clusters in one process (`facts`: `trouble_of_every_kind_loses_nothing`), any delay (`suite` D1 to D3), TLS
//! (`tls_and_access_control_tell_who_may_come_in`), order (`suite` O1, C3).

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mq_api::{ErrorKind, Message, Mode, Mq, Outcome, Support, url::ConnectUrl};
use mq_rocketmq::{
    RocketMq,
    client::Decision,
    remoting::{Fields, JsonBody, Request},
};
use support::{PATIENCE, nothing, open, start, text};
use test_brokers::{Broker, RocketMqOptions};

/// A server of its own: a broker that has seen a commit burns a core until it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_delivered_once_when_it_commits_and_asked_for_when_it_is_left_open() {
    let cluster = start(RocketMqOptions::new()).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let (driver, mq) = open(&cluster.url()).await;
    mq.create_topic("orders", 1).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let producer = driver
        .transaction_producer("orders", "checkout", move |message: Message| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                match message.payload_or_empty() {
                    b"left open" => Decision::Commit,
                    _ => Decision::Rollback,
                }
            }
        })
        .await
        .unwrap();
    let consumer = mq.consumer("orders", "billing").await.unwrap();
    let committed = producer
        .begin(0, Message::new("committed").with_key("k").with_header("h", "v"))
        .await
        .unwrap();
    let rolled_back = producer.begin(0, "rolled back").await.unwrap();
    // The broker asks after `transactionTimeOut`, here a second; what is about to be decided is left open.
    nothing(&consumer, Duration::from_secs(3)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    committed.commit().await.unwrap();
    rolled_back.rollback().await.unwrap();
    let delivery = consumer.consume().await.unwrap();
    assert_eq!(delivery.payload(), b"committed");
    assert_eq!(delivery.key().map(|key| &key[..]), Some(&b"k"[..]));
    assert_eq!(delivery.headers().iter().len(), 1);
    delivery.ack().unwrap();
    drop(producer.begin(0, "left open").await.unwrap());
    drop(producer.begin(0, "forgotten").await.unwrap());
    assert_eq!(text(&consumer).await, "left open");
    nothing(&consumer, Duration::from_secs(4)).await;
    assert!(asked.load(Ordering::SeqCst) >= 2);
    let refused = producer
        .begin(0, Message::new("x").with_delay(Duration::from_secs(1)))
        .await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidMessage);
    assert_eq!(
        producer.begin(1, "x").await.unwrap_err().kind(),
        ErrorKind::InvalidPartition
    );
    producer.close().await;
    mq.close().await.unwrap();
    drop((producer, consumer, mq, driver));
    while tasks() > before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_master_fails_its_partitions_and_moves_no_key() {
    let cluster = Arc::new(start(RocketMqOptions::new().with_masters(2).with_name_servers(2)).await);
    let (_, mq) = open(&format!("{}?route_refresh=500ms", cluster.url())).await;
    mq.create_topic("orders", 4).await.unwrap();
    let producer = mq
        .producer("orders")
        .timeout(Duration::from_secs(3))
        .await
        .unwrap();
    // Two tries where a message belongs, a third one elsewhere.
    let free = mq.producer("orders").timeout(PATIENCE).retries(2).await.unwrap();
    let once = mq.producer("orders").timeout(PATIENCE).retries(0).await.unwrap();
    let consumer = mq.consumer("orders", "g").await.unwrap();
    let key = |number: u32| format!("user-{number}");
    let mut places = Vec::new();
    for number in 0..16 {
        let receipt = producer
            .produce(Message::new("before").with_key(key(number)))
            .await
            .unwrap();
        places.push(receipt.partition);
    }
    assert!(places.iter().any(|place| *place < 2) && places.iter().any(|place| *place >= 2));
    let mut used = BTreeSet::new();
    let mut before = 16;
    while used.len() < 4 {
        used.insert(free.produce("before").await.unwrap().partition);
        before += 1;
    }
    for _ in 0..before {
        assert_eq!(text(&consumer).await, "before");
    }
    // The broker forgets it when it is killed; the member does not.
    consumer.commit().await.unwrap();
    let dying = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || {
        dying.masters()[1].kill().unwrap();
        dying.name_servers()[0].kill().unwrap();
    })
    .await
    .unwrap();
    let mut sent = 0;
    for (number, place) in (0..16).zip(&places) {
        let message = Message::new("after").with_key(key(number));
        match producer.produce(message).await {
            Ok(receipt) => {
                sent += 1;
                assert_eq!(receipt.partition, *place, "a key moved");
                assert!(*place < 2);
            }
            Err(error) => {
                assert!(*place >= 2, "{error}");
                // The first one may have been on its way when the connection broke.
                assert!(error.is_retryable(), "{error}");
            }
        }
    }
    assert_eq!(sent, places.iter().filter(|place| **place < 2).count());
    let error = producer.produce_to(3, "x").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
    // Not in time but in number: a send that may not be repeated fails at once, one that may be goes elsewhere.
    let begun = Instant::now();
    let error = once.produce_to(3, "x").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
    for _ in 0..12 {
        assert!(free.produce("after").await.unwrap().partition < 2);
    }
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    assert!(free.status().retried > 0);
    for _ in 0..sent + 12 {
        assert_eq!(text(&consumer).await, "after");
    }
    // A client that comes now numbers partitions as those before it.
    let (_, late) = open(&cluster.url()).await;
    assert_eq!(late.producer("orders").await.unwrap().partitions(), 4);
    let back = Arc::clone(&cluster);
    tokio::task::spawn_blocking(move || back.start().unwrap())
        .await
        .unwrap();
    let begun = Instant::now();
    loop {
        match producer.produce_to(3, "again").await {
            Ok(_) => break,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    }
    assert_eq!(text(&consumer).await, "again");
    late.close().await.unwrap();
    // One queue, on the first broker; the second one comes later, to a shared group that is at work.
    mq.create_topic("growing", 1).await.unwrap();
    let shared = mq.consumer("growing", "g").mode(Mode::Shared).await.unwrap();
    let producer = mq.producer("growing").await.unwrap();
    producer.produce("here").await.unwrap();
    assert_eq!(text(&shared).await, "here");
    mq.add_partitions("growing", 2).await.unwrap();
    while producer.partitions() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    producer.produce_to(1, "there").await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, shared.consume())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((delivery.payload(), delivery.partition()), (&b"there"[..], 1));
    delivery.ack().unwrap();
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_shape_go_through() {
    let cluster = start(RocketMqOptions::new()).await;
    let (_, mq) = open(&format!("{}?tag_header=kind&namespace=dev", cluster.url())).await;
    mq.create_topic("shapes.eu", 1).await.unwrap();
    let producer = mq
        .producer("shapes.eu")
        .max_payload(4 * 1024 * 1024 - 128 * 1024)
        .await
        .unwrap();
    let tagged = mq
        .consumer("shapes.eu", "red")
        .property("tags", "red || green")
        .await
        .unwrap();
    let delay = Duration::from_millis(300);
    let odd = |message: Message| {
        message
            .with_header("z", "1")
            .with_header("DELAY", "\u{1}")
            .with_header("a", "")
    };
    // Brokers fail on an empty body that comes alone, which delayed messages do.
    let shapes = [
        odd(Message::new("").with_delay(delay)),
        odd(Message::tombstone("k").with_delay(delay)),
        odd(Message::new("").with_id("i")),
        Message::new(vec![7; 4 * 1024 * 1024 - 128 * 1024]),
    ];
    for message in &shapes {
        let receipt = producer.produce(message.clone()).await.unwrap();
        assert_eq!(receipt.offset.is_some(), message.due().is_none());
    }
    let all = mq.consumer("shapes.eu", "all").await.unwrap();
    let mut came = Vec::new();
    for _ in &shapes {
        let delivery = tokio::time::timeout(PATIENCE, all.consume())
            .await
            .unwrap()
            .unwrap();
        came.push(delivery.message().clone());
        delivery.ack().unwrap();
    }
    for mut message in shapes {
        message.clear_due();
        assert!(came.contains(&message), "{message:?} is not among {came:?}");
    }
    for kind in ["red", "blue", "green"] {
        let message = Message::new(kind).with_header("kind", kind);
        producer.produce(message).await.unwrap();
    }
    for kind in ["red", "green"] {
        assert_eq!(text(&tagged).await, kind);
    }
    nothing(&tagged, Duration::from_millis(300)).await;
    assert_eq!(mq.capabilities().shared_latest, Support::Unsupported);
    let (_, other) = open(&cluster.url()).await;
    assert!(other.list_topics().await.unwrap().is_empty());
    assert_eq!(mq.list_topics().await.unwrap().len(), 1);
    mq.delete_topic("shapes.eu").await.unwrap();
    let left = tokio::task::spawn_blocking(move || cluster.tool(&["topicList"]).unwrap())
        .await
        .unwrap();
    assert!(!left.contains("shapes"), "{left}");
}

/// Makes a user and says what it may do: brokers of version 5 keep both themselves.
struct Grant {
    code: i32,
    field: (&'static str, String),
}

impl Request for Grant {
    fn code(&self) -> i32 {
        self.code
    }

    fn write(&self, fields: &mut Fields<'_>) {
        fields.put(self.field.0, self.field.1.as_str());
    }
}

async fn add_user(driver: &RocketMq, name: &str, policies: serde_json::Value) {
    const CREATE_USER: i32 = 3001;
    const CREATE_ACL: i32 = 3006;
    let user = serde_json::json!({
        "username": name, "password": format!("{name}-secret"), "userType": "Normal", "userStatus": "enable",
    });
    let subject = format!("User:{name}");
    let rights = serde_json::json!({
        "subject": subject, "policies": [{"policyType": "Custom", "entries": policies}],
    });
    let mut orders = vec![(CREATE_USER, ("username", name.to_owned()), user)];
    if policies.as_array().is_some_and(|all| !all.is_empty()) {
        orders.push((CREATE_ACL, ("subject", subject), rights));
    }
    for (code, field, body) in orders {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        driver
            .native()
            .ask("broker-a", &Grant { code, field }, &JsonBody(&body), deadline)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_access_control_tell_who_may_come_in() {
    let cluster = start(RocketMqOptions::new().with_tls().with_access_control()).await;
    let ca = cluster.certificates().unwrap().ca_file();
    let hosts = cluster.url().replace("rocketmq+tls://", "");
    let parse = |url: &str| ConnectUrl::parse(url).unwrap();
    let url = |user: &str| parse(&format!("rocketmq+tls://{user}@{hosts}?tls_ca={}", ca.display()));
    let driver = RocketMq::connect(&url("admin:admin-secret")).await.unwrap();
    add_user(&driver, "nothing", serde_json::json!([])).await;
    let reading = serde_json::json!([
        {"resource": "Topic:orders", "actions": ["Sub", "Get"], "decision": "Allow"},
        {"resource": "Group:*", "actions": ["Sub", "Get"], "decision": "Allow"},
    ]);
    add_user(&driver, "reader", reading).await;
    let mq = Mq::from_driver(driver);
    mq.create_topic("orders", 1).await.unwrap();
    mq.producer("orders").await.unwrap().produce("x").await.unwrap();
    let consumer = mq.consumer("orders", "g").mode(Mode::Partitioned).await.unwrap();
    assert_eq!(text(&consumer).await, "x");

    // Who is not who it says is told so by `connect`.
    for user in ["admin:wr0ng", "nobody:wr0ng"] {
        let begun = Instant::now();
        let error = RocketMq::connect(&url(user)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(!format!("{error:?} {error}").contains("wr0ng"));
    }
    // Who is known and may not is told so by the call.
    let known = Mq::from_driver(RocketMq::connect(&url("nothing:nothing-secret")).await.unwrap());
    let created = known.create_topic("other", 1).await;
    let joined = known.consumer("orders", "h").await.map(drop);
    let sent = known.producer("orders").await.unwrap().produce("x").await;
    for refused in [created, joined, sent.map(drop)] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(!error.is_retryable() && !error.to_string().contains("nothing-secret"));
    }
    let reader = Mq::from_driver(RocketMq::connect(&url("reader:reader-secret")).await.unwrap());
    let consumer = reader.consumer("orders", "h").await.unwrap();
    assert_eq!(text(&consumer).await, "x");
    consumer.commit().await.unwrap();
    let error = reader
        .producer("orders")
        .await
        .unwrap()
        .produce("x")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert_eq!(error.outcome(), Outcome::NotSent);

    // A certificate of nobody that is known, one of another name, and no TLS at all.
    let error = RocketMq::connect(&parse(&cluster.url())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    let other = format!(
        "{}?tls_ca={}&tls_name=elsewhere.test",
        cluster.url(),
        ca.display()
    );
    let error = RocketMq::connect(&parse(&other)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    let plain = format!("rocketmq://{hosts}?call_timeout=3s");
    let error = RocketMq::connect(&parse(&plain)).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout),
        "{error}"
    );
    let blind = format!("rocketmq+tls://reader:reader-secret@{hosts}?tls_insecure=true");
    RocketMq::connect(&parse(&blind)).await.unwrap();
    for client in [mq, known, reader] {
        client.close().await.unwrap();
    }
}
