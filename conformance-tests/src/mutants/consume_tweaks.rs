//! Drivers that get consuming wrong, each in one way.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    GroupName, Message, Offset, Result, Start,
    driver::{
        self, Assignment, AssignmentId, Batch, Commit, CommitOutcome, Event, Events, Record, Subscription,
    },
};

use crate::wrap::{Scope, Tweak};

/// Applies a change to the records of a batch; other events stay as they are.
fn with_records(event: Event, change: impl FnOnce(Vec<Record>) -> Vec<Record>) -> Event {
    match event {
        Event::Batch(batch) => {
            let records: Vec<Record> = batch.records.iter().cloned().collect();
            Event::Batch(Batch::new(
                batch.assignment,
                batch.generation,
                change(records).into(),
                batch.next_offset,
            ))
        }
        other => other,
    }
}

/// Applies a change to what comes, and asks for more where nothing is left of it.
fn changed(
    inner: &mut dyn Events,
    cx: &mut Context<'_>,
    mut change: impl FnMut(Event) -> Option<Event>,
) -> Poll<Result<Event>> {
    loop {
        match inner.poll_event(cx) {
            Poll::Ready(Ok(event)) => {
                if let Some(event) = change(event) {
                    return Poll::Ready(Ok(event));
                }
            }
            other => return other,
        }
    }
}

/// Loses one message in so many: it is never handed over.
#[derive(Debug)]
pub(super) struct LosesSome(pub(super) u64);

impl Tweak for LosesSome {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        changed(inner, cx, |event| {
            Some(with_records(event, |mut records| {
                records.retain(|record| !sum(record).is_multiple_of(self.0));
                records
            }))
        })
    }
}

/// Picks messages by what they hold, so that a copy of one shares its fate.
pub(super) fn sum(record: &Record) -> u64 {
    let payload = record.message.payload_or_empty();
    payload
        .iter()
        .fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(*byte))
}

/// Hands the first two messages of each batch over in the wrong order.
#[derive(Debug)]
pub(super) struct ReordersTwo;

impl Tweak for ReordersTwo {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        changed(inner, cx, |event| {
            Some(with_records(event, |mut records| {
                if let [first, second, ..] = &mut records[..] {
                    std::mem::swap(&mut first.message, &mut second.message);
                }
                records
            }))
        })
    }
}

/// Finds the place of a group that starts at the latest some time after the call has returned.
#[derive(Debug, Default)]
pub(super) struct StartsLatestLate {
    late: Mutex<BTreeSet<(String, String)>>,
}

#[async_trait]
impl Tweak for StartsLatestLate {
    async fn consumer(
        &self,
        inner: &dyn driver::Mq,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        if subscription.start == Start::Latest {
            let group = (subscription.topic.to_string(), subscription.group.to_string());
            lock(&self.late).insert(group);
        }
        inner.consumer(subscription).await
    }

    fn poll_event(&self, scope: &Scope, inner: &mut dyn Events, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        changed(inner, cx, |event| {
            let group = (scope.topic.to_string(), scope.group.clone());
            if matches!(event, Event::Batch(_)) && lock(&self.late).remove(&group) {
                Some(with_records(event, |_| Vec::new()))
            } else {
                Some(event)
            }
        })
    }
}

/// Takes all groups of a topic for one.
#[derive(Debug)]
pub(super) struct MergesGroups;

#[async_trait]
impl Tweak for MergesGroups {
    async fn consumer(
        &self,
        inner: &dyn driver::Mq,
        mut subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        subscription.group = GroupName::new("all")?;
        inner.consumer(subscription).await
    }
}

/// Keeps what belongs to members that were let go.
type Memberships = Arc<Mutex<Vec<(Arc<dyn driver::Consumer>, Silent)>>>;

/// Takes the close of a member and does nothing: its membership goes on.
#[derive(Debug, Default)]
pub(super) struct IgnoresClose {
    kept: Memberships,
}

/// Events that nobody asks for any more.
struct Silent {
    _events: Box<dyn Events>,
}

/// Keeps the membership when it is let go.
struct KeptEvents {
    inner: Option<Box<dyn Events>>,
    consumer: Arc<dyn driver::Consumer>,
    kept: Memberships,
}

impl Events for KeptEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        match &mut self.inner {
            Some(inner) => inner.poll_event(cx),
            None => Poll::Pending,
        }
    }
}

impl Drop for KeptEvents {
    fn drop(&mut self) {
        if let Some(events) = self.inner.take() {
            lock(&self.kept).push((Arc::clone(&self.consumer), Silent { _events: events }));
        }
    }
}

impl fmt::Debug for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Silent")
    }
}

#[async_trait]
impl Tweak for IgnoresClose {
    async fn consumer(
        &self,
        inner: &dyn driver::Mq,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        let (consumer, events) = inner.consumer(subscription).await?;
        let events = KeptEvents {
            inner: Some(events),
            consumer: Arc::clone(&consumer),
            kept: Arc::clone(&self.kept),
        };
        Ok((consumer, Box::new(events)))
    }

