//! The driver under the public API: what only shows when both work together.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on may panic, in its helpers too"
)]

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use mq_api::{Backoff, Clock, Consumer, Delivery, Message, Mode, Mq};
use mq_memory::MemoryMq;

const PATIENCE: Duration = Duration::from_secs(20);

async fn take(consumer: &Consumer) -> Delivery {
    tokio::time::timeout(PATIENCE, consumer.consume())
        .await
        .expect("a message comes")
        .unwrap()
}

/// What the first look of a call finds; the call is given up then.
async fn at_once(consumer: &Consumer) -> Option<Delivery> {
    let mut call = pin!(consumer.consume());
    let looked = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx)));
    match looked.await {
        Poll::Ready(found) => Some(found.unwrap()),
        Poll::Pending => None,
    }
}

async fn end_of(mq: &Mq, topic: &str) -> u64 {
    let described = mq.describe_topic(topic).await.unwrap();
    described.partitions.first().unwrap().next_offset
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}

#[tokio::test]
async fn the_twelve_lines_run() {
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic("orders", 4).await.unwrap();
    let producer = mq.producer("orders").await.unwrap();
    let receipt = producer
        .produce(Message::new("paid").with_key("user-7"))
        .await
        .unwrap();
    assert_eq!(receipt.offset, Some(0));
    producer.produce_to(2, Message::new("shipped")).await.unwrap();
    let consumer = mq.consumer("orders", "billing").await.unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let delivery = take(&consumer).await;
        seen.insert(text(&delivery));
        delivery.ack().unwrap();
    }
    assert_eq!(seen, ["paid".to_owned(), "shipped".to_owned()].into());
    consumer.commit().await.unwrap();
    assert_eq!(mq.lag("orders", "billing").await.unwrap().total(), 0);
    mq.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_lose_nothing() {
    const MESSAGES: usize = 4000;
    let memory = MemoryMq::new();
    let faults = memory.faults();
    let mq = Mq::from_driver(memory);
    mq.create_topic("orders", 8).await.unwrap();
    let (seen, mut all) = tokio::sync::mpsc::channel(100);
    let mut members = tokio::task::JoinSet::new();
    for member in 0..4_u64 {
        let (mq, seen) = (mq.clone(), seen.clone());
        members.spawn(async move {
            loop {
                let consumer = mq.consumer("orders", "billing").await.unwrap();
                for turn in 0.. {
                    match tokio::time::timeout(Duration::from_millis(50), consumer.consume()).await {
                        Ok(Ok(delivery)) => {
                            let number: usize = text(&delivery).parse().unwrap();
                            // A stale ack is no loss: the message comes again.
                            if delivery.ack().is_ok() {
                                seen.send(number).await.unwrap();
                            }
                        }
                        Ok(Err(error)) => assert!(error.is_retryable(), "{error}"),
                        Err(_) => {}
                    }
                    if turn > 200 * (member + 1) {
                        break;
                    }
                }
                if member % 2 == 0 {
                    consumer.close().await.unwrap();
                }
            }
        });
    }
    let producer = mq.producer("orders").await.unwrap();
    for number in 0..MESSAGES {
        let _sent = producer.enqueue(number.to_string()).await.unwrap();
        if number % 1000 == 999 {
            producer.flush().await.unwrap();
            faults.restart();
        }
    }
    producer.flush().await.unwrap();
    let end = Instant::now() + PATIENCE;
    let mut missing: BTreeSet<usize> = (0..MESSAGES).collect();
    while !missing.is_empty() && Instant::now() < end {
        if let Ok(Some(number)) = tokio::time::timeout(Duration::from_secs(1), all.recv()).await {
            missing.remove(&number);
        }
    }
    assert!(missing.is_empty(), "missing: {missing:?}");
    members.shutdown().await;
}

#[tokio::test]
async fn a_shared_group_works_through_a_queue_with_retries() {
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic("jobs", 1).await.unwrap();
    let producer = mq.producer("jobs").await.unwrap();
    for number in 0..20 {
        producer.produce(number.to_string()).await.unwrap();
    }
    let consumer = |_| {
        let builder = mq.consumer("jobs", "workers").mode(Mode::Shared);
        async {
            builder
                .backoff(Backoff::fixed(Duration::from_millis(10)))
                .await
                .unwrap()
        }
    };
    let (first, second) = (consumer(1).await, consumer(2).await);
    let mut done = BTreeSet::new();
    while done.len() < 20 {
        let delivery = tokio::select! {
            delivery = take(&first) => delivery,
            delivery = take(&second) => delivery,
        };
        if delivery.attempt() == 1 {
            delivery.nack().unwrap();
        } else {
            assert_eq!(delivery.attempt(), 2);
            assert!(done.insert(text(&delivery)));
            delivery.ack().unwrap();
        }
    }
    mq.close().await.unwrap();
}

