//! The one blocking read of a client: every partition and group log that anything in it waits for, in one `XREAD`.
//!
//! It blocks until there is something, or for [`BLOCK`]. When what is to be read changes meanwhile (an assignment, a
//! seek, a resume, a close), the control connection wakes it with `CLIENT UNBLOCK`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mq_api::{Error, ErrorKind, Result};
use redis::Cmd;
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

use crate::{
    error,
    format::{Entry, EntryId},
    link::Backoff,
    raw::RawConn,
    resp::Reply,
    topic::Shared,
};

/// How long one read waits. It only bounds how late a dead connection is noticed.
const BLOCK: Duration = Duration::from_secs(5);
/// The same where the user may not call `CLIENT UNBLOCK`: what changes is then noticed this late.
const BLOCK_UNWAKEABLE: Duration = Duration::from_millis(100);
/// About how many bytes one read may bring, over all partitions.
const REPLY_BUDGET: usize = 16 * 1024 * 1024;
/// How large an entry is taken to be before one was seen.
const FIRST_GUESS: usize = 16 * 1024;
/// The most entries of one stream in one read.
const MOST_ENTRIES: usize = 1000;
/// From how many streams with nothing new on they are not asked for in each read of one that is behind.
const MANY_STREAMS: usize = 16;
/// How long the streams with nothing new are left alone while others are behind, for each of them and in all: asking for
/// them stays a small part of the work.
const LEFT_ALONE: Duration = Duration::from_micros(20);
const LEFT_ALONE_MOST: Duration = Duration::from_millis(5);

/// Takes what was read for one slot.
pub(crate) trait Sink: Send + Sync {
    /// Takes entries that were read while the slot had this token. Returns whether there is room for more; where not,
    /// [`Slot::more`] goes on.
    fn take(&self, token: u64, entries: Vec<Entry>) -> bool;

    /// Hears that the server refuses to read this stream, for good.
    fn refused(&self, error: Error);

    /// Hears that reading does not work for now, or works again.
    fn outage(&self, error: Option<&Error>);
}

/// Starts with the first slot and ends with the client.
#[derive(Clone)]
pub(crate) struct Reads {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<u64, SlotState>,
    next_slot: u64,
    /// Whether what is being waited for is no longer what should be.
    stale: bool,
    unwakeable: bool,
    /// When every stream was last asked for.
    asked_all: Option<Instant>,
    /// When there was last no more room for a stream that is behind.
    filled: Option<Instant>,
    task: Option<AbortHandle>,
    closed: bool,
}

struct SlotState {
    key: Arc<str>,
    after: EntryId,
    token: u64,
    paused: bool,
    full: bool,
    most: usize,
    /// The largest entry of late, in bytes.
    guess: usize,
    /// Whether the last read brought as much of it as was asked for, or none was made yet.
    behind: bool,
    sink: Arc<dyn Sink>,
}

impl SlotState {
    fn is_eligible(&self) -> bool {
        !self.paused && !self.full
    }
}

/// Has one stream read; dropping it ends that.
pub(crate) struct Slot {
    reads: Arc<Inner>,
    id: u64,
}

/// What to read.
pub(crate) struct SlotSpec {
    pub(crate) key: String,
    pub(crate) after: EntryId,
    pub(crate) token: u64,
    /// The most entries at a time.
    pub(crate) most: usize,
    /// Whether nothing is read before [`Slot::more`] is called.
    pub(crate) waits: bool,
    pub(crate) sink: Arc<dyn Sink>,
}

