//! The state of one group member, changed under one lock and without waiting.

mod events;
mod handover;
mod moves;
mod settling;

use std::{collections::VecDeque, sync::Arc, task::Waker};

pub(crate) use self::{handover::Place, settling::stale};
use tokio::{sync::oneshot, time::Instant};

use super::{config::EngineConfig, item::Item, partition::Partition, settle::Settle, waiters::Waiters};
use crate::{
    Error, Moment, Offset, Position, Result,
    budget::Budget,
    driver::{self, AssignmentId, Events},
    time::Tick,
};

/// How many messages one partition hands over before the next has its turn.
const TURN: u32 = 64;

/// How many events are taken in at a time, so that no caller works for all.
const MOST_EVENTS: usize = 64;

/// Says how far the driver's events are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Until there is something to hand over.
    Ready,
    /// Until there are no more.
    Empty,
}

/// Counts what has happened to a consumer since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) delivered: u64,
    pub(crate) acked: u64,
    pub(crate) nacked: u64,
    pub(crate) rejected: u64,
    pub(crate) redelivered: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) dead_letter_failures: u64,
    pub(crate) stale_acks: u64,
    pub(crate) trimmed: u64,
    pub(crate) commits: u64,
    pub(crate) commit_failures: u64,
}

/// Waits until what was acked before it is stored.
#[derive(Debug)]
pub(crate) struct CommitWaiter {
    /// What must be stored: the tenure and the version.
    pub(crate) needs: Vec<(AssignmentId, u64)>,
    /// What must be in the dead letters first.
    pub(crate) rejected: Vec<(AssignmentId, u64)>,
    pub(crate) done: oneshot::Sender<Result<()>>,
}

/// Asks for a move, and waits for where it went.
#[derive(Debug)]
pub(crate) struct SeekRequest {
    pub(crate) id: AssignmentId,
    pub(crate) to: Position,
    pub(crate) generation: u64,
    pub(crate) done: Option<oneshot::Sender<Result<Offset>>>,
}

/// A message on its way to the dead letters.
#[derive(Debug)]
pub(crate) struct DeadItem {
    pub(crate) item: Item,
    pub(crate) reason: &'static str,
    pub(crate) attempts: u32,
}

#[derive(Debug)]
pub(crate) struct Outage {
    pub(crate) since: Instant,
    pub(crate) error: Error,
    pub(crate) reported: bool,
}

/// Keeps everything about one member of a group.
pub(crate) struct Core {
    pub(crate) config: EngineConfig,
    budget: Arc<Budget>,
    /// None once the member is over: a delivery that is still held must not keep it.
    driver: Option<Arc<dyn driver::Consumer>>,
    events: Box<dyn Events>,
    waiters: Arc<Waiters>,
    waker: Waker,
    pub(crate) owner: Option<Arc<dyn Settle>>,
    pub(crate) partitions: Vec<Option<Partition>>,
    ready: VecDeque<u32>,
    turn: u32,
    /// Some assignment came with a lease.
    leases: bool,
    pub(crate) all_paused: bool,
    pub(crate) paused: Vec<u32>,
    pub(crate) released: Vec<AssignmentId>,
    pub(crate) seeks: Vec<SeekRequest>,
    pub(crate) dead: VecDeque<DeadItem>,
    /// Dead letters under way: tenure and sequence number.
    pub(crate) burying: Vec<(AssignmentId, u64)>,
    pub(crate) commit_waiters: Vec<CommitWaiter>,
    pub(crate) commit_due: Option<Instant>,
    unstored: usize,
    pub(crate) counters: Counters,
    pub(crate) outage: Option<Outage>,
    /// Acks were lost with a partition before they were stored, and no `commit` has told of it yet.
    pub(crate) lost_acks: bool,
    /// An error that one call is to return.
    pub(crate) report: Option<Error>,
    pub(crate) last_error: Option<Error>,
    pub(crate) terminal: Option<Error>,
    pub(crate) closing: bool,
    /// The engine's task has something new to do.
    pub(crate) kick: bool,
    /// The driver's events were left before they were empty, so that nobody is woken by the next one.
    pub(crate) unarmed: bool,
    /// Something has come since the clock was read for a hand-over.
    pub(crate) news: bool,
    /// Counts what the driver has brought.
    pub(crate) came: u64,
    /// When the clock was read, by its tick and exactly.
    stamp: Option<(Tick, Moment)>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("topic", &self.config.topic)
            .field("group", &self.config.group)
            .finish_non_exhaustive()
    }
}

