//! The send path: a message goes straight to the driver where nothing is before it, else into its lane.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU32},
};

use smallvec::{SmallVec, smallvec};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    ProducerStatus,
    admit::{Admission, Permit},
    direct::Direct,
    effects::Effects,
    lane::{Entry, Sealed},
    options::Options,
    state::State,
};
use crate::{
    Error, Message, MessageLimits, Receipt, Result, TopicName,
    close_once::CloseOnce,
    driver::{self, BatchOwner, Run, Runs, SendBatch, SendWindow, Slots, Ticket, invalid_partition},
    mq::MqInner,
};

/// How many batches in a row a caller sends for others, before the producer's task takes over.
const ROUNDS: usize = 16;

/// What the handles of a producer, its task and its batches share.
pub(super) struct Core {
    pub(super) driver: Arc<dyn driver::Producer>,
    pub(super) client: Arc<MqInner>,
    pub(super) topic: TopicName,
    pub(super) options: Options,
    pub(super) limits: MessageLimits,
    pub(super) window: SendWindow,
    /// As many as there are lanes, so that a partition can be chosen before the lock is taken.
    pub(super) partitions: AtomicU32,
    pub(super) watch: watch::Receiver<u32>,
    state: Mutex<State>,
    pub(super) direct: Direct,
    pub(super) notify: Notify,
    pub(super) close: CloseOnce,
}

/// Where messages are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Wherever it suits; a retry may go elsewhere.
    Any,
    /// Chosen already because it suits; a retry may go elsewhere.
    Chosen(u32),
    /// There and nowhere else.
    Partition(u32),
}

/// Messages of one partition that are handed in together.
pub(super) struct Group {
    pub(super) target: Target,
    pub(super) messages: SmallVec<[Message; 1]>,
    pub(super) weight: usize,
}

impl Group {
    /// Makes a group of one.
    pub(super) fn of(target: Target, message: Message) -> Self {
        Self {
            target,
            weight: message.weight(),
            messages: smallvec![message],
        }
    }
}

/// What became of messages that were taken.
pub(super) enum Taken {
    /// One message, and the driver has settled it already.
    Done(Result<Receipt>),
    Waiting(Arc<Slots>),
}

/// Why messages were not taken.
pub(super) enum Refused {
    Failed(Error),
    /// There is no room; here they are again.
    Full(Group),
}

impl Core {
    pub(super) fn new(
        client: Arc<MqInner>,
        driver: Arc<dyn driver::Producer>,
        topic: TopicName,
        options: Options,
    ) -> Arc<Self> {
        let mut window = driver.window();
        window.batches_per_partition = window.batches_per_partition.max(1);
        window.batch_messages = window.batch_messages.max(1);
        let mut watch = driver.partitions();
        let partitions = *watch.borrow_and_update();
        Arc::new(Self {
            driver,
            client,
            topic,
            limits: MessageLimits::new(options.max_payload, options.max_metadata),
            options,
            window,
            partitions: AtomicU32::new(partitions),
            watch,
            state: Mutex::new(State::new(partitions)),
            direct: Direct::new(window.stores_now),
            notify: Notify::new(),
            close: CloseOnce::new(),
        })
    }

