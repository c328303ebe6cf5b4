//! The reader behind a tweak.

use std::sync::Arc;

use async_trait::async_trait;
use mq_api::{
    Offset, Result, Timestamp,
    driver::{FetchRequest, Fetched, Reader},
};

use super::{Scope, Tweak};

/// Forwards to a reader through a tweak.
#[derive(Debug)]
pub(crate) struct TweakedReader {
    inner: Arc<dyn Reader>,
    tweak: Arc<dyn Tweak>,
    scope: Scope,
}

impl TweakedReader {
    pub(super) fn new(inner: Arc<dyn Reader>, tweak: Arc<dyn Tweak>, scope: Scope) -> Self {
        Self { inner, tweak, scope }
    }
}

#[async_trait]
impl Reader for TweakedReader {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        self.tweak.fetch(&self.scope, &*self.inner, request).await
    }
    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        self.tweak
            .offset_at(&self.scope, &*self.inner, partition, time)
            .await
    }
    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        self.tweak.bounds(&self.scope, &*self.inner).await
    }
    async fn close(&self) -> Result<()> {
        self.tweak.close_reader(&self.scope, &*self.inner).await
    }
}
