//! One assigned partition: what is fetched, what is handed over, what comes again.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    charge::Charge,
    config::EngineConfig,
    item::{Flag, Item, Source},
    lanes::{Lanes, Ordering},
    settle::Settle,
    window::AckWindow,
};
use crate::{
    Delivery, Lease, Offset,
    driver::{Assignment, AssignmentId, Batch, Commit, Held},
};

/// What a message weighs at most, in bytes, that may stay until the next one comes.
const KEPT: usize = 4096;

/// Keeps one tenure of one partition.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) id: AssignmentId,
    pub(crate) generation: u64,
    pub(crate) lease: Option<Lease>,
    fetched: VecDeque<Run>,
    pub(crate) fetched_messages: usize,
    pub(crate) fetched_bytes: usize,
    /// What may be handed over before anything new, in order: freed lanes, redeliveries that are due, what a dropped
    /// channel gave back.
    returned: BinaryHeap<Reverse<Item>>,
    waiting: BinaryHeap<Reverse<(Instant, Item)>>,
    /// What waits until its coming hand-over is stored.
    pub(crate) storing: Vec<Item>,
    pub(crate) window: AckWindow,
    pub(crate) unacked_bytes: usize,
    lanes: Lanes,
    /// Nothing is known of what is to be fetched, and nothing waits for anything: see `take_plain`.
    plain: bool,
    next_offset: Offset,
    /// Below this, what was acked before this tenure began is skipped.
    resumed_acks: Vec<Range<Offset>>,
    resumed_attempts: HashMap<Offset, u32>,
    /// Below this a message may have ended the last owner: its hand-over is stored first.
    careful_until: Offset,
    /// Below this hand-overs were stored before this tenure, and perhaps never took place: they keep their order.
    resumed_until: Offset,
    /// With automatic acks, only what lies below is committed already and may be handed over.
    auto_committed: Offset,
    pub(crate) commits: CommitState,
    pub(crate) revoking: bool,
    pub(crate) paused: bool,
    /// Fetching is stopped because enough has been fetched.
    pub(crate) full: bool,
    pub(crate) seeking: Option<u64>,
    /// Batches of a seek that has not answered yet.
    early: Vec<Batch>,
    /// What the last small message that went straight was lent by. Nobody holds it when the next one comes, as a rule, and
    /// it lends that one too: to make it anew took 150 instructions a message.
    straight: Option<Arc<Source>>,
    pub(crate) in_ready: bool,
    pub(crate) dead_lettering: usize,
    pub(crate) charge: Charge,
}

/// Tracks what of a partition is stored.
#[derive(Debug, Default)]
pub(crate) struct CommitState {
    /// Counts the changes that are worth storing.
    pub(crate) version: u64,
    /// The version that the last stored commit held.
    pub(crate) stored: u64,
    /// The version that a commit under way holds, and the messages whose hand-over it stores.
    pub(crate) under_way: Option<(u64, Vec<u64>)>,
    /// The position last stored.
    pub(crate) position: Option<Offset>,
    /// When a failed commit is tried again.
    pub(crate) retry_at: Option<Instant>,
    pub(crate) failures: u32,
}

impl CommitState {
    pub(crate) fn is_dirty(&self) -> bool {
        self.version != self.stored
    }
}

#[derive(Debug)]
struct Run {
    source: Arc<Source>,
    next: u32,
    end: u32,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("assignment", &self.assignment)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Says what a partition has for a caller.
pub(crate) enum Next {
    /// A message to hand over.
    Item(Item),
    /// A message that has had its last attempt.
    Exhausted(Item),
    /// Nothing now; something will make it ready again.
    Nothing,
    /// Nothing until a hand-over is stored.
    Storing,
}

impl Partition {
    pub(crate) fn new(assignment: Assignment, config: &EngineConfig, charge: Charge) -> Self {
        let careful = config.durable_attempts && !assignment.clean;
        Self {
            id: assignment.id,
            generation: 0,
            lease: assignment.lease,
            fetched: VecDeque::new(),
            fetched_messages: 0,
            fetched_bytes: 0,
            returned: BinaryHeap::new(),
            waiting: BinaryHeap::new(),
            storing: Vec::new(),
            window: AckWindow::default(),
            unacked_bytes: 0,
            lanes: Lanes::new(config.ordering),
            plain: false,
            next_offset: assignment.position,
            careful_until: if careful {
                assignment.position.saturating_add(config.max_unacked as u64)
            } else {
                0
            },
            resumed_until: assignment
                .attempts
                .iter()
                .map(|(offset, _)| offset.saturating_add(1))
                .max()
                .unwrap_or(0),
            auto_committed: if config.auto_ack {
                assignment.position
            } else {
                Offset::MAX
            },
            commits: CommitState {
                position: Some(assignment.position),
                ..CommitState::default()
            },
            resumed_acks: assignment.acked_above,
            resumed_attempts: assignment.attempts.into_iter().collect(),
            revoking: false,
            paused: false,
            full: false,
            seeking: None,
            early: Vec::new(),
            straight: None,
            in_ready: false,
            dead_lettering: 0,
            charge,
        }
    }

