//! A cluster that is overloaded, asks too often, is killed, and loses its nameserver.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use mq_api::{ErrorKind, Message, Mq, url::ConnectUrl};
use mq_rocketmq::{
    RocketMq,
    client::Decision,
    remoting::{Effect, RemotingError, SendMessage},
};
use test_brokers::{Broker, RocketMqOptions};
use tokio::task::block_in_place;

use super::{
    BROKER, queue, single, soon,
    support::{PATIENCE, cluster, nothing, open, start, text},
};

/// One cluster for all of it, since a broker takes long to boot; what makes it slow comes late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_of_every_kind_loses_nothing() {
    let options = RocketMqOptions::new()
        // Refuses what more than a few send at once.
        .with_config("sendThreadPoolQueueCapacity=8")
        .with_config("sendMessageThreadPoolNums=1")
        // Asks about transactions that it has been told the outcome of.
        .with_config("transactionOpBatchInterval=3000")
        // Forgets every position when it is killed.
        .with_config("flushConsumerOffsetInterval=3600000");
    let troubled = start(options).await;
    two_clusters_in_one_process_never_mix(&troubled).await;
    an_overloaded_broker_refuses_and_stores_nothing(&troubled).await;
    a_broker_that_asks_after_the_outcome_delivers_once(&troubled).await;
    positions_that_a_killed_broker_forgot_cost_repeats_only(&troubled).await;
    the_death_of_the_nameserver_is_not_felt(&troubled).await;
}

async fn two_clusters_in_one_process_never_mix(second: &test_brokers::RocketMq) {
    let first = cluster().await;
    let mut clients = Vec::new();
    for (url, partitions) in [(first.url(), 1), (second.url(), 3)] {
        let (_, mq) = open(&url).await;
        mq.create_topic("same", partitions).await.unwrap();
        let producer = mq.producer("same").await.unwrap();
        assert_eq!(producer.partitions(), partitions);
        // Both brokers have one name, both groups too.
        clients.push((url, mq.consumer("same", "g").await.unwrap(), producer, mq));
    }
    for (url, _, producer, _) in &clients {
        producer.produce_to(0, url.clone()).await.unwrap();
    }
    for (url, consumer, ..) in &clients {
        assert_eq!(text(consumer).await, *url);
        nothing(consumer, Duration::from_millis(200)).await;
    }
    for (.., mq) in clients {
        mq.close().await.unwrap();
    }
}

