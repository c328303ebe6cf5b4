//! Broadcast: every member sees every message.
//!
//! There is no group on the backend: this adapter gives the engine a driver's consumer that is made of a reader. It
//! owns every partition for as long as it lives, so nothing is ever revoked, and positions are kept nowhere.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt, mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, OnceCell, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    Error, ErrorKind, Offset, PartitionDescription, Position, Result, TopicId, TopicName,
    driver::{
        self, Assignment, AssignmentId, Batch, Commit, CommitOutcome, Event, FetchRequest, Fetched, Prefetch,
        Subscription, invalid_partition,
    },
};

/// How long one fetch waits for the next message before it is repeated.
const LONG_POLL: Duration = Duration::from_secs(5);

/// How often the topic is looked at for partitions that were added, and for its end.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The first pause after a fetch that failed, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A partition is this member's once and for good.
const EPOCH: u64 = 1;

/// Opens a member that sees every message of the topic from its start on. When this returns, the start of every
/// partition is an offset, so `Latest` leaves out nothing that is produced afterwards.
///
/// Dropping the future, or both of what it returns, leaves no task behind.
pub(crate) async fn join(
    driver: &Arc<dyn driver::Mq>,
    subscription: &Subscription,
) -> Result<(Arc<dyn driver::Consumer>, Box<dyn driver::Events>)> {
    if let Some((name, _)) = subscription.properties.first() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("property {name:?}: broadcast mode takes no properties"),
        ));
    }
    let topic = &subscription.topic;
    let reader = driver.reader(topic.clone()).await?;
    let description = driver.describe_topic(topic.clone()).await?;
    let mut tenures = Vec::with_capacity(description.partitions.len());
    for partition in &description.partitions {
        let position = resolve(&*reader, partition, subscription.start).await?;
        tenures.push(Tenure::new(partition.partition, position));
    }
    let shared = Arc::new(Shared {
        driver: Arc::clone(driver),
        reader,
        topic: topic.clone(),
        topic_id: description.id,
        prefetch: subscription.prefetch,
        stop: watch::Sender::new(false),
        state: Mutex::default(),
    });
    let partitions = tenures.len();
    shared.assign(tenures);
    let tasks = tokio::spawn(supervise(Arc::clone(&shared), partitions));
    let events = BroadcastEvents(Handle(Arc::clone(&shared)));
    let consumer = BroadcastConsumer {
        handle: Handle(shared),
        tasks: tokio::sync::Mutex::new(tasks),
        closed: OnceCell::new(),
    };
    Ok((Arc::new(consumer), Box::new(events)))
}

/// The member as the engine controls it.
struct BroadcastConsumer {
    handle: Handle,
    tasks: tokio::sync::Mutex<JoinHandle<()>>,
    closed: OnceCell<Result<()>>,
}

