//! What an ack does, and when it does nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    ErrorKind, Mode, Mq, Result, Support,
    driver::{AssignmentId, Commit, CommitOutcome, Consumer},
};

use super::{join, nothing_but_new};
use crate::{
    context::Context,
    failure::{CaseResult, Failure, ensure, note},
    flow::{self, each_once, numbered, send, send_to, take, take_acked},
    wrap::{Scope, Tweak, Tweaked},
};

/// G2 at least once: what is acked does not come again to the next member of the group.
pub(super) async fn acked_message_does_not_come_again(cx: Context) -> CaseResult {
    acked(cx, Mode::Partitioned).await
}

/// The same in shared mode.
pub(super) async fn shared_acked_message_does_not_come_again(cx: Context) -> CaseResult {
    acked(cx, Mode::Shared).await
}

async fn acked(cx: Context, mode: Mode) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("acked", 2).await?;
    let group = cx.name("group");
    let sent = numbered("a", 40);
    send(&cx, &mq.producer(&topic).await?, &sent).await?;
    let consumer = join(mq, &topic, &group, mode).await?;
    let taken = take_acked(&cx, &consumer, sent.len()).await?;
    each_once("first deliveries", taken.iter().map(|t| &t.payload), &sent)?;
    consumer.close().await?;
    note!(
        cx,
        "the member was closed; the next one is opened by another client"
    );
    let other = cx.connect().await?;
    let consumer = join(&other, &topic, &group, mode).await?;
    nothing_but_new(&cx, &other, &consumer).await
}

/// G2 at least once: what is not acked comes again to the next member of the group.
pub(super) async fn unacked_message_comes_back(cx: Context) -> CaseResult {
    unacked(cx, Mode::Partitioned).await
}

/// The same in shared mode.
pub(super) async fn shared_unacked_message_comes_back(cx: Context) -> CaseResult {
    unacked(cx, Mode::Shared).await
}

async fn unacked(cx: Context, mode: Mode) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("unacked", 1).await?;
    let group = cx.name("group");
    let sent = numbered("u", 10);
    send(&cx, &mq.producer(&topic).await?, &sent).await?;
    let consumer = join(mq, &topic, &group, mode).await?;
    let mut kept = Vec::new();
    let mut left = Vec::new();
    for delivery in take(&cx, &consumer, sent.len()).await? {
        // The first ones in the order of offsets are acked: no backend needs more than a watermark for that.
        if delivery.offset_rank(&sent) < 6 {
            delivery.ack()?;
        } else {
            left.push(flow::text(&delivery));
            kept.push(delivery);
        }
    }
    consumer.close().await?;
    drop(kept);
    let other = cx.connect().await?;
    let consumer = join(&other, &topic, &group, mode).await?;
    let taken = take_acked(&cx, &consumer, left.len())
        .await
        .map_err(|failure| failure.during(format!("lost: un-acked {left:?}")))?;
    each_once(
        "un-acked messages after a close",
        taken.iter().map(|t| &t.payload),
        &left,
    )?;
    nothing_but_new(&cx, &other, &consumer).await
}

/// Tells which of the sent payloads a delivery is.
trait Rank {
    fn offset_rank(&self, sent: &[String]) -> usize;
}

impl Rank for mq_api::Delivery {
    fn offset_rank(&self, sent: &[String]) -> usize {
        let payload = flow::text(self);
        sent.iter().position(|one| *one == payload).unwrap_or(usize::MAX)
    }
}

