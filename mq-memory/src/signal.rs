//! Tells one waiting task which partitions have news, without a lock on the way that is taken most.

use std::{sync::OnceLock, task::Waker};

use mq_api::driver;

use super::{
    log::Watch,
    sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock},
};

/// The most partitions that one signal can tell apart.
pub(crate) const MAX_PARTITIONS: u32 = 64 * 64;

/// The first partitions have their bit in the state itself, where telling, taking and waiting are one step each: in words
/// of their own, as the others, a message that travels alone took four steps more.
const NEAR: u32 = 62;
/// There is more to look at: another partition has its bit in the words, or it is not about a partition.
const FAR: u64 = 1 << 62;
/// The task has found nothing and waits to be woken. With nothing beside it, nobody has woken it yet.
const WAITING: u64 = 1 << 63;

/// Connects many tellers with one task.
///
/// A teller sets a bit in the state, behind that of the partition where this lies in the words, and wakes the task where
/// it was waiting and nobody had told it anything. The task takes the state before it looks, and begins to wait only
/// while the state is empty. All these steps read and write in one, and each acquires what the one before released: so
/// either the task sees the bit, or the teller sees it waiting. A teller that finds its bit in the words set already may
/// go: whoever set it sets the state's after that, and the task has not looked yet.
pub(crate) struct Signal {
    state: AtomicU64,
    /// Which words have bits.
    summary: AtomicU64,
    words: Box<[AtomicU64]>,
    /// Whom to wake. It stays after a wake-up, so that the same task waits again without a lock and without a new waker.
    waker: OnceLock<Waker>,
    /// Another task waits than the first one.
    changed: AtomicBool,
    other: Mutex<Option<Waker>>,
}

impl Signal {
    pub(crate) fn new(partitions: u32) -> Self {
        let words = partitions.min(MAX_PARTITIONS).saturating_sub(NEAR).div_ceil(64);
        Self {
            state: AtomicU64::new(0),
            summary: AtomicU64::new(0),
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            waker: OnceLock::new(),
            changed: AtomicBool::new(false),
            other: Mutex::new(None),
        }
    }

    /// Makes the task look, whatever it is about.
    pub(crate) fn alert(&self, wakes: &mut driver::Wakes) {
        self.tell(FAR, wakes);
    }

    #[inline]
    fn tell(&self, bit: u64, wakes: &mut driver::Wakes) {
        if self.state.fetch_or(bit, Ordering::AcqRel) != WAITING {
            return;
        }
        let waker = if self.changed.load(Ordering::Acquire) {
            lock(&self.other).clone()
        } else {
            self.waker.get().cloned()
        };
        if let Some(waker) = waker {
            wakes.add(waker);
        }
    }

    /// Begins to wait where nothing was told, for a task that has waited with this waker before and has nothing left to look
    /// at; `true` where it waits. A look that finds nothing took 60 instructions more.
    #[inline]
    pub(crate) fn wait_again(&self, registered: Option<&Waker>, waker: &Waker) -> bool {
        let state = self.state.load(Ordering::Acquire);
        (state == 0 || state == WAITING)
            && registered.is_some_and(|known| known.will_wake(waker))
            && (state == WAITING || self.begin_to_wait())
    }

    #[inline]
    fn begin_to_wait(&self) -> bool {
        self.state
            .compare_exchange(0, WAITING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Tells whether nothing was told since the task began to look.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.state.load(Ordering::Acquire) & !WAITING == 0
    }

    /// Begins to look, and takes the partitions that have news: what is told from here on prevents the next
    /// [`wait`](Self::wait). Tells whether the task had waited.
    #[inline]
    pub(crate) fn begin(&self, mut found: impl FnMut(u32)) -> bool {
        let bits = take(&self.state);
        each(bits & !(FAR | WAITING), &mut found);
        if bits & FAR != 0 {
            self.take_far(found);
        }
        bits & WAITING != 0
    }

    #[cold]
    fn take_far(&self, mut found: impl FnMut(u32)) {
        each(take(&self.summary), |word| {
            let bits = self.words.get(word as usize).map_or(0, take);
            each(bits, |far| found(NEAR + word * 64 + far));
        });
    }

    /// Ends the look with nothing found; `false` where something was told meanwhile and the task must look again.
    /// `registered` is the task's copy of the waker that is in place.
    #[inline]
    pub(crate) fn wait(&self, registered: &mut Option<Waker>, waker: &Waker) -> bool {
        if !registered.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.register(waker);
            *registered = Some(waker.clone());
        }
        self.begin_to_wait()
    }

    #[cold]
    fn register(&self, waker: &Waker) {
        if self.waker.set(waker.clone()).is_err() {
            *lock(&self.other) = Some(waker.clone());
            self.changed.store(true, Ordering::Release);
        }
    }
}

impl Watch for Signal {
    #[inline]
    fn news(&self, partition: u32, wakes: &mut driver::Wakes) {
        if partition < NEAR {
            return self.tell(1 << partition, wakes);
        }
        let (word, bit) = ((partition - NEAR) / 64, (partition - NEAR) % 64);
        let Some(bits) = self.words.get(word as usize) else {
            return;
        };
        if bits.fetch_or(1 << bit, Ordering::AcqRel) & (1 << bit) == 0 {
            self.summary.fetch_or(1 << word, Ordering::AcqRel);
            self.alert(wakes);
        }
    }

    fn is_told_once(&self) -> bool {
        true
    }
}

#[inline]
fn take(word: &AtomicU64) -> u64 {
    if word.load(Ordering::Acquire) == 0 {
        0
    } else {
        word.swap(0, Ordering::AcqRel)
    }
}

#[inline]
fn each(mut bits: u64, mut found: impl FnMut(u32)) {
    while bits != 0 {
        found(bits.trailing_zeros());
        bits &= bits - 1;
    }
}
