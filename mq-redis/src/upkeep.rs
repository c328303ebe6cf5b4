//! What has to be done from time to time for the topics that a client has open: delayed messages are moved, retention
//! is applied, and partitions that were added are noticed.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use mq_api::{Position, Result, Timestamp, TopicName};
use tokio::{sync::Notify, task::AbortHandle};

use crate::{
    delay, error,
    format::{Entry, EntryId, stamp_of},
    link::{Backoff, Conn},
    producer::RedisProducer,
    register::{self, Meta},
    resp::Reply,
    topic::{Shared, Topic},
};

/// How often topics are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the server's clock is asked for.
const SYNC: Duration = Duration::from_secs(60);
/// How often retention by age is applied at most, and at least.
const AGE_CHECK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Below this many messages nothing is trimmed by size: the server's own unit is larger.
const SMALLEST_TRIM: u64 = 16;

/// Runs while any topic is open.
pub(crate) struct Upkeep {
    shared: Arc<Shared>,
    state: Mutex<State>,
    woken: Notify,
}

#[derive(Default)]
struct State {
    topics: HashMap<TopicName, Open>,
    task: Option<AbortHandle>,
    closed: bool,
}

#[derive(Default)]
struct Open {
    users: usize,
    producers: Vec<Weak<RedisProducer>>,
    /// When a delayed message of a partition is due, as far as this client knows.
    due: BTreeMap<u32, Instant>,
    trim_at: Option<Instant>,
}

/// Keeps a topic looked after.
pub(crate) struct OpenTopic {
    upkeep: Arc<Upkeep>,
    name: TopicName,
}

impl Upkeep {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            state: Mutex::default(),
            woken: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(self: &Arc<Self>, topic: &Topic) -> OpenTopic {
        if !topic.is_foreign() {
            let mut state = self.lock();
            state.topics.entry(topic.name.clone()).or_default().users += 1;
            if state.task.is_none() && !state.closed {
                state.task = Some(tokio::spawn(look_after(Arc::clone(self))).abort_handle());
            }
        }
        OpenTopic {
            upkeep: Arc::clone(self),
            name: topic.name.clone(),
        }
    }

    pub(crate) fn add_producer(&self, producer: &Arc<RedisProducer>) {
        let mut state = self.lock();
        if let Some(open) = state.topics.get_mut(&producer.topic().name) {
            open.producers.retain(|producer| producer.strong_count() > 0);
            open.producers.push(Arc::downgrade(producer));
        }
    }

