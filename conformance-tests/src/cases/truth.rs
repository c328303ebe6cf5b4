//! Truth: what a driver declares is so, and every error says what it must.

mod errors;

use std::{collections::BTreeSet, time::Duration};

use mq_api::{Message, Mode, Start, TopicSpec};

use self::errors::errors_say_what_they_must;
use super::{Case, case};
use crate::{
    capability::Capability,
    context::Context,
    failure::{CaseResult, ensure, fail, note},
    flow::{self, each_once, numbered, send, take_acked},
    refusal,
    report::Verdict,
};

/// The cases of this theme.
pub(crate) const CASES: &[Case] = &[
    case!("U1", Truth, what_is_unsupported_refuses_by_name),
    case!("U3", Truth, errors_say_what_they_must),
    case!("U2", Truth, what_is_declared_is_proved).last(),
];

/// G20 capabilities: every capability that is declared `Unsupported` refuses with the typed error that names
/// it, and what is declared is what the design's table says.
async fn what_is_unsupported_refuses_by_name(cx: Context) -> CaseResult {
    let declared = cx.capabilities().clone();
    ensure!(
        declared.backend == cx.harness().name(),
        "the driver calls itself {:?}, its harness {:?}",
        declared.backend,
        cx.harness().name()
    );
    if let Some(expected) = cx.harness().expected() {
        // What the table does not name is the driver's own to say.
        let free = [
            Capability::DelayedReceiptOffset,
            Capability::Replication,
            Capability::IdempotentProduce,
        ];
        let wrong: Vec<String> = Capability::ALL
            .iter()
            .filter(|capability| {
                !free.contains(capability) && capability.of(&declared) != capability.of(&expected)
            })
            .map(|capability| {
                format!(
                    "{} is declared {:?} and must be {:?}",
                    capability.name(),
                    capability.of(&declared),
                    capability.of(&expected)
                )
            })
            .collect();
        ensure!(
            wrong.is_empty(),
            "the driver does not declare what it must: {}",
            wrong.join("; ")
        );
    }
    for capability in Capability::ALL
        .iter()
        .copied()
        .filter(|capability| !cx.can(*capability))
    {
        refusal::verify(&cx, capability).await?;
    }
    Ok(())
}

/// Names the cases that prove a capability; where there are none, [`probe`] does.
fn proof(capability: Capability) -> &'static [&'static str] {
    match capability {
        Capability::Partitioned => &["C1", "A1"],
        Capability::Shared => &["S1"],
        Capability::Broadcast => &["B1"],
        Capability::Reader => &["R1"],
        Capability::Seek => &["R2"],
        Capability::Pause => &["R4"],
        Capability::Lag => &["R5"],
        Capability::Delay => &["D1"],
        Capability::ReceiptOffset => &["P5"],
        Capability::SparseAcks => &["A6"],
        Capability::DurableAttempts => &["A16"],
        Capability::CommitFencing => &["C14", "A10"],
        Capability::TopicId => &["T5"],
        Capability::OffsetAt => &["R3", "C1"],
        Capability::Tombstone => &["P1"],
        Capability::ListTopics => &["T8"],
        Capability::AddPartitions => &["T10"],
        Capability::RetentionAge | Capability::RetentionBytes => &["T11"],
        Capability::IdempotentProduce => &["F2", "P7"],
        Capability::SharedLatest
        | Capability::DelayedReceiptOffset
        | Capability::StickyAssignment
        | Capability::Replication => &[],
    }
}

/// G20 capabilities: everything that is declared as native or emulated has a case that passed in this run.
async fn what_is_declared_is_proved(cx: Context) -> CaseResult {
    for capability in Capability::ALL
        .iter()
        .copied()
        .filter(|capability| cx.can(*capability))
    {
        let name = capability.name();
        let cases = proof(capability);
        if cases.is_empty() {
            probe(&cx, capability)
                .await
                .map_err(|failure| failure.during(format!("{name} is declared")))?;
            continue;
        }
        let ran: Vec<_> = cases
            .iter()
            .filter_map(|id| cx.verdict(id).map(|verdict| (*id, verdict)))
            .collect();
        if ran.is_empty() {
            note!(cx, "{name}: none of {cases:?} is part of this run");
            continue;
        }
        let proved = ran.iter().any(|(_, verdict)| *verdict == Verdict::Passed);
        // Without the fault that a case needs, a third party's harness cannot prove it; that is said, not failed.
        let left_out = ran
            .iter()
            .all(|(_, verdict)| matches!(verdict, Verdict::LeftOut | Verdict::NotApplicable));
        if left_out {
            note!(cx, "{name}: {ran:?}");
        } else {
            ensure!(proved, "{name} is declared, and no case proves it: {ran:?}");
        }
    }
    Ok(())
}

