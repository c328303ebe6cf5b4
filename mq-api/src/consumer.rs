//! Consuming a topic as a member of a group.

mod builder;
mod control;
mod member;
mod modes;
mod positions;
mod receive;
mod status;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

pub(crate) use self::modes::Modes;
pub use self::{
    builder::{ConsumerBuilder, Mode},
    status::{AssignedPartition, ConsumerStatus, PartitionStatus},
};
use self::{
    member::{Handle, Kind, Member},
    modes::ModeClaim,
};
use crate::{
    Error, ErrorKind, GroupName, Result, TopicName,
    engine::Engine,
    mq::{Child, MqInner},
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
    /// The member's, at hand: to look it up there took a fiftieth of the time of a stream one by one.
    kind: Kind,
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
            kind: kind.clone(),
            mode: Mutex::new(Some(mode)),
        });
        let handle = Arc::new(Handle {
            member: Arc::clone(&member),
        });
        let child: Arc<dyn Child> = member;
        mq.register(&child)?;
        Ok(Self { handle, kind })
    }

    fn kind(&self) -> &Kind {
        &self.kind
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

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("topic", self.topic())
            .field("group", self.group())
            .finish_non_exhaustive()
    }
}
