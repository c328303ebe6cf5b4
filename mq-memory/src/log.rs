//! One partition: an append-only log in segments of write-once cells, and who is told of news in it.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, OnceLock, atomic::AtomicI64},
    time::Duration,
};

use mq_api::{
    Message, Offset, Timestamp,
    driver::{self, Record, Records},
};

use super::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, lock};
use crate::wakes::Wakes;

/// Cells of a full-sized segment: what is lent, retained and dropped as a whole.
const SEGMENT_CELLS: u64 = 1024;
/// Cells of a partition's first segment, so that a topic of many quiet partitions stays small.
const FIRST_CELLS: u64 = 64;
/// A segment is closed at this weight even where it has cells left, in bytes, or at an eighth of what is retained.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
const LEAST_SEGMENT_BYTES: u64 = 4096;

/// Is told when a partition has news.
pub(crate) trait Watch: Send + Sync {
    /// Notes the news and adds whom to wake. It is called under the partition's lock: it takes leaf locks only.
    fn news(&self, partition: u32, wakes: &mut Wakes);
}

/// Says that the topic was deleted.
#[derive(Debug)]
pub(crate) struct Gone;

/// What retention keeps of a partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) bytes: u64,
    pub(crate) age: Duration,
}

/// Holds one partition.
///
/// Writers take the lock, fill cells and publish the end; who reads at a known place reads the published ends and the
/// cells, and takes the lock only to find the next segment.
pub(crate) struct Partition {
    index: u32,
    keep: Keep,
    /// The oldest offset that is retained.
    first: AtomicU64,
    /// The next offset to be given: every cell below it is filled and stays as it is.
    end: AtomicU64,
    tail: Mutex<Tail>,
}

struct Tail {
    /// Oldest first; the last one is written to.
    segments: VecDeque<Arc<Segment>>,
    next: Offset,
    bytes: u64,
    last_append: Timestamp,
    watchers: Vec<(u64, Arc<dyn Watch>)>,
    next_watcher: u64,
    gone: bool,
}

/// Holds consecutive records. It is lent out as it is.
pub(crate) struct Segment {
    base: Offset,
    cells: Box<[OnceLock<Record>]>,
    /// How many cells will ever be filled: all of them, until the segment is closed early.
    limit: AtomicU32,
    /// What the records weigh together, in bytes.
    bytes: AtomicU64,
    /// When each record was appended, only where some message has a time of its own: elsewhere the record tells.
    appended: OnceLock<Box<[AtomicI64]>>,
    /// When the newest record was appended, in milliseconds.
    newest: AtomicI64,
}

/// Remembers a place in a partition and the segment around it.
pub(crate) struct Cursor {
    next: Offset,
    segment: Option<Arc<Segment>>,
}

/// What is found at a place.
pub(crate) enum Read {
    /// Nothing yet.
    Empty,
    /// The place is no longer retained; the cursor has moved to the oldest offset that is.
    Trimmed { from: Offset, to: Offset },
    /// Records; the cursor has moved behind them.
    Records { records: Records, more: bool },
}