    /// Returns the lowest offset that is not done.
    pub(crate) fn position(&self) -> Offset {
        self.window.low().unwrap_or_else(|| self.unread())
    }

    /// Returns the first offset that was not taken for hand-over.
    fn unread(&self) -> Offset {
        self.fetched
            .front()
            .map_or(self.next_offset, |run| run.source.segment.record(run.next).offset)
    }

    /// Takes a fetched batch in.
    pub(crate) fn push(&mut self, batch: Batch, owner: &Arc<dyn Settle>) {
        if batch.generation != self.generation {
            if self.seeking == Some(batch.generation) {
                self.early.push(batch);
            }
            return;
        }
        let bytes = batch.records.weight();
        let (segment, range) = batch.records.into_held();
        if batch.next_offset > self.next_offset {
            self.next_offset = batch.next_offset;
        }
        if range.is_empty() {
            // What was skipped moves the position although nothing is acked.
            if self.window.pending() == 0 {
                self.commits.version += 1;
            }
            return;
        }
        self.fetched_messages += range.len();
        self.fetched_bytes += bytes;
        self.charge.add(bytes);
        if self.auto_committed != Offset::MAX {
            self.commits.version += 1;
        }
        let len = u32::try_from(range.len()).unwrap_or(u32::MAX);
        let source = self.source(segment, owner, len);
        self.fetched.push_back(Run {
            source,
            next: range.start,
            end: range.end,
        });
    }

    /// Notes that retention took what was to be read next.
    pub(crate) fn trimmed(&mut self, to: Offset) {
        self.next_offset = self.next_offset.max(to);
        self.commits.version += 1;
    }

    /// Tells whether hand-over may look here.
    #[inline]
    pub(crate) fn may_have(&self) -> bool {
        !self.revoking
            && !self.paused
            && self.seeking.is_none()
            && (!self.returned.is_empty() || !self.fetched.is_empty())
    }

    /// Tells whether fetching was stopped and is to go on.
    #[inline]
    pub(crate) fn wants_more(&self, config: &EngineConfig) -> bool {
        self.full
            && !self.paused
            && self.fetched_messages <= config.prefetch / 2
            && self.fetched_bytes <= config.prefetch_bytes / 2
    }

    /// Tells whether anything is fetched.
    #[inline]
    pub(crate) fn has_fetched(&self) -> bool {
        !self.fetched.is_empty()
    }

    /// Takes the next message that may be handed over.
    pub(crate) fn next(&mut self, config: &EngineConfig) -> Next {
        loop {
            let item = match self.returned.pop() {
                Some(Reverse(item)) => item,
                // One at a time while the message that ended the last owner may be ahead: a message behind it must not
                // be counted as handed over.
                None if !self.storing.is_empty()
                    && self.unread() <= self.careful_until.max(self.resumed_until) =>
                {
                    return Next::Nothing;
                }
                None => match self.take_fetched(config) {
                    Some(fresh) => match self.lanes.admit(fresh) {
                        Some(item) => item,
                        None => continue,
                    },
                    None => return Next::Nothing,
                },
            };
            if !self.window.is_pending(item.seq) {
                continue;
            }
            let attempts = self.window.attempts(item.seq);
            if config.max_attempts.is_some_and(|most| attempts >= most) {
                return Next::Exhausted(item);
            }
            let careful = item.record().offset < self.careful_until;
            if config.durable_attempts && !item.stored.is_set() && (careful || attempts > 0) {
                self.store_first(item);
                return Next::Storing;
            }
            return Next::Item(item);
        }
    }

    /// Tells whether the next fresh message is handed over without a look at anything else.
    #[inline]
    fn goes_plain(&self) -> bool {
        self.plain
            && !self.revoking
            && !self.paused
            && self.seeking.is_none()
            && self.returned.is_empty()
            && self.storing.is_empty()
    }

