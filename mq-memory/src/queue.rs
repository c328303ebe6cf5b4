//! A shared group: which messages are held by whom, and which come again when.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use mq_api::{
    Clock, Moment, Offset, Result,
    driver::{self, CommittedPosition, QueueReceipt, QueueRecord, Record},
};
use tokio::sync::Notify;

use crate::{
    broker::Broker,
    error::MemoryError,
    faults::FaultState,
    log::{Cursor, Partition, Read, Watch, Watching},
    member::MemberId,
    sync::lock,
    timer::Timer,
    topic::Topic,
    wakes::Wakes,
};

/// A waiting receiver looks at leases at least this often while messages are held: members' clocks may be set by hand,
/// and a timer would not hear of it.
const LEASE_CHECK: Duration = Duration::from_millis(50);

/// Holds one group of one life of a topic.
pub(crate) struct Queue {
    lease: Duration,
    max_unsettled: usize,
    timer: Arc<Timer>,
    faults: Arc<FaultState>,
    news: Arc<Notify>,
    /// How many receivers wait.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lanes: Vec<Lane>,
    /// Whose turn it is to give out new messages.
    turn: usize,
    members: BTreeMap<MemberId, QueueMember>,
    /// What is to come again, soonest first; stale entries are skipped.
    returned: BinaryHeap<Reverse<Returned>>,
    unsettled: usize,
    serial: u64,
    outages: u64,
    /// When the timer looks next.
    tick: Option<Instant>,
    ended: bool,
}

struct Lane {
    watching: Watching,
    cursor: Cursor,
    open: BTreeMap<Offset, Open>,
}

/// A message that was handed out and is not settled.
struct Open {
    attempt: u32,
    serial: u64,
    holder: Option<Hold>,
}

#[derive(Clone, Copy)]
struct Hold {
    member: MemberId,
    until: Moment,
}

struct QueueMember {
    clock: Clock,
    /// When its leases end, soonest first; stale entries are skipped.
    ends: BinaryHeap<Reverse<(Moment, Token)>>,
    outages_told: u64,
}

/// Names one hand-over of one message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token {
    partition: u32,
    offset: Offset,
    serial: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Returned {
    due: Instant,
    token: Token,
}

/// What a receiver finds.
pub(crate) enum Taken {
    Records(Vec<QueueRecord>),
    Nothing,
    Ended,
    /// The connection was lost since the last look.
    Outage,
}

