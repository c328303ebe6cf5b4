//! What a producer guards with its one lock. Each critical section is short, and no user or driver code runs in one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    admit::Waiter,
    effects::Effects,
    lane::{Lane, Refused},
    options::Options,
};
use crate::{
    Error, Result,
    budget::Budget,
    driver::{SendWindow, Slots},
};

/// How many messages without a key go to one partition before the next one has its turn, where no batch is sealed before.
const STICKY: u32 = 64;

/// How many sets of result slots are kept for the next messages.
const POOL: usize = 64;

#[derive(Default)]
pub(super) struct State {
    pub(super) life: Life,
    pub(super) lanes: Vec<Lane>,
    sticky: Sticky,
    next_seq: u64,
    pool: Vec<Arc<Slots>>,
    /// Messages that were admitted and that the driver has not dropped.
    pub(super) buffered_messages: usize,
    pub(super) buffered_bytes: usize,
    pub(super) in_flight: usize,
    /// Batches that callers hand to the driver right now, without a stay in a lane.
    pub(super) straight: usize,
    pub(super) counters: Counters,
    /// Who waits for room, first come first served.
    waiters: VecDeque<Arc<Waiter>>,
    flushers: Vec<(u64, oneshot::Sender<()>)>,
    /// The lanes that the task is to look after.
    listed: Vec<u32>,
    /// When the task wakes by itself; none while nothing is under way.
    pub(super) wakes_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Life {
    #[default]
    Open,
    /// Nothing new is taken; what was taken is sent.
    Closing,
    /// The task has ended.
    Over,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) sent: u64,
    pub(super) failed: u64,
    pub(super) retried: u64,
    pub(super) one_way_failures: u64,
}

/// Where messages without a key go.
#[derive(Debug, Default)]
struct Sticky {
    partition: u32,
    used: u32,
}

impl State {
    pub(super) fn new(partitions: u32) -> Self {
        let mut state = Self {
            sticky: Sticky {
                // Producers that start together do not all begin with the same partition.
                partition: fastrand::u32(0..partitions.max(1)),
                used: 0,
            },
            ..Self::default()
        };
        state.grow(partitions);
        state
    }

    /// Refuses what comes after close.
    pub(super) fn check_open(&self) -> Result<()> {
        match self.life {
            Life::Open => Ok(()),
            Life::Closing | Life::Over => Err(Error::closed("producer")),
        }
    }

    /// Adds lanes for partitions that were added.
    pub(super) fn grow(&mut self, partitions: u32) {
        if partitions as usize > self.lanes.len() {
            self.lanes.resize_with(partitions as usize, Lane::default);
        }
    }

    /// Tells whether so many messages fit into the buffer. Who has nothing in it may always put something in, so that one
    /// large message gets through and no topic starves another.
    pub(super) fn has_room(&self, count: usize, weight: usize, options: &Options, budget: &Budget) -> bool {
        self.waiters.is_empty() && self.fits(count, weight, options, budget)
    }

    fn fits(&self, count: usize, weight: usize, options: &Options, budget: &Budget) -> bool {
        self.buffered_messages == 0
            || (self.buffered_messages + count <= options.buffer_messages
                && self.buffered_bytes + weight <= options.buffer_bytes
                && budget.has_room(weight))
    }

    /// Takes room in the buffer.
    pub(super) fn reserve(&mut self, count: usize, weight: usize) {
        self.buffered_messages += count;
        self.buffered_bytes += weight;
    }

    /// Gives messages their places in the order of the producer.
    pub(super) fn next_seq(&mut self, count: u64) -> u64 {
        let first = self.next_seq;
        self.next_seq += count;
        first
    }

    /// Chooses the partition of up to so many messages without a key. Returns for how many of them it holds.
    pub(super) fn stick(&mut self, wanted: u32) -> (u32, u32) {
        let partition = self.sticky.partition;
        let count = wanted.min(STICKY - self.sticky.used).max(1);
        self.sticky.used += count;
        if self.sticky.used >= STICKY {
            self.unstick(partition);
        }
        (partition, count)
    }