#[async_trait]
impl driver::Consumer for BroadcastConsumer {
    /// Stores nothing: a member that comes back begins at its start again.
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let state = self.handle.0.lock();
        let outcome = |commit: &Commit| match state.tenure(commit.assignment) {
            Some(_) => Ok(CommitOutcome::Stored),
            None => Ok(CommitOutcome::Lost),
        };
        commits.iter().map(outcome).collect()
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        let mut dropped = Vec::new();
        let mut state = self.handle.0.lock();
        for id in assignments {
            if let Some(tenure) = state.tenure_mut(id) {
                tenure.released = true;
                dropped.push(tenure.clear());
                tenure.wake.notify_one();
                state.works_again(id.partition);
            }
        }
        state.wake_after(dropped);
        Ok(())
    }

    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        let shared = &self.handle.0;
        let bounds = shared.reader.bounds().await?;
        let Some(&(first, next)) = bounds.get(assignment.partition as usize) else {
            let partitions = u32::try_from(bounds.len()).unwrap_or(u32::MAX);
            return Err(invalid_partition(&shared.topic, assignment.partition, partitions));
        };
        let partition = PartitionDescription::new(assignment.partition, first, next);
        let offset = resolve(&*shared.reader, &partition, to).await?;
        let mut state = shared.lock();
        if state.end.is_some() {
            return Err(Error::closed("consumer"));
        }
        let Some(tenure) = state.tenure_mut(assignment) else {
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!("partition {} was given back", assignment.partition),
            ));
        };
        // The later of two seeks that overtake each other is the one with the higher generation.
        if generation < tenure.generation {
            return Ok(offset);
        }
        tenure.generation = generation;
        tenure.position = offset;
        let dropped = tenure.clear();
        tenure.wake.notify_one();
        drop(state);
        drop(dropped);
        Ok(offset)
    }

    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        let mut state = self.handle.0.lock();
        for &id in assignments {
            let Some(tenure) = state.tenure_mut(id) else {
                continue;
            };
            tenure.paused = paused;
            if !paused {
                tenure.feed();
                state.list(id.partition);
            }
        }
        state.wake_after(());
    }

    async fn close(&self) -> Result<()> {
        self.handle.0.end(End::Closed);
        let close = async {
            // It ended by a panic of a driver at worst, which the events have told.
            let _ = (&mut *self.tasks.lock().await).await;
            self.handle.0.reader.close().await
        };
        self.closed.get_or_init(|| close).await.clone()
    }
}

impl fmt::Debug for BroadcastConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastConsumer")
            .field("topic", &self.handle.0.topic)
            .finish_non_exhaustive()
    }
}

/// What happens to the member.
struct BroadcastEvents(Handle);

impl driver::Events for BroadcastEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let mut state = self.0.0.lock();
        if let Some(event) = state.next() {
            return Poll::Ready(event);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// Ends the member when the engine lets go of it.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.end(End::Closed);
    }
}

/// What the handles and the tasks have in common.
struct Shared {
    driver: Arc<dyn driver::Mq>,
    reader: Arc<dyn driver::Reader>,
    topic: TopicName,
    topic_id: Option<TopicId>,
    prefetch: Prefetch,
    stop: watch::Sender<bool>,
    state: Mutex<State>,
}

/// How the member ended; told once by the events, and `Closed` from then on.
enum End {
    TopicGone,
    Failed(Error),
    Closed,
}

#[derive(Default)]
struct State {
    control: VecDeque<Event>,
    end: Option<End>,
    /// By partition.
    tenures: Vec<Tenure>,
    /// Partitions that have something to hand over and are not paused, each once, in turn.
    ready: VecDeque<u32>,
    /// Partitions whose last fetch failed.
    failing: BTreeSet<u32>,
    waker: Option<Waker>,
}

/// One partition as this member has it.
struct Tenure {
    id: AssignmentId,
    generation: u64,
    /// What to fetch next.
    position: Offset,
    paused: bool,
    released: bool,
    /// Whether the partition stands in `State::ready`.
    listed: bool,
    /// Whether the task sleeps because it is paused or has no room.
    starved: bool,
    queue: VecDeque<Queued>,
    messages: usize,
    bytes: usize,
    /// Wakes the partition's task, its only waiter.
    wake: Arc<Notify>,
}

/// A batch or a `Trimmed`, which keeps its place among the batches.
struct Queued {
    event: Event,
    messages: usize,
    bytes: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over partitions that follow those it has, and tells so.
    fn assign(&self, tenures: Vec<Tenure>) {
        let mut state = self.lock();
        let assignments = tenures.iter().map(|tenure| {
            let assignment = Assignment::new(tenure.id, tenure.position);
            match &self.topic_id {
                Some(id) => assignment.with_topic_id(id.clone()),
                None => assignment,
            }
        });
        let event = Event::Assigned(assignments.collect());
        state.control.push_back(event);
        state.tenures.extend(tenures);
        state.wake_after(());
    }

