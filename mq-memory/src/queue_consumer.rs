//! One member of a shared group.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Moment, Result,
    driver::{QueueConsumer, QueueReceipt, QueueRecord, Subscription},
};

use crate::{
    broker::Broker,
    error::MemoryError,
    member::MemberId,
    queue::{Queue, Taken, Token},
    topic::Topic,
};

/// Takes single messages out of a shared group.
pub(crate) struct MemoryQueueConsumer {
    id: MemberId,
    broker: Arc<Broker>,
    topic: Arc<Topic>,
    queue: Arc<Queue>,
    closed: AtomicBool,
}

impl MemoryQueueConsumer {
    pub(crate) fn join(
        broker: &Arc<Broker>,
        topic: &Arc<Topic>,
        subscription: &Subscription,
    ) -> Result<Self> {
        let queue = topic.shared_group(&subscription.group, subscription.start, broker)?;
        let id = broker.next_id();
        queue.join(id, subscription.clock.clone());
        Ok(Self {
            id,
            broker: Arc::clone(broker),
            topic: Arc::clone(topic),
            queue,
            closed: AtomicBool::new(false),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(MemoryError::Closed("consumer").into())
        } else {
            Ok(())
        }
    }

    /// Settles receipts one by one, once the broker lets calls through.
    async fn each<A, T>(
        &self,
        receipts: Vec<A>,
        receipt: impl Fn(&A) -> &QueueReceipt,
        settle: impl Fn(Token, &A) -> Result<T>,
    ) -> Vec<Result<T>> {
        let open = match self.check_open() {
            Ok(()) => self.broker.faults.gate(self.broker.config.request_timeout).await,
            closed => closed,
        };
        let one = |entry: &A| {
            open.clone()?;
            settle(Token::of(receipt(entry))?, entry)
        };
        receipts.iter().map(one).collect()
    }
}

#[async_trait]
impl QueueConsumer for MemoryQueueConsumer {
    async fn receive(&self, max: usize) -> Result<Vec<QueueRecord>> {
        loop {
            // Made before the look, so that what comes after the look ends the wait.
            let mut news = pin!(self.queue.news().notified());
            news.as_mut().enable();
            self.check_open()?;
            match self.queue.take(self.id, max.max(1)) {
                Taken::Records(records) => return Ok(records),
                Taken::Ended => return Err(MemoryError::NoTopic(self.topic.name.clone()).into()),
                Taken::Outage => return Err(MemoryError::ConnectionLost.into()),
                Taken::Nothing => {}
            }
            let _waiting = self.queue.wait();
            news.await;
        }
    }

    async fn ack(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<()>> {
        self.each(
            receipts,
            |receipt| receipt,
            |token, _| self.queue.ack(self.id, token),
        )
        .await
    }

    async fn nack(&self, receipts: Vec<(QueueReceipt, Duration)>) -> Vec<Result<()>> {
        self.each(
            receipts,
            |(receipt, _)| receipt,
            |token, (_, delay)| self.queue.nack(self.id, token, *delay),
        )
        .await
    }

    async fn extend(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<(QueueReceipt, Moment)>> {
        self.each(
            receipts,
            |receipt| receipt,
            |token, receipt| Ok((receipt.clone(), self.queue.extend(self.id, token)?)),
        )
        .await
    }

    fn lease(&self) -> Duration {
        self.queue.lease()
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.queue.leave(self.id);
        self.queue.alert();
        Ok(())
    }
}

impl Drop for MemoryQueueConsumer {
    fn drop(&mut self) {
        self.queue.leave(self.id);
    }
}

impl fmt::Debug for MemoryQueueConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryQueueConsumer")
            .field("topic", &self.topic.name)
            .field("member", &self.id)
            .finish_non_exhaustive()
    }
}