    /// Hears that a message of a partition is due after a while.
    pub(crate) fn due(&self, topic: &TopicName, partition: u32, after: Duration) {
        let at = Instant::now() + after;
        {
            let mut state = self.lock();
            let Some(open) = state.topics.get_mut(topic) else {
                return;
            };
            match open.due.get(&partition) {
                Some(known) if *known <= at => return,
                _ => open.due.insert(partition, at),
            };
        }
        self.woken.notify_one();
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.topics.clear();
        if let Some(task) = state.task.take() {
            task.abort();
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.lock()
            .topics
            .values()
            .flat_map(|open| open.due.values().copied())
            .min()
    }

    /// Takes out what is due: what is announced from here on is a time of its own, and the answer about these does not
    /// overwrite it.
    fn take_due(&self, now: Instant) -> Vec<(TopicName, u32)> {
        let mut taken = Vec::new();
        for (name, open) in &mut self.lock().topics {
            open.due.retain(|partition, at| {
                let waits = *at > now;
                if !waits {
                    taken.push((name.clone(), *partition));
                }
                waits
            });
        }
        taken
    }
}

impl Drop for OpenTopic {
    fn drop(&mut self) {
        let mut state = self.upkeep.lock();
        if let Some(open) = state.topics.get_mut(&self.name) {
            open.users = open.users.saturating_sub(1);
            if open.users == 0 {
                state.topics.remove(&self.name);
            }
        }
    }
}

/// Moving does not wait for the looks, which take longer the more topics are open.
async fn look_after(upkeep: Arc<Upkeep>) {
    tokio::join!(move_on(&upkeep), look_on(&upkeep));
}

async fn move_on(upkeep: &Upkeep) {
    let mut backoff = Backoff::new();
    loop {
        let next = upkeep.next_due();
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = timer => {}
            () = upkeep.woken.notified() => {}
        }
        let due = upkeep.take_due(Instant::now());
        if due.is_empty() {
            continue;
        }
        match move_due(upkeep, &due).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                tracing::debug!(%error, "delayed messages could not be moved");
                for (topic, partition) in &due {
                    upkeep.due(topic, *partition, Duration::ZERO);
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

async fn look_on(upkeep: &Upkeep) {
    let mut next_sync = Instant::now() + SYNC;
    loop {
        let done = async {
            let conn = upkeep.shared.link.conn().await?;
            tick(upkeep, &conn).await?;
            if Instant::now() >= next_sync {
                next_sync = Instant::now() + SYNC;
                upkeep.shared.clock.sync(&conn).await?;
            }
            Ok::<(), mq_api::Error>(())
        }
        .await;
        if let Err(error) = done {
            tracing::debug!(%error, "topics could not be looked after");
        }
        // Clients that start together do not stay in step.
        tokio::time::sleep(TICK.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
    }
}

/// Moves delayed messages that are due. An error means that nobody knows which were moved; what the server refuses for
/// a partition, the next look finds again.
async fn move_due(upkeep: &Upkeep, due: &[(TopicName, u32)]) -> Result<()> {
    let keys = &upkeep.shared.keys;
    let mut pipe = redis::pipe();
    for (topic, partition) in due {
        pipe.add_command(delay::move_due(
            &keys.partition(topic, *partition),
            &keys.delay(topic, *partition),
        ));
    }
    let replies = upkeep.shared.link.conn().await?.ask_all(&pipe).await?;
    for ((topic, partition), reply) in due.iter().zip(replies) {
        match reply {
            Reply::Int(after) => {
                if let Ok(after) = u64::try_from(after) {
                    upkeep.due(topic, *partition, Duration::from_millis(after));
                }
            }
            Reply::Refused(words) => {
                let error = error::refused(&words);
                tracing::debug!(%error, %topic, partition, "delayed messages could not be moved");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Looks at every open topic. What is refused for one of them holds up no other.
async fn tick(upkeep: &Upkeep, conn: &Conn) -> Result<()> {
    let names: Vec<TopicName> = upkeep.lock().topics.keys().cloned().collect();
    let mut failed = Ok(());
    for name in names {
        if let Err(error) = look_at(upkeep, conn, name).await {
            if conn.is_ended() {
                return Err(error);
            }
            failed = Err(error);
        }
    }
    failed
}

async fn look_at(upkeep: &Upkeep, conn: &Conn, name: TopicName) -> Result<()> {
    let reply = conn
        .call(&register::newest(&upkeep.shared.keys.meta(&name)))
        .await?;
    let Some((_, meta)) = Meta::read(reply)? else {
        return Ok(());
    };
    let producers: Vec<_> = {
        let state = upkeep.lock();
        state
            .topics
            .get(&name)
            .map(|open| open.producers.iter().filter_map(Weak::upgrade).collect())
            .unwrap_or_default()
    };
    for producer in producers {
        if producer.topic().id() == Some(&meta.topic_id) {
            producer.grown_to(meta.partitions);
        }
    }
    let topic = Topic {
        name,
        partitions: meta.partitions,
        meta: Some(meta),
    };
    find_delayed(upkeep, conn, &topic).await?;
    trim(upkeep, conn, &topic).await
}

/// Looks for delayed messages that other clients stored.
async fn find_delayed(upkeep: &Upkeep, conn: &Conn, topic: &Topic) -> Result<()> {
    let keys = &upkeep.shared.keys;
    let mut pipe = redis::pipe();
    for partition in 0..topic.partitions {
        pipe.add_command(delay::next_due(&keys.delay(&topic.name, partition)));
    }
    let now = upkeep.shared.clock.now();
    for (partition, reply) in (0..topic.partitions).zip(conn.call_all(&pipe).await?) {
        if let Some(due) = score(&reply) {
            let due = Timestamp::from_millis(due);
            upkeep.due(&topic.name, partition, due.saturating_since(now));
        }
    }
    Ok(())
}

/// Reads the score of the only element; RESP3 wraps each pair and sends numbers as such.
#[expect(clippy::cast_possible_truncation, reason = "due times are whole milliseconds")]
fn score(reply: &Reply) -> Option<i64> {
    let score = match reply.array() {
        [Reply::Array(pair)] => pair.last(),
        flat => flat.get(1),
    }?;
    score.str()?.parse::<f64>().ok().map(|score| score as i64)
}

/// Applies retention, one client at a time.
async fn trim(upkeep: &Upkeep, conn: &Conn, topic: &Topic) -> Result<()> {
    let Some(meta) = &topic.meta else { return Ok(()) };
    let every = match (meta.retention_ms, meta.retention_bytes) {
        (None, None) => return Ok(()),
        (_, Some(_)) => TICK,
        (Some(age), None) => Duration::from_millis(age / 4).clamp(AGE_CHECK.0, AGE_CHECK.1),
    };
    {
        let mut state = upkeep.lock();
        let Some(open) = state.topics.get_mut(&topic.name) else {
            return Ok(());
        };
        let now = Instant::now();
        if open.trim_at.is_some_and(|at| now < at) {
            return Ok(());
        }
        open.trim_at = Some(now + every);
    }
    let mut lock = redis::cmd("SET");
    lock.arg(upkeep.shared.keys.upkeep(&topic.name))
        .arg("mq1")
        .arg("NX")
        .arg("PX")
        .arg(u64::try_from(every.as_millis() / 2).unwrap_or(500).max(1));
    if conn.call(&lock).await? == Reply::Nil {
        return Ok(());
    }
    // By age first, which needs no right but those for streams.
    if let Some(age) = meta.retention_ms {
        for partition in 0..topic.partitions {
            trim_age(upkeep, conn, topic, partition, age).await?;
        }
    }
    if let Some(most) = meta.retention_bytes {
        for partition in 0..topic.partitions {
            let key = topic.key(&upkeep.shared.keys, partition);
            trim_bytes(conn, &key, most).await?;
        }
    }
    Ok(())
}

/// Removes what is older than it may be.
async fn trim_age(upkeep: &Upkeep, conn: &Conn, topic: &Topic, partition: u32, age: u64) -> Result<()> {
    let key = topic.key(&upkeep.shared.keys, partition);
    let now = upkeep.shared.clock.now().as_millis();
    let oldest = Timestamp::from_millis(now.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX)));
    let mut range = redis::cmd("XRANGE");
    range.arg(&key).arg("-").arg("+").arg("COUNT").arg(1);
    match Entry::parse_all(conn.call(&range).await?)?.pop() {
        Some(first) if stamp_of(&first)? < oldest => {}
        _ => return Ok(()),
    }
    let from = upkeep
        .shared
        .resolve(conn, topic, partition, Position::Time(oldest))
        .await?;
    let mut cmd = redis::cmd("XTRIM");
    cmd.arg(&key).arg("MINID").arg(EntryId::of(from).to_string());
    conn.call(&cmd).await?;
    Ok(())
}

/// Keeps the share of the messages that the server's own measure says has room.
async fn trim_bytes(conn: &Conn, key: &str, most: u64) -> Result<()> {
    let mut pipe = redis::pipe();
    pipe.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(20);
    pipe.cmd("XLEN").arg(key);
    let replies = conn.call_all(&pipe).await?;
    let numbers: Vec<u64> = replies
        .iter()
        .filter_map(|reply| u64::try_from(reply.int()?).ok())
        .collect();
    let [used, length] = numbers.as_slice() else {
        return Ok(());
    };
    if *used <= most || *length <= SMALLEST_TRIM {
        return Ok(());
    }
    let keep = u128::from(*length) * u128::from(most) / u128::from(*used);
    let keep = u64::try_from(keep).unwrap_or(u64::MAX).max(SMALLEST_TRIM);
    conn.call(redis::cmd("XTRIM").arg(key).arg("MAXLEN").arg(keep))
        .await?;
    Ok(())
}

impl fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upkeep")
            .field("topics", &self.lock().topics.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OpenTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenTopic")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
