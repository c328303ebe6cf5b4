//! The shared mode: members compete for single messages.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{ErrorKind, Mode, Result};
use tokio::{
    sync::{Barrier, Mutex},
    time::Instant,
};

use crate::{
    agent::{ConsumerSpec, ModeSpec, Settle},
    capability::Capability,
    context::{Context, Measured},
    failure::{CaseResult, Failure, ensure, note},
    flow::{each_once, nothing, numbered, one, one_within, refused, send_to, take_acked, text},
};

/// S1: more members than partitions all work at once, and each message goes to one of them. Guarantees 2 and 5.
pub(super) async fn more_members_than_partitions_all_work(cx: Context) -> CaseResult {
    const MEMBERS: usize = 4;
    let mq = cx.mq().await?;
    let topic = cx.topic("queue", 1).await?;
    let producer = mq.producer(&topic).await?;
    let mut members = Vec::new();
    for _ in 0..MEMBERS {
        members.push(mq.consumer(&topic, &topic).mode(Mode::Shared).prefetch(1).await?);
    }
    let sent = numbered("m", 200);
    send_to(&cx, &producer, 0, &sent).await?;

    let came: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let mut by_member = vec![0_usize; MEMBERS];
    // Nobody settles its first message before every member holds one.
    let barrier = Arc::new(Barrier::new(MEMBERS));
    // A member that has failed says why; the wait for the others ends then.
    let failed = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for (place, member) in members.iter().cloned().enumerate() {
        let (cx, came, barrier) = (cx.clone(), Arc::clone(&came), Arc::clone(&barrier));
        let failed = Arc::clone(&failed);
        tasks.spawn(async move {
            let begun = async {
                let first = one(&cx, &member).await?;
                cx.within(
                    "a message for each member at once",
                    cx.times().progress,
                    barrier.wait(),
                )
                .await?;
                Ok::<_, Failure>(first)
            };
            let first = begun
                .await
                .inspect_err(|_| failed.store(true, Ordering::SeqCst))?;
            let mut next = Some(first);
            let mut count = 0;
            while let Some(delivery) = next.take() {
                let payload = text(&delivery);
                delivery.ack()?;
                *came.lock().await.entry(payload).or_default() += 1;
                count += 1;
                next = loop {
                    match member.consume().await {
                        Ok(delivery) => break Some(delivery),
                        Err(error) if error.kind() == ErrorKind::Closed => break None,
                        Err(error) if error.is_retryable() => {}
                        Err(error) => return Err(error.into()),
                    }
                };
            }
            Ok::<_, Failure>((place, count))
        });
    }
    let complete = cx
        .eventually("all messages at the four members", 2 * cx.times().progress, || {
            let (came, failed) = (Arc::clone(&came), Arc::clone(&failed));
            async move { Ok((failed.load(Ordering::SeqCst) || came.lock().await.len() >= 200).then_some(())) }
        })
        .await;
    for member in &members {
        member.close().await?;
    }
    while let Some(task) = tasks.join_next().await {
        let (place, count) = task??;
        by_member[place] = count;
    }
    note!(cx, "messages by member: {by_member:?}");
    complete?;
    let came = came.lock().await;
    let came = came
        .iter()
        .flat_map(|(payload, n)| std::iter::repeat_n(payload, *n));
    each_once("four members that compete", came, &sent)?;
    let again = mq.consumer(&topic, &topic).mode(Mode::Shared).await?;
    send_to(&cx, &producer, 0, &["marker".to_owned()]).await?;
    let left = take_acked(&cx, &again, 1).await?;
    ensure!(
        left[0].payload == "marker",
        "everything was acked before the members closed, and {:?} came again",
        left[0].payload
    );
    Ok(())
}

/// S2: a message whose holder was killed comes to another member once its lease is over. Guarantee 2.
pub(super) async fn killed_holder_gives_up_its_message(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("killed", 1).await?;
    let producer = mq.producer(&topic).await?;
    let mut holder = cx.member("holder").await?;
    let mut spec = ConsumerSpec::new(&topic, &topic);
    spec.mode = ModeSpec::Shared;
    spec.prefetch = Some(1);
    holder.consume(spec).await?;
    let sent = numbered("m", 3);
    send_to(&cx, &producer, 0, &sent[..1]).await?;
    let held = holder.take(1, Settle::Keep).await?;
    ensure!(
        held.len() == 1 && held[0].payload == sent[0],
        "the holder was to hold {:?}, it has {held:?}",
        sent[0]
    );

    // The holder may have fetched one more than it was handed.
    let other = mq.consumer(&topic, &topic).mode(Mode::Shared).prefetch(1).await?;
    send_to(&cx, &producer, 0, &sent[1..]).await?;
    let free = one(&cx, &other).await?;
    ensure!(
        text(&free) != sent[0],
        "{:?} came to another member while its holder was alive",
        sent[0]
    );
    let mut came = vec![text(&free)];
    free.ack()?;

    let killed = Instant::now();
    holder.kill().await?;
    let limit = cx.times().message_lease + cx.times().crash_takeover;
    let mut attempt = 0;
    while came.len() < sent.len() {
        let delivery = one_within(&cx, &other, limit)
            .await
            .map_err(|f| f.during(format!("lost: what a killed member held; came {came:?}")))?;
        if text(&delivery) == sent[0] {
            cx.measure(Measured::CrashTakeover, killed.elapsed());
            attempt = delivery.attempt();
        }
        came.push(text(&delivery));
        delivery.ack()?;
    }
    each_once("a killed holder and another member", &came, &sent)?;
    ensure!(
        attempt >= 2,
        "{:?} was handed over before its holder was killed, and it came as attempt {attempt}",
        sent[0]
    );
    Ok(())
}

