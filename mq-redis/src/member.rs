//! A member of a group: what outlives its sessions, and the task that begins them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{
    Clock, Error, ErrorKind, GroupName, Lease, Offset, Result,
    driver::{AssignmentId, Commit, CommitOutcome, Prefetch},
};
use tokio::sync::{Notify, watch};

use crate::{
    error,
    format::EntryId,
    link::{Backoff, Conn, is_passing},
    outbox::Outbox,
    reads::{Reads, Slot},
    register,
    resp::Reply,
    session::{self, Exit, Partitions},
    topic::{Shared, Topic},
    upkeep::OpenTopic,
};

/// Heartbeats come so many times in the time that a member may be silent.
const HEARTBEATS: u32 = 6;
/// The most sessions whose end is told with the next one; the times of the others run out.
const MOST_BEFORE: usize = 64;

/// Belongs to one consumer.
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reads: Reads,
    pub(crate) topic: Topic,
    pub(crate) group: GroupName,
    pub(crate) prefetch: Prefetch,
    pub(crate) clock: Clock,
    /// How long it may be silent before others take over.
    pub(crate) ttl: Duration,
    pub(crate) outbox: Arc<Outbox>,
    /// Wakes the session: something was released or lost, or the member is to leave.
    pub(crate) changed: Notify,
    closing: AtomicBool,
    told: AtomicBool,
    /// The registers may still name this session as the owner of what it has given back. Only its end helps then: the
    /// others wait for nobody who has said goodbye.
    unsure: AtomicBool,
    state: Mutex<State>,
    _open: OpenTopic,
}

#[derive(Default)]
struct State {
    session: Option<SessionRef>,
    owned: BTreeMap<u32, Owned>,
}

struct SessionRef {
    name: String,
    conn: Conn,
    lease: Lease,
}

/// A partition that this member owns, or is giving back.
pub(crate) struct Owned {
    id: AssignmentId,
    /// Numbers the writes under the epoch.
    seq: u64,
    stored: register::Position,
    revoking: bool,
    slot: Arc<Slot>,
}

impl Owned {
    pub(crate) fn new(id: AssignmentId, stored: register::Position, slot: Arc<Slot>) -> Self {
        Self {
            id,
            seq: 0,
            stored,
            revoking: false,
            slot,
        }
    }
}

impl Member {
    pub(crate) fn new(
        shared: Arc<Shared>,
        reads: Reads,
        open: OpenTopic,
        topic: Topic,
        subscription: &mq_api::driver::Subscription,
    ) -> Self {
        Self {
            ttl: subscription
                .session_timeout
                .unwrap_or(shared.config.session_timeout),
            shared,
            reads,
            topic,
            group: subscription.group.clone(),
            prefetch: subscription.prefetch,
            clock: subscription.clock.clone(),
            outbox: Arc::default(),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
            told: AtomicBool::new(true),
            unsure: AtomicBool::new(false),
            state: Mutex::default(),
            _open: open,
        }
    }

    /// Runs sessions until the member leaves, its topic is gone, or nothing can help. `ended` closes with it.
    pub(crate) async fn run(self: Arc<Self>, _ended: watch::Sender<()>) {
        // Sessions that nobody has been told the end of.
        let mut before: Vec<String> = Vec::new();
        let mut backoff = Backoff::new();
        let mut down = false;
        while !self.is_closing() {
            let name = format!("{:016x}", fastrand::u64(..));
            let conn = tokio::select! {
                conn = self.shared.link.conn() => conn,
                () = self.until_closing() => break,
            };
            let exit = match conn {
                Ok(conn) => {
                    let began = tokio::time::Instant::now();
                    let exit = session::run(&self, conn, &name, &mut before, &mut down).await;
                    if began.elapsed() > self.ttl {
                        backoff.reset();
                    }
                    exit
                }
                Err(error) => Exit::Failed(error),
            };
            self.end_session();
            if before.len() > MOST_BEFORE {
                before.drain(..before.len() - MOST_BEFORE);
            }
            match exit {
                Exit::Left => break,
                Exit::TopicGone => {
                    self.outbox.topic_gone();
                    break;
                }
                Exit::Failed(error) if self.is_closing() => {
                    tracing::debug!(%error, "a member could not say goodbye");
                    break;
                }
                Exit::Failed(error) if error.kind() == ErrorKind::Closed => break,
                Exit::Failed(error) if is_passing(&error) && error.kind() != ErrorKind::Protocol => {
                    tracing::debug!(%error, group = %self.group, "a session of a group ended");
                    down = true;
                    self.outbox.outage(Some(&error));
                    tokio::select! {
                        () = tokio::time::sleep(backoff.pause()) => {}
                        () = self.until_closing() => {}
                    }
                }
                Exit::Failed(error) => {
                    self.outbox.fail(error);
                    break;
                }
            }
        }
        self.end_session();
    }