impl Queue {
    /// Makes a group that begins at these offsets, one a partition.
    pub(crate) fn new(topic: &Topic, starts: Vec<Offset>, broker: &Broker) -> Arc<Self> {
        let queue = Self {
            lease: broker.config.shared_lease,
            max_unsettled: broker.config.max_unsettled,
            timer: Arc::clone(&broker.timer),
            faults: Arc::clone(&broker.faults),
            news: Arc::default(),
            waiting: AtomicUsize::new(0),
            state: Mutex::default(),
        };
        let lanes = topic
            .partitions()
            .zip(starts)
            .map(|(partition, start)| queue.lane(partition, start));
        let lanes = lanes.collect();
        lock(&queue.state).lanes = lanes;
        Arc::new(queue)
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    pub(crate) fn news(&self) -> &Notify {
        &self.news
    }

    pub(crate) fn join(&self, member: MemberId, clock: Clock) {
        let mut state = lock(&self.state);
        let outages_told = state.outages;
        let member_state = QueueMember {
            clock,
            ends: BinaryHeap::new(),
            outages_told,
        };
        state.members.insert(member, member_state);
    }

    /// Lets a member go; what it holds goes back at once.
    pub(crate) fn leave(&self, member: MemberId) {
        let returned = {
            let mut state = lock(&self.state);
            if state.members.remove(&member).is_none() {
                return;
            }
            state.give_back(|hold| hold.member == member)
        };
        if returned {
            self.news.notify_one();
        }
    }

    /// Takes messages for a member: what comes again first, then new ones, partition after partition.
    pub(crate) fn take(self: &Arc<Self>, member: MemberId, max: usize) -> Taken {
        let mut state = lock(&self.state);
        if state.ended {
            return Taken::Ended;
        }
        let outages = state.outages;
        let Some(seat) = state.members.get_mut(&member) else {
            return Taken::Nothing;
        };
        if std::mem::replace(&mut seat.outages_told, outages) != outages {
            return Taken::Outage;
        }
        if self.faults.is_halted() {
            return Taken::Nothing;
        }
        let until = seat.clock.now() + self.lease;
        state.expire();
        let mut records = Vec::new();
        state.take_returned(member, until, max, &mut records);
        let room = self.max_unsettled.saturating_sub(state.unsettled);
        state.take_new(member, until, max.min(records.len() + room), &mut records);
        let more = state.has_more(self.max_unsettled);
        self.arm(&mut state);
        drop(state);
        if records.is_empty() {
            return Taken::Nothing;
        }
        if more {
            self.news.notify_one();
        }
        Taken::Records(records)
    }

    /// Settles a message for good.
    pub(crate) fn ack(&self, member: MemberId, token: Token) -> Result<()> {
        let mut state = lock(&self.state);
        state.expire();
        state.held(member, token)?;
        if let Some(lane) = state.lanes.get_mut(token.partition as usize) {
            lane.open.remove(&token.offset);
            let full = state.unsettled >= self.max_unsettled;
            state.unsettled -= 1;
            drop(state);
            if full {
                self.news.notify_one();
            }
        }
        Ok(())
    }

    /// Gives a message back, to come again after a delay.
    pub(crate) fn nack(self: &Arc<Self>, member: MemberId, token: Token, delay: Duration) -> Result<()> {
        let mut state = lock(&self.state);
        state.expire();
        state.held(member, token)?;
        // A delay beyond what the clock can count is as long as can be.
        let now = Instant::now();
        let due = now
            .checked_add(delay)
            .unwrap_or(now + Duration::from_secs(u32::MAX.into()));
        state.return_at(token.partition, token.offset, due);
        self.arm(&mut state);
        drop(state);
        if delay.is_zero() {
            self.news.notify_one();
        }
        Ok(())
    }

    /// Keeps a message for another lease.
    pub(crate) fn extend(&self, member: MemberId, token: Token) -> Result<Moment> {
        let mut state = lock(&self.state);
        state.expire();
        state.held(member, token)?;
        let Some(seat) = state.members.get_mut(&member) else {
            return Err(token.not_held());
        };
        let until = seat.clock.now() + self.lease;
        seat.ends.push(Reverse((until, token)));
        state.held(member, token)?.holder = Some(Hold { member, until });
        Ok(until)
    }

    pub(crate) fn committed(&self) -> Vec<CommittedPosition> {
        let state = lock(&self.state);
        (0..)
            .zip(&state.lanes)
            .map(|(partition, lane)| lane.committed(partition))
            .collect()
    }

    /// Takes in partitions that were added to the topic; they begin at their first message.
    pub(crate) fn grow(&self, topic: &Topic, _wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        let known = state.lanes.len();
        for partition in topic.partitions().skip(known) {
            let lane = self.lane(partition, 0);
            state.lanes.push(lane);
        }
        drop(state);
        self.news.notify_one();
    }

    pub(crate) fn end(&self) {
        let lanes = {
            let mut state = lock(&self.state);
            state.ended = true;
            std::mem::take(&mut state.lanes)
        };
        drop(lanes);
        self.alert();
    }

    /// Ends all sessions, as a lost connection does: what is held goes back, with its attempts counted.
    pub(crate) fn lose_sessions(&self) {
        {
            let mut state = lock(&self.state);
            state.outages += 1;
            state.give_back(|_| true);
        }
        self.alert();
    }

    /// Makes every receiver look again.
    pub(crate) fn alert(&self) {
        self.news.notify_waiters();
        self.news.notify_one();
    }

    /// Counts a receiver that is about to wait, and sees that it is woken for what no message announces.
    pub(crate) fn wait(self: &Arc<Self>) -> WaitingReceiver {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.arm(&mut lock(&self.state));
        WaitingReceiver(Arc::clone(self))
    }

    fn lane(&self, partition: &Arc<Partition>, start: Offset) -> Lane {
        Lane {
            watching: partition.watch(News::new(&self.news)),
            cursor: Cursor::new(start),
            open: BTreeMap::new(),
        }
    }

    /// Sets the timer to the next time at which a waiting receiver may find something.
    fn arm(self: &Arc<Self>, state: &mut State) {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        let Some(at) = state.next_look() else {
            return;
        };
        if state.tick.is_some_and(|tick| tick <= at) {
            return;
        }
        state.tick = Some(at);
        let queue = Arc::downgrade(self);
        self.timer.at(at, move || {
            if let Some(queue) = queue.upgrade() {
                queue.tick(at);
            }
        });
    }

    fn tick(&self, at: Instant) {
        {
            let mut state = lock(&self.state);
            if state.tick == Some(at) {
                state.tick = None;
            }
        }
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.news.notify_one();
        }
    }
}

