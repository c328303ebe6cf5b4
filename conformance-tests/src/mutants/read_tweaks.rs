//! Drivers that get reading, positions and single messages wrong, each in one way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Clock, ErrorKind, Moment, Offset, Position, Result, Timestamp,
    driver::{
        self, CommittedPosition, CommittedRequest, FetchRequest, Fetched, QueueConsumer, QueueReceipt,
        QueueRecord, Record, Subscription,
    },
};

use super::consume_tweaks::sum;
use crate::wrap::{Scope, Tweak};

/// Reads past one message in so many.
#[derive(Debug)]
pub(super) struct ReadsPastSome(pub(super) u64);

#[async_trait]
impl Tweak for ReadsPastSome {
    async fn fetch(
        &self,
        _scope: &Scope,
        inner: &dyn driver::Reader,
        request: FetchRequest,
    ) -> Result<Fetched> {
        let fetched = inner.fetch(request).await?;
        let records: Vec<Record> = fetched
            .records
            .iter()
            .filter(|record| !sum(record).is_multiple_of(self.0))
            .cloned()
            .collect();
        Ok(Fetched::new(records.into(), fetched.next_offset))
    }
}

/// Reads from the earliest where the latest was asked for.
#[derive(Debug)]
pub(super) struct ReadsLatestFromEarliest;

#[async_trait]
impl Tweak for ReadsLatestFromEarliest {
    async fn fetch(
        &self,
        _scope: &Scope,
        inner: &dyn driver::Reader,
        mut request: FetchRequest,
    ) -> Result<Fetched> {
        if request.position == Position::Latest {
            request.position = Position::Earliest;
        }
        inner.fetch(request).await
    }

    async fn bounds(&self, _scope: &Scope, inner: &dyn driver::Reader) -> Result<Vec<(Offset, Offset)>> {
        let bounds = inner.bounds().await?;
        Ok(bounds.into_iter().map(|(first, _)| (first, first)).collect())
    }
}

/// Finds the message behind the one that a time asks for.
#[derive(Debug)]
pub(super) struct FindsTimeTooLate;

#[async_trait]
impl Tweak for FindsTimeTooLate {
    async fn offset_at(
        &self,
        _scope: &Scope,
        inner: &dyn driver::Reader,
        partition: u32,
        time: Timestamp,
    ) -> Result<Offset> {
        Ok(inner.offset_at(partition, time).await? + 1)
    }
}

/// Tells one offset more as committed than is stored.
#[derive(Debug)]
pub(super) struct TellsCommittedTooHigh;

#[async_trait]
impl Tweak for TellsCommittedTooHigh {
    async fn committed(
        &self,
        inner: &dyn driver::Mq,
        request: CommittedRequest,
    ) -> Result<Vec<CommittedPosition>> {
        let mut committed = inner.committed(request).await?;
        for one in &mut committed {
            one.position += 1;
        }
        Ok(committed)
    }
}

/// Takes an offset beyond the end for the end.
#[derive(Debug)]
pub(super) struct TakesBeyondForTheEnd;

#[async_trait]
impl Tweak for TakesBeyondForTheEnd {
    async fn fetch(
        &self,
        _scope: &Scope,
        inner: &dyn driver::Reader,
        mut request: FetchRequest,
    ) -> Result<Fetched> {
        let fetched = inner.fetch(request.clone()).await;
        match fetched {
            Err(error) if error.kind() == ErrorKind::OffsetOutOfRange => {
                request.position = Position::Latest;
                inner.fetch(request).await
            }
            other => other,
        }
    }

    async fn bounds(&self, _scope: &Scope, inner: &dyn driver::Reader) -> Result<Vec<(Offset, Offset)>> {
        let bounds = inner.bounds().await?;
        Ok(bounds
            .into_iter()
            .map(|(first, next)| (first, next + 10_000))
            .collect())
    }
}

/// Gives messages to the first member of a shared group only.
#[derive(Debug, Default)]
pub(super) struct FeedsOneMember {
    first: Mutex<BTreeMap<String, u64>>,
}

#[async_trait]
impl Tweak for FeedsOneMember {
    async fn receive(
        &self,
        scope: &Scope,
        inner: &dyn QueueConsumer,
        max: usize,
    ) -> Result<Vec<QueueRecord>> {
        let first = {
            let mut all = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            *all.entry(format!("{} {}", scope.topic, scope.group))
                .or_insert(scope.id)
        };
        if first == scope.id {
            inner.receive(max).await
        } else {
            std::future::pending().await
        }
    }
}

/// Acks a message of a shared group when it is received.
#[derive(Debug)]
pub(super) struct AcksOnReceive;

#[async_trait]
impl Tweak for AcksOnReceive {
    async fn receive(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        max: usize,
    ) -> Result<Vec<QueueRecord>> {
        let received = inner.receive(max).await?;
        inner
            .ack(received.iter().map(|one| one.receipt.clone()).collect())
            .await;
        Ok(received)
    }

    async fn ack(
        &self,
        _scope: &Scope,
        _inner: &dyn QueueConsumer,
        receipts: Vec<QueueReceipt>,
    ) -> Vec<Result<()>> {
        receipts.iter().map(|_| Ok(())).collect()
    }
}

/// Says that leases of a shared group are extended, and extends none.
#[derive(Debug)]
pub(super) struct ExtendsNoLease;

#[async_trait]
impl Tweak for ExtendsNoLease {
    async fn extend(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        receipts: Vec<QueueReceipt>,
    ) -> Vec<Result<(QueueReceipt, Moment)>> {
        let until = Clock::system().now() + inner.lease();
        receipts.into_iter().map(|receipt| Ok((receipt, until))).collect()
    }
}

/// Starts a task with each consumer that nothing ends.
#[derive(Debug)]
pub(super) struct LeaksTasks;

#[async_trait]
impl Tweak for LeaksTasks {
    async fn consumer(
        &self,
        inner: &dyn driver::Mq,
        subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn driver::Events>)> {
        tokio::spawn(async {
            loop {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
        });
        inner.consumer(subscription).await
    }
}
