//! What comes, in which order, and how it is taken.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mq_api::{Consumer, ErrorKind};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    cases::steps::{all_first_attempts, nothing_but_the_marker, payloads},
    context::Context,
    failure::{CaseResult, Failure, ensure, fail, note},
    flow::{Taken, each_once, in_order, list, numbered, refused, send_to, take_acked, take_until, text},
};

/// C3: first deliveries of each partition come in the order in which they were produced. Guarantee 3.
pub(super) async fn partitions_keep_their_order(cx: Context) -> CaseResult {
    const PARTITIONS: u32 = 4;
    const EACH: usize = 1000;
    let mq = cx.mq().await?;
    let topic = cx.topic("order", PARTITIONS).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let sent: Vec<_> = (0..PARTITIONS)
        .map(|partition| numbered(&format!("p{partition}"), EACH))
        .collect();
    let sends = async {
        let all = (0..)
            .zip(&sent)
            .map(|(partition, some)| send_to(&cx, &producer, partition, some));
        futures_util::future::try_join_all(all).await
    };
    let receives = take_acked(&cx, &consumer, EACH * sent.len());
    let (_, taken) = tokio::try_join!(sends, receives)?;
    let mut came: BTreeMap<u32, Vec<&Taken>> = BTreeMap::new();
    for one in &taken {
        came.entry(one.partition).or_default().push(one);
    }
    for (partition, sent) in (0..).zip(&sent) {
        let came = came.remove(&partition).unwrap_or_default();
        let names: Vec<_> = came.iter().map(|one| one.payload.as_str()).collect();
        in_order(&format!("partition {partition}"), &names, sent)?;
        ensure!(
            came.is_sorted_by(|a, b| a.offset < b.offset),
            "partition {partition}: offsets do not grow: {}",
            list(&came)
        );
    }
    Ok(())
}

/// C8: a thousand `consume` calls that are dropped before they return lose nothing, change no order and count no
/// attempt. Guarantee 8.
pub(super) async fn cancelled_consume_loses_nothing(cx: Context) -> CaseResult {
    const MESSAGES: usize = 600;
    const CANCELS: usize = 1000;
    let mq = cx.mq().await?;
    let topic = cx.topic("cancel", 1).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let sent = numbered("m", MESSAGES);
    // In pieces, so that calls are dropped while they wait and while something is on its way to them.
    let sends = async {
        for piece in sent.chunks(10) {
            send_to(&cx, &producer, 0, piece).await?;
        }
        Ok::<_, Failure>(())
    };
    let receives = async {
        let end = Instant::now() + 2 * cx.times().progress;
        let mut taken: Vec<Taken> = Vec::new();
        let mut cancelled = 0_usize;
        while taken.len() < MESSAGES || cancelled < CANCELS {
            if Instant::now() >= end {
                note!(cx, "{cancelled} calls were dropped");
                each_once("with dropped calls between", payloads(&taken), &sent)?;
                fail!("{cancelled} of {CANCELS} calls were dropped in time");
            }
            let patience = match fastrand::u8(0..3) {
                0 => Duration::ZERO,
                1 => Duration::from_micros(fastrand::u64(0..200)),
                _ => Duration::from_micros(fastrand::u64(0..3000)),
            };
            match timeout(patience, consumer.consume()).await {
                Ok(delivery) => {
                    let delivery = delivery?;
                    taken.push(Taken::of(&delivery));
                    delivery.ack()?;
                }
                Err(_) => cancelled += 1,
            }
        }
        Ok(taken)
    };
    let ((), taken) = tokio::try_join!(sends, receives)?;
    in_order("with dropped calls between", &payloads(&taken), &sent)?;
    all_first_attempts("with dropped calls between", &taken)?;
    nothing_but_the_marker(&cx, &producer, &consumer, 0).await
}

/// C9: a channel holds no more than its capacity; dropped with messages inside, these come again in order and no
/// attempt is counted. Guarantees 2 and 9.
pub(super) async fn channel_is_bounded_and_gives_back(cx: Context) -> CaseResult {
    const CAPACITY: usize = 8;
    let mq = cx.mq().await?;
    let topic = cx.topic("channel", 1).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let sent = numbered("m", 100);
    send_to(&cx, &producer, 0, &sent).await?;
    let limit = cx.times().progress;
    let mut taken = Vec::new();
    // Three channels one after the other, each dropped with messages inside.
    for round in 0..3 {
        cx.eventually("more messages at hand than a channel may hold", limit, || {
            let at_hand = consumer.status().buffered_messages;
            async move { Ok((at_hand > CAPACITY).then_some(())) }
        })
        .await?;
        let mut channel = consumer.channel(CAPACITY)?;
        ensure!(
            channel.capacity() == CAPACITY,
            "a channel of {CAPACITY} says that it holds {}",
            channel.capacity()
        );
        for _ in 0..=round {
            let delivery = cx
                .within("a delivery by the channel", limit, channel.recv())
                .await??;
            taken.push(Taken::of(&delivery));
            delivery.ack()?;
            ensure!(
                channel.len() <= CAPACITY,
                "a channel of {CAPACITY} holds {} deliveries",
                channel.len()
            );
        }
        all_first_attempts("by a channel", &taken)?;
        note!(cx, "a channel is dropped with {} messages inside", channel.len());
        ensure!(
            !channel.is_empty(),
            "with more than {CAPACITY} messages at hand, the channel keeps none ahead"
        );
        drop(channel);
    }
    taken.extend(take_until(&cx, &consumer, &sent[taken.len()..]).await?);
    in_order("three channels, then the consumer", &payloads(&taken), &sent)?;
    all_first_attempts("after a dropped channel", &taken)?;
    nothing_but_the_marker(&cx, &producer, &consumer, 0).await
}

