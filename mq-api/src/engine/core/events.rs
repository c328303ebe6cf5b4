//! What the driver tells, taken in.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;

use super::super::{charge::Charge, partition::Partition};
use super::{Core, MOST_EVENTS, Outage, Until, handover::Place};
use crate::{
    Delivery, Error, ErrorKind, Offset, OnTrimmed, Position, Result,
    driver::{self, Assignment, AssignmentId, Batch, Event, Events},
};

impl Core {
    /// Takes in what the driver has woken somebody for, before anything that is here is handed over.
    #[inline]
    pub(crate) fn drive_if_fired(&mut self) {
        if self.waiters.take_fired() {
            self.unarmed = true;
            if self.has_ready() {
                self.drive(Until::Ready);
            }
        }
    }

    /// Hands the driver's next message straight over where nothing is ready and it comes alone, as to a member that keeps
    /// up with single sends; takes in whatever else comes. What it leaves out, the places among what is fetched and what is
    /// ready, took 330 instructions a message.
    #[inline(never)]
    pub(super) fn take_straight(&mut self, into: &mut Place) -> bool {
        if !self.waiters.take_fired() && !self.unarmed || self.terminal.is_some() {
            return false;
        }
        // Until it is known that there is nothing more.
        self.unarmed = true;
        let mut cx = Context::from_waker(&self.waker);
        let mut polled = self.events.poll_event(&mut cx);
        // Where it lies: each time it was moved whole from what had just been written in pieces, the processor stalled.
        if let Poll::Ready(Ok(Event::Batch(batch))) = &mut polled
            && self.hand_straight(batch, into)
        {
            return true;
        }
        match polled {
            Poll::Pending => self.unarmed = false,
            Poll::Ready(Ok(event)) => self.take_in(event),
            Poll::Ready(Err(error)) => self.end(error),
        }
        false
    }

    #[inline]
    fn hand_straight(&mut self, batch: &mut Batch, into: &mut Place) -> bool {
        let number = batch.assignment.partition as usize;
        let goes = match self.partitions.get(number) {
            Some(Some(partition)) => partition.goes_straight(batch, &self.config),
            _ => false,
        };
        if !goes {
            return false;
        }
        // Not before: for what goes the other way, the clock is read when that is handed over.
        let now = if batch.records.is_one() {
            self.now_alone()
        } else {
            self.news = true;
            self.now()
        };
        if let Some(owner) = &self.owner
            && let Some(Some(partition)) = self.partitions.get_mut(number)
            && partition.lease.as_ref().is_none_or(|lease| lease.stands_at(now))
        {
            self.came += 1;
            self.counters.delivered += 1;
            *into = Poll::Ready(Ok(Delivery::new(partition.take_straight(batch, owner), 1, now)));
            return true;
        }
        false
    }

    /// Takes in what the driver has, until it has nothing or enough is here. `true` where there is something to hand over
    /// and perhaps more to take in: the waker is not registered then, which halves the polls of a busy consumer.
    pub(crate) fn drive(&mut self, until: Until) -> bool {
        // Armed and not woken since: the driver has nothing, and is not asked.
        if !self.waiters.take_fired() && !self.unarmed {
            return false;
        }
        // Until it is known that there is nothing more.
        self.unarmed = true;
        for _ in 0..MOST_EVENTS {
            if self.terminal.is_some() {
                self.unarmed = false;
                return false;
            }
            let mut cx = Context::from_waker(&self.waker);
            match self.events.poll_event(&mut cx) {
                Poll::Pending => {
                    self.unarmed = false;
                    return false;
                }
                Poll::Ready(Ok(Event::Batch(batch))) => {
                    if self.take_batch(batch) && until == Until::Ready {
                        return true;
                    }
                }
                Poll::Ready(Ok(event)) => self.take_in(event),
                Poll::Ready(Err(error)) => self.end(error),
            }
        }
        // There may be more, and the waker is not registered: look again soon.
        self.waker.wake_by_ref();
        false
    }

