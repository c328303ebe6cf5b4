//! Where the results of a set of messages are put, and where their one waiter waits.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::BatchOwner;
use crate::{Error, ErrorKind, Offset, Outcome, Receipt, Result};

/// Holds the results of one message, or of several that one call waits for together.
///
/// What happens to all of them at once, as a rule "begun" and then "stored", is one atomic step and costs no lock; only
/// a failure, or a step of some of them, makes a list of single slots behind the lock.
pub(crate) struct Slots {
    phase: AtomicU32,
    /// Of the first message, once they are stored together.
    partition: AtomicU32,
    offset: AtomicU64,
    len: u32,
    /// Nobody waits; failures are counted.
    one_way: bool,
    /// Kept here rather than in each batch: recycled slots then cost no counting of references.
    owner: Option<Arc<dyn BatchOwner>>,
    deadline: OnceLock<Instant>,
    detail: Mutex<Detail>,
}

const WAITING: u32 = 0;
const BEGUN: u32 = 1;
const STORED: u32 = 2;
/// The slots are apart, see [`Detail`].
const APART: u32 = 3;
const PHASE: u32 = 3;
/// Someone waits in [`Detail::waker`].
const WAKER: u32 = 4;
/// The driver has dropped the batch before its sender looked: the sender takes it back, under a lock it needs anyway.
const LANDED: u32 = 8;
/// The sender has looked: who drops the batch gives it back.
const RETURNED: u32 = 16;

/// Stands for "the backend told no offset"; no partition gets that far.
const NO_OFFSET: u64 = u64::MAX;

struct Detail {
    slots: SmallVec<[Slot; 1]>,
    /// How many slots are not settled for good.
    open: u32,
    waker: Option<Waker>,
    /// One of the messages was sent before with an unknown outcome, so none of them is surely not sent any more.
    tainted: bool,
}

enum Slot {
    Waiting,
    Begun,
    /// It failed and may be sent again.
    Retry(Error),
    Done(Result<Receipt>),
    /// Its deadline passed, or its producer was closed; that is counted already.
    GivenUp(Error),
}

/// Counts what has become of a run of messages.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) stored: u64,
    /// Failed for good and not counted yet.
    pub(crate) failed: u64,
    /// The last slot that is, or may be, stored.
    pub(crate) last_settled: Option<u32>,
    /// The slots that may be sent again, each with why it failed.
    pub(crate) retries: SmallVec<[(u32, Error); 1]>,
}

impl Slots {
    pub(crate) fn new(len: u32, one_way: bool, owner: Option<Arc<dyn BatchOwner>>) -> Self {
        Self {
            phase: AtomicU32::new(WAITING),
            partition: AtomicU32::new(0),
            offset: AtomicU64::new(NO_OFFSET),
            len,
            one_way,
            owner,
            deadline: OnceLock::new(),
            detail: Mutex::new(Detail {
                slots: SmallVec::new(),
                open: 0,
                waker: None,
                tainted: false,
            }),
        }
    }

    /// Makes slots of one message new again, where nothing but the fast path has touched them; else `false`.
    #[inline]
    pub(crate) fn recycle(&mut self) -> bool {
        let phase = self.phase.get_mut();
        let clean = self.len == 1 && !self.one_way && *phase & (PHASE | WAKER) == STORED;
        if clean {
            *phase = WAITING;
            self.deadline = OnceLock::new();
        }
        clean
    }

    pub(crate) fn owner(&self) -> Option<&Arc<dyn BatchOwner>> {
        self.owner.as_ref()
    }

    /// Tells that the driver has dropped a batch of exactly these slots. `true` where all of them are stored and the
    /// sender, still within `send`, takes the batch back itself.
    #[inline]
    pub(crate) fn land(&self) -> bool {
        self.phase.load(Ordering::Acquire) & PHASE == STORED
            && self.phase.fetch_or(LANDED, Ordering::AcqRel) & RETURNED == 0
    }

