//! Delay: messages that are held back when they are produced.

use std::{collections::BTreeMap, time::Duration};

use mq_api::{Clock, ErrorKind, Message, Moment, Producer, Timestamp};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

use crate::{
    agent::ToSend,
    capability::Capability,
    cases::steps::{one_through_outages, payloads, take_until_through_outages},
    cases::{Case, case},
    context::{Context, Measured},
    failure::{CaseResult, ensure, note},
    flow::{each_once, list, numbered, one, refused, send_to, take_acked, text},
    harness::Fault,
};

pub(super) const CASES: &[Case] = &[
    case!("D1", Delay, delayed_message_is_never_early_and_hardly_late).needs(&[Capability::Delay]),
    case!("D2", Delay, delayed_message_survives_a_restart)
        .needs(&[Capability::Delay])
        .breaks_its_server(&[Fault::Restart]),
    case!("D3", Delay, killed_mover_loses_nothing).needs(&[Capability::Delay]),
];

/// What one message of D1 may come at.
struct Due {
    earliest: Moment,
    /// Without the precision and what the machine and the server add.
    latest: Moment,
    /// How late a plain message was stored that a plain timer sent at the same moment.
    plain: JoinHandle<mq_api::Result<Duration>>,
}

impl Due {
    /// Measures beside the message what the machine and the server add, by a producer of another topic.
    fn new(earliest: Moment, latest: Moment, beside: &Producer) -> Self {
        let at = Instant::now() + latest.saturating_since(Clock::system().now());
        let beside = beside.clone();
        let plain = tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            beside.produce("plain").await?;
            Ok(at.elapsed())
        });
        Self {
            earliest,
            latest,
            plain,
        }
    }
}

/// D1: a delayed message never comes before it is due, and at most the stated precision late; one without delay, or due
/// in the past, is not held up by those before it. Guarantee 3.
async fn delayed_message_is_never_early_and_hardly_late(cx: Context) -> CaseResult {
    const DELAYS: [u64; 6] = [1500, 300, 900, 600, 1200, 450];
    /// Those, one that names its time, one whose time is past, and one without delay.
    const MESSAGES: usize = DELAYS.len() + 3;
    let mq = cx.mq().await?;
    let topic = cx.topic("delay", 2).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    send_to(&cx, &producer, 0, &["warm".to_owned()]).await?;
    take_acked(&cx, &consumer, 1).await?;

    // Taken while the others are sent: a busy machine may send slowly.
    let (found, mut handed) = mpsc::unbounded_channel();
    let taking: JoinHandle<CaseResult> = tokio::spawn({
        let (cx, consumer) = (cx.clone(), consumer.clone());
        async move {
            for _ in 0..MESSAGES {
                let delivery = one(&cx, &consumer).await?;
                let _ = found.send((text(&delivery), delivery.handed_over_at()));
                delivery.ack()?;
            }
            Ok(())
        }
    });

    let clock = Clock::system();
    let beside = mq.producer(cx.topic("beside", 1).await?).await?;
    beside.produce("warm").await?;
    let mut due: BTreeMap<String, Due> = BTreeMap::new();
    for (at, millis) in (0_u32..).zip(DELAYS) {
        let delay = Duration::from_millis(millis);
        let payload = format!("after-{millis}");
        let before = clock.now();
        let message = Message::new(payload.clone()).with_delay(delay);
        let receipt = producer.produce_to(at % 2, message).await?;
        ensure!(
            receipt.partition == at % 2,
            "{payload} was sent to partition {}, its receipt says {}",
            at % 2,
            receipt.partition
        );
        due.insert(payload, Due::new(before + delay, clock.now() + delay, &beside));
    }
    let at = Timestamp::now().saturating_add(Duration::from_millis(800));
    let until_then = at.saturating_since(Timestamp::now());
    let then = clock.now() + until_then;
    producer
        .produce_to(0, Message::new("at").with_deliver_at(at))
        .await?;
    let earliest = then - Duration::from_millis(2);
    due.insert(
        "at".to_owned(),
        Due::new(earliest, then.max(clock.now()), &beside),
    );
    // These are due at once, and behind messages of their partitions that are not.
    let past = Timestamp::from_millis(Timestamp::now().as_millis() - 60_000);
    for (partition, name, message) in [
        (1, "past", Message::new("past").with_deliver_at(past)),
        (0, "now", Message::new("now")),
    ] {
        let before = clock.now();
        producer.produce_to(partition, message).await?;
        due.insert(name.to_owned(), Due::new(before, clock.now(), &beside));
    }
    cx.count_sent(due.len());

    let mut came = Vec::new();
    let (mut worst, precision) = (Duration::ZERO, cx.capabilities().delay_precision);
    let sent: Vec<_> = due.keys().cloned().collect();
    while let Some((payload, handed)) = handed.recv().await {
        if let Some(due) = due.remove(&payload) {
            ensure!(
                handed >= due.earliest,
                "early: {payload:?} was handed over {:?} before it was due",
                due.earliest.saturating_since(handed)
            );
            let late = handed.saturating_since(due.latest);
            let plain = due.plain.await??;
            note!(
                cx,
                "{payload:?} was {late:?} late, a plain message by a timer {plain:?}"
            );
            worst = worst.max(late.saturating_sub(plain));
            ensure!(
                late <= precision + cx.times().wake_up + plain,
                "late: {payload:?} was handed over {late:?} after it was due, stated are {precision:?} beside the \
                 wake-up time of {:?} and the {plain:?} after which a plain message was stored that a timer sent then",
                cx.times().wake_up
            );
        }
        came.push(payload);
    }
    taking
        .await?
        .map_err(|f| f.during(format!("came so far {came:?}")))?;
    cx.measure(Measured::DelayLate, worst);
    each_once("delayed messages and others", &came, &sent)?;

    if let Some(most) = cx.capabilities().max_delay {
        let too_long = Message::new("never").with_delay(most + Duration::from_secs(1));
        let sent = producer.produce(too_long).await;
        refused("a delay over the maximum", sent, ErrorKind::InvalidMessage)?;
    }
    Ok(())
}