impl State {
    /// Gives back what is held beyond its lease.
    fn expire(&mut self) {
        let now = Instant::now();
        let mut over = Vec::new();
        for (id, member) in &mut self.members {
            let moment = member.clock.now();
            while member
                .ends
                .peek()
                .is_some_and(|Reverse((until, _))| *until <= moment)
            {
                if let Some(Reverse((until, token))) = member.ends.pop() {
                    over.push((*id, until, token));
                }
            }
        }
        for (member, until, token) in over {
            let held = |hold: &Hold| hold.member == member && hold.until == until;
            if self
                .open(token)
                .is_some_and(|open| open.holder.as_ref().is_some_and(held))
            {
                self.return_at(token.partition, token.offset, now);
            }
        }
    }

    fn take_returned(&mut self, member: MemberId, until: Moment, max: usize, records: &mut Vec<QueueRecord>) {
        let now = Instant::now();
        while records.len() < max && self.returned.peek().is_some_and(|Reverse(next)| next.due <= now) {
            let Some(Reverse(Returned { token, .. })) = self.returned.pop() else {
                break;
            };
            if self.open(token).is_none_or(|open| open.holder.is_some()) {
                continue;
            }
            let Some(lane) = self.lanes.get_mut(token.partition as usize) else {
                continue;
            };
            match lane.watching.partition().record(token.offset) {
                Some(record) => records.push(self.hold(token.partition, record, member, until)),
                None => {
                    // Retention has taken it.
                    lane.open.remove(&token.offset);
                    self.unsettled -= 1;
                }
            }
        }
    }

    fn take_new(&mut self, member: MemberId, until: Moment, max: usize, records: &mut Vec<QueueRecord>) {
        let mut empty = 0;
        while records.len() < max && empty < self.lanes.len() {
            self.turn = (self.turn + 1) % self.lanes.len();
            let turn = self.turn;
            let Some(lane) = self.lanes.get_mut(turn) else {
                return;
            };
            match lane
                .watching
                .partition()
                .read(&mut lane.cursor, max - records.len(), usize::MAX)
            {
                Read::Empty => empty += 1,
                Read::Trimmed { .. } => empty = 0,
                Read::Records { records: found, .. } => {
                    empty = 0;
                    for record in found.iter() {
                        records.push(self.hold(turn as u32, record.clone(), member, until));
                    }
                }
            }
        }
    }

    fn has_more(&self, max_unsettled: usize) -> bool {
        let now = Instant::now();
        let again = self.returned.peek().is_some_and(|Reverse(next)| next.due <= now);
        let new = |lane: &Lane| lane.cursor.next() < lane.watching.partition().bounds().1;
        again || (self.unsettled < max_unsettled && self.lanes.iter().any(new))
    }

    fn hold(&mut self, partition: u32, record: Record, member: MemberId, until: Moment) -> QueueRecord {
        self.serial += 1;
        let token = Token {
            partition,
            offset: record.offset,
            serial: self.serial,
        };
        let mut attempt = 1;
        if let Some(lane) = self.lanes.get_mut(partition as usize) {
            let mut new = Open {
                attempt: 1,
                serial: self.serial,
                holder: Some(Hold { member, until }),
            };
            match lane.open.get(&record.offset) {
                Some(before) => new.attempt = before.attempt.saturating_add(1),
                None => self.unsettled += 1,
            }
            attempt = new.attempt;
            lane.open.insert(record.offset, new);
        }
        if let Some(seat) = self.members.get_mut(&member) {
            seat.ends.push(Reverse((until, token)));
        }
        QueueRecord::new(partition, record, token.receipt(), attempt, until)
    }

