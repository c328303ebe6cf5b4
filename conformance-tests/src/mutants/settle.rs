//! Mutants for the cases about settling.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Clock, Message, Moment, Result,
    driver::{
        AssignmentId, Batch, Commit, CommitOutcome, Consumer, Event, Events, QueueConsumer, QueueReceipt,
        QueueRecord, Record, Records,
    },
};

use super::{Proof, sends::ChangeSends};
use crate::wrap::{Scope, Tweak};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "A1",
        mutant: "answers a commit and stores nothing",
        tweak: || Arc::new(StoresNothing),
        says: "delivered after its ack",
    },
    Proof {
        case: "A1s",
        mutant: "answers acks of single messages and does nothing",
        tweak: || Arc::new(IgnoresAcks),
        says: "delivered after its ack",
    },
    Proof {
        case: "A2",
        mutant: "stores one more than was acked",
        tweak: || Arc::new(StoresOneMore),
        says: "lost: un-acked",
    },
    Proof {
        case: "A2s",
        mutant: "acks what a member leaves",
        tweak: || Arc::new(AcksAtClose::default()),
        says: "lost: un-acked",
    },
    Proof {
        case: "A3",
        mutant: "counts an attempt for what nobody saw",
        tweak: || Arc::new(CountsTooMany),
        says: "delivery number 1 says that it is attempt 2",
    },
    Proof {
        case: "A3s",
        mutant: "counts an attempt for what nobody saw",
        tweak: || Arc::new(CountsTooMany),
        says: "delivery number 1 says that it is attempt 2",
    },
    Proof {
        case: "A4",
        mutant: "loses its sessions all the time",
        tweak: || Arc::new(LosesSessions),
        says: "early",
    },
    Proof {
        case: "A4s",
        mutant: "gives back at once what is to wait",
        tweak: || Arc::new(NeverWaits),
        says: "early",
    },
    Proof {
        case: "A4s",
        mutant: "gives back a second late",
        tweak: || Arc::new(WaitsLonger),
        says: "late",
    },
    Proof {
        case: "A5",
        mutant: "loses dead letters",
        tweak: losing_letters,
        says: "lost: the dead letter never came",
    },
    Proof {
        case: "A5",
        mutant: "commits a rejected message that is in no dead letter",
        tweak: || Arc::new(StoresOneMore),
        says: "is in no dead letter, and committed is",
    },
    Proof {
        case: "A5s",
        mutant: "strips the headers of dead letters",
        tweak: stripping_letters,
        says: "the dead letter says mq-origin-topic = None",
    },
    Proof {
        case: "A6",
        mutant: "stores no acks above the position",
        tweak: || Arc::new(StoresNoSparseAcks),
        says: "unexpected",
    },
    Proof {
        case: "A6",
        mutant: "commits past a gap",
        tweak: || Arc::new(CommitsPastGaps),
        says: "lost",
    },
    Proof {
        case: "A7",
        mutant: "says that messages are of another partition",
        tweak: || Arc::new(SaysAnotherPartition),
        says: "a message beyond the window of 10 was handed over",
    },
    Proof {
        case: "A8",
        mutant: "strips the headers of dead letters",
        tweak: stripping_letters,
        says: "the dead letter says mq-attempts = None",
    },
    Proof {
        case: "A8s",
        mutant: "loses dead letters",
        tweak: losing_letters,
        says: "lost: the dead letter never came",
    },
    Proof {
        case: "A9",
        mutant: "counts an attempt for what nobody saw",
        tweak: || Arc::new(CountsTooMany),
        says: "delivery number 1 says that it is attempt 2",
    },
    Proof {
        case: "A9s",
        mutant: "forgets what is given back",
        tweak: || Arc::new(ForgetsNacks),
        says: "lost: attempt 2 after Drop",
    },
    Proof {
        case: "A10",
        mutant: "lets two members own one partition and accepts a stale ack",
        tweak: || Arc::new(HidesRevokes),
        says: "expected StaleAck, got Ok",
    },
    Proof {
        case: "A11",
        mutant: "holds back what is behind the first message",
        tweak: || Arc::new(HoldsBack::default()),
        says: "reordered",
    },
    Proof {
        case: "O1",
        mutant: "delivers without keys",
        tweak: || ChangeSends::each(|message| Message::from_parts(message.payload().cloned(), None)),
        says: "ordering by key",
    },
    Proof {
        case: "A12",
        mutant: "answers a commit and stores nothing",
        tweak: || Arc::new(StoresNothing),
        says: "delivered after its ack",
    },
    Proof {
        case: "A13",
        mutant: "answers a commit and stores nothing",
        tweak: || Arc::new(StoresNothing),
        says: "delivered after its ack",
    },
    Proof {
        case: "A13s",
        mutant: "answers acks of single messages and does nothing",
        tweak: || Arc::new(IgnoresAcks),
        says: "delivered after its ack",
    },
    Proof {
        case: "A10",
        mutant: "answers that a former owner's commit is stored",
        tweak: || Arc::new(SaysStored),
        says: "not fenced: a commit of the tenure that is over",
    },
    Proof {
        case: "A14",
        mutant: "answers a commit and stores nothing",
        tweak: || Arc::new(StoresNothing),
        says: "came more than once",
    },
    Proof {
        case: "A15",
        mutant: "commits a rejected message that is in no dead letter",
        tweak: || Arc::new(StoresOneMore),
        says: "lost: the message that was rejected",
    },
    Proof {
        case: "A16",
        mutant: "stores no attempts",
        tweak: || Arc::new(StoresNoAttempts),
        says: "the killer killed 5 members, and has 3 attempts",
    },
];

