//! The partitioned consumer: a member whose partitions are its own while its locks stand.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;
use mq_api::{
    Error, ErrorKind, Offset, Position, Result, Start, Timestamp,
    driver::{self, AssignmentId, Commit, CommitOutcome, Events, Subscription},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    client::{QueueRef, Route},
    config::MIN_SESSION_TIMEOUT,
    error::from_remoting,
    fetch::Filter,
    member::Member,
    outbox::RocketMqEvents,
    ownership::new_member,
    remoting::SubscriptionData,
    topic::{Mode, Shared, is_out_of_reach},
};

/// How soon a new member looks again whether another one has stored where the group begins.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// Controls one member of a group on RocketMQ.
#[derive(Debug)]
pub(crate) struct RocketMqConsumer {
    member: Arc<Member>,
    /// Closes when the member's task has ended.
    ended: watch::Receiver<()>,
    _guard: LeaveOnDrop,
}

/// Has the member leave when its last handle is gone. The task that leaves runs already; nothing is spawned here.
#[derive(Debug)]
struct LeaveOnDrop(Arc<Member>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.ask_to_leave();
    }
}

/// Joins a group. A call that is dropped ends the session with it, by which brokers forget the member.
pub(crate) async fn join(
    shared: &Arc<Shared>,
    subscription: Subscription,
) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
    let filter = check(&subscription)?;
    let (topic, route) = shared.open(&subscription.topic).await?;
    let group = shared.group(&topic, &subscription.group)?;
    let member = Arc::new(Member::new(
        Arc::clone(shared),
        topic,
        group,
        new_member(),
        filter,
        &subscription,
    ));
    enter(&member, &route).await?;
    let claim = shared.claim_mode(
        &member.session,
        &member.topic,
        &member.group,
        &route.layout,
        Mode::Partitioned,
    );
    claim.await?;
    resolve_start(&member, &route, subscription.start).await?;
    let (alive, ended) = watch::channel(());
    let consumer = RocketMqConsumer {
        member: Arc::clone(&member),
        ended,
        _guard: LeaveOnDrop(Arc::clone(&member)),
    };
    let events = RocketMqEvents {
        outbox: Arc::clone(&member.outbox),
        _guard: LeaveOnDrop(Arc::clone(&member)),
    };
    // Ends when it has left, which the guards ask it to.
    tokio::spawn(member.run(alive));
    Ok((Arc::new(consumer), Box::new(events)))
}

/// Tells brokers of the member, which makes the group where it is new. Those that are down are told later.
async fn enter(member: &Member, route: &Route) -> Result<()> {
    let mut subscriptions = vec![member.filter.subscription(&member.topic.physical)];
    if member.shared.config.raw_groups {
        // A broker takes the last heartbeat for the whole group's word, and members in other languages retry by this.
        let retries = format!("%RETRY%{}", member.group);
        subscriptions.push(SubscriptionData::tags(&retries, "*", member.filter.version));
    }
    let brokers = route.layout.brokers();
    let deadline = member.shared.deadline();
    let joined = member
        .session
        .join_consumers(&member.group, subscriptions, &brokers, deadline)
        .await;
    match joined {
        Err(error) if is_out_of_reach(&error) && brokers.len() > 1 => {
            let beats = brokers.iter().map(|broker| member.session.beat(broker, deadline));
            if join_all(beats).await.iter().any(Result::is_ok) {
                Ok(())
            } else {
                Err(from_remoting(error))
            }
        }
        other => other.map_err(from_remoting),
    }
}

/// Stores where a new group begins, unless it is stored: under the lock of each queue, so that of two first members
/// one decides.
async fn resolve_start(member: &Member, route: &Route, start: Start) -> Result<()> {
    let deadline = member.shared.deadline();
    let mut missing: Vec<(u32, QueueRef)> = (0..).zip(route.layout.queues().iter().cloned()).collect();
    loop {
        missing = without_position(member, missing, deadline).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut by_broker: BTreeMap<Arc<str>, Vec<(u32, QueueRef)>> = BTreeMap::new();
        for (partition, queue) in &missing {
            let queues = by_broker.entry(Arc::clone(&queue.broker)).or_default();
            queues.push((*partition, queue.clone()));
        }
        for (broker, queues) in by_broker {
            store_start(member, &broker, queues, start, deadline).await?;
        }
        missing = without_position(member, missing, deadline).await?;
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!(
                    "group {:?}: another member is about to store where it begins",
                    member.group
                ),
            ));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Keeps the queues for which the group has nothing stored. A queue whose broker is down has to wait for its owner.
