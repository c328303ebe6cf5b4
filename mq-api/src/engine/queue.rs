//! The engine of the shared mode: members compete for single messages.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    Wait,
    config::EngineConfig,
    core::{Counters, DeadItem, Handed, stale},
    dead_letter::DeadLetters,
    item::{Flag, Item, Source},
    settle::{Settle, Settlement},
    waiters::Waiters,
};
use crate::{
    Error, ErrorKind, GroupName, Moment, Result, TopicName,
    driver::{self, AssignmentId, QueueConsumer, QueueReceipt, QueueRecord},
    mq::MqInner,
};

/// How many settlements go to the backend in one call.
const MOST_SETTLED: usize = 1024;

/// Runs one member of a shared group.
pub(crate) struct QueueEngine {
    state: Mutex<State>,
    waiters: Waiters,
    config: EngineConfig,
    closed: watch::Receiver<Option<Result<()>>>,
}

impl fmt::Debug for QueueEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueEngine")
            .field("topic", &self.config.topic)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    owner: Option<Arc<dyn Settle>>,
    next: u64,
    ready: VecDeque<Item>,
    held: HashMap<u64, Held>,
    acks: Vec<QueueReceipt>,
    nacks: Vec<(QueueReceipt, Duration)>,
    dead: VecDeque<DeadItem>,
    /// Settlements that were noted, and that are done, ever.
    noted: u64,
    done: u64,
    commit_waiters: Vec<(u64, oneshot::Sender<Result<()>>)>,
    counters: Counters,
    paused: bool,
    report: Option<Error>,
    last_error: Option<Error>,
    terminal: Option<Error>,
    outage: bool,
    closing: bool,
}

/// Keeps what is known of a message that this member has.
struct Held {
    receipt: QueueReceipt,
    attempt: u32,
    until: Moment,
    /// Since when a user has it; none while it only waits here.
    handed: Option<Instant>,
    extending: bool,
    /// It is on its way to the dead letters.
    burying: bool,
}

type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    Received(Result<Vec<QueueRecord>>),
    Acked(Vec<QueueReceipt>, Vec<Result<()>>),
    Nacked(Vec<(QueueReceipt, Duration)>, Vec<Result<()>>),
    Extended(Vec<u64>, Vec<Result<(QueueReceipt, Moment)>>),
    Taken(Vec<QueueRecord>, Vec<Result<()>>),
    Buried(Item),
}

impl QueueEngine {
    pub(crate) fn start(
        mq: &Arc<MqInner>,
        config: EngineConfig,
        driver: Arc<dyn QueueConsumer>,
    ) -> Arc<Self> {
        let (closed_sender, closed) = watch::channel(None);
        let engine = Arc::new(Self {
            state: Mutex::new(State::default()),
            waiters: Waiters::default(),
            config: config.clone(),
            closed,
        });
        engine.lock().owner = Some(Arc::clone(&engine) as Arc<dyn Settle>);
        let dead_letters = Arc::new(DeadLetters::new(Arc::clone(mq), &config));
        let task = Task {
            engine: Arc::clone(&engine),
            driver,
            dead_letters,
            jobs: FuturesUnordered::new(),
            receiving: false,
            settling: 0,
            burials: 0,
            retry_at: None,
            close_by: None,
        };
        tokio::spawn(task.run(closed_sender));
        engine
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for messages; dropping the future loses none.
    pub(crate) async fn take(&self, most: usize) -> Result<Vec<(Handed, Moment)>> {
        let mut wait = self.begin_wait();
        poll_fn(|cx| self.poll_take(cx, &mut wait, most)).await
    }

    /// Begins a call that waits.
    pub(crate) fn begin_wait(&self) -> Wait<'_> {
        Wait::new(&self.waiters)
    }