    /// Takes a fresh message and counts its hand-over, in the plain case alone.
    #[inline]
    pub(crate) fn take_plain(&mut self, config: &EngineConfig) -> Option<Item> {
        if !self.goes_plain() || self.window_full(config) {
            return None;
        }
        let run = self.fetched.front_mut()?;
        let record = run.source.segment.record(run.next);
        let weight = record.message.weight();
        let seq = self.window.push(record.offset, 0, 1);
        let index = run.next;
        let source = if index + 1 == run.end {
            // The last one takes the run's own reference.
            self.fetched.pop_front()?.source
        } else {
            run.next += 1;
            Arc::clone(&run.source)
        };
        Some(self.taken(source, index, seq, weight))
    }

    /// Makes what the deliveries of a batch hold in common.
    #[inline]
    fn source(&self, segment: Held, owner: &Arc<dyn Settle>, len: u32) -> Arc<Source> {
        Arc::new(Source {
            segment,
            owner: Arc::clone(owner),
            assignment: self.id,
            generation: self.generation,
            len,
        })
    }

    /// Tells whether a batch is one message that may be handed over as it comes.
    #[inline]
    pub(crate) fn goes_straight(&self, batch: &Batch, config: &EngineConfig) -> bool {
        self.id == batch.assignment
            && self.generation == batch.generation
            && batch.records.len() == 1
            && self.fetched.is_empty()
            && self.goes_plain()
            && !self.window_full(config)
    }

    /// Takes the message of a batch that [goes straight](Self::goes_straight), and counts its hand-over.
    #[inline]
    pub(crate) fn take_straight(&mut self, batch: &mut Batch, owner: &Arc<dyn Settle>) -> Item {
        let weight = batch.records.weight();
        let index = batch.records.first_index();
        self.next_offset = self.next_offset.max(batch.next_offset);
        self.charge.add(weight);
        self.unacked_bytes += weight;
        let source = self.lend_straight(batch.records.held_mut(), owner, weight);
        Item {
            seq: self.window.push(source.segment.record(index).offset, 0, 1),
            source,
            index,
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            stored: Flag::No,
        }
    }

    /// Makes what lends a message that goes straight, of what lent the last one where nobody holds that any more. That
    /// message is left in `held` then.
    #[inline]
    fn lend_straight(&mut self, held: &mut Held, owner: &Arc<dyn Settle>, weight: usize) -> Arc<Source> {
        let small = weight <= KEPT;
        if small
            && let Some(last) = &mut self.straight
            && let Some(Source {
                segment: Held::One(free),
                generation,
                ..
            }) = Arc::get_mut(last)
            && let Held::One(record) = held
        {
            std::mem::swap(free, record);
            *generation = self.generation;
            return Arc::clone(last);
        }
        let keep = small && matches!(held, Held::One(_));
        let source = self.source(held.take(), owner, 1);
        if keep {
            self.straight = Some(Arc::clone(&source));
        }
        source
    }

    /// Takes up to `most` fresh messages of the first batch and counts their hand-over, in the plain case alone. Returns
    /// how many.
    pub(crate) fn take_plain_run(
        &mut self,
        config: &EngineConfig,
        most: usize,
        mut give: impl FnMut(Item),
    ) -> u32 {
        if !self.goes_plain() || self.window_full(config) {
            return 0;
        }
        let Some(run) = self.fetched.front_mut() else {
            return 0;
        };
        let room = config.max_unacked - self.window.pending();
        let left = (run.end - run.next) as usize;
        // No more than are left, which fits.
        let end = run.next + left.min(most).min(room) as u32;
        let begin = run.next;
        let mut bytes = self.unacked_bytes;
        while run.next < end && (bytes < config.max_unacked_bytes || self.window.pending() == 0) {
            let index = run.next;
            let record = run.source.segment.record(index);
            let weight = record.message.weight();
            bytes += weight;
            run.next += 1;
            give(Item {
                source: Arc::clone(&run.source),
                index,
                seq: self.window.push(record.offset, 0, 1),
                weight: u32::try_from(weight).unwrap_or(u32::MAX),
                stored: Flag::No,
            });
        }
        let count = run.next - begin;
        if run.next == run.end {
            self.fetched.pop_front();
        }
        self.fetched_messages -= count as usize;
        self.fetched_bytes = self.fetched_bytes.saturating_sub(bytes - self.unacked_bytes);
        self.unacked_bytes = bytes;
        count
    }

    #[inline]
    fn taken(&mut self, source: Arc<Source>, index: u32, seq: u64, weight: usize) -> Item {
        self.fetched_messages -= 1;
        self.fetched_bytes = self.fetched_bytes.saturating_sub(weight);
        self.unacked_bytes += weight;
        Item {
            source,
            index,
            seq,
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            stored: Flag::No,
        }
    }

