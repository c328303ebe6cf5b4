//! Wake-ups that are collected under a lock and done after it.

use std::ops::{Deref, DerefMut};

use mq_api::driver;

/// Collects whom to wake, and wakes them when it is dropped.
///
/// Make it before the lock is taken: locals are dropped in reverse order, so the lock is free by then.
#[derive(Default)]
pub(crate) struct Wakes(driver::Wakes);

impl Deref for Wakes {
    type Target = driver::Wakes;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Wakes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Wakes {
    #[inline]
    fn drop(&mut self) {
        if !self.0.is_empty() {
            std::mem::take(&mut self.0).wake_all();
        }
    }
}