    /// Does what [`take`](Self::take) does; `wait` stands for the call until it is dropped.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<'_>,
        most: usize,
    ) -> Poll<Result<Vec<(Handed, Moment)>>> {
        loop {
            let found = self.try_take(most);
            let nothing = found.as_ref().is_ok_and(Vec::is_empty);
            if !nothing {
                wait.entry.looked();
                return Poll::Ready(found);
            }
            if wait.entry.wait(cx.waker()) {
                return Poll::Pending;
            }
        }
    }

    /// Takes what is here.
    pub(crate) fn try_take(&self, most: usize) -> Result<Vec<(Handed, Moment)>> {
        let mut state = self.lock();
        state.check_open()?;
        let now = self.config.clock.now();
        let mut found = Vec::new();
        while found.len() < most && !state.paused {
            let Some(item) = state.ready.pop_front() else {
                break;
            };
            let Some(held) = state.held.get_mut(&item.seq) else {
                continue;
            };
            let attempt = held.attempt;
            if held.until <= now {
                // The backend gives it to somebody else by now.
                state.held.remove(&item.seq);
                continue;
            }
            if self.config.max_attempts.is_some_and(|limit| attempt > limit) {
                state.bury(&self.config, item, "attempts", attempt - 1);
                continue;
            }
            held.handed = Some(Instant::now());
            state.counters.delivered += 1;
            state.counters.redelivered += u64::from(attempt > 1);
            if self.config.auto_ack {
                state.held.remove(&item.seq);
                state.counters.acked += 1;
            }
            found.push((Handed { item, attempt }, now));
        }
        let more = !state.ready.is_empty();
        drop(state);
        if !found.is_empty() {
            self.waiters.kick();
            if more {
                self.waiters.pass_on();
            }
        }
        Ok(found)
    }

    pub(crate) fn set_paused(&self, paused: bool) -> Result<()> {
        let mut state = self.lock();
        state.check_alive()?;
        state.paused = paused;
        drop(state);
        self.waiters.kick();
        self.waiters.notify_all();
        Ok(())
    }

    /// Waits until what was settled before is with the backend.
    pub(crate) async fn commit(&self) -> Result<()> {
        let (done, stored) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.closing {
                return Err(Error::closed("consumer"));
            }
            let noted = state.noted;
            state.commit_waiters.push((noted, done));
        }
        self.waiters.kick();
        stored.await.unwrap_or_else(|_| Err(Error::closed("consumer")))
    }

    pub(crate) fn ask_close(&self) {
        self.lock().closing = true;
        self.waiters.kick();
        self.waiters.notify_all();
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.ask_close();
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(Error::closed("consumer")),
        }
    }

    /// Returns the counters, how many wait here, how many a user has, whether there is an outage, and the last error.
    pub(crate) fn snapshot(&self) -> (Counters, usize, usize, bool, Option<Error>) {
        let state = self.lock();
        let handed = state.held.values().filter(|held| held.handed.is_some()).count();
        (
            state.counters,
            state.ready.len(),
            handed,
            state.outage,
            state.last_error.clone(),
        )
    }
}

