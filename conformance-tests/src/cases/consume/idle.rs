//! What a consumer costs that has nothing to do.

use std::time::Duration;

use mq_api::Consumer;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    cases::resources::processor_time,
    context::{Context, Measured},
    control::Control,
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
    let consumer = mq.consumer(&topic, &topic).await?;
    for partition in 0..PARTITIONS {
        send_to(&cx, &producer, partition, &["warm".to_owned()]).await?;
    }
    take_acked(&cx, &consumer, PARTITIONS as usize).await?;
    consumer.commit().await?;

    // A task of its own: a consumer that spins must not hold up who watches it.
    let mut waiting = wait(&cx, &consumer);
    let before = processor_time()?;
    sleep(IDLE).await;
    let used = processor_time()?.saturating_sub(before);
    note!(cx, "used {used:?} of processor time in {IDLE:?}");
    ensure!(
        used <= IDLE / 100,
        "spins: a consumer with nothing to do used {used:?} of processor time in {IDLE:?}, allowed are {:?}",
        IDLE / 100
    );
    let mut control = Control::start().await?;
    let (mut took, mut machine) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let sent = async {
            producer.produce_to(round % PARTITIONS, "wake").await?;
            Ok(Instant::now())
        };
        let (sent, control): (CaseResult<_>, _) = tokio::join!(sent, control.late(Instant::now()));
        let woken = waiting.await??;
        took.push(woken.saturating_duration_since(sent?));
        machine.push(control?);
        waiting = wait(&cx, &consumer);
        // Long enough for the other side to wait again, and not in step with any timer.
        sleep(Duration::from_millis(fastrand::u64(20..120))).await;
    }
    waiting.abort();
    note!(
        cx,
        "wake-up times {took:?}, plain exchanges beside them {machine:?}"
    );
    // A machine that is busy with something else may hold up a few; the backend's own delay shows in most of them.
    let (typical, machine) = (middle(&mut took), middle(&mut machine));
    cx.measure(Measured::WakeUp, typical);
    ensure!(
        typical <= cx.times().wake_up + machine,
        "late: half of the messages took {typical:?} or more from a produce that was Ok to the hand-over, declared are \
         {:?}, and a plain exchange with another thread took {machine:?}: {took:?}",
        cx.times().wake_up
    );
    Ok(())
}

fn middle(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Waits for one message in a task of its own, which returns when it came.
fn wait(cx: &Context, consumer: &Consumer) -> JoinHandle<CaseResult<Instant>> {
    let (cx, consumer) = (cx.clone(), consumer.clone());
    tokio::spawn(async move {
        let limit = Duration::from_secs(15) + cx.times().progress;
        let delivery = cx
            .within("the message that ends the wait", limit, consumer.consume())
            .await??;
        let came = Instant::now();
        cx.count_delivered(delivery.attempt());
        delivery.ack()?;
        Ok(came)
    })
}
