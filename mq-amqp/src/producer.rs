//! Producing to one topic: a task and a channel for each partition that is sent to, or for the exchange that others
//! made.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use mq_api::{
    Error, Message, Offset, Result,
    driver::{self, NotNow, ProducerRequest, SendBatch, SendWindow, Wakes, invalid_partition},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::AbortHandle,
};

use crate::{
    lane::{Lane, Sink},
    topic::Shared,
};

/// How many batches of one partition may be under way.
const BATCHES: usize = 4;

/// Produces to one topic.
pub(crate) struct AmqpProducer {
    shared: Arc<Shared>,
    sink: Sink,
    runtime: Handle,
    lanes: Mutex<Vec<Option<Sending>>>,
    closed: AtomicBool,
    window: SendWindow,
}

/// One partition's task.
struct Sending {
    batches: mpsc::UnboundedSender<SendBatch>,
    task: AbortHandle,
}

impl AmqpProducer {
    pub(crate) fn new(shared: &Arc<Shared>, sink: Sink, request: &ProducerRequest) -> Self {
        Self {
            shared: Arc::clone(shared),
            sink,
            runtime: Handle::current(),
            lanes: Mutex::default(),
            closed: AtomicBool::new(false),
            window: SendWindow::new(BATCHES, request.max_batch.clamp(1, 1024), 1024 * 1024),
        }
    }

    fn end(&self) {
        self.closed.store(true, Ordering::Release);
        let lanes = std::mem::take(&mut *self.lanes.lock().unwrap_or_else(PoisonError::into_inner));
        for lane in lanes.into_iter().flatten() {
            // What is unsettled settles as its batch is dropped.
            lane.task.abort();
        }
    }
}

#[async_trait]
impl driver::Producer for AmqpProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.sink.count()
    }

    fn window(&self) -> SendWindow {
        self.window
    }

    fn send(&self, batch: SendBatch) {
        let partition = batch.partition();
        let partitions = *self.sink.count().borrow();
        if partition >= partitions {
            batch.fail_all(&invalid_partition(self.sink.topic(), partition, partitions));
            return;
        }
        let refused = {
            let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            if self.closed.load(Ordering::Acquire) {
                Some(batch)
            } else {
                let at = partition as usize;
                if lanes.len() <= at {
                    lanes.resize_with(at + 1, || None);
                }
                match lanes.get_mut(at) {
                    Some(lane) => {
                        let sending = lane.get_or_insert_with(|| {
                            let (batches, queue) = mpsc::unbounded_channel();
                            let lane = Lane::new(&self.shared, &self.sink, partition, queue);
                            // Ended by `close`, or with the producer.
                            let task = self.runtime.spawn(lane.run()).abort_handle();
                            Sending { batches, task }
                        });
                        // Bounded by the window. The task ends only when it is aborted.
                        sending.batches.send(batch).err().map(|unsent| unsent.0)
                    }
                    None => Some(batch),
                }
            }
        };
        if let Some(batch) = refused {
            batch.fail_all(&Error::closed("producer"));
        }
    }

    fn store_now(&self, _: u32, _: &mut Message, _: &mut Wakes) -> Result<Option<Offset>, NotNow> {
        Err(NotNow)
    }

    async fn close(&self) -> Result<()> {
        self.end();
        Ok(())
    }
}

impl Drop for AmqpProducer {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for AmqpProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpProducer")
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}
