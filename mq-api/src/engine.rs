//! The delivery engine: everything between a driver's batches and a user's deliveries.
//!
//! All state of one group member lies in [`core::Core`] under one lock that is never held across a wait. A call that
//! wants a message takes what is ready, or drives the driver's events itself and waits to be woken straight by them;
//! [`task`] does what needs waiting or a timer: commits, releases, redeliveries, dead letters, leases, the end.

pub(crate) mod broadcast;
mod charge;
mod config;
mod core;
mod dead_letter;
mod item;
mod lanes;
#[cfg(test)]
mod model;
mod partition;
mod queue;
mod seat;
mod settle;
mod sync;
mod task;
#[cfg(test)]
mod tests;
mod turns;
mod waiters;
#[cfg(test)]
mod waiters_tests;
mod window;

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    sync::{oneshot, watch},
    task::yield_now,
};

pub(crate) use self::{
    config::EngineConfig,
    core::{Core, Counters, Handed, Place, Until},
    item::{Flag, Item, Source},
    queue::QueueEngine,
    settle::{Settle, Settlement},
};
pub use self::{
    config::{Backoff, DeadLetter},
    lanes::Ordering,
};
use self::{
    core::CommitWaiter,
    turns::Turns,
    waiters::{Entry, Waiters},
};
use crate::{
    Delivery, Error, ErrorKind, GroupName, Offset, Position, Result, TopicName,
    driver::{self, AssignmentId, Events},
    mq::MqInner,
};

/// Runs one group member.
pub(crate) struct Engine {
    core: Mutex<Core>,
    waiters: Arc<Waiters>,
    /// The last call that looked found nothing and had to wait: see [`expects`](Self::expects).
    idle: AtomicBool,
    /// Whether a call that finds nothing lets others go first.
    turns: Turns,
    topic: TopicName,
    group: GroupName,
    /// The result of closing, once there is one; every caller gets the same.
    closed: watch::Receiver<Option<Result<()>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("topic", &self.topic)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engine over a driver's consumer; its task runs until it is closed, ends or is let go.
    pub(crate) fn start(
        mq: &Arc<MqInner>,
        config: EngineConfig,
        driver: Arc<dyn driver::Consumer>,
        events: Box<dyn Events>,
    ) -> Arc<Self> {
        let waiters = Arc::new(Waiters::default());
        let (closed_sender, closed) = watch::channel(None);
        let (topic, group) = (config.topic.clone(), config.group.clone());
        let core = Core::new(
            config,
            Arc::clone(&mq.budget),
            Arc::clone(&driver),
            events,
            Arc::clone(&waiters),
        );
        let engine = Arc::new(Self {
            core: Mutex::new(core),
            waiters,
            idle: AtomicBool::new(false),
            turns: Turns::here(),
            topic,
            group,
            closed,
        });
        engine.lock().owner = Some(Arc::clone(&engine) as Arc<dyn Settle>);
        // The first look takes the assignments in.
        engine.waiters.fire();
        tokio::spawn(task::run(
            Arc::clone(&engine),
            Arc::clone(mq),
            driver,
            closed_sender,
        ));
        engine
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the state, then wakes the task where that left it something to do.
    #[inline]
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.lock();
        let result = work(&mut core);
        let kick = std::mem::take(&mut core.kick);
        let unarmed = core.unarmed;
        drop(core);
        if kick {
            self.waiters.kick();
        }
        if unarmed {
            // Should nobody come back for more, the task looks after the events in a while.
            self.waiters.tick();
        }
        result
    }

    /// Tells whether a call is likely to find something without waiting. Where it is not, [`wait`](Self::wait) looks as well
    /// and enters the call in the same go: one lock less a message for a member that keeps up with single sends.
    #[inline]
    pub(crate) fn expects(&self) -> bool {
        !self.idle.load(Relaxed)
    }

    #[inline]
    fn note_idle(&self, idle: bool) {
        if self.idle.load(Relaxed) != idle {
            self.idle.store(idle, Relaxed);
        }
    }

