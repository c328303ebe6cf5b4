//! Which messages of a partition are under way, and how far it is done.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use crate::Offset;

/// How many slots lie in the ring before its first ones are moved out; few in tests, so that they see it happen.
const RING: usize = if cfg!(test) { 16 } else { 4096 };

/// The ring is emptied only while less than one in so many of its slots is not acked: a window that is full of
/// messages under way stays in it, where each is found without a search.
const SPARSE: usize = 4;

/// Keeps, in the order of first hand-over, every message from the first that is not acked on.
///
/// Messages are named by a sequence number that counts the messages taken, so that an ack finds its slot without a
/// search although offsets have gaps. A message that is never acked holds nothing else here: what is acked behind it
/// shrinks to a range, so that the window takes room for the messages that are not done, not for those behind them.
#[derive(Debug, Default)]
pub(crate) struct AckWindow {
    head: u64,
    slots: VecDeque<Slot>,
    /// What is not acked and lies before the ring, by sequence number.
    stragglers: BTreeMap<u64, Slot>,
    /// What is acked between them, by its first sequence number.
    runs: BTreeMap<u64, Run>,
    /// The run behind those, by its first sequence number: it grows with each acked slot that leaves the ring. In the map
    /// that took two searches a message.
    last: Option<(u64, Run)>,
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

/// Neighbours that are all acked.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Behind the last sequence number.
    end: u64,
    first: Offset,
    last: Offset,
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
        if self.slots.len() > RING && self.slots.len() > SPARSE * self.pending {
            // Two for each that comes in, so that a ring that was large shrinks again.
            self.leave_behind();
            self.leave_behind();
        }
        seq
    }

    /// Marks a message as done. Returns `false` where it is unknown or done already.
    #[inline]
    pub(crate) fn ack(&mut self, seq: u64) -> bool {
        if seq < self.head {
            return self.ack_straggler(seq);
        }
        match self.slot_mut(seq) {
            Some(slot) if !slot.acked => slot.acked = true,
            _ => return false,
        }
        self.pending -= 1;
        if self.stragglers.is_empty() {
            while self.slots.front().is_some_and(|slot| slot.acked) {
                self.slots.pop_front();
                self.head += 1;
            }
        }
        true
    }

    /// Moves the first slot of a full ring out: to the stragglers, or to what is acked between them.
    #[cold]
    fn leave_behind(&mut self) {
        let Some(slot) = self.slots.pop_front() else {
            return;
        };
        let seq = self.head;
        self.head += 1;
        if slot.acked {
            match &mut self.last {
                Some((_, run)) if run.end == seq => {
                    run.end += 1;
                    run.last = slot.offset;
                }
                _ => {
                    self.keep_last();
                    let run = Run {
                        end: seq + 1,
                        first: slot.offset,
                        last: slot.offset,
                    };
                    self.last = Some((seq, run));
                }
            }
        } else {
            self.stragglers.insert(seq, slot);
        }
    }

    /// Puts the last run to the others.
    fn keep_last(&mut self) {
        self.runs.extend(self.last.take());
    }

    #[cold]
    fn ack_straggler(&mut self, seq: u64) -> bool {
        let Some(slot) = self.stragglers.remove(&seq) else {
            return false;
        };
        self.pending -= 1;
        self.keep_last();
        self.add_run(seq, slot.offset);
        // What is acked before the first straggler is covered by the low mark.
        match self.stragglers.first_key_value() {
            Some((first, _)) => {
                let first = *first;
                while self
                    .runs
                    .first_key_value()
                    .is_some_and(|(start, _)| *start < first)
                {
                    self.runs.pop_first();
                }
            }
            None => {
                self.runs.clear();
                while self.slots.front().is_some_and(|slot| slot.acked) {
                    self.slots.pop_front();
                    self.head += 1;
                }
            }
        }
        true
    }

    /// Adds an acked message to the run before it, the run behind it, or both.
    fn add_run(&mut self, seq: u64, offset: Offset) {
        let mut run = Run {
            end: seq + 1,
            first: offset,
            last: offset,
        };
        if let Some(behind) = self.runs.remove(&(seq + 1)) {
            run.end = behind.end;
            run.last = behind.last;
        }
        if let Some((_, before)) = self.runs.range_mut(..seq).next_back()
            && before.end == seq
        {
            before.end = run.end;
            before.last = run.last;
        } else {
            self.runs.insert(seq, run);
        }
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
        let straggler = self.stragglers.first_key_value().map(|(_, slot)| slot.offset);
        straggler.or_else(|| self.slots.front().map(|slot| slot.offset))
    }

    /// Returns what is done above the lowest that is not, as ranges that hold no offset of a message that is not done.
    pub(crate) fn acked_above(&self) -> Vec<Range<Offset>> {
        let last = self.last.as_ref().map(|(_, run)| run);
        let runs = self.runs.values().chain(last);
        let mut ranges: Vec<Range<Offset>> = runs.map(|run| run.first..run.last + 1).collect();
        // The ring goes on where a run ends at its head.
        let mut open = last
            .or_else(|| self.runs.values().next_back())
            .is_some_and(|run| run.end == self.head);
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
        let stragglers = self.stragglers.iter().map(|(seq, slot)| (*seq, slot));
        stragglers
            .chain((self.head..).zip(&self.slots))
            .filter(|(_, slot)| !slot.acked && slot.durable)
            .map(|(seq, slot)| (slot.offset, counted(seq, slot)))
            .filter(|(_, attempts)| *attempts > 0)
            .collect()
    }

    fn slot(&self, seq: u64) -> Option<&Slot> {
        match seq.checked_sub(self.head) {
            Some(at) => self.slots.get(usize::try_from(at).ok()?),
            None => self.stragglers.get(&seq),
        }
    }

    fn slot_mut(&mut self, seq: u64) -> Option<&mut Slot> {
        match seq.checked_sub(self.head) {
            Some(at) => self.slots.get_mut(usize::try_from(at).ok()?),
            None => self.stragglers.get_mut(&seq),
        }
    }

    #[cfg(test)]
    fn room(&self) -> usize {
        self.slots.len() + self.stragglers.len() + self.runs.len() + usize::from(self.last.is_some())
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
    fn a_message_that_is_never_acked_holds_nothing_behind_it() {
        let mut window = AckWindow::default();
        let stuck: Vec<u64> = (0..3).map(|offset| window.push(offset, 0, 0)).collect();
        for offset in 3..200_000 {
            let seq = window.push(offset, 0, 0);
            assert!(window.ack(seq));
        }
        assert!(window.room() <= RING + 16, "{}", window.room());
        assert_eq!((window.low(), window.pending()), (Some(0), 3));
        assert_eq!(window.acked_above().first(), Some(&(3..200_000)));
        assert!(window.ack(stuck[1]) && !window.ack(stuck[1]));
        assert_eq!(window.acked_above(), [1..2, 3..200_000]);
        assert_eq!(window.count_attempt(stuck[2]), Some(1));
        assert!(window.ack(stuck[0]));
        assert_eq!((window.low(), window.pending()), (Some(2), 1));
        assert!(window.ack(stuck[2]));
        assert_eq!((window.low(), window.room()), (None, 0));
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