    /// Tells whether the driver has dropped a batch of exactly these slots while its sender was within `send`, all stored.
    #[inline]
    pub(crate) fn is_landed(&self) -> bool {
        self.phase.load(Ordering::Acquire) & (LANDED | RETURNED) == LANDED
    }

    /// Tells that the sender is back from `send` with a batch of exactly these slots. `true` where it has landed so that
    /// the sender takes it back.
    #[inline]
    pub(crate) fn has_landed(&self) -> bool {
        self.phase.load(Ordering::Acquire) & LANDED != 0
            || self.phase.fetch_or(RETURNED, Ordering::AcqRel) & LANDED != 0
    }

    pub(crate) fn is_one_way(&self) -> bool {
        self.one_way
    }

    /// Returns the deadline, and sets it where it is asked for first: a send that is over at once never reads the clock.
    pub(crate) fn deadline_or(&self, deadline: impl FnOnce() -> Instant) -> Instant {
        *self.deadline.get_or_init(deadline)
    }

    /// Returns the deadline where it is set.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Marks slots as about to leave the process; `false` where one of them is settled already.
    #[inline]
    pub(crate) fn begin(&self, range: Range<u32>) -> bool {
        if self.is_whole(&range) {
            let mut phase = self.phase.load(Ordering::Acquire);
            loop {
                match phase & PHASE {
                    WAITING => {
                        let begun = (phase & !PHASE) | BEGUN;
                        match self.change(phase, begun) {
                            Ok(()) => return true,
                            Err(now) => phase = now,
                        }
                    }
                    BEGUN => return true,
                    STORED => return false,
                    _ => break,
                }
            }
        }
        self.begin_apart(range)
    }

    fn begin_apart(&self, range: Range<u32>) -> bool {
        let Some(mut detail) = self.apart() else {
            return false;
        };
        let mut all = true;
        for slot in detail.range_mut(range) {
            match slot {
                Slot::Waiting => *slot = Slot::Begun,
                Slot::Begun => {}
                _ => all = false,
            }
        }
        all
    }

    /// Settles slots as stored, at dense offsets.
    #[inline]
    pub(crate) fn store(&self, range: Range<u32>, partition: u32, first: Option<Offset>) {
        if self.is_whole(&range) {
            let mut phase = self.phase.load(Ordering::Acquire);
            if matches!(phase & PHASE, WAITING | BEGUN) {
                // Only the driver that has the batch stores, so nobody else writes these two.
                self.partition.store(partition, Ordering::Relaxed);
                self.offset.store(first.unwrap_or(NO_OFFSET), Ordering::Relaxed);
            }
            loop {
                match phase & PHASE {
                    WAITING | BEGUN => match self.change(phase, STORED | (phase & RETURNED)) {
                        Ok(()) => {
                            if phase & WAKER != 0 {
                                self.wake();
                            }
                            return;
                        }
                        Err(now) => phase = now,
                    },
                    STORED => return,
                    _ => break,
                }
            }
        }
        self.store_apart(range, partition, first);
    }

    fn store_apart(&self, range: Range<u32>, partition: u32, first: Option<Offset>) {
        let start = range.start;
        let mut wakes = Wakes::new();
        if let Some(mut detail) = self.apart() {
            detail.settle(range, &mut wakes, |at, slot| match slot {
                Slot::Waiting | Slot::Begun => {
                    let offset = first.map(|first| first + u64::from(at - start));
                    Some(Slot::Done(Ok(Receipt::new(partition, offset))))
                }
                _ => None,
            });
        }
        wakes.wake_all();
    }

    /// Settles slots as failed, or sets them aside to be sent again.
    pub(crate) fn fail(&self, range: Range<u32>, error: &Error, retry: bool, wakes: &mut Wakes) {
        let Some(mut detail) = self.apart() else {
            return;
        };
        let tainted = detail.tainted;
        detail.settle(range, wakes, |_, slot| match slot {
            Slot::Waiting | Slot::Begun if retry => Some(Slot::Retry(error.clone())),
            Slot::Waiting | Slot::Begun => Some(Slot::Done(Err(taint(error.clone(), tainted)))),
            _ => None,
        });
    }

