//! The partitioned consumer: a member whose partitions are its own while its lease stands.

use std::sync::Arc;

use async_trait::async_trait;
use mq_api::{
    Error, ErrorKind, Offset, Position, Result,
    driver::{self, AssignmentId, Commit, CommitOutcome, Events, Subscription},
};
use tokio::sync::watch;

use crate::{
    config::MIN_SESSION_TIMEOUT,
    member::Member,
    outbox::RedisEvents,
    reads::Reads,
    session::resolve_start,
    topic::{Mode, Shared},
    upkeep::Upkeep,
};

/// Controls one member of a group on Redis.
#[derive(Debug)]
pub(crate) struct RedisConsumer {
    member: Arc<Member>,
    /// Closes when the member's task has ended.
    ended: watch::Receiver<()>,
    _guard: LeaveOnDrop,
}

/// Has the member leave when its last handle is gone. The task that leaves runs already; nothing is spawned here.
#[derive(Debug)]
pub(crate) struct LeaveOnDrop(Arc<Member>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.ask_to_leave();
    }
}

/// Joins a group.
pub(crate) async fn join(
    shared: &Arc<Shared>,
    reads: &Reads,
    upkeep: &Arc<Upkeep>,
    subscription: Subscription,
) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
    check(&subscription)?;
    let conn = shared.link.conn().await?;
    let topic = shared.topic(&conn, &subscription.topic).await?;
    shared
        .claim_mode(&conn, &topic, &subscription.group, Mode::Partitioned)
        .await?;
    let member = Arc::new(Member::new(
        Arc::clone(shared),
        reads.clone(),
        upkeep.open(&topic),
        topic,
        &subscription,
    ));
    resolve_start(&member, &conn, subscription.start).await?;
    let (alive, ended) = watch::channel(());
    let outbox = Arc::clone(&member.outbox);
    let consumer = RedisConsumer {
        member: Arc::clone(&member),
        ended,
        _guard: LeaveOnDrop(Arc::clone(&member)),
    };
    let events = RedisEvents {
        outbox,
        _guard: LeaveOnDrop(Arc::clone(&member)),
    };
    // Ends when it has left, which the guards ask it to.
    tokio::spawn(member.run(alive));
    Ok((Arc::new(consumer), Box::new(events)))
}

fn check(subscription: &Subscription) -> Result<()> {
    if let Some((name, _)) = subscription.properties.first() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("consumer property {name:?}: the redis backend knows none in this mode"),
        ));
    }
    check_session_timeout(subscription)
}

pub(crate) fn check_session_timeout(subscription: &Subscription) -> Result<()> {
    match subscription.session_timeout {
        Some(timeout) if timeout < MIN_SESSION_TIMEOUT => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("session timeout {timeout:?}: it is at least {MIN_SESSION_TIMEOUT:?}"),
        )),
        _ => Ok(()),
    }
}

#[async_trait]
impl driver::Consumer for RedisConsumer {
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        self.member.commit(commits).await
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        self.member.release(&assignments).await
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
        let _ = ended.changed().await;
        Ok(())
    }
}
