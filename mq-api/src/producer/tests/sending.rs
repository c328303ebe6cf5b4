//! The fast path, gathering, and what is refused before any I/O.

use std::sync::{Arc, Mutex};

use super::*;
use crate::{Capabilities, ClientOptions, Propagator, Support, driver::SendWindow};

#[tokio::test]
async fn a_send_that_settles_at_once_arms_no_timer_and_holds_nothing() {
    let script = Script::new(1, 1);
    let producer = script.open(|p| p).await;
    for n in 0..3 {
        let receipt = producer.produce("m").await.unwrap();
        assert_eq!((receipt.partition, receipt.offset), (0, Some(n)));
    }
    let status = producer.status();
    assert_eq!(
        (status.sent, status.buffered_messages, status.in_flight_messages),
        (3, 0, 0)
    );
    assert_eq!(producer.core.lock().wakes_at, None);
    assert_eq!(producer.core.client.budget.used(), 0);
    assert!(script.sent().iter().all(|(_, batch)| batch.len() == 1));
}

#[tokio::test]
async fn what_gathers_while_the_window_is_full_goes_as_one_batch() {
    let script = Script::new(1, 1);
    script.next([Do::Hold]);
    let producer = script.open(|p| p).await;
    let mut pending = Vec::new();
    for text in ["a", "b", "c"] {
        pending.push(producer.enqueue(text).await.unwrap());
    }
    assert_eq!(producer.status().in_flight_messages, 1);
    assert_eq!(producer.status().buffered_messages, 3);
    let first = script.held().await;
    script.store(&first);
    drop(first);
    for receipt in pending {
        receipt.await.unwrap();
    }
    assert_eq!(
        script.sent(),
        [
            (0, vec!["a".to_owned()]),
            (0, vec!["b".to_owned(), "c".to_owned()])
        ]
    );
    until("the buffer is empty", || producer.status().buffered_messages == 0).await;
    assert_eq!(producer.status().buffered_bytes, 0);
    assert_eq!(producer.core.client.budget.used(), 0);
}

#[tokio::test]
async fn batches_keep_to_the_bounds_of_the_window() {
    let script = Script::with_window(1, SendWindow::new(1, 3, 1000));
    script.next([Do::Hold]);
    let producer = script.open(|p| p).await;
    let mut pending = vec![producer.enqueue("first").await.unwrap()];
    for _ in 0..4 {
        pending.push(producer.enqueue("small").await.unwrap());
    }
    for _ in 0..3 {
        pending.push(producer.enqueue(vec![0; 700]).await.unwrap());
    }
    pending.push(producer.enqueue(vec![0; 5000]).await.unwrap());
    script.store(&script.held().await);
    for receipt in pending {
        receipt.await.unwrap();
    }
    let sizes: Vec<usize> = script.sent().iter().map(|(_, batch)| batch.len()).collect();
    assert_eq!(sizes, [1, 3, 2, 1, 1, 1]);
}

#[tokio::test]
async fn a_window_of_several_batches_is_used() {
    let script = Script::new(1, 3);
    script.otherwise(Do::Hold);
    let producer = script.open(|p| p).await;
    let mut pending = Vec::new();
    for text in ["a", "b", "c", "d", "e"] {
        pending.push(producer.enqueue(text).await.unwrap());
    }
    assert_eq!(script.sent().len(), 3);
    script.otherwise(Do::Store);
    // Later batches may settle first; the results still go to the right ones.
    let batches = [script.held().await, script.held().await, script.held().await];
    for batch in batches.iter().rev() {
        script.store(batch);
    }
    drop(batches);
    for receipt in pending {
        receipt.await.unwrap();
    }
    assert_eq!(script.sent().len(), 4);
}

#[tokio::test]
async fn a_foreign_thread_may_settle() {
    let script = Script::new(2, 1);
    script.otherwise(Do::StoreFromThread);
    let producer = script.open(|p| p).await;
    for n in 0..20 {
        producer.produce_to(n % 2, "m").await.unwrap();
    }
    let mut pending = Vec::new();
    for n in 0..200 {
        pending.push(producer.enqueue_to(n % 2, format!("{n}")).await.unwrap());
    }
    for receipt in pending {
        receipt.await.unwrap();
    }
    let numbers: Vec<u32> = script.stored_in(0)[10..]
        .iter()
        .map(|t| t.parse().unwrap())
        .collect();
    assert!(numbers.is_sorted() && numbers.len() == 100);
}

