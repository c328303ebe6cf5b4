//! The primitives of the log and its wake-ups, named here so that a model checker can put its own in their place.

pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::{hint::spin_loop, sync::PoisonError};

/// Locks; a panic in another holder cannot have left the guarded state half changed, since none runs foreign code.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks as one who is in no hurry: where somebody holds the lock, it keeps away from it for a while.
///
/// A reader that has come close behind its writer finds a few messages with each look, and each look takes the lock, and the
/// memory that it lies in, away from the writer. Kept away, the reader finds more the next time. A stream one by one between
/// two threads took up to three times as long where both stood at the lock.
pub(crate) fn lock_patiently<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    /// Times a pause of the processor, of 10 to 50 ns: as long as a writer takes for a few dozen messages.
    const PAUSES: usize = 50;
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        if let Ok(guard) = mutex.try_lock() {
            return guard;
        }
        (0..PAUSES).for_each(|_| spin_loop());
    }
    lock(mutex)
}
