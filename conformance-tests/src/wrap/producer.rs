//! The producer behind a tweak.

use std::sync::Arc;

use async_trait::async_trait;
use mq_api::{
    Message, Offset, Result,
    driver::{NotNow, Producer, SendBatch, SendWindow, Wakes},
};
use tokio::sync::watch;

use super::{Scope, Tweak};

/// Forwards to a producer through a tweak.
#[derive(Debug)]
pub(crate) struct TweakedProducer {
    inner: Arc<dyn Producer>,
    tweak: Arc<dyn Tweak>,
    scope: Scope,
}

impl TweakedProducer {
    pub(super) fn new(inner: Arc<dyn Producer>, tweak: Arc<dyn Tweak>, scope: Scope) -> Self {
        Self { inner, tweak, scope }
    }
}

#[async_trait]
impl Producer for TweakedProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.tweak.partitions(&self.scope, self.inner.partitions())
    }
    fn window(&self) -> SendWindow {
        self.tweak.window(&self.scope, self.inner.window())
    }
    fn send(&self, batch: SendBatch) {
        self.tweak.send(&self.scope, &self.inner, batch);
    }
    // What a tweak does to sends is to concern every message.
    fn store_now(&self, _: u32, _: &mut Message, _: &mut Wakes) -> Result<Option<Offset>, NotNow> {
        Err(NotNow)
    }
    async fn close(&self) -> Result<()> {
        self.tweak.close_producer(&self.scope, &*self.inner).await
    }
}
