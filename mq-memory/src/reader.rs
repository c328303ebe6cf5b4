//! Reading partitions without a group.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use async_trait::async_trait;
use mq_api::{
    Offset, Result, Timestamp,
    driver::{FetchRequest, Fetched, Reader, Records},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    broker::Broker,
    error::MemoryError,
    log::{Cursor, Partition, Read},
    signal::Signal,
    topic::{self, Topic},
};

/// Reads one topic.
pub(crate) struct MemoryReader {
    broker: Arc<Broker>,
    topic: Arc<Topic>,
    closed: AtomicBool,
}

impl MemoryReader {
    pub(crate) fn new(broker: Arc<Broker>, topic: Arc<Topic>) -> Self {
        Self {
            broker,
            topic,
            closed: AtomicBool::new(false),
        }
    }

    async fn gate(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(MemoryError::Closed("reader").into());
        }
        self.broker
            .faults
            .gate(self.broker.config.request_timeout)
            .await?;
        self.topic.check()
    }

    /// Reads what is there; none where that is nothing.
    fn read(&self, mut read: impl FnMut() -> Read) -> Result<Option<Records>> {
        loop {
            self.topic.check()?;
            return match read() {
                Read::Empty => Ok(None),
                Read::Records { records, .. } => Ok(Some(records)),
                // Goes on at the oldest that is retained.
                Read::Trimmed { .. } => continue,
            };
        }
    }

    async fn wait(
        &self,
        partition: &Arc<Partition>,
        cursor: &mut Cursor,
        request: &FetchRequest,
    ) -> Result<Option<Records>> {
        let signal = Arc::new(Signal::new(self.broker.config.max_partitions));
        let watching = partition.watch(Arc::clone(&signal) as _);
        let mut registered = None;
        let found = poll_fn(|cx| {
            loop {
                signal.begin(|_| {});
                let read = || watching.read(cursor, request.max_messages, request.max_bytes);
                if let Some(found) = self.read(read).transpose() {
                    return Poll::Ready(found.map(Some));
                }
                if signal.wait(&mut registered, cx.waker()) {
                    return Poll::Pending;
                }
            }
        });
        // A wait beyond what the clock can count is as long as can be.
        match Instant::now().checked_add(request.wait) {
            Some(end) => timeout_at(end, found).await.unwrap_or(Ok(None)),
            None => found.await,
        }
    }
}

#[async_trait]
impl Reader for MemoryReader {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        self.gate().await?;
        let partition = self.topic.try_partition(request.partition)?;
        partition.expire();
        let mut cursor = Cursor::new(topic::resolve(partition, request.position)?);
        let mut found = self.read(|| partition.read(&mut cursor, request.max_messages, request.max_bytes))?;
        if found.is_none() && !request.wait.is_zero() {
            found = self.wait(partition, &mut cursor, &request).await?;
        }
        let records = found.unwrap_or_else(|| Vec::new().into());
        Ok(Fetched::new(records, cursor.next()))
    }

    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        self.gate().await?;
        let partition = self.topic.try_partition(partition)?;
        partition.expire();
        Ok(partition.offset_at(time))
    }

    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        self.gate().await?;
        let bounds = |partition: &Arc<Partition>| {
            partition.expire();
            partition.bounds()
        };
        Ok(self.topic.partitions().map(bounds).collect())
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for MemoryReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReader")
            .field("topic", &self.topic.name)
            .finish_non_exhaustive()
    }
}
