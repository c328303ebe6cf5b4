//! Queues and exchanges that others made, on a real server and through the portable API.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::time::{Duration, Instant};

use lapin::{
    BasicProperties, Channel, ExchangeKind,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use mq_amqp::{AmqpMq, ExistingTopic};
use mq_api::{DeadLetter, ErrorKind, Message, Mode, Mq, Outcome, Start};
use support::*;
use test_brokers::RabbitMq;

/// Makes queues and an exchange as another application would.
async fn others(rabbit: &RabbitMq) -> (AmqpMq, Channel) {
    let connection = connect(rabbit).await;
    let channel = connection.native().await.unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(
            "billing".into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await
        .unwrap();
    for (name, kind) in [
        ("invoices", "classic"),
        ("audit", "quorum"),
        ("log", "stream"),
        ("doomed", "classic"),
    ] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel
            .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
    }
    for queue in ["invoices", "audit"] {
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(
                queue.into(),
                "billing".into(),
                "invoice.*".into(),
                bind,
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    (connection, channel)
}

async fn publish(channel: &Channel, queue: &str, body: &str, properties: BasicProperties) {
    channel
        .basic_publish(
            "".into(),
            queue.into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            properties,
        )
        .await
        .unwrap()
        .await
        .unwrap();
}

async fn open(rabbit: &RabbitMq) -> Mq {
    let to_queue = |queue: &str| ExistingTopic::new().with_queue(queue).with_exchange("", queue);
    let config = config(rabbit)
        .with_existing(
            "invoices",
            ExistingTopic::new()
                .with_exchange("billing", "invoice.created")
                .with_queue("invoices"),
        )
        .with_existing("audit", to_queue("audit"))
        .with_existing("log", to_queue("log"))
        .with_existing("doomed", to_queue("doomed"))
        .with_existing(
            "nowhere",
            ExistingTopic::new().with_exchange("billing", "nobody.listens"),
        )
        .with_existing("missing", to_queue("no such queue"))
        .with_existing(
            "absent",
            ExistingTopic::new().with_exchange("no such exchange", "k"),
        );
    Mq::from_driver(AmqpMq::connect_with(config).await.unwrap())
}

/// One server for all: it takes seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_serves_it_all() {
    let rabbit = options().start().unwrap();
    let (_connection, channel) = others(&rabbit).await;
    let mq = open(&rabbit).await;
    what_is_produced_goes_through_the_exchange_and_is_plain_to_others(&mq, &channel).await;
    what_others_sent_is_consumed_and_settled(&mq, &channel).await;
    an_ack_of_several_covers_none_that_was_not_acked(&mq, &channel).await;
    a_quorum_queue_counts_the_attempts(&mq).await;
    a_rejected_message_ends_in_a_topic_of_ours(&mq, &channel).await;
    what_is_not_there_or_cannot_be_done_is_a_typed_error(&mq).await;
    a_deleted_queue_ends_its_consumer(&mq, &channel).await;
    mq.close().await.unwrap();
    let left = rabbit.control(&["list_queues", "name", "consumers"]).unwrap();
    assert!(
        left.contains("invoices\t0") && left.contains("audit\t0"),
        "{left}"
    );
}

async fn what_is_produced_goes_through_the_exchange_and_is_plain_to_others(mq: &Mq, channel: &Channel) {
    let producer = mq.producer("invoices").await.unwrap();
    let message = Message::new("42")
        .with_key("user-7")
        .with_id("n1")
        .with_header("currency", "EUR");
    let receipt = producer.produce(message.clone()).await.unwrap();
    assert_eq!((receipt.partition, receipt.offset), (0, None));
    for queue in ["invoices", "audit"] {
        let got = channel
            .basic_get(queue.into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap()
            .unwrap()
            .delivery;
        assert_eq!(
            (got.routing_key.as_str(), &got.data[..]),
            ("invoice.created", &b"42"[..])
        );
        assert_eq!(got.properties.message_id().as_ref().unwrap().as_str(), "n1");
        assert_eq!(*got.properties.delivery_mode(), Some(2));
        let headers = got.properties.headers().as_ref().unwrap().inner();
        assert_eq!(headers["currency"], AMQPValue::LongString("EUR".into()));
    }
    // And it is the same message to a consumer of ours.
    producer.produce(message.clone()).await.unwrap();
    let consumer = mq.consumer("invoices", "any").mode(Mode::Shared).await.unwrap();
    let delivery = consumer.consume().await.unwrap();
    assert_eq!(*delivery.message(), message);
    delivery.ack().unwrap();
    consumer.close().await.unwrap();
}

async fn what_others_sent_is_consumed_and_settled(mq: &Mq, channel: &Channel) {
    let mut headers = FieldTable::default();
    headers.insert("place".into(), AMQPValue::LongString("attic".into()));
    let foreign = BasicProperties::default().with_headers(headers);
    for body in ["a", "b", "c"] {
        publish(channel, "invoices", body, foreign.clone()).await;
    }
    let consumer = mq.consumer("invoices", "any").mode(Mode::Shared).await.unwrap();
    let first = consumer.consume().await.unwrap();
    assert_eq!(first.payload(), b"a");
    assert_eq!(first.message().headers().text("place"), Some("attic"));
    assert_eq!(first.attempt(), 1);
    first.ack().unwrap();
    consumer.consume().await.unwrap().nack().unwrap();
    let mut attempts = Vec::new();
    for _ in 0..2 {
        let next = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        attempts.push((next.payload().to_vec(), next.attempt()));
        next.ack().unwrap();
    }
    attempts.sort();
    assert_eq!(attempts, [(b"b".to_vec(), 2), (b"c".to_vec(), 1)]);
    consumer.close().await.unwrap();
    let look = QueueDeclareOptions::durable().passive();
    let queue = channel
        .queue_declare("invoices".into(), look, FieldTable::default())
        .await
        .unwrap();
    assert_eq!(queue.message_count(), 0, "what was acked is gone");
}

async fn an_ack_of_several_covers_none_that_was_not_acked(mq: &Mq, channel: &Channel) {
    const COUNT: usize = 100;
    for number in 0..COUNT {
        publish(
            channel,
            "invoices",
            &number.to_string(),
            BasicProperties::default(),
        )
        .await;
    }
    let consumer = mq.consumer("invoices", "any").mode(Mode::Shared).await.unwrap();
    let (mut acked, mut held, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..COUNT {
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        match number % 10 {
            3 => {
                left.push(delivery.payload().to_vec());
                held.push(delivery);
            }
            7 => {
                left.push(delivery.payload().to_vec());
                delivery.nack_after(Duration::from_secs(600)).unwrap();
            }
            _ => acked.push(delivery),
        }
    }
    // The latest first, the others at once and in pieces.
    let late = acked.split_off(acked.len() / 2);
    consumer.ack_all(late).unwrap();
    consumer.commit().await.unwrap();
    consumer.ack_all(acked).unwrap();
    consumer.commit().await.unwrap();
    consumer.close().await.unwrap();
    drop(held);
    let mut back = Vec::new();
    let consumer = mq.consumer("invoices", "any").mode(Mode::Shared).await.unwrap();
    while back.len() < left.len() {
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        back.push(delivery.payload().to_vec());
        delivery.ack().unwrap();
    }
    consumer.close().await.unwrap();
    back.sort();
    left.sort();
    assert_eq!(back, left);
}

async fn a_quorum_queue_counts_the_attempts(mq: &Mq) {
    let producer = mq.producer("audit").await.unwrap();
    // What went there through the exchange before is still in it.
    let consumer = mq.consumer("audit", "any").mode(Mode::Shared).await.unwrap();
    tokio::time::timeout(PATIENCE, consumer.consume())
        .await
        .unwrap()
        .unwrap()
        .ack()
        .unwrap();
    producer.produce("x").await.unwrap();
    for attempt in 1..=3 {
        let delivery = tokio::time::timeout(PATIENCE, consumer.consume())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((delivery.payload(), delivery.attempt()), (&b"x"[..], attempt));
        if attempt < 3 {
            delivery.nack_after(Duration::from_millis(50)).unwrap();
        } else {
            delivery.ack().unwrap();
        }
    }
    consumer.close().await.unwrap();
}

async fn a_rejected_message_ends_in_a_topic_of_ours(mq: &Mq, channel: &Channel) {
    mq.create_topic("invoices.dead", 1).await.unwrap();
    publish(channel, "invoices", "bad", BasicProperties::default()).await;
    let consumer = mq
        .consumer("invoices", "any")
        .mode(Mode::Shared)
        .dead_letter(DeadLetter::topic("invoices.dead"))
        .await
        .unwrap();
    consumer.consume().await.unwrap().reject().unwrap();
    consumer.commit().await.unwrap();
    let dead = mq.consumer("invoices.dead", "g").await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, dead.consume())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(delivery.payload(), b"bad");
    delivery.ack().unwrap();
    dead.close().await.unwrap();
    consumer.close().await.unwrap();
}

async fn what_is_not_there_or_cannot_be_done_is_a_typed_error(mq: &Mq) {
    for topic in ["missing", "absent"] {
        let error = mq.producer(topic).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TopicNotFound, "{topic}: {error}");
    }
    let error = mq.consumer("missing", "g").mode(Mode::Shared).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TopicNotFound, "{error}");
    for error in [
        mq.create_topic("invoices", 1).await.unwrap_err(),
        mq.delete_topic("invoices").await.unwrap_err(),
        mq.describe_topic("invoices").await.unwrap_err(),
        mq.consumer("invoices", "g").await.unwrap_err(),
        mq.consumer("invoices", "g")
            .mode(Mode::Shared)
            .start_at(Start::Latest)
            .await
            .unwrap_err(),
        mq.consumer("absent", "g").mode(Mode::Shared).await.unwrap_err(),
        mq.reader("invoices").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    let producer = mq.producer("invoices").await.unwrap();
    let late = Message::new("x").with_delay(Duration::from_secs(1));
    assert_eq!(
        producer.produce(late).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    producer.produce("y").await.unwrap();

    let unheard = mq
        .producer("nowhere")
        .timeout(Duration::from_secs(2))
        .await
        .unwrap();
    let begun = Instant::now();
    let error = unheard.produce("x").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{error} came late");

    let stream = mq.consumer("log", "g").mode(Mode::Shared).await.unwrap();
    // A stream begins with what comes after its consumer is there.
    let log = mq.producer("log").await.unwrap();
    let fill = async {
        loop {
            log.produce("x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answer = tokio::select! {
        answer = tokio::time::timeout(PATIENCE, stream.consume()) => answer.unwrap(),
        () = fill => unreachable!("it goes on"),
    };
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    let _ = stream.close().await;
}

async fn a_deleted_queue_ends_its_consumer(mq: &Mq, channel: &Channel) {
    let consumer = mq.consumer("doomed", "g").mode(Mode::Shared).await.unwrap();
    mq.producer("doomed")
        .await
        .unwrap()
        .produce("last")
        .await
        .unwrap();
    consumer.consume().await.unwrap().ack().unwrap();
    channel
        .queue_delete("doomed".into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    let error = tokio::time::timeout(PATIENCE, consumer.consume())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TopicNotFound, "{error}");
}
