//! Tells one waiting task which partitions have news, without a lock on the way that is taken most.

use std::task::Waker;

use mq_api::driver;

use super::{
    log::Watch,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock},
};

/// The most partitions that one signal can tell apart.
pub(crate) const MAX_PARTITIONS: u32 = 64 * 64;

/// The task is looking, or will look again before it waits.
const RUNNING: u32 = 0;
/// The task has found nothing and waits to be woken.
const WAITING: u32 = 1;
/// Something has happened since the task last began to look.
const NOTIFIED: u32 = 2;

/// Connects many tellers with one task.
///
/// A teller sets the partition's bit, then moves the phase to `NOTIFIED`, and wakes the task where it was `WAITING`.
/// The task moves the phase to `RUNNING` before it looks, and from `RUNNING` to `WAITING` only while no teller has come
/// in between. All these steps read and write in one, and each acquires what the one before released: so either the
/// task sees the bit, or the teller sees it waiting. A teller that finds its bit set already may go: whoever set it
/// moves the phase after that, and the task has not looked yet.
pub(crate) struct Signal {
    phase: AtomicU32,
    /// Which words have bits; not used where there is one word.
    summary: AtomicU64,
    words: Box<[AtomicU64]>,
    /// Stays after a wake-up, so that the same task waits again without a lock and without a new waker.
    waker: Mutex<Option<Waker>>,
}

impl Signal {
    pub(crate) fn new(partitions: u32) -> Self {
        let words = partitions.clamp(1, MAX_PARTITIONS).div_ceil(64);
        Self {
            phase: AtomicU32::new(RUNNING),
            summary: AtomicU64::new(0),
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            waker: Mutex::new(None),
        }
    }

    /// Makes the task look, whatever it is about.
    pub(crate) fn alert(&self, wakes: &mut driver::Wakes) {
        if self.phase.swap(NOTIFIED, Ordering::AcqRel) == WAITING
            && let Some(waker) = lock(&self.waker).as_ref()
        {
            wakes.add(waker.clone());
        }
    }

    /// Tells whether the task waits already with this waker and nothing has happened since.
    pub(crate) fn is_idle(&self, registered: Option<&Waker>, waker: &Waker) -> bool {
        self.phase.load(Ordering::Acquire) == WAITING
            && registered.is_some_and(|known| known.will_wake(waker))
    }

    /// Begins to look: what is told from here on prevents the next [`wait`](Self::wait).
    pub(crate) fn begin(&self) {
        if self.phase.load(Ordering::Acquire) != RUNNING {
            self.phase.swap(RUNNING, Ordering::AcqRel);
        }
    }

    /// Takes the partitions that have news.
    pub(crate) fn take(&self, mut found: impl FnMut(u32)) {
        let mut groups = if self.words.len() == 1 {
            1
        } else {
            take_bits(&self.summary)
        };
        while groups != 0 {
            let group = groups.trailing_zeros();
            groups &= groups - 1;
            let mut bits = self.words.get(group as usize).map_or(0, take_bits);
            while bits != 0 {
                found(group * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }

    /// Ends the look with nothing found; `false` where something was told meanwhile and the task must look again.
    /// `registered` is the task's copy of the waker that is in place.
    pub(crate) fn wait(&self, registered: &mut Option<Waker>, waker: &Waker) -> bool {
        if !registered.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *lock(&self.waker) = Some(waker.clone());
            *registered = Some(waker.clone());
        }
        self.phase
            .compare_exchange(RUNNING, WAITING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Watch for Signal {
    fn news(&self, partition: u32, wakes: &mut driver::Wakes) {
        let Some(word) = self.words.get((partition / 64) as usize) else {
            return;
        };
        let bit = 1 << (partition % 64);
        if word.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return;
        }
        if self.words.len() > 1 {
            self.summary.fetch_or(1 << (partition / 64), Ordering::AcqRel);
        }
        self.alert(wakes);
    }

    fn is_told_once(&self) -> bool {
        true
    }
}

fn take_bits(word: &AtomicU64) -> u64 {
    if word.load(Ordering::Acquire) == 0 {
        0
    } else {
        word.swap(0, Ordering::AcqRel)
    }
}
