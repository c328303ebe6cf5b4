//! What is checked before a message is taken, and where it goes.

use std::sync::atomic::Ordering;

use super::core::{Core, Target};
use crate::{
    Capabilities, Due, Error, ErrorKind, Message, Result, Timestamp, driver::invalid_partition, mq::require,
    propagate,
};

impl Core {
    /// Checks a message against every rule that needs no I/O, and adds what travels with it.
    #[inline]
    pub(super) fn prepare(&self, message: &mut Message) -> Result<()> {
        message.validate(&self.limits)?;
        if message.is_tombstone() || message.due().is_some() {
            self.check_capabilities(message)?;
        }
        if let Some(propagator) = &self.client.options.propagator {
            propagate::inject(propagator.as_ref(), message, &self.limits);
        }
        Ok(())
    }

    #[cold]
    fn check_capabilities(&self, message: &Message) -> Result<()> {
        if message.is_tombstone() {
            let capabilities = self.capabilities();
            require(capabilities, capabilities.tombstone, "tombstones")?;
        }
        let Some(due) = message.due() else {
            return Ok(());
        };
        let capabilities = self.capabilities();
        require(capabilities, capabilities.delay, "delayed messages")?;
        let delay = match due {
            Due::After(delay) => delay,
            Due::At(time) => time.saturating_since(Timestamp::now()),
        };
        match capabilities.max_delay {
            Some(most) if delay > most => Err(Error::new(
                ErrorKind::InvalidMessage,
                format!(
                    "a delay of {delay:?}: the {} backend takes at most {most:?}",
                    capabilities.backend
                ),
            )),
            _ => Ok(()),
        }
    }

    fn capabilities(&self) -> &Capabilities {
        self.client.driver.capabilities()
    }

    #[inline]
    pub(super) fn partitions(&self) -> u32 {
        self.partitions.load(Ordering::Acquire)
    }

    /// Chooses the partition of a message by its key.
    #[inline]
    pub(super) fn target(&self, message: &Message) -> Result<Target> {
        match message.key() {
            None => Ok(Target::Any),
            Some(key) => self.target_of(key),
        }
    }

    fn target_of(&self, key: &[u8]) -> Result<Target> {
        let partitions = self.partitions();
        let partition = self.options.partitioner.partition(key, partitions);
        if partition >= partitions {
            return Err(invalid_partition(&self.topic, partition, partitions));
        }
        Ok(Target::Partition(partition))
    }

    /// Checks a partition that the caller has chosen.
    pub(super) fn explicit(&self, partition: u32) -> Result<Target> {
        if partition >= self.partitions() {
            // Perhaps it has just been added, and the task has not come round to it.
            self.grow(*self.watch.borrow());
        }
        let partitions = self.partitions();
        if partition >= partitions {
            return Err(invalid_partition(&self.topic, partition, partitions));
        }
        Ok(Target::Partition(partition))
    }

    /// Adds lanes for partitions that were added.
    pub(super) fn grow(&self, partitions: u32) {
        if partitions > self.partitions() {
            self.lock().grow(partitions);
            self.partitions.fetch_max(partitions, Ordering::AcqRel);
            tracing::debug!(
                messaging.destination.name = %self.topic,
                partitions,
                "partitions were added"
            );
        }
    }
}