    async fn close_consumer(&self, _scope: &Scope, _inner: &dyn driver::Consumer) -> Result<()> {
        Ok(())
    }
}

/// Gives a partition to its next owner some time before it tells the one that has it: both own it for that time.
#[derive(Debug)]
pub(super) struct RevokesLate;

#[async_trait]
impl Tweak for RevokesLate {
    async fn consumer(
        &self,
        inner: &dyn driver::Mq,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        let (consumer, events) = inner.consumer(subscription).await?;
        let events = LateRevokes {
            inner: events,
            consumer: Arc::clone(&consumer),
            late: VecDeque::new(),
        };
        Ok((consumer, Box::new(events)))
    }
}

struct LateRevokes {
    inner: Box<dyn Events>,
    consumer: Arc<dyn driver::Consumer>,
    late: VecDeque<(Pin<Box<tokio::time::Sleep>>, Vec<AssignmentId>)>,
}

impl Events for LateRevokes {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let (consumer, late) = (&self.consumer, &mut self.late);
        let polled = changed(&mut *self.inner, cx, |event| match event {
            Event::Revoked(ids) => {
                let (consumer, released) = (Arc::clone(consumer), ids.clone());
                tokio::spawn(async move { consumer.release(released).await });
                let wait = tokio::time::sleep(Duration::from_millis(400));
                late.push_back((Box::pin(wait), ids));
                None
            }
            other => Some(other),
        });
        if polled.is_pending()
            && let Some((wait, _)) = self.late.front_mut()
            && wait.as_mut().poll(cx).is_ready()
            && let Some((_, ids)) = self.late.pop_front()
        {
            return Poll::Ready(Ok(Event::Revoked(ids)));
        }
        polled
    }
}

/// Stores as committed what lies behind the last ack, whatever is open before it.
#[derive(Debug)]
pub(super) struct CommitsPastGaps;

#[async_trait]
impl Tweak for CommitsPastGaps {
    async fn commit(
        &self,
        _scope: &Scope,
        inner: &dyn driver::Consumer,
        mut commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        for commit in &mut commits {
            if let Some(Range { end, .. }) = commit.acked_above.pop() {
                commit.position = end;
                commit.acked_above.clear();
            }
        }
        inner.commit(commits).await
    }
}

/// Says that commits are stored, and stores none.
#[derive(Debug)]
pub(super) struct StoresNoCommit;

#[async_trait]
impl Tweak for StoresNoCommit {
    async fn commit(
        &self,
        _scope: &Scope,
        _inner: &dyn driver::Consumer,
        commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        commits.iter().map(|_| Ok(CommitOutcome::Stored)).collect()
    }
}

/// Counts an attempt for messages that were only fetched.
#[derive(Debug, Default)]
pub(super) struct CountsWhatNobodySaw;

impl Tweak for CountsWhatNobodySaw {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        changed(inner, cx, |event| {
            Some(match event {
                Event::Assigned(assignments) => {
                    let counted = |mut one: Assignment| {
                        one.attempts = (one.position..one.position + 100)
                            .map(|offset| (offset, 1))
                            .collect();
                        one
                    };
                    Event::Assigned(assignments.into_iter().map(counted).collect())
                }
                other => other,
            })
        })
    }
}

/// Makes a topic that does not exist when it is consumed.
#[derive(Debug)]
pub(super) struct MakesUnknownTopics;

#[async_trait]
impl Tweak for MakesUnknownTopics {
    async fn consumer(
        &self,
        inner: &dyn driver::Mq,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        let spec = mq_api::TopicSpec::new(subscription.topic.as_str(), 1)?;
        // Where it exists with more partitions that is no harm.
        let _ = inner.create_topic(spec).await;
        inner.consumer(subscription).await
    }
}

/// Asks again at once where there is nothing.
#[derive(Debug)]
pub(super) struct SpinsWhenIdle;

impl Tweak for SpinsWhenIdle {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        let polled = inner.poll_event(cx);
        if polled.is_pending() {
            let waker = cx.waker().clone();
            tokio::spawn(async move { waker.wake() });
        }
        polled
    }
}

/// Hands messages over when ten have gathered.
#[derive(Debug, Default)]
pub(super) struct WaitsToFill {
    gathered: Mutex<BTreeMap<u64, Vec<Record>>>,
}

impl Tweak for WaitsToFill {
    fn poll_event(&self, scope: &Scope, inner: &mut dyn Events, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        changed(inner, cx, |event| match event {
            Event::Batch(batch) => {
                let mut gathered = lock(&self.gathered);
                let kept = gathered.entry(scope.id).or_default();
                kept.extend(batch.records.iter().cloned());
                (kept.len() >= 10).then(|| {
                    let records = std::mem::take(kept).into();
                    Event::Batch(Batch::new(
                        batch.assignment,
                        batch.generation,
                        records,
                        batch.next_offset,
                    ))
                })
            }
            other => Some(other),
        })
    }
}