/// D2: delayed messages survive a restart of the server: each comes, none before it is due. Guarantee 1.
async fn delayed_message_survives_a_restart(cx: Context) -> CaseResult {
    const DELAY: Duration = Duration::from_secs(3);
    let mq = cx.mq().await?;
    let topic = cx.topic("restart", 2).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, &topic).await?;
    let sent = numbered("m", 20);
    let clock = Clock::system();
    let mut earliest = BTreeMap::new();
    for (at, payload) in (0_u32..).zip(&sent) {
        earliest.insert(payload.clone(), clock.now() + DELAY);
        let message = Message::new(payload.clone()).with_delay(DELAY);
        producer.produce_to(at % 2, message).await?;
    }
    cx.count_sent(sent.len());
    cx.fault("restart", cx.server().restart()).await?;
    if earliest.values().any(|due| clock.now() > *due) {
        note!(cx, "the restart took longer than the delay");
    }
    let until = Instant::now() + DELAY + cx.times().progress;
    let mut came = Vec::new();
    while sent.iter().any(|payload| !came.contains(payload)) {
        let Some(delivery) = one_through_outages(&cx, &consumer, until).await? else {
            break;
        };
        let payload = text(&delivery);
        if let Some(due) = earliest.get(&payload) {
            ensure!(
                delivery.handed_over_at() >= *due,
                "early: {payload:?} was handed over {:?} before it was due, after a restart of the server",
                due.saturating_since(delivery.handed_over_at())
            );
        }
        if let Err(error) = delivery.ack() {
            note!(cx, "ack of {payload:?}: {error}");
        }
        came.push(payload);
    }
    came.sort_unstable();
    came.dedup();
    each_once("delayed messages and a restart of the server", &came, &sent)
}

/// D3: a process that moves delayed messages is killed at any time around their due time: none is lost; what comes twice
/// is counted. Guarantee 2.
async fn killed_mover_loses_nothing(cx: Context) -> CaseResult {
    const ROUNDS: usize = 3;
    const EACH: usize = 40;
    let mq = cx.mq().await?;
    let topic = cx.topic("mover", 2).await?;
    // Opened first by the member, whose process is then the likeliest to move.
    let mut movers = Vec::new();
    for round in 0..ROUNDS {
        movers.push(cx.member(&format!("mover-{round}")).await?);
    }
    let consumer = mq.consumer(&topic, &topic).await?;
    let mut doubled = 0;
    for (round, mover) in movers.iter_mut().enumerate() {
        let delay = Duration::from_millis(1000);
        let sent = numbered(&format!("r{round}"), EACH);
        let messages = sent
            .iter()
            .zip((0..2).cycle())
            .map(|(payload, partition)| ToSend {
                payload: payload.clone(),
                key: None,
                partition: Some(partition),
                delay: Some(delay),
            })
            .collect();
        let begun = Instant::now();
        for result in mover.produce(&topic, messages).await? {
            if let Err(error) = result {
                return Err(crate::failure::Failure::new(format!(
                    "a delayed message was refused: {}",
                    error.text
                )));
            }
        }
        cx.count_sent(EACH);
        // Before the first is due, as the first comes, and in the midst of them.
        let mut early = Vec::new();
        if round > 0 {
            early = take_acked(&cx, &consumer, if round == 1 { 1 } else { EACH / 2 }).await?;
        }
        note!(
            cx,
            "round {round}: the mover is killed after {:?}",
            begun.elapsed()
        );
        mover.kill().await?;
        let rest: Vec<_> = sent
            .iter()
            .filter(|payload| !early.iter().any(|one| one.payload == **payload))
            .cloned()
            .collect();
        let limit = delay + cx.times().crash_takeover + cx.times().progress;
        let came = take_until_through_outages(&cx, &consumer, &rest, limit)
            .await
            .map_err(|f| f.during(format!("round {round}, the mover was killed")))?;
        let all = [payloads(&early), payloads(&came)].concat();
        let foreign: Vec<_> = all.iter().filter(|one| !one.starts_with('r')).collect();
        ensure!(foreign.is_empty(), "unexpected: {}", list(&foreign));
        doubled += all.len().saturating_sub(EACH);
    }
    note!(cx, "{doubled} of {} messages came more than once", ROUNDS * EACH);
    Ok(())
}