    /// Takes messages: straight to the driver where nothing is before them, else into their lane.
    pub(super) fn submit(
        self: &Arc<Self>,
        group: Group,
        permit: Option<Permit<'_>>,
        one_way: bool,
    ) -> Result<Taken, Refused> {
        let count = group.messages.len();
        let deadline = permit.as_ref().map(|permit| permit.deadline);
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Err(error) = state.check_open() {
            // A permit takes the lock when it is dropped.
            drop(guard);
            return Err(Refused::Failed(error));
        }
        // What goes straight to the driver is counted only if it is still under way when `send` returns.
        let reserved = permit.is_some();
        if let Some(permit) = permit {
            permit.used();
        } else if !state.has_room(count, group.weight, &self.options, &self.client.budget) {
            return Err(Refused::Full(group));
        }
        let (partition, movable) = match group.target {
            Target::Partition(partition) => (partition, false),
            Target::Chosen(partition) => (partition, true),
            Target::Any => (state.stick(1).0, true),
        };
        let seq = state.next_seq(count as u64);
        let fits =
            count == 1 || (count <= self.window.batch_messages && group.weight <= self.window.batch_bytes);
        let pooled = if count == 1 && !one_way {
            state.take_slots()
        } else {
            None
        };
        // A group is far smaller than its numbers reach.
        let slots = pooled.unwrap_or_else(|| {
            let owner = Arc::clone(self) as Arc<dyn BatchOwner>;
            Arc::new(Slots::new(count as u32, one_way, Some(owner)))
        });
        if let Some(deadline) = deadline {
            slots.deadline_or(|| deadline);
        }
        let run = Run {
            slots,
            first: 0,
            len: count as u32,
            seq,
            movable,
            tries: 0,
        };
        if reserved {
            self.client.budget.take(group.weight);
        }
        let Some(lane) = state.lanes.get_mut(partition as usize) else {
            // Lanes are added before the count is, and never removed.
            drop(guard);
            let error = invalid_partition(&self.topic, partition, self.partitions());
            return Err(Refused::Failed(error));
        };
        self.direct.close();
        if fits && lane.is_idle(&self.window) {
            let id = lane.begin_send(seq, seq + count as u64);
            state.straight += 1;
            state.unstick(partition);
            let ticket = Ticket {
                id,
                weight: group.weight,
                counted: reserved,
                whole: true,
            };
            if reserved {
                state.in_flight += count;
            }
            drop(guard);
            return Ok(self.send_at_once(partition, ticket, run, group.messages));
        }
        if !reserved {
            state.reserve(count, group.weight);
            self.client.budget.take(group.weight);
        }
        self.gather(guard, partition, &run, group.messages);
        Ok(Taken::Waiting(run.slots))
    }

    /// Puts messages into their lane, and sends what can be sent.
    fn gather(
        self: &Arc<Self>,
        mut guard: MutexGuard<'_, State>,
        partition: u32,
        run: &Run,
        messages: SmallVec<[Message; 1]>,
    ) {
        let mut fx = Effects::default();
        let state = &mut *guard;
        let until = run.slots.deadline_or(|| Instant::now() + self.options.timeout);
        let mut now = false;
        if let Some(lane) = state.lanes.get_mut(partition as usize) {
            for (slot, message) in messages.into_iter().enumerate() {
                let weight = message.weight();
                lane.push(Entry {
                    message,
                    slots: Arc::clone(&run.slots),
                    slot: slot as u32,
                    seq: run.seq + slot as u64,
                    movable: run.movable,
                    tries: 0,
                    weight,
                });
            }
            now = lane.can_send(&self.window);
        }
        state.arm(Some(until), &mut fx);
        drop(guard);
        self.finish(&mut fx);
        if now {
            self.pump(partition);
        }
    }

    /// Waits for room, to the deadline of the send, and takes messages then.
    pub(super) async fn submit_when_there_is_room(
        self: &Arc<Self>,
        group: Group,
        deadline: &mut Option<Instant>,
    ) -> Result<Taken> {
        let until = *deadline.get_or_insert_with(|| Instant::now() + self.options.timeout);
        let permit = Admission::new(self, group.messages.len(), group.weight, until).await?;
        match self.submit(group, Some(permit), false) {
            Ok(taken) => Ok(taken),
            Err(Refused::Failed(error)) => Err(error),
            Err(Refused::Full(_)) => Err(Error::closed("producer")),
        }
    }

