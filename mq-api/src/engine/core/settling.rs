//! Taking settlements in.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::{
    item::{Item, Source},
    partition::Partition,
    settle::Settlement,
};
use super::{Core, DeadItem};
use crate::{Delivery, Error, ErrorKind, Result};

impl Core {
    /// Acks a message; returns whether a waiting call may find something now.
    #[inline]
    pub(crate) fn ack(&mut self, item: &Item) -> Result<bool> {
        let Some(partition) = self.standing(&item.source) else {
            return self.refuse(item);
        };
        // One look at the window tells whether the delivery still stands, and settles it.
        if !partition.done(item) {
            return self.refuse(item);
        }
        if !partition.in_ready && partition.may_have() {
            self.make_ready(item.source.assignment.partition);
        }
        self.counters.acked += 1;
        self.note_acks(1);
        Ok(self.has_ready())
    }

    /// Acks deliveries that share one fetched batch; returns whether a waiting call may find something now. What they share
    /// is looked up once.
    pub(crate) fn ack_run(&mut self, deliveries: &mut [Delivery]) -> Result<bool> {
        let Some(source) = deliveries.first().map(|first| Arc::clone(first.source())) else {
            return Ok(false);
        };
        let mut refused = Vec::new();
        let count = deliveries.len();
        match self.standing(&source) {
            Some(partition) => {
                if !partition.done_together(deliveries) {
                    for (at, delivery) in deliveries.iter_mut().enumerate() {
                        if !partition.done(delivery.settling()) {
                            refused.push(at);
                        }
                    }
                }
            }
            None => refused.extend(0..count),
        }
        let mut result = Ok(false);
        if refused.len() < count {
            result = Ok(self.acked(source.assignment.partition, count - refused.len()));
        }
        for at in refused {
            if let Some(delivery) = deliveries.get_mut(at)
                && let Err(error) = self.refuse(delivery.settling())
            {
                result = Err(error);
            }
        }
        result
    }

    /// Returns the partition of a batch where its tenure stands.
    #[inline]
    fn standing(&mut self, source: &Source) -> Option<&mut Partition> {
        let id = source.assignment;
        let partition = self.partitions.get(id.partition as usize)?.as_ref()?;
        if partition.id != id || partition.generation != source.generation || self.closing {
            return None;
        }
        // A clock is read only where somebody else may have the partition without a word from the driver yet.
        if let Some(lease) = &partition.lease
            && !lease.stands_at(self.config.clock.read())
        {
            self.lose(id, "its lease has run out");
            return None;
        }
        self.partitions.get_mut(id.partition as usize)?.as_mut()
    }

    #[inline]
    fn acked(&mut self, partition: u32, count: usize) -> bool {
        self.counters.acked += count as u64;
        self.make_ready(partition);
        self.note_acks(count);
        self.has_ready()
    }

    /// Says why a delivery cannot be settled.
    #[cold]
    pub(super) fn refuse(&mut self, item: &Item) -> Result<bool> {
        if self.closing {
            return Err(Error::closed("consumer"));
        }
        if self.config.auto_ack {
            return Ok(false);
        }
        self.counters.stale_acks += 1;
        Err(stale(item))
    }

    /// Takes a settlement in. Returns whether a waiting call may find something now.
    pub(crate) fn settle(&mut self, item: &Item, how: Settlement) -> Result<bool> {
        if how == Settlement::Ack {
            return self.ack(item);
        }
        if self.closing {
            return self.refuse(item);
        }
        let id = item.source.assignment;
        let generation = item.source.generation;
        let backoff = self.config.backoff;
        let max_attempts = self.config.max_attempts;
        let valid = self
            .partitions
            .get_mut(id.partition as usize)
            .and_then(Option::as_mut)
            .filter(|partition| partition.id == id && partition.generation == generation)
            .filter(|partition| partition.window.is_pending(item.seq));
        // A clock is read only where somebody else may have the partition without a word from the driver yet.
        let over = valid
            .as_ref()
            .and_then(|partition| partition.lease.as_ref())
            .is_some_and(|lease| !lease.stands_at(self.config.clock.read()));
        let Some(partition) = valid.filter(|_| !over) else {
            if over {
                self.lose(id, "its lease has run out");
            }
            return self.refuse(item);
        };
        match how {
            Settlement::Ack => {}
            Settlement::Nack | Settlement::NackAfter(_) => {
                self.counters.nacked += 1;
                let attempts = partition.window.attempts(item.seq);
                if max_attempts.is_some_and(|most| attempts >= most) {
                    self.bury(item.clone(), "attempts");
                } else {
                    let after = match how {
                        Settlement::NackAfter(after) => after,
                        _ => backoff.after(attempts),
                    };
                    partition.come_again(Instant::now() + after, item.clone());
                    self.kick = true;
                }
            }
            Settlement::Reject => {
                self.counters.rejected += 1;
                self.bury(item.clone(), "rejected");
            }
        }
        Ok(self.has_ready())
    }

    /// Sends a message to the dead letters, or settles it where there are none.
    pub(super) fn bury(&mut self, item: Item, reason: &'static str) {
        let id = item.source.assignment;
        let wanted = self.config.dead_letter.is_some();
        let Some(partition) = self.partition_mut(id) else {
            return;
        };
        let attempts = partition.window.attempts(item.seq);
        if wanted {
            partition.dead_lettering += 1;
            self.dead.push_back(DeadItem {
                item,
                reason,
                attempts,
            });
            self.kick = true;
            return;
        }
        tracing::warn!(
            partition = id.partition,
            offset = item.record().offset,
            attempts,
            reason,
            "message settled without a dead-letter topic"
        );
        partition.done(&item);
        self.make_ready(id.partition);
        self.note_ack();
    }

    /// Notes that a message has reached the dead letters.
    pub(crate) fn buried(&mut self, item: &Item) {
        self.counters.dead_lettered += 1;
        let id = item.source.assignment;
        let generation = item.source.generation;
        if let Some(partition) = self.partition_mut(id)
            && partition.generation == generation
        {
            partition.dead_lettering = partition.dead_lettering.saturating_sub(1);
            partition.done(item);
            self.make_ready(id.partition);
            self.note_ack();
        }
    }

    fn note_ack(&mut self) {
        self.note_acks(1);
    }

    #[inline]
    fn note_acks(&mut self, count: usize) {
        let before = self.unstored;
        self.unstored += count;
        if before < self.config.commit_every && self.unstored >= self.config.commit_every {
            self.commit_now();
        } else {
            self.plan_commit();
        }
    }

    /// Sees to it that a commit goes out within the interval. The clock is read once an interval, not once an ack.
    #[inline]
    pub(crate) fn plan_commit(&mut self) {
        if self.commit_due.is_none() {
            let wait = if self.config.auto_ack {
                std::time::Duration::ZERO
            } else {
                self.config.commit_interval
            };
            self.commit_due = Some(Instant::now() + wait);
            self.kick = true;
        }
    }

    /// Sees to it that a commit goes out at once.
    pub(crate) fn commit_now(&mut self) {
        self.commit_due = Some(Instant::now());
        self.kick = true;
    }

    pub(crate) fn commits_collected(&mut self) {
        self.commit_due = None;
        self.unstored = 0;
    }
}

pub(crate) fn stale(item: &Item) -> Error {
    Error::new(
        ErrorKind::StaleAck,
        format!(
            "partition {}, offset {}: the delivery of epoch {} is over",
            item.source.assignment.partition,
            item.record().offset,
            item.source.assignment.epoch
        ),
    )
}