async fn without_position(
    member: &Member,
    queues: Vec<(u32, QueueRef)>,
    deadline: Instant,
) -> Result<Vec<(u32, QueueRef)>> {
    let asked = queues.iter().map(|(_, queue)| {
        member
            .session
            .committed(&member.group, &member.topic.physical, queue, deadline)
    });
    let answers = join_all(asked).await;
    let mut missing = Vec::new();
    let mut reached = false;
    let mut last = None;
    for (entry, answer) in queues.into_iter().zip(answers) {
        match answer {
            Ok(stored) => {
                reached = true;
                if stored.is_none() {
                    missing.push(entry);
                }
            }
            Err(error) if is_out_of_reach(&error) => last = Some(error),
            Err(error) => return Err(from_remoting(error)),
        }
    }
    match last {
        Some(error) if !reached => Err(from_remoting(error)),
        _ => Ok(missing),
    }
}

async fn store_start(
    member: &Member,
    broker: &str,
    queues: Vec<(u32, QueueRef)>,
    start: Start,
    deadline: Instant,
) -> Result<()> {
    let (session, group, topic) = (&member.session, &member.group, &member.topic.physical);
    let numbers: Vec<i32> = queues.iter().map(|(_, queue)| queue.queue).collect();
    let locked = session
        .lock(broker, group, topic, &numbers, deadline)
        .await
        .map_err(from_remoting)?;
    let ours: Vec<_> = queues
        .into_iter()
        .filter(|(_, queue)| locked.contains(&queue.queue))
        .collect();
    let stored = store_locked(member, ours, start, deadline).await;
    let freed = session
        .unlock(broker, group, topic, session.client_id(), &locked, deadline)
        .await;
    stored.and(freed.map_err(from_remoting))
}

async fn store_locked(
    member: &Member,
    ours: Vec<(u32, QueueRef)>,
    start: Start,
    deadline: Instant,
) -> Result<()> {
    // Another member may have stored it between the look and the lock.
    let missing = if ours.is_empty() {
        ours
    } else {
        without_position(member, ours, deadline).await?
    };
    let stores = missing.iter().map(|(partition, queue)| async move {
        let offset = member
            .shared
            .resolve(&member.topic, *partition, queue, start)
            .await?;
        member
            .session
            .commit(&member.group, &member.topic.physical, queue, offset, deadline)
            .await
            .map_err(from_remoting)?;
        member.remember(*partition, offset);
        Ok(())
    });
    join_all(stores).await.into_iter().collect()
}

/// Checks the options of a group member, and reads which tags it wants.
pub(crate) fn check(subscription: &Subscription) -> Result<Filter> {
    check_session_timeout(subscription)?;
    let mut expression = None;
    for (name, value) in &subscription.properties {
        match name.as_str() {
            "tags" => expression = Some(value.as_str()),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!("consumer property {name:?}: the rocketmq backend knows `tags`"),
                ));
            }
        }
    }
    Filter::new(expression, Timestamp::now().as_millis())
}

fn check_session_timeout(subscription: &Subscription) -> Result<()> {
    match subscription.session_timeout {
        Some(timeout) if timeout < MIN_SESSION_TIMEOUT => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("session timeout {timeout:?}: it is at least {MIN_SESSION_TIMEOUT:?}"),
        )),
        _ => Ok(()),
    }
}

#[async_trait]
impl driver::Consumer for RocketMqConsumer {
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        self.member.commit(commits).await
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        self.member.release(&assignments);
        Ok(())
    }

    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        self.member.seek(assignment, to, generation).await
    }

    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        self.member.pause(assignments, paused);
    }

    async fn close(&self) -> Result<()> {
        self.member.ask_to_leave();
        let mut ended = self.ended.clone();
        // The sender sends nothing; it goes when the member has left.
        let _ = ended.changed().await;
        Ok(())
    }
}
