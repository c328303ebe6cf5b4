//! Consuming a topic as a member of a group.

mod builder;
mod modes;
mod status;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use self::modes::ModeClaim;
pub(crate) use self::modes::Modes;
pub use self::{
    builder::{ConsumerBuilder, Mode},
    status::{AssignedPartition, ConsumerStatus, PartitionStatus},
};
use crate::{
    Channel, Delivery, Error, ErrorKind, GroupName, Lag, Offset, Position, Result, TopicName,
    driver::CommittedPosition,
    engine::{Core, Engine, Item, QueueEngine},
    mq::{BoxFuture, Child, MqInner, deadline, require},
};

/// Consumes one topic as a member of one group.
///
/// It is cheap to clone and may be used from many tasks at once; each message goes to one of them. Dropping the last
/// clone commits what is acked and leaves the group, in the background; [`close`](Self::close) waits for that.
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
/// let consumer = mq.consumer("orders", "billing").await?;
/// let delivery = consumer.consume().await?;
/// assert_eq!(delivery.payload(), b"paid");
/// delivery.ack()?;
/// consumer.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Consumer {
    handle: Arc<Handle>,
}

struct Handle {
    member: Arc<Member>,
}

/// The running part: what a client closes when it is closed itself.
pub(crate) struct Member {
    mq: Arc<MqInner>,
    topic: TopicName,
    group: GroupName,
    auto_ack: bool,
    kind: Kind,
    /// Taken out by close, so that the group may then have another mode.
    mode: Mutex<Option<ModeClaim>>,
}

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
    async fn leave(&self) -> Result<()> {
        let closed = match &self.kind {
            Kind::Log { engine, .. } => engine.close().await,
            Kind::Queue(engine) => engine.close().await,
        };
        drop(self.mode.lock().unwrap_or_else(PoisonError::into_inner).take());
        closed
    }
}

impl Consumer {
    fn new(
        mq: &Arc<MqInner>,
        topic: TopicName,
        group: GroupName,
        auto_ack: bool,
        kind: Kind,
        mode: ModeClaim,
    ) -> Result<Self> {
        let member = Arc::new(Member {
            mq: Arc::clone(mq),
            topic,
            group,
            auto_ack,
            kind,
            mode: Mutex::new(Some(mode)),
        });
        let handle = Arc::new(Handle {
            member: Arc::clone(&member),
        });
        let child: Arc<dyn Child> = member;
        mq.register(&child)?;
        Ok(Self { handle })
    }

    fn kind(&self) -> &Kind {
        &self.handle.member.kind
    }

