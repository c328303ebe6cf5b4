//! One session of one member of a group: it joins, keeps its lease, takes what it should own and gives back what not.
//!
//! Any loss of the control connection ends the session. The next one has a new name and new epochs, and says that the
//! old one is over, so that nobody waits for it.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mq_api::{
    Error, ErrorKind, Lease, Position, Result,
    driver::{Assignment, AssignmentId},
};
use tokio::sync::Notify;

use crate::{
    error,
    format::{Entry, EntryId},
    group::{Members, Say, say},
    link::Conn,
    member::{Member, Owned},
    outbox::{Outbox, PartitionSink},
    reads::{Sink, Slot, SlotSpec},
    register,
    resp::Reply,
    topic::{ask_bounds, read_bounds},
};

/// Members that start at the same time hear of each other before the first of them takes everything.
const SETTLE: Duration = Duration::from_millis(30);
/// How soon to look again where somebody else was first, or has not let go.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How much of the log is read on joining.
const HISTORY: usize = 4000;

/// How a session ended.
pub(crate) enum Exit {
    /// The member left.
    Left,
    TopicGone,
    /// The session is over; another one may be begun unless the error says otherwise.
    Failed(Error),
}

/// What a session keeps to itself.
struct Session<'a> {
    member: &'a Arc<Member>,
    conn: Conn,
    name: String,
    members: Members,
    lease: Lease,
    log: String,
    log_at: EntryId,
    heard: Arc<LogSink>,
    partitions: u32,
    settled_at: Instant,
    dirty: bool,
    look_again: Option<Instant>,
    next_heartbeat: Instant,
}

/// Collects what the blocking read brings of the group's log.
struct LogSink {
    outbox: Arc<Outbox>,
    entries: Mutex<Vec<Entry>>,
    arrived: Notify,
}

/// The most entries of the log that wait to be looked at; above it the read waits.
const MOST_HEARD: usize = 4000;

impl Sink for LogSink {
    fn take(&self, _token: u64, entries: Vec<Entry>) -> bool {
        let room = {
            let mut all = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(entries);
            all.len() < MOST_HEARD
        };
        self.arrived.notify_one();
        room
    }

    fn refused(&self, error: Error) {
        self.outbox.fail(error);
    }

    fn outage(&self, error: Option<&Error>) {
        self.outbox.outage(error);
    }
}