impl State {
    /// Tells whether the member has ended.
    fn check_alive(&self) -> Result<()> {
        match &self.terminal {
            _ if self.closing => Err(Error::closed("consumer")),
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn check_open(&mut self) -> Result<()> {
        if self.closing {
            return Err(Error::closed("consumer"));
        }
        match (&self.terminal, self.report.take()) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(()),
        }
    }

    fn note_ack(&mut self, seq: u64) -> bool {
        let Some(held) = self.held.remove(&seq) else {
            return false;
        };
        self.acks.push(held.receipt);
        self.noted += 1;
        true
    }

    fn bury(&mut self, config: &EngineConfig, item: Item, reason: &'static str, attempts: u32) {
        if config.dead_letter.is_some() {
            self.noted += 1;
            if let Some(held) = self.held.get_mut(&item.seq) {
                held.burying = true;
            }
            self.dead.push_back(DeadItem {
                item,
                reason,
                attempts,
            });
            return;
        }
        tracing::warn!(
            offset = item.record().offset,
            attempts,
            reason,
            "message settled without a dead-letter topic"
        );
        self.note_ack(item.seq);
    }

    fn take_in(&mut self, records: Vec<QueueRecord>) {
        let Some(owner) = self.owner.clone() else { return };
        for record in records {
            let seq = self.next;
            self.next += 1;
            let source = Source {
                segment: driver::Held::One(record.record),
                owner: Arc::clone(&owner),
                assignment: AssignmentId {
                    partition: record.partition,
                    epoch: 0,
                },
                generation: 0,
                len: 1,
            };
            let held = Held {
                receipt: record.receipt,
                attempt: record.attempt,
                until: record.lease_until,
                handed: None,
                extending: false,
                burying: false,
            };
            self.held.insert(seq, held);
            self.ready.push_back(Item {
                source: Arc::new(source),
                index: 0,
                seq,
                weight: 0,
                stored: Flag::No,
            });
        }
    }
}

impl Settle for QueueEngine {
    fn settle(&self, item: &Item, how: Settlement) -> Result<()> {
        let mut state = self.lock();
        if state.closing {
            return Err(Error::closed("consumer"));
        }
        let now = self.config.clock.now();
        let live = state
            .held
            .get(&item.seq)
            .map(|held| (held.until > now, held.attempt));
        let (true, attempt) = live.unwrap_or((false, 0)) else {
            if self.config.auto_ack {
                return Ok(());
            }
            state.held.remove(&item.seq);
            state.counters.stale_acks += 1;
            return Err(stale(item));
        };
        match how {
            Settlement::Ack => {
                state.counters.acked += 1;
                state.note_ack(item.seq);
            }
            Settlement::Reject => {
                state.counters.rejected += 1;
                state.bury(&self.config, item.clone(), "rejected", attempt);
            }
            Settlement::Nack | Settlement::NackAfter(_) => {
                state.counters.nacked += 1;
                if self.config.max_attempts.is_some_and(|limit| attempt >= limit) {
                    state.bury(&self.config, item.clone(), "attempts", attempt);
                } else if let Some(held) = state.held.remove(&item.seq) {
                    let after = match how {
                        Settlement::NackAfter(after) => after,
                        _ => self.config.backoff.after(attempt),
                    };
                    state.nacks.push((held.receipt, after));
                    state.noted += 1;
                }
            }
        }
        drop(state);
        self.waiters.kick();
        Ok(())
    }

    fn topic(&self) -> &TopicName {
        &self.config.topic
    }

