//! Taking messages, and acking them together.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::task::coop;

use super::{Consumer, member::Kind};
use crate::{
    Channel, Delivery, Error, ErrorKind, Moment, Result,
    engine::{Core, Handed, Item, Place, Wait},
};

impl Consumer {
    /// Waits for the next message, as long as there is none.
    ///
    /// # Errors
    /// [`Connection`](ErrorKind::Connection), retryable, once for each outage longer than `outage_after`; the next call
    /// goes on waiting. [`Closed`](ErrorKind::Closed) after `close`, also for calls that were waiting. Any other error
    /// is the end of the consumer, [`TopicNotFound`](ErrorKind::TopicNotFound) once the topic was deleted.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message, changes no order and counts no attempt.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let delivery = consumer.consume().await?;
    /// assert_eq!(delivery.payload(), b"paid");
    /// delivery.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn consume(&self) -> impl Future<Output = Result<Delivery>> {
        Consume {
            consumer: self,
            wait: None,
        }
    }

    /// Waits for at least one message and returns what is there, at most `max`; it does not wait to fill.
    ///
    /// # Errors
    /// As [`consume`](Self::consume); [`InvalidConfig`](ErrorKind::InvalidConfig) for a `max` of zero.
    ///
    /// # Cancel safety
    /// As [`consume`](Self::consume).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("a").await?;
    /// # producer.produce("b").await?;
    /// # producer.produce("c").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let mut seen = 0;
    /// while seen < 3 {
    ///     let batch = consumer.consume_batch(100).await?;
    ///     seen += batch.len();
    ///     consumer.ack_all(batch)?;
    /// }
    /// assert_eq!(seen, 3);
    /// # Ok(()) }
    /// ```
    pub async fn consume_batch(&self, max: usize) -> Result<Vec<Delivery>> {
        if max == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "a batch of 0 messages: the least is 1",
            ));
        }
        coop::consume_budget().await;
        match self.kind() {
            Kind::Log { engine, .. } => {
                let mut batch = None;
                engine.take_now(|core| {
                    batch = core.take_many(max);
                    batch.is_some()
                });
                if let Some(batch) = batch {
                    return Ok(batch);
                }
                engine.wait(|core| core.take_many(max)).await
            }
            Kind::Queue(engine) => Ok(engine
                .take(max)
                .await?
                .into_iter()
                .map(|taken| self.deliver(taken))
                .collect()),
        }
    }

    /// Takes the next message if one is there.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// assert!(consumer.try_consume()?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn try_consume(&self) -> Result<Option<Delivery>> {
        match self.kind() {
            Kind::Log { engine, .. } => {
                let mut found = Poll::Pending;
                engine.try_take(|core| core.take_one(&mut found).then_some(()))?;
                match found {
                    Poll::Ready(result) => result.map(Some),
                    Poll::Pending => Ok(None),
                }
            }
            Kind::Queue(engine) => Ok(engine.try_take(1)?.pop().map(|taken| self.deliver(taken))),
        }
    }

    fn deliver(&self, (handed, at): (Handed, Moment)) -> Delivery {
        Delivery::handed(handed, at, self.handle.member.auto_ack)
    }

    /// Opens a bounded channel of deliveries, which is also a `Stream`.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for a capacity of zero, [`Closed`](ErrorKind::Closed).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let mut channel = consumer.channel(1024)?;
    /// channel.recv().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn channel(&self, capacity: usize) -> Result<Channel> {
        if capacity == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "a channel with a capacity of 0: the least is 1",
            ));
        }
        if let Kind::Log { engine, .. } = self.kind() {
            engine.with(|core| core.check_alive())?;
        }
        Ok(Channel::new(self.clone(), capacity))
    }

    /// Takes up to `most` messages for a channel, without counting a hand-over.
    pub(crate) async fn reserve(&self, most: usize, into: &mut VecDeque<Item>) -> Result<()> {
        match self.kind() {
            Kind::Log { engine, .. } => {
                engine
                    .wait(|core| {
                        let now = core.now();
                        while into.len() < most
                            && let Some(item) = core.reserve(now)
                        {
                            into.push_back(item);
                        }
                        (!into.is_empty()).then_some(())
                    })
                    .await
            }
            // The backend has counted already; there is nothing to keep ahead of it.
            Kind::Queue(_) => Ok(()),
        }
    }

    /// Hands over a message that a channel has reserved; `None` where it is another member's by now.
    pub(crate) fn hand(&self, item: Item) -> Result<Option<Delivery>> {
        let Kind::Log { engine, .. } = self.kind() else {
            return Ok(None);
        };
        let auto_ack = self.handle.member.auto_ack;
        engine.with(|core| {
            // An outage that is to be reported does not concern a message that is here.
            core.check_alive()?;
            let now = core.now();
            Ok(core
                .hand(item, now)
                .map(|handed| Delivery::handed(handed, now, auto_ack)))
        })
    }

    /// Takes back what a channel had reserved.
    pub(crate) fn unreserve(&self, items: impl Iterator<Item = Item>) {
        if let Kind::Log { engine, .. } = self.kind() {
            engine.with(|core| items.for_each(|item| core.unreserve(item)));
            engine.wake_one();
        }
    }

    pub(crate) fn is_queue(&self) -> bool {
        matches!(self.kind(), Kind::Queue(_))
    }

    /// Acks deliveries in one go.
    ///
    /// # Errors
    /// [`StaleAck`](ErrorKind::StaleAck) where one of them was over, after all others are acked;
    /// [`Closed`](ErrorKind::Closed).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let batch = consumer.consume_batch(100).await?;
    /// consumer.ack_all(batch)?;
    /// consumer.commit().await?;
    /// assert_eq!(consumer.lag().await?.total(), 0);
    /// # Ok(()) }
    /// ```
    pub fn ack_all(&self, deliveries: Vec<Delivery>) -> Result<()> {
        let Kind::Log { engine, .. } = self.kind() else {
            return ack_each(deliveries, Ok(()));
        };
        let mut deliveries = deliveries;
        let mut ready = false;
        let mut foreign = false;
        let mut result = engine.with(|core| {
            let mut result = Ok(());
            for run in deliveries.chunk_by_mut(|a, b| Arc::ptr_eq(a.source(), b.source())) {
                if !run.first().is_some_and(|first| engine.owns(first)) {
                    foreign = true;
                    continue;
                }
                match core.ack_run(run) {
                    Ok(more) => ready |= more,
                    Err(error) => result = Err(error),
                }
            }
            result
        });
        if ready {
            engine.wake_one();
        }
        if foreign {
            // Deliveries of another consumer go to that one.
            deliveries.retain(|delivery| !delivery.is_settled());
            result = ack_each(deliveries, result);
        }
        result
    }
}

