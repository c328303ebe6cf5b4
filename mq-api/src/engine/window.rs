//! Which messages of a partition are under way, and how far it is done.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

use crate::Offset;

/// How many slots lie in the ring before its first ones are moved out; few in tests, so that they see it happen.
const RING: usize = if cfg!(test) { 16 } else { 4096 };

/// The ring is emptied only while less than one in so many of its slots is not acked: a window that is full of
/// messages under way stays in it, where each is found without a search.
const SPARSE: usize = 4;

/// How many messages a word of marks tells of.
const WORD: u64 = u64::BITS as u64;

/// Keeps, in the order of first hand-over, every message from the first that is not acked on.
///
/// Messages are named by a sequence number that counts the messages taken, so that an ack finds its slot without a
/// search although offsets have gaps. A message that is never acked holds nothing else here: what is acked behind it
/// shrinks to a range, so that the window takes room for the messages that are not done, not for those behind them.
///
/// What is acked in the ring is told by one bit a message. A commit looks at a word where it looked at 64 slots: with
/// 100,000 un-acked messages that was a millisecond for every 1,000 acks, and made each eight times as dear.
#[derive(Debug, Default)]
pub(crate) struct AckWindow {
    head: u64,
    /// The first of them is not acked.
    slots: VecDeque<Slot>,
    /// Which messages of the ring are acked. Word 0 begins at `head` rounded down to a word; bits below `head` mean nothing.
    acked: VecDeque<u64>,
    /// Messages whose attempts must survive this process, by sequence number.
    durable: BTreeSet<u64>,
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
        self.slots.push_back(Slot { offset, attempts });
        if seq.is_multiple_of(WORD) {
            self.acked.push_back(0);
        }
        if before > 0 {
            self.durable.insert(seq);
        }
        self.pending += 1;
        if self.slots.len() > RING {
            self.thin_out();
        }
        seq
    }

    /// Moves the first slots of a large ring out where most of it is acked.
    #[cold]
    fn thin_out(&mut self) {
        // Two for each that comes in, so that a ring that was large shrinks again.
        for _ in 0..2 {
            if self.slots.len() > SPARSE * (self.pending - self.stragglers.len()) {
                self.leave_behind();
            }
        }
    }

    /// Marks a message as done. Returns `false` where it is unknown or done already.
    #[inline]
    pub(crate) fn ack(&mut self, seq: u64) -> bool {
        if self.ack_first_alone(seq) {
            return true;
        }
        let Some(at) = seq.checked_sub(self.head) else {
            return self.ack_straggler(seq);
        };
        if at >= self.slots.len() as u64 {
            return false;
        }
        let bit = 1 << (seq % WORD);
        match self.word_mut(seq) {
            Some(word) if *word & bit == 0 => *word |= bit,
            _ => return false,
        }
        self.pending -= 1;
        if !self.durable.is_empty() {
            self.durable.remove(&seq);
        }
        if at == 0 {
            self.advance();
        }
        true
    }

    /// Acks the first message of the window where the one behind it is not acked and nothing is known of any, as where
    /// messages are acked one by one in order. Else does nothing and returns `false`. The long way took 60 instructions more.
    #[inline]
    fn ack_first_alone(&mut self, seq: u64) -> bool {
        // Bits below the head mean nothing, so that its own need not be set.
        const ITSELF_AND_NEXT: u64 = 0b11;
        let at = seq % WORD;
        let Some(word) = self.acked.front().filter(|_| seq == self.head && at + 1 < WORD) else {
            return false;
        };
        if (word >> at) & ITSELF_AND_NEXT != 0 || !self.durable.is_empty() || !self.stragglers.is_empty() {
            return false;
        }
        let known = self.slots.pop_front().is_some();
        if known {
            self.head += 1;
            self.pending -= 1;
        }
        known
    }

    /// Marks neighbours as done in one go where all of them are under way and nothing else is known of them. Else it marks
    /// none and returns `false`, and each is to be marked by itself.
    #[inline]
    pub(crate) fn ack_neighbours(&mut self, first: u64, count: u64) -> bool {
        let end = first + count;
        if first < self.head || end > self.head + self.slots.len() as u64 || !self.durable.is_empty() {
            return false;
        }
        let base = self.head / WORD;
        let (low, high) = (
            (first / WORD - base) as usize,
            (end.div_ceil(WORD) - base) as usize,
        );
        // The bits of the neighbours in the word at a place.
        let bits = |at: usize| {
            let begin = (base + at as u64) * WORD;
            let from = first.max(begin) - begin;
            let to = end.min(begin + WORD) - begin;
            (u64::MAX << from) & (u64::MAX >> (WORD - to))
        };
        if (low..high).any(|at| self.acked.get(at).is_none_or(|word| word & bits(at) != 0)) {
            return false;
        }
        for at in low..high {
            if let Some(word) = self.acked.get_mut(at) {
                *word |= bits(at);
            }
        }
        self.pending -= count as usize;
        if first == self.head {
            self.advance();
        }
        true
    }

    /// Takes what is acked off the front of the ring.
    #[inline]
    fn advance(&mut self) {
        while let Some(word) = self.acked.front() {
            // What is shifted in is zero, so the run ends with the word at the latest.
            let at = self.head % WORD;
            let run = u64::from((word >> at).trailing_ones());
            if run == 0 {
                return;
            }
            if !self.stragglers.is_empty() {
                self.keep_acked(run);
            }
            if run == 1 {
                self.slots.pop_front();
            } else {
                self.slots.drain(..run as usize);
            }
            self.move_head(run);
            // Else the run may go on in the next word.
            if at + run < WORD {
                return;
            }
        }
    }

    #[inline]
    fn move_head(&mut self, by: u64) {
        let before = self.head / WORD;
        self.head += by;
        if self.head / WORD != before {
            self.acked.pop_front();
        }
    }

    /// Moves the first slot of a full ring out to the stragglers, and what is acked behind it.
    fn leave_behind(&mut self) {
        if let Some(slot) = self.slots.pop_front() {
            self.stragglers.insert(self.head, slot);
            self.move_head(1);
            self.advance();
        }
    }

    /// Keeps what is acked at the front of the ring as part of a run.
    fn keep_acked(&mut self, count: u64) {
        let seq = self.head;
        let (Some(first), Some(last)) = (self.slots.front(), self.slots.get(count as usize - 1)) else {
            return;
        };
        let (first, last) = (first.offset, last.offset);
        match &mut self.last {
            Some((_, run)) if run.end == seq => {
                run.end += count;
                run.last = last;
            }
            _ => {
                self.keep_last();
                let end = seq + count;
                self.last = Some((seq, Run { end, first, last }));
            }
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
        self.durable.remove(&seq);
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
            None => self.runs.clear(),
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
        let slot = match seq.checked_sub(self.head) {
            Some(_) if self.is_acked(seq) => None,
            Some(at) => self.slots.get_mut(usize::try_from(at).ok()?),
            None => self.stragglers.get_mut(&seq),
        }?;
        slot.attempts = slot.attempts.saturating_add(1);
        Some(slot.attempts)
    }

    /// Says that the next hand-over of a message is to be stored before it happens.
    pub(crate) fn make_durable(&mut self, seq: u64) {
        if self.is_pending(seq) {
            self.durable.insert(seq);
        }
    }

    /// Tells whether a message is here and not done.
    pub(crate) fn is_pending(&self, seq: u64) -> bool {
        self.slot(seq).is_some() && !self.is_acked(seq)
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
        let offset = |seq: u64| {
            let at = usize::try_from(seq - self.head).ok()?;
            self.slots.get(at).map(|slot| slot.offset)
        };
        // Where the range before ends, for those that go on in the next word. The first slot of the ring is not acked.
        let mut open = None;
        let base = self.head - self.head % WORD;
        for (at, word) in (0u64..).zip(&self.acked) {
            let begin = base + at * WORD;
            // Bits below the head are of messages that have left.
            let mut left = word & (u64::MAX << self.head.saturating_sub(begin));
            while left != 0 {
                let from = u64::from(left.trailing_zeros());
                let to = from + u64::from((left >> from).trailing_ones());
                left &= u64::MAX.checked_shl(to as u32).unwrap_or(0);
                let (first, end) = (begin + from, begin + to);
                let (Some(low), Some(high)) = (offset(first), offset(end - 1)) else {
                    return ranges;
                };
                match ranges.last_mut().filter(|_| open == Some(first)) {
                    Some(range) => range.end = high + 1,
                    None => ranges.push(low..high + 1),
                }
                open = Some(end);
            }
        }
        ranges
    }

    /// Returns the attempts that must survive this process. A message in `begun` counts one more: it is about to be
    /// handed over.
    pub(crate) fn durable_attempts(&self, begun: &[u64]) -> Vec<(Offset, u32)> {
        self.durable
            .iter()
            .filter_map(|seq| Some((seq, self.slot(*seq)?)))
            .map(|(seq, slot)| (slot.offset, slot.attempts + u32::from(begun.contains(seq))))
            .filter(|(_, attempts)| *attempts > 0)
            .collect()
    }

    fn slot(&self, seq: u64) -> Option<&Slot> {
        match seq.checked_sub(self.head) {
            Some(at) => self.slots.get(usize::try_from(at).ok()?),
            None => self.stragglers.get(&seq),
        }
    }

    /// Tells whether a message of the ring is acked.
    fn is_acked(&self, seq: u64) -> bool {
        seq >= self.head
            && self
                .acked
                .get((seq / WORD - self.head / WORD) as usize)
                .is_some_and(|word| word & (1 << (seq % WORD)) != 0)
    }

    #[inline]
    fn word_mut(&mut self, seq: u64) -> Option<&mut u64> {
        self.acked.get_mut((seq / WORD - self.head / WORD) as usize)
    }

    #[cfg(test)]
    fn room(&self) -> usize {
        debug_assert!(!self.is_acked(self.head), "the first of the ring is not acked");
        debug_assert_eq!(
            self.acked.len() as u64,
            (self.head + self.slots.len() as u64).div_ceil(WORD) - self.head / WORD,
            "as many words as the ring needs"
        );
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
        fn the_window_agrees_with_a_map(steps in proptest::collection::vec((0u8..4, 0usize..300, 1u64..4), 1..600)) {
            let mut window = AckWindow::default();
            let mut model: BTreeMap<u64, (Offset, bool)> = BTreeMap::new();
            let mut offset = 0;
            for (what, which, gap) in steps {
                if what <= 1 {
                    offset += gap;
                    let seq = window.push(offset, 0, 0);
                    model.insert(seq, (offset, false));
                } else if what == 2 && which % 3 == 0 {
                    let first = model.keys().nth(which % model.len().max(1)).copied().unwrap_or(0);
                    let range = first..first + 30 * gap;
                    let fresh = range.clone().all(|seq| model.get(&seq).is_some_and(|(_, acked)| !acked));
                    let done = window.ack_neighbours(first, 30 * gap);
                    prop_assert!(!done || fresh, "only what is under way is done");
                    if done {
                        range.for_each(|seq| model.get_mut(&seq).expect("it is fresh").1 = true);
                    }
                } else if let Some(seq) = model.keys().nth(which % model.len().max(1)).copied() {
                    let fresh = !model[&seq].1;
                    prop_assert_eq!(window.ack(seq), fresh);
                    model.insert(seq, (model[&seq].0, true));
                }
                let low = model.values().find(|(_, acked)| !acked).map(|(offset, _)| *offset);
                prop_assert_eq!(window.low(), low);
                prop_assert!(window.room() <= 3 * model.len());
                prop_assert!(model.iter().all(|(seq, (_, acked))| window.is_pending(*seq) != *acked));
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
