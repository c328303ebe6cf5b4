//! A member of a group: what outlives its sessions, and the task that begins them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future;
use mq_api::{
    Clock, Error, ErrorKind, GroupName, Lease, Offset, Position, Result,
    driver::{AssignmentId, Commit, CommitOutcome, Prefetch},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::{
    error,
    flow::Flow,
    link::{Backoff, Link},
    outbox::Outbox,
    session::{self, Exit},
    tenure::Command,
    topic::Shared,
    watch::Open,
};

/// Belongs to one consumer.
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    /// The client's own for receiving, or one of this member alone.
    pub(crate) link: Arc<Link>,
    pub(crate) open: Arc<Open>,
    pub(crate) group: GroupName,
    pub(crate) prefetch: Prefetch,
    pub(crate) clock: Clock,
    pub(crate) outbox: Arc<Outbox>,
    /// Wakes the session: something was taken, released or lost, or the member is to leave.
    pub(crate) changed: Notify,
    closing: AtomicBool,
    told: AtomicBool,
    /// Held while a batch is copied into the queue of a shared group, until that is committed: where the member left in
    /// between, the next owner would copy it again.
    pub(crate) copying: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<(String, Lease)>,
    owned: BTreeMap<u32, Owned>,
}

/// A partition that this member owns, or is giving back.
pub(crate) struct Owned {
    id: AssignmentId,
    commands: mpsc::Sender<Command>,
    flow: Arc<Flow>,
    revoking: bool,
}

impl Owned {
    pub(crate) fn new(id: AssignmentId, commands: mpsc::Sender<Command>, flow: Arc<Flow>) -> Self {
        Self {
            id,
            commands,
            flow,
            revoking: false,
        }
    }
}