    /// Settles what a driver has dropped unsettled.
    pub(crate) fn abandon(&self, range: Range<u32>, partition: u32, may_retry: impl Fn(&Error) -> bool) {
        if self.phase.load(Ordering::Acquire) & PHASE == STORED {
            return;
        }
        let error = |outcome| {
            let context = format!("the driver gave up a send to partition {partition}");
            Error::new(ErrorKind::Interrupted, context).with_outcome(outcome)
        };
        let mut wakes = Wakes::new();
        if let Some(mut detail) = self.apart() {
            let tainted = detail.tainted;
            detail.settle(range, &mut wakes, |_, slot| {
                let error = match slot {
                    Slot::Waiting => error(Outcome::NotSent),
                    Slot::Begun => error(Outcome::Unknown),
                    _ => return None,
                };
                Some(if may_retry(&error) {
                    Slot::Retry(error)
                } else {
                    Slot::Done(Err(taint(error, tainted)))
                })
            });
        }
        wakes.wake_all();
    }

    /// Settles what is not settled because its time is over: `NotSent` where it had not left the process. Returns how
    /// many slots it settled.
    pub(crate) fn give_up(
        &self,
        range: Range<u32>,
        error: impl Fn(Outcome) -> Error,
        wakes: &mut Wakes,
    ) -> u64 {
        if self.phase.load(Ordering::Acquire) & PHASE == STORED {
            return 0;
        }
        let Some(mut detail) = self.apart() else {
            return 0;
        };
        let tainted = detail.tainted;
        let mut count = 0;
        detail.settle(range, wakes, |_, slot| {
            let error = match slot {
                Slot::Waiting => error(Outcome::NotSent),
                Slot::Begun => error(Outcome::Unknown),
                Slot::Retry(last) => error(last.outcome()).with_source(last.clone()),
                _ => return None,
            };
            count += 1;
            Some(Slot::GivenUp(taint(error, tainted)))
        });
        count
    }

    /// Fails a slot that was set aside to be sent again, for good, with why it failed.
    pub(crate) fn refuse_retry(&self, slot: u32, wakes: &mut Wakes) -> u64 {
        let Some(mut detail) = self.apart() else {
            return 0;
        };
        let tainted = detail.tainted;
        let mut count = 0;
        detail.settle(slot..slot + 1, wakes, |_, slot| match slot {
            Slot::Retry(error) => {
                count += 1;
                Some(Slot::GivenUp(taint(error.clone(), tainted)))
            }
            _ => None,
        });
        count
    }

    /// Makes a slot ready to be sent, also one that was set aside; `false` where it has been given up.
    pub(crate) fn reopen(&self, slot: u32) -> bool {
        if self.phase.load(Ordering::Acquire) & PHASE == WAITING {
            return true;
        }
        let Some(mut detail) = self.apart() else {
            return false;
        };
        let mut unknown = false;
        let mut open = false;
        for slot in detail.range_mut(slot..slot + 1) {
            match slot {
                Slot::Retry(error) => {
                    unknown = error.outcome() == Outcome::Unknown;
                    *slot = Slot::Waiting;
                    open = true;
                }
                Slot::Waiting => open = true,
                _ => {}
            }
        }
        detail.tainted |= unknown;
        open
    }

    /// Counts what has become of a range of slots.
    pub(crate) fn tally(&self, range: Range<u32>) -> Tally {
        let mut tally = Tally::default();
        match self.phase.load(Ordering::Acquire) & PHASE {
            STORED => {
                tally.stored = u64::from(range.end - range.start);
                tally.last_settled = range.end.checked_sub(1);
            }
            APART => {
                let mut detail = self.lock();
                for (slot, at) in detail.range_mut(range.clone()).zip(range) {
                    match slot {
                        Slot::Done(Ok(_)) => {
                            tally.stored += 1;
                            tally.last_settled = Some(at);
                        }
                        Slot::Done(Err(error)) => {
                            tally.failed += 1;
                            if error.outcome() == Outcome::Unknown {
                                tally.last_settled = Some(at);
                            }
                        }
                        Slot::GivenUp(error) if error.outcome() == Outcome::Unknown => {
                            tally.last_settled = Some(at);
                        }
                        Slot::Retry(error) => tally.retries.push((at, error.clone())),
                        Slot::GivenUp(_) | Slot::Waiting | Slot::Begun => {}
                    }
                }
            }
            _ => {}
        }
        tally
    }

