//! Handing messages over.

use std::task::Poll;

use super::super::{item::Item, partition::Next};
use super::{Core, Handed, TURN};
use crate::{Clock, Delivery, Moment, Result, driver::AssignmentId, time::Tick};

/// Where a delivery is to stand: what a call answers its caller with. Written there before the lock is given back, it is
/// moved on without a stall of the processor, which comes where what has just been written in parts is read as a whole.
pub(crate) type Place = Poll<Result<Delivery>>;

impl Core {
    /// Reads the clock that hand-overs are stamped by.
    ///
    /// Without a lease nothing is decided by it. Then one exact reading holds for what was here when it was made, until
    /// the machine's clock ticks, every 1 to 10 ms; the tick costs less to read.
    pub(crate) fn now(&mut self) -> Moment {
        if self.leases {
            return self.config.clock.now();
        }
        let tick = self.config.clock.tick();
        if let Some((read, stamp)) = self.stamp
            && Some(read) == tick
            && !self.news
        {
            return stamp;
        }
        self.read_exactly(tick)
    }

    fn read_exactly(&mut self, tick: Option<Tick>) -> Moment {
        let now = self.config.clock.now();
        self.news = false;
        self.stamp = tick.map(|tick| (tick, now));
        now
    }

    /// Reads the clock for a message that has come alone, within this process.
    ///
    /// Without a lease, one exact reading holds here until the clock ticks, also for what came after it, as long as nobody in
    /// this process has been told a later time: so it is earlier than the hand-over by a tick at most, and never earlier than
    /// a reading that somebody made before he sent the message. An exact one for each message took a sixth of the time of a
    /// message there and back.
    #[inline]
    pub(super) fn now_alone(&mut self) -> Moment {
        if self.leases {
            return self.config.clock.now();
        }
        let tick = self.config.clock.tick();
        match &mut self.stamp {
            Some((read, stamp)) if Some(*read) == tick => {
                // Later hand-overs are not to be stamped earlier.
                *stamp = Clock::told().max(*stamp);
                *stamp
            }
            _ => self.read_exactly(tick),
        }
    }

    /// Guesses how many messages can be taken now, for the size of an allocation.
    pub(crate) fn likely_ready(&self) -> usize {
        const MOST: usize = 1024;
        self.assigned()
            .map(|partition| partition.fetched_messages)
            .sum::<usize>()
            .clamp(1, MOST)
    }

    /// Takes the next message without counting a hand-over.
    pub(crate) fn reserve(&mut self, now: Moment) -> Option<Item> {
        while let Some(&number) = self.ready.front() {
            let Some(Some(partition)) = self.partitions.get_mut(number as usize) else {
                self.ready.pop_front();
                continue;
            };
            if partition
                .lease
                .as_ref()
                .is_some_and(|lease| !lease.stands_at(now))
            {
                let id = partition.id;
                self.ready.pop_front();
                self.lose(id, "its lease has run out");
                continue;
            }
            let next = if partition.may_have() {
                partition.next(&self.config)
            } else {
                Next::Nothing
            };
            match next {
                Next::Item(item) => {
                    self.turn += 1;
                    if self.turn >= TURN {
                        self.turn = 0;
                        self.ready.rotate_left(1);
                    }
                    self.refill(number);
                    return Some(item);
                }
                Next::Exhausted(item) => self.bury(item, "attempts"),
                Next::Nothing => {
                    partition.in_ready = false;
                    self.ready.pop_front();
                    self.turn = 0;
                }
                Next::Storing => {
                    partition.in_ready = false;
                    self.ready.pop_front();
                    self.commit_now();
                }
            }
        }
        None
    }

    /// Counts a hand-over of a message that was reserved; `None` where it is no longer this member's.
    pub(crate) fn hand(&mut self, item: Item, now: Moment) -> Option<Handed> {
        let auto_ack = self.config.auto_ack;
        let id = item.source.assignment;
        let generation = item.source.generation;
        let partition = self
            .partition_mut(id)
            .filter(|partition| partition.generation == generation && !partition.revoking)?;
        if partition
            .lease
            .as_ref()
            .is_some_and(|lease| !lease.stands_at(now))
        {
            self.lose(id, "its lease has run out");
            return None;
        }
        if partition.paused || partition.seeking.is_some() {
            partition.give_back(item);
            return None;
        }
        let attempt = partition.window.count_attempt(item.seq)?;
        if auto_ack {
            partition.done(&item);
        }
        self.counters.delivered += 1;
        if attempt > 1 {
            self.counters.redelivered += 1;
        }
        if auto_ack {
            self.counters.acked += 1;
            self.plan_commit();
        }
        Some(Handed { item, attempt })
    }

