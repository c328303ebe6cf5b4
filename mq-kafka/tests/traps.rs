//! What has gone wrong with Kafka before, each as a test on a real broker. One broker serves most of the file.
//!
//! | trap | its test |
//! |---|---|
//! | new partitions stay unseen by a running producer and consumer | `new_partitions_are_used_by_a_running_producer_and_consumer` |
//! | a topic is deleted under a running consumer, which hears nothing, or a producer, which waits 300 s | `a_deleted_topic_ends_a_running_consumer_and_a_producer` |
//! | a produce to an unknown topic takes 30 s to fail | `an_unknown_topic_is_refused_in_about_a_second` |
//! | a commit blocks while the coordinator is away | `faults.rs`: `a_commit_ends_in_its_time_and_hand_over_goes_on_while_the_coordinator_is_away` |
//! | commit metadata over 4000 bytes fails the whole commit | `more_acks_above_the_position_than_its_metadata_holds_are_cut_off` |
//! | an oversized message among good ones | `partitioned.rs`: `an_oversized_message_fails_alone` |
//! | a consumer is dropped with its broker down | `faults.rs`: `what_is_dropped_or_closed_without_a_broker_ends_in_time` |
//! | topic names that collide | `names_that_collide_in_kafka_never_meet` |
//! | a wake-up is lost, which a periodic look hides | `no_wake_up_is_lost` |
//! | storms of rebalances | `a_storm_of_rebalances_loses_nothing`, `a_member_without_partitions_that_closes_holds_nobody_up` |
//! | a partition refused at its takeover is begun at its end, where the library jumps late | `a_partition_refused_at_takeover_is_read_from_where_the_group_stands` |
//! | kill -9 of the broker, and a freeze of 8 s | `faults.rs`: `a_broker_that_is_killed_loses_nothing`, `a_broker_that_stands_still_for_eight_seconds_loses_nothing` |
//! | one of three brokers is killed | `cluster.rs` |
//! | a broker that does not tell where a partition ends holds up the group | `a_lookup_without_an_answer_holds_up_no_rebalance` |
//! | messages of aborted transactions | `messages_of_aborted_transactions_are_not_seen` |
//! | brokers that are absent, silent, nameless or send 64 MB of junk | `faults.rs`: `absent_silent_babbling_and_nameless_brokers_are_typed_errors_in_time`, `a_good_broker_on_a_bad_address_is_used` |
//! | logins, certificates and rights that are wrong | `security.rs` |

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{
    Clock, ErrorKind, Message, Position, TopicName, TopicSpec,
    driver::{Commit, CommitOutcome, CommittedRequest, Event, Mq},
};
use mq_kafka::KafkaMq;
use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use support::{meddler::Meddler, *};
use test_brokers::{Broker as _, Kafka, KafkaOptions};

/// Starts a broker that does not count itself as gone where the machine is busy: that would end sessions.
fn patient_broker() -> Kafka {
    let options = KafkaOptions::new().with_config("broker.session.timeout.ms=30000");
    options.start().unwrap()
}

/// What counts as "in a moment": far below the library's own limits of 30 s and 300 s.
const SOON: Duration = Duration::from_secs(8);

async fn new_partitions_are_used_by_a_running_producer_and_consumer(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("grows", 1).await.unwrap();
    let producer = mq.producer("grows").await.unwrap();
    let consumer = mq.consumer("grows", "g").await.unwrap();
    producer.produce("warm").await.unwrap();
    consumer.consume().await.unwrap().ack().unwrap();
    mq.add_partitions("grows", 3).await.unwrap();
    let begin = Instant::now();
    while producer.partitions() < 3 || consumer.assignment().len() < 3 {
        assert!(begin.elapsed() < SOON, "{consumer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for partition in 0..3 {
        producer.produce_to(partition, "x").await.unwrap();
        assert_eq!(consumer.consume().await.unwrap().partition(), partition);
    }
    mq.close().await.unwrap();
}

async fn a_deleted_topic_ends_a_running_consumer_and_a_producer(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("deleted", 2).await.unwrap();
    let producer = mq.producer("deleted").await.unwrap();
    let consumer = mq.consumer("deleted", "g").await.unwrap();
    producer.produce("warm").await.unwrap();
    consumer.consume().await.unwrap().ack().unwrap();
    mq.delete_topic("deleted").await.unwrap();
    let begin = Instant::now();
    let refused = tokio::time::timeout(SOON, producer.produce("late"))
        .await
        .unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TopicNotFound);
    let ended = tokio::time::timeout(SOON, consumer.consume()).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::TopicNotFound);
    assert!(begin.elapsed() < SOON);
    assert_eq!(
        mq.close()
            .await
            .map_err(|error| error.kind())
            .err()
            .unwrap_or(ErrorKind::TopicNotFound),
        ErrorKind::TopicNotFound
    );
}