    /// The fast path: these messages are a batch by themselves, and go to the driver in the caller's thread. Where the
    /// driver settles within `send`, as memory does, all it costs here is the lock twice and one recycled set of slots.
    fn send_at_once(
        self: &Arc<Self>,
        partition: u32,
        ticket: Ticket,
        run: Run,
        messages: SmallVec<[Message; 1]>,
    ) -> Taken {
        self.driver
            .send(SendBatch::of(partition, messages, smallvec![run.clone()], ticket));
        if !run.slots.is_landed() {
            return self.after_send(partition, ticket, run);
        }
        let mut guard = self.lock();
        let state = &mut *guard;
        state.straight -= 1;
        let mut quiet = !ticket.counted && !state.is_waited_for();
        if let Some(lane) = state.lanes.get_mut(partition as usize) {
            lane.end_send();
            lane.land_stored(run.seq + u64::from(run.len));
            quiet &= !lane.can_send(&self.window);
        }
        state.counters.sent += u64::from(run.len);
        let taken = if run.len == 1 {
            let result = run.slots.result(0);
            state.put_slots(run.slots);
            Taken::Done(result)
        } else {
            Taken::Waiting(run.slots)
        };
        self.open_direct(state);
        drop(guard);
        if !quiet {
            self.after_landing(partition, ticket, run.len);
        }
        taken
    }

    /// Does what a batch that has landed within `send` leads to, beyond its own result.
    fn after_landing(self: &Arc<Self>, partition: u32, ticket: Ticket, count: u32) {
        let mut fx = Effects::default();
        let more = {
            let mut guard = self.lock();
            let state = &mut *guard;
            if ticket.counted {
                state.in_flight = state.in_flight.saturating_sub(count as usize);
                fx.released = (count as usize, ticket.weight);
                fx.budget = ticket.weight;
            }
            state.settle(&mut fx, &self.options, &self.client.budget);
            self.open_direct(state);
            let lane = state.lanes.get(partition as usize);
            lane.is_some_and(|lane| lane.can_send(&self.window))
        };
        self.finish(&mut fx);
        if more {
            self.pump(partition);
        }
    }

    /// Opens the straight way again where nothing is under way any more.
    fn open_direct(&self, state: &State) {
        if self.window.stores_now && state.is_quiet() {
            self.direct.open();
        }
    }

    /// Takes note that `send` has returned, and that the batch had not landed well before.
    fn after_send(self: &Arc<Self>, partition: u32, ticket: Ticket, run: Run) -> Taken {
        let taken = Taken::Waiting(Arc::clone(&run.slots));
        // Not before it is known that the send is not over at once: reading the clock costs as much as a lock.
        let until = run.slots.deadline_or(|| Instant::now() + self.options.timeout);
        let count = run.len;
        let mut fx = Effects::default();
        let mut landed = false;
        let mut more = false;
        {
            let mut guard = self.lock();
            let state = &mut *guard;
            state.straight -= 1;
            if let Some(lane) = state.lanes.get_mut(partition as usize) {
                if !lane.end_send() {
                    // It has landed with a failure: perhaps it is to be sent again.
                    state.resolve(partition, &self.options, &self.window, &mut fx);
                    state.settle(&mut fx, &self.options, &self.client.budget);
                } else if run.slots.has_landed() {
                    landed = true;
                    lane.land_stored(run.seq + u64::from(count));
                    state.counters.sent += u64::from(count);
                } else {
                    lane.add_flight(ticket.id, smallvec![run]);
                    if !ticket.counted {
                        state.reserve(count as usize, ticket.weight);
                        state.in_flight += count as usize;
                        self.client.budget.take(ticket.weight);
                    }
                    state.arm(Some(until), &mut fx);
                }
                let lane = state.lanes.get(partition as usize);
                more = !landed && lane.is_some_and(|lane| lane.can_send(&self.window));
            }
        }
        self.finish(&mut fx);
        if landed {
            self.after_landing(partition, ticket, count);
        } else if more {
            self.pump(partition);
        }
        taken
    }