/// A message that is handed over.
pub(crate) struct Handed {
    pub(crate) item: Item,
    pub(crate) attempt: u32,
}

impl Core {
    pub(crate) fn new(
        config: EngineConfig,
        budget: Arc<Budget>,
        driver: Arc<dyn driver::Consumer>,
        events: Box<dyn Events>,
        waiters: Arc<Waiters>,
    ) -> Self {
        let waker = Waker::from(Arc::clone(&waiters));
        Self {
            config,
            budget,
            driver: Some(driver),
            events,
            waiters,
            waker,
            owner: None,
            partitions: Vec::new(),
            ready: VecDeque::new(),
            turn: 0,
            leases: false,
            all_paused: false,
            paused: Vec::new(),
            released: Vec::new(),
            seeks: Vec::new(),
            dead: VecDeque::new(),
            burying: Vec::new(),
            commit_waiters: Vec::new(),
            commit_due: None,
            unstored: 0,
            counters: Counters::default(),
            outage: None,
            lost_acks: false,
            report: None,
            last_error: None,
            terminal: None,
            closing: false,
            kick: false,
            unarmed: false,
            news: true,
            came: 0,
            stamp: None,
        }
    }

    /// Tells whether the member has ended.
    pub(crate) fn check_alive(&self) -> Result<()> {
        match &self.terminal {
            _ if self.closing => Err(Error::closed("consumer")),
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Tells whether messages are handed over and there is no error to tell before.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        !self.closing && self.terminal.is_none() && self.report.is_none()
    }

    /// Tells why nothing is handed over any more.
    pub(crate) fn check_open(&mut self) -> Result<()> {
        if self.closing {
            return Err(Error::closed("consumer"));
        }
        match &self.terminal {
            Some(error) => Err(error.clone()),
            None => match self.report.take() {
                Some(error) => Err(error),
                None => Ok(()),
            },
        }
    }

    pub(crate) fn partition(&self, id: AssignmentId) -> Option<&Partition> {
        self.partitions
            .get(id.partition as usize)?
            .as_ref()
            .filter(|partition| partition.id == id)
    }

    pub(crate) fn partition_mut(&mut self, id: AssignmentId) -> Option<&mut Partition> {
        self.partitions
            .get_mut(id.partition as usize)?
            .as_mut()
            .filter(|partition| partition.id == id)
    }

    pub(crate) fn assigned(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().flatten()
    }

    /// Ends the consumer with an error that every call returns from now on.
    pub(crate) fn end(&mut self, error: Error) {
        if self.terminal.is_none() {
            tracing::warn!(topic = %self.config.topic, group = %self.config.group, %error, "consumer ended");
            self.last_error = Some(error.clone());
            self.terminal = Some(error);
            self.kick = true;
        }
    }

    /// Puts a partition into the round of those that have something to hand over.
    #[inline]
    pub(crate) fn make_ready(&mut self, partition: u32) {
        if let Some(Some(entry)) = self.partitions.get_mut(partition as usize)
            && !entry.in_ready
            && entry.may_have()
        {
            entry.in_ready = true;
            self.ready.push_back(partition);
        }
    }

    /// Tells whether another call may find something, now or with the driver.
    #[inline]
    pub(crate) fn may_have_more(&self) -> bool {
        self.has_ready() || self.unarmed
    }

    /// Tells whether a look may find something, here or with the driver.
    #[inline]
    pub(crate) fn may_bring(&self) -> bool {
        self.may_have_more() || self.waiters.has_fired()
    }

    /// Tells whether nothing is here, nor with the driver, which has not been asked to tell of more.
    #[inline]
    pub(crate) fn nothing_has_come(&self) -> bool {
        self.unarmed && !self.has_ready() && !self.waiters.has_fired() && self.events.is_empty()
    }

    /// Tells whether a waiting call may find something.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}