async fn an_unknown_topic_is_refused_in_about_a_second(kafka: &Kafka) {
    let mq = open(kafka).await;
    let begin = Instant::now();
    assert_eq!(
        mq.producer("nowhere").await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
    assert_eq!(
        mq.reader("nowhere").await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
    let joined = mq.consumer("nowhere", "g").await;
    assert_eq!(joined.unwrap_err().kind(), ErrorKind::TopicNotFound);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    mq.close().await.unwrap();
}

async fn more_acks_above_the_position_than_its_metadata_holds_are_cut_off(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "sparse", 1).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    member.until("assigned", |m| m.assigned.contains_key(&0)).await;
    let mut commit = Commit::new(member.id(0), 0);
    commit.acked_above = (0..5000).map(|n| 10 + 20 * n..11 + 20 * n).collect();
    commit.attempts = (0..2000).map(|n| (n, 3)).collect();
    let outcome = member.consumer.commit(vec![commit]).await.pop().unwrap();
    assert_eq!(outcome.unwrap(), CommitOutcome::Stored);
    let stored = mq
        .committed(CommittedRequest::new(topic.clone(), group("g")))
        .await
        .unwrap();
    let kept = &stored[0].acked_above;
    assert!(kept.len() > 100 && kept.len() < 5000, "{}", kept.len());
    assert_eq!(kept.first(), Some(&(10..11)), "the near ones are kept");
    member.consumer.close().await.unwrap();
}

async fn names_that_collide_in_kafka_never_meet(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("shop.eu", 1).await.unwrap();
    mq.producer("shop.eu")
        .await
        .unwrap()
        .produce("mine")
        .await
        .unwrap();
    let refused = mq.create_topic("shop_eu", 1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidTopic, "{refused}");
    assert_eq!(
        mq.describe_topic("shop_eu").await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
    mq.create_topic("shop-eu", 1).await.unwrap();
    mq.create_topic("Shop.eu", 1).await.unwrap();
    for (name, next) in [("shop.eu", 1), ("shop-eu", 0), ("Shop.eu", 0)] {
        let seen = mq.describe_topic(name).await.unwrap();
        assert_eq!(seen.partitions[0].next_offset, next, "{name}");
    }
    mq.close().await.unwrap();
}

/// The thread of the member looks around so seldom here that a wake-up which was lost would end the test: nothing else
/// makes the reader look again.
async fn no_wake_up_is_lost(kafka: &Kafka) {
    const ROUNDS: u64 = 3000;
    let session = Duration::from_secs(60);
    let config = config(kafka).with_session_timeout(session).with_look(session / 2);
    let mq = KafkaMq::connect_with(config).await.unwrap();
    let topic = create(&mq, "wakes", 2).await;
    let producer = producer(&mq, &topic).await;
    let mut member = join(&mq, subscription(&topic, "g")).await;
    while member.assigned.len() < 2 {
        // Without a limit of time, which would be a look of its own.
        let event = poll_fn(|cx| member.events.poll_event(cx)).await.unwrap();
        if let Event::Assigned(all) = event {
            member
                .assigned
                .extend(all.into_iter().map(|one| (one.id.partition, one)));
        }
    }
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        loop {
            if let Event::Batch(batch) = poll_fn(|cx| member.events.poll_event(cx)).await.unwrap() {
                for record in batch.records.iter() {
                    heard.send(number(&record.message)).unwrap();
                }
            }
        }
    });
    for round in 0..ROUNDS {
        // Sometimes two at once, to both partitions, so that wake-ups meet.
        let partition = u32::try_from(round % 2).unwrap();
        let also = send_numbers(
            &*producer,
            1 - partition,
            round.is_multiple_of(3).then_some(ROUNDS + round),
        );
        tokio::join!(send_numbers(&*producer, partition, [round]), also);
        let wanted = 1 + u64::from(round.is_multiple_of(3));
        for _ in 0..wanted {
            let number = tokio::time::timeout(SOON, hears.recv()).await;
            let number = number.unwrap_or_else(|_| panic!("nothing woke the reader in round {round}"));
            assert_eq!(number.unwrap() % ROUNDS, round);
        }
    }
    reading.abort();
}