    /// Moves on to the next partition that is not failing, once a batch of the present one is sealed.
    pub(super) fn unstick(&mut self, sealed: u32) {
        let count = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        if sealed != self.sticky.partition || count < 2 {
            self.sticky.used %= STICKY;
            return;
        }
        let healthy = (1..=count)
            .map(|step| (sealed + step) % count)
            .find(|next| self.lanes.get(*next as usize).is_some_and(Lane::is_healthy));
        self.sticky = Sticky {
            partition: healthy.unwrap_or((sealed + 1) % count),
            used: 0,
        };
    }

    /// Takes slots for one message from the pool.
    pub(super) fn take_slots(&mut self) -> Option<Arc<Slots>> {
        self.pool.pop()
    }

    /// Puts slots back, if nobody has them any more.
    pub(super) fn put_slots(&mut self, slots: Arc<Slots>) {
        if self.pool.len() < POOL
            && self.life == Life::Open
            && let Some(slots) = crate::driver::recycle(slots)
        {
            self.pool.push(slots);
        }
    }

    pub(super) fn drop_pool(&mut self) {
        self.pool = Vec::new();
    }

    /// Decides about the failed messages of a lane: to send them again here or elsewhere, or to fail them for good.
    pub(super) fn resolve(
        &mut self,
        partition: u32,
        options: &Options,
        window: &SendWindow,
        fx: &mut Effects,
    ) {
        let Some(lane) = self.lanes.get_mut(partition as usize) else {
            return;
        };
        let refused = lane.resolve(options.retry_backoff, options.reorder_on_retry);
        let mut back = Vec::new();
        for Refused { entry, may_stay } in refused {
            match self.move_elsewhere(partition, entry, options, window, fx) {
                None => {}
                Some(entry) if may_stay => back.push(entry),
                Some(entry) => fx.refuse_retry(&entry),
            }
        }
        if let Some(lane) = self.lanes.get_mut(partition as usize) {
            lane.requeue(back, options.retry_backoff);
            let next = lane.next_time();
            self.arm(next, fx);
        }
    }

    /// Moves a message without a key to a partition in which that changes the order of nothing.
    fn move_elsewhere(
        &mut self,
        from: u32,
        mut entry: super::lane::Entry,
        options: &Options,
        window: &SendWindow,
        fx: &mut Effects,
    ) -> Option<super::lane::Entry> {
        if !entry.movable {
            return Some(entry);
        }
        let count = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        // Neighbours may be on the server that fails: from half-way round on.
        for step in count / 2..count / 2 + count {
            let to = (from + step) % count;
            let Some(lane) = self.lanes.get_mut(to as usize) else {
                continue;
            };
            if to == from || !lane.is_healthy() {
                continue;
            }
            match lane.adopt(entry, options.reorder_on_retry) {
                Ok(()) => {
                    self.list(to, window, fx);
                    return None;
                }
                Err(returned) => entry = returned,
            }
        }
        Some(entry)
    }

    /// Asks the task to look after a lane, where there is something that can be sent.
    pub(super) fn list(&mut self, partition: u32, window: &SendWindow, fx: &mut Effects) {
        if let Some(lane) = self.lanes.get_mut(partition as usize)
            && !lane.listed
            && lane.can_send(window)
        {
            lane.listed = true;
            self.listed.push(partition);
            fx.notify = true;
        }
    }

    pub(super) fn take_listed(&mut self) -> Vec<u32> {
        let listed = std::mem::take(&mut self.listed);
        for partition in &listed {
            if let Some(lane) = self.lanes.get_mut(*partition as usize) {
                lane.listed = false;
            }
        }
        listed
    }

    /// Sees to it that the task wakes at a time, where it would sleep longer.
    pub(super) fn arm(&mut self, at: Option<Instant>, fx: &mut Effects) {
        if let Some(at) = at
            && self.wakes_at.is_none_or(|wakes_at| at < wakes_at)
        {
            self.wakes_at = Some(at);
            fx.notify = true;
        }
    }

    /// Tells whether nothing waits, is under way or is to be sent again.
    pub(super) fn is_quiet(&self) -> bool {
        self.life == Life::Open
            && self.straight == 0
            && self.buffered_messages == 0
            && self.waiters.is_empty()
    }