/// Uses a capability that no case is about.
async fn probe(cx: &Context, capability: Capability) -> CaseResult {
    let mq = cx.mq().await?;
    match capability {
        Capability::SharedLatest => {
            let topic = cx.topic("latest", 2).await?;
            let producer = mq.producer(&topic).await?;
            send(cx, &producer, &numbered("old", 10)).await?;
            let opened = mq
                .consumer(&topic, cx.name("group"))
                .mode(Mode::Shared)
                .start_at(Start::Latest);
            let consumer = opened.await?;
            let new = numbered("new", 10);
            send(cx, &producer, &new).await?;
            let taken = take_acked(cx, &consumer, new.len()).await?;
            each_once(
                "a shared group from the latest on",
                taken.iter().map(|t| &t.payload),
                &new,
            )
        }
        Capability::DelayedReceiptOffset => {
            let topic = cx.topic("delayed", 1).await?;
            let producer = mq.producer(&topic).await?;
            let later = Message::new("later").with_delay(Duration::from_millis(100));
            let receipt = producer.produce(later).await?;
            let consumer = mq.consumer(&topic, cx.name("group")).await?;
            let taken = take_acked(cx, &consumer, 1).await?;
            ensure!(
                receipt.offset.is_some() && receipt.offset == taken.first().map(|t| t.offset),
                "the receipt of a delayed message says offset {:?}, it came at {:?}",
                receipt.offset,
                taken.first().map(|t| t.offset)
            );
            Ok(())
        }
        Capability::StickyAssignment => sticky(cx).await,
        Capability::Replication => replicated(cx).await,
        _ => fail!("nothing proves it"),
    }
}

/// A topic with a number of copies of its own can be made and used.
async fn replicated(cx: &Context) -> CaseResult {
    let mq = cx.mq().await?;
    let name = cx.name("copied");
    cx.delete_later(&name);
    mq.create_topic_with(TopicSpec::new(&name, 1)?.with_replication(1))
        .await?;
    let sent = numbered("copied", 5);
    send(cx, &mq.producer(&name).await?, &sent).await?;
    let consumer = mq.consumer(&name, "g").await?;
    let taken = take_acked(cx, &consumer, sent.len()).await?;
    each_once(
        "a topic with a number of copies of its own",
        taken.iter().map(|t| &t.payload),
        &sent,
    )
}

/// When a member joins, the others keep what they have but for the surplus.
async fn sticky(cx: &Context) -> CaseResult {
    const PARTITIONS: usize = 6;
    let topic = cx.topic("sticky", PARTITIONS as u32).await?;
    let group = cx.name("group");
    let mut members = Vec::new();
    let mut before: Vec<BTreeSet<u32>> = Vec::new();
    for count in 1..=3 {
        members.push(cx.connect().await?.consumer(&topic, &group).await?);
        let owned = cx
            .eventually(
                format!("{count} members own {PARTITIONS} partitions evenly"),
                cx.times().join,
                || async {
                    let owned: Vec<BTreeSet<u32>> = members
                        .iter()
                        .map(|member| member.assignment().iter().map(|a| a.partition).collect())
                        .collect();
                    let even = owned.iter().all(|own| own.len() == PARTITIONS / count);
                    let all: BTreeSet<u32> = owned.iter().flatten().copied().collect();
                    Ok((even && all.len() == PARTITIONS).then_some(owned))
                },
            )
            .await?;
        for (at, (before, now)) in before.iter().zip(&owned).enumerate() {
            ensure!(
                now.is_subset(before),
                "when member {count} joined, member {} went from {before:?} to {now:?}: more than the surplus moved",
                at + 1
            );
        }
        before = owned;
    }
    let producer = cx.mq().await?.producer(&topic).await?;
    for partition in 0..PARTITIONS as u32 {
        producer.produce_to(partition, format!("to-{partition}")).await?;
    }
    for (member, owned) in members.iter().zip(&before) {
        for _ in owned {
            flow::one(cx, member).await?.ack()?;
        }
    }
    Ok(())
}