impl LogSink {
    fn drain(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs one session to its end. `down` says whether an outage was told of, whose end is told once the member has joined:
/// a connection alone may be one that ends in this moment.
pub(crate) async fn run(
    member: &Arc<Member>,
    conn: Conn,
    name: &str,
    before: &mut Vec<String>,
    down: &mut bool,
) -> Exit {
    let exit = async {
        let (mut session, log_slot) = Session::join(member, conn, name, before).await?;
        if std::mem::take(down) {
            member.outbox.outage(None);
        }
        session.attend(&log_slot).await
    }
    .await;
    match exit {
        Ok(exit) => exit,
        Err(error) if error.kind() == ErrorKind::TopicNotFound => Exit::TopicGone,
        Err(error) => Exit::Failed(error),
    }
}

impl<'a> Session<'a> {
    async fn join(
        member: &'a Arc<Member>,
        conn: Conn,
        name: &str,
        before: &mut Vec<String>,
    ) -> Result<(Self, Slot)> {
        let log = member.shared.keys.log(&member.topic.name, &member.group);
        let mut members = Members::new(name, Instant::now());
        let mut history = redis::cmd("XREVRANGE");
        history.arg(&log).arg("+").arg("-").arg("COUNT").arg(HISTORY);
        let mut entries = Entry::parse_all(conn.call(&history).await?)?;
        entries.reverse();
        let mut log_at = EntryId::default();
        for entry in &entries {
            members.hear(entry, Instant::now())?;
            log_at = entry.id;
        }
        let mut pipe = redis::pipe();
        for session in before.iter() {
            members.bury(session);
            pipe.add_command(say(&log, session, Say::Bye, [], member.ttl));
        }
        pipe.add_command(say(&log, name, Say::Join, [], member.ttl));
        pipe.add_command(register::newest(&member.shared.keys.meta(&member.topic.name)));
        // Noted before it is sent: where the answer is lost, the others may have heard the name and wait for its bearer.
        let told = before.len();
        before.push(name.to_owned());
        let sent = member.clock.now();
        let replies = conn.call_all(&pipe).await?;
        before.drain(..told);
        let partitions = check_topic(member, replies.last())?;
        // A topic that vanished between the first look and the join leaves the log that the join made behind; it
        // holds nothing but this member's words.
        let lease = Lease::new(member.clock.clone(), sent + member.lease_time());
        let heard = Arc::new(LogSink {
            outbox: Arc::clone(&member.outbox),
            entries: Mutex::default(),
            arrived: Notify::new(),
        });
        let slot = member.reads.add(SlotSpec {
            key: log.clone(),
            after: log_at,
            token: 0,
            // As much as of any other stream: a smaller share would have every busy stream read apart from it.
            most: usize::MAX,
            waits: false,
            sink: Arc::clone(&heard) as Arc<dyn Sink>,
        })?;
        member.begin(name, &conn, &lease);
        let now = Instant::now();
        let session = Self {
            member,
            conn,
            name: name.to_owned(),
            members,
            lease,
            log,
            log_at,
            heard,
            partitions,
            settled_at: now + SETTLE,
            dirty: true,
            look_again: None,
            next_heartbeat: now + member.heartbeat(),
        };
        Ok((session, slot))
    }

    async fn attend(&mut self, log_slot: &Slot) -> Result<Exit> {
        loop {
            if self.member.is_closing() {
                return match tokio::time::timeout(self.member.ttl, self.leave()).await {
                    Ok(left) => left.map(|()| Exit::Left),
                    Err(_) => Err(Error::timeout("leaving the group", self.member.ttl)),
                };
            }
            let entries = self.heard.drain();
            if !entries.is_empty() {
                for entry in &entries {
                    self.dirty |= self.members.hear(entry, Instant::now())?;
                    self.log_at = self.log_at.max(entry.id);
                }
                log_slot.more();
            }
            if self.member.take_unsure() {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "partitions were given back, and the server may not know it",
                ));
            }
            let now = Instant::now();
            if now >= self.next_heartbeat
                && let ControlFlow::Break(exit) = self.heartbeat().await?
            {
                return Ok(exit);
            }
            self.bury_the_silent().await?;
            if self.member.take_changed() {
                self.tell_owned().await?;
                self.dirty = true;
            }
            if self.look_again.is_some_and(|at| now >= at) {
                self.look_again = None;
                self.dirty = true;
            }
            if self.dirty && now >= self.settled_at {
                self.dirty = false;
                self.balance().await?;
                continue;
            }
            let mut wake_at = self.next_heartbeat;
            for at in [
                self.members.next_expiry().map(|at| at + Duration::from_millis(1)),
                self.look_again,
                self.dirty.then_some(self.settled_at),
            ]
            .into_iter()
            .flatten()
            {
                wake_at = wake_at.min(at);
            }
            tokio::select! {
                () = self.conn.ended() => return Err(error::broken(&self.member.shared.config.address())),
                () = self.heard.arrived.notified() => {}
                () = self.member.changed.notified() => {}
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Says that this member is alive, and learns whether the topic is.
    async fn heartbeat(&mut self) -> Result<ControlFlow<Exit>> {
        let mut pipe = redis::pipe();
        let owned = self.member.owned();
        pipe.add_command(say(&self.log, &self.name, Say::Alive, owned, self.member.ttl));
        pipe.add_command(register::newest(
            &self.member.shared.keys.meta(&self.member.topic.name),
        ));
        let sent = self.member.clock.now();
        let limit = self.lease.until().saturating_since(sent);
        let replies = match tokio::time::timeout(limit, self.conn.ask_all(&pipe)).await {
            Ok(replies) => replies?,
            Err(_) => return Err(Error::timeout("a heartbeat", limit)),
        };
        self.next_heartbeat = Instant::now() + self.member.heartbeat();
        let [said, meta] = replies.as_slice() else {
            return Err(error::protocol("other replies than were asked for"));
        };
        if let Reply::Refused(words) = meta {
            return Err(error::refused(words));
        }
        let partitions = match check_topic(self.member, Some(meta)) {
            Ok(partitions) => partitions,
            Err(error) if error.kind() == ErrorKind::TopicNotFound => {
                return Ok(ControlFlow::Break(Exit::TopicGone));
            }
            Err(error) => return Err(error),
        };
        match said {
            // Out of memory, say: nothing is corrupted, but the lease is not longer than it was.
            Reply::Refused(words) => {
                let error = error::refused(words);
                if !error.is_retryable() || !self.lease.stands_at(self.member.clock.now()) {
                    return Err(error);
                }
                tracing::warn!(%error, "a heartbeat was refused");
            }
            Reply::Nil => {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "the log of the group was removed from the server",
                ));
            }
            _ if !self.lease.renew(sent + self.member.lease_time()) => {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "the lease ran out before the heartbeat was answered",
                ));
            }
            _ => {}
        }
        if partitions != self.partitions {
            self.partitions = partitions;
            self.dirty = true;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Takes members for dead that said nothing for their time, if a read begun after that shows nothing either.
    async fn bury_the_silent(&mut self) -> Result<()> {
        let suspects = self.members.silent(Instant::now());
        if suspects.is_empty() {
            return Ok(());
        }
        let mut read = redis::cmd("XRANGE");
        read.arg(&self.log).arg(format!("({}", self.log_at)).arg("+");
        for entry in Entry::parse_all(self.conn.call(&read).await?)? {
            self.dirty |= self.members.hear(&entry, Instant::now())?;
            self.log_at = self.log_at.max(entry.id);
        }
        if self.members.expire(&suspects, Instant::now()) {
            tracing::info!(group = %self.member.group, "members were silent for too long");
            self.dirty = true;
        }
        Ok(())
    }

    async fn tell_owned(&self) -> Result<()> {
        let owned = self.member.owned();
        self.conn
            .call(&say(&self.log, &self.name, Say::Own, owned, self.member.ttl))
            .await?;
        Ok(())
    }

    /// Asks back what others should own, and takes what this member should.
    async fn balance(&mut self) -> Result<()> {
        let mine = self.member.owned();
        let target = self.members.target(self.partitions, &mine);
        self.member.revoke_all_but(&target);
        let wanted: Vec<u32> = target.difference(&mine).copied().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let taken = self.claim(&wanted).await?;
        if taken < wanted.len() {
            self.look_again = Some(Instant::now() + LOOK_AGAIN);
        }
        if taken > 0 {
            self.tell_owned().await?;
        }
        Ok(())
    }

    /// Takes partitions over whose owner has let go or is dead; returns how many.
    async fn claim(&mut self, wanted: &[u32]) -> Result<usize> {
        let member = self.member;
        let keys = &member.shared.keys;
        let topic = &member.topic;
        let mut pipe = redis::pipe();
        for partition in wanted {
            pipe.add_command(register::newest(&keys.register(
                &topic.name,
                *partition,
                &member.group,
            )));
            pipe.add_command(ask_bounds(&topic.key(keys, *partition)));
        }
        let replies = self.conn.ask_all(&pipe).await?;
        let mut claims = Vec::new();
        let mut pipe = redis::pipe();
        for (partition, pair) in wanted.iter().zip(replies.chunks_exact(2)) {
            let [register, bounds] = pair else { continue };
            if let Reply::Refused(words) = register {
                return Err(error::refused(words));
            }
            let bounds = read_bounds(topic, bounds)?;
            let stored = register::Position::read(register.clone())?;
            let stands = stored
                .as_ref()
                .filter(|(_, stored)| Some(&stored.topic_id) == topic.id());
            let epoch = stored.as_ref().map_or(0, |(id, _)| id.ms) + 1;
            let (mut position, clean) = match stands {
                Some((_, stored)) => {
                    let ttl = Duration::from_millis(stored.ttl);
                    if !self.members.is_over(&stored.owner, ttl, Instant::now()) {
                        continue;
                    }
                    (stored.clone(), stored.owner.is_empty())
                }
                // A partition that was added since the group began: none of its messages was skipped.
                None => {
                    let id = topic.id().cloned().ok_or_else(|| {
                        Error::unsupported("redis", "owning partitions of a stream that others made")
                    })?;
                    (register::Position::start(id, bounds.first), true)
                }
            };
            // The server may have lost the tail of its log: a position beyond the end would skip what comes next.
            if position.next > bounds.next {
                tracing::warn!(
                    partition,
                    position = position.next,
                    end = bounds.next,
                    "the position lies beyond the end, as after a loss of data; going on at the end"
                );
                position.next = bounds.next;
            }
            position.acked.retain(|range| range.end <= bounds.next);
            position.attempts.retain(|(offset, _)| *offset < bounds.next);
            position.owner.clone_from(&self.name);
            position.ttl = u64::try_from(member.ttl.as_millis()).unwrap_or(u64::MAX);
            let key = keys.register(&topic.name, *partition, &member.group);
            pipe.add_command(position.write(&key, EntryId { ms: epoch, seq: 0 }, stored.is_none()));
            claims.push((*partition, epoch, position, clean, bounds));
        }
        let replies = self.conn.ask_all(&pipe).await?;
        if !self.lease.stands_at(member.clock.now()) {
            return Err(Error::new(
                ErrorKind::Interrupted,
                "the lease ran out while partitions were taken over",
            ));
        }
        let mut refused = None;
        let mut taken = Vec::new();
        for (claim, reply) in claims.into_iter().zip(replies) {
            match reply {
                Reply::Refused(words) if error::is_stale_id(&words) => {}
                Reply::Refused(words) => refused = Some(error::refused(&words)),
                Reply::Nil => {}
                _ => taken.push(claim),
            }
        }
        let count = taken.len();
        let mut assignments = Vec::with_capacity(count);
        for (partition, epoch, position, clean, bounds) in taken {
            let id = AssignmentId { partition, epoch };
            let mut assignment = Assignment::new(id, position.next)
                .with_acked_above(position.acked.clone())
                .with_attempts(position.attempts.clone())
                .with_clean(clean)
                .with_lease(self.lease.clone());
            if let Some(topic_id) = topic.id() {
                assignment = assignment.with_topic_id(topic_id.clone());
            }
            assignments.push((assignment, position, bounds));
        }
        self.hand_over(assignments)?;
        match refused {
            Some(error) if error.is_retryable() => {
                tracing::warn!(%error, "partitions could not be taken over");
                Ok(count)
            }
            Some(error) => Err(error),
            None => Ok(count),
        }
    }

    /// Gives new assignments to the engine, and has them read.
    fn hand_over(&self, taken: Vec<(Assignment, register::Position, crate::topic::Bounds)>) -> Result<()> {
        if taken.is_empty() {
            return Ok(());
        }
        let member = self.member;
        let mut announced = Vec::with_capacity(taken.len());
        let mut trimmed = Vec::new();
        let mut slots = Vec::with_capacity(taken.len());
        for (assignment, stored, bounds) in taken {
            let id = assignment.id;
            let mut from = assignment.position;
            if from < bounds.first {
                trimmed.push((id, from, bounds.first));
                from = bounds.first;
            }
            let slot = Arc::new(member.reads.add(SlotSpec {
                key: member.topic.key(&member.shared.keys, id.partition),
                after: EntryId::before(from),
                token: 0,
                most: member.prefetch.messages,
                waits: true,
                sink: Arc::new(PartitionSink {
                    outbox: Arc::clone(&member.outbox),
                    id,
                }),
            })?);
            slots.push(Arc::clone(&slot));
            member.owns(Owned::new(id, stored, Arc::clone(&slot)));
            announced.push((assignment, slot));
        }
        // Calls for an assignment may come as soon as it is announced, and messages only after it.
        member.outbox.assigned(announced, member.prefetch);
        for (id, from, to) in trimmed {
            member.outbox.trimmed(id, from, to);
        }
        for slot in slots {
            slot.more();
        }
        Ok(())
    }

    /// Gives everything back and says goodbye.
    async fn leave(&mut self) -> Result<()> {
        let ids: Vec<AssignmentId> = self.member.assignments();
        let released = self.member.release(&ids).await;
        // Whoever has left owns nothing, whatever the registers say.
        self.conn
            .call(&say(&self.log, &self.name, Say::Bye, [], self.member.ttl))
            .await?;
        released
    }
}

/// Checks that the topic is the one that was opened, and returns how many partitions it has.
fn check_topic(member: &Member, meta: Option<&Reply>) -> Result<u32> {
    let meta = meta
        .cloned()
        .ok_or_else(|| error::protocol("no reply where one was asked for"))?;
    match register::Meta::read(meta)? {
        Some((_, meta)) if Some(&meta.topic_id) == member.topic.id() => Ok(meta.partitions),
        _ => Err(mq_api::driver::topic_not_found(&member.topic.name)),
    }
}

/// Stores where a new group begins, in every partition where nothing is stored yet.
pub(crate) async fn resolve_start(member: &Member, conn: &Conn, start: Position) -> Result<()> {
    let topic = &member.topic;
    let keys = &member.shared.keys;
    let topic_id = topic
        .id()
        .cloned()
        .ok_or_else(|| Error::unsupported("redis", "owning partitions of a stream that others made"))?;
    let mut asked = redis::pipe();
    for partition in 0..topic.partitions {
        asked.add_command(register::newest(&keys.register(
            &topic.name,
            partition,
            &member.group,
        )));
    }
    let replies = conn.call_all(&asked).await?;
    let mut writes = redis::pipe();
    for (partition, reply) in (0..topic.partitions).zip(replies) {
        let stored = register::Position::read(reply)?;
        let id = match &stored {
            Some((_, stored)) if stored.topic_id == topic_id => continue,
            // Left over from a topic of this name that was deleted: written over, not removed, so that of two
            // members that see it one is first.
            Some((id, _)) => EntryId {
                ms: id.ms + 1,
                seq: 0,
            },
            None => EntryId { ms: 0, seq: 1 },
        };
        let next = member.shared.resolve(conn, topic, partition, start).await?;
        let key = keys.register(&topic.name, partition, &member.group);
        writes.add_command(register::Position::start(topic_id.clone(), next).write(
            &key,
            id,
            stored.is_none(),
        ));
    }
    for reply in conn.ask_all(&writes).await? {
        match reply {
            // Another first member was faster: its start stands.
            Reply::Refused(words) if error::is_stale_id(&words) => {}
            Reply::Refused(words) => return Err(error::refused(&words)),
            _ => {}
        }
    }
    Ok(())
}

/// Partitions as a set, for those who compare.
pub(crate) type Partitions = BTreeSet<u32>;