    /// Takes what is here or with the driver already, as the first look of [`wait`](Self::wait) does: no place among those
    /// who wait, no future, one lock. None too where the member has ended or has an error to tell, which `wait` then does.
    #[inline]
    pub(crate) fn take_now(&self, mut take: impl FnMut(&mut Core) -> bool) -> bool {
        let mut core = self.lock();
        // What is left undone here, `wait` does: it looks at all of it again.
        if !core.is_open() {
            return false;
        }
        core.drive_if_fired();
        // Before the driver is asked to tell of more, which is to be done only where the call then waits for that.
        if !core.has_ready() && self.turns.are_worth_it() && core.nothing_has_come() {
            return false;
        }
        let mut driven = false;
        while !take(&mut core) {
            // Whoever keeps up with the senders finds what comes only here, with the driver.
            if driven || !core.unarmed {
                return false;
            }
            driven = true;
            core.drive(Until::Ready);
        }
        let kick = std::mem::take(&mut core.kick);
        let (more, unarmed) = (core.may_have_more(), core.unarmed);
        drop(core);
        if kick {
            self.waiters.kick();
        }
        if unarmed {
            self.waiters.tick();
        }
        if more {
            self.waiters.nudge();
        }
        true
    }

    /// Waits until `take` returns something.
    ///
    /// Dropping the future loses nothing: `take` runs in one go with the return of its result.
    pub(crate) async fn wait<R>(&self, mut take: impl FnMut(&mut Core) -> Option<R>) -> Result<R> {
        let mut wait = self.begin_wait();
        poll_fn(|cx| self.poll_wait(cx, &mut wait, &mut take)).await
    }

    /// Begins a call that waits.
    #[inline]
    pub(crate) fn begin_wait(&self) -> Wait<'_> {
        Wait::new(&self.waiters)
    }

    /// Does what [`wait`](Self::wait) does; `wait` stands for the call until it is dropped.
    pub(crate) fn poll_wait<R>(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<'_>,
        mut take: impl FnMut(&mut Core) -> Option<R>,
    ) -> Poll<Result<R>> {
        if wait.entry.is_new() && self.turns.are_worth_it() && self.nothing_has_come() {
            wait.entry.gave_turn = true;
            if self.turns.on_one_thread() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Not until something has come: to take each message as it comes is slower for both sides than to let a few
            // gather.
            wait.turns = turns::AMONG_THREADS;
        }
        if wait.turns > 0 {
            wait.turns -= 1;
            return give_turn(cx);
        }
        self.poll_take(cx, &mut wait.entry, &mut take)
    }

    /// Tells whether nothing is here or with the driver, without a look that asks the driver to tell of more. `false` where
    /// that is not known, and where another call waits, which must be told of the next message.
    #[inline]
    fn nothing_has_come(&self) -> bool {
        let core = self.lock();
        core.nothing_has_come() && core.is_open() && !self.waiters.has_waiting()
    }

    fn poll_take<R>(
        &self,
        cx: &mut Context<'_>,
        entry: &mut Entry<'_>,
        take: &mut impl FnMut(&mut Core) -> Option<R>,
    ) -> Poll<Result<R>> {
        loop {
            let found = self.with(|core| {
                self.waiters.begin_look();
                core.check_open()?;
                // Who comes here has just looked, as a rule, and found nothing: a second look took 150 instructions.
                if core.may_bring() {
                    let before = core.came;
                    core.drive_if_fired();
                    if let Some(result) = take(core) {
                        if entry.gave_turn {
                            self.turns.found(core.has_ready() || core.came > before + 1);
                        }
                        return Ok(Look::Found(result, core.may_have_more()));
                    }
                }
                // As a rule that look has come to the end of what the driver has.
                if core.may_bring() {
                    while core.drive(Until::Ready) {
                        if let Some(result) = take(core) {
                            return Ok(Look::Found(result, core.may_have_more()));
                        }
                    }
                    // What the events brought counts more than an error that they brought behind it.
                    if let Some(result) = take(core) {
                        return Ok(Look::Found(result, core.has_ready()));
                    }
                    core.check_open()?;
                }
                // Under the lock: what is made ready from here on finds this call among those who wait.
                let first = !entry.has_entered();
                Ok(if entry.wait(cx.waker()) {
                    if first {
                        self.turns.waits(entry.gave_turn);
                    }
                    Look::Waits
                } else {
                    Look::Again
                })
            });
            match found {
                Err(error) => {
                    entry.looked();
                    return Poll::Ready(Err(error));
                }
                Ok(Look::Found(result, more)) => {
                    if !entry.looked() {
                        self.note_idle(false);
                    }
                    if more {
                        self.waiters.nudge();
                    }
                    return Poll::Ready(Ok(result));
                }
                Ok(Look::Waits) => {
                    self.note_idle(true);
                    return Poll::Pending;
                }
                Ok(Look::Again) => {}
            }
        }
    }

    /// Takes what is there without waiting.
    pub(crate) fn try_take<R>(&self, mut take: impl FnMut(&mut Core) -> Option<R>) -> Result<Option<R>> {
        self.with(|core| {
            core.check_open()?;
            core.drive_if_fired();
            if let Some(result) = take(core) {
                return Ok(Some(result));
            }
            while core.drive(Until::Ready) {
                if let Some(result) = take(core) {
                    return Ok(Some(result));
                }
            }
            Ok(take(core))
        })
    }

    /// Takes in what the driver has, then looks.
    pub(crate) fn try_drive<R>(&self, look: impl FnOnce(&mut Core) -> R) -> R {
        self.with(|core| {
            core.drive(Until::Empty);
            look(core)
        })
    }

    /// Tells whether a delivery was handed over here.
    pub(crate) fn owns(&self, delivery: &Delivery) -> bool {
        std::ptr::addr_eq(delivery.owner(), self)
    }

    /// Wakes waiting calls, as after a change that may have made something ready.
    pub(crate) fn wake_all(&self) {
        self.waiters.notify_all();
    }

    /// Wakes one waiting call, after a change of the state that may have made something ready.
    pub(crate) fn wake_one(&self) {
        self.waiters.nudge();
    }

    /// Moves a partition and waits for where it went. The move goes on if the future is dropped.
    pub(crate) async fn seek(&self, partition: u32, to: Position) -> Result<Offset> {
        let (done, moved) = oneshot::channel();
        self.with(|core| {
            core.check_alive()?;
            let id = core
                .partitions
                .get(partition as usize)
                .and_then(Option::as_ref)
                .map_or(AssignmentId { partition, epoch: 0 }, |entry| entry.id);
            core.ask_seek(id, to, Some(done))
        })?;
        let result = moved.await.unwrap_or_else(|_| Err(Error::closed("consumer")));
        self.wake_one();
        result
    }

    /// Waits until what is acked is stored and what is rejected is in the dead letters.
    pub(crate) async fn commit(&self) -> Result<()> {
        let (done, stored) = oneshot::channel();
        self.with(|core| {
            if core.closing {
                return Err(Error::closed("consumer"));
            }
            if let Some(error) = &core.terminal {
                return Err(error.clone());
            }
            if std::mem::take(&mut core.lost_acks) {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "a partition was lost before its acknowledgements were stored; their messages come again",
                ));
            }
            let needs = core
                .assigned()
                .filter(|partition| partition.commits.is_dirty())
                .map(|partition| (partition.id, partition.commits.version))
                .collect();
            let rejected = core
                .dead
                .iter()
                .map(|dead| (dead.item.source.assignment, dead.item.seq))
                .chain(core.burying.iter().copied())
                .collect();
            core.commit_waiters.push(CommitWaiter {
                needs,
                rejected,
                done,
            });
            core.commit_now();
            Ok(())
        })?;
        stored.await.unwrap_or_else(|_| Err(Error::closed("consumer")))
    }

    /// Asks for the end without waiting for it.
    pub(crate) fn ask_close(&self) {
        self.with(|core| {
            core.closing = true;
            core.kick = true;
        });
        self.waiters.notify_all();
    }

    /// Ends the member and waits for the end; every caller gets the same result.
    pub(crate) async fn close(&self) -> Result<()> {
        self.ask_close();
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // The runtime that the task ran in is gone, and the member with it.
            Err(_) => Err(Error::closed("consumer")),
        }
    }
}

