//! Sending: batches are stored within the call.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use mq_api::{
    Error, Message, Offset, Outcome, Result,
    driver::{self, NotNow, Producer, SendBatch, SendWindow},
};
use tokio::sync::watch;

use crate::{
    broker::Broker,
    delay,
    error::MemoryError,
    faults::{FaultState, SendFault},
    log::{Gone, Partition},
    topic::Topic,
    wakes::Wakes,
};

/// Sends to one topic.
pub(crate) struct MemoryProducer {
    id: u64,
    broker: Arc<Broker>,
    topic: Arc<Topic>,
    closed: AtomicBool,
}

impl MemoryProducer {
    pub(crate) fn new(broker: Arc<Broker>, topic: Arc<Topic>) -> Self {
        Self {
            id: broker.next_id(),
            broker,
            topic,
            closed: AtomicBool::new(false),
        }
    }
}

#[async_trait]
impl Producer for MemoryProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.topic.count()
    }

    fn window(&self) -> SendWindow {
        SendWindow::new(64, 1024, 16 * 1024 * 1024).with_store_now()
    }

    fn send(&self, batch: SendBatch) {
        if self.closed.load(Ordering::Acquire) {
            batch.fail_all(&MemoryError::Closed("producer").into());
        } else if self.broker.faults.is_engaged() {
            FaultState::send(&self.broker, self.id, &self.topic, batch);
        } else {
            store(&self.broker, &self.topic, batch);
        }
    }

    /// What [`store`] does for a batch of one, without the batch.
    #[inline]
    fn store_now(
        &self,
        partition: u32,
        message: &mut Message,
        wakes: &mut driver::Wakes,
    ) -> Result<Option<Offset>, NotNow> {
        if self.closed.load(Ordering::Acquire) || self.broker.faults.is_engaged() || message.due().is_some() {
            return Err(NotNow);
        }
        let partition = self.topic.partition(partition).ok_or(NotNow)?;
        partition
            .append_one(message, wakes)
            .map(Some)
            .map_err(|Gone| NotNow)
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.broker.faults.forget(self.id);
        Ok(())
    }
}

impl fmt::Debug for MemoryProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryProducer")
            .field("topic", &self.topic.name)
            .finish_non_exhaustive()
    }
}

/// Stores a batch and settles it.
pub(crate) fn store(broker: &Broker, topic: &Topic, mut batch: SendBatch) {
    let partition = match topic.try_partition(batch.partition()) {
        Ok(partition) => partition,
        Err(error) => return batch.fail_all(&error),
    };
    let plain = !broker.faults.is_engaged() && batch.messages().iter().all(|message| message.due().is_none());
    if !(plain && batch.begin_io(0..batch.len())) {
        return store_each(broker, topic, partition, &batch);
    }
    let mut wakes = Wakes::default();
    let stored = partition.append(batch.take_messages(), &mut wakes);
    // Consumers first: they have the longer way.
    drop(wakes);
    match stored {
        Ok(offsets) => batch.complete_all(Some(offsets.start)),
        Err(_) => batch.fail_all(&MemoryError::NoTopic(topic.name.clone()).into()),
    }
}

/// Stores the messages of a batch that are still wanted one by one: some are delayed, given up, or to fail.
fn store_each(broker: &Broker, topic: &Topic, partition: &Arc<Partition>, batch: &SendBatch) {
    for index in 0..batch.len() {
        if !batch.begin_one(index) {
            continue;
        }
        match store_one(broker, topic, partition, batch, index) {
            Ok(offset) => batch.complete_one(index, offset),
            Err(error) => batch.fail(index..index + 1, &error),
        }
    }
}

fn store_one(
    broker: &Broker,
    topic: &Topic,
    partition: &Arc<Partition>,
    batch: &SendBatch,
    index: usize,
) -> Result<Option<Offset>> {
    let fault = if broker.faults.is_engaged() {
        broker.faults.next_send()
    } else {
        None
    };
    let injected = |outcome| Err(MemoryError::Injected { outcome }.into());
    match fault {
        Some(SendFault::NotSent) => return injected(Outcome::NotSent),
        Some(SendFault::Lost) => return injected(Outcome::Unknown),
        Some(SendFault::AnswerLost) | None => {}
    }
    let Some(message) = batch.messages().get(index) else {
        return Err(Error::closed("batch"));
    };
    // A copy shares the bytes; the batch keeps its own, which may have to be sent again.
    let offset = match delay::hold_back(broker, topic, partition, message.clone())? {
        None => None,
        Some(message) => {
            let wakes = &mut Wakes::default();
            let stored = partition.append(std::iter::once(message), wakes);
            Some(
                stored
                    .map_err(|_| MemoryError::NoTopic(topic.name.clone()))?
                    .start,
            )
        }
    };
    match fault {
        Some(_) => injected(Outcome::Unknown),
        None => Ok(offset),
    }
}