    /// Tells whether what is fetched from here on is plain: handed over in any order, acked by the user, and with nothing
    /// known of it from before.
    fn is_plain(&self, config: &EngineConfig) -> bool {
        config.ordering == Ordering::Unordered
            && self.auto_committed == Offset::MAX
            && self.resumed_acks.is_empty()
            && self.resumed_attempts.is_empty()
            && self.unread() >= self.careful_until
    }

    fn take_fetched(&mut self, config: &EngineConfig) -> Option<Item> {
        self.plain = self.is_plain(config);
        loop {
            if self.window_full(config) {
                return None;
            }
            let run = self.fetched.front_mut()?;
            let record = run.source.segment.record(run.next);
            let offset = record.offset;
            if offset >= self.auto_committed {
                return None;
            }
            let weight = record.message.weight();
            let (source, index) = (Arc::clone(&run.source), run.next);
            run.next += 1;
            if run.next == run.end {
                self.fetched.pop_front();
            }
            let attempts = if self.resumed_attempts.is_empty() {
                0
            } else {
                self.resumed_attempts.remove(&offset).unwrap_or(0)
            };
            let seq = self.window.push(offset, attempts, attempts);
            let item = self.taken(source, index, seq, weight);
            if self.was_acked(offset) {
                self.done(&item);
                continue;
            }
            return Some(item);
        }
    }

    fn was_acked(&mut self, offset: Offset) -> bool {
        while self.resumed_acks.first().is_some_and(|range| range.end <= offset) {
            self.resumed_acks.remove(0);
        }
        self.resumed_acks
            .first()
            .is_some_and(|range| range.contains(&offset))
    }

    #[inline]
    pub(crate) fn window_full(&self, config: &EngineConfig) -> bool {
        self.window.pending() >= config.max_unacked
            || (self.unacked_bytes >= config.max_unacked_bytes && self.window.pending() > 0)
    }

    /// Keeps a message back until its coming hand-over is stored.
    pub(crate) fn store_first(&mut self, item: Item) {
        self.window.make_durable(item.seq);
        self.commits.version += 1;
        self.storing.push(item);
    }

    /// Marks a message as done; returns `false` where it was not under way.
    #[inline]
    pub(crate) fn done(&mut self, item: &Item) -> bool {
        if !self.window.ack(item.seq) {
            return false;
        }
        let weight = item.weight as usize;
        self.unacked_bytes = self.unacked_bytes.saturating_sub(weight);
        self.charge.sub(weight);
        self.commits.version += 1;
        if !self.plain
            && let Some(next) = self.lanes.leave(item)
        {
            self.returned.push(Reverse(next));
        }
        true
    }

    /// Marks deliveries of one batch as done where they are neighbours, all of them stand, and nothing waits for them, as
    /// a rule: a step a word of marks, where each by itself takes 60 instructions. Else marks none and returns `false`.
    pub(crate) fn done_together(&mut self, deliveries: &mut [Delivery]) -> bool {
        let Some(first) = deliveries.first().map(|first| first.item().seq) else {
            return true;
        };
        let mut weight = 0;
        let mut neighbours = self.plain;
        for (seq, delivery) in (first..).zip(deliveries.iter_mut()) {
            let item = delivery.settling();
            neighbours &= item.seq == seq;
            weight += item.weight as usize;
        }
        if !(neighbours && self.window.ack_neighbours(first, deliveries.len() as u64)) {
            return false;
        }
        self.unacked_bytes = self.unacked_bytes.saturating_sub(weight);
        self.charge.sub(weight);
        self.commits.version += 1;
        true
    }

    /// Lets a message be handed over before anything new.
    pub(crate) fn give_back(&mut self, item: Item) {
        self.returned.push(Reverse(item));
    }

    /// Lets a message come again later.
    pub(crate) fn come_again(&mut self, at: Instant, mut item: Item) {
        item.stored = Flag::No;
        self.waiting.push(Reverse((at, item.detached())));
    }

    /// Returns when the next redelivery is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((at, _))| *at)
    }

    /// Moves what is due to where it is handed over; tells whether anything was.
    pub(crate) fn collect_due(&mut self, now: Instant, config: &EngineConfig) -> bool {
        let mut any = false;
        while self.next_due().is_some_and(|at| at <= now) {
            let Some(Reverse((_, item))) = self.waiting.pop() else {
                break;
            };
            any = true;
            if config.durable_attempts {
                self.store_first(item);
            } else {
                self.give_back(item);
            }
        }
        any
    }