    pub(super) fn take_in(&mut self, event: Event) {
        match event {
            Event::Batch(batch) => {
                self.take_batch(batch);
            }
            Event::Assigned(assignments) => assignments.into_iter().for_each(|a| self.assigned_now(a)),
            Event::Revoked(ids) => {
                for id in ids {
                    tracing::debug!(partition = id.partition, epoch = id.epoch, "partition revoked");
                    match self.partition_mut(id) {
                        Some(partition) => partition.stop(),
                        None => self.released.push(id),
                    }
                }
                self.kick = true;
            }
            Event::Lost(ids) => {
                for id in ids {
                    self.lose(id, "the backend took it back");
                }
            }
            Event::Trimmed { assignment, from, to } => self.trimmed(assignment, from, to),
            Event::TopicGone => {
                let error = driver::topic_not_found(&self.config.topic);
                self.end(error);
            }
            Event::Outage(error) => {
                self.last_error = Some(error.clone());
                if self.outage.is_none() {
                    tracing::warn!(topic = %self.config.topic, group = %self.config.group, %error, "backend out of reach");
                    self.outage = Some(Outage {
                        since: Instant::now(),
                        error,
                        reported: false,
                    });
                    self.kick = true;
                }
            }
            Event::Recovered => {
                self.outage = None;
                self.report = None;
            }
        }
    }

    /// Takes records in; `true` where that made something ready.
    pub(super) fn take_batch(&mut self, batch: Batch) -> bool {
        let id = batch.assignment;
        let (most, most_bytes) = (self.config.prefetch, self.config.prefetch_bytes);
        let Some(owner) = &self.owner else { return false };
        let Some(partition) = self
            .partitions
            .get_mut(id.partition as usize)
            .and_then(Option::as_mut)
        else {
            return false;
        };
        if partition.id != id || partition.revoking {
            return false;
        }
        self.came += batch.records.len() as u64;
        partition.push(batch, owner);
        self.news = true;
        let enough = partition.fetched_messages >= most
            || partition.fetched_bytes >= most_bytes
            || partition.fetched_messages > 0 && partition.charge.is_exhausted();
        let fills = enough && !partition.full;
        partition.full |= enough;
        let dirty = partition.commits.is_dirty();
        let was_ready = partition.in_ready;
        if fills {
            self.pause_fetching(id, true);
        }
        self.make_ready(id.partition);
        if dirty {
            self.plan_commit();
        }
        !was_ready && self.has_ready()
    }

    pub(super) fn assigned_now(&mut self, assignment: Assignment) {
        let id = assignment.id;
        if self.closing || self.terminal.is_some() {
            // Leaving the group gives it back with the rest. Released alone, it could come straight back to this
            // member, and again, for as long as closing takes.
            return;
        }
        tracing::debug!(
            partition = id.partition,
            epoch = id.epoch,
            position = assignment.position,
            "partition assigned"
        );
        let mut partition = Partition::new(assignment, &self.config, Charge::new(Arc::clone(&self.budget)));
        partition.paused = self.all_paused || self.paused.contains(&id.partition);
        if partition.paused {
            self.pause_fetching(id, true);
        }
        if partition.lease.is_some() {
            // The task watches the end of the lease.
            self.kick = true;
            self.leases = true;
        }
        let at = id.partition as usize;
        if self.partitions.len() <= at {
            self.partitions.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.partitions.get_mut(at) {
            *slot = Some(partition);
        }
    }

    /// Forgets a tenure that is over. What was not stored is not.
    pub(crate) fn lose(&mut self, id: AssignmentId, why: &'static str) {
        let Some(slot) = self.partitions.get_mut(id.partition as usize) else {
            return;
        };
        if slot.as_ref().is_none_or(|partition| partition.id != id) {
            return;
        }
        tracing::debug!(partition = id.partition, epoch = id.epoch, why, "partition lost");
        if let Some(partition) = slot.take() {
            self.lost_acks |= partition.commits.is_dirty() || partition.commits.under_way.is_some();
        }
        self.kick = true;
    }

    pub(super) fn trimmed(&mut self, id: AssignmentId, from: Offset, to: Offset) {
        let on_trimmed = self.config.on_trimmed;
        let Some(partition) = self.partition_mut(id) else {
            return;
        };
        partition.trimmed(to);
        let gone = to.saturating_sub(from);
        self.counters.trimmed += gone;
        tracing::warn!(
            partition = id.partition,
            from,
            to,
            "retention removed messages before they were read"
        );
        match on_trimmed {
            OnTrimmed::Earliest => self.plan_commit(),
            OnTrimmed::Latest => {
                let _ = self.ask_seek(id, Position::Latest, None);
            }
            OnTrimmed::Error => self.end(Error::new(
                ErrorKind::OffsetOutOfRange,
                format!(
                    "partition {}: offsets {from} to {} are no longer retained",
                    id.partition,
                    to.saturating_sub(1)
                ),
            )),
        }
    }

    /// Lets go of the driver's events, and of its consumer.
    pub(crate) fn let_go(&mut self) {
        self.events = Box::new(Ended);
        self.driver = None;
    }
}

/// Has no more events.
struct Ended;

impl Events for Ended {
    fn poll_event(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Event>> {
        Poll::Pending
    }
}
