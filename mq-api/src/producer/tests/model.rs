//! Order and completeness under chance: what is answered `Ok` is stored once and in order, whatever the driver does.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::driver::SendWindow;

/// What a test does in one step.
#[derive(Clone, Debug)]
enum Step {
    Enqueue(u32),
    Batch(u32, usize),
    /// Settles the nth batch that is held.
    Settle(usize, Settling),
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum Settling {
    Store,
    /// The first half is stored, the rest is lost.
    Half,
    NotSent,
    Unknown,
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    let settling = prop_oneof![
        4 => Just(Settling::Store),
        1 => Just(Settling::Half),
        2 => Just(Settling::NotSent),
        1 => Just(Settling::Unknown),
        1 => Just(Settling::Drop),
    ];
    prop_oneof![
        5 => (0u32..2).prop_map(Step::Enqueue),
        1 => (0u32..2, 1usize..6).prop_map(|(partition, count)| Step::Batch(partition, count)),
        6 => (0usize..4, settling).prop_map(|(at, settling)| Step::Settle(at, settling)),
        2 => (1u64..200).prop_map(Step::Wait),
    ]
}

fn settle(script: &Script, batch: &crate::driver::SendBatch, settling: Settling) {
    let lost = script::failure(ErrorKind::Connection, Outcome::NotSent);
    match settling {
        Settling::Store => script.store(batch),
        Settling::Half => {
            let half = batch.len() / 2;
            script.store_range(batch, 0..half);
            batch.fail(half..batch.len(), &lost);
        }
        Settling::NotSent => batch.fail_all(&lost),
        Settling::Unknown => {
            batch.begin_io(0..batch.len());
            batch.fail_all(&script::failure(ErrorKind::Connection, Outcome::Unknown));
        }
        Settling::Drop => {}
    }
}

async fn play(steps: Vec<Step>, window: usize, batch_messages: usize) {
    let script = Script::with_window(2, SendWindow::new(window, batch_messages, 1 << 20));
    script.otherwise(Do::Hold);
    let producer = script.open(|p| p.timeout(Duration::from_secs(60))).await;
    let mut answers = Vec::new();
    let mut next = 0u32;
    for step in steps {
        match step {
            Step::Enqueue(partition) => {
                let pending = producer
                    .try_enqueue(Message::new(format!("{next}")).with_key(key_of(partition, 2)))
                    .unwrap();
                answers.push((vec![next], tokio::spawn(async move { vec![pending.await] })));
                next += 1;
            }
            Step::Batch(partition, count) => {
                let numbers: Vec<u32> = (next..next + count as u32).collect();
                next += count as u32;
                let key = key_of(partition, 2);
                let messages: Vec<Message> = numbers
                    .iter()
                    .map(|n| Message::new(format!("{n}")).with_key(key.clone()))
                    .collect();
                let sender = producer.clone();
                answers.push((
                    numbers,
                    tokio::spawn(async move { sender.produce_batch(messages).await }),
                ));
                tokio::task::yield_now().await;
            }
            Step::Settle(at, settling) => {
                // A backend stores batches of one partition in their order, and may fail them in any.
                let batch = match settling {
                    Settling::Store | Settling::Half => script.take_oldest_of_same(at),
                    Settling::NotSent | Settling::Unknown | Settling::Drop => script.take_held(at),
                };
                if let Some(batch) = batch {
                    settle(&script, &batch, settling);
                }
            }
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }
    while producer.status().buffered_messages > 0 {
        if let Some(batch) = script.take_held(0) {
            script.store(&batch);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    producer.flush().await.unwrap();

    let mut stored: HashMap<String, u32> = HashMap::new();
    for (_, text) in script.stored() {
        *stored.entry(text).or_default() += 1;
    }
    let mut settled = 0;
    for (numbers, answer) in answers {
        let results = answer.await.unwrap();
        assert_eq!(results.len(), numbers.len());
        for (number, result) in numbers.into_iter().zip(results) {
            settled += 1;
            let copies = stored.get(&number.to_string()).copied().unwrap_or(0);
            match result {
                Ok(_) => assert_eq!(copies, 1, "message {number} is answered Ok"),
                Err(error) if error.outcome() == Outcome::NotSent => {
                    assert_eq!(copies, 0, "message {number}: {error}");
                }
                Err(_) => assert!(copies <= 1, "message {number} is stored {copies} times"),
            }
        }
    }
    for partition in 0..2 {
        let numbers: Vec<u32> = script
            .stored_in(partition)
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert!(
            numbers.is_sorted(),
            "partition {partition} is out of order: {numbers:?}"
        );
    }
    let status = producer.status();
    assert_eq!(status.sent + status.failed, settled);
    assert_eq!((status.buffered_messages, status.buffered_bytes), (0, 0));
    assert_eq!(status.in_flight_messages, 0);
    assert_eq!(producer.core.client.budget.used(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn what_is_answered_ok_is_stored_once_and_in_order(
        steps in proptest::collection::vec(step(), 1..80),
        window in 1usize..4,
        batch_messages in 1usize..5,
    ) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(play(steps, window, batch_messages));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_and_a_driver_of_moods_keep_order_and_lose_nothing() {
    let script = Script::with_window(3, SendWindow::new(2, 16, 1 << 20));
    let moods = [
        Do::Store,
        Do::StoreFromThread,
        Do::FailFromThread(ErrorKind::Connection, Outcome::NotSent),
        Do::Store,
        LOST,
        Do::StoreFromThread,
        Do::Drop,
    ];
    let producer = script
        .mq()
        .producer("t")
        .retry_backoff(Duration::from_millis(1))
        .buffer_messages(64)
        .await
        .unwrap();
    for n in 0..3000 {
        script.next([moods[(n * n + n / 3) % moods.len()].clone()]);
    }
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let producer = producer.clone();
            tokio::spawn(async move {
                let mut answered = Vec::new();
                for n in 0..150 {
                    let message = Message::new(format!("{sender}:{n}")).with_key(format!("{sender}"));
                    match n % 3 {
                        0 => answered.push((n, producer.produce(message).await.is_ok())),
                        _ => {
                            let pending = producer.enqueue(message).await.unwrap();
                            answered.push((n, pending.await.is_ok()));
                        }
                    }
                }
                (sender, answered)
            })
        })
        .collect();
    for sender in senders {
        let (sender, answered) = sender.await.unwrap();
        let ok: Vec<String> = answered
            .into_iter()
            .filter(|(_, ok)| *ok)
            .map(|(n, _)| format!("{sender}:{n}"))
            .collect();
        let prefix = format!("{sender}:");
        let stored: Vec<String> = script
            .stored()
            .into_iter()
            .map(|(_, text)| text)
            .filter(|text| text.starts_with(&prefix))
            .collect();
        assert_eq!(stored, ok, "sender {sender}");
    }
}
