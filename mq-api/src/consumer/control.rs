//! Pausing and moving.

use super::{Consumer, member::Kind};
use crate::{
    Offset, Position, Result,
    mq::{deadline, require},
};

impl Consumer {
    /// Stops hand-over and fetching of every partition. Membership, commits and redelivery timers go on.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed); [`Unsupported`](crate::ErrorKind::Unsupported) where the backend declares no `pause`.
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
    /// [`Closed`](crate::ErrorKind::Closed); [`Unsupported`](crate::ErrorKind::Unsupported) where the backend declares no `pause`.
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
        let can = self.can_pause();
        match self.kind() {
            Kind::Queue(engine) => can.and_then(|()| engine.set_paused(paused)),
            Kind::Log { engine, .. } => {
                engine.with(|core| {
                    core.check_alive()?;
                    can?;
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
    /// [`Closed`](crate::ErrorKind::Closed); [`Unsupported`](crate::ErrorKind::Unsupported) in shared mode, or without `pause`.
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
    /// [`Closed`](crate::ErrorKind::Closed); [`Unsupported`](crate::ErrorKind::Unsupported) in shared mode, or without `pause`.
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
            self.can_pause()?;
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

    fn can_pause(&self) -> Result<()> {
        let capabilities = self.handle.member.mq.driver.capabilities();
        require(capabilities, capabilities.pause, "pause").map_err(|error| error.with_operation("pause"))
    }

    /// Moves a partition that is assigned to this consumer, and returns the offset that it goes on at.
    ///
    /// What was delivered before and is not settled is over: it comes again only if it lies ahead of the new place.
    ///
    /// # Errors
    /// [`InvalidPartition`](crate::ErrorKind::InvalidPartition) where it is not assigned here,
    /// [`OffsetOutOfRange`](crate::ErrorKind::OffsetOutOfRange) beyond the end, [`Unsupported`](crate::ErrorKind::Unsupported) in
    /// shared mode and where the backend declares no `seek`, or for a time no `offset_at`; [`Timeout`](crate::ErrorKind::Timeout) after the client's request timeout.
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
        if matches!(to, Position::Time(_)) {
            require(capabilities, capabilities.offset_at, "a seek by time")
                .map_err(|error| error.with_operation("seek"))?;
        }
        let limit = self.handle.member.mq.options.request_timeout;
        deadline("seek", limit, engine.seek(partition, to)).await
    }
}