    async fn until_closing(&self) {
        while !self.is_closing() {
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Asks the member to leave. It stays asked, whatever happens to connections.
    pub(crate) fn ask_to_leave(&self) {
        self.closing.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        self.ttl / HEARTBEATS
    }

    /// The lease ends a little before others may think so.
    pub(crate) fn lease_time(&self) -> Duration {
        self.ttl - self.ttl / 20
    }

    pub(crate) fn begin(&self, name: &str, conn: &Conn, lease: &Lease) {
        self.unsure.store(false, Ordering::Release);
        self.lock().session = Some(SessionRef {
            name: name.to_owned(),
            conn: conn.clone(),
            lease: lease.clone(),
        });
    }

    /// Ends what the last session had: nothing of it is handed out or read any more.
    fn end_session(&self) {
        let (session, owned) = {
            let mut state = self.lock();
            (state.session.take(), std::mem::take(&mut state.owned))
        };
        if let Some(session) = &session {
            session.lease.revoke();
        }
        let ids: Vec<AssignmentId> = owned.values().map(|owned| owned.id).collect();
        if !ids.is_empty() {
            self.outbox.lost(&ids);
        }
    }

    pub(crate) fn owns(&self, owned: Owned) {
        self.lock().owned.insert(owned.id.partition, owned);
    }

    pub(crate) fn owned(&self) -> Partitions {
        self.lock().owned.keys().copied().collect()
    }

    pub(crate) fn assignments(&self) -> Vec<AssignmentId> {
        self.lock().owned.values().map(|owned| owned.id).collect()
    }

    /// Tells the session, once, that what is owned has changed outside it.
    pub(crate) fn take_changed(&self) -> bool {
        !self.told.swap(true, Ordering::AcqRel)
    }

    fn tell_changed(&self) {
        self.told.store(false, Ordering::Release);
        self.changed.notify_one();
    }

    /// Tells whether something was given back of which the server may not know.
    pub(crate) fn take_unsure(&self) -> bool {
        self.unsure.swap(false, Ordering::AcqRel)
    }

    /// Asks back what is not to be kept.
    pub(crate) fn revoke_all_but(&self, keep: &Partitions) {
        let mut ids = Vec::new();
        for (partition, owned) in &mut self.lock().owned {
            if !keep.contains(partition) && !owned.revoking {
                owned.revoking = true;
                ids.push(owned.id);
            }
        }
        if !ids.is_empty() {
            self.outbox.revoked(ids);
        }
    }

    /// Writes registers for what is owned under the lease; returns the connection and what to expect.
    fn prepare(
        &self,
        ids: impl IntoIterator<Item = AssignmentId>,
        mut change: impl FnMut(AssignmentId, &mut register::Position),
    ) -> Result<(Conn, redis::Pipeline, Vec<bool>)> {
        let mut state = self.lock();
        let State { session, owned } = &mut *state;
        let Some(session) = session else {
            return Err(error::broken(&self.shared.config.address()));
        };
        let stands = session.lease.stands_at(self.clock.now());
        let mut pipe = redis::pipe();
        let mut sent = Vec::new();
        for id in ids {
            let mine = owned
                .get_mut(&id.partition)
                .filter(|owned| owned.id == id && stands);
            sent.push(mine.is_some());
            let Some(owned) = mine else { continue };
            owned.seq += 1;
            let mut position = owned.stored.clone();
            position.owner.clone_from(&session.name);
            change(id, &mut position);
            let key = self
                .shared
                .keys
                .register(&self.topic.name, id.partition, &self.group);
            let at = EntryId {
                ms: id.epoch,
                seq: owned.seq,
            };
            pipe.add_command(position.write(&key, at, false));
            owned.stored = position;
        }
        Ok((session.conn.clone(), pipe, sent))
    }

    pub(crate) async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let mut waiting = commits.iter();
        let prepared = self.prepare(commits.iter().map(|commit| commit.assignment), |id, position| {
            if let Some(commit) = waiting.find(|commit| commit.assignment == id) {
                position.next = commit.position;
                position.acked.clone_from(&commit.acked_above);
                position.attempts.clone_from(&commit.attempts);
            }
        });
        let sent = match prepared {
            Ok((conn, pipe, sent)) => conn.ask_all(&pipe).await.map(|replies| (replies, sent)),
            Err(error) => Err(error),
        };
        let (replies, sent) = match sent {
            Ok(sent) => sent,
            Err(error) => return commits.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut replies = replies.into_iter();
        let mut lost = Vec::new();
        let results = commits
            .iter()
            .zip(sent)
            .map(|(commit, sent)| {
                let reply = if sent { replies.next() } else { Some(Reply::Nil) };
                match reply {
                    Some(Reply::Refused(words)) if error::is_stale_id(&words) => {
                        lost.push(commit.assignment);
                        Ok(CommitOutcome::Lost)
                    }
                    Some(Reply::Refused(words)) => Err(error::refused(&words)),
                    // The register is gone, and with it the topic.
                    Some(Reply::Nil) => {
                        lost.push(commit.assignment);
                        Ok(CommitOutcome::Lost)
                    }
                    Some(_) => Ok(CommitOutcome::Stored),
                    None => Err(error::protocol("fewer replies than were asked for")),
                }
            })
            .collect();
        self.drop_owned(&lost);
        results
    }

    /// Gives assignments back: the position stays, the owner is nobody.
    pub(crate) async fn release(&self, ids: &[AssignmentId]) -> Result<()> {
        let (conn, pipe, _) = match self.prepare(ids.iter().copied(), |_, position| position.owner.clear()) {
            Ok(prepared) => prepared,
            // The session is over, and with it every assignment.
            Err(_) => return Ok(()),
        };
        self.drop_owned(ids);
        let mut unsure = Unsure(Some(self));
        let replies = conn.ask_all(&pipe).await?;
        self.tell_changed();
        for reply in replies {
            match reply {
                Reply::Refused(words) if error::is_stale_id(&words) => {}
                Reply::Refused(words) => return Err(error::refused(&words)),
                _ => {}
            }
        }
        unsure.0 = None;
        Ok(())
    }

    fn drop_owned(&self, ids: &[AssignmentId]) {
        let mut dropped = Vec::new();
        {
            let mut state = self.lock();
            for id in ids {
                if state
                    .owned
                    .get(&id.partition)
                    .is_some_and(|owned| owned.id == *id)
                {
                    dropped.extend(state.owned.remove(&id.partition));
                }
            }
        }
        self.outbox.forget(ids);
        if !dropped.is_empty() {
            self.tell_changed();
        }
    }

    pub(crate) async fn seek(
        &self,
        id: AssignmentId,
        to: mq_api::Position,
        generation: u64,
    ) -> Result<Offset> {
        let conn = {
            let state = self.lock();
            match (&state.session, state.owned.get(&id.partition)) {
                (Some(session), Some(owned)) if owned.id == id => session.conn.clone(),
                _ => return Err(gone(id)),
            }
        };
        let offset = self.shared.resolve(&conn, &self.topic, id.partition, to).await?;
        let slot = self.outbox.seek(id, offset, generation).ok_or_else(|| gone(id))?;
        slot.seek(EntryId::before(offset), generation);
        Ok(offset)
    }

    pub(crate) fn pause(&self, ids: &[AssignmentId], paused: bool) {
        let slots: Vec<Arc<Slot>> = {
            let state = self.lock();
            ids.iter()
                .filter_map(|id| {
                    state
                        .owned
                        .get(&id.partition)
                        .filter(|owned| owned.id == *id)
                        .map(|owned| Arc::clone(&owned.slot))
                })
                .collect()
        };
        for slot in slots {
            slot.pause(paused);
        }
    }
}

/// Has the session end where a release is not known to have been stored, be it that it was dropped half way.
struct Unsure<'a>(Option<&'a Member>);

impl Drop for Unsure<'_> {
    fn drop(&mut self) {
        if let Some(member) = self.0 {
            member.unsure.store(true, Ordering::Release);
            member.changed.notify_one();
        }
    }
}

fn gone(id: AssignmentId) -> Error {
    Error::new(
        ErrorKind::Interrupted,
        format!("partition {} is no longer this member's", id.partition),
    )
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("topic", &self.topic.name)
            .field("group", &self.group)
            .field("owned", &self.owned())
            .finish_non_exhaustive()
    }
}