impl Partition {
    pub(crate) fn new(index: u32, keep: Keep) -> Self {
        Self {
            index,
            keep,
            first: AtomicU64::new(0),
            end: AtomicU64::new(0),
            tail: Mutex::new(Tail {
                segments: VecDeque::new(),
                next: 0,
                bytes: 0,
                last_append: Timestamp::from_millis(i64::MIN),
                watchers: Vec::new(),
                next_watcher: 0,
                gone: false,
            }),
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Returns the oldest offset retained and the next one to be given.
    pub(crate) fn bounds(&self) -> (Offset, Offset) {
        let first = self.first.load(Ordering::Acquire);
        (first, self.end.load(Ordering::Acquire))
    }

    /// Appends messages in order and tells the watchers, whom the caller wakes by dropping `wakes`.
    pub(crate) fn append(
        &self,
        messages: impl Iterator<Item = Message>,
        wakes: &mut Wakes,
    ) -> Result<Range<Offset>, Gone> {
        let mut tail = lock(&self.tail);
        if tail.gone {
            return Err(Gone);
        }
        // One clock read for all of them. It may step back; the order of append times must not. The tick is exact enough
        // for a time in milliseconds and saves 40 ns a message that is sent alone.
        let now = Timestamp::recent().max(tail.last_append);
        tail.last_append = now;
        let first = tail.next;
        for message in messages {
            self.push(&mut tail, message, now);
        }
        let next = tail.next;
        self.end.store(next, Ordering::Release);
        for (_, watcher) in &tail.watchers {
            watcher.news(self.index, wakes);
        }
        Ok(first..next)
    }

    /// Appends one message as [`append`](Self::append) does; returns it where the topic is gone.
    pub(crate) fn append_one(&self, message: Message, wakes: &mut Wakes) -> Result<Offset, Message> {
        let mut tail = lock(&self.tail);
        if tail.gone {
            return Err(message);
        }
        let now = Timestamp::recent().max(tail.last_append);
        tail.last_append = now;
        let offset = tail.next;
        self.push(&mut tail, message, now);
        self.end.store(offset + 1, Ordering::Release);
        for (_, watcher) in &tail.watchers {
            watcher.news(self.index, wakes);
        }
        Ok(offset)
    }

    /// Moves a cursor over what is there, within one segment and the bounds; one record may weigh more.
    pub(crate) fn read(&self, cursor: &mut Cursor, max_messages: usize, max_bytes: usize) -> Read {
        let end = self.end.load(Ordering::Acquire);
        loop {
            let first = self.first.load(Ordering::Acquire);
            if cursor.next < first {
                let from = std::mem::replace(&mut cursor.next, first);
                cursor.segment = None;
                return Read::Trimmed { from, to: first };
            }
            if cursor.next >= end {
                return Read::Empty;
            }
            if !cursor.segment.as_ref().is_some_and(|s| s.contains(cursor.next)) {
                cursor.segment = self.segment_of(cursor.next);
            }
            // None where retention has just taken it: then `first` has moved before.
            if let Some(segment) = &cursor.segment {
                let (records, next) = segment.lend(cursor.next, end, max_messages, max_bytes);
                cursor.next = next;
                return Read::Records {
                    records,
                    more: next < end,
                };
            }
        }
    }

    /// Returns a copy of one record, none where it is no longer retained or not there yet.
    pub(crate) fn record(&self, offset: Offset) -> Option<Record> {
        let mut cursor = Cursor::new(offset);
        match self.read(&mut cursor, 1, usize::MAX) {
            Read::Records { records, .. } => records.iter().next().cloned(),
            Read::Empty | Read::Trimmed { .. } => None,
        }
    }

    /// Returns the offset of the first message appended at or after a time, the next offset where there is none.
    pub(crate) fn offset_at(&self, time: Timestamp) -> Offset {
        let tail = lock(&self.tail);
        let at = tail.segments.partition_point(|segment| segment.newest() < time);
        let found = tail.segments.get(at).map_or(tail.next, |segment| {
            let (mut low, mut high) = (segment.base, segment.end().min(tail.next));
            while low < high {
                let middle = low + (high - low) / 2;
                if segment.appended_at(middle) < time {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            low
        });
        found.max(self.first.load(Ordering::Acquire))
    }

    /// Drops what is older than the retention allows.
    pub(crate) fn expire(&self) {
        let mut tail = lock(&self.tail);
        self.retain(&mut tail, Timestamp::now());
    }

    /// Removes everything below an offset, as retention would, and tells the watchers.
    pub(crate) fn trim(&self, before: Offset, wakes: &mut Wakes) {
        let mut tail = lock(&self.tail);
        let first = before.min(tail.next).max(self.first.load(Ordering::Acquire));
        self.first.store(first, Ordering::Release);
        while tail
            .segments
            .front()
            .is_some_and(|segment| segment.end() <= first)
        {
            self.drop_front(&mut tail);
        }
        for (_, watcher) in &tail.watchers {
            watcher.news(self.index, wakes);
        }
    }

    /// Ends the partition with its topic: nothing is appended or found any more.
    pub(crate) fn end(&self, wakes: &mut Wakes) {
        let freed;
        {
            let mut tail = lock(&self.tail);
            tail.gone = true;
            freed = std::mem::take(&mut tail.segments);
            self.first.store(tail.next, Ordering::Release);
            for (_, watcher) in &tail.watchers {
                watcher.news(self.index, wakes);
            }
        }
        drop(freed);
    }

    /// Adds a watcher until the answer is dropped.
    pub(crate) fn watch(self: &Arc<Self>, watcher: Arc<dyn Watch>) -> Watching {
        let mut tail = lock(&self.tail);
        let id = tail.next_watcher;
        tail.next_watcher += 1;
        tail.watchers.push((id, watcher));
        Watching {
            partition: Arc::clone(self),
            id,
        }
    }

    fn push(&self, tail: &mut MutexGuard<'_, Tail>, message: Message, now: Timestamp) {
        let weight = message.weight() as u64;
        let fits = tail.segments.back().is_some_and(|segment| {
            tail.next < segment.end() && segment.bytes.load(Ordering::Relaxed) < self.segment_bytes()
        });
        if !fits {
            self.roll(tail, now);
        }
        let offset = tail.next;
        tail.next += 1;
        tail.bytes += weight;
        if let Some(segment) = tail.segments.back() {
            segment.fill(offset, message, weight, now);
        }
    }

    /// Closes the segment that is written to and opens the next one.
    fn roll(&self, tail: &mut MutexGuard<'_, Tail>, now: Timestamp) {
        let next = tail.next;
        // Publish first: retention must not pass the published end.
        self.end.store(next, Ordering::Release);
        let mut cells = FIRST_CELLS;
        if let Some(segment) = tail.segments.back() {
            segment.close(next);
            cells = (2 * (next - segment.base)).clamp(FIRST_CELLS, SEGMENT_CELLS);
        }
        self.retain(tail, now);
        tail.segments
            .push_back(Arc::new(Segment::new(next, cells as usize)));
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.min((self.keep.bytes / 8).max(LEAST_SEGMENT_BYTES))
    }

    fn retain(&self, tail: &mut MutexGuard<'_, Tail>, now: Timestamp) {
        let published = self.end.load(Ordering::Acquire);
        while let Some(oldest) = tail.segments.front() {
            let old = now.saturating_since(oldest.newest()) > self.keep.age;
            let bytes = oldest.bytes.load(Ordering::Relaxed);
            let over = tail.segments.len() > 1 && tail.bytes - bytes.min(tail.bytes) >= self.keep.bytes;
            if !(old || over) || oldest.base >= published {
                break;
            }
            let end = oldest.end().min(published);
            if end > self.first.load(Ordering::Acquire) {
                self.first.store(end, Ordering::Release);
            }
            self.drop_front(tail);
        }
    }

    fn drop_front(&self, tail: &mut MutexGuard<'_, Tail>) {
        if let Some(segment) = tail.segments.pop_front() {
            tail.bytes = tail.bytes.saturating_sub(segment.bytes.load(Ordering::Relaxed));
            // Whoever holds it as a cursor must not wait in it for cells that come in another one.
            segment.close(segment.end().min(tail.next));
        }
    }

    fn segment_of(&self, offset: Offset) -> Option<Arc<Segment>> {
        let tail = lock(&self.tail);
        let at = tail.segments.partition_point(|segment| segment.base <= offset);
        tail.segments.get(at.checked_sub(1)?).map(Arc::clone)
    }

    fn unwatch(&self, id: u64) {
        let removed;
        {
            let mut tail = lock(&self.tail);
            removed = tail
                .watchers
                .iter()
                .position(|(known, _)| *known == id)
                .map(|at| tail.watchers.swap_remove(at));
        }
        drop(removed);
    }
}

impl Segment {
    fn new(base: Offset, cells: usize) -> Self {
        Self {
            base,
            cells: (0..cells).map(|_| OnceLock::new()).collect(),
            limit: AtomicU32::new(cells as u32),
            bytes: AtomicU64::new(0),
            appended: OnceLock::new(),
            newest: AtomicI64::new(i64::MIN),
        }
    }

    /// Returns the offset behind the last cell that will be filled.
    fn end(&self) -> Offset {
        self.base + u64::from(self.limit.load(Ordering::Acquire))
    }

    fn contains(&self, offset: Offset) -> bool {
        (self.base..self.end()).contains(&offset)
    }

    fn newest(&self) -> Timestamp {
        Timestamp::from_millis(self.newest.load(Ordering::Relaxed))
    }

    fn close(&self, end: Offset) {
        let used = u32::try_from(end - self.base).unwrap_or(u32::MAX);
        self.limit.store(used, Ordering::Release);
    }

    fn fill(&self, offset: Offset, message: Message, weight: u64, now: Timestamp) {
        let index = (offset - self.base) as usize;
        let stored_at = match message.timestamp() {
            None => now,
            Some(own) => {
                let times = self
                    .appended
                    .get_or_init(|| self.cells.iter().map(|_| AtomicI64::new(0)).collect());
                if let Some(time) = times.get(index) {
                    time.store(now.as_millis(), Ordering::Relaxed);
                }
                own
            }
        };
        // The writer's lock gives each cell out once; the result could only be an error for a cell that is filled.
        if let Some(cell) = self.cells.get(index) {
            let _ = cell.set(Record::new(offset, stored_at, message));
        }
        self.bytes
            .store(self.bytes.load(Ordering::Relaxed) + weight, Ordering::Relaxed);
        self.newest.store(now.as_millis(), Ordering::Relaxed);
    }

    fn appended_at(&self, offset: Offset) -> Timestamp {
        let index = (offset - self.base) as usize;
        let Some(record) = self.cells.get(index).and_then(OnceLock::get) else {
            return Timestamp::from_millis(i64::MAX);
        };
        match (
            record.message.timestamp(),
            self.appended.get().and_then(|times| times.get(index)),
        ) {
            (Some(_), Some(time)) => Timestamp::from_millis(time.load(Ordering::Relaxed)),
            _ => record.stored_at,
        }
    }

    /// Lends records from an offset in the segment up to the published end.
    fn lend(
        self: &Arc<Self>,
        from: Offset,
        end: Offset,
        max_messages: usize,
        max_bytes: usize,
    ) -> (Records, Offset) {
        let to = end
            .min(self.end())
            .min(from.saturating_add(max_messages.max(1) as u64));
        let (low, mut high) = ((from - self.base) as u32, (to - self.base) as u32);
        // Most segments weigh less than the bound as a whole: then no record is touched here.
        if self.bytes.load(Ordering::Relaxed) > max_bytes as u64 {
            let mut bytes = 0;
            for index in low..high {
                bytes += driver::Segment::record(&**self, index).message.weight();
                if bytes > max_bytes && index > low {
                    high = index;
                    break;
                }
            }
        }
        let segment: Arc<dyn driver::Segment> = Arc::clone(self) as _;
        (Records::new(segment, low..high), self.base + u64::from(high))
    }
}

impl driver::Segment for Segment {
    fn record(&self, index: u32) -> &Record {
        self.cells
            .get(index as usize)
            .and_then(OnceLock::get)
            .expect("a lent range lies below the published end, where every cell is filled")
    }
}

impl Cursor {
    pub(crate) fn new(next: Offset) -> Self {
        Self { next, segment: None }
    }

    /// Returns the offset to read next.
    pub(crate) fn next(&self) -> Offset {
        self.next
    }
}

/// Keeps a watcher in place until it is dropped.
pub(crate) struct Watching {
    partition: Arc<Partition>,
    id: u64,
}

impl Watching {
    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.partition.unwatch(self.id);
    }
}