async fn a_lease_that_ran_out_while_the_session_lived_is_taken_again(kafka: &Kafka) {
    let mq = connect(kafka).await;
    let topic = create(&mq, "lease", 1).await;
    let producer = producer(&mq, &topic).await;
    let clock = Clock::manual();
    let mut asked = subscription(&topic, "g");
    asked.clock = clock.clone();
    let mut member = join(&mq, asked).await;
    member.until("assigned", |m| m.assigned.contains_key(&0)).await;
    let before = member.id(0);
    send_numbers(&*producer, 0, 0..3).await;
    member.until("three", |m| m.received.len() == 3).await;
    let outcome = member
        .consumer
        .commit(vec![Commit::new(before, 2)])
        .await
        .pop()
        .unwrap();
    assert_eq!(outcome.unwrap(), CommitOutcome::Stored);
    clock.advance(Duration::from_secs(30));
    member
        .until("taken again", |m| {
            m.lost.contains(&before) && m.assigned.contains_key(&0)
        })
        .await;
    assert!(member.id(0) > before);
    assert_eq!(member.assigned[&0].position, 2);
    send_numbers(&*producer, 0, 3..5).await;
    member
        .until("the rest", |m| m.numbers().ends_with(&[2, 3, 4]))
        .await;
    let late = member
        .consumer
        .commit(vec![Commit::new(before, 1)])
        .await
        .pop()
        .unwrap();
    assert_eq!(late.unwrap(), CommitOutcome::Lost);
    member.consumer.close().await.unwrap();
}