    /// Ends the member; the first reason counts.
    fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(end);
        }
        state.wake_after(());
        self.stop.send_replace(true);
    }

    /// Ends the member where an error is for good; `true` where trying again may help.
    fn survives(&self, error: &Error) -> bool {
        if error.kind() == ErrorKind::TopicNotFound {
            self.end(End::TopicGone);
        } else if !error.is_retryable() {
            self.end(End::Failed(error.clone()));
        }
        error.kind() != ErrorKind::TopicNotFound && error.is_retryable()
    }

    /// Says what a partition's task is to do.
    fn plan(&self, partition: u32) -> Plan {
        let mut state = self.lock();
        // After a failure an answer without messages tells that the backend is back.
        let wait = if state.failing.contains(&partition) {
            Duration::ZERO
        } else {
            LONG_POLL
        };
        let Some(tenure) = state.tenures.get_mut(partition as usize) else {
            return Plan::End;
        };
        if tenure.released {
            return Plan::End;
        }
        // Room is used only when half of it is free, so that a slow reader does not make many tiny fetches.
        let room = self.prefetch;
        if tenure.paused || tenure.messages > room.messages / 2 || tenure.bytes > room.bytes / 2 {
            tenure.starved = true;
            return Plan::Wait(Arc::clone(&tenure.wake));
        }
        let from = Position::Offset(tenure.position);
        let messages = room.messages.saturating_sub(tenure.messages).max(1);
        let mut request = FetchRequest::new(partition, from, messages).with_wait(wait);
        request.max_bytes = room.bytes.saturating_sub(tenure.bytes).max(1);
        Plan::Fetch {
            request,
            from: tenure.position,
            generation: tenure.generation,
            wake: Arc::clone(&tenure.wake),
        }
    }

    fn is_current(&self, partition: u32, generation: u64) -> bool {
        let state = self.lock();
        let tenure = state.tenures.get(partition as usize);
        tenure.is_some_and(|tenure| tenure.is_current(generation))
    }

    /// Fetches, and looks whether what was skipped was removed by retention or never there.
    async fn fetch(&self, request: FetchRequest, from: Offset) -> Result<(Option<Offset>, Fetched)> {
        let partition = request.partition as usize;
        let fetched = self.reader.fetch(request).await?;
        let first = fetched
            .records
            .iter()
            .next()
            .map_or(fetched.next_offset, |record| record.offset);
        let mut trimmed = None;
        if first > from {
            let retained = self.reader.bounds().await?.get(partition).map(|bounds| bounds.0);
            // Retention may have gone on since: what was fetched counts as there.
            trimmed = retained
                .map(|retained| retained.min(first))
                .filter(|to| *to > from);
        }
        Ok((trimmed, fetched))
    }

    /// Queues what a fetch brought, unless a seek or a release has overtaken it.
    fn queue(
        &self,
        partition: u32,
        generation: u64,
        from: Offset,
        (trimmed, fetched): (Option<Offset>, Fetched),
    ) {
        let bytes = fetched.records.iter().map(|record| record.message.weight()).sum();
        let mut state = self.lock();
        state.works_again(partition);
        let Some(tenure) = state.tenures.get_mut(partition as usize) else {
            return;
        };
        if !tenure.is_current(generation) {
            return state.wake_after(fetched);
        }
        let id = tenure.id;
        if let Some(to) = trimmed {
            tenure.queue.push_back(Queued {
                event: Event::Trimmed {
                    assignment: id,
                    from,
                    to,
                },
                messages: 0,
                bytes: 0,
            });
        }
        let next = fetched.next_offset.max(from);
        tenure.position = next;
        if next > from {
            let messages = fetched.records.len();
            tenure.messages += messages;
            tenure.bytes += bytes;
            tenure.queue.push_back(Queued {
                event: Event::Batch(Batch::new(id, generation, fetched.records, next)),
                messages,
                bytes,
            });
        }
        state.list(partition);
        state.wake_after(());
    }

    /// Notes that a partition cannot be fetched for now, and tells it if it is the first.
    fn fails(&self, partition: u32, error: Error) {
        let mut state = self.lock();
        let first = state.failing.is_empty();
        state.failing.insert(partition);
        if first {
            // An end of the last outage that nobody has read yet makes it one outage.
            if matches!(state.control.back(), Some(Event::Recovered)) {
                state.control.pop_back();
            } else {
                state.control.push_back(Event::Outage(error));
            }
            state.wake_after(());
        }
    }
}