/// S3: a message that is held by a live member for three leases comes to nobody else, and its ack is good.
/// Guarantees 2 and 5.
pub(super) async fn held_message_stays_with_its_member(cx: Context) -> CaseResult {
    const ROUNDS: usize = 3;
    // A lease is extended well before a third of it is left. A server that does not answer a plain call of the same client
    // for that long can extend none, and the claim is about a member that reaches it: such a round proves nothing.
    let patience = cx.times().message_lease / 3;
    for round in 1..=ROUNDS {
        let (held, longest) = while_asking(&cx, held_for_three_leases(&cx)).await?;
        match held {
            Err(failure) if longest > patience && round < ROUNDS => {
                note!(
                    cx,
                    "a plain call took {longest:?} meanwhile, so once more after: {failure}"
                );
            }
            Err(failure) => {
                return Err(failure.during(format!("the longest plain call meanwhile took {longest:?}")));
            }
            Ok(()) => return Ok(()),
        }
    }
    Ok(())
}

/// Makes plain calls to the server as long as something runs; returns how that ended and the longest call.
async fn while_asking(
    cx: &Context,
    run: impl Future<Output = CaseResult>,
) -> CaseResult<(CaseResult, Duration)> {
    let (mq, topic) = (cx.mq().await?, cx.topic("asked", 1).await?);
    let mut longest = Duration::ZERO;
    let ask = async {
        loop {
            let begun = Instant::now();
            // An error is an answer too, and a late one counts as late.
            let _ = mq.describe_topic(&topic).await;
            longest = longest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = tokio::select! {
        ended = run => ended,
        never = ask => never,
    };
    Ok((ended, longest))
}

async fn held_for_three_leases(cx: &Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("held", 1).await?;
    let producer = mq.producer(&topic).await?;
    let open = || mq.consumer(&topic, &topic).mode(Mode::Shared).prefetch(1);
    let holder = open().await?;
    send_to(cx, &producer, 0, &["held".to_owned()]).await?;
    let held = one(cx, &holder).await?;
    let other = open().await?;
    // Three leases must pass: the time is what the claim is about.
    nothing(cx, &other, 3 * cx.times().message_lease)
        .await
        .map_err(|f| f.during("a message that its live member holds"))?;
    held.ack()
        .map_err(|error| Failure::from(error).during("the ack of a message held for three leases"))?;
    holder.commit().await?;
    send_to(cx, &producer, 0, &["next".to_owned()]).await?;
    holder.close().await?;
    let next = one(cx, &other).await?;
    ensure!(
        text(&next) == "next",
        "a message that was acked after three leases came again: {:?}",
        text(&next)
    );
    next.ack()?;
    Ok(())
}

/// S4: a group has one mode; a consumer of the same client that asks for another one is refused, and the first one
/// goes on. Guarantee 4.
pub(super) async fn a_group_has_one_mode(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("modes", 1).await?;
    let producer = mq.producer(&topic).await?;
    let modes: Vec<_> = [
        (Mode::Partitioned, Capability::Partitioned),
        (Mode::Shared, Capability::Shared),
        (Mode::Broadcast, Capability::Broadcast),
    ]
    .into_iter()
    .filter_map(|(mode, needed)| cx.can(needed).then_some(mode))
    .collect();
    if modes.len() < 2 {
        cx.refused(format!("{modes:?} is the only mode that is declared"));
        return Ok(());
    }
    for (place, mode) in modes.iter().enumerate() {
        let group = format!("group-{place}");
        let consumer = mq.consumer(&topic, &group).mode(*mode).await?;
        other_modes_are_refused(*mode, &modes, |other| {
            let opened = mq.consumer(&topic, &group).mode(other);
            async move { opened.await.map(drop) }
        })
        .await?;
        let payload = format!("to-{place}");
        send_to(&cx, &producer, 0, std::slice::from_ref(&payload)).await?;
        let came = take_acked(&cx, &consumer, place + 1).await?;
        ensure!(
            came.last().is_some_and(|last| last.payload == payload),
            "the first consumer was to go on, {came:?} came"
        );
        consumer.close().await?;
    }
    Ok(())
}

/// Checks that a group which is in one mode is opened in no other.
pub(crate) async fn other_modes_are_refused<F: Future<Output = Result<()>>>(
    mode: Mode,
    modes: &[Mode],
    open: impl Fn(Mode) -> F,
) -> CaseResult {
    for other in modes.iter().copied().filter(|other| *other != mode) {
        refused(
            &format!("{other:?} on a group that is {mode:?}"),
            open(other).await,
            ErrorKind::InvalidConfig,
        )?;
    }
    Ok(())
}
