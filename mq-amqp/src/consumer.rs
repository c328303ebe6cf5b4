//! The partitioned consumer: a member whose partitions are its own while its lease stands.

use std::sync::Arc;

use async_trait::async_trait;
use mq_api::{
    Error, ErrorKind, Offset, Position, Result,
    driver::{self, AssignmentId, Commit, CommitOutcome, Events, Subscription},
};
use tokio::sync::watch;

use crate::{
    config::{MIN_SESSION_TIMEOUT, heartbeat_of},
    link::Link,
    member::Member,
    meta::Mode,
    outbox::AmqpEvents,
    session::resolve_start,
    topic::Shared,
};

/// Controls one member of a group on RabbitMQ.
#[derive(Debug)]
pub(crate) struct AmqpConsumer {
    member: Arc<Member>,
    /// Closes when the member's task has ended.
    ended: watch::Receiver<()>,
    _guard: LeaveOnDrop,
}

/// Has the member leave when its last handle is gone. The task that leaves runs already; nothing is spawned here.
#[derive(Debug)]
pub(crate) struct LeaveOnDrop(Arc<Member>);

impl LeaveOnDrop {
    pub(crate) fn new(member: &Arc<Member>) -> Self {
        Self(Arc::clone(member))
    }
}

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.ask_to_leave();
    }
}

/// Joins a group.
pub(crate) async fn join(
    shared: &Arc<Shared>,
    subscription: Subscription,
) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
    let link = link(shared, &subscription)?;
    let open = shared.open(&subscription.topic).await?;
    let member = Arc::new(Member::new(shared, link, open, &subscription));
    resolve_start(&member, subscription.start, Mode::Partitioned).await?;
    let (alive, ended) = watch::channel(());
    let outbox = Arc::clone(&member.outbox);
    let consumer = AmqpConsumer {
        member: Arc::clone(&member),
        ended,
        _guard: LeaveOnDrop(Arc::clone(&member)),
    };
    let events = AmqpEvents::new(outbox, LeaveOnDrop(Arc::clone(&member)));
    // Ends when it has left, which the guards ask it to.
    tokio::spawn(member.run(alive));
    Ok((Arc::new(consumer), Box::new(events)))
}

/// Chooses the connection: the client's own for receiving, or one of the consumer's where it asks for that, or for
/// another heartbeat.
pub(crate) fn link(shared: &Arc<Shared>, subscription: &Subscription) -> Result<Arc<Link>> {
    let mut own = false;
    for (name, value) in &subscription.properties {
        match (name.as_str(), value.as_str()) {
            ("connection", "own") => own = true,
            ("connection", "shared") => own = false,
            ("connection", other) => {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!("consumer property `connection` {other:?}: it is `own` or `shared`"),
                ));
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!("consumer property {name:?}: the amqp backend knows `connection`"),
                ));
            }
        }
    }
    let heartbeat = match subscription.session_timeout {
        Some(timeout) if timeout < MIN_SESSION_TIMEOUT => {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("session timeout {timeout:?}: it is at least {MIN_SESSION_TIMEOUT:?}"),
            ));
        }
        Some(timeout) => heartbeat_of(timeout),
        None => shared.config.heartbeat(),
    };
    if own || heartbeat != shared.config.heartbeat() {
        Ok(Arc::new(Link::new(
            Arc::clone(&shared.config),
            heartbeat,
            "receive alone",
        )))
    } else {
        Ok(Arc::clone(&shared.consume))
    }
}

#[async_trait]
impl driver::Consumer for AmqpConsumer {
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