    /// Waits until every slot is settled for good.
    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.phase.load(Ordering::Acquire) & PHASE == STORED {
            return Poll::Ready(());
        }
        let mut detail = self.lock();
        if !detail
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            detail.waker = Some(cx.waker().clone());
        }
        // Read after the waker is in its place: who settles later sees the flag, and then the waker behind the lock.
        let mut phase = self.phase.load(Ordering::Acquire);
        loop {
            match phase & PHASE {
                STORED => return Poll::Ready(()),
                APART if detail.open == 0 => return Poll::Ready(()),
                APART => return Poll::Pending,
                _ if phase & WAKER != 0 => return Poll::Pending,
                _ => match self.change(phase, phase | WAKER) {
                    Ok(()) => return Poll::Pending,
                    Err(now) => phase = now,
                },
            }
        }
    }

    /// Returns the partition and the first offset where all slots were stored together.
    #[inline]
    pub(crate) fn stored(&self) -> Option<(u32, Option<Offset>)> {
        if self.phase.load(Ordering::Acquire) & PHASE != STORED {
            return None;
        }
        let first = self.offset.load(Ordering::Relaxed);
        let partition = self.partition.load(Ordering::Relaxed);
        Some((partition, (first != NO_OFFSET).then_some(first)))
    }

    /// Returns the result of a slot that is settled.
    #[inline]
    pub(crate) fn result(&self, slot: u32) -> Result<Receipt> {
        match self.phase.load(Ordering::Acquire) & PHASE {
            STORED => {
                let first = self.offset.load(Ordering::Relaxed);
                let offset = (first != NO_OFFSET).then(|| first + u64::from(slot));
                Ok(Receipt::new(self.partition.load(Ordering::Relaxed), offset))
            }
            _ => match self.lock().slots.get(slot as usize) {
                Some(Slot::Done(result)) => result.clone(),
                Some(Slot::GivenUp(error)) => Err(error.clone()),
                _ => Err(Error::new(ErrorKind::Other, "the message is not settled yet")),
            },
        }
    }

    fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn is_whole(&self, range: &Range<u32>) -> bool {
        range.start == 0 && range.end == self.len
    }

    fn change(&self, from: u32, to: u32) -> Result<(), u32> {
        self.phase
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    fn lock(&self) -> MutexGuard<'_, Detail> {
        self.detail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the slots apart, once; none where all of them are stored, which nothing changes any more.
    fn apart(&self) -> Option<MutexGuard<'_, Detail>> {
        let mut detail = self.lock();
        let mut phase = self.phase.load(Ordering::Acquire);
        loop {
            let slot = match phase & PHASE {
                WAITING => || Slot::Waiting,
                BEGUN => || Slot::Begun,
                STORED => return None,
                _ => return Some(detail),
            };
            match self.change(phase, APART | (phase & RETURNED)) {
                Ok(()) => {
                    detail.slots.clear();
                    detail.slots.extend((0..self.len).map(|_| slot()));
                    detail.open = self.len;
                    return Some(detail);
                }
                Err(now) => phase = now,
            }
        }
    }
}

impl Detail {
    fn range_mut(&mut self, range: Range<u32>) -> impl Iterator<Item = &mut Slot> {
        self.slots
            .get_mut(range.start as usize..range.end as usize)
            .unwrap_or_default()
            .iter_mut()
    }

    /// Gives slots a new state where `settle` has one for them, and takes the waker once none is open.
    fn settle(
        &mut self,
        range: Range<u32>,
        wakes: &mut Wakes,
        mut settle: impl FnMut(u32, &Slot) -> Option<Slot>,
    ) {
        let mut closed = 0;
        for (at, slot) in range.clone().zip(self.range_mut(range)) {
            if let Some(new) = settle(at, slot) {
                closed += u32::from(!matches!(new, Slot::Retry(_)));
                *slot = new;
            }
        }
        self.open -= closed;
        if self.open == 0 && closed > 0 {
            wakes.extend(self.waker.take());
        }
    }
}

