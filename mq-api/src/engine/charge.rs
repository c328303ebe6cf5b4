//! What one partition holds of its client's memory budget.

use std::sync::Arc;

use crate::budget::Budget;

/// How much a partition keeps of the budget beyond what it holds, so that the shared counter is not touched for each
/// message.
const SLACK: usize = 64 * 1024;

/// Charges a client's budget with what is held here; gives everything back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    held: usize,
    taken: usize,
}

impl Charge {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            held: 0,
            taken: 0,
        }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.set(self.held.saturating_add(bytes));
    }

    pub(crate) fn sub(&mut self, bytes: usize) {
        self.set(self.held.saturating_sub(bytes));
    }

    pub(crate) fn set(&mut self, bytes: usize) {
        self.held = bytes;
        if self.held > self.taken {
            self.budget.take(self.held - self.taken);
            self.taken = self.held;
        } else if self.taken - self.held >= SLACK {
            self.budget.give(self.taken - self.held);
            self.taken = self.held;
        }
    }

    /// Tells whether the client holds as much as it may.
    pub(crate) fn is_exhausted(&self) -> bool {
        !self.budget.has_room(0)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_taken_is_given_back() {
        let budget = Arc::new(Budget::new(1 << 20));
        let mut charge = Charge::new(Arc::clone(&budget));
        charge.add(300_000);
        assert_eq!(budget.used(), 300_000);
        charge.sub(290_000);
        assert_eq!(budget.used(), 10_000, "what is far below is given back");
        charge.sub(5_000);
        assert_eq!(budget.used(), 10_000, "small change is kept");
        drop(charge);
        assert_eq!(budget.used(), 0);
    }
}
