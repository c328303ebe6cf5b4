//! The producer: one request under way for each partition, filled as a batch.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::FuturesUnordered};
use mq_api::{
    Error, Message, Offset, Result,
    driver::{self, NotNow, ProducerRequest, SendBatch, SendWindow},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use crate::{
    client::Route,
    flight::{BATCH_MESSAGES, Flight},
    topic::{Shared, Topic},
};

/// The most that the portable layer gathers in a batch, by weight.
const BATCH_WEIGHT: usize = 2 * 1024 * 1024;

/// Produces to one topic.
pub(crate) struct RocketMqProducer {
    topic: Topic,
    /// Bounded by the window: one batch of each partition.
    batches: mpsc::UnboundedSender<SendBatch>,
    partitions: watch::Receiver<u32>,
    closed: AtomicBool,
    window: SendWindow,
    task: AbortHandle,
}

impl Drop for RocketMqProducer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RocketMqProducer {
    pub(crate) async fn open(shared: &Arc<Shared>, request: &ProducerRequest) -> Result<Arc<Self>> {
        let (topic, route) = shared.open(&request.topic).await?;
        let (count, partitions) = watch::channel(count_of(&route));
        let (batches, waiting) = mpsc::unbounded_channel();
        let lanes = Lanes {
            shared: Arc::clone(shared),
            routes: shared.cluster.watch(&topic.physical),
            route,
            topic: topic.clone(),
        };
        let most = request.max_batch.clamp(1, BATCH_MESSAGES);
        Ok(Arc::new(Self {
            topic,
            batches,
            partitions,
            closed: AtomicBool::new(false),
            window: SendWindow::new(1, most, BATCH_WEIGHT),
            task: tokio::spawn(lanes.run(waiting, count)).abort_handle(),
        }))
    }
}

fn count_of(route: &Route) -> u32 {
    u32::try_from(route.layout.len()).unwrap_or(u32::MAX)
}

/// Sends for one producer.
struct Lanes {
    shared: Arc<Shared>,
    topic: Topic,
    routes: watch::Receiver<Option<Arc<Route>>>,
    route: Arc<Route>,
}

impl Lanes {
    async fn run(mut self, mut waiting: mpsc::UnboundedReceiver<SendBatch>, count: watch::Sender<u32>) {
        let mut flights = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = flights.next(), if !flights.is_empty() => {}
                batch = waiting.recv() => match batch {
                    Some(batch) => {
                        let queue = self.route.layout.queue(batch.partition()).cloned();
                        let flight = Flight {
                            shared: Arc::clone(&self.shared),
                            topic: self.topic.clone(),
                            partitions: self.route.layout.len(),
                        };
                        flights.push(flight.send(queue, batch));
                    }
                    None => return,
                },
                changed = self.routes.changed() => {
                    if changed.is_err() {
                        // The topic was deleted by this client; brokers refuse it from now on.
                        self.routes = self.shared.cluster.watch(&self.topic.physical);
                    }
                    self.take_route(&count);
                }
            }
        }
    }

    fn take_route(&mut self, count: &watch::Sender<u32>) {
        let known = self.routes.borrow_and_update().clone();
        // Partitions that a route does not show are not gone.
        if let Some(route) = known
            && route.layout.len() >= self.route.layout.len()
        {
            self.route = route;
            let now = count_of(&self.route);
            count.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    }
}

#[async_trait]
impl driver::Producer for RocketMqProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.partitions.clone()
    }

    fn window(&self) -> SendWindow {
        self.window
    }

    fn send(&self, batch: SendBatch) {
        if self.closed.load(Ordering::Acquire) {
            batch.fail_all(&Error::closed("producer"));
            return;
        }
        if let Err(mpsc::error::SendError(batch)) = self.batches.send(batch) {
            batch.fail_all(&Error::closed("producer"));
        }
    }

    fn store_now(&self, _: u32, _: &mut Message, _: &mut driver::Wakes) -> Result<Option<Offset>, NotNow> {
        Err(NotNow)
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        // What is still under way settles by itself when it is dropped.
        self.task.abort();
        Ok(())
    }
}

impl fmt::Debug for RocketMqProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocketMqProducer")
            .field("topic", &self.topic.name)
            .field("partitions", &*self.partitions.borrow())
            .finish_non_exhaustive()
    }
}