/// G9 bounded memory: messages that nobody settles stop their partition at the window, the status says so,
/// and acks release it; the other partitions flow on.
pub(super) async fn full_window_stops_until_acks_come(cx: Context) -> CaseResult {
    const WINDOW: usize = 10;
    let mq = cx.mq().await?;
    let topic = cx.topic("window", 2).await?;
    let producer = mq.producer(&topic).await?;
    let sent = numbered("w", 30);
    send_to(&cx, &producer, 0, &sent).await?;
    let consumer = mq.consumer(&topic, cx.name("group")).max_unacked(WINDOW).await?;
    let mut held = take(&cx, &consumer, WINDOW).await?;
    cx.stays_pending(
        "a message beyond the window of 10 was handed over",
        Duration::from_millis(500),
        consumer.consume(),
    )
    .await?;
    let status = consumer.status();
    let Some(partition) = status.partitions.iter().find(|p| p.partition == 0) else {
        crate::failure::fail!("the status shows no partition 0: {status:?}")
    };
    ensure!(
        partition.window_full && partition.unacked == WINDOW,
        "10 messages of a window of 10 are un-acked, and the status says {} with window_full {}",
        partition.unacked,
        partition.window_full
    );
    // Another partition is not held up.
    send_to(&cx, &producer, 1, &["beside".to_owned()]).await?;
    let beside = take_acked(&cx, &consumer, 1).await?;
    each_once(
        "another partition while one is full",
        beside.iter().map(|t| &t.payload),
        ["beside"],
    )?;

    for round in 0..5 {
        held.remove(0).ack()?;
        held.extend(take(&cx, &consumer, 1).await?);
        let place = WINDOW + round;
        let came = held.last().map(flow::text);
        ensure!(
            came.as_ref() == sent.get(place),
            "an ack released {came:?}, and the next one is {:?}",
            sent.get(place)
        );
    }
    for delivery in held {
        delivery.ack()?;
    }
    let rest = take_acked(&cx, &consumer, sent.len() - WINDOW - 5).await?;
    each_once(
        "the rest behind the window",
        rest.iter().map(|t| &t.payload),
        &sent[WINDOW + 5..],
    )?;
    let full = consumer.status().partitions.iter().any(|p| p.window_full);
    ensure!(
        !full,
        "everything is acked and the status says that a window is full"
    );
    Ok(())
}

/// Has a member's driver store one more commit before the next: one that was held up somewhere until now.
#[derive(Debug, Default)]
struct LateCommit {
    late: Mutex<Option<Commit>>,
    answer: Mutex<Option<Result<CommitOutcome>>>,
}

#[async_trait]
impl Tweak for LateCommit {
    async fn commit(
        &self,
        _scope: &Scope,
        inner: &dyn Consumer,
        commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(late) = late {
            let answer = inner.commit(vec![late]).await.pop();
            *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        }
        inner.commit(commits).await
    }
}

/// G5 exclusive ownership: an ack after the partition has moved on is refused as stale and does no harm; where commits are
/// fenced, so is a commit that reaches the backend only then.
pub(super) async fn late_ack_is_stale_and_harmless(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let late = Arc::new(LateCommit::default());
    let tweaked = Tweaked::new(
        Arc::clone(cx.connect().await?.driver()),
        Arc::clone(&late) as Arc<dyn Tweak>,
    );
    let firsts = Mq::from_driver(tweaked);
    cx.keep(&firsts);
    let topic = cx.topic("stale", 2).await?;
    let group = cx.name("group");
    let producer = mq.producer(&topic).await?;
    for partition in 0..2 {
        send_to(&cx, &producer, partition, &numbered(&format!("s{partition}"), 5)).await?;
    }
    let first = firsts.consumer(&topic, &group).await?;
    let held = take(&cx, &first, 10).await?;
    let other = cx.connect().await?;
    let second = other.consumer(&topic, &group).await?;
    // From the moment that the second member has a partition, the first one has lost it, whatever it thinks.
    let kept = cx
        .eventually(
            "the second member owns one of two partitions",
            cx.times().join,
            || async {
                Ok(match second.assignment().as_slice() {
                    [theirs] => Some(1 - theirs.partition),
                    _ => None,
                })
            },
        )
        .await?;
    let (mut stale, mut commit_of_old) = (0, None);
    for delivery in held {
        let (partition, offset) = (delivery.partition(), delivery.offset());
        if partition != kept && commit_of_old.is_none() {
            let epoch = delivery.epoch();
            commit_of_old = Some(Commit::new(AssignmentId { partition, epoch }, offset));
        }
        let acked = delivery.ack();
        if partition == kept {
            acked?;
            continue;
        }
        let error = flow::refused(
            &format!("ack of partition {partition}, offset {offset}, which has moved on"),
            acked,
            ErrorKind::StaleAck,
        )?;
        ensure!(!error.is_retryable(), "{error} says that it is retryable");
        stale += 1;
    }
    let counted = first.status().stale_acks;
    ensure!(
        counted == stale,
        "{stale} acks were stale and {counted} are counted"
    );
    let moved = numbered(&format!("s{}", 1 - kept), 5);
    let taken = take_acked(&cx, &second, moved.len())
        .await
        .map_err(|failure| failure.during("lost: messages whose late acks were refused"))?;
    each_once(
        "messages whose late acks were refused",
        taken.iter().map(|t| &t.payload),
        &moved,
    )?;
    first.commit().await?;
    second.commit().await?;
    let before = other.committed(&topic, &group).await?;
    let fenced = !matches!(
        cx.capabilities().commit_fencing,
        Support::Unsupported | Support::BestEffort
    );
    if fenced {
        *late.late.lock().unwrap_or_else(PoisonError::into_inner) = commit_of_old.clone();
    }
    // Both members still work.
    send_to(&cx, &producer, kept, &["on the first".to_owned()]).await?;
    send_to(&cx, &producer, 1 - kept, &["on the second".to_owned()]).await?;
    for (consumer, expected) in [(&first, "on the first"), (&second, "on the second")] {
        let taken = take_acked(&cx, consumer, 1).await?;
        each_once(
            "messages after stale acks",
            taken.iter().map(|t| &t.payload),
            [expected],
        )?;
    }
    if fenced {
        first.commit().await?;
        let answer = late.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(answer) = answer else {
            return Err(Failure::new(
                "a member's `commit` after an ack did not reach the driver",
            ));
        };
        note!(cx, "the late commit {commit_of_old:?} was answered {answer:?}");
        let now = other.committed(&topic, &group).await?;
        let at = |all: &[mq_api::driver::CommittedPosition]| {
            all.iter()
                .find(|one| one.partition != kept)
                .map(|one| one.position)
        };
        ensure!(
            !matches!(answer, Ok(CommitOutcome::Stored)) && at(&now) >= at(&before),
            "not fenced: a commit of the tenure that is over, {commit_of_old:?}, was answered {answer:?}; the group was at \
             {before:?} before it and is at {now:?}"
        );
    }
    Ok(())
}