/// Tells nothing of leases, nor of partitions that are gone.
#[derive(Debug)]
pub(super) struct HidesLostPartitions;

impl Tweak for HidesLostPartitions {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        changed(inner, cx, |event| match event {
            Event::Assigned(mut assignments) => {
                for assignment in &mut assignments {
                    assignment.lease = None;
                }
                Some(Event::Assigned(assignments))
            }
            Event::Lost(_) => None,
            other => Some(other),
        })
    }
}

/// Goes on behind a trim without a word.
#[derive(Debug)]
pub(super) struct HidesTrims;

impl Tweak for HidesTrims {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        changed(inner, cx, |event| {
            (!matches!(event, Event::Trimmed { .. })).then_some(event)
        })
    }
}

/// Commits one message less than was acked.
#[derive(Debug)]
pub(super) struct CommitsOneLess;

#[async_trait]
impl Tweak for CommitsOneLess {
    async fn commit(
        &self,
        _scope: &Scope,
        inner: &dyn driver::Consumer,
        mut commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        for commit in &mut commits {
            commit.position = commit.position.saturating_sub(1);
        }
        inner.commit(commits).await
    }
}

/// Changes a byte of each payload on its way to the consumer.
#[derive(Debug)]
pub(super) struct DamagesPayloads;

impl Tweak for DamagesPayloads {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        changed(inner, cx, |event| {
            Some(with_records(event, |records| {
                records.into_iter().map(damaged).collect()
            }))
        })
    }
}

fn damaged(record: Record) -> Record {
    let mut payload = record.message.payload_or_empty().to_vec();
    if let Some(first) = payload.first_mut() {
        *first ^= 0x20;
    }
    let message = Message::from_parts(Some(payload.into()), record.message.key().cloned());
    Record::new(record.offset, record.stored_at, message)
}

/// Stays silent for good once the backend was out of reach.
#[derive(Debug, Default)]
pub(super) struct NeverRecovers {
    silent: Mutex<BTreeSet<u64>>,
}

impl Tweak for NeverRecovers {
    fn poll_event(&self, scope: &Scope, inner: &mut dyn Events, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        if lock(&self.silent).contains(&scope.id) {
            return Poll::Pending;
        }
        let polled = inner.poll_event(cx);
        if let Poll::Ready(Ok(Event::Outage(_))) = &polled {
            lock(&self.silent).insert(scope.id);
        }
        polled
    }
}

/// Closes a member as slowly as nobody waits for.
#[derive(Debug)]
pub(super) struct HangsOnClose;

#[async_trait]
impl Tweak for HangsOnClose {
    async fn close_consumer(&self, _scope: &Scope, _inner: &dyn driver::Consumer) -> Result<()> {
        std::future::pending().await
    }
}

/// Holds up the thread that closes a producer.
#[derive(Debug)]
pub(super) struct BlocksOnClose;

#[async_trait]
impl Tweak for BlocksOnClose {
    async fn close_producer(&self, _scope: &Scope, inner: &dyn driver::Producer) -> Result<()> {
        let until = std::time::Instant::now() + Duration::from_secs(12);
        while std::time::Instant::now() < until {
            std::thread::park_timeout(Duration::from_secs(1));
        }
        inner.close().await
    }
}

/// Drops the messages that come while partitions are paused.
#[derive(Debug, Default)]
pub(super) struct LosesWhilePaused {
    paused: Mutex<BTreeSet<u64>>,
}

impl Tweak for LosesWhilePaused {
    fn pause(
        &self,
        scope: &Scope,
        _inner: &dyn driver::Consumer,
        _assignments: &[AssignmentId],
        paused: bool,
    ) {
        let mut all = lock(&self.paused);
        if paused {
            all.insert(scope.id);
        } else {
            all.remove(&scope.id);
        }
    }

    fn poll_event(&self, scope: &Scope, inner: &mut dyn Events, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        changed(inner, cx, |event| {
            if lock(&self.paused).contains(&scope.id) {
                Some(with_records(event, |_| Vec::new()))
            } else {
                Some(event)
            }
        })
    }
}

/// Seeks one message too far.
#[derive(Debug)]
pub(super) struct SeeksTooFar;

#[async_trait]
impl Tweak for SeeksTooFar {
    async fn seek(
        &self,
        _scope: &Scope,
        inner: &dyn driver::Consumer,
        assignment: AssignmentId,
        to: mq_api::Position,
        generation: u64,
    ) -> Result<Offset> {
        let to = match to {
            mq_api::Position::Offset(offset) => mq_api::Position::Offset(offset + 1),
            other => other,
        };
        inner.seek(assignment, to, generation).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