    /// Sends what has gathered in a lane, batch by batch, as far as the window goes.
    pub(super) fn pump(self: &Arc<Self>, partition: u32) {
        for _ in 0..ROUNDS {
            let mut fx = Effects::default();
            let sealed = self.seal(partition, &mut fx);
            self.finish(&mut fx);
            let Some((id, sealed)) = sealed else {
                return;
            };
            let runs = sealed.runs.clone();
            let ticket = Ticket {
                id,
                weight: sealed.weight,
                counted: true,
                whole: false,
            };
            self.driver
                .send(SendBatch::of(partition, sealed.messages, sealed.runs, ticket));
            if !self.after_pump(partition, id, runs) {
                return;
            }
        }
        let mut fx = Effects::default();
        self.lock().list(partition, &self.window, &mut fx);
        self.finish(&mut fx);
    }

    fn seal(&self, partition: u32, fx: &mut Effects) -> Option<(u64, Sealed)> {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let lane = state.lanes.get_mut(partition as usize)?;
        let mut sealed = None;
        if lane.can_send(&self.window) {
            sealed = lane
                .seal(&self.window, now, self.options.timeout, fx)
                .map(|sealed| {
                    let first = sealed.runs.first().map_or(0, |run| run.seq);
                    let last = sealed.runs.last();
                    let end = last.map_or(first, |run| run.seq + u64::from(run.len));
                    (lane.begin_send(first, end), sealed)
                });
            if let Some((_, sealed)) = &sealed {
                state.in_flight += sealed.messages.len();
            }
            state.unstick(partition);
        }
        state.settle(fx, &self.options, &self.client.budget);
        sealed
    }

    /// Takes note that `send` has returned. `true` where more has gathered that can be sent now.
    fn after_pump(&self, partition: u32, id: u64, runs: Runs) -> bool {
        let mut fx = Effects::default();
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(lane) = state.lanes.get_mut(partition as usize) else {
            return false;
        };
        if lane.end_send() {
            lane.add_flight(id, runs);
            let next = lane.next_time();
            state.arm(next, &mut fx);
        } else {
            state.resolve(partition, &self.options, &self.window, &mut fx);
            state.settle(&mut fx, &self.options, &self.client.budget);
        }
        let more = state
            .lanes
            .get(partition as usize)
            .is_some_and(|lane| lane.can_send(&self.window));
        drop(guard);
        self.finish(&mut fx);
        more
    }

    /// Does what a change under the lock has led to; the lock is open.
    pub(super) fn finish(&self, fx: &mut Effects) {
        if !fx.is_empty() {
            self.finish_effects(std::mem::take(fx));
        }
    }

    fn finish_effects(&self, fx: Effects) {
        if fx.budget > 0 {
            self.client.budget.give(fx.budget);
        }
        if fx.notify {
            self.notify.notify_one();
        }
        for flushed in fx.flushed {
            // Who asked may have gone.
            let _ = flushed.send(());
        }
        fx.wakes.wake_all();
    }

    /// Counts a one-way send that failed before it was taken.
    pub(super) fn count_one_way_failure(&self) {
        self.lock().counters.one_way_failures += 1;
    }

    pub(super) fn status(&self) -> ProducerStatus {
        let state = self.lock();
        ProducerStatus {
            buffered_messages: state.buffered_messages,
            buffered_bytes: state.buffered_bytes,
            in_flight_messages: state.in_flight,
            sent: state.counters.sent + self.direct.stored(),
            failed: state.counters.failed,
            retried: state.counters.retried,
            one_way_failures: state.counters.one_way_failures,
        }
    }

    /// Chooses the partition of up to so many messages without a key, and for how many of them it holds.
    pub(super) fn stick(&self, wanted: usize) -> (u32, u32) {
        self.lock().stick(u32::try_from(wanted).unwrap_or(u32::MAX))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Core {
    /// Fails where this thread holds the lock; for tests on one thread.
    pub(super) fn assert_unlocked(&self) {
        assert!(
            self.state.try_lock().is_ok(),
            "a driver is called with the lock held"
        );
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}
