//! The one blocking read of a client: every partition and group log that anything in it waits for, in one `XREAD`.
//!
//! It blocks until there is something, or for [`BLOCK`]. When what is to be read changes meanwhile (an assignment, a
//! seek, a resume, a close), the control connection wakes it with `CLIENT UNBLOCK`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mq_api::{Error, ErrorKind, Result};
use redis::Cmd;
use tokio::{sync::Notify, task::AbortHandle};

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
    /// Whether the last read brought nothing for it.
    quiet: bool,
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
                quiet: false,
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
            slot.quiet = false;
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
            streams: layer.into_iter().map(|(key, (_, slots))| (key, slots)).collect(),
        }
    }
}

/// What the slots of one read may bring.
#[derive(Default)]
struct Load {
    most: Option<usize>,
    weight: usize,
}

impl Load {
    fn add(&mut self, slot: &SlotState) {
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
    /// Slots of one stream stand at different places: each place is asked for by itself, without waiting.
    Catch(Vec<Plan>),
    Wait(Plan, Duration),
}

/// Streams, each with one place to read from and the slots, with their tokens, that want it.
type Layer = BTreeMap<Arc<str>, (EntryId, Vec<(u64, u64)>)>;

fn plan(state: &mut State, caught_up: bool) -> Next {
    state.stale = false;
    let mut layers: Vec<Layer> = Vec::new();
    let (mut all, mut busy) = (Load::default(), Load::default());
    let mut busy_keys = BTreeSet::new();
    for (id, slot) in state.slots.iter().filter(|(_, slot)| slot.is_eligible()) {
        all.add(slot);
        if !slot.quiet {
            busy.add(slot);
            busy_keys.insert(Arc::clone(&slot.key));
        }
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
    if layers.len() == 1
        && busy.weight > 0
        && busy.count() > all.count()
        && let Some(mut quiet) = layers.pop()
    {
        // A hundred quiet streams of which nothing is known would make the reads of the one that is busy ten
        // entries small: it is read by itself, and the quiet ones, without waiting, beside it.
        let mut loud = std::mem::take(&mut quiet);
        loud.retain(|key, place| {
            let stays = busy_keys.contains(key);
            if !stays {
                quiet.insert(Arc::clone(key), std::mem::replace(place, (place.0, Vec::new())));
            }
            stays
        });
        let mut plans = vec![Plan::new(loud, busy.count(), None)];
        if !quiet.is_empty() {
            plans.push(Plan::new(quiet, all.count(), None));
        }
        return Next::Catch(plans);
    }
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
        let next = plan(&mut inner.lock(), std::mem::take(&mut caught_up));
        if matches!(next, Next::Nothing) {
            inner.changed.notified().await;
            continue;
        }
        let result = match open(&inner, &mut conn).await {
            Ok(conn) => match next {
                Next::Nothing => Ok(()),
                Next::Wait(plan, wait) => read_once(&inner, conn, plan, wait).await,
                Next::Catch(plans) => catch_up(&inner, conn, plans)
                    .await
                    .map(|found| caught_up = !found),
            },
            Err(error) => Err(error),
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
        give(inner, slots, entries);
        brought.insert(key);
    }
    let mut state = inner.lock();
    for (_, slots) in plan.streams.iter().filter(|(key, _)| !brought.contains(key)) {
        for (id, token) in slots {
            if let Some(slot) = state.slots.get_mut(id).filter(|slot| slot.token == *token) {
                slot.quiet = true;
            }
        }
    }
    Ok(())
}

fn give(inner: &Arc<Inner>, slots: &[(u64, u64)], entries: Vec<Entry>) {
    let Some(last) = entries.last().map(|entry| entry.id) else {
        return;
    };
    let weight = entries.iter().map(weight).max().unwrap_or(0);
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
            slot.quiet = false;
            slot.guess = weight.max(slot.guess - slot.guess / 8).max(64);
            // Set before the sink is asked, so that a `more` which comes meanwhile is not undone.
            slot.full = true;
            (Arc::clone(&slot.sink), after)
        };
        let is_last = at + 1 == slots.len();
        let mut mine = if is_last { rest.take() } else { rest.clone() }.unwrap_or_default();
        mine.retain(|entry| entry.id > after);
        let room = mine.is_empty() || sink.take(*token, mine);
        if room && let Some(slot) = inner.lock().slots.get_mut(id) {
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

    fn slot(key: String, quiet: bool, guess: usize) -> SlotState {
        SlotState {
            key: key.into(),
            after: EntryId::default(),
            token: 1,
            paused: false,
            full: false,
            most: MOST_ENTRIES,
            guess,
            quiet,
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

    #[test]
    fn quiet_streams_do_not_make_the_reads_of_a_busy_one_small() {
        let idle = (0..100).map(|number| slot(format!("idle-{number}"), true, FIRST_GUESS));
        let Next::Catch(plans) = plan(&mut state(idle.chain([slot("busy".into(), false, 200)])), false)
        else {
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
    fn where_all_are_quiet_one_read_waits_for_all() {
        let idle = (0..100).map(|number| slot(format!("idle-{number}"), true, FIRST_GUESS));
        let Next::Wait(only, _) = plan(&mut state(idle), false) else {
            panic!("no waiting read");
        };
        assert!(words(&only).contains("BLOCK") && only.streams.len() == 100);
    }

    #[test]
    fn one_stream_is_read_by_a_waiting_read() {
        for quiet in [false, true] {
            assert!(matches!(
                plan(&mut state([slot("a".into(), quiet, 200)]), false),
                Next::Wait(..)
            ));
        }
    }
}
