//! Members of other processes: they share a group, are killed, are frozen.

use mq_api::Support;
use tokio::time::Instant;

use crate::{
    agent::{ConsumerSpec, Settle},
    capability::Capability,
    cases::steps::{nothing_but_the_marker, payloads},
    checker::Expect,
    context::{Context, Measured},
    failure::{CaseResult, ensure, fail, note},
    flow::{each_once, numbered, one_within, send_to, take_acked, take_until},
    history::{How, What},
    member::Member,
};

use super::{groups::owned, handover::successor_gets};

const GROUP: &str = "group";

/// C2b: one group name on two topics, from two processes, are two groups: each sees everything of its own topic and
/// nothing of the other. Guarantee 4.
pub(super) async fn one_group_name_on_two_topics(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let (here, there) = (cx.topic("here", 2).await?, cx.topic("there", 2).await?);
    let consumer = mq.consumer(&here, "same").await?;
    let mut member = cx.member("other").await?;
    member.consume(ConsumerSpec::new(&there, "same")).await?;
    let mut sent = Vec::new();
    for (topic, label) in [(&here, "here"), (&there, "there")] {
        let producer = mq.producer(topic).await?;
        let payloads = [
            numbered(&format!("{label}-p0"), 50),
            numbered(&format!("{label}-p1"), 50),
        ];
        for (partition, some) in (0..).zip(&payloads) {
            send_to(&cx, &producer, partition, some).await?;
        }
        sent.push(payloads.concat());
    }
    let came = take_until(&cx, &consumer, &sent[0]).await?;
    each_once("the topic of this process", payloads(&came), &sent[0])?;
    let came = member.take(sent[1].len(), Settle::Ack).await?;
    each_once(
        "the topic of the other process",
        came.iter().map(|one| one.payload.as_str()),
        &sent[1],
    )?;
    consumer.close().await?;
    member.close().await?;
    if cx.can(Capability::Lag) {
        for topic in [&here, &there] {
            let lag = mq.lag(topic, "same").await?;
            ensure!(
                lag.total() == 0,
                "everything of {topic} was acked, and its lag is {lag:?}"
            );
        }
    }
    Ok(())
}