/// Stands for a call that waits.
pub(crate) struct Wait<'a> {
    entry: Entry<'a>,
    /// The turns that it still gives away.
    turns: u32,
}

impl<'a> Wait<'a> {
    #[inline]
    fn new(waiters: &'a Waiters) -> Self {
        Self {
            entry: Entry::new(waiters),
            turns: 0,
        }
    }
}

/// Lets other tasks go first, and is polled again.
fn give_turn<T>(cx: &mut Context<'_>) -> Poll<T> {
    // It asks to be polled again, and holds nothing.
    let _ = pin!(yield_now()).poll(cx);
    Poll::Pending
}

/// What a call that wants something has found.
enum Look<R> {
    /// This, and perhaps more for others.
    Found(R, bool),
    /// Nothing: the call waits.
    Waits,
    /// Nothing, and something was noted meanwhile.
    Again,
}

impl Settle for Engine {
    fn settle(&self, item: &Item, how: Settlement) -> Result<()> {
        if self.with(|core| core.settle(item, how))? {
            self.waiters.nudge();
        }
        Ok(())
    }

    fn ack(&self, item: &Item) -> Result<()> {
        if self.with(|core| core.ack(item))? {
            self.waiters.nudge();
        }
        Ok(())
    }

    fn topic(&self) -> &TopicName {
        &self.topic
    }

    fn group(&self) -> &GroupName {
        &self.group
    }
}