fn losing_letters() -> Arc<dyn Tweak> {
    ChangeSends::losing(|_, message| message.headers().text("mq-reason").is_some())
}

fn stripping_letters() -> Arc<dyn Tweak> {
    ChangeSends::each(|mut message| {
        if message.headers().text("mq-reason").is_some() {
            for name in ["mq-origin-topic", "mq-attempts"] {
                message.headers_mut().remove(name);
            }
        }
        message
    })
}

#[derive(Debug)]
struct StoresNothing;

#[async_trait]
impl Tweak for StoresNothing {
    async fn commit(
        &self,
        _scope: &Scope,
        _inner: &dyn Consumer,
        commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        commits.iter().map(|_| Ok(CommitOutcome::Stored)).collect()
    }
}

/// Changes commits on their way.
macro_rules! changes_commits {
    ($name:ident, $change:expr) => {
        #[derive(Debug)]
        struct $name;

        #[async_trait]
        impl Tweak for $name {
            async fn commit(
                &self,
                _scope: &Scope,
                inner: &dyn Consumer,
                mut commits: Vec<Commit>,
            ) -> Vec<Result<CommitOutcome>> {
                let change: fn(&mut Commit) = $change;
                commits.iter_mut().for_each(change);
                inner.commit(commits).await
            }
        }
    };
}

changes_commits!(StoresOneMore, |commit| {
    if commit.position > 0 {
        commit.position += 1;
    }
});
changes_commits!(StoresNoSparseAcks, |commit| commit.acked_above.clear());
changes_commits!(CommitsPastGaps, |commit| {
    if let Some(last) = commit.acked_above.pop() {
        commit.position = last.end;
        commit.acked_above.clear();
        commit.attempts.clear();
    }
});
changes_commits!(StoresNoAttempts, |commit| commit.attempts.clear());

#[derive(Debug)]
struct IgnoresAcks;

#[async_trait]
impl Tweak for IgnoresAcks {
    async fn ack(
        &self,
        _scope: &Scope,
        _inner: &dyn QueueConsumer,
        receipts: Vec<QueueReceipt>,
    ) -> Vec<Result<()>> {
        receipts.iter().map(|_| Ok(())).collect()
    }
}

/// Remembers what it has given out, and acks all of it when the member leaves.
#[derive(Debug, Default)]
struct AcksAtClose {
    given: Mutex<BTreeMap<u64, Vec<QueueReceipt>>>,
}