/// G2 at least once: a batch is acked in one call.
pub(super) async fn acks_of_a_batch_are_stored(cx: Context) -> CaseResult {
    batch(cx, Mode::Partitioned).await
}

/// The same in shared mode.
pub(super) async fn shared_acks_of_a_batch_are_stored(cx: Context) -> CaseResult {
    batch(cx, Mode::Shared).await
}

async fn batch(cx: Context, mode: Mode) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("batch", 2).await?;
    let group = cx.name("group");
    let sent = numbered("b", 100);
    send(&cx, &mq.producer(&topic).await?, &sent).await?;
    let consumer = join(mq, &topic, &group, mode).await?;
    let mut came = Vec::new();
    while came.len() < sent.len() {
        let batch = cx
            .within("a batch", cx.times().progress, consumer.consume_batch(30))
            .await?
            .map_err(|error| crate::failure::Failure::from(error).during(format!("{} came", came.len())))?;
        ensure!(
            !batch.is_empty() && batch.len() <= 30,
            "a batch of at most 30 holds {} messages",
            batch.len()
        );
        came.extend(batch.iter().map(flow::text));
        consumer.ack_all(batch)?;
    }
    each_once("batches", &came, &sent)?;
    consumer.ack_all(Vec::new())?;
    consumer.close().await?;
    let other = cx.connect().await?;
    let consumer = join(&other, &topic, &group, mode).await?;
    nothing_but_new(&cx, &other, &consumer).await
}

/// G2 auto-ack: at most once, as its documentation says: what was handed over does not come again, whatever
/// becomes of it.
pub(super) async fn auto_ack_is_at_most_once(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("auto", 1).await?;
    let group = cx.name("group");
    let sent = numbered("auto", 10);
    send(&cx, &mq.producer(&topic).await?, &sent).await?;
    let consumer = mq.consumer(&topic, &group).auto_ack().await?;
    let mut came: Vec<String> = Vec::new();
    for delivery in take(&cx, &consumer, 5).await? {
        came.push(flow::text(&delivery));
        drop(delivery);
    }
    consumer.close().await?;
    let other = cx.connect().await?;
    let stored = other.committed(&topic, &group).await?;
    note!(cx, "the first member was closed, stored is {stored:?}");
    let consumer = other.consumer(&topic, &group).auto_ack().await?;
    // What was handed over must not come again; the rest comes as soon as the member has its partition.
    loop {
        let wait = if came.len() < sent.len() {
            cx.times().join + cx.times().progress
        } else {
            Duration::from_millis(500)
        };
        match tokio::time::timeout(wait, consumer.consume()).await {
            Ok(delivery) => came.push(flow::text(&delivery?)),
            Err(_) => break,
        }
    }
    note!(cx, "the second member: {:?}", consumer.status());
    let mut seen = std::collections::BTreeSet::new();
    for payload in &came {
        ensure!(sent.contains(payload), "unexpected: {payload:?} was not sent");
        ensure!(
            seen.insert(payload),
            "with auto-ack {payload:?} came more than once"
        );
    }
    let closed_in_order = came.len() == sent.len();
    ensure!(
        closed_in_order,
        "after a close in order only {} of {} messages came: {}",
        came.len(),
        sent.len(),
        flow::list(&came)
    );
    Ok(())
}