impl Reads {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            inner: Arc::new(Inner {
                shared,
                state: Mutex::default(),
                changed: Notify::new(),
            }),
        }
    }

    pub(crate) fn add(&self, spec: SlotSpec) -> Result<Slot> {
        let mut state = self.inner.lock();
        if state.closed {
            return Err(Error::closed("connection"));
        }
        let id = state.next_slot;
        state.next_slot += 1;
        state.slots.insert(
            id,
            SlotState {
                key: spec.key.into(),
                after: spec.after,
                token: spec.token,
                paused: false,
                full: spec.waits,
                most: spec.most.clamp(1, MOST_ENTRIES),
                guess: FIRST_GUESS,
                behind: true,
                sink: spec.sink,
            },
        );
        state.stale = true;
        if state.task.is_none() {
            // Ended by `close`, or with the last user: the task holds no strong reference while it waits for nothing.
            let task = tokio::spawn(read_on(Arc::clone(&self.inner)));
            state.task = Some(task.abort_handle());
        }
        drop(state);
        self.inner.changed.notify_one();
        Ok(Slot {
            reads: Arc::clone(&self.inner),
            id,
        })
    }

    pub(crate) fn close(&self) {
        let mut state = self.inner.lock();
        state.closed = true;
        state.slots.clear();
        if let Some(task) = state.task.take() {
            task.abort();
        }
    }
}

impl Slot {
    /// Says that there is room again.
    pub(crate) fn more(&self) {
        self.change(|slot| {
            let was = slot.full;
            slot.full = false;
            was && !slot.paused
        });
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.change(|slot| {
            let was = slot.paused;
            slot.paused = paused;
            was && !paused && !slot.full
        });
    }

    /// Goes on elsewhere; what is read from there on carries the token.
    pub(crate) fn seek(&self, after: EntryId, token: u64) {
        self.change(|slot| {
            slot.after = after;
            slot.token = token;
            slot.full = false;
            slot.behind = true;
            !slot.paused
        });
    }

    fn change(&self, change: impl FnOnce(&mut SlotState) -> bool) {
        let mut state = self.reads.lock();
        if state.slots.get_mut(&self.id).is_some_and(change) {
            state.stale = true;
            drop(state);
            self.reads.changed.notify_one();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let sink = {
            let mut state = self.reads.lock();
            state.slots.remove(&self.id)
        };
        // A sink may hold the last reference to something that locks: let go outside.
        drop(sink);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sinks(&self) -> Vec<Arc<dyn Sink>> {
        self.lock()
            .slots
            .values()
            .map(|slot| Arc::clone(&slot.sink))
            .collect()
    }
}

/// One `XREAD`: a stream at most once.
struct Plan {
    cmd: Cmd,
    /// How many entries of each stream are asked for.
    count: usize,
    streams: HashMap<Arc<str>, Vec<(u64, u64)>>,
}

impl Plan {
    fn new(layer: Layer, count: usize, block: Option<Duration>) -> Self {
        let mut cmd = Cmd::with_capacity(6 + 2 * layer.len(), 64 * layer.len());
        cmd.arg("XREAD").arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK")
                .arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        cmd.arg("STREAMS");
        for key in layer.keys() {
            cmd.arg(&**key);
        }
        for (after, _) in layer.values() {
            cmd.arg(after.to_string());
        }
        Self {
            cmd,
            count,
            streams: layer.into_iter().map(|(key, (_, slots))| (key, slots)).collect(),
        }
    }
}

/// What the slots of one read may bring.
#[derive(Default)]
struct Load {
    slots: usize,
    most: Option<usize>,
    weight: usize,
}

impl Load {
    fn add(&mut self, slot: &SlotState) {
        self.slots += 1;
        self.most = Some(self.most.map_or(slot.most, |most| most.min(slot.most)));
        self.weight += slot.guess;
    }

    /// Returns how many entries of each stream to ask for.
    fn count(&self) -> usize {
        let most = self.most.unwrap_or(MOST_ENTRIES);
        most.min(REPLY_BUDGET / self.weight.max(1)).max(1)
    }
}

/// What to read next.
enum Next {
    Nothing,
    /// For so long, or until something changes: who was filled a moment ago is about to have room again.
    Rest(Duration),
    /// Slots of one stream stand at different places, or some streams are behind and many are not: each read by itself,
    /// without waiting.
    Catch(Vec<Plan>),
    Wait(Plan, Duration),
}

/// Streams, each with one place to read from and the slots, with their tokens, that want it.
type Layer = BTreeMap<Arc<str>, (EntryId, Vec<(u64, u64)>)>;

/// Puts slots into as few reads as there are places in one stream.
fn layers<'a>(slots: impl Iterator<Item = (&'a u64, &'a SlotState)>, caught_up: bool) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    for (id, slot) in slots {
        let mut level = 0;
        loop {
            if layers.len() == level {
                layers.push(BTreeMap::new());
            }
            let Some(layer) = layers.get_mut(level) else {
                break;
            };
            match layer.get_mut(&slot.key) {
                None => {
                    layer.insert(Arc::clone(&slot.key), (slot.after, vec![(*id, slot.token)]));
                    break;
                }
                Some((after, slots)) if *after == slot.after || caught_up => {
                    *after = slot.after.min(*after);
                    slots.push((*id, slot.token));
                    break;
                }
                Some(_) => level += 1,
            }
        }
    }
    layers
}