#[async_trait]
impl Tweak for AcksAtClose {
    async fn receive(
        &self,
        scope: &Scope,
        inner: &dyn QueueConsumer,
        max: usize,
    ) -> Result<Vec<QueueRecord>> {
        let records = inner.receive(max).await?;
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = given.entry(scope.id).or_default();
        mine.extend(records.iter().map(|record| record.receipt.clone()));
        Ok(records)
    }
    async fn nack(
        &self,
        _scope: &Scope,
        _inner: &dyn QueueConsumer,
        receipts: Vec<(QueueReceipt, Duration)>,
    ) -> Vec<Result<()>> {
        receipts.iter().map(|_| Ok(())).collect()
    }
    async fn close_queue(&self, scope: &Scope, inner: &dyn QueueConsumer) -> Result<()> {
        let given = self
            .given
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&scope.id);
        inner.ack(given.unwrap_or_default()).await;
        inner.close().await
    }
}

#[derive(Debug)]
struct CountsTooMany;

#[async_trait]
impl Tweak for CountsTooMany {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        let event = inner.poll_event(cx);
        event.map_ok(|event| match event {
            Event::Assigned(assigned) => {
                let counted = assigned.into_iter().map(|assignment| {
                    let attempts = (0..4).map(|above| (assignment.position + above, 1)).collect();
                    assignment.with_attempts(attempts)
                });
                Event::Assigned(counted.collect())
            }
            other => other,
        })
    }
    async fn receive(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        max: usize,
    ) -> Result<Vec<QueueRecord>> {
        let mut records = inner.receive(max).await?;
        for record in &mut records {
            record.attempt += 1;
        }
        Ok(records)
    }
}

/// Ends its sessions all the time: what waits for its delay is handed over by the next tenure.
#[derive(Debug)]
struct LosesSessions;

impl Tweak for LosesSessions {
    fn loses_sessions_every(&self) -> Option<Duration> {
        Some(Duration::from_millis(150))
    }
}

/// Changes how long what is nacked waits.
macro_rules! changes_waits {
    ($name:ident, $change:expr) => {
        #[derive(Debug)]
        struct $name;

        #[async_trait]
        impl Tweak for $name {
            async fn nack(
                &self,
                _scope: &Scope,
                inner: &dyn QueueConsumer,
                mut receipts: Vec<(QueueReceipt, Duration)>,
            ) -> Vec<Result<()>> {
                let change: fn(Duration) -> Duration = $change;
                for (_, wait) in &mut receipts {
                    *wait = change(*wait);
                }
                inner.nack(receipts).await
            }
        }
    };
}

changes_waits!(NeverWaits, |_| Duration::ZERO);
changes_waits!(WaitsLonger, |wait| wait + Duration::from_secs(1));

#[derive(Debug)]
struct ForgetsNacks;

#[async_trait]
impl Tweak for ForgetsNacks {
    async fn nack(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        receipts: Vec<(QueueReceipt, Duration)>,
    ) -> Vec<Result<()>> {
        inner
            .ack(receipts.into_iter().map(|(receipt, _)| receipt).collect())
            .await
    }
    async fn extend(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        receipts: Vec<QueueReceipt>,
    ) -> Vec<Result<(QueueReceipt, Moment)>> {
        inner.extend(receipts).await
    }
}

/// Copies the records of a batch out of what lends them.
fn records_of(batch: &Batch) -> Vec<Record> {
    batch.records.iter().cloned().collect()
}

/// Hands what is behind the tenth message of partition 0 over as if it were of partition 1.
#[derive(Debug)]
struct SaysAnotherPartition;