    /// Gives back all that is held so; tells whether that was anything.
    fn give_back(&mut self, which: impl Fn(&Hold) -> bool) -> bool {
        let now = Instant::now();
        let mut back = Vec::new();
        for (partition, lane) in (0..).zip(&self.lanes) {
            let held = lane
                .open
                .iter()
                .filter(|(_, open)| open.holder.as_ref().is_some_and(&which));
            back.extend(held.map(|(offset, _)| (partition, *offset)));
        }
        for (partition, offset) in &back {
            self.return_at(*partition, *offset, now);
        }
        !back.is_empty()
    }

    fn return_at(&mut self, partition: u32, offset: Offset, due: Instant) {
        self.serial += 1;
        let serial = self.serial;
        let lane = self.lanes.get_mut(partition as usize);
        if let Some(open) = lane.and_then(|lane| lane.open.get_mut(&offset)) {
            open.holder = None;
            open.serial = serial;
            let token = Token {
                partition,
                offset,
                serial,
            };
            self.returned.push(Reverse(Returned { due, token }));
        }
    }

    /// Finds a message by the hand-over that a token names, where that is the last one.
    fn open(&mut self, token: Token) -> Option<&mut Open> {
        let lane = self.lanes.get_mut(token.partition as usize)?;
        lane.open
            .get_mut(&token.offset)
            .filter(|open| open.serial == token.serial)
    }

    fn held(&mut self, member: MemberId, token: Token) -> Result<&mut Open> {
        self.open(token)
            .filter(|open| open.holder.is_some_and(|hold| hold.member == member))
            .ok_or_else(|| token.not_held())
    }

    /// Returns when something may come again without being announced.
    fn next_look(&self) -> Option<Instant> {
        let now = Instant::now();
        let again = self.returned.peek().map(|Reverse(next)| next.due);
        let lease = |member: &QueueMember| {
            let Reverse((until, _)) = member.ends.peek()?;
            Some(now + until.saturating_since(member.clock.now()).min(LEASE_CHECK))
        };
        self.members.values().filter_map(lease).chain(again).min()
    }
}

impl Lane {
    fn committed(&self, partition: u32) -> CommittedPosition {
        let end = self.cursor.next();
        let Some(position) = self.open.keys().next().copied() else {
            return CommittedPosition::new(partition, end);
        };
        let mut above: Vec<Range<Offset>> = Vec::new();
        let ends = self.open.keys().copied().skip(1).chain([end]);
        for (before, next) in self.open.keys().zip(ends) {
            if before + 1 < next {
                above.push(before + 1..next);
            }
        }
        CommittedPosition::new(partition, position).with_acked_above(above)
    }
}

impl Token {
    const LEN: usize = 20;

    pub(crate) fn receipt(self) -> QueueReceipt {
        let mut bytes = BytesMut::with_capacity(Self::LEN);
        bytes.put_u32(self.partition);
        bytes.put_u64(self.offset);
        bytes.put_u64(self.serial);
        QueueReceipt(bytes.freeze())
    }

    pub(crate) fn of(receipt: &QueueReceipt) -> Result<Self> {
        let read = |bytes: &Bytes| {
            let (partition, rest) = bytes.split_first_chunk()?;
            let (offset, rest) = rest.split_first_chunk()?;
            Some(Self {
                partition: u32::from_be_bytes(*partition),
                offset: u64::from_be_bytes(*offset),
                serial: u64::from_be_bytes(rest.try_into().ok()?),
            })
        };
        read(&receipt.0).ok_or_else(|| MemoryError::BadReceipt.into())
    }

    fn not_held(self) -> mq_api::Error {
        MemoryError::NotHeld {
            partition: self.partition,
            offset: self.offset,
        }
        .into()
    }
}

/// Counts a waiting receiver for as long as it lives.
pub(crate) struct WaitingReceiver(Arc<Queue>);

impl Drop for WaitingReceiver {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Wakes one receiver a message; a receiver that leaves something behind wakes the next.
struct News(Waker);

impl News {
    fn new(receivers: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self(Waker::from(Arc::new(Receivers(Arc::clone(receivers))))))
    }
}

impl Watch for News {
    fn news(&self, _partition: u32, wakes: &mut driver::Wakes) {
        wakes.add(self.0.clone());
    }
}

/// Wakes one of those who wait to receive.
struct Receivers(Arc<Notify>);

impl Wake for Receivers {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}