#[tokio::test]
async fn keyless_messages_spread_and_keyed_ones_stay() {
    let script = Script::new(4, 1);
    let producer = script.open(|p| p).await;
    for _ in 0..400 {
        producer.produce("m").await.unwrap();
    }
    producer.produce_batch(vec!["m"; 1024]).await;
    for partition in 0..4 {
        assert!(
            script.stored_in(partition).len() >= 142,
            "{}",
            script.stored_in(partition).len()
        );
    }
    let key = key_of(2, 4);
    for _ in 0..10 {
        let message = Message::new("k").with_key(key.clone());
        assert_eq!(producer.produce(message).await.unwrap().partition, 2);
    }
    let empty = Message::new("k").with_key("");
    let expected = Partitioner::Murmur2.partition(b"", 4);
    assert_eq!(producer.produce(empty).await.unwrap().partition, expected);
}

#[tokio::test]
async fn a_batch_gives_one_result_each_in_order_and_a_bad_one_fails_alone() {
    let script = Script::new(3, 1);
    let producer = script.open(|p| p).await;
    let messages = (0..200).map(|n| match n % 4 {
        0 => Message::new(format!("{n}")),
        1 => Message::new(format!("{n}")).with_key(key_of(1, 3)),
        2 => Message::new(format!("{n}")).with_header("", "v"),
        _ => Message::new(format!("{n}")).with_key(key_of(2, 3)),
    });
    let results = producer.produce_batch(messages).await;
    assert_eq!(results.len(), 200);
    for (n, result) in results.into_iter().enumerate() {
        match n % 4 {
            2 => assert_eq!(what(result), (ErrorKind::InvalidMessage, Outcome::NotSent)),
            1 => assert_eq!(result.unwrap().partition, 1),
            3 => assert_eq!(result.unwrap().partition, 2),
            _ => assert!(result.is_ok()),
        }
    }
    for partition in 0..3 {
        let numbers: Vec<u32> = script
            .stored_in(partition)
            .iter()
            .map(|t| t.parse().unwrap())
            .collect();
        assert!(numbers.is_sorted(), "partition {partition}: {numbers:?}");
    }
    assert!(producer.produce_batch(Vec::<Message>::new()).await.is_empty());
}

#[tokio::test]
async fn a_large_batch_over_a_full_window_comes_back_whole_and_in_order() {
    let script = Script::with_window(1, SendWindow::new(1, 7, 1 << 20));
    script.otherwise(Do::StoreFromThread);
    let producer = script.open(|p| p.buffer_messages(50)).await;
    let results = producer
        .produce_batch((0..500).map(|n| Message::new(format!("{n}"))))
        .await;
    let offsets: Vec<u64> = results
        .into_iter()
        .map(|result| result.unwrap().offset.unwrap())
        .collect();
    assert_eq!(offsets, (0..500).collect::<Vec<_>>());
    let expected: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    assert_eq!(script.stored_in(0), expected);
}

#[tokio::test]
async fn what_is_invalid_is_refused_before_any_io() {
    let script = Script::new(2, 1);
    let producer = script.open(|p| p.max_payload(10).max_metadata(20)).await;
    for (message, kind) in [
        (Message::new(vec![0; 11]), ErrorKind::MessageTooLarge),
        (Message::new("").with_key(vec![0; 21]), ErrorKind::MessageTooLarge),
        (
            Message::new("").with_header("mq-x", ""),
            ErrorKind::InvalidMessage,
        ),
        (
            Message::new("").with_delay(Duration::from_secs(1)),
            ErrorKind::Unsupported,
        ),
    ] {
        assert_eq!(what(producer.produce(message).await), (kind, Outcome::NotSent));
    }
    assert_eq!(
        what(producer.produce_to(2, "m").await),
        (ErrorKind::InvalidPartition, Outcome::NotSent)
    );
    assert!(script.sent().is_empty());
    producer.produce("fine").await.unwrap();
}