    /// Tells whether somebody waits for room, for a flush or for the close.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiters.is_empty() || !self.flushers.is_empty() || self.life == Life::Closing
    }

    /// Counts what has happened, admits those for whom there is room now, and ends flushes that are done. To be called at
    /// the end of each change that may have freed something.
    pub(super) fn settle(&mut self, fx: &mut Effects, options: &Options, budget: &Budget) {
        let (messages, bytes) = std::mem::take(&mut fx.released);
        self.buffered_messages = self.buffered_messages.saturating_sub(messages);
        self.buffered_bytes = self.buffered_bytes.saturating_sub(bytes);
        self.counters.failed += std::mem::take(&mut fx.failed);
        self.counters.one_way_failures += std::mem::take(&mut fx.one_way_failures);
        if !self.waiters.is_empty() {
            self.admit(fx, options, budget);
        }
        if !self.flushers.is_empty() {
            self.end_flushes(fx);
        }
        // It may have been the last one that the close waits for.
        fx.notify |= self.life == Life::Closing;
    }

    fn admit(&mut self, fx: &mut Effects, options: &Options, budget: &Budget) {
        while let Some(first) = self.waiters.front() {
            if !self.fits(first.count, first.weight, options, budget) {
                break;
            }
            let Some(first) = self.waiters.pop_front() else {
                break;
            };
            self.reserve(first.count, first.weight);
            fx.wakes.extend(first.answer(Ok(())));
        }
    }

    fn end_flushes(&mut self, fx: &mut Effects) {
        let open = self.lowest_open();
        let (done, waiting) = std::mem::take(&mut self.flushers)
            .into_iter()
            .partition(|(end, _)| open.is_none_or(|open| open >= *end));
        self.flushers = waiting;
        let done: Vec<(u64, oneshot::Sender<()>)> = done;
        fx.flushed.extend(done.into_iter().map(|(_, sender)| sender));
    }

    /// Waits for everything that was taken so far; none where all of it is settled.
    pub(super) fn flush(&mut self) -> Option<oneshot::Receiver<()>> {
        let end = self.next_seq;
        if self.lowest_open().is_none_or(|open| open >= end) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.flushers.push((end, sender));
        Some(receiver)
    }

    pub(super) fn lowest_open(&self) -> Option<u64> {
        self.lanes.iter().filter_map(Lane::lowest_open).min()
    }

    pub(super) fn wait_for_room(&mut self, waiter: Arc<Waiter>, fx: &mut Effects) {
        self.arm(Some(waiter.deadline), fx);
        // The first one may wait for the client's budget, which only the task hears of.
        fx.notify |= self.waiters.is_empty();
        self.waiters.push_back(waiter);
    }

    pub(super) fn stop_waiting(&mut self, waiter: &Arc<Waiter>) {
        self.waiters.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// Fails all who wait for room.
    pub(super) fn turn_away(&mut self, error: &Error, fx: &mut Effects) {
        for waiter in self.waiters.drain(..) {
            fx.wakes.extend(waiter.answer(Err(error.clone())));
        }
    }

    /// Tells whether somebody waits for the client's budget alone.
    pub(super) fn waits_for_budget(&self, options: &Options, budget: &Budget) -> bool {
        self.waiters.front().is_some_and(|first| {
            self.buffered_messages + first.count <= options.buffer_messages
                && self.buffered_bytes + first.weight <= options.buffer_bytes
                && !budget.has_room(first.weight)
        })
    }

    /// Gives up what is over its deadline and ends pauses, where the time for that has come. Returns when there is
    /// something to do next.
    pub(super) fn tick(
        &mut self,
        now: Instant,
        timeout: Duration,
        window: &SendWindow,
        fx: &mut Effects,
    ) -> Option<Instant> {
        if self.wakes_at.is_none_or(|at| at > now) {
            return self.wakes_at;
        }
        let mut next = None;
        for partition in 0..u32::try_from(self.lanes.len()).unwrap_or(u32::MAX) {
            let Some(lane) = self.lanes.get_mut(partition as usize) else {
                break;
            };
            lane.expire(now, timeout, fx);
            lane.thaw(now);
            let time = lane.next_time();
            next = [next, time].into_iter().flatten().min();
            self.list(partition, window, fx);
        }
        while let Some(late) = self.waiters.pop_front_if(|waiter| waiter.deadline <= now) {
            let error = super::effects::expired(timeout, crate::Outcome::NotSent);
            fx.wakes.extend(late.answer(Err(error)));
        }
        let waiting = self.waiters.front().map(|waiter| waiter.deadline);
        next = [next, waiting].into_iter().flatten().min();
        self.wakes_at = next;
        next
    }
}
