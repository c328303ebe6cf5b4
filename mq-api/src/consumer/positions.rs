//! What is owned, under way and stored.

use super::{AssignedPartition, Consumer, ConsumerStatus, member::Kind, status};
use crate::{Error, ErrorKind, Lag, Result, driver::CommittedPosition, mq::deadline};

impl Consumer {
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
}
