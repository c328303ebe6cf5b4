//! The broadcast mode: every member sees every message.

use mq_api::{Mode, Start};

use crate::{
    cases::steps::payloads,
    context::Context,
    failure::CaseResult,
    flow::{each_once, in_order, numbered, send_to, take_acked},
};

/// B1: each member of a broadcast group sees every message from its own start on, in order of each partition, whatever
/// the others have acked. Guarantees 3 and 4.
pub(super) async fn each_member_sees_all_from_its_start(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("broadcast", 2).await?;
    let producer = mq.producer(&topic).await?;
    let early = [numbered("early-p0", 20), numbered("early-p1", 20)];
    for (partition, sent) in (0..).zip(&early) {
        send_to(&cx, &producer, partition, sent).await?;
    }
    let open = || mq.consumer(&topic, &topic).mode(Mode::Broadcast);
    let first = open().await?;
    let second = open().await?;
    let latest = open().start_at(Start::Latest).await?;
    let late = numbered("late", 10);
    send_to(&cx, &producer, 1, &late).await?;

    let all = [early.concat(), late.clone()].concat();
    for (who, member) in [("the first member", &first), ("the second member", &second)] {
        let came = take_acked(&cx, member, all.len())
            .await
            .map_err(|f| f.during(who))?;
        each_once(who, payloads(&came), &all)?;
        for (partition, sent) in [
            (0, early[0].clone()),
            (1, [early[1].clone(), late.clone()].concat()),
        ] {
            let of_partition: Vec<_> = came
                .iter()
                .filter(|one| one.partition == partition)
                .map(|one| one.payload.as_str())
                .collect();
            in_order(&format!("{who}, partition {partition}"), &of_partition, &sent)?;
        }
    }
    let came = take_acked(&cx, &latest, late.len()).await?;
    in_order("a member that starts at the latest", &payloads(&came), &late)
}
