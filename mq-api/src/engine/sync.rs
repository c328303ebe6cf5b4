//! The primitives of the wake-ups, named here so that a model checker can put its own in their place.

pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

pub(crate) use tokio::sync::Notify;

/// Locks; a panic in another holder cannot have left the guarded state half changed, since none runs foreign code.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