    fn engine(&self, what: &'static str) -> Result<&Arc<Engine>> {
        match self.kind() {
            Kind::Log { engine, .. } => Ok(engine),
            Kind::Queue(_) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{what} in shared mode"),
            )),
        }
    }

    /// Returns the topic.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.topic().as_str(), "orders");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.handle.member.topic
    }

    /// Returns the group.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.group().as_str(), "billing");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn group(&self) -> &GroupName {
        &self.handle.member.group
    }

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
    pub async fn consume(&self) -> Result<Delivery> {
        match self.kind() {
            Kind::Log { engine, .. } => {
                let taken = engine.wait(Core::take_stamped);
                Ok(self.deliver(taken.await?))
            }
            Kind::Queue(engine) => loop {
                if let Some(taken) = engine.take(1).await?.pop() {
                    return Ok(self.deliver(taken));
                }
            },
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
        match self.kind() {
            Kind::Log { engine, .. } => {
                let auto_ack = self.handle.member.auto_ack;
                engine
                    .wait(|core| {
                        // One look at the clock and one lock a batch.
                        let (first, now) = core.take_stamped()?;
                        let mut batch = Vec::with_capacity(max.min(core.likely_ready()));
                        batch.push(Delivery::handed(first, now, auto_ack));
                        while batch.len() < max
                            && let Some(handed) = core.take(now)
                        {
                            batch.push(Delivery::handed(handed, now, auto_ack));
                        }
                        Some(batch)
                    })
                    .await
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
        let taken = match self.kind() {
            Kind::Log { engine, .. } => engine.try_take(Core::take_stamped)?,
            Kind::Queue(engine) => engine.try_take(1)?.pop(),
        };
        Ok(taken.map(|taken| self.deliver(taken)))
    }

    fn deliver(&self, (handed, at): (crate::engine::Handed, crate::Moment)) -> Delivery {
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
    pub(crate) async fn reserve(
        &self,
        most: usize,
        into: &mut std::collections::VecDeque<Item>,
    ) -> Result<()> {
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
        let mut ready = false;
        let mut foreign = Vec::new();
        let result = engine.with(|core| {
            let mut result = Ok(());
            for mut delivery in deliveries {
                if !engine.owns(&delivery) {
                    foreign.push(delivery);
                    continue;
                }
                match core.ack(delivery.settling()) {
                    Ok(more) => ready |= more,
                    Err(error) => result = Err(error),
                }
            }
            result
        });
        if ready {
            engine.wake_one();
        }
        // Deliveries of another consumer go to that one.
        ack_each(foreign, result)
    }

    /// Stops hand-over and fetching of every partition. Membership, commits and redelivery timers go on.
    ///
    /// # Errors
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
    /// consumer.pause()?;
    /// assert!(consumer.try_consume()?.is_none());
    /// consumer.resume()?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn pause(&self) -> Result<()> {
        self.pause_all(true)
    }

    /// Takes back [`pause`](Self::pause), and every pause of single partitions.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed).
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.pause()?;
    /// consumer.resume()?;
    /// assert!(consumer.status().partitions.iter().all(|partition| !partition.paused));
    /// # Ok(()) }
    /// ```
    pub fn resume(&self) -> Result<()> {
        self.pause_all(false)
    }

    fn pause_all(&self, paused: bool) -> Result<()> {
        match self.kind() {
            Kind::Queue(engine) => engine.set_paused(paused),
            Kind::Log { engine, .. } => {
                engine.with(|core| {
                    core.check_alive()?;
                    core.all_paused = paused;
                    core.paused.clear();
                    for number in 0..core.partitions.len() {
                        core.set_paused(u32::try_from(number).unwrap_or(u32::MAX), paused);
                    }
                    Ok(())
                })?;
                engine.wake_all();
                Ok(())
            }
        }
    }

    /// Stops hand-over and fetching of some partitions, now and after a rebalance that brings them here again.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed); [`Unsupported`](ErrorKind::Unsupported) in shared mode.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 2).await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let producer = mq.producer("orders").await?;
    /// producer.produce_to(0, "held").await?;
    /// producer.produce_to(1, "free").await?;
    /// consumer.pause_partitions(&[0])?;
    /// assert_eq!(consumer.consume().await?.partition(), 1);
    /// # Ok(()) }
    /// ```
    pub fn pause_partitions(&self, partitions: &[u32]) -> Result<()> {
        self.pause_some(partitions, true)
    }

    /// Takes back [`pause_partitions`](Self::pause_partitions).
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed); [`Unsupported`](ErrorKind::Unsupported) in shared mode.
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
    /// consumer.pause_partitions(&[0])?;
    /// consumer.resume_partitions(&[0])?;
    /// consumer.consume().await?.ack()?;
    /// # Ok(()) }
    /// ```
    pub fn resume_partitions(&self, partitions: &[u32]) -> Result<()> {
        self.pause_some(partitions, false)
    }

    fn pause_some(&self, partitions: &[u32], paused: bool) -> Result<()> {
        let engine = self.engine("pausing single partitions")?;
        engine.with(|core| {
            core.check_alive()?;
            for partition in partitions {
                core.paused.retain(|other| other != partition);
                if paused {
                    core.paused.push(*partition);
                }
                let paused = paused || core.all_paused;
                core.set_paused(*partition, paused);
            }
            Ok(())
        })?;
        engine.wake_all();
        Ok(())
    }

    /// Moves a partition that is assigned to this consumer, and returns the offset that it goes on at.
    ///
    /// What was delivered before and is not settled is over: it comes again only if it lies ahead of the new place.
    ///
    /// # Errors
    /// [`InvalidPartition`](ErrorKind::InvalidPartition) where it is not assigned here,
    /// [`OffsetOutOfRange`](ErrorKind::OffsetOutOfRange) beyond the end, [`Unsupported`](ErrorKind::Unsupported) in
    /// shared mode, [`Timeout`](ErrorKind::Timeout) after the client's request timeout.
    ///
    /// # Cancel safety
    /// The move goes on if the future is dropped.
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
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// use mq_api::Position;
    ///
    /// consumer.consume().await?.ack()?;
    /// assert_eq!(consumer.seek(0, Position::Earliest).await?, 0);
    /// assert_eq!(consumer.consume().await?.payload(), b"a");
    /// # Ok(()) }
    /// ```
    pub async fn seek(&self, partition: u32, to: Position) -> Result<Offset> {
        let engine = self.engine("seek")?;
        engine.with(|core| core.check_alive())?;
        let capabilities = self.handle.member.mq.driver.capabilities();
        require(capabilities, capabilities.seek, "seek").map_err(|error| error.with_operation("seek"))?;
        let limit = self.handle.member.mq.options.request_timeout;
        deadline("seek", limit, engine.seek(partition, to)).await
    }

    /// Reads what the group has stored.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) in shared and broadcast mode, which store no positions;
    /// [`Closed`](ErrorKind::Closed), [`Timeout`](ErrorKind::Timeout), [`Connection`](ErrorKind::Connection).
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
    /// consumer.consume().await?.ack()?;
    /// consumer.commit().await?;
    /// assert_eq!(consumer.committed().await?[0].position, 1);
    /// # Ok(()) }
    /// ```
    pub async fn committed(&self) -> Result<Vec<CommittedPosition>> {
        const OPERATION: &str = "committed";
        self.stores_positions(OPERATION)?;
        self.handle
            .member
            .mq
            .committed(OPERATION, self.topic(), self.group())
            .await
    }

    fn stores_positions(&self, operation: &'static str) -> Result<()> {
        match self.kind() {
            Kind::Log { engine, stored: true } if engine.with(|core| core.closing) => {
                Err(Error::closed("consumer").with_operation(operation))
            }
            Kind::Log { stored: true, .. } => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "positions of a group outside partitioned mode",
            )
            .with_operation(operation)),
        }
    }

    /// Tells how far the group is behind the end: end minus stored position, of every partition of the topic.
    ///
    /// # Errors
    /// As [`committed`](Self::committed).
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
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?;
    /// consumer.commit().await?;
    /// assert_eq!(consumer.lag().await?.total(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn lag(&self) -> Result<Lag> {
        self.stores_positions("lag")?;
        self.handle.member.mq.lag(self.topic(), self.group()).await
    }

    /// Lists the partitions that this consumer owns now.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?;
    /// assert_eq!(consumer.assignment().len(), 4);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn assignment(&self) -> Vec<AssignedPartition> {
        match self.kind() {
            Kind::Log { engine, .. } => engine.try_drive(status::assignment),
            Kind::Queue(_) => Vec::new(),
        }
    }

    /// Takes a snapshot of what the consumer is doing.
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
    /// assert_eq!(consumer.status().unacked, 1);
    /// delivery.ack()?;
    /// assert_eq!(consumer.status().acked, 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn status(&self) -> ConsumerStatus {
        match self.kind() {
            Kind::Log { engine, .. } => engine.try_drive(status::of_core),
            Kind::Queue(engine) => status::of_queue(engine),
        }
    }

    /// Waits until the acks so far are stored and the rejected messages are in the dead-letter topic.
    ///
    /// # Errors
    /// [`Interrupted`](ErrorKind::Interrupted) where a partition was lost before its acks were stored,
    /// [`Timeout`](ErrorKind::Timeout) after the client's request timeout, or what the backend says.
    ///
    /// # Cancel safety
    /// The commit goes on if the future is dropped.
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
    /// consumer.consume().await?.ack()?;
    /// consumer.commit().await?; // from here on it does not come again, whatever happens to this process
    /// assert_eq!(mq.lag("orders", "billing").await?.total(), 0);
    /// # Ok(()) }
    /// ```
    pub async fn commit(&self) -> Result<()> {
        let limit = self.handle.member.mq.options.request_timeout;
        match self.kind() {
            Kind::Log { engine, .. } => deadline("commit", limit, engine.commit()).await,
            Kind::Queue(engine) => deadline("commit", limit, engine.commit()).await,
        }
    }

    /// Commits what is acked, gives back the rest and leaves the group. Idempotent: every caller gets the same result.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) where that did not work within the `close_timeout`; what was not stored comes
    /// again to another member.
    ///
    /// # Cancel safety
    /// Closing goes on if the future is dropped.
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
    /// consumer.consume().await?.ack()?;
    /// consumer.close().await?;
    /// let error = consumer.consume().await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::Closed);
    /// # Ok(()) }
    /// ```
    pub async fn close(&self) -> Result<()> {
        self.handle.member.leave().await
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

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("topic", self.topic())
            .field("group", self.group())
            .finish_non_exhaustive()
    }
}
