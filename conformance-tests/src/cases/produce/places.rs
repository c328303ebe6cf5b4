//! Where messages go.

use std::collections::{BTreeMap, BTreeSet};

use mq_api::{ErrorKind, Message, Outcome};

use crate::{
    agent::ToSend,
    capability::Capability,
    context::Context,
    failure::{CaseResult, ensure, fail},
    flow::{each_once, numbered, refused, send, take_acked},
};

/// G6 partitions: a message goes to the partition that was named, and nowhere if there is none such.
pub(super) async fn explicit_partition_is_kept(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("named", 4).await?;
    let producer = mq.producer(&topic).await?;
    let mut sent = Vec::new();
    for partition in [3, 0, 2, 1, 3, 3, 0] {
        let payload = format!("to-{partition}-{}", sent.len());
        // A key does not matter where a partition is named.
        let receipt = producer
            .produce_to(partition, Message::from(payload.clone()).with_key("one key"))
            .await?;
        ensure!(
            receipt.partition == partition,
            "sent to partition {partition}, the receipt says {}",
            receipt.partition
        );
        sent.push(payload);
    }
    for partition in [4, 5, 1000, u32::MAX] {
        let error = refused(
            &format!("produce to partition {partition} of 4"),
            producer.produce_to(partition, "nowhere").await,
            ErrorKind::InvalidPartition,
        )?;
        ensure!(
            error.outcome() == Outcome::NotSent,
            "{error}: the outcome is {:?}",
            error.outcome()
        );
        ensure!(!error.is_retryable(), "{error} says that it is retryable");
    }
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_acked(&cx, &consumer, sent.len()).await?;
    each_once(
        "messages sent to named partitions",
        taken.iter().map(|t| &t.payload),
        &sent,
    )?;
    for one in &taken {
        ensure!(
            one.payload.starts_with(&format!("to-{}-", one.partition)),
            "{} came from partition {}",
            one.payload,
            one.partition
        );
    }
    crate::flow::nothing(&cx, &consumer, std::time::Duration::from_millis(200)).await
}

/// G3 keys: one key means one partition, whoever sends; different keys spread.
pub(super) async fn one_key_has_one_partition(cx: Context) -> CaseResult {
    const KEYS: usize = 200;
    const PARTITIONS: u32 = 8;
    let topic = cx.topic("keyed", PARTITIONS).await?;
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    let mut place = |key: &str, partition: u32, who: &str| -> CaseResult {
        let first = *places.entry(key.to_owned()).or_insert(partition);
        if first != partition {
            fail!("key {key:?} is in partition {first}, and {who} sent it to {partition}");
        }
        Ok(())
    };
    let keys: Vec<String> = (0..KEYS).map(|at| format!("key-{at}")).collect();
    for client in ["the first client", "the second client"] {
        let producer = cx.connect().await?.producer(&topic).await?;
        for key in &keys {
            let message = Message::new("k").with_key(key.clone());
            place(key, producer.produce(message).await?.partition, client)?;
        }
    }
    let mut member = cx.member("sender").await?;
    let messages = keys
        .iter()
        .map(|key| ToSend {
            payload: "k".to_owned(),
            key: Some(key.clone()),
            partition: None,
            delay: None,
        })
        .collect();
    for (key, sent) in keys.iter().zip(member.produce(&topic, messages).await?) {
        match sent {
            Ok((partition, _)) => place(key, partition, "a member of its own")?,
            Err(error) => fail!("a member could not send key {key:?}: {}", error.text),
        }
    }
    let used: BTreeSet<u32> = places.values().copied().collect();
    ensure!(
        used.len() == PARTITIONS as usize,
        "{KEYS} keys use only the partitions {used:?} of {PARTITIONS}"
    );
    let consumer = cx.mq().await?.consumer(&topic, cx.name("group")).await?;
    for _ in 0..KEYS * 3 {
        let delivery = crate::flow::one(&cx, &consumer).await?;
        let key = String::from_utf8_lossy(delivery.key().map(|k| &k[..]).unwrap_or_default()).into_owned();
        let expected = places.get(&key).copied();
        ensure!(
            expected == Some(delivery.partition()),
            "key {key:?} came from partition {}, its receipts said {expected:?}",
            delivery.partition()
        );
        delivery.ack()?;
    }
    Ok(())
}

/// G6 receipts: they name the partition, and where the backend reports it the offset, which leads to the
/// message.
pub(super) async fn receipts_name_the_place(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("receipts", 3).await?;
    let producer = mq.producer(&topic).await?;
    let payloads = numbered("r", 90);
    let receipts = send(&cx, &producer, &payloads).await?;
    ensure!(
        receipts.len() == payloads.len(),
        "{} messages gave {} receipts",
        payloads.len(),
        receipts.len()
    );
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_acked(&cx, &consumer, payloads.len()).await?;
    let came: BTreeMap<&str, (u32, u64)> = taken
        .iter()
        .map(|t| (t.payload.as_str(), (t.partition, t.offset)))
        .collect();
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for (payload, receipt) in payloads.iter().zip(&receipts) {
        let place = came.get(payload.as_str()).copied();
        ensure!(
            place.map(|(partition, _)| partition) == Some(receipt.partition),
            "{payload}: the receipt says partition {}, it came from {place:?}",
            receipt.partition
        );
        if !cx.can(Capability::ReceiptOffset) {
            ensure!(
                receipt.offset.is_none(),
                "{payload}: the backend declares no receipt offsets and reports {:?}",
                receipt.offset
            );
            continue;
        }
        let Some(offset) = receipt.offset else {
            fail!("{payload}: the backend declares receipt offsets and reports none")
        };
        ensure!(
            place.map(|(_, offset)| offset) == Some(offset),
            "{payload}: the receipt says offset {offset}, it came from {place:?}"
        );
        if let Some(before) = last.insert(receipt.partition, offset) {
            ensure!(
                before < offset,
                "{payload}: the offset {offset} of partition {} is not above the one before, {before}",
                receipt.partition
            );
        }
    }
    if cx.can(Capability::ReceiptOffset) && cx.can(Capability::Reader) {
        let reader = mq.reader(&topic).await?;
        for (payload, receipt) in payloads.iter().zip(&receipts).step_by(7) {
            let at = receipt.offset.unwrap_or_default();
            let read = reader.pull(receipt.partition, at, 1).await?;
            let found = read
                .first()
                .map(|m| (m.offset(), String::from_utf8_lossy(m.payload()).into_owned()));
            ensure!(
                found == Some((at, payload.clone())),
                "reading partition {} at offset {at}, where {payload} is, gives {found:?}",
                receipt.partition
            );
        }
        reader.close().await?;
    }
    Ok(())
}
