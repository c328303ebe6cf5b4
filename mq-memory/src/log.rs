//! One partition: an append-only log in runs of records, and who is told of news in it.

use std::{collections::VecDeque, iter, mem::take, ops::Range, sync::Arc, time::Duration};

use mq_api::{
    Message, Offset, Timestamp,
    driver::{self, Record, Records},
};

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock, lock_patiently};
use crate::wakes::Wakes;

/// The most records of a run: what is lent, retained and dropped as a whole. No more than a consumer fetches at a time, so
/// that a run is lent whole, with what it weighs: else each record is looked at for that, 45 instructions.
const RUN_RECORDS: usize = 512;
/// A run is closed at this weight even where it has fewer records, in bytes, or at an eighth of what is retained.
const RUN_BYTES: u64 = 16 * 1024 * 1024;
const LEAST_RUN_BYTES: u64 = 4096;
/// A reader gets copies of so few records and leaves the run open: it keeps up with the writer, and would otherwise leave a
/// run behind with each read, which took 700 instructions more for a message sent, received and acked alone.
const FEW: usize = 8;

/// A reader whose last look found less than this is close behind the writer.
const CLOSE: u64 = 16;

/// Is told when a partition has news.
pub(crate) trait Watch: Send + Sync {
    /// Notes the news and adds whom to wake. It is called under the partition's lock: it takes leaf locks only.
    fn news(&self, partition: u32, wakes: &mut driver::Wakes);