/// Opens a member of another process and one of this process that own one partition each, and returns the partition of
/// the former.
async fn two_members(
    cx: &Context,
    topic: &str,
    spec: ConsumerSpec,
) -> CaseResult<(Member, mq_api::Consumer, u32)> {
    let mut other = cx.member("other").await?;
    other.consume(spec).await?;
    let own = cx
        .mq()
        .await?
        .consumer(topic, topic)
        .session_timeout(cx.times().session_timeout)
        .await?;
    let limit = Instant::now() + cx.times().join;
    loop {
        let (theirs, ours) = (other.assignment().await?, owned(&own));
        if theirs.len() == 1 && ours.len() == 1 && !ours.contains(&theirs[0]) {
            note!(cx, "the other member owns {theirs:?}, this one {ours:?}");
            return Ok((other, own, theirs[0].0));
        }
        if Instant::now() >= limit {
            fail!("two members were to own one partition each, they own {theirs:?} and {ours:?}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn spec(cx: &Context, topic: &str) -> ConsumerSpec {
    let mut spec = ConsumerSpec::new(topic, topic);
    spec.session_timeout = Some(cx.times().session_timeout);
    spec
}

/// C7: when a member is killed, what it has not acked reaches another member within the takeover time, and what it has
/// acked and stored does not (where acks are not sparse: nothing below its lowest un-acked message). Guarantees 2 and 5.
pub(super) async fn killed_member_is_replaced(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("kill", 2).await?;
    let producer = mq.producer(&topic).await?;
    let (mut victim, heir, partition) = two_members(&cx, &topic, spec(&cx, &topic)).await?;
    let sent = numbered("victim", 20);
    send_to(&cx, &producer, partition, &sent).await?;
    send_to(&cx, &producer, 1 - partition, &numbered("heir", 20)).await?;
    take_acked(&cx, &heir, 20).await?;
    victim.take(20, Settle::AckEven).await?;
    if let Err(error) = victim.commit().await? {
        fail!("the victim's commit failed: {}", error.text);
    }

    let begun = Instant::now();
    victim.kill().await?;
    let first = one_within(&cx, &heir, cx.times().crash_takeover)
        .await
        .map_err(|f| f.during("what a killed member had not acked"))?;
    cx.measure(Measured::CrashTakeover, begun.elapsed());
    ensure!(
        first.partition() == partition,
        "the victim owned partition {partition}, and the first message comes from partition {}",
        first.partition()
    );
    successor_gets(&cx, &sent, first, &heir).await?;
    nothing_but_the_marker(&cx, &producer, &heir, partition).await
}

/// C14: a member that was frozen for longer than its lease and goes on hands over nothing that another one owns by now:
/// no hand-over is stamped under its old tenure, its acks are refused, and where commits are fenced its late commit
/// moves nothing back. Guarantee 5.
pub(super) async fn frozen_member_hands_over_nothing_late(cx: Context) -> CaseResult {
    const WINDOW: usize = 5;
    let mq = cx.mq().await?;
    let topic = cx.topic("freeze", 2).await?;
    let producer = mq.producer(&topic).await?;
    let history = cx.history();
    let mut spec = spec(&cx, &topic);
    // A full window stops hand-over while more is fetched: that is what must not come out after the thaw.
    spec.max_unacked = Some(WINDOW);
    let (mut frozen, heir, partition) = two_members(&cx, &topic, spec).await?;
    frozen.run(Settle::Keep).await?;
    let mut sender = history.sender(&producer, "s");
    let sent = sender.send_all(40, Some(partition), 0).await;
    cx.count_sent(sent.len());
    let held = frozen
        .wait_seen("a full window", cx.times().progress, |seen| seen.len() >= WINDOW)
        .await?;
    for one in &held {
        history.seen(GROUP, "frozen", one);
    }

    let begun = Instant::now();
    frozen.freeze().await?;
    let mut delivery = one_within(&cx, &heir, cx.times().freeze_takeover)
        .await
        .map_err(|f| f.during("what a frozen member had not acked"))?;
    cx.measure(Measured::FreezeTakeover, begun.elapsed());
    for count in 1..=sent.len() {
        history.handed_over(GROUP, "heir", &delivery);
        history.settle(GROUP, "heir", delivery, How::Ack)?;
        if count == sent.len() {
            break;
        }
        delivery = one_within(&cx, &heir, cx.times().progress).await?;
    }
    history.commit(GROUP, "heir", &heir).await?;
    committed(&cx, &topic).await?;

    frozen.thaw().await?;
    for one in &held {
        let stamp = mq_api::Clock::system().now().as_nanos();
        let settled = frozen.settle(one, Settle::Ack).await?;
        history.record(What::Settled {
            group: GROUP.to_owned(),
            member: "frozen".to_owned(),
            partition: one.partition,
            offset: one.offset,
            epoch: one.epoch,
            how: How::Ack,
            accepted: settled.is_ok(),
            stamp,
        });
    }
    let late = frozen.commit().await?;
    note!(cx, "the late commit gave {late:?}");
    let fencing = Capability::CommitFencing.of(cx.capabilities());
    if matches!(fencing, Support::Native | Support::Emulated) {
        committed(&cx, &topic).await?;
    }
    frozen.stop().await?;
    for one in &frozen.seen()[held.len()..] {
        history.seen(GROUP, "frozen", one);
    }
    history.check(&Expect::complete_for([GROUP]))
}

/// Writes down what the group has stored.
async fn committed(cx: &Context, topic: &str) -> CaseResult {
    for one in cx.mq().await?.committed(topic, topic).await? {
        cx.history().record(What::Committed {
            group: GROUP.to_owned(),
            partition: one.partition,
            position: one.position,
        });
    }
    Ok(())
}