fn plan(state: &mut State, caught_up: bool, now: Instant) -> Next {
    state.stale = false;
    let (mut all, mut behind) = (Load::default(), Load::default());
    for slot in state.slots.values().filter(|slot| slot.is_eligible()) {
        all.add(slot);
        if slot.behind {
            behind.add(slot);
        }
    }
    let quiet = all.slots - behind.slots;
    let alone = LEFT_ALONE_MOST.min(LEFT_ALONE * u32::try_from(quiet).unwrap_or(u32::MAX));
    let eligible = |wanted: bool| {
        state
            .slots
            .iter()
            .filter(move |(_, slot)| slot.is_eligible() && slot.behind == wanted)
    };
    if behind.slots > 0 && (quiet >= MANY_STREAMS || behind.count() > all.count()) {
        // A hundred quiet streams of which nothing is known would make the reads of the one that is behind ten
        // entries small, and asking for them takes as long as its entries: it is read by itself, and the quiet ones,
        // without waiting, beside it now and then.
        let read = |layer, load: &Load| Plan::new(layer, load.count(), None);
        let loud = layers(eligible(true), caught_up);
        let mut plans: Vec<Plan> = loud.into_iter().map(|layer| read(layer, &behind)).collect();
        if quiet > 0 && state.asked_all.is_none_or(|at| now - at >= alone) {
            let quiet = layers(eligible(false), caught_up);
            plans.extend(quiet.into_iter().map(|layer| read(layer, &all)));
            state.asked_all = Some(now);
        }
        return Next::Catch(plans);
    }
    if quiet >= MANY_STREAMS
        && let Some(filled) = state.filled
        && now - filled < alone
    {
        // A waiting read of them all would have to be woken as soon as it began.
        return Next::Rest(alone - (now - filled));
    }
    state.asked_all = Some(now);
    let layers = layers(
        state.slots.iter().filter(|(_, slot)| slot.is_eligible()),
        caught_up,
    );
    let wait = if state.unwakeable { BLOCK_UNWAKEABLE } else { BLOCK };
    let block = (layers.len() == 1).then_some(wait);
    let mut plans: Vec<Plan> = layers
        .into_iter()
        .map(|layer| Plan::new(layer, all.count(), block))
        .collect();
    match plans.pop() {
        None => Next::Nothing,
        Some(only) if plans.is_empty() => Next::Wait(only, wait),
        Some(last) => {
            plans.push(last);
            Next::Catch(plans)
        }
    }
}

