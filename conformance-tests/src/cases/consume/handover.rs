//! Partitions that go from one member to another.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{Consumer, Delivery, ErrorKind};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    capability::Capability,
    cases::steps::{nothing_but_the_marker, payloads, take_up_to},
    checker::Expect,
    context::{Context, Measured},
    failure::{CaseResult, ensure, fail, note},
    flow::{Taken, list, numbered, one_within, send_to, take, take_acked, text},
    history::{History, How, What},
};

use super::groups::{owned, spread};

const GROUP: &str = "group";

/// C5: members that join and leave under load lose nothing: everything comes, in order, and once a new owner of a
/// partition has been handed its first message, the old one is handed none and no ack of it is accepted. Guarantee 5.
pub(super) async fn join_under_load_loses_nothing(cx: Context) -> CaseResult {
    const PARTITIONS: u32 = 4;
    let mq = cx.mq().await?;
    let topic = cx.topic("load", PARTITIONS).await?;
    let producer = mq.producer(&topic).await?;
    let history = cx.history();
    let crowd = Arc::new(Crowd {
        history: history.clone(),
        came: Mutex::default(),
        // What is held un-acked while later ones are stored comes again with them where acks are not sparse.
        hold: cx.can(Capability::SparseAcks),
    });

    let enough = Arc::new(AtomicBool::new(false));
    let mut senders = JoinSet::new();
    for partition in 0..PARTITIONS {
        let mut sender = history.sender(&producer, &format!("s{partition}"));
        let enough = Arc::clone(&enough);
        senders.spawn(async move {
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) {
                sent += sender.send_all(20, Some(partition), 0).await.len();
                // A load, not a flood: the history has to be judged.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sent
        });
    }

    let mut tasks = JoinSet::new();
    let mut members = Vec::new();
    for (name, counts) in [
        ("a", &[4][..]),
        ("b", &[2, 2]),
        ("c", &[1, 1, 2]),
        ("d", &[1, 1, 1, 1]),
    ] {
        let consumer = mq.consumer(&topic, &topic).await?;
        tasks.spawn(Arc::clone(&crowd).work(name, consumer.clone()));
        members.push(consumer);
        spread(&cx, &format!("member {name} joined under load"), &members, counts).await?;
        crowd.some_more(&cx, 200).await?;
    }
    let leaving = members.remove(0);
    leaving.close().await?;
    history.record(What::Gone {
        group: GROUP.to_owned(),
        member: "a".to_owned(),
    });
    spread(&cx, "member a left under load", &members, &[1, 1, 2]).await?;
    crowd.some_more(&cx, 200).await?;
    enough.store(true, Ordering::Relaxed);
    let mut sent = 0;
    while let Some(count) = senders.join_next().await {
        sent += count?;
    }
    cx.count_sent(sent);
    note!(cx, "{sent} messages were sent while members came and went");
    // What is missing is told by the history.
    let all = cx
        .eventually("everything that was sent", cx.times().progress, || {
            let came = crowd.came().len();
            async move { Ok((came >= sent).then_some(())) }
        })
        .await;
    for member in &members {
        member.close().await?;
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    history.check(&Expect::complete_for([GROUP]))?;
    all
}

/// Members that write down what they are handed.
struct Crowd {
    history: History,
    came: Mutex<BTreeSet<String>>,
    hold: bool,
}

impl Crowd {
    /// Consumes and acks until the consumer is closed. One delivery in fifty is held for a while, as by a slow handler:
    /// its partition may have gone on when it is acked.
    async fn work(self: Arc<Self>, name: &'static str, consumer: Consumer) -> CaseResult {
        const SLOW: Duration = Duration::from_millis(100);
        let mut held: VecDeque<(Instant, Delivery)> = VecDeque::new();
        let mut count = 0_usize;
        loop {
            match consumer.consume().await {
                Ok(delivery) => {
                    self.history.handed_over(GROUP, name, &delivery);
                    self.came().insert(text(&delivery));
                    count += 1;
                    if self.hold && count.is_multiple_of(50) {
                        held.push_back((Instant::now() + SLOW, delivery));
                    } else {
                        self.history.settle(GROUP, name, delivery, How::Ack)?;
                    }
                    if self.hold && count.is_multiple_of(100) {
                        // Interrupted by a revoke, it promises nothing.
                        let _ = self.history.commit(GROUP, name, &consumer).await;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Closed => break,
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error.into()),
            }
            while held.front().is_some_and(|(until, _)| *until <= Instant::now()) {
                if let Some((_, delivery)) = held.pop_front() {
                    self.history.settle(GROUP, name, delivery, How::Ack)?;
                }
            }
        }
        for (_, delivery) in held {
            let (partition, offset, epoch) = (delivery.partition(), delivery.offset(), delivery.epoch());
            ensure!(
                delivery.ack().is_err(),
                "a stale ack was accepted: member {name}, which is closed, acked offset {offset} of partition {partition} \
                 under epoch {epoch}"
            );
        }
        Ok(())
    }

    fn came(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so many more messages have come.
    async fn some_more(&self, cx: &Context, more: usize) -> CaseResult {
        let wanted = self.came().len() + more;
        cx.eventually(format!("{more} more messages"), cx.times().progress, || {
            let came = self.came().len();
            async move { Ok((came >= wanted).then_some(())) }
        })
        .await
    }
}

/// C6: when a member closes, what it has not acked reaches another member within the declared time, and what it has
/// acked does not (where acks are not sparse: nothing below its lowest un-acked message). Guarantees 2, 5 and 7.
pub(super) async fn closed_member_hands_on_what_is_not_acked(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("leave", 2).await?;
    let producer = mq.producer(&topic).await?;
    let members = [
        mq.consumer(&topic, &topic).await?,
        mq.consumer(&topic, &topic).await?,
    ];
    spread(&cx, "one partition for each of two members", &members, &[1, 1]).await?;
    let [leaving, staying] = members;
    let Some(partition) = owned(&leaving).first().map(|(partition, _)| *partition) else {
        fail!("the first member owns no partition");
    };
    let sent = numbered("leaving", 20);
    send_to(&cx, &producer, partition, &sent).await?;
    send_to(&cx, &producer, 1 - partition, &numbered("staying", 20)).await?;
    take_acked(&cx, &staying, 20).await?;
    let mut held = Vec::new();
    for (place, delivery) in take(&cx, &leaving, 20).await?.into_iter().enumerate() {
        if place % 2 == 0 {
            delivery.ack()?;
        } else {
            held.push(delivery);
        }
    }

    let begun = Instant::now();
    cx.within("close", cx.times().progress, leaving.close()).await??;
    note!(cx, "close took {:?}", begun.elapsed());
    for delivery in held {
        let what = text(&delivery);
        let stale = delivery.ack();
        let refused = stale
            .as_ref()
            .is_err_and(|error| matches!(error.kind(), ErrorKind::StaleAck | ErrorKind::Closed));
        ensure!(
            refused,
            "an ack of {what} after the close of its consumer must be refused as stale or closed, it gave {stale:?}"
        );
    }
    let first = one_within(&cx, &staying, cx.times().close_takeover)
        .await
        .map_err(|f| f.during("what a closed member had not acked"))?;
    cx.measure(Measured::CloseTakeover, begun.elapsed());
    successor_gets(&cx, &sent, first, &staying).await?;
    nothing_but_the_marker(&cx, &producer, &staying, partition).await
}

/// Checks what the successor of a member is handed that was handed `sent` and has acked every other one, from the first
/// on. The successor's first delivery is given.
pub(super) async fn successor_gets(
    cx: &Context,
    sent: &[String],
    first: Delivery,
    successor: &Consumer,
) -> CaseResult {
    let mut taken = vec![Taken::of(&first)];
    let partition = first.partition();
    first.ack()?;
    let last = sent.last().map(String::as_str).unwrap_or_default();
    if taken[0].payload != last {
        taken.extend(take_up_to(cx, successor, last).await?);
        taken.push(Taken {
            payload: last.to_owned(),
            ..taken[0].clone()
        });
    }
    let sparse = cx.can(Capability::SparseAcks);
    let wanted: Vec<&str> = sent
        .iter()
        .enumerate()
        .filter(|(place, _)| if sparse { place % 2 == 1 } else { *place > 0 })
        .map(|(_, payload)| payload.as_str())
        .collect();
    let came = payloads(&taken);
    let lost: Vec<_> = wanted.iter().filter(|payload| !came.contains(payload)).collect();
    let acked: Vec<_> = came.iter().filter(|payload| !wanted.contains(payload)).collect();
    ensure!(
        lost.is_empty() && acked.is_empty() && came == wanted,
        "the successor in partition {partition}: {} lost of what was not acked: {}; {} came that were acked: {}; came {}, \
         wanted {}",
        lost.len(),
        list(&lost),
        acked.len(),
        list(&acked),
        list(&came),
        list(&wanted)
    );
    Ok(())
}