    /// Tells whether one word is enough until the watcher has read to the end, by [`Watching::read`].
    fn is_told_once(&self) -> bool {
        false
    }
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
/// Writers append to an open run under the lock. A reader that comes to the open run closes it, where there is more in it
/// than a few: from then on nobody writes to it, and it is read without a lock and without a look at each record. A
/// write-once cell for each record took 210 instructions to fill and 36 to read; in a run it takes 80 and 10.
pub(crate) struct Partition {
    index: u32,
    keep: Keep,
    /// The oldest offset that is retained.
    first: AtomicU64,
    /// The next offset to be given.
    end: AtomicU64,
    tail: Mutex<Tail>,
}

struct Tail {
    /// Closed, oldest first, without a gap between them.
    runs: VecDeque<Arc<Run>>,
    /// What is written to; it follows the closed ones.
    open: Run,
    next: Offset,
    bytes: u64,
    last_append: Timestamp,
    /// When retention is looked at again: at this offset, or so many bytes.
    retain_at: Offset,
    retain_at_bytes: u64,
    /// A run is closed at this weight.
    run_bytes: u64,
    watchers: Vec<Watcher>,
    next_watcher: u64,
    gone: bool,
}

struct Watcher {
    id: u64,
    watch: Arc<dyn Watch>,
    /// It has news and has not read to the end since.
    told: bool,
}

/// Holds consecutive records. It is lent out as it is.
#[derive(Default)]
pub(crate) struct Run {
    base: Offset,
    records: Vec<Record>,
    /// What the records weigh together, in bytes.
    bytes: u64,
    /// When each record was appended, only where some message has a time of its own: elsewhere the record tells.
    appended: Option<Vec<Timestamp>>,
}

/// Says what is noted of a message before it is moved.
struct About {
    /// In bytes.
    weight: u64,
    /// The sender's own time.
    own: Option<Timestamp>,
}

impl About {
    #[inline]
    fn of(message: &Message) -> Self {
        Self {
            weight: message.weight() as u64,
            own: message.timestamp(),
        }
    }
}

/// Remembers a place in a partition and the run around it.
pub(crate) struct Cursor {
    next: Offset,
    run: Option<Arc<Run>>,
    /// The last look found little.
    close: bool,
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

/// What a watcher finds that keeps up with single appends.
pub(crate) enum Only {
    /// A record, and nothing behind it.
    Record(Record),
    /// Nothing: the watcher is told of what comes.
    Nothing,
    /// More than one, or something else to look at, which [`Watching::read`] does.
    Other,
}

impl Partition {
    pub(crate) fn new(index: u32, keep: Keep) -> Self {
        Self {
            index,
            keep,
            first: AtomicU64::new(0),
            end: AtomicU64::new(0),
            tail: Mutex::new(Tail {
                runs: VecDeque::new(),
                open: Run::default(),
                next: 0,
                bytes: 0,
                last_append: Timestamp::from_millis(i64::MIN),
                retain_at: RUN_RECORDS as u64,
                retain_at_bytes: 0,
                run_bytes: RUN_BYTES.min((keep.bytes / 8).max(LEAST_RUN_BYTES)),
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
        messages: impl ExactSizeIterator<Item = Message>,
        wakes: &mut Wakes,
    ) -> Result<Range<Offset>, Gone> {
        let mut tail = lock(&self.tail);
        if tail.gone {
            return Err(Gone);
        }
        // One clock read for all of them.
        let now = tail.read_clock();
        let first = tail.next;
        let room = RUN_RECORDS.saturating_sub(tail.open.records.len());
        tail.open.records.reserve(messages.len().min(room));
        for message in messages {
            self.push(&mut tail, About::of(&message), || message, now);
        }
        let next = tail.next;
        self.appended(tail, wakes);
        Ok(first..next)
    }

    /// Appends one message as [`append`](Self::append) does, and takes it out of its place; leaves it there where the topic
    /// is gone.
    #[inline]
    pub(crate) fn append_one(
        &self,
        message: &mut Message,
        wakes: &mut driver::Wakes,
    ) -> Result<Offset, Gone> {
        let mut tail = lock(&self.tail);
        if tail.gone {
            return Err(Gone);
        }
        let now = tail.read_clock();
        let offset = tail.next;
        self.push(&mut tail, About::of(message), || take(message), now);
        self.appended(tail, wakes);
        Ok(offset)
    }

    /// Publishes what was appended.
    #[inline]
    fn appended(&self, mut tail: MutexGuard<'_, Tail>, wakes: &mut driver::Wakes) {
        self.end.store(tail.next, Ordering::Release);
        if tail.next >= tail.retain_at || tail.bytes >= tail.retain_at_bytes {
            let now = tail.last_append;
            self.retain(&mut tail, now);
        }
        for watcher in &mut tail.watchers {
            watcher.tell(self.index, wakes);
        }
    }

    /// Moves a cursor over what is there, within one run and the bounds; one record may weigh more.
    pub(crate) fn read(&self, cursor: &mut Cursor, max_messages: usize, max_bytes: usize) -> Read {
        self.read_for(None, cursor, max_messages, max_bytes)
    }

    /// Reads, and takes note where a watcher has come to the end.
    fn read_for(
        &self,
        watcher: Option<u64>,
        cursor: &mut Cursor,
        max_messages: usize,
        max_bytes: usize,
    ) -> Read {
        let first = self.first.load(Ordering::Acquire);
        if cursor.next < first {
            let from = std::mem::replace(&mut cursor.next, first);
            cursor.run = None;
            return Read::Trimmed { from, to: first };
        }
        let mut at_end = false;
        if !cursor.run.as_ref().is_some_and(|run| run.contains(cursor.next)) {
            let mut tail = cursor.lock(&self.tail);
            if let Some((records, next)) = tail.open.copy_few(cursor.next, max_messages, max_bytes) {
                cursor.pass(next);
                let more = next < tail.next;
                if !more {
                    tail.has_read(watcher);
                }
                return Read::Records { records, more };
            }
            cursor.run = tail.run_of(cursor.next);
            let Some(run) = &cursor.run else {
                if cursor.next < tail.next {
                    // Retention has just taken it, and `first` has moved before.
                    drop(tail);
                    return self.read_for(watcher, cursor, max_messages, max_bytes);
                }
                tail.has_read(watcher);
                return Read::Empty;
            };
            if run.end() == tail.next && run.fits(cursor.next, max_messages, max_bytes) {
                tail.has_read(watcher);
                at_end = true;
            }
        }
        let Some(run) = &cursor.run else {
            return Read::Empty;
        };
        let (records, next) = run.lend(cursor.next, max_messages, max_bytes);
        let end = run.end();
        cursor.pass(next);
        // Where this is not known to be the end, the next look takes the lock and finds it.
        let more = !at_end && (watcher.is_some() || next < self.end.load(Ordering::Acquire));
        if next == end {
            cursor.run = None;
        }
        Read::Records { records, more }
    }

    /// Takes the one record that is there for a watcher which keeps up with single appends. Where it goes `on`, it is to
    /// look again without being told of more.
    #[inline]
    fn read_only(&self, watcher: u64, cursor: &mut Cursor, on: bool) -> Only {
        let mut tail = cursor.lock(&self.tail);
        if cursor.run.is_some() {
            return Only::Other;
        }
        if cursor.next == tail.next {
            tail.has_read(Some(watcher));
            return Only::Nothing;
        }
        if cursor.next + 1 != tail.next {
            return Only::Other;
        }
        let Some(record) = tail.open.records.last().cloned() else {
            return Only::Other;
        };
        cursor.next += 1;
        if !on {
            tail.has_read(Some(watcher));
        }
        // Before the record is moved on: what has just been written in parts is not read as a whole then, which stalls.
        drop(tail);
        Only::Record(record)
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
        let at = tail.runs.partition_point(|run| run.newest() < time);
        let run = tail.runs.get(at).map_or(&tail.open, |run| run);
        let (mut low, mut high) = (0, run.records.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if run.appended_at(middle) < time {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = if run.records.is_empty() {
            tail.next
        } else {
            run.base + low as u64
        };
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
        tail.close();
        while tail.runs.front().is_some_and(|run| run.end() <= first) {
            tail.drop_front();
        }
        for watcher in &mut tail.watchers {
            watcher.tell(self.index, wakes);
        }
    }

    /// Ends the partition with its topic: nothing is appended or found any more.
    pub(crate) fn end(&self, wakes: &mut Wakes) {
        let freed;
        {
            let mut tail = lock(&self.tail);
            tail.gone = true;
            tail.close();
            freed = std::mem::take(&mut tail.runs);
            self.first.store(tail.next, Ordering::Release);
            for watcher in &mut tail.watchers {
                watcher.tell(self.index, wakes);
            }
        }
        drop(freed);
    }

    /// Adds a watcher until the answer is dropped.
    pub(crate) fn watch(self: &Arc<Self>, watch: Arc<dyn Watch>) -> Watching {
        let mut tail = lock(&self.tail);
        let id = tail.next_watcher;
        tail.next_watcher += 1;
        tail.watchers.push(Watcher {
            id,
            watch,
            told: false,
        });
        Watching {
            partition: Arc::clone(self),
            id,
        }
    }

    #[inline]
    fn push(&self, tail: &mut Tail, about: About, message: impl FnOnce() -> Message, now: Timestamp) {
        tail.bytes += about.weight;
        tail.open.push(about, message, now);
        tail.next += 1;
        if tail.open.records.len() >= RUN_RECORDS || tail.open.bytes >= tail.run_bytes {
            tail.close();
        }
    }

    #[cold]
    fn retain(&self, tail: &mut Tail, now: Timestamp) {
        let old = |run: &Run| now.saturating_since(run.newest()) > self.keep.age;
        if tail.runs.is_empty() && !tail.open.records.is_empty() && old(&tail.open) {
            tail.close();
        }
        while let Some(oldest) = tail.runs.front() {
            let newer = tail.runs.len() > 1 || !tail.open.records.is_empty();
            let over = newer && tail.bytes - oldest.bytes.min(tail.bytes) >= self.keep.bytes;
            if !(old(oldest) || over) {
                break;
            }
            if oldest.end() > self.first.load(Ordering::Acquire) {
                self.first.store(oldest.end(), Ordering::Release);
            }
            tail.drop_front();
        }
        tail.retain_at = tail.next + RUN_RECORDS as u64;
        tail.retain_at_bytes = tail.bytes + tail.run_bytes;
    }

    fn unwatch(&self, id: u64) {
        let removed;
        {
            let mut tail = lock(&self.tail);
            removed = tail
                .watchers
                .iter()
                .position(|known| known.id == id)
                .map(|at| tail.watchers.swap_remove(at));
        }
        drop(removed);
    }
}

impl Watcher {
    #[inline]
    fn tell(&mut self, partition: u32, wakes: &mut driver::Wakes) {
        if !self.told {
            self.told = self.watch.is_told_once();
            self.watch.news(partition, wakes);
        }
    }
}

impl Tail {
    /// Reads the clock for what is appended. It may step back; the order of append times must not. The tick is exact
    /// enough for a time in milliseconds.
    #[inline]
    fn read_clock(&mut self) -> Timestamp {
        let now = Timestamp::recent().max(self.last_append);
        self.last_append = now;
        now
    }

    /// Finds the run of an offset; closes the open one where it lies in that.
    fn run_of(&mut self, offset: Offset) -> Option<Arc<Run>> {
        if !self.open.records.is_empty() && offset >= self.open.base {
            self.close();
        }
        // As a rule it is the last one.
        if let Some(last) = self.runs.back()
            && offset >= last.base
        {
            return last.contains(offset).then(|| Arc::clone(last));
        }
        let at = self.runs.partition_point(|run| run.end() <= offset);
        let run = self.runs.get(at)?;
        run.contains(offset).then(|| Arc::clone(run))
    }

    /// Closes the open run, and begins the next one.
    fn close(&mut self) {
        // Behind a run there will be another one as long, as a rule; its memory is neither to grow by doubling nor to be cut
        // when it is closed, which took a twentieth of the time of a stream one by one.
        let room = self.open.records.len();
        let next = Run {
            base: self.next,
            records: Vec::with_capacity(room),
            ..Run::default()
        };
        let mut run = std::mem::replace(&mut self.open, next);
        if run.records.is_empty() {
            return;
        }
        if run.records.capacity() > run.records.len() + run.records.len() / 4 {
            run.records.shrink_to_fit();
        }
        self.runs.push_back(Arc::new(run));
    }

    fn drop_front(&mut self) {
        if let Some(run) = self.runs.pop_front() {
            self.bytes = self.bytes.saturating_sub(run.bytes);
        }
    }

    /// Takes note that a watcher has read to the end: it is told of what comes next.
    #[inline]
    fn has_read(&mut self, watcher: Option<u64>) {
        if let Some(id) = watcher
            && let Some(watcher) = self.watchers.iter_mut().find(|watcher| watcher.id == id)
        {
            watcher.told = false;
        }
    }
}

impl Run {
    fn end(&self) -> Offset {
        self.base + self.records.len() as u64
    }

    fn contains(&self, offset: Offset) -> bool {
        (self.base..self.end()).contains(&offset)
    }

    /// Adds a record of a message, which is moved once: to where it is to stand.
    #[inline]
    fn push(&mut self, about: About, message: impl FnOnce() -> Message, now: Timestamp) {
        let About { weight, own } = about;
        if own.is_some() || self.appended.is_some() {
            self.note_time(now);
        }
        let (offset, stored_at) = (self.end(), own.unwrap_or(now));
        // Made where it is to stand, once there is room: `push` would make it on the stack and copy it, and the processor
        // stalls where it reads as a whole what was just written in parts.
        self.records
            .extend(iter::once_with(|| Record::new(offset, stored_at, message())));
        self.bytes += weight;
    }

    /// Notes when the next record is appended.
    #[cold]
    fn note_time(&mut self, now: Timestamp) {
        let times = self
            .appended
            .get_or_insert_with(|| self.records.iter().map(|record| record.stored_at).collect());
        times.push(now);
    }

    fn newest(&self) -> Timestamp {
        self.appended_at(self.records.len().saturating_sub(1))
    }

    fn appended_at(&self, index: usize) -> Timestamp {
        let noted = self.appended.as_ref().and_then(|times| times.get(index)).copied();
        noted
            .or_else(|| self.records.get(index).map(|record| record.stored_at))
            .unwrap_or(Timestamp::from_millis(i64::MAX))
    }

    /// Tells whether what is left from an offset on is lent in one go.
    fn fits(&self, from: Offset, max_messages: usize, max_bytes: usize) -> bool {
        self.end() - from <= max_messages as u64 && self.bytes <= max_bytes as u64
    }

    /// Copies what there is from an offset in the run on, where that is little.
    fn copy_few(&self, from: Offset, max_messages: usize, max_bytes: usize) -> Option<(Records, Offset)> {
        let left = self
            .records
            .get(usize::try_from(from.checked_sub(self.base)?).ok()?..)?;
        match left {
            [] => None,
            [only] => Some((Records::from(only.clone()), from + 1)),
            few if few.len() <= FEW => {
                let mut bytes = 0;
                let fits = |record: &&Record| {
                    let first = bytes == 0;
                    bytes += record.message.weight();
                    first || bytes <= max_bytes
                };
                let copies: Vec<Record> = few
                    .iter()
                    .take(max_messages.max(1))
                    .take_while(fits)
                    .cloned()
                    .collect();
                let next = from + copies.len() as u64;
                Some((Records::from(copies), next))
            }
            _ => None,
        }
    }

    /// Lends records from an offset in the run on.
    fn lend(self: &Arc<Self>, from: Offset, max_messages: usize, max_bytes: usize) -> (Records, Offset) {
        let to = self.end().min(from.saturating_add(max_messages.max(1) as u64));
        // A run is far shorter than its numbers reach.
        let (low, mut high) = ((from - self.base) as u32, (to - self.base) as u32);
        let whole = low == 0 && to == self.end();
        let light = self.bytes <= max_bytes as u64;
        // Most runs weigh less than the bound as a whole: then no record is touched here.
        if !light {
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
        let mut records = Records::new(segment, low..high);
        if whole && light {
            records = records.with_weight(self.bytes as usize);
        }
        (records, self.base + u64::from(high))
    }
}

impl driver::Segment for Run {
    #[inline]
    fn record(&self, index: u32) -> &Record {
        self.records
            .get(index as usize)
            .expect("a lent range lies within the run, which nobody writes to any more")
    }
}

impl Cursor {
    pub(crate) fn new(next: Offset) -> Self {
        Self {
            next,
            run: None,
            close: false,
        }
    }

    /// Returns the offset to read next.
    pub(crate) fn next(&self) -> Offset {
        self.next
    }

    /// Takes the writers' lock for a look.
    #[inline]
    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        if self.close {
            lock_patiently(mutex)
        } else {
            lock(mutex)
        }
    }

    /// Moves behind what a look has found.
    #[inline]
    fn pass(&mut self, next: Offset) {
        self.close = next - self.next < CLOSE;
        self.next = next;
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

    /// Reads as [`Partition::read`] does, for the watcher: it must go on until there is nothing more, and is then told of
    /// what comes. While it has not, an append tells it nothing, which
    /// spares the writer a step that the reader's processor must hear of.
    pub(crate) fn read(&self, cursor: &mut Cursor, max_messages: usize, max_bytes: usize) -> Read {
        self.partition
            .read_for(Some(self.id), cursor, max_messages, max_bytes)
    }

    /// Reads as [`read`](Self::read) does where that would find one record or nothing. The record is moved half as often on
    /// this way, which a member that keeps up with single sends takes each time.
    ///
    /// Who goes `on` is not told of what comes next, and looks again by itself: one that need not wait each time then spares
    /// the sender the word, and itself the taking of it.
    #[inline]
    pub(crate) fn read_only(&self, cursor: &mut Cursor, on: bool) -> Only {
        self.partition.read_only(self.id, cursor, on)
    }

    /// Tells whether nothing is behind a cursor.
    #[inline]
    pub(crate) fn is_at_end(&self, cursor: &Cursor) -> bool {
        cursor.next >= self.partition.end.load(Ordering::Acquire)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.partition.unwatch(self.id);
    }
}
