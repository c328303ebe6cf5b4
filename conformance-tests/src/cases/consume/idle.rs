//! What a consumer costs that has nothing to do.

use std::time::Duration;

use mq_api::{Consumer, Producer};
use tokio::time::{Instant, sleep};

use crate::{
    cases::resources::processor_time,
    context::{Context, Measured},
    failure::{CaseResult, ensure, note},
    flow::{send_to, take_acked},
};

const PARTITIONS: u32 = 4;

/// C12: a consumer of four partitions with nothing to consume uses at most one hundredth of a core, and hands over
/// the next message within the declared wake-up time. Guarantee 9.
pub(super) async fn idle_consumer_costs_nothing_and_wakes(cx: Context) -> CaseResult {
    const IDLE: Duration = Duration::from_secs(10);
    const ROUNDS: u32 = 20;
    let mq = cx.mq().await?;
    let topic = cx.topic("idle", PARTITIONS).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, "group").await?;
    for partition in 0..PARTITIONS {
        send_to(&cx, &producer, partition, &["warm".to_owned()]).await?;
    }
    take_acked(&cx, &consumer, PARTITIONS as usize).await?;
    consumer.commit().await?;

    let before = processor_time()?;
    let waits = async {
        sleep(IDLE).await;
        let used = processor_time()?.saturating_sub(before);
        note!(cx, "used {used:?} of processor time in {IDLE:?}");
        ensure!(
            used <= IDLE / 100,
            "spins: a consumer with nothing to do used {used:?} of processor time in {IDLE:?}, allowed are {:?}",
            IDLE / 100
        );
        wake(&producer, 3).await
    };
    let (sent, woken) = tokio::try_join!(waits, end_of_wait(&cx, &consumer))?;
    let mut took = vec![woken.saturating_duration_since(sent)];
    for round in 0..ROUNDS {
        let waits = async {
            // Long enough for the other side to wait, and not in step with any timer.
            sleep(Duration::from_millis(fastrand::u64(20..120))).await;
            wake(&producer, round % PARTITIONS).await
        };
        let (sent, woken) = tokio::try_join!(waits, end_of_wait(&cx, &consumer))?;
        took.push(woken.saturating_duration_since(sent));
    }
    note!(cx, "wake-up times {took:?}");
    took.sort_unstable();
    // A machine that is busy with something else may hold up a few; the backend's own delay shows in most of them.
    let typical = took[took.len() / 2];
    cx.measure(Measured::WakeUp, typical);
    ensure!(
        typical <= cx.times().wake_up,
        "late: half of the messages took {typical:?} or more from produce to hand-over, declared are {:?}: {took:?}",
        cx.times().wake_up
    );
    Ok(())
}

/// Produces one message and returns when that was begun.
async fn wake(producer: &Producer, partition: u32) -> CaseResult<Instant> {
    let begun = Instant::now();
    producer.produce_to(partition, "wake").await?;
    Ok(begun)
}

/// Waits for one message and returns when it came.
async fn end_of_wait(cx: &Context, consumer: &Consumer) -> CaseResult<Instant> {
    let limit = Duration::from_secs(15) + cx.times().progress;
    let delivery = cx
        .within("the message that ends the wait", limit, consumer.consume())
        .await??;
    let came = Instant::now();
    cx.count_delivered(delivery.attempt());
    delivery.ack()?;
    Ok(came)
}