async fn messages_of_aborted_transactions_are_not_seen(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("ledger", 1).await.unwrap();
    let consumer = mq.consumer("ledger", "g").await.unwrap();
    let native = connect(kafka).await.native_config();
    tokio::task::spawn_blocking(move || {
        let limit = Duration::from_secs(20);
        let producer: BaseProducer = native.clone().set("transactional.id", "ledger").create().unwrap();
        producer.init_transactions(limit).unwrap();
        for (words, commits) in [
            ("kept", true),
            ("aborted", false),
            ("kept too", true),
            ("aborted too", false),
        ] {
            producer.begin_transaction().unwrap();
            for _ in 0..5 {
                let record: BaseRecord<'_, (), str> = BaseRecord::to("ledger").partition(0).payload(words);
                producer.send(record).map_err(|(error, _)| error).unwrap();
            }
            producer.flush(limit).unwrap();
            match commits {
                true => producer.commit_transaction(limit).unwrap(),
                false => producer.abort_transaction(limit).unwrap(),
            }
        }
    })
    .await
    .unwrap();
    let mut seen = Vec::new();
    for _ in 0..10 {
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        seen.push(String::from_utf8(delivery.payload().to_vec()).unwrap());
        delivery.ack().unwrap();
    }
    assert_eq!(seen, [vec!["kept"; 5], vec!["kept too"; 5]].concat());
    // What was aborted at the end is passed over too: nothing is left to do.
    let begin = Instant::now();
    loop {
        consumer.commit().await.unwrap();
        let lag = consumer.lag().await.unwrap();
        if lag.total() == 0 {
            break;
        }
        assert!(begin.elapsed() < SOON, "{lag:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let reader = mq.reader("ledger").await.unwrap();
    let read = reader.pull(0, 0, 100).await.unwrap();
    assert!(!read.is_empty() && read.iter().all(|message| message.payload().starts_with(b"kept")));
    mq.close().await.unwrap();
}

async fn properties_that_a_promise_rests_on_are_refused(kafka: &Kafka) {
    let mq = open(kafka).await;
    mq.create_topic("refused", 1).await.unwrap();
    for name in [
        "enable.auto.commit",
        "isolation.level",
        "group.id",
        "no.such.setting",
    ] {
        let joined = mq.consumer("refused", "g").property(name, "true").await;
        let error = joined.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.context().contains(name), "{error}");
    }
    let spec = TopicSpec::new("odd", 1)
        .unwrap()
        .with_property("no.such.setting", "1");
    assert_eq!(
        mq.create_topic_with(spec).await.unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    let unknown = TopicName::existing("odd").unwrap();
    assert_eq!(
        mq.describe_topic(unknown).await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
    mq.close().await.unwrap();
}

/// Waits until the group is at rest with so many members.
async fn until_members(mq: &KafkaMq, group: &str, count: usize) {
    let (native, group) = (mq.native_config(), group.to_owned());
    let looking = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = native.create().unwrap();
        let begin = Instant::now();
        loop {
            let list = client.fetch_group_list(Some(&group), PATIENCE).unwrap();
            let found = list.groups().first();
            if found.is_some_and(|group| group.state() == "Stable" && group.members().len() == count) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{found:?}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    });
    looking.await.unwrap();
}

/// The library sends no word of leaving for such a member by itself, and the group would wait for it.
async fn a_member_without_partitions_that_closes_holds_nobody_up(kafka: &Kafka) {
    let session = Duration::from_secs(30);
    let mq = KafkaMq::connect_with(config(kafka).with_session_timeout(session))
        .await
        .unwrap();
    let topic = create(&mq, "idle", 1).await;
    let mut owner = join(&mq, subscription(&topic, "idle")).await;
    owner.until("assigned", |m| m.assigned.contains_key(&0)).await;
    let begin = Instant::now();
    for at_rest in [true, false] {
        let idle = join(&mq, subscription(&topic, "idle")).await;
        if at_rest {
            until_members(&mq, "idle", 2).await;
        }
        idle.consumer.close().await.unwrap();
    }
    let mut next = join(&mq, subscription(&topic, "idle")).await;
    owner.consumer.close().await.unwrap();
    next.until("taken over", |m| m.assigned.contains_key(&0)).await;
    assert!(begin.elapsed() < session - session / 10, "{:?}", begin.elapsed());
    next.consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_traps_of_kafka_are_sprung() {
    let kafka = patient_broker();
    macro_rules! all {
        ($($case:ident),* $(,)?) => {
            $(
                eprintln!("{}", stringify!($case));
                tokio::time::timeout(Duration::from_secs(120), $case(&kafka)).await.expect(stringify!($case));
            )*
        };
    }
    all!(
        new_partitions_are_used_by_a_running_producer_and_consumer,
        a_deleted_topic_ends_a_running_consumer_and_a_producer,
        an_unknown_topic_is_refused_in_about_a_second,
        more_acks_above_the_position_than_its_metadata_holds_are_cut_off,
        names_that_collide_in_kafka_never_meet,
        no_wake_up_is_lost,
        a_lease_that_ran_out_while_the_session_lived_is_taken_again,
        messages_of_aborted_transactions_are_not_seen,
        a_member_without_partitions_that_closes_holds_nobody_up,
        properties_that_a_promise_rests_on_are_refused,
    );
}

/// Thirty joins and leaves at random moments, each while the one before may be under way: each message comes, and none
/// comes again once its ack was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_rebalances_loses_nothing() {
    let kafka = patient_broker();
    let config = config(&kafka).with_session_timeout(Duration::from_secs(20));
    let mq = mq_api::Mq::from_driver(KafkaMq::connect_with(config).await.unwrap());
    mq.create_topic("storm", 4).await.unwrap();
    let mut storm = Storm::start(&mq, "storm", 400).await;
    let mut members = vec![storm.member(&mq)];
    storm.until_acked(1).await;
    let mut leaving = Vec::new();
    let mut dice = 12345_u64;
    for _ in 0..30 {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(100 + (dice >> 40) % 500)).await;
        let joins = match members.len() {
            1 => true,
            4 => false,
            _ => (dice >> 33).is_multiple_of(2),
        };
        if joins {
            members.push(storm.member(&mq));
        } else {
            let leaver = usize::try_from(dice >> 35).unwrap() % members.len();
            // The next change comes while this one is under way.
            leaving.push(tokio::spawn(members.remove(leaver).leave()));
        }
    }
    let stored = storm.stop().await;
    storm.until_all_acked().await;
    assert!(stored > 1000, "{stored}");
    assert_eq!(storm.repeated(), 0, "of {stored}");
    assert!(storm.trouble().is_none(), "{:?}", storm.trouble());
    for left in leaving {
        left.await.unwrap().unwrap();
    }
    for member in members {
        member.leave().await.unwrap();
    }
    mq.close().await.unwrap();
}

/// Starts a broker of its own whose answers can be held and changed.
fn behind_a_meddler() -> (Kafka, Meddler) {
    let options = KafkaOptions::new().with_proxy();
    let kafka = options
        .with_config("broker.session.timeout.ms=30000")
        .start()
        .unwrap();
    let proxy = kafka.proxy().unwrap();
    let meddler = Meddler::start(proxy.target());
    proxy.set_target(meddler.address());
    (kafka, meddler)
}

/// A seek asks the broker for the end of a partition, and has no answer, while another member joins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_without_an_answer_holds_up_no_rebalance() {
    let (kafka, meddler) = behind_a_meddler();
    // Long enough to be told from everything else that takes time here.
    let patient = config(&kafka)
        .with_connect_timeout(PATIENCE)
        .with_request_timeout(PATIENCE);
    let mq = KafkaMq::connect_with(patient).await.unwrap();
    let topic = create(&mq, "asked", 2).await;
    let mut first = join(&mq, subscription(&topic, "asked")).await;
    first.until("assigned", |m| m.assigned.len() == 2).await;

    meddler.hold_lookups();
    let consumer = Arc::clone(&first.consumer);
    let id = first.id(0);
    let seeking = tokio::spawn(async move { consumer.seek(id, Position::Latest, 1).await });
    let begin = Instant::now();
    while meddler.held() == 0 {
        assert!(begin.elapsed() < PATIENCE, "nothing is asked");
        first.step(Duration::from_millis(10)).await;
    }
    let second = connect(&kafka).await;
    let joining = tokio::spawn(async move {
        let mut member = join(&second, subscription(&topic, "asked")).await;
        member.until("its part", |m| m.assigned.len() == 1).await;
        member
    });
    let begin = Instant::now();
    while !joining.is_finished() {
        assert!(begin.elapsed() < PATIENCE / 2, "the rebalance waits for the seek");
        first.step(Duration::from_millis(10)).await;
    }
    let second = joining.await.unwrap();
    assert!(!seeking.is_finished(), "the seek still waits for its answer");
    meddler.release_lookups();
    let sought = seeking.await.unwrap();
    match first.assigned.contains_key(&0) {
        true => assert_eq!(sought.unwrap(), 0),
        // It was given to the other member meanwhile.
        false => assert_eq!(sought.unwrap_err().kind(), ErrorKind::Interrupted),
    }
    second.consumer.close().await.unwrap();
    first.consumer.close().await.unwrap();
    mq.close().await.unwrap();
}