async fn an_overloaded_broker_refuses_and_stores_nothing(cluster: &test_brokers::RocketMq) {
    let (driver, mq) = open(&format!("{}?call_timeout=60s", cluster.url())).await;
    mq.create_topic("singles", 1).await.unwrap();
    let session = driver.native();
    let body = Bytes::from(vec![7; 64 * 1024]);
    let request = single("singles", 0);
    let sends = (0..500).map(|_| session.send(BROKER, &request, &body, soon()));
    let (mut taken, mut refused) = (0, 0);
    for outcome in join_all(sends).await {
        match outcome {
            Ok(_) => taken += 1,
            Err(error) => {
                assert!(matches!(error, RemotingError::Busy { .. }), "{error}");
                assert_eq!(error.effect(), Effect::NotSent);
                refused += 1;
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    assert!(session.catch_up(BROKER, soon()).await.unwrap());
    let bounds = session.bounds("singles", &queue(0), soon()).await.unwrap();
    assert_eq!(bounds.next, taken);

    // The portable layer sends again what was refused, and each comes once. Delayed ones go alone: of a batch that it has
    // stored, a broker with a full queue may lose the answer, which is a timeout with an unknown outcome.
    mq.create_topic("again", 4).await.unwrap();
    let open_one = async || mq.producer("again").timeout(PATIENCE).await.unwrap();
    let producers = [open_one().await, open_one().await, open_one().await];
    let (producers, each) = (&producers, 10);
    let rounds = producers.iter().zip(0..).map(async |(producer, who)| {
        for round in 0..each {
            let all = (0..4).map(|partition| {
                let message = Message::new(format!("{who} {round} {partition}"));
                producer.produce_to(partition, message.with_delay(Duration::from_millis(1)))
            });
            for sent in join_all(all).await {
                sent.unwrap();
            }
        }
    });
    join_all(rounds).await;
    let consumer = mq.consumer("again", "g").await.unwrap();
    let mut came = BTreeSet::new();
    for _ in 0..3 * each * 4 {
        assert!(came.insert(text(&consumer).await));
    }
    nothing(&consumer, Duration::from_millis(500)).await;
    mq.close().await.unwrap();
}

async fn a_broker_that_asks_after_the_outcome_delivers_once(cluster: &test_brokers::RocketMq) {
    const TIMES: usize = 8;
    let (driver, mq) = open(&cluster.url()).await;
    for topic in ["told-raw", "told"] {
        mq.create_topic(topic, 1).await.unwrap();
    }
    let session = driver.native();
    let mut questions = session.join_producers("raw-tellers");
    session.beat(BROKER, soon()).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let producer = driver
        .transaction_producer("told", "tellers", move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Decision::Commit }
        })
        .await
        .unwrap();
    for number in 0..TIMES {
        let key = session.unique_keys().next();
        let key = key.as_str();
        let properties = format!("TRAN_MSG\u{1}true\u{2}PGROUP\u{1}raw-tellers\u{2}UNIQ_KEY\u{1}{key}\u{2}");
        let request = SendMessage {
            properties: Some(&properties),
            ..single("told-raw", 0)
        };
        let half = session.send_half(BROKER, &request, key, &b"x"[..], soon()).await;
        session
            .end_transaction(
                "raw-tellers",
                "told-raw",
                &half.unwrap(),
                Decision::Commit,
                false,
                soon(),
            )
            .await
            .unwrap();
        let open = producer.begin(0, number.to_string()).await.unwrap();
        if number % 2 == 0 {
            open.commit().await.unwrap();
        } else {
            open.rollback().await.unwrap();
        }
        // Spread over the broker's interval, so that some are asked for before they are noted.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let consumer = mq.consumer("told", "g").await.unwrap();
    for number in (0..TIMES).step_by(2) {
        assert_eq!(text(&consumer).await, number.to_string());
    }
    tokio::time::timeout(PATIENCE, questions.recv())
        .await
        .expect("the broker asks after it was told")
        .unwrap();
    nothing(&consumer, Duration::from_secs(4)).await;
    assert_eq!(
        asked.load(Ordering::SeqCst),
        0,
        "what is decided is no question to the check"
    );
    producer.close().await;
    mq.close().await.unwrap();
}

async fn positions_that_a_killed_broker_forgot_cost_repeats_only(cluster: &test_brokers::RocketMq) {
    let (_, mq) = open(&format!("{}?route_refresh=500ms", cluster.url())).await;
    mq.create_topic("young", 1).await.unwrap();
    let producer = mq.producer("young").await.unwrap();
    let consumer = mq.consumer("young", "g").await.unwrap();
    for number in 0..20 {
        producer.produce(number.to_string()).await.unwrap();
        assert_eq!(text(&consumer).await, number.to_string());
    }
    consumer.commit().await.unwrap();
    let stored = mq.committed("young", "g").await.unwrap();
    assert_eq!(stored.first().map(|one| one.position), Some(20));
    consumer.close().await.unwrap();
    block_in_place(|| {
        let broker = &cluster.masters()[0];
        broker.kill().unwrap();
        cluster.start_node(broker).unwrap();
    });
    let begun = tokio::time::Instant::now();
    while let Err(error) = producer.produce("later").await {
        assert_ne!(error.kind(), ErrorKind::Closed);
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
    let consumer = mq.consumer("young", "g").await.unwrap();
    for number in 0..20 {
        assert_eq!(text(&consumer).await, number.to_string());
    }
    assert_eq!(text(&consumer).await, "later");
    mq.close().await.unwrap();
}

async fn the_death_of_the_nameserver_is_not_felt(cluster: &test_brokers::RocketMq) {
    let folder = std::env::temp_dir().join(format!("mq-rocketmq-facts-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("routes.json");
    let url = format!(
        "{}?route_refresh=200ms&call_timeout=5s&route_snapshot={}",
        cluster.url(),
        path.display()
    );
    let (_, mq) = open(&url).await;
    mq.create_topic("kept", 2).await.unwrap();
    let producer = mq.producer("kept").await.unwrap();
    let consumer = mq.consumer("kept", "g").await.unwrap();
    let holds = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"kept\""));
    while !holds(&path) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    block_in_place(|| cluster.name_servers()[0].kill().unwrap());
    let send_and_take = async |mq: &Mq, producer: &mq_api::Producer, consumer: &mq_api::Consumer| {
        for number in 0..50 {
            producer.produce_to(number % 2, number.to_string()).await.unwrap();
        }
        for _ in 0..50 {
            text(consumer).await;
        }
        mq.lag("kept", "g").await.unwrap();
    };
    send_and_take(&mq, &producer, &consumer).await;
    let more = mq.producer("kept").await.unwrap();
    send_and_take(&mq, &more, &consumer).await;
    consumer.close().await.unwrap();
    // One that comes now knows the routes from the file of the other one.
    let (_, late) = open(&url).await;
    let producer = late.producer("kept").await.unwrap();
    let consumer = late.consumer("kept", "g").await.unwrap();
    send_and_take(&late, &producer, &consumer).await;
    let without = ConnectUrl::parse(&format!("{}?call_timeout=2s", cluster.url())).unwrap();
    let error = RocketMq::connect(&without).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    late.close().await.unwrap();
    mq.close().await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}