    pub(crate) fn redelivering(&self) -> usize {
        self.waiting.len() + self.storing.len()
    }

    /// Builds the commit of what is done now. `None` where there is nothing to store.
    pub(crate) fn build_commit(&mut self, config: &EngineConfig, closing: bool) -> Option<Commit> {
        if !self.commits.is_dirty() || self.commits.under_way.is_some() {
            return None;
        }
        let storing: Vec<u64> = if closing {
            Vec::new()
        } else {
            self.storing.iter().map(|item| item.seq).collect()
        };
        let mut commit = Commit::new(self.id, self.position());
        if config.auto_ack && !closing {
            commit.position = self.next_offset;
        }
        if config.sparse_acks {
            commit.acked_above = self.window.acked_above();
            self.add_resumed_acks(&mut commit);
        }
        if config.durable_attempts {
            commit.attempts = self.window.durable_attempts(&storing);
            let mut unread: Vec<_> = self
                .resumed_attempts
                .iter()
                .map(|(offset, n)| (*offset, *n))
                .collect();
            unread.sort_unstable();
            commit.attempts.extend(unread);
        }
        self.commits.under_way = Some((self.commits.version, storing));
        Some(commit)
    }

    /// What an earlier tenure had acked beyond what this one has read must not be forgotten.
    fn add_resumed_acks(&self, commit: &mut Commit) {
        let unread = self.unread();
        for range in &self.resumed_acks {
            let start = range.start.max(unread);
            if start < range.end {
                commit.acked_above.push(start..range.end);
            }
        }
    }

    /// Notes that the commit under way is stored at `position`.
    pub(crate) fn commit_stored(&mut self, position: Offset, auto_ack: bool) {
        if let Some((version, storing)) = self.commits.under_way.take() {
            self.commits.stored = version;
            for mut item in std::mem::take(&mut self.storing) {
                if storing.contains(&item.seq) {
                    item.stored = Flag::Yes;
                    self.give_back(item);
                } else {
                    self.storing.push(item);
                }
            }
        }
        self.commits.position = Some(position);
        self.commits.failures = 0;
        self.commits.retry_at = None;
        if auto_ack {
            self.auto_committed = position;
        }
    }

    /// Notes that the commit under way failed.
    pub(crate) fn commit_failed(&mut self, now: Instant) {
        const MOST: Duration = Duration::from_secs(2);
        self.commits.under_way = None;
        self.commits.failures = self.commits.failures.saturating_add(1);
        let pause = Duration::from_millis(50)
            .saturating_mul(1 << self.commits.failures.min(6))
            .min(MOST);
        self.commits.retry_at = Some(now + pause);
    }

    /// Forgets what is not in a user's hands, as the partition is given back.
    pub(crate) fn stop(&mut self) {
        self.revoking = true;
        self.fetched_to_unread();
        self.returned.clear();
        self.waiting.clear();
        self.storing.clear();
        self.early.clear();
        self.charge.set(self.unacked_bytes);
        let auto_ack = self.auto_committed != Offset::MAX;
        if auto_ack && (self.auto_committed > self.position() || self.commits.under_way.is_some()) {
            // The stored position is ahead of what was handed over, or will be: the rest is for the next owner.
            self.commits.version += 1;
        }
    }

    fn fetched_to_unread(&mut self) {
        self.next_offset = self.unread();
        self.fetched.clear();
        self.fetched_messages = 0;
        self.fetched_bytes = 0;
    }

    /// Begins anew at `offset`: every delivery before is stale.
    pub(crate) fn moved(
        &mut self,
        generation: u64,
        offset: Offset,
        config: &EngineConfig,
        owner: &Arc<dyn Settle>,
    ) {
        self.generation = generation;
        self.seeking = None;
        self.fetched.clear();
        self.fetched_messages = 0;
        self.fetched_bytes = 0;
        self.returned.clear();
        self.waiting.clear();
        self.storing.clear();
        self.window = AckWindow::default();
        self.unacked_bytes = 0;
        self.charge.set(0);
        self.lanes = Lanes::new(config.ordering);
        self.plain = false;
        self.next_offset = offset;
        self.resumed_acks.clear();
        self.resumed_attempts.clear();
        self.careful_until = 0;
        self.dead_lettering = 0;
        self.commits.version += 1;
        if config.auto_ack {
            self.auto_committed = offset;
        }
        for batch in std::mem::take(&mut self.early) {
            self.push(batch, owner);
        }
    }
}