/// The mark of a takeover meets a new generation of the group, so that the library is told to hold a partition which nobody
/// reads yet. What it asks the broker about it meanwhile is answered late, and must not move it once it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_refused_at_takeover_is_read_from_where_the_group_stands() {
    const MESSAGES: u64 = 100;
    let (kafka, meddler) = behind_a_meddler();
    let mq = connect(&kafka).await;
    let topic = create(&mq, "refused", 1).await;
    let sender = producer(&mq, &topic).await;
    // Far more than the library fetches ahead, so that a jump to the end leaves something out.
    let large = (0..MESSAGES).map(|n| Message::new(format!("{n:050000}")));
    for result in send(&*sender, 0, large.collect()).await {
        result.unwrap();
    }
    let slow = || {
        let mut slow = subscription(&topic, "refused");
        slow.prefetch.messages = 1;
        slow.prefetch.bytes = 64 * 1024;
        slow
    };
    // The group begins and rests, so that nothing is left to look up when the next member joins.
    let mut first = join(&mq, slow()).await;
    first.until("assigned", |m| m.assigned.contains_key(&0)).await;
    first.consumer.close().await.unwrap();

    meddler.refuse_commits(1);
    meddler.hold_lookups();
    let mut second = join(&mq, slow()).await;
    second
        .until("taken over again", |m| m.assigned.contains_key(&0))
        .await;
    assert_eq!(meddler.refused(), 1, "the first takeover was refused");
    let begin = Instant::now();
    while second.received.is_empty() && begin.elapsed() < Duration::from_secs(3) {
        second.step(Duration::from_millis(50)).await;
    }
    let kept = meddler.release_lookups();
    // The library asks again half a second after an answer that came too late.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let all = usize::try_from(MESSAGES).unwrap();
    second
        .until(&format!("all, {kept} answers were late"), |m| {
            m.received.len() == all
        })
        .await;
    assert_eq!(second.numbers(), (0..MESSAGES).collect::<Vec<_>>());
    second.consumer.close().await.unwrap();
    sender.close().await.unwrap();
    mq.close().await.unwrap();
}
