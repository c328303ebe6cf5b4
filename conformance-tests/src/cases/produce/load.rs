//! Many messages at once.

use std::{collections::BTreeMap, time::Duration};

use mq_api::Message;

use crate::{
    checker::Expect,
    context::Context,
    failure::{CaseResult, ensure, note},
    flow::{each_once, in_order, numbered, send_messages, send_to, take_acked, take_until},
    history::{How, What},
};

/// G6 partitions: messages without a key spread over all partitions, awaited one by one or pipelined.
pub(super) async fn keyless_messages_spread(cx: Context) -> CaseResult {
    const MESSAGES: usize = 10_000;
    let topic = cx.topic("spread", 4).await?;
    let mq = cx.mq().await?;
    let count = |what: &str, partitions: Vec<u32>| -> CaseResult {
        let mut counts: BTreeMap<u32, usize> = (0..4).map(|partition| (partition, 0)).collect();
        for partition in partitions {
            *counts.entry(partition).or_default() += 1;
        }
        note!(cx, "{what}: {counts:?}");
        ensure!(
            counts.len() == 4 && counts.values().all(|n| *n >= MESSAGES / 10),
            "{what}: {MESSAGES} messages over 4 partitions: {counts:?}, each should have a tenth at least"
        );
        Ok(())
    };
    let producer = mq.producer(&topic).await?;
    let messages = (0..MESSAGES).map(|_| Message::new("pipelined"));
    let receipts = send_messages(&cx, &producer, messages).await?;
    count(
        "pipelined",
        receipts.iter().map(|receipt| receipt.partition).collect(),
    )?;

    let tasks = (0..8).map(|_| {
        let producer = producer.clone();
        tokio::spawn(async move {
            let mut partitions = Vec::with_capacity(MESSAGES / 8);
            for _ in 0..MESSAGES / 8 {
                partitions.push(producer.produce("awaited").await?.partition);
            }
            Ok::<_, mq_api::Error>(partitions)
        })
    });
    let mut partitions = Vec::with_capacity(MESSAGES);
    for task in futures_util::future::join_all(tasks).await {
        partitions.extend(task??);
    }
    count("awaited one by one", partitions)
}

/// G3 order: what one task enqueues to one partition, or with one key, arrives in that order.
pub(super) async fn enqueued_messages_arrive_in_order(cx: Context) -> CaseResult {
    const MESSAGES: usize = 10_000;
    let mq = cx.mq().await?;
    let topic = cx.topic("ordered", 4).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let by_partition = numbered("p", MESSAGES);
    send_to(&cx, &producer, 2, &by_partition).await?;
    let taken = take_acked(&cx, &consumer, MESSAGES).await?;
    let came: Vec<_> = taken.iter().map(|t| &t.payload).collect();
    in_order("messages enqueued to one partition", &came, &by_partition)?;
    let rising = taken.windows(2).all(|pair| pair[0].offset < pair[1].offset);
    ensure!(rising, "the offsets of one partition do not only grow");

    let by_key = numbered("k", MESSAGES);
    let keyed: Vec<_> = by_key
        .iter()
        .cloned()
        .map(|payload| Message::from(payload).with_key("one"))
        .collect();
    send_messages(&cx, &producer, keyed).await?;
    let taken = take_acked(&cx, &consumer, MESSAGES).await?;
    let came: Vec<_> = taken.iter().map(|t| &t.payload).collect();
    in_order("messages enqueued with one key", &came, &by_key)
}