impl State {
    fn tenure(&self, id: AssignmentId) -> Option<&Tenure> {
        let tenure = self.tenures.get(id.partition as usize)?;
        (tenure.id == id && !tenure.released).then_some(tenure)
    }

    fn tenure_mut(&mut self, id: AssignmentId) -> Option<&mut Tenure> {
        let tenure = self.tenures.get_mut(id.partition as usize)?;
        (tenure.id == id && !tenure.released).then_some(tenure)
    }

    /// Notes that a partition is in order, and tells it if it was the last one that was not.
    fn works_again(&mut self, partition: u32) {
        if self.failing.remove(&partition) && self.failing.is_empty() {
            if matches!(self.control.back(), Some(Event::Outage(_))) {
                self.control.pop_back();
            } else {
                self.control.push_back(Event::Recovered);
            }
        }
    }

    /// Puts a partition in line if it has something to hand over.
    fn list(&mut self, partition: u32) {
        if let Some(tenure) = self.tenures.get_mut(partition as usize)
            && !tenure.paused
            && !tenure.listed
            && !tenure.queue.is_empty()
        {
            tenure.listed = true;
            self.ready.push_back(partition);
        }
    }

    /// Takes the next event: control, then the end, then messages of the partitions in turn.
    fn next(&mut self) -> Option<Result<Event>> {
        if let Some(event) = self.control.pop_front() {
            return Some(Ok(event));
        }
        if let Some(end) = &mut self.end {
            return Some(match mem::replace(end, End::Closed) {
                End::TopicGone => Ok(Event::TopicGone),
                End::Failed(error) => Err(error),
                End::Closed => Err(Error::closed("consumer")),
            });
        }
        while let Some(partition) = self.ready.pop_front() {
            let Some(tenure) = self.tenures.get_mut(partition as usize) else {
                continue;
            };
            tenure.listed = false;
            if tenure.paused {
                continue;
            }
            let Some(queued) = tenure.queue.pop_front() else {
                continue;
            };
            tenure.messages -= queued.messages;
            tenure.bytes -= queued.bytes;
            tenure.feed();
            self.list(partition);
            return Some(Ok(queued.event));
        }
        None
    }
}

/// Unlocks the state, drops what was taken out of it, and wakes whoever polls the events.
trait WakeAfter {
    fn wake_after<T>(self, dropped: T);
}

impl WakeAfter for MutexGuard<'_, State> {
    fn wake_after<T>(mut self, dropped: T) {
        let waker = self.waker.take();
        drop(self);
        drop(dropped);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Tenure {
    fn new(partition: u32, position: Offset) -> Self {
        Self {
            id: AssignmentId {
                partition,
                epoch: EPOCH,
            },
            generation: 0,
            position,
            paused: false,
            released: false,
            listed: false,
            starved: false,
            queue: VecDeque::new(),
            messages: 0,
            bytes: 0,
            wake: Arc::default(),
        }
    }

    fn is_current(&self, generation: u64) -> bool {
        !self.released && self.generation == generation
    }

    /// Takes out what is queued, to be dropped outside the lock.
    fn clear(&mut self) -> VecDeque<Queued> {
        self.messages = 0;
        self.bytes = 0;
        mem::take(&mut self.queue)
    }

    /// Wakes the task if it waits for room.
    fn feed(&mut self) {
        if mem::take(&mut self.starved) {
            self.wake.notify_one();
        }
    }
}

/// What a partition's task does next.
enum Plan {
    Fetch {
        request: FetchRequest,
        from: Offset,
        generation: u64,
        wake: Arc<Notify>,
    },
    Wait(Arc<Notify>),
    End,
}

/// Owns the tasks of the partitions, and adds one for each partition that is added.
async fn supervise(shared: Arc<Shared>, mut partitions: usize) {
    let mut stop = shared.stop.subscribe();
    let mut tasks = JoinSet::new();
    let mut started = 0;
    loop {
        for partition in started..partitions {
            let partition = u32::try_from(partition).unwrap_or(u32::MAX);
            tasks.spawn(read_partition(Arc::clone(&shared), partition));
        }
        started = partitions;
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(done) = tasks.join_next() => if let Err(error) = done {
                shared.end(End::Failed(
                    Error::new(ErrorKind::Other, "the task that reads a partition ended early").with_source(error),
                ));
            },
            more = watch_topic(&shared, partitions) => match more {
                Some(added) => {
                    partitions += added.len();
                    shared.assign(added);
                }
                None => break,
            },
        }
    }
    tasks.shutdown().await;
}

