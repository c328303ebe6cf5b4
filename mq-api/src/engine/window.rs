//! Which messages of a partition are under way, and how far it is done.

use std::{collections::VecDeque, ops::Range};

use crate::Offset;

/// Keeps, in the order of first hand-over, every message from the first that is not acked on.
///
/// Messages are named by a sequence number that counts the messages taken, so that an ack finds its slot without a
/// search although offsets have gaps.
#[derive(Debug, Default)]
pub(crate) struct AckWindow {
    head: u64,
    slots: VecDeque<Slot>,
    pending: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: Offset,
    attempts: u32,
    acked: bool,
    /// The count of attempts must survive this process.
    durable: bool,
}

impl AckWindow {
    /// Takes the next message in, with the hand-overs of it before this tenure and those counted so far; `offset` is
    /// above every one before. Returns its sequence number.
    #[inline]
    pub(crate) fn push(&mut self, offset: Offset, before: u32, attempts: u32) -> u64 {
        debug_assert!(self.slots.back().is_none_or(|last| last.offset < offset));
        let seq = self.head + self.slots.len() as u64;
        self.slots.push_back(Slot {
            offset,
            attempts,
            acked: false,
            durable: before > 0,
        });
        self.pending += 1;
        seq
    }

    /// Marks a message as done. Returns `false` where it is unknown or done already.
    #[inline]
    pub(crate) fn ack(&mut self, seq: u64) -> bool {
        match self.slot_mut(seq) {
            Some(slot) if !slot.acked => slot.acked = true,
            _ => return false,
        }
        self.pending -= 1;
        while self.slots.front().is_some_and(|slot| slot.acked) {
            self.slots.pop_front();
            self.head += 1;
        }
        true
    }

    /// Counts a hand-over and returns which one it is, 1 for the first.
    pub(crate) fn count_attempt(&mut self, seq: u64) -> Option<u32> {
        let slot = self.slot_mut(seq).filter(|slot| !slot.acked)?;
        slot.attempts = slot.attempts.saturating_add(1);
        Some(slot.attempts)
    }

    /// Says that the next hand-over of a message is to be stored before it happens.
    pub(crate) fn make_durable(&mut self, seq: u64) {
        if let Some(slot) = self.slot_mut(seq) {
            slot.durable = true;
        }
    }

    /// Tells whether a message is here and not done.
    pub(crate) fn is_pending(&self, seq: u64) -> bool {
        self.slot(seq).is_some_and(|slot| !slot.acked)
    }

    /// Returns how often a message was handed over.
    pub(crate) fn attempts(&self, seq: u64) -> u32 {
        self.slot(seq).map_or(0, |slot| slot.attempts)
    }

    /// Counts the messages that are not done.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// Returns the lowest offset that is not done, where there is one.
    pub(crate) fn low(&self) -> Option<Offset> {
        self.slots.front().map(|slot| slot.offset)
    }

    /// Returns what is done above the lowest that is not, as ranges that hold no offset of a message that is not done.
    pub(crate) fn acked_above(&self) -> Vec<Range<Offset>> {
        let mut ranges: Vec<Range<Offset>> = Vec::new();
        let mut open = false;
        for slot in &self.slots {
            if !slot.acked {
                open = false;
            } else if let Some(last) = ranges.last_mut().filter(|_| open) {
                last.end = slot.offset + 1;
            } else {
                ranges.push(slot.offset..slot.offset + 1);
                open = true;
            }
        }
        ranges
    }

    /// Returns the attempts that must survive this process. A message in `begun` counts one more: it is about to be
    /// handed over.
    pub(crate) fn durable_attempts(&self, begun: &[u64]) -> Vec<(Offset, u32)> {
        let counted = |seq: u64, slot: &Slot| slot.attempts + u32::from(begun.contains(&seq));
        (self.head..)
            .zip(&self.slots)
            .filter(|(_, slot)| !slot.acked && slot.durable)
            .map(|(seq, slot)| (slot.offset, counted(seq, slot)))
            .filter(|(_, attempts)| *attempts > 0)
            .collect()
    }

    fn slot(&self, seq: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(seq.checked_sub(self.head)?).ok()?)
    }

    fn slot_mut(&mut self, seq: u64) -> Option<&mut Slot> {
        self.slots
            .get_mut(usize::try_from(seq.checked_sub(self.head)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_low_mark_stays_at_the_first_that_is_not_acked() {
        let mut window = AckWindow::default();
        let seqs: Vec<u64> = [10, 12, 20, 21].map(|offset| window.push(offset, 0, 0)).into();
        assert!(window.ack(seqs[1]) && window.ack(seqs[2]));
        assert_eq!(window.low(), Some(10));
        assert_eq!(window.acked_above().first(), Some(&(12..21)));
        assert!(window.ack(seqs[0]));
        assert_eq!(window.low(), Some(21));
        assert!(!window.ack(seqs[0]), "a second ack is refused");
        assert_eq!(window.pending(), 1);
    }

    #[test]
    fn an_attempt_that_is_about_to_happen_is_counted() {
        let mut window = AckWindow::default();
        let first = window.push(5, 0, 0);
        let second = window.push(6, 2, 2);
        assert_eq!(window.durable_attempts(&[]), [(6, 2)]);
        window.make_durable(first);
        assert_eq!(window.durable_attempts(&[first, second]), [(5, 1), (6, 3)]);
        assert_eq!(window.count_attempt(first), Some(1));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_map(steps in proptest::collection::vec((0u8..3, 0usize..60, 1u64..4), 1..200)) {
            let mut window = AckWindow::default();
            let mut model: BTreeMap<u64, (Offset, bool)> = BTreeMap::new();
            let mut offset = 0;
            for (what, which, gap) in steps {
                if what == 0 {
                    offset += gap;
                    let seq = window.push(offset, 0, 0);
                    model.insert(seq, (offset, false));
                } else if let Some(seq) = model.keys().nth(which % model.len().max(1)).copied() {
                    let fresh = !model[&seq].1;
                    prop_assert_eq!(window.ack(seq), fresh);
                    model.insert(seq, (model[&seq].0, true));
                }
                let low = model.values().find(|(_, acked)| !acked).map(|(offset, _)| *offset);
                prop_assert_eq!(window.low(), low);
                prop_assert_eq!(window.pending(), model.values().filter(|(_, acked)| !acked).count());
                let ranges = window.acked_above();
                for (offset, acked) in model.values().filter(|(offset, _)| low.is_some_and(|low| *offset > low)) {
                    prop_assert_eq!(ranges.iter().any(|range| range.contains(offset)), *acked);
                }
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            }
        }
    }
}
