//! The group members behind a tweak.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Moment, Offset, Position, Result,
    driver::{
        AssignmentId, Commit, CommitOutcome, Consumer, Event, Events, QueueConsumer, QueueReceipt,
        QueueRecord,
    },
};

use super::{Scope, Tweak};

/// Forwards to a consumer through a tweak.
#[derive(Debug)]
pub(crate) struct TweakedConsumer {
    inner: Arc<dyn Consumer>,
    tweak: Arc<dyn Tweak>,
    scope: Scope,
}

/// Forwards a consumer's events through a tweak.
pub(crate) struct TweakedEvents {
    inner: Box<dyn Events>,
    tweak: Arc<dyn Tweak>,
    scope: Scope,
}

/// Forwards to a member of a shared group through a tweak.
#[derive(Debug)]
pub(crate) struct TweakedQueue {
    inner: Arc<dyn QueueConsumer>,
    tweak: Arc<dyn Tweak>,
    scope: Scope,
}

impl TweakedConsumer {
    pub(super) fn pair(
        inner: Arc<dyn Consumer>,
        events: Box<dyn Events>,
        tweak: Arc<dyn Tweak>,
        scope: Scope,
    ) -> (Self, TweakedEvents) {
        let events = TweakedEvents {
            inner: events,
            tweak: Arc::clone(&tweak),
            scope: scope.clone(),
        };
        (Self { inner, tweak, scope }, events)
    }
}

impl Events for TweakedEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        self.tweak.poll_event(&self.scope, &mut *self.inner, cx)
    }
}

#[async_trait]
impl Consumer for TweakedConsumer {
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        self.tweak.commit(&self.scope, &*self.inner, commits).await
    }
    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        self.tweak.release(&self.scope, &*self.inner, assignments).await
    }
    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        self.tweak
            .seek(&self.scope, &*self.inner, assignment, to, generation)
            .await
    }
    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        self.tweak.pause(&self.scope, &*self.inner, assignments, paused);
    }
    async fn close(&self) -> Result<()> {
        self.tweak.close_consumer(&self.scope, &*self.inner).await
    }
}

impl TweakedQueue {
    pub(super) fn new(inner: Arc<dyn QueueConsumer>, tweak: Arc<dyn Tweak>, scope: Scope) -> Self {
        Self { inner, tweak, scope }
    }
}

#[async_trait]
impl QueueConsumer for TweakedQueue {
    async fn receive(&self, max: usize) -> Result<Vec<QueueRecord>> {
        self.tweak.receive(&self.scope, &*self.inner, max).await
    }
    async fn ack(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<()>> {
        self.tweak.ack(&self.scope, &*self.inner, receipts).await
    }
    async fn nack(&self, receipts: Vec<(QueueReceipt, Duration)>) -> Vec<Result<()>> {
        self.tweak.nack(&self.scope, &*self.inner, receipts).await
    }
    async fn extend(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<(QueueReceipt, Moment)>> {
        self.tweak.extend(&self.scope, &*self.inner, receipts).await
    }
    fn lease(&self) -> Duration {
        self.inner.lease()
    }
    async fn close(&self) -> Result<()> {
        self.tweak.close_queue(&self.scope, &*self.inner).await
    }
}