/// Waits for one message. It is written by hand so that the delivery is made where the caller gets it.
struct Consume<'a> {
    consumer: &'a Consumer,
    /// Once there was nothing.
    wait: Option<Wait<'a>>,
}

impl Future for Consume<'_> {
    type Output = Result<Delivery>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut found = Poll::Pending;
        self.look(cx, &mut found);
        found
    }
}

impl Consume<'_> {
    fn look(&mut self, cx: &mut Context<'_>, found: &mut Place) {
        let Self { consumer, wait } = self;
        match consumer.kind() {
            Kind::Log { engine, .. } => {
                let mut take = |core: &mut Core| core.take_one(found);
                if wait.is_none() && engine.expects() {
                    // A loop over a long backlog must let others run, as every call of Tokio's own does. One that has to
                    // wait, as a rule, does so by waiting.
                    let Poll::Ready(budget) = coop::poll_proceed(cx) else {
                        return;
                    };
                    if engine.take_now(&mut take) {
                        return budget.made_progress();
                    }
                }
                let wait = wait.get_or_insert_with(|| engine.begin_wait());
                let waited = engine.poll_wait(cx, wait, |core| take(core).then_some(()));
                if let Poll::Ready(Err(error)) = waited {
                    *found = Poll::Ready(Err(error));
                }
            }
            Kind::Queue(engine) => {
                let Poll::Ready(budget) = coop::poll_proceed(cx) else {
                    return;
                };
                let wait = wait.get_or_insert_with(|| engine.begin_wait());
                let taken = engine.poll_take(cx, wait, 1);
                if taken.is_ready() {
                    budget.made_progress();
                }
                match taken {
                    Poll::Ready(Ok(mut taken)) => {
                        if let Some(taken) = taken.pop() {
                            *found = Poll::Ready(Ok(consumer.deliver(taken)));
                        }
                    }
                    Poll::Ready(Err(error)) => *found = Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
        }
    }
}

/// Acks every delivery; returns the first error, `before` included.
fn ack_each(deliveries: Vec<Delivery>, before: Result<()>) -> Result<()> {
    let mut result = before;
    for delivery in deliveries {
        let acked = delivery.ack();
        result = result.and(acked);
    }
    result
}