impl Member {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        link: Arc<Link>,
        open: Arc<Open>,
        subscription: &mq_api::driver::Subscription,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            link,
            open,
            group: subscription.group.clone(),
            prefetch: subscription.prefetch,
            clock: subscription.clock.clone(),
            outbox: Arc::default(),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
            told: AtomicBool::new(true),
            copying: tokio::sync::Mutex::default(),
            state: Mutex::default(),
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
                conn = self.link.conn() => conn,
                () = self.until_closing() => break,
            };
            let exit = match conn {
                Ok(conn) => {
                    if std::mem::take(&mut down) {
                        self.outbox.outage(None);
                    }
                    let began = tokio::time::Instant::now();
                    let exit = session::run(&self, conn, &name, &mut before).await;
                    if began.elapsed() > Duration::from_secs(5) {
                        backoff.reset();
                    }
                    exit
                }
                Err(error) => Exit::Failed(error),
            };
            self.end_session();
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
                Exit::Failed(error) if error::is_passing(&error) => {
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
        if !Arc::ptr_eq(&self.link, &self.shared.consume) {
            self.link.close().await;
        }
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

    pub(crate) fn begin(&self, name: &str, lease: &Lease) {
        self.lock().session = Some((name.to_owned(), lease.clone()));
    }

    /// Ends what the last session had: nothing of it is handed out any more.
    fn end_session(&self) {
        let (session, owned) = {
            let mut state = self.lock();
            (state.session.take(), std::mem::take(&mut state.owned))
        };
        if let Some((_, lease)) = &session {
            lease.revoke();
        }
        let ids: Vec<AssignmentId> = owned.values().map(|owned| owned.id).collect();
        if !ids.is_empty() {
            self.outbox.lost(&ids);
        }
    }

    /// Takes note of a partition; false where its session is over, or the member leaves: what it gives back then was
    /// told under the same lock.
    pub(crate) fn owns(&self, owned: Owned, session: &str) -> bool {
        let mut state = self.lock();
        let current = !self.is_closing() && state.session.as_ref().is_some_and(|(name, _)| name == session);
        if current {
            state.owned.insert(owned.id.partition, owned);
        }
        current
    }

    /// A partition is gone without having been given back.
    pub(crate) fn lose(&self, id: AssignmentId) {
        if self.drop_owned(&[id]).is_empty() {
            return;
        }
        self.outbox.lost(&[id]);
    }

    pub(crate) fn owned(&self) -> BTreeSet<u32> {
        self.lock().owned.keys().copied().collect()
    }

    pub(crate) fn assignments(&self) -> Vec<AssignmentId> {
        self.lock().owned.values().map(|owned| owned.id).collect()
    }

    /// Tells the session, once, that what is owned has changed outside it.
    pub(crate) fn take_changed(&self) -> bool {
        !self.told.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn tell_changed(&self) {
        self.told.store(false, Ordering::Release);
        self.changed.notify_one();
    }

    /// Asks back what is not to be kept.
    pub(crate) fn revoke_all_but(&self, keep: &BTreeSet<u32>) {
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

    fn find(&self, id: AssignmentId) -> Option<(mpsc::Sender<Command>, Arc<Flow>, Lease)> {
        let state = self.lock();
        let (_, lease) = state.session.as_ref()?;
        let owned = state.owned.get(&id.partition).filter(|owned| owned.id == id)?;
        Some((owned.commands.clone(), Arc::clone(&owned.flow), lease.clone()))
    }

    /// Tells whether an assignment is this member's, and its lease stands.
    pub(crate) fn has(&self, id: AssignmentId) -> bool {
        self.find(id)
            .is_some_and(|(_, _, lease)| lease.stands_at(self.clock.now()))
    }

    pub(crate) async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        future::join_all(commits.into_iter().map(|commit| self.commit_one(commit))).await
    }

    async fn commit_one(&self, commit: Commit) -> Result<CommitOutcome> {
        let Some((commands, _, lease)) = self.find(commit.assignment) else {
            return Ok(CommitOutcome::Lost);
        };
        if !lease.stands_at(self.clock.now()) {
            return Ok(CommitOutcome::Lost);
        }
        let (reply, answer) = oneshot::channel();
        if commands
            .send(Command::Commit(Box::new(commit), reply))
            .await
            .is_err()
        {
            return Ok(CommitOutcome::Lost);
        }
        let limit = self.shared.config.request_timeout;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(Err(error))) if error.kind() == ErrorKind::TopicNotFound => Ok(CommitOutcome::Lost),
            Ok(Ok(stored)) => stored,
            // The tenure ended with the session.
            Ok(Err(_)) => Ok(CommitOutcome::Lost),
            Err(_) => Err(Error::timeout("a commit", limit)),
        }
    }

    /// Gives assignments back: the position stays, the owner is nobody.
    pub(crate) async fn release(&self, ids: &[AssignmentId]) -> Result<()> {
        let dropped = self.drop_owned(ids);
        let limit = self.shared.config.request_timeout;
        let released = future::join_all(dropped.into_iter().map(|owned| async move {
            let (reply, answer) = oneshot::channel();
            if owned.commands.send(Command::Release(reply)).await.is_err() {
                return Ok(());
            }
            match tokio::time::timeout(limit, answer).await {
                Ok(Ok(released)) => released,
                // The session is over, and with it every assignment.
                Ok(Err(_)) => Ok(()),
                Err(_) => Err(Error::timeout("giving a partition back", limit)),
            }
        }))
        .await;
        self.tell_changed();
        released.into_iter().collect()
    }

    fn drop_owned(&self, ids: &[AssignmentId]) -> Vec<Owned> {
        let dropped: Vec<Owned> = {
            let mut state = self.lock();
            ids.iter()
                .filter_map(|id| {
                    state.owned.get(&id.partition).filter(|owned| owned.id == *id)?;
                    state.owned.remove(&id.partition)
                })
                .collect()
        };
        self.outbox.forget(ids);
        dropped
    }

    pub(crate) async fn seek(&self, id: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        let (_, flow, _) = self.find(id).ok_or_else(|| gone(id))?;
        let offset = self.shared.resolve(&self.open.topic, id.partition, to).await?;
        if !self.outbox.seek(id, offset, generation) {
            return Err(gone(id));
        }
        flow.seek(offset, generation);
        Ok(offset)
    }

    pub(crate) fn pause(&self, ids: &[AssignmentId], paused: bool) {
        for (_, flow, _) in ids.iter().filter_map(|id| self.find(*id)) {
            flow.pause(paused);
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
            .field("topic", &self.open.topic.name)
            .field("group", &self.group)
            .field("owned", &self.owned())
            .finish_non_exhaustive()
    }
}
