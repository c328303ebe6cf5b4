//! The running part of a consumer.

use std::sync::{Arc, Mutex, PoisonError};

use super::modes::ModeClaim;
use crate::{
    GroupName, Result, TopicName,
    engine::{Engine, QueueEngine},
    mq::{BoxFuture, Child, MqInner},
};

/// Held by the clones of a consumer; the last one leaves the group in the background.
pub(super) struct Handle {
    pub(super) member: Arc<Member>,
}

/// The running part: what a client closes when it is closed itself.
pub(crate) struct Member {
    pub(super) mq: Arc<MqInner>,
    pub(super) topic: TopicName,
    pub(super) group: GroupName,
    pub(super) auto_ack: bool,
    pub(super) kind: Kind,
    /// Taken out by close, so that the group may then have another mode.
    pub(super) mode: Mutex<Option<ModeClaim>>,
}

/// The engine that a consumer runs on.
#[derive(Clone)]
pub(crate) enum Kind {
    Log { engine: Arc<Engine>, stored: bool },
    Queue(Arc<QueueEngine>),
}

impl Drop for Handle {
    fn drop(&mut self) {
        match &self.member.kind {
            Kind::Log { engine, .. } => engine.ask_close(),
            Kind::Queue(engine) => engine.ask_close(),
        }
    }
}

impl Child for Member {
    fn close(self: Arc<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.leave().await })
    }
}

impl Member {
    /// Leaves the group, and lets it have another mode then.
    pub(super) async fn leave(&self) -> Result<()> {
        let closed = match &self.kind {
            Kind::Log { engine, .. } => engine.close().await,
            Kind::Queue(engine) => engine.close().await,
        };
        drop(self.mode.lock().unwrap_or_else(PoisonError::into_inner).take());
        closed
    }
}