/// G1 durable on Ok: many tasks on one producer send each message once.
pub(super) async fn many_tasks_send_each_message_once(cx: Context) -> CaseResult {
    const TASKS: usize = 16;
    const EACH: usize = 1000;
    let mq = cx.mq().await?;
    let topic = cx.topic("tasks", 4).await?;
    let producer = mq.producer(&topic).await?;
    let group = cx.name("group");
    let consumer = mq.consumer(&topic, &group).await?;
    let history = cx.history().clone();
    let senders = (0..TASKS).map(|task| {
        let mut sender = history.sender(&producer, &format!("task{task}"));
        tokio::spawn(async move {
            for _ in 0..EACH {
                sender.send(None, 20).await?;
            }
            Ok::<_, mq_api::Error>(())
        })
    });
    let senders = futures_util::future::join_all(senders);
    let receive = async {
        let mut acked = Vec::with_capacity(TASKS * EACH);
        let mut seen = 0;
        while acked.len() < TASKS * EACH {
            let delivery = cx
                .within("the next message", cx.times().progress, consumer.consume())
                .await??;
            cx.count_delivered(delivery.attempt());
            history.handed_over(&group, "m", &delivery);
            // A few are given back on their way; what is given back comes again, and no other does.
            seen += 1;
            let how = match (delivery.attempt(), seen % 500) {
                (1, 100) => How::Nack,
                (1, 200) => How::Drop,
                _ => How::Ack,
            };
            if how == How::Ack {
                acked.push(crate::flow::text(&delivery));
            }
            history.settle(&group, "m", delivery, how)?;
        }
        Ok::<_, crate::failure::Failure>(acked)
    };
    let (sent, received) = tokio::join!(senders, receive);
    for task in sent {
        task??;
    }
    cx.count_sent(TASKS * EACH);
    let mut expect = Expect::complete_for([&group]);
    // Keyless messages of one task change partitions; within each they keep their order.
    expect.ordered = true;
    history.check(&expect)?;
    let sent = history
        .records()
        .into_iter()
        .filter_map(|record| match record.what {
            What::Sent { payload, .. } => Some(payload),
            _ => None,
        });
    each_once("messages of 16 tasks", received?, sent)?;
    crate::flow::nothing(&cx, &consumer, Duration::from_millis(200)).await
}

/// G8 cancel safety: dropping sends at any point loses no message that was answered `Ok`, damages none, and
/// leaves the producer usable.
pub(super) async fn dropped_sends_damage_nothing(cx: Context) -> CaseResult {
    const SENDS: usize = 1000;
    let mq = cx.mq().await?;
    let topic = cx.topic("dropped", 3).await?;
    let producer = mq.producer(&topic).await?;
    let mut answered = Vec::new();
    let mut tried = Vec::new();
    let mut dropped = 0;
    for at in 0..SENDS {
        let payload = crate::history::payload("drop", at as u64, 50);
        tried.push(payload.clone());
        let send = producer.produce(payload.clone());
        let patience = Duration::from_micros(fastrand::u64(0..3000));
        let result = match at % 4 {
            // Polled once and dropped; dropped after a while; enqueued with the receipt dropped; awaited.
            0 => futures_util::FutureExt::now_or_never(send),
            1 => tokio::time::timeout(patience, send).await.ok(),
            2 => match tokio::time::timeout(patience, producer.enqueue(payload.clone())).await {
                Ok(pending) => {
                    drop(pending?);
                    None
                }
                Err(_) => None,
            },
            _ => Some(send.await),
        };
        match result {
            Some(result) => {
                result?;
                answered.push(payload);
            }
            None => dropped += 1,
        }
    }
    note!(cx, "{} sends answered Ok, {dropped} dropped", answered.len());
    ensure!(
        dropped >= SENDS / 4,
        "only {dropped} of {SENDS} sends were dropped"
    );
    producer.flush().await?;
    let last: Vec<String> = (0..3).map(|partition| format!("last-{partition}")).collect();
    for (partition, payload) in (0..).zip(&last) {
        producer.produce_to(partition, payload.clone()).await?;
    }
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_until(&cx, &consumer, answered.iter().chain(&last).cloned()).await?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &taken {
        *counts.entry(one.payload.as_str()).or_default() += 1;
    }
    for (payload, times) in counts {
        ensure!(times == 1, "{payload:?} came {times} times");
        ensure!(
            last.iter().any(|l| l == payload)
                || (crate::history::is_intact(payload) && tried.iter().any(|t| t == payload)),
            "damaged or unexpected: {payload:?}"
        );
    }
    let again = numbered("again", 10);
    send_to(&cx, &producer, 0, &again).await?;
    let taken = take_until(&cx, &consumer, again.iter().cloned()).await?;
    let came = taken
        .iter()
        .map(|t| &t.payload)
        .filter(|payload| payload.starts_with("again"));
    each_once("sends after the dropped ones", came, &again)
}