impl Tweak for SaysAnotherPartition {
    fn poll_event(&self, scope: &Scope, inner: &mut dyn Events, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        static SPLIT: Mutex<BTreeMap<u64, Batch>> = Mutex::new(BTreeMap::new());
        let mut kept = SPLIT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rest) = kept.remove(&scope.id) {
            return Poll::Ready(Ok(Event::Batch(rest)));
        }
        inner.poll_event(cx).map_ok(|event| match event {
            Event::Batch(batch) if batch.assignment.partition == 0 => {
                let mut first = records_of(&batch);
                let behind: Vec<Record> = first.split_off(first.len().min(10));
                if !behind.is_empty() {
                    let other = AssignmentId {
                        partition: 1,
                        epoch: batch.assignment.epoch,
                    };
                    let mut rest = Batch::new(other, 0, Records::from(behind), batch.next_offset);
                    rest.generation = batch.generation;
                    kept.insert(scope.id, rest);
                    cx.waker().wake_by_ref();
                }
                let next = batch.next_offset;
                Event::Batch(Batch::new(
                    batch.assignment,
                    batch.generation,
                    Records::from(first),
                    next,
                ))
            }
            other => other,
        })
    }
}

/// Gives back what is asked for without telling the engine, which goes on as if it still owned it.
#[derive(Debug)]
struct HidesRevokes;

/// What hidden revokes are still to be given back, by member.
static REVOKED: Mutex<BTreeMap<u64, Vec<AssignmentId>>> = Mutex::new(BTreeMap::new());

#[async_trait]
impl Tweak for HidesRevokes {
    fn poll_event(&self, scope: &Scope, inner: &mut dyn Events, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        match inner.poll_event(cx) {
            Poll::Ready(Ok(Event::Revoked(ids) | Event::Lost(ids))) => {
                REVOKED
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(scope.id)
                    .or_default()
                    .extend(ids);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }
    async fn consumer(
        &self,
        inner: &dyn mq_api::driver::Mq,
        subscription: mq_api::driver::Subscription,
    ) -> Result<(Arc<dyn Consumer>, Box<dyn Events>)> {
        let (consumer, events) = inner.consumer(subscription).await?;
        let releasing = Arc::downgrade(&consumer);
        tokio::spawn(async move {
            while let Some(consumer) = releasing.upgrade() {
                let ids: Vec<AssignmentId> = REVOKED
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .values()
                    .flatten()
                    .copied()
                    .collect();
                // Those of other members are skipped by the broker.
                let _ = consumer.release(ids).await;
                drop(consumer);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Ok((consumer, events))
    }
    async fn commit(
        &self,
        _scope: &Scope,
        inner: &dyn Consumer,
        commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        let count = commits.len();
        inner.commit(commits).await;
        (0..count).map(|_| Ok(CommitOutcome::Stored)).collect()
    }
}

/// Hands over the first message of a partition, and the others seconds later.
#[derive(Debug, Default)]
struct HoldsBack {
    begun: AtomicBool,
    until: AtomicU64,
    kept: Mutex<Option<Batch>>,
}

impl Tweak for HoldsBack {
    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        let now = Clock::system().now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_some() && now.as_nanos() >= self.until.load(Ordering::SeqCst) {
            return match kept.take() {
                Some(batch) => Poll::Ready(Ok(Event::Batch(batch))),
                None => Poll::Pending,
            };
        }
        inner.poll_event(cx).map_ok(|event| match event {
            Event::Batch(batch) if batch.records.len() > 1 && !self.begun.swap(true, Ordering::SeqCst) => {
                let mut first = records_of(&batch);
                let rest = first.split_off(1);
                let next = first.last().map_or(0, |record| record.offset + 1);
                let end = batch.next_offset;
                *kept = Some(Batch::new(
                    batch.assignment,
                    batch.generation,
                    Records::from(rest),
                    end,
                ));
                let until = now + Duration::from_secs(3);
                self.until.store(until.as_nanos(), Ordering::SeqCst);
                let waker = cx.waker().clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    waker.wake();
                });
                Event::Batch(Batch::new(
                    batch.assignment,
                    batch.generation,
                    Records::from(first),
                    next,
                ))
            }
            other => other,
        })
    }
}

/// Answers that every commit is stored.
#[derive(Debug)]
struct SaysStored;

#[async_trait]
impl Tweak for SaysStored {
    async fn commit(
        &self,
        _scope: &Scope,
        inner: &dyn Consumer,
        commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        let stored = inner.commit(commits).await.into_iter();
        stored
            .map(|outcome| outcome.map(|_| CommitOutcome::Stored))
            .collect()
    }
}
