//! What a killed member leaves behind.

use std::time::{Duration, Instant};

use mq_api::DeadLetter;

use super::{dead_letters::read_letter, nothing_but_new};
use crate::{
    agent::{ConsumerSpec, Settle},
    capability::Capability,
    context::Context,
    failure::{CaseResult, ensure, fail, note},
    flow::{self, each_once, numbered, one_within, send_to, take_acked, take_until},
};

fn spec(cx: &Context, topic: &str, group: &str) -> ConsumerSpec {
    let mut spec = ConsumerSpec::new(topic, group);
    spec.session_timeout = Some(cx.times().session_timeout);
    spec
}

/// G2 acks above the watermark: after acks out of order, a commit and a kill, exactly the un-acked come again
/// where the backend stores sparse acks; else everything from the lowest of them.
pub(super) async fn acks_out_of_order_survive_a_kill(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("sparse", 1).await?;
    let group = cx.name("group");
    let sent = numbered("s", 20);
    send_to(&cx, &mq.producer(&topic).await?, 0, &sent).await?;
    let mut member = cx.member("acks").await?;
    member.consume(spec(&cx, &topic, &group)).await?;
    let seen = member.take(sent.len(), Settle::Keep).await?;
    // Backwards, so that nothing is in order: 0 and 1 are acked, then every third is not.
    let mut left = Vec::new();
    for one in seen.iter().rev() {
        let place = sent
            .iter()
            .position(|payload| *payload == one.payload)
            .unwrap_or(0);
        if place >= 2 && place % 3 == 2 {
            left.push(one.payload.clone());
        } else if let Err(error) = member.settle(one, Settle::Ack).await? {
            fail!("an ack was refused: {}", error.text);
        }
    }
    if let Err(error) = member.commit().await? {
        fail!("the commit failed: {}", error.text);
    }
    member.kill().await?;
    left.sort();
    let expected: Vec<String> = if cx.can(Capability::SparseAcks) {
        left.clone()
    } else {
        sent[2..].to_vec()
    };
    let consumer = mq
        .consumer(&topic, &group)
        .session_timeout(cx.times().session_timeout)
        .await?;
    let first = one_within(&cx, &consumer, cx.times().crash_takeover + cx.times().progress)
        .await
        .map_err(|failure| failure.during(format!("lost: un-acked were {left:?}")))?;
    let mut came = vec![flow::text(&first)];
    first.ack()?;
    let rest = take_acked(&cx, &consumer, expected.len() - 1)
        .await
        .map_err(|failure| failure.during(format!("lost: un-acked were {left:?}")))?;
    came.extend(rest.into_iter().map(|t| t.payload));
    each_once(
        "messages after acks out of order, a commit and a kill",
        &came,
        &expected,
    )?;
    nothing_but_new(&cx, mq, &consumer).await
}

/// G2 durable acks: after `commit` has returned, a kill brings nothing acked back.
pub(super) async fn committed_acks_survive_a_kill(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("durable", 2).await?;
    let group = cx.name("group");
    let producer = mq.producer(&topic).await?;
    let (zero, one_) = (numbered("zero", 25), numbered("one", 25));
    send_to(&cx, &producer, 0, &zero).await?;
    send_to(&cx, &producer, 1, &one_).await?;
    let mut member = cx.member("commits").await?;
    let mut options = spec(&cx, &topic, &group);
    // Only `commit` can have stored them.
    options.commit_interval = Some(Duration::from_secs(600));
    member.consume(options).await?;
    let seen = member.take(zero.len() + one_.len(), Settle::Ack).await?;
    each_once(
        "first deliveries",
        seen.iter().map(|s| &s.payload),
        zero.iter().chain(&one_),
    )?;
    if let Err(error) = member.commit().await? {
        fail!("the commit failed: {}", error.text);
    }
    member.kill().await?;
    let consumer = mq
        .consumer(&topic, &group)
        .session_timeout(cx.times().session_timeout)
        .await?;
    nothing_but_new(&cx, mq, &consumer).await
}

/// G11 attempts survive a crash: a message that kills its process each time reaches the dead letters, and the
/// others are not held up for ever.
pub(super) async fn message_that_kills_ends_in_the_dead_letters(cx: Context) -> CaseResult {
    const MOST: u32 = 3;
    let mq = cx.mq().await?;
    let topic = cx.topic("killer", 1).await?;
    let letters = cx.topic("letters", 1).await?;
    let group = cx.name("group");
    let producer = mq.producer(&topic).await?;
    let sent = ["before", "killer", "behind"].map(str::to_owned);
    send_to(&cx, &producer, 0, &sent).await?;
    let durable = cx.can(Capability::DurableAttempts);
    // The first hand-over need not be stored before it: one kill more than there are attempts.
    let lives = if durable { MOST + 2 } else { 2 };
    let mut deaths = 0;
    let mut others = Vec::new();
    for life in 0..lives {
        let mut member = cx.member(&format!("life{life}")).await?;
        let mut options = spec(&cx, &topic, &group);
        options.max_attempts = Some(MOST);
        options.dead_letter = Some(letters.clone());
        options.commit_interval = Some(Duration::from_millis(20));
        member.die_on("killer").await?;
        member.consume(options).await?;
        member.run(Settle::Ack).await?;
        // Either the killer is handed over once more, or it is in the dead letters and the one behind it has come.
        let until = Instant::now() + cx.times().crash_takeover + cx.times().progress;
        let mut buried = false;
        while !member.has_ended()? && !buried {
            ensure!(
                Instant::now() < until,
                "in life {life} the killer neither came nor went to the dead letters"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            let behind = member.seen().iter().any(|seen| seen.payload == "behind");
            buried = behind && durable && read_any(&cx, &letters).await?;
        }
        others.extend(member.seen().into_iter().map(|seen| seen.payload));
        if buried {
            note!(cx, "after {deaths} deaths the killer is in the dead letters");
            break;
        }
        deaths += 1;
    }
    if !durable {
        // Without durable attempts the message must still come again after each kill.
        ensure!(
            deaths == lives,
            "the killer came only {deaths} times in {lives} lives"
        );
        let consumer = mq
            .consumer(&topic, &group)
            .session_timeout(cx.times().session_timeout)
            .dead_letter(DeadLetter::topic(&letters))
            .await?;
        take_until(&cx, &consumer, ["killer", "behind"]).await?;
        cx.refused("durable_attempts: declared as unsupported; the message came again after each kill");
        return Ok(());
    }
    ensure!(
        deaths <= MOST + 1,
        "the killer killed {deaths} members, and has {MOST} attempts"
    );
    ensure!(deaths >= 1, "the killer never came");
    let letter = read_letter(&cx, &letters).await?;
    ensure!(
        letter.payload() == "killer",
        "the dead letter holds {:?}",
        letter.payload()
    );
    ensure!(
        others.iter().any(|payload| payload == "behind"),
        "lost: the message behind the killer never came"
    );
    Ok(())
}

/// Tells whether a topic holds anything.
async fn read_any(cx: &Context, topic: &str) -> CaseResult<bool> {
    let described = cx.mq().await?.describe_topic(topic).await?;
    Ok(described
        .partitions
        .iter()
        .any(|p| p.next_offset > p.first_offset))
}
