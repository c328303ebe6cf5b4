//! What the engine does that needs waiting or a timer.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::watch, time::Instant};

use super::{
    Engine,
    core::{Core, DeadItem, SeekRequest, Until},
    dead_letter::DeadLetters,
    item::Item,
};
use crate::{
    Error, ErrorKind, Offset, Result,
    driver::{self, AssignmentId, Commit, CommitOutcome},
    mq::MqInner,
};

/// How often noted events are looked at while no call waits for a message.
const TICK: Duration = Duration::from_millis(20);

/// How many dead letters are under way at once.
const MOST_BURIALS: usize = 64;

/// How long leaving the group may take at least, where storing has used up the time for closing.
const LEAVING: Duration = Duration::from_secs(1);

type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What a job has brought.
enum Done {
    Committed(Vec<(Commit, Result<CommitOutcome>)>),
    Released,
    Moved(SeekRequest, Result<Offset>),
    Buried(Item),
}

/// Runs until the member is closed, has ended, or is let go.
pub(super) async fn run(
    engine: Arc<Engine>,
    mq: Arc<MqInner>,
    driver: Arc<dyn driver::Consumer>,
    closed: watch::Sender<Option<Result<()>>>,
) {
    let dead_letters = Arc::new(DeadLetters::new(mq, &engine.lock().config));
    let mut task = Task {
        dead_letters,
        engine,
        driver,
        jobs: FuturesUnordered::new(),
        releasing: 0,
        tick: None,
        close_by: None,
    };
    let result = loop {
        let plan = task.step();
        if plan.finished {
            break task.leave().await;
        }
        let until = plan.deadline;
        tokio::select! {
            biased;
            Some(done) = task.jobs.next(), if !task.jobs.is_empty() => task.complete(done),
            () = task.engine.waiters.kicked() => {}
            () = sleep_until(until), if until.is_some() => {}
        }
    };
    task.forget();
    task.dead_letters.close().await;
    closed.send_replace(Some(result));
    task.engine.waiters.notify_all();
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

struct Task {
    engine: Arc<Engine>,
    driver: Arc<dyn driver::Consumer>,
    dead_letters: Arc<DeadLetters>,
    jobs: FuturesUnordered<Job>,
    releasing: usize,
    tick: Option<Instant>,
    close_by: Option<Instant>,
}

#[derive(Default)]
struct Plan {
    deadline: Option<Instant>,
    finished: bool,
}

impl Plan {
    fn wake_at(&mut self, at: Option<Instant>) {
        if let Some(at) = at {
            self.deadline = Some(self.deadline.map_or(at, |before| before.min(at)));
        }
    }
}

impl Task {
    /// Does everything that is due, starts the jobs that need waiting, and says when to look again.
    fn step(&mut self) -> Plan {
        let engine = Arc::clone(&self.engine);
        let mut core = engine.lock();
        let mut plan = Plan::default();
        let now = Instant::now();

        self.look(&mut core, now);
        plan.wake_at(self.tick);
        if core.terminal.is_some() && !core.closing {
            // An end by the backend: what is acked is stored if that still works, and calls return the error.
            engine.waiters.notify_all();
            if self.close_by.is_none() {
                self.close_by = Some(now + core.config.close_timeout);
            }
        }
        if core.closing && self.close_by.is_none() {
            self.close_by = Some(now + core.config.close_timeout);
            for partition in core.partitions.iter_mut().flatten() {
                partition.stop();
            }
        }
        self.watch_leases(&mut core, now, &mut plan);
        self.collect_due(&mut core, now, &mut plan);
        self.report_outage(&mut core, now, &mut plan);
        self.start_seeks(&mut core);
        self.start_burials(&mut core);
        self.start_commits(&mut core, now, &mut plan);
        self.start_releases(&mut core);
        self.answer_commits(&mut core);
        if let Some(by) = self.close_by {
            plan.wake_at(Some(by));
            let done = self.jobs.is_empty() && core.dead.is_empty() && !self.may_commit(&core);
            plan.finished = done || now >= by || core.terminal.is_some() && self.jobs.is_empty();
        }
        core.kick = false;
        let wake = core.has_ready();
        drop(core);
        if wake {
            engine.waiters.nudge();
        }
        plan
    }

    /// Takes in what the driver has where something was noted, and says when to look again.
    ///
    /// Ticking ends at a tick, not between two of them: a program that takes each message as it comes asks for a look with
    /// each and makes it needless before it takes place. To end and begin again with each took 2,100 instructions a message.
    fn look(&mut self, core: &mut Core, now: Instant) {
        let waiters = &self.engine.waiters;
        let due = self.tick.is_some_and(|at| at <= now);
        if waiters.look(core.unarmed) || due && !waiters.rest() {
            core.drive(Until::Empty);
            self.tick = Some(now + TICK);
            return;
        }
        if due {
            self.tick = None;
        }
        if self.tick.is_none() && waiters.is_ticking() {
            self.tick = Some(now + TICK);
        }
    }

    fn may_commit(&self, core: &Core) -> bool {
        core.assigned()
            .any(|partition| partition.commits.is_dirty() || partition.commits.under_way.is_some())
    }

    fn watch_leases(&self, core: &mut Core, now: Instant, plan: &mut Plan) {
        let clock_now = core.config.clock.now();
        let mut over = Vec::new();
        for partition in core.assigned() {
            if let Some(lease) = &partition.lease {
                if lease.stands_at(clock_now) {
                    plan.wake_at(Some(
                        now + lease.until().saturating_since(clock_now) + Duration::from_millis(1),
                    ));
                } else {
                    over.push(partition.id);
                }
            }
        }
        for id in over {
            core.lose(id, "its lease has run out");
        }
    }

    fn collect_due(&self, core: &mut Core, now: Instant, plan: &mut Plan) {
        let config = core.config.clone();
        let mut ready = Vec::new();
        let mut store = false;
        for partition in core
            .partitions
            .iter_mut()
            .flatten()
            .filter(|partition| !partition.revoking)
        {
            if partition.collect_due(now, &config) {
                ready.push(partition.id.partition);
                store |= !partition.storing.is_empty();
            }
            plan.wake_at(partition.next_due());
        }
        for partition in ready {
            core.make_ready(partition);
            core.news = true;
        }
        if store {
            core.commit_now();
        }
    }

    fn report_outage(&self, core: &mut Core, now: Instant, plan: &mut Plan) {
        let after = core.config.outage_after;
        let Some(outage) = core.outage.as_mut().filter(|outage| !outage.reported) else {
            return;
        };
        let at = outage.since + after;
        if now < at {
            plan.wake_at(Some(at));
            return;
        }
        outage.reported = true;
        let error = Error::new(
            ErrorKind::Connection,
            format!("the backend is out of reach for {after:?}"),
        )
        .with_source(outage.error.clone())
        .with_operation("consume");
        core.report = Some(error);
        self.engine.waiters.nudge();
    }

    fn start_seeks(&mut self, core: &mut Core) {
        for request in std::mem::take(&mut core.seeks) {
            let driver = Arc::clone(&self.driver);
            let limit = core.config.request_timeout;
            self.jobs.push(Box::pin(async move {
                let moving = driver.seek(request.id, request.to, request.generation);
                let result = crate::mq::deadline("seek", limit, moving).await;
                Done::Moved(request, result)
            }));
        }
    }

    fn start_burials(&mut self, core: &mut Core) {
        while core.burying.len() < MOST_BURIALS {
            let Some(dead) = core.dead.pop_front() else { return };
            let DeadItem {
                item,
                reason,
                attempts,
            } = dead;
            core.burying.push((item.source.assignment, item.seq));
            let letters = Arc::clone(&self.dead_letters);
            let engine = Arc::clone(&self.engine);
            self.jobs.push(Box::pin(async move {
                let failed = |error| {
                    engine.with(|core| {
                        core.counters.dead_letter_failures += 1;
                        core.last_error = Some(error);
                    });
                };
                letters.bury(&item, reason, attempts, failed).await;
                Done::Buried(item)
            }));
        }
    }

    fn start_commits(&mut self, core: &mut Core, now: Instant, plan: &mut Plan) {
        let closing = core.closing || core.terminal.is_some();
        let due = core.commit_due.is_some_and(|at| at <= now);
        if !due {
            plan.wake_at(core.commit_due);
        }
        let config = core.config.clone();
        let mut commits = Vec::new();
        let mut left = false;
        for partition in core.partitions.iter_mut().flatten() {
            let last = closing || partition.revoking;
            if !due && !last || !partition.commits.is_dirty() {
                continue;
            }
            if let Some(at) = partition.commits.retry_at.filter(|at| *at > now) {
                plan.wake_at(Some(at));
                left = true;
                continue;
            }
            match partition.build_commit(&config, last) {
                Some(commit) => commits.push(commit),
                None => left = true,
            }
        }
        if due {
            core.commits_collected();
            if left && !closing {
                // What could not go out now goes out after the commit that is under way.
                core.plan_commit();
                plan.wake_at(core.commit_due);
            }
        }
        if !commits.is_empty() {
            core.counters.commits += commits.len() as u64;
            let driver = Arc::clone(&self.driver);
            self.jobs.push(Box::pin(async move {
                let results = driver.commit(commits.clone()).await;
                let missing = || {
                    Err(Error::new(
                        ErrorKind::Other,
                        "the driver gave no result for a commit",
                    ))
                };
                let results = results.into_iter().chain(std::iter::repeat_with(missing));
                Done::Committed(commits.into_iter().zip(results).collect())
            }));
        }
    }

    fn start_releases(&mut self, core: &mut Core) {
        let mut ids = std::mem::take(&mut core.released);
        if !core.closing {
            for slot in &mut core.partitions {
                let done = slot.as_ref().is_some_and(|partition| {
                    partition.revoking
                        && !partition.commits.is_dirty()
                        && partition.commits.under_way.is_none()
                });
                if done {
                    ids.extend(slot.take().map(|partition| partition.id));
                }
            }
        }
        if ids.is_empty() {
            return;
        }
        self.releasing += 1;
        let driver = Arc::clone(&self.driver);
        let limit = core.config.request_timeout;
        self.jobs.push(Box::pin(async move {
            if let Err(error) = crate::mq::deadline("release", limit, driver.release(ids)).await {
                tracing::warn!(%error, "giving partitions back failed; their leases will run out");
            }
            Done::Released
        }));
    }

    fn answer_commits(&self, core: &mut Core) {
        let waiters = std::mem::take(&mut core.commit_waiters);
        for mut waiter in waiters {
            let still_dead = |id: &AssignmentId, seq: u64| {
                core.partition(*id)
                    .is_some_and(|partition| partition.window.is_pending(seq))
            };
            if !waiter.rejected.is_empty() {
                if waiter.rejected.iter().any(|(id, seq)| still_dead(id, *seq)) {
                    core.commit_waiters.push(waiter);
                    continue;
                }
                // They are in the dead letters; that they are done must be stored now.
                for (id, _) in std::mem::take(&mut waiter.rejected) {
                    if let Some(partition) = core.partition(id) {
                        waiter.needs.push((id, partition.commits.version));
                    }
                }
                core.commit_now();
                self.engine.waiters.kick();
            }
            let gone = waiter
                .needs
                .iter()
                .find(|(id, _)| core.partition(*id).is_none())
                .copied();
            if let Some((id, _)) = gone {
                let error = Error::new(
                    ErrorKind::Interrupted,
                    format!(
                        "partition {} was lost before its acknowledgements were stored",
                        id.partition
                    ),
                );
                let _ = waiter.done.send(Err(error.with_operation("commit")));
                continue;
            }
            waiter.needs.retain(|(id, version)| {
                core.partition(*id)
                    .is_some_and(|partition| partition.commits.stored < *version)
            });
            if waiter.needs.is_empty() {
                let _ = waiter.done.send(Ok(()));
            } else if !waiter.done.is_closed() {
                core.commit_waiters.push(waiter);
            }
        }
    }

    fn complete(&mut self, done: Done) {
        let engine = Arc::clone(&self.engine);
        let mut core = engine.lock();
        match done {
            Done::Committed(results) => {
                for (commit, result) in results {
                    self.committed(&mut core, &commit, result);
                }
            }
            Done::Released => self.releasing -= 1,
            Done::Moved(request, result) => core.move_done(request, result),
            Done::Buried(item) => {
                core.burying
                    .retain(|(id, seq)| *id != item.source.assignment || *seq != item.seq);
                core.buried(&item);
            }
        }
        core.kick = false;
    }

    fn committed(&self, core: &mut Core, commit: &Commit, result: Result<CommitOutcome>) {
        let id = commit.assignment;
        let auto_ack = core.config.auto_ack;
        match result {
            Ok(CommitOutcome::Stored) => {
                let waited_for = !core.commit_waiters.is_empty();
                if let Some(partition) = core.partition_mut(id) {
                    partition.commit_stored(commit.position, auto_ack);
                    if partition.commits.is_dirty() && waited_for {
                        core.commit_now();
                    }
                    core.make_ready(id.partition);
                }
            }
            Ok(CommitOutcome::Lost) => core.lose(id, "a commit was refused: another member has it"),
            Err(error) => {
                tracing::debug!(partition = id.partition, %error, "commit failed");
                core.counters.commit_failures += 1;
                let mut revoked = false;
                if let Some(partition) = core.partition_mut(id) {
                    partition.commit_failed(Instant::now());
                    revoked = partition.revoking;
                }
                if revoked && !error.is_retryable() && !core.closing {
                    // It will never be stored; holding the partition back helps nobody.
                    core.lose(id, "its last commit was refused");
                    core.released.push(id);
                }
                core.plan_commit();
                if !error.is_retryable() {
                    for waiter in std::mem::take(&mut core.commit_waiters) {
                        if waiter.needs.iter().any(|(other, _)| *other == id) {
                            let _ = waiter.done.send(Err(error.clone()));
                        } else {
                            core.commit_waiters.push(waiter);
                        }
                    }
                }
                core.last_error = Some(error);
            }
        }
    }

    /// Leaves the group and returns the result of closing.
    async fn leave(&mut self) -> Result<()> {
        let (terminal, unstored, limit) = {
            let core = self.engine.lock();
            let unstored = core
                .assigned()
                .filter(|partition| partition.commits.is_dirty())
                .count();
            let left = self
                .close_by
                .map_or(Duration::ZERO, |by| by.saturating_duration_since(Instant::now()));
            (core.terminal.clone(), unstored, left.max(LEAVING))
        };
        let left = crate::mq::deadline("leaving the group", limit, self.driver.close()).await;
        if terminal.is_some() {
            return Ok(());
        }
        if unstored > 0 {
            let last = self.engine.lock().last_error.clone();
            let error = Error::new(
                ErrorKind::Timeout,
                format!("closing: the acknowledgements of {unstored} partitions were not stored in time"),
            )
            .with_operation("close");
            return Err(match last {
                Some(cause) => error.with_source(cause),
                None => error,
            });
        }
        left.map_err(|error| error.with_operation("close"))
    }

    /// Lets go of everything that is held for deliveries.
    fn forget(&mut self) {
        let mut core = self.engine.lock();
        let closed = core.terminal.clone().unwrap_or_else(|| Error::closed("consumer"));
        core.owner = None;
        core.partitions.clear();
        core.dead.clear();
        core.burying.clear();
        for waiter in std::mem::take(&mut core.commit_waiters) {
            let _ = waiter.done.send(Err(closed.clone()));
        }
        for seek in std::mem::take(&mut core.seeks) {
            if let Some(done) = seek.done {
                let _ = done.send(Err(closed.clone()));
            }
        }
        core.let_go();
        drop(core);
        self.jobs.clear();
    }
}

impl Drop for Task {
    // The task was ended with its runtime: what is held would keep the driver's consumer, and its partitions, for ever.
    fn drop(&mut self) {
        let running = self.engine.lock().owner.is_some();
        if running {
            let error = Error::new(
                ErrorKind::Interrupted,
                "the runtime that the consumer ran in was shut down",
            );
            self.engine.lock().end(error.with_retryable(false));
            self.forget();
            self.engine.waiters.notify_all();
        }
    }
}
