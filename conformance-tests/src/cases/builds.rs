//! Two builds of this library in one group.

use crate::{
    agent::{ConsumerSpec, Settle},
    cases::{Case, case, steps::nothing_but_the_marker},
    checker::Expect,
    context::Context,
    failure::{CaseResult, Failure, ensure, note},
    flow::{one_within, send_to},
    history::{How, What},
    member::Member,
};

pub(super) const CASES: &[Case] = &[case!("V2", Versions, another_build_joins_leaves_and_dies)];

const GROUP: &str = "group";
const PARTITIONS: u32 = 2;

/// V2: a member of another build joins a group, shares it, leaves in order, comes back and is killed: nothing is lost,
/// nothing that was acked and stored comes again, and each build goes on where the other was. The other build is this
/// executable's, until there is a release to take its place. Guarantees 2 and 5.
async fn another_build_joins_leaves_and_dies(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("builds", PARTITIONS).await?;
    let producer = mq.producer(&topic).await?;
    let own = mq
        .consumer(&topic, &topic)
        .session_timeout(cx.times().session_timeout)
        .await?;
    for (round, end) in ["leaves", "is killed"].into_iter().enumerate() {
        let name = format!("other-{round}");
        let mut other = cx.member(&name).await?;
        let mut spec = ConsumerSpec::new(&topic, &topic);
        spec.session_timeout = Some(cx.times().session_timeout);
        other.consume(spec).await?;
        let partition = shared(&cx, &mut other, &own).await?;

        // Half of what the other build gets is acked and stored by it; the rest goes to this build.
        let sent = send(&cx, &producer, &format!("r{round}"), partition).await?;
        let taken = other.take(sent.len() / 2, Settle::Ack).await?;
        for one in &taken {
            cx.history().seen(GROUP, &name, one);
            cx.history().record(What::Settled {
                group: GROUP.to_owned(),
                member: name.clone(),
                partition: one.partition,
                offset: one.offset,
                epoch: one.epoch,
                how: How::Ack,
                accepted: true,
                stamp: one.handed_over_at,
            });
        }
        let called = cx.history().now();
        if let Err(error) = other.commit().await? {
            return Err(Failure::new(format!(
                "the other build's commit failed: {}",
                error.text
            )));
        }
        cx.history().record(What::Stored {
            group: GROUP.to_owned(),
            member: name.clone(),
            called,
            stamp: mq_api::Clock::system().now().as_nanos(),
        });
        let limit = if round == 0 {
            other.close().await?;
            cx.times().close_takeover + cx.times().progress
        } else {
            other.kill().await?;
            // How soon is what C6 and C7 are about.
            cx.times().crash_takeover + cx.times().progress
        };
        cx.history().record(What::Gone {
            group: GROUP.to_owned(),
            member: name.clone(),
        });
        note!(cx, "the other build {end}");
        for place in taken.len()..sent.len() {
            let delivery = one_within(&cx, &own, limit)
                .await
                .map_err(|f| f.during(format!("the other build {end}, {place} of {} came", sent.len())))?;
            cx.history().handed_over(GROUP, "own", &delivery);
            cx.history().settle(GROUP, "own", delivery, How::Ack)?;
        }
        cx.history().commit(GROUP, "own", &own).await?;
        nothing_but_the_marker(&cx, &producer, &own, partition).await?;
    }
    cx.history().check(&Expect::complete_for([GROUP]))
}

/// Waits until the two members own one partition each, and returns the other's.
async fn shared(cx: &Context, other: &mut Member, own: &mq_api::Consumer) -> CaseResult<u32> {
    let until = tokio::time::Instant::now() + cx.times().join;
    loop {
        let theirs = other.assignment().await?;
        let ours: Vec<_> = own.assignment().iter().map(|one| one.partition).collect();
        if let ([(theirs, _)], [ours]) = (&theirs[..], &ours[..])
            && theirs != ours
        {
            return Ok(*theirs);
        }
        ensure!(
            tokio::time::Instant::now() < until,
            "two builds were to own one partition each, they own {theirs:?} and {ours:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Sends to a partition and writes that down.
async fn send(
    cx: &Context,
    producer: &mq_api::Producer,
    name: &str,
    partition: u32,
) -> CaseResult<Vec<String>> {
    let sent: Vec<_> = (0..20)
        .map(|sequence| crate::history::payload(name, sequence, 0))
        .collect();
    let receipts = send_to(cx, producer, partition, &sent).await?;
    for ((sequence, payload), receipt) in (0..).zip(&sent).zip(receipts) {
        cx.history().sent(payload, name, sequence, &Ok(receipt));
    }
    Ok(sent)
}