/// Waits until the topic has more partitions, which begin at their oldest message so that nothing produced to them is
/// missed. Returns none once the member has ended.
async fn watch_topic(shared: &Shared, known: usize) -> Option<Vec<Tenure>> {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match shared.driver.describe_topic(shared.topic.clone()).await {
            Ok(topic) if topic.id != shared.topic_id => {
                shared.end(End::TopicGone);
                return None;
            }
            Ok(topic) => {
                let added = topic.partitions.get(known..).unwrap_or_default();
                if !added.is_empty() {
                    let tenure =
                        |added: &PartitionDescription| Tenure::new(added.partition, added.first_offset);
                    return Some(added.iter().map(tenure).collect());
                }
            }
            // The partitions' tasks tell of an outage; this one only looks again.
            Err(error) if shared.survives(&error) => {}
            Err(_) => return None,
        }
    }
}

/// Fetches one partition for as long as the member has it.
async fn read_partition(shared: Arc<Shared>, partition: u32) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (request, from, generation, wake) = match shared.plan(partition) {
            Plan::End => return,
            Plan::Wait(wake) => {
                wake.notified().await;
                continue;
            }
            Plan::Fetch {
                request,
                from,
                generation,
                wake,
            } => (request, from, generation, wake),
        };
        let mut fetch = pin!(shared.fetch(request, from));
        let fetched = loop {
            tokio::select! {
                biased;
                fetched = &mut fetch => break fetched,
                () = wake.notified() => if !shared.is_current(partition, generation) {
                    break Err(Error::new(ErrorKind::Interrupted, "the position was moved"));
                },
            }
        };
        match fetched {
            Ok(fetched) => {
                pause = FIRST_PAUSE;
                shared.queue(partition, generation, from, fetched);
            }
            // What failed is no longer wanted.
            Err(_) if !shared.is_current(partition, generation) => {}
            Err(error) if shared.survives(&error) => {
                shared.fails(partition, error);
                // Up to half of it by chance, so that partitions do not come back all at once.
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(_) => return,
        }
    }
}

/// Turns a position into an offset that exists or will exist.
async fn resolve(
    reader: &dyn driver::Reader,
    partition: &PartitionDescription,
    to: Position,
) -> Result<Offset> {
    match to {
        Position::Earliest => Ok(partition.first_offset),
        Position::Latest => Ok(partition.next_offset),
        Position::Offset(offset) if offset > partition.next_offset => Err(Error::new(
            ErrorKind::OffsetOutOfRange,
            format!(
                "offset {offset} of partition {}: its end is {}",
                partition.partition, partition.next_offset
            ),
        )),
        Position::Offset(offset) => Ok(offset.max(partition.first_offset)),
        Position::Time(time) => reader.offset_at(partition.partition, time).await,
    }
}

#[cfg(test)]
mod tests;