/// C10: eight tasks that consume from one consumer get each message once among them. Guarantee 5.
pub(super) async fn each_message_goes_to_one_task(cx: Context) -> CaseResult {
    const TASKS: usize = 8;
    const EACH: usize = 1000;
    let mq = cx.mq().await?;
    let topic = cx.topic("tasks", 2).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let came: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let (consumer, came) = (consumer.clone(), Arc::clone(&came));
        tasks.spawn(async move {
            loop {
                match consumer.consume().await {
                    Ok(delivery) => {
                        // Acked before it is counted: the consumer is closed as soon as all are.
                        let payload = text(&delivery);
                        delivery.ack()?;
                        came.lock().await.push(payload);
                    }
                    Err(error) if error.kind() == ErrorKind::Closed => return Ok::<_, Failure>(()),
                    Err(error) => return Err(error.into()),
                }
            }
        });
    }
    let sent = [numbered("p0", EACH), numbered("p1", EACH)];
    tokio::try_join!(
        send_to(&cx, &producer, 0, &sent[0]),
        send_to(&cx, &producer, 1, &sent[1])
    )?;
    let sent = sent.concat();
    let all_came = cx
        .eventually("all messages at the eight tasks", cx.times().progress, || {
            let came = Arc::clone(&came);
            async move { Ok((came.lock().await.len() >= 2 * EACH).then_some(())) }
        })
        .await;
    cx.within("close", cx.times().progress, consumer.close())
        .await??;
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    each_once("eight tasks on one consumer", &*came.lock().await, &sent)?;
    all_came
}

/// C11: a consumer of a topic that does not exist is refused as `TopicNotFound` within its deadline, and the client
/// goes on working. Guarantees 9 and 10.
pub(super) async fn unknown_topic_is_refused(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.name("unknown");
    let opened = cx
        .within(
            "the refusal of a consumer of an unknown topic",
            cx.times().progress,
            mq.consumer(&topic, &topic).into_future(),
        )
        .await?;
    let error = refused("a consumer of an unknown topic", opened, ErrorKind::TopicNotFound)?;
    ensure!(
        error.to_string().contains(&topic),
        "the error does not name the topic {topic}: {error}"
    );
    mq.create_topic(&topic, 1).await?;
    cx.delete_later(&topic);
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    send_to(&cx, &producer, 0, &["m".to_owned()]).await?;
    take_acked(&cx, &consumer, 1).await?;
    Ok(())
}

/// C13: a batch holds at least one delivery and at most as many as asked for, and does not wait to be full.
/// Guarantee 9.
pub(super) async fn batch_does_not_wait_to_fill(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("batch", 1).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;

    let few = numbered("few", 3);
    send_to(&cx, &producer, 0, &few).await?;
    let mut came = Vec::new();
    while came.len() < few.len() {
        came.extend(batch(&cx, &consumer, 10).await?);
    }
    in_order("fewer messages than the batch may hold", &came, &few)?;

    let lone = ["lone".to_owned()];
    let waits = batch(&cx, &consumer, 10);
    let (came, _) = tokio::try_join!(waits, send_to(&cx, &producer, 0, &lone))?;
    in_order("a batch that waited for one message", &came, &lone)?;

    let many = numbered("many", 100);
    send_to(&cx, &producer, 0, &many).await?;
    let (mut came, mut largest) = (Vec::new(), 0);
    while came.len() < many.len() {
        let part = batch(&cx, &consumer, 10).await?;
        largest = largest.max(part.len());
        came.extend(part);
    }
    in_order("many messages in batches of at most ten", &came, &many)?;
    ensure!(
        largest > 1,
        "with {} messages there, no batch of at most ten held more than one",
        many.len()
    );
    Ok(())
}

/// Receives one batch, checks its size and acks it.
async fn batch(cx: &Context, consumer: &Consumer, max: usize) -> CaseResult<Vec<String>> {
    let deliveries = cx
        .within(
            format!("a batch of at most {max} where there are messages"),
            cx.times().progress,
            consumer.consume_batch(max),
        )
        .await??;
    let came: Vec<_> = deliveries.iter().map(text).collect();
    ensure!(
        (1..=max).contains(&came.len()),
        "a batch of 1 to {max} holds {} deliveries: {}",
        came.len(),
        list(&came)
    );
    consumer.ack_all(deliveries)?;
    Ok(came)
}