fn taint(error: Error, tainted: bool) -> Error {
    if tainted {
        error.with_outcome(Outcome::Unknown)
    } else {
        error
    }
}

/// Collects wakers under a lock, to wake them outside it.
///
/// As a rule there is none, or one: that costs a comparison, where dropping two lists took 67 instructions a message.
#[derive(Debug, Default)]
pub struct Wakes(Collected);

#[derive(Debug, Default)]
enum Collected {
    #[default]
    None,
    One(Waker),
    More(Vec<Waker>),
}

impl Wakes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a waker.
    ///
    /// ```
    /// # use std::task::Waker;
    /// # use mq_api::driver::Wakes;
    /// let mut wakes = Wakes::default();
    /// wakes.add(Waker::noop().clone());
    /// assert!(!wakes.is_empty());
    /// ```
    #[inline]
    pub fn add(&mut self, waker: Waker) {
        if let Collected::None = self.0 {
            self.0 = Collected::One(waker);
        } else {
            self.add_more(waker);
        }
    }

    #[cold]
    fn add_more(&mut self, waker: Waker) {
        match std::mem::take(&mut self.0) {
            Collected::None => self.0 = Collected::One(waker),
            Collected::One(first) => self.0 = Collected::More(vec![first, waker]),
            Collected::More(mut more) => {
                more.push(waker);
                self.0 = Collected::More(more);
            }
        }
    }

    /// Moves the wakers of another collection here.
    ///
    /// ```
    /// # use std::task::Waker;
    /// # use mq_api::driver::Wakes;
    /// # let (mut wakes, mut other) = (Wakes::default(), Wakes::default());
    /// other.add(Waker::noop().clone());
    /// wakes.append(&mut other);
    /// assert!(other.is_empty() && !wakes.is_empty());
    /// ```
    #[inline]
    pub fn append(&mut self, other: &mut Self) {
        match std::mem::take(&mut other.0) {
            Collected::None => {}
            Collected::One(waker) => self.add(waker),
            Collected::More(wakers) => wakers.into_iter().for_each(|waker| self.add(waker)),
        }
    }

    pub(crate) fn extend(&mut self, waker: Option<Waker>) {
        if let Some(waker) = waker {
            self.add(waker);
        }
    }

    /// Tells whether there is none.
    ///
    /// ```
    /// # use mq_api::driver::Wakes;
    /// assert!(Wakes::default().is_empty());
    /// ```
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Collected::None)
    }

    /// Wakes all of them.
    ///
    /// ```
    /// # use std::{sync::{Arc, atomic::{AtomicBool, Ordering}}, task::{Wake, Waker}};
    /// # use mq_api::driver::Wakes;
    /// # struct Flag(AtomicBool);
    /// # impl Wake for Flag {
    /// #     fn wake(self: Arc<Self>) {
    /// #         self.0.store(true, Ordering::Relaxed);
    /// #     }
    /// # }
    /// let flag = Arc::new(Flag(AtomicBool::new(false)));
    /// let mut wakes = Wakes::default();
    /// wakes.add(Waker::from(Arc::clone(&flag)));
    /// wakes.wake_all();
    /// assert!(flag.0.load(Ordering::Relaxed));
    /// ```
    #[inline]
    pub fn wake_all(self) {
        match self.0 {
            Collected::None => {}
            Collected::One(waker) => waker.wake(),
            Collected::More(wakers) => wakers.into_iter().for_each(Waker::wake),
        }
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Puts slots back for the next message, where nobody else has them any more.
pub(crate) fn recycle(mut slots: Arc<Slots>) -> Option<Arc<Slots>> {
    Arc::get_mut(&mut slots)
        .is_some_and(Slots::recycle)
        .then_some(slots)
}