async fn read_on(inner: Arc<Inner>) {
    let mut backoff = Backoff::new();
    let mut conn: Option<RawConn> = None;
    let mut down = false;
    let mut caught_up = false;
    loop {
        let next = plan(&mut inner.lock(), std::mem::take(&mut caught_up), Instant::now());
        let result = match next {
            Next::Nothing => {
                inner.changed.notified().await;
                continue;
            }
            Next::Rest(time) => {
                // Either way it is looked at again.
                let _ = tokio::time::timeout(time, inner.changed.notified()).await;
                continue;
            }
            Next::Wait(plan, wait) => match open(&inner, &mut conn).await {
                Ok(conn) => read_once(&inner, conn, plan, wait).await,
                Err(error) => Err(error),
            },
            Next::Catch(plans) => match open(&inner, &mut conn).await {
                Ok(conn) => catch_up(&inner, conn, plans)
                    .await
                    .map(|found| caught_up = !found),
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(()) => {
                backoff.reset();
                if std::mem::take(&mut down) {
                    for sink in inner.sinks() {
                        sink.outage(None);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "reading was interrupted");
                conn = None;
                down = true;
                for sink in inner.sinks() {
                    sink.outage(Some(&error));
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

async fn open<'a>(inner: &Inner, conn: &'a mut Option<RawConn>) -> Result<&'a mut RawConn> {
    match conn {
        Some(conn) => Ok(conn),
        None => Ok(conn.insert(RawConn::open(&inner.shared.config).await?)),
    }
}

/// Waits for one read, waking it when it is out of date.
async fn read_once(inner: &Arc<Inner>, conn: &mut RawConn, plan: Plan, wait: Duration) -> Result<()> {
    let client = conn.client_id();
    let limit = wait + inner.shared.config.request_timeout;
    conn.queue(&plan.cmd);
    let reply = tokio::select! {
        biased;
        reply = conn.reply() => reply?,
        () = wake_when_stale(inner, client) => return Err(error::broken(&inner.shared.config.address())),
        () = tokio::time::sleep(limit) => return Err(Error::timeout("a read", limit)),
    };
    match reply {
        Reply::Refused(words) => {
            let error = error::refused(&words);
            if error.is_retryable() {
                return Err(error);
            }
            single_out(inner, conn, plan).await
        }
        reply => {
            hand_out(inner, &plan, reply)?;
            // The server answers whoever sent in the same moment: that answer is not made to wait for the next read.
            tokio::task::yield_now().await;
            Ok(())
        }
    }
}

/// Never ends by itself, other than by finding that the server cannot be asked any more.
async fn wake_when_stale(inner: &Inner, client: i64) {
    loop {
        if !inner.lock().stale {
            inner.changed.notified().await;
            continue;
        }
        let woken = inner
            .shared
            .link
            .call(redis::cmd("CLIENT").arg("UNBLOCK").arg(client))
            .await;
        match woken {
            // The read is about to return.
            Ok(Reply::Int(1)) => std::future::pending().await,
            // It has not begun to block yet.
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                tracing::warn!(%error, "the user may not wake a blocked read: changes take {BLOCK_UNWAKEABLE:?}");
                inner.lock().unwakeable = true;
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Reads every place without waiting; tells whether anything was there.
async fn catch_up(inner: &Arc<Inner>, conn: &mut RawConn, plans: Vec<Plan>) -> Result<bool> {
    let limit = inner.shared.config.request_timeout;
    for plan in &plans {
        conn.queue(&plan.cmd);
    }
    let mut found = false;
    let mut refused = Vec::new();
    for plan in plans {
        let reply = match tokio::time::timeout(limit, conn.reply()).await {
            Ok(reply) => reply?,
            Err(_) => return Err(Error::timeout("a read", limit)),
        };
        match reply {
            Reply::Refused(words) => {
                let error = error::refused(&words);
                if error.is_retryable() {
                    return Err(error);
                }
                refused.push(plan);
            }
            reply => {
                found |= reply != Reply::Nil;
                hand_out(inner, &plan, reply)?;
            }
        }
    }
    for plan in refused {
        single_out(inner, conn, plan).await?;
    }
    Ok(found)
}

/// Finds the streams that made a read be refused, so that the others go on.
async fn single_out(inner: &Arc<Inner>, conn: &mut RawConn, plan: Plan) -> Result<()> {
    let limit = inner.shared.config.request_timeout;
    for (key, slots) in plan.streams {
        let mut cmd = redis::cmd("XREAD");
        cmd.arg("COUNT").arg(1).arg("STREAMS").arg(&*key).arg("0-0");
        conn.queue(&cmd);
        let reply = match tokio::time::timeout(limit, conn.reply()).await {
            Ok(reply) => reply?,
            Err(_) => return Err(Error::timeout("a read", limit)),
        };
        if let Reply::Refused(words) = reply {
            for (id, _) in slots {
                let slot = inner.lock().slots.remove(&id);
                if let Some(slot) = slot {
                    slot.sink.refused(error::refused(&words));
                }
            }
        }
    }
    Ok(())
}

/// Gives every slot what it asked for.
fn hand_out(inner: &Arc<Inner>, plan: &Plan, reply: Reply) -> Result<()> {
    let items = reply.into_array();
    // RESP2 pairs each key with its entries; a map of RESP3 comes as keys and entries in turn.
    let flat: Vec<Reply> = if items.first().is_some_and(|item| item.text().is_some()) {
        items
    } else {
        items.into_iter().flat_map(Reply::into_array).collect()
    };
    let mut flat = flat.into_iter();
    let mut brought = HashSet::new();
    while let (Some(key), Some(entries)) = (flat.next(), flat.next()) {
        let (key, slots) = key
            .str()
            .and_then(|key| plan.streams.get_key_value(key))
            .ok_or_else(|| error::protocol("entries of a stream that was not asked for"))?;
        let entries = Entry::parse_all(entries)?;
        give(inner, slots, entries, plan.count);
        brought.insert(key);
    }
    let mut state = inner.lock();
    for (_, slots) in plan.streams.iter().filter(|(key, _)| !brought.contains(key)) {
        for (id, token) in slots {
            if let Some(slot) = state.slots.get_mut(id).filter(|slot| slot.token == *token) {
                slot.behind = false;
            }
        }
    }
    Ok(())
}

fn give(inner: &Arc<Inner>, slots: &[(u64, u64)], entries: Vec<Entry>, asked: usize) {
    let Some(last) = entries.last().map(|entry| entry.id) else {
        return;
    };
    let weight = entries.iter().map(weight).max().unwrap_or(0);
    let behind = entries.len() >= asked;
    let mut rest = Some(entries);
    for (at, (id, token)) in slots.iter().enumerate() {
        let (sink, after) = {
            let mut state = inner.lock();
            // What comes for a stream that was paused meanwhile is read again when it goes on.
            let Some(slot) = state
                .slots
                .get_mut(id)
                .filter(|slot| slot.token == *token && !slot.paused)
            else {
                continue;
            };
            let after = slot.after;
            slot.after = last.max(after);
            slot.behind = behind;
            slot.guess = weight.max(slot.guess - slot.guess / 8).max(64);
            // Set before the sink is asked, so that a `more` which comes meanwhile is not undone.
            slot.full = true;
            (Arc::clone(&slot.sink), after)
        };
        let is_last = at + 1 == slots.len();
        let mut mine = if is_last { rest.take() } else { rest.clone() }.unwrap_or_default();
        mine.retain(|entry| entry.id > after);
        let room = mine.is_empty() || sink.take(*token, mine);
        let mut state = inner.lock();
        if !room && behind {
            state.filled = Some(Instant::now());
        }
        if room && let Some(slot) = state.slots.get_mut(id) {
            slot.full = false;
        }
    }
}

fn weight(entry: &Entry) -> usize {
    64 + entry
        .fields
        .iter()
        .map(|field| 16 + field.text().map_or(0, <[u8]>::len))
        .sum::<usize>()
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads")
            .field("slots", &self.inner.lock().slots.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Sink for Nobody {
        fn take(&self, _: u64, _: Vec<Entry>) -> bool {
            true
        }

        fn refused(&self, _: Error) {}

        fn outage(&self, _: Option<&Error>) {}
    }

    fn slot(key: String, behind: bool, guess: usize) -> SlotState {
        SlotState {
            key: key.into(),
            after: EntryId::default(),
            token: 1,
            paused: false,
            full: false,
            most: MOST_ENTRIES,
            guess,
            behind,
            sink: Arc::new(Nobody),
        }
    }

    fn state(slots: impl IntoIterator<Item = SlotState>) -> State {
        State {
            slots: (0..).zip(slots).collect(),
            ..State::default()
        }
    }

    fn words(plan: &Plan) -> String {
        String::from_utf8_lossy(&plan.cmd.get_packed_command()).replace("\r\n", " ")
    }

    fn idle(count: usize) -> impl Iterator<Item = SlotState> {
        (0..count).map(|number| slot(format!("idle-{number}"), false, FIRST_GUESS))
    }

    #[test]
    fn quiet_streams_do_not_make_the_reads_of_a_busy_one_small() {
        let mut state = state(idle(100).chain([slot("busy".into(), true, 200)]));
        let Next::Catch(plans) = plan(&mut state, false, Instant::now()) else {
            panic!("one read for all");
        };
        let [busy, quiet] = plans.as_slice() else {
            panic!("{} reads", plans.len());
        };
        assert!(words(busy).contains("COUNT $4 1000 "), "{}", words(busy));
        assert_eq!((busy.streams.len(), quiet.streams.len()), (1, 100));
        // All hundred may have something after all: together they stay within what one read may bring.
        assert!(words(quiet).contains("COUNT $2 10 "), "{}", words(quiet));
        assert!(!words(busy).contains("BLOCK") && !words(quiet).contains("BLOCK"));
    }

    #[test]
    fn quiet_streams_are_asked_for_beside_a_busy_one_each_few_milliseconds() {
        let mut state = state(idle(100).chain([slot("busy".into(), true, 200)]));
        let begun = Instant::now();
        let mut asked = Vec::new();
        for millis in 0..10 {
            let now = begun + Duration::from_millis(millis);
            let Next::Catch(plans) = plan(&mut state, false, now) else {
                panic!("one read for all");
            };
            if plans.len() == 2 {
                asked.push(millis);
            }
        }
        assert_eq!(asked, [0, 2, 4, 6, 8]);
        // However many there are, it is never longer.
        state.slots.extend((1000..).zip(idle(5000)));
        state.asked_all = Some(begun);
        let next = plan(&mut state, false, begun + LEFT_ALONE_MOST);
        assert!(matches!(next, Next::Catch(plans) if plans.len() == 2));
    }

    #[test]
    fn one_stream_of_a_topic_is_read_at_two_places_beside_quiet_ones() {
        let ahead = SlotState {
            after: EntryId::of(7),
            ..slot("busy".into(), true, 200)
        };
        let mut state = state(idle(100).chain([slot("busy".into(), true, 200), ahead]));
        let Next::Catch(plans) = plan(&mut state, false, Instant::now()) else {
            panic!("one read for all");
        };
        let streams: Vec<usize> = plans.iter().map(|plan| plan.streams.len()).collect();
        assert_eq!(streams, [1, 1, 100]);
    }

    #[test]
    fn no_waiting_read_of_many_begins_where_room_is_about_to_be_made() {
        let full = SlotState {
            full: true,
            ..slot("busy".into(), true, 200)
        };
        let now = Instant::now();
        let mut many = State {
            filled: Some(now),
            ..state(idle(100).chain([full]))
        };
        let later = now + Duration::from_millis(1);
        let Next::Rest(time) = plan(&mut many, false, later) else {
            panic!("a read");
        };
        assert_eq!(time, LEFT_ALONE * 100 - Duration::from_millis(1));
        let then = later + time;
        assert!(matches!(plan(&mut many, false, then), Next::Wait(only, _) if only.streams.len() == 100));
        // A few are waited for at once.
        let mut few = State {
            filled: Some(now),
            ..state(idle(MANY_STREAMS - 1))
        };
        assert!(matches!(plan(&mut few, false, now), Next::Wait(..)));
    }

    #[test]
    fn where_all_are_quiet_one_read_waits_for_all() {
        let Next::Wait(only, _) = plan(&mut state(idle(100)), false, Instant::now()) else {
            panic!("no waiting read");
        };
        assert!(words(&only).contains("BLOCK") && only.streams.len() == 100);
    }

    #[test]
    fn one_stream_is_read_by_a_waiting_read() {
        for behind in [false, true] {
            assert!(matches!(
                plan(&mut state([slot("a".into(), behind, 200)]), false, Instant::now()),
                Next::Wait(..)
            ));
        }
    }
}