    /// Takes the next message and counts its hand-over; `false` where there is none. It is written where it is to stand:
    /// returned, it was copied through four calls, each time from what had just been written in smaller pieces, which
    /// stalls the processor.
    #[inline]
    pub(crate) fn take_one(&mut self, into: &mut Place) -> bool {
        // Then what is written there drops nothing.
        if into.is_ready() {
            return true;
        }
        if !self.has_ready() {
            let taken = self.take_straight(into);
            if taken || !self.has_ready() {
                return taken;
            }
        }
        let now = self.now();
        if self.take_plain(now, into) {
            return true;
        }
        let Some(handed) = self.take_any(now) else {
            return false;
        };
        *into = Poll::Ready(Ok(Delivery::handed(handed, now, self.config.auto_ack)));
        true
    }

    /// Takes up to `max` messages and counts their hand-over: one look at the clock and one lock a batch.
    pub(crate) fn take_many(&mut self, max: usize) -> Option<Vec<Delivery>> {
        if !self.has_ready() {
            return None;
        }
        let now = self.now();
        let mut batch = Vec::with_capacity(max.min(self.likely_ready()));
        while batch.len() < max {
            if self.take_plain_run(now, max - batch.len(), &mut batch) {
                continue;
            }
            match self.take_any(now) {
                Some(handed) => batch.push(Delivery::handed(handed, now, self.config.auto_ack)),
                None => break,
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Takes a message that was never handed over where nothing stands before it and nothing is to be looked up, as a
    /// rule, and counts its hand-over in the same step.
    #[inline]
    fn take_plain(&mut self, now: Moment, into: &mut Place) -> bool {
        let Some(&number) = self.ready.front() else {
            return false;
        };
        let Some(Some(partition)) = self.partitions.get_mut(number as usize) else {
            return false;
        };
        if let Some(lease) = &partition.lease
            && !lease.stands_at(now)
        {
            return false;
        }
        let Some(item) = partition.take_plain(&self.config) else {
            return false;
        };
        // Before anything else is called, so that it is not kept on the stack for the case that this panics.
        *into = Poll::Ready(Ok(Delivery::new(item, 1, now)));
        self.counters.delivered += 1;
        self.turn += 1;
        if self.turn >= TURN || !partition.has_fetched() || partition.wants_more(&self.config) {
            self.end_take(number);
        }
        true
    }

    /// Takes messages as [`take_plain`](Self::take_plain) does, of one fetched batch and within the turn of its partition:
    /// what they share is looked up once. `false` where there was none.
    fn take_plain_run(&mut self, now: Moment, max: usize, batch: &mut Vec<Delivery>) -> bool {
        let Some(&number) = self.ready.front() else {
            return false;
        };
        let Some(partition) = self
            .partitions
            .get_mut(number as usize)
            .and_then(Option::as_mut)
            .filter(|partition| partition.lease.as_ref().is_none_or(|lease| lease.stands_at(now)))
        else {
            return false;
        };
        let most = max.min((TURN - self.turn) as usize);
        let count = partition.take_plain_run(&self.config, most, |item| {
            batch.push(Delivery::new(item, 1, now));
        });
        if count > 0 {
            self.counters.delivered += u64::from(count);
            self.turn += count;
            self.end_take(number);
        }
        count > 0
    }

    /// Ends the turn of a partition that has handed over where it has nothing more or had enough, and fetches on.
    fn end_take(&mut self, number: u32) {
        let Some(Some(partition)) = self.partitions.get_mut(number as usize) else {
            return;
        };
        if !partition.may_have() {
            partition.in_ready = false;
            self.ready.pop_front();
            self.turn = 0;
        } else if self.turn >= TURN {
            self.turn = 0;
            if self.ready.len() > 1 {
                self.ready.rotate_left(1);
            }
        }
        if partition.full {
            self.refill(number);
        }
    }

    #[cold]
    fn take_any(&mut self, now: Moment) -> Option<Handed> {
        loop {
            let item = self.reserve(now)?;
            if let Some(handed) = self.hand(item, now) {
                return Some(handed);
            }
        }
    }

    /// Gives back a reserved message that nobody saw.
    pub(crate) fn unreserve(&mut self, item: Item) {
        let id = item.source.assignment;
        let generation = item.source.generation;
        if let Some(partition) = self.partition_mut(id)
            && partition.generation == generation
            && !partition.revoking
        {
            partition.give_back(item);
            self.news = true;
            self.make_ready(id.partition);
        }
    }

    pub(super) fn refill(&mut self, number: u32) {
        let Some(Some(partition)) = self.partitions.get_mut(number as usize) else {
            return;
        };
        if partition.wants_more(&self.config) {
            partition.full = false;
            let id = partition.id;
            self.pause_fetching(id, false);
        }
    }

    pub(super) fn pause_fetching(&self, id: AssignmentId, paused: bool) {
        if let Some(driver) = &self.driver {
            driver.pause(&[id], paused);
        }
    }

    /// Stops or starts the hand-over and fetching of one partition.
    pub(crate) fn set_paused(&mut self, number: u32, paused: bool) {
        let Some(Some(partition)) = self.partitions.get_mut(number as usize) else {
            return;
        };
        partition.paused = paused;
        if paused || !partition.full {
            let id = partition.id;
            self.pause_fetching(id, paused);
        }
        if !paused {
            self.make_ready(number);
            self.refill(number);
        }
    }
}