#[tokio::test]
async fn delay_and_tombstones_follow_the_capabilities() {
    let mut capabilities = Capabilities::new("script");
    capabilities.delay = Support::Native;
    capabilities.max_delay = Some(Duration::from_secs(10));
    let script = Script::with_capabilities(1, SendWindow::new(1, 10, 1000), capabilities);
    let producer = script.open(|p| p).await;
    let delayed = |seconds| Message::new("m").with_delay(Duration::from_secs(seconds));
    producer.produce(delayed(10)).await.unwrap();
    assert_eq!(
        what(producer.produce(delayed(11)).await).0,
        ErrorKind::InvalidMessage
    );
    let far = crate::Timestamp::now().saturating_add(Duration::from_secs(60));
    let at = Message::new("m").with_deliver_at(far);
    assert_eq!(what(producer.produce(at).await).0, ErrorKind::InvalidMessage);
    let tombstone = producer.produce(Message::tombstone("k")).await.unwrap_err();
    assert_eq!(tombstone.kind(), ErrorKind::Unsupported);
    assert!(tombstone.context().contains("tombstones") && tombstone.context().contains("script"));
}

#[tokio::test]
async fn a_custom_partitioner_is_asked_and_checked() {
    let script = Script::new(3, 1);
    let partitioner = Partitioner::custom(|key, count| if key == b"wild" { count } else { 1 });
    let producer = script.open(|p| p.partitioner(partitioner)).await;
    let keyed = |key: &'static str| Message::new("m").with_key(key);
    assert_eq!(producer.produce(keyed("tame")).await.unwrap().partition, 1);
    assert_eq!(
        what(producer.produce(keyed("wild")).await).0,
        ErrorKind::InvalidPartition
    );
}

#[tokio::test]
async fn partitions_that_are_added_are_used() {
    let script = Script::new(1, 1);
    let producer = script.open(|p| p).await;
    assert_eq!(
        what(producer.produce_to(1, "m").await).0,
        ErrorKind::InvalidPartition
    );
    script.grow(3);
    assert_eq!(producer.produce_to(2, "m").await.unwrap().partition, 2);
    script.grow(4);
    until("the producer knows", || producer.partitions() == 4).await;
}

#[tokio::test]
async fn one_way_sends_count_their_failures() {
    let script = Script::new(1, 1);
    let producer = script.open(|p| p.buffer_messages(2)).await;
    producer.send_one_way("a").unwrap();
    script.next([Do::Fail(ErrorKind::PermissionDenied, Outcome::NotSent)]);
    producer.send_one_way("b").unwrap();
    assert_eq!(producer.status().one_way_failures, 1);
    script.otherwise(Do::Hold);
    producer.send_one_way("c").unwrap();
    producer.send_one_way("d").unwrap();
    assert_eq!(
        what(producer.send_one_way("e")),
        (ErrorKind::ResourceExhausted, Outcome::NotSent)
    );
    assert_eq!(producer.status().one_way_failures, 2);
    assert_eq!(producer.status().sent, 1);
}

#[tokio::test]
async fn trace_context_is_put_in() {
    #[derive(Clone, Default)]
    struct Context(Arc<Mutex<u32>>);
    impl Propagator for Context {
        fn inject(&self, set: &mut dyn FnMut(&str, &str)) {
            *self.0.lock().unwrap() += 1;
            set("traceparent", "00-1-2-01");
        }
    }
    let context = Context::default();
    let script = Script::new(1, 1);
    script.otherwise(Do::Hold);
    let mq = script.mq_with(ClientOptions::default().with_propagator(context.clone()));
    let producer = mq.producer("t").await.unwrap();
    let _pending = producer.enqueue("m").await.unwrap();
    let batch = script.held().await;
    assert_eq!(
        batch.messages()[0].headers().text("traceparent"),
        Some("00-1-2-01")
    );
    assert_eq!(*context.0.lock().unwrap(), 1);
}

#[tokio::test]
async fn options_out_of_range_and_unknown_topics_are_refused() {
    let mq = Script::new(1, 1).mq();
    let refused = [
        mq.producer("t").timeout(Duration::ZERO).await,
        mq.producer("t").buffer_messages(0).await,
        mq.producer("t").retry_backoff(Duration::from_secs(4000)).await,
        mq.producer("t").max_payload(usize::MAX).await,
    ];
    for result in refused {
        assert_eq!(what(result).0, ErrorKind::InvalidConfig);
    }
    assert_eq!(what(mq.producer("").await).0, ErrorKind::InvalidTopic);
    assert_eq!(what(mq.producer("none").await).0, ErrorKind::TopicNotFound);
}