    fn group(&self) -> &GroupName {
        &self.config.group
    }
}

struct Task {
    engine: Arc<QueueEngine>,
    driver: Arc<dyn QueueConsumer>,
    dead_letters: Arc<DeadLetters>,
    jobs: FuturesUnordered<Job>,
    receiving: bool,
    settling: usize,
    burials: usize,
    retry_at: Option<Instant>,
    close_by: Option<Instant>,
}

impl Task {
    async fn run(mut self, closed: watch::Sender<Option<Result<()>>>) {
        loop {
            let (finished, deadline) = self.step();
            if finished {
                break;
            }
            tokio::select! {
                biased;
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.complete(done),
                () = self.engine.waiters.kicked() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
        let result = self.leave().await;
        closed.send_replace(Some(result));
        self.engine.waiters.notify_all();
    }

    fn step(&mut self) -> (bool, Instant) {
        const LOOK: Duration = Duration::from_millis(500);
        let engine = Arc::clone(&self.engine);
        let mut state = engine.lock();
        let now = Instant::now();
        engine.waiters.rest();
        let ending = state.closing || state.terminal.is_some();
        if ending && self.close_by.is_none() {
            self.close_by = Some(now + engine.config.close_timeout);
            let back: Vec<u64> = state
                .held
                .iter()
                .filter(|(_, held)| !held.burying)
                .map(|(seq, _)| *seq)
                .collect();
            let gone = state.terminal.is_some();
            for seq in back.into_iter().filter(|_| !gone) {
                if let Some(held) = state.held.remove(&seq) {
                    state.nacks.push((held.receipt, Duration::ZERO));
                    state.noted += 1;
                }
            }
            state.ready.clear();
        }
        let mut deadline = now + LOOK.min(self.driver.lease() / 4).max(Duration::from_millis(5));
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if let Some(at) = self.retry_at {
            deadline = deadline.min(at);
        }
        if !ending && !state.paused {
            self.receive(&state);
        }
        if !ending {
            self.extend(&mut state, now);
        }
        self.settle(&mut state);
        self.bury(&mut state);
        let (done, terminal) = (state.done, state.terminal.clone());
        for (noted, waiter) in std::mem::take(&mut state.commit_waiters) {
            if done >= noted {
                let _ = waiter.send(Ok(()));
            } else if let Some(error) = &terminal {
                let _ = waiter.send(Err(error.clone()));
            } else if !waiter.is_closed() {
                state.commit_waiters.push((noted, waiter));
            }
        }
        let finished = self.close_by.is_some_and(|by| {
            let idle = self.settling == 0 && self.burials == 0;
            deadline = deadline.min(by);
            now >= by
                || idle
                    && (terminal.is_some()
                        || state.acks.is_empty() && state.nacks.is_empty() && state.dead.is_empty())
        });
        (finished, deadline)
    }

    fn receive(&mut self, state: &State) {
        let room = self.engine.config.prefetch.saturating_sub(state.ready.len());
        let unacked = self.engine.config.max_unacked.saturating_sub(state.held.len());
        let most = room.min(unacked);
        if self.receiving || most == 0 {
            return;
        }
        self.receiving = true;
        let driver = Arc::clone(&self.driver);
        self.jobs.push(Box::pin(
            async move { Done::Received(driver.receive(most).await) },
        ));
    }

    /// Renews what is held and has used up half of its lease, unless its holder has had it for too long.
    fn extend(&mut self, state: &mut State, now: Instant) {
        let clock_now = self.engine.config.clock.now();
        let half = self.driver.lease() / 2;
        let max_hold = self.engine.config.max_hold;
        let mut seqs = Vec::new();
        let mut receipts = Vec::new();
        for (seq, held) in &mut state.held {
            let left = held.until.saturating_since(clock_now);
            let within = held
                .handed
                .is_none_or(|since| now.saturating_duration_since(since) < max_hold);
            if !held.extending && within && left < half && seqs.len() < MOST_SETTLED {
                held.extending = true;
                seqs.push(*seq);
                receipts.push(held.receipt.clone());
            }
        }
        if !seqs.is_empty() {
            let driver = Arc::clone(&self.driver);
            self.jobs.push(Box::pin(async move {
                Done::Extended(seqs, driver.extend(receipts).await)
            }));
        }
    }

    fn settle(&mut self, state: &mut State) {
        if self.retry_at.is_some() || self.settling > 0 {
            return;
        }
        if !state.acks.is_empty() {
            let most = state.acks.len().min(MOST_SETTLED);
            let acks: Vec<_> = state.acks.drain(..most).collect();
            let driver = Arc::clone(&self.driver);
            self.settling += 1;
            self.jobs.push(Box::pin(async move {
                let results = driver.ack(acks.clone()).await;
                Done::Acked(acks, results)
            }));
        }
        if !state.nacks.is_empty() {
            let most = state.nacks.len().min(MOST_SETTLED);
            let nacks: Vec<_> = state.nacks.drain(..most).collect();
            let driver = Arc::clone(&self.driver);
            self.settling += 1;
            self.jobs.push(Box::pin(async move {
                let results = driver.nack(nacks.clone()).await;
                Done::Nacked(nacks, results)
            }));
        }
    }

    fn bury(&mut self, state: &mut State) {
        while self.burials < 64 {
            let Some(DeadItem {
                item,
                reason,
                attempts,
            }) = state.dead.pop_front()
            else {
                return;
            };
            self.burials += 1;
            let letters = Arc::clone(&self.dead_letters);
            let engine = Arc::clone(&self.engine);
            self.jobs.push(Box::pin(async move {
                let failed = |error| {
                    let mut state = engine.lock();
                    state.counters.dead_letter_failures += 1;
                    state.last_error = Some(error);
                };
                letters.bury(&item, reason, attempts, failed).await;
                Done::Buried(item)
            }));
        }
    }

    fn complete(&mut self, done: Done) {
        let engine = Arc::clone(&self.engine);
        let mut state = engine.lock();
        match done {
            Done::Received(result) => {
                self.receiving = false;
                self.received(&mut state, result);
            }
            Done::Acked(receipts, results) => {
                self.settling -= 1;
                for (receipt, result) in receipts.into_iter().zip(results) {
                    if let Some(error) = self.settled(&mut state, result) {
                        state.acks.push(receipt);
                        state.last_error = Some(error);
                    }
                }
            }
            Done::Nacked(receipts, results) => {
                self.settling -= 1;
                for (nack, result) in receipts.into_iter().zip(results) {
                    if let Some(error) = self.settled(&mut state, result) {
                        state.nacks.push(nack);
                        state.last_error = Some(error);
                    }
                }
            }
            Done::Extended(seqs, results) => {
                for (seq, result) in seqs.into_iter().zip(results) {
                    let Some(held) = state.held.get_mut(&seq) else {
                        continue;
                    };
                    held.extending = false;
                    match result {
                        Ok((receipt, until)) => {
                            held.receipt = receipt;
                            held.until = until;
                        }
                        Err(error) if error.is_retryable() => {}
                        Err(_) => {
                            state.held.remove(&seq);
                        }
                    }
                }
            }
            Done::Taken(records, results) => {
                let mine = records
                    .into_iter()
                    .zip(results)
                    .filter(|(_, result)| result.is_ok());
                let mine: Vec<_> = mine.map(|(record, _)| record).collect();
                state.take_in(mine);
            }
            Done::Buried(item) => {
                self.burials -= 1;
                state.counters.dead_lettered += 1;
                // The burial was noted when it was asked for; its ack stands for it.
                if let Some(held) = state.held.remove(&item.seq) {
                    state.acks.push(held.receipt);
                } else {
                    state.done += 1;
                }
            }
        }
        let ready = !state.ready.is_empty() || state.report.is_some();
        let ended = state.terminal.is_some();
        drop(state);
        if ended {
            engine.waiters.notify_all();
        } else if ready {
            engine.waiters.notify();
        }
    }

    fn received(&mut self, state: &mut State, result: Result<Vec<QueueRecord>>) {
        match result {
            Ok(records) if self.engine.config.auto_ack => {
                state.outage = false;
                let driver = Arc::clone(&self.driver);
                self.jobs.push(Box::pin(async move {
                    let results = driver
                        .ack(records.iter().map(|record| record.receipt.clone()).collect())
                        .await;
                    Done::Taken(records, results)
                }));
            }
            Ok(records) => {
                state.outage = false;
                state.take_in(records);
            }
            Err(error) if error.is_retryable() => {
                state.last_error = Some(error.clone());
                if !std::mem::replace(&mut state.outage, true) {
                    state.report = Some(error.with_operation("consume"));
                }
            }
            Err(error) => {
                state.last_error = Some(error.clone());
                state.terminal = Some(error);
            }
        }
    }

    /// Counts a settlement; returns the error where it is to be tried again.
    fn settled(&mut self, state: &mut State, result: Result<()>) -> Option<Error> {
        match result {
            Ok(()) => {
                state.done += 1;
                None
            }
            Err(error) if error.is_retryable() => {
                state.counters.commit_failures += 1;
                self.retry_at = Some(Instant::now() + Duration::from_millis(100));
                Some(error)
            }
            Err(error) => {
                state.done += 1;
                if error.kind() == ErrorKind::StaleAck {
                    state.counters.stale_acks += 1;
                }
                state.last_error = Some(error);
                None
            }
        }
    }

    async fn leave(&mut self) -> Result<()> {
        let limit = self.engine.config.close_timeout;
        let left = crate::mq::deadline("leaving the group", limit, self.driver.close()).await;
        self.jobs.clear();
        self.dead_letters.close().await;
        let mut state = self.engine.lock();
        state.owner = None;
        state.ready.clear();
        state.held.clear();
        let unsettled = state.acks.len();
        let ended = state.terminal.is_some();
        for (_, waiter) in std::mem::take(&mut state.commit_waiters) {
            let _ = waiter.send(Err(Error::closed("consumer")));
        }
        drop(state);
        if ended {
            return Ok(());
        }
        if unsettled > 0 {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("closing: {unsettled} acknowledgements were not stored in time"),
            )
            .with_operation("close"));
        }
        left.map_err(|error| error.with_operation("close"))
    }
}

impl Drop for Task {
    /// A runtime that is shut down drops the task wherever it is: nothing may stay behind, and nobody may wait for it.
    fn drop(&mut self) {
        let mut state = self.engine.lock();
        if state.owner.take().is_some() && state.terminal.is_none() {
            let error = Error::new(
                ErrorKind::Interrupted,
                "the runtime of the consumer was shut down",
            );
            state.terminal = Some(error.with_retryable(false));
        }
        state.ready.clear();
        state.held.clear();
        state.commit_waiters.clear();
        drop(state);
        self.engine.waiters.notify_all();
    }
}