/// A task answers each message, on one thread with those who send them: what comes is there when both have had their turn.
#[tokio::test]
async fn calls_that_let_others_go_first_lose_nothing() {
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic("there", 1).await.unwrap();
    mq.create_topic("back", 1).await.unwrap();
    let there = mq.producer("there").await.unwrap();
    let (at, home) = (
        mq.consumer("there", "g").await.unwrap(),
        mq.consumer("back", "g").await.unwrap(),
    );
    let back = mq.producer("back").await.unwrap();
    let echo = tokio::spawn(async move {
        loop {
            let delivery = at.consume().await.unwrap();
            let message = delivery.message().clone();
            delivery.ack().unwrap();
            if message.payload().is_some_and(|payload| payload == "end") {
                return;
            }
            back.produce(message).await.unwrap();
        }
    });
    for round in 0..1000 {
        there.produce(round.to_string()).await.unwrap();
        let delivery = take(&home).await;
        assert_eq!(text(&delivery), round.to_string());
        delivery.ack().unwrap();
        match round % 10 {
            // A call that is given up when it has let others go first.
            3 => assert!(at_once(&home).await.is_none()),
            // What is there is found at the first look.
            6 => {
                let ends = end_of(&mq, "back").await;
                there.produce("early").await.unwrap();
                let answered = tokio::time::timeout(PATIENCE, async {
                    while end_of(&mq, "back").await == ends {
                        tokio::task::yield_now().await;
                    }
                });
                answered.await.expect("an answer comes");
                let early = at_once(&home).await.expect("it is there");
                assert_eq!(text(&early), "early");
                early.ack().unwrap();
            }
            _ => {}
        }
    }
    there.produce("end").await.unwrap();
    echo.await.unwrap();
    assert!(at_once(&home).await.is_none());
}

/// Counts the turns that others get while `work` runs on a thread that it shares with them.
async fn turns_of_others(work: impl Future<Output = ()>) -> u32 {
    let turns = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&turns);
    let others = tokio::spawn(async move {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    tokio::time::timeout(PATIENCE, work).await.expect("the work ends");
    others.abort();
    turns.load(Ordering::Relaxed)
}

#[tokio::test]
async fn who_takes_a_long_backlog_lets_others_run() {
    const COUNT: usize = 10_000;
    // Tokio gives a task 128 steps a turn, and others may take some of them.
    const LEAST: u32 = COUNT as u32 / 128 - 2;
    let mq = Mq::from_driver(MemoryMq::new());
    mq.create_topic("t", 1).await.unwrap();
    let messages = (0..COUNT).map(|number| number.to_string());
    for result in mq.producer("t").await.unwrap().produce_batch(messages).await {
        result.unwrap();
    }
    let open = async |group: &str| {
        let consumer = mq.consumer("t", group).max_unacked(COUNT + 1).await.unwrap();
        take(&consumer).await.ack().unwrap();
        consumer
    };
    let consumer = open("one").await;
    let one_by_one = turns_of_others(async {
        for _ in 1..COUNT {
            consumer.consume().await.unwrap().ack().unwrap();
        }
    });
    assert!(one_by_one.await >= LEAST, "consume");
    let consumer = open("batches").await;
    let batches = turns_of_others(async {
        for _ in 1..COUNT {
            consumer
                .ack_all(consumer.consume_batch(1).await.unwrap())
                .unwrap();
        }
    });
    assert!(batches.await >= LEAST, "consume_batch");
    let mut channel = open("channel").await.channel(COUNT).unwrap();
    let received = turns_of_others(async {
        for _ in 1..COUNT {
            channel.recv().await.unwrap().ack().unwrap();
        }
    });
    assert!(received.await >= LEAST, "recv");
    let mut stream = open("stream").await.channel(COUNT).unwrap();
    let streamed = turns_of_others(async {
        for _ in 1..COUNT {
            stream.next().await.unwrap().unwrap().ack().unwrap();
        }
    });
    assert!(streamed.await >= LEAST, "the stream");
}

#[tokio::test]
async fn a_hand_over_is_stamped_between_the_readings_around_it() {
    let mq = Mq::from_driver(MemoryMq::new());
    let clock = Clock::system();
    for topic in ["there", "back"] {
        mq.create_topic(topic, 1).await.unwrap();
    }
    let (there, back) = (
        mq.producer("there").await.unwrap(),
        mq.producer("back").await.unwrap(),
    );
    let (at, home) = (
        mq.consumer("there", "g").await.unwrap(),
        mq.consumer("back", "g").await.unwrap(),
    );
    // Many of them within each tick of the system's clock.
    for round in 0..2000 {
        let before = clock.now();
        there.produce("m").await.unwrap();
        let first = take(&at).await;
        back.produce("m").await.unwrap();
        let second = take(&home).await;
        let stamps = [
            before,
            first.handed_over_at(),
            second.handed_over_at(),
            clock.now(),
        ];
        assert!(stamps.is_sorted(), "round {round}: {stamps:?}");
        first.ack().unwrap();
        second.ack().unwrap();
    }
}

#[tokio::test]
async fn a_delayed_message_among_others_is_not_stamped_before_it_was_due() {
    const DELAY: Duration = Duration::from_millis(5);
    let mq = Mq::from_driver(MemoryMq::new());
    let clock = Clock::system();
    mq.create_topic("t", 1).await.unwrap();
    let producer = mq.producer("t").await.unwrap();
    let consumer = mq.consumer("t", "g").await.unwrap();
    for _ in 0..20 {
        let due = clock.now() + DELAY;
        producer
            .produce(Message::new("late").with_delay(DELAY))
            .await
            .unwrap();
        let mut is_waited_for = true;
        while is_waited_for {
            producer.produce("now").await.unwrap();
            let mut came = Some(take(&consumer).await);
            let begun = Instant::now();
            // Looks that find it alone, soon after the clock was read for another message.
            while came.is_some() || begun.elapsed() < Duration::from_micros(200) {
                if let Some(delivery) = came {
                    let stamp = delivery.handed_over_at();
                    if text(&delivery) == "late" {
                        assert!(stamp >= due, "{stamp:?} is before {due:?}");
                        is_waited_for = false;
                    }
                    delivery.ack().unwrap();
                }
                came = consumer.try_consume().unwrap();
            }
        }
    }
}
