//! Shortens what every test does.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use mq_api::{
    GroupName, Message, Offset, Receipt, Result, TopicName, TopicSpec,
    driver::{
        Assignment, AssignmentId, Commit, CommitOutcome, Consumer, Event, Events, Mq, Producer,
        ProducerRequest, QueueConsumer, SendBatch, SendStatus, Subscription,
    },
};
use mq_memory::MemoryMq;

/// What no test waits longer than.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn topic() -> TopicName {
    TopicName::new("orders").unwrap()
}

pub(crate) fn group() -> GroupName {
    GroupName::new("billing").unwrap()
}

pub(crate) fn subscription() -> Subscription {
    Subscription::new(topic(), group())
}

pub(crate) async fn broker(partitions: u32) -> MemoryMq {
    let mq = MemoryMq::new();
    create(&mq, partitions).await;
    mq
}

pub(crate) async fn create(mq: &MemoryMq, partitions: u32) {
    mq.create_topic(TopicSpec::new("orders", partitions).unwrap())
        .await
        .unwrap();
}

pub(crate) async fn producer(mq: &MemoryMq) -> Arc<dyn Producer> {
    mq.producer(ProducerRequest::new(topic())).await.unwrap()
}

/// Starts a send of messages as one batch.
pub(crate) fn start(producer: &Arc<dyn Producer>, partition: u32, messages: Vec<Message>) -> Vec<SendStatus> {
    let (batch, statuses) = SendBatch::new(partition, messages, Instant::now() + PATIENCE);
    producer.send(batch);
    statuses
}

pub(crate) async fn try_send(
    producer: &Arc<dyn Producer>,
    partition: u32,
    message: impl Into<Message>,
) -> Result<Receipt> {
    start(producer, partition, vec![message.into()]).remove(0).await
}

pub(crate) async fn send(mq: &MemoryMq, partition: u32, messages: impl IntoIterator<Item = &'static str>) {
    let producer = producer(mq).await;
    for message in messages {
        try_send(&producer, partition, message).await.unwrap();
    }
}

pub(crate) async fn join(mq: &MemoryMq) -> Member {
    join_as(mq, subscription()).await
}

pub(crate) async fn join_as(mq: &MemoryMq, subscription: Subscription) -> Member {
    let (consumer, events) = mq.consumer(subscription).await.unwrap();
    Member { consumer, events }
}

pub(crate) async fn join_shared(mq: &MemoryMq) -> Arc<dyn QueueConsumer> {
    mq.queue_consumer(subscription()).await.unwrap()
}

pub(crate) struct Member {
    pub(crate) consumer: Arc<dyn Consumer>,
    pub(crate) events: Box<dyn Events>,
}

impl Member {
    pub(crate) async fn next(&mut self) -> Result<Event> {
        tokio::time::timeout(PATIENCE, poll_fn(|cx| self.events.poll_event(cx)))
            .await
            .expect("an event comes")
    }

    /// Returns the next event if it is there already.
    pub(crate) fn now(&mut self) -> Option<Result<Event>> {
        match self.events.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    pub(crate) async fn assigned(&mut self) -> Vec<Assignment> {
        match self.next().await {
            Ok(Event::Assigned(assignments)) => assignments,
            other => panic!("expected an assignment, got {other:?}"),
        }
    }

    pub(crate) async fn revoked(&mut self) -> Vec<AssignmentId> {
        match self.next().await {
            Ok(Event::Revoked(ids)) => ids,
            other => panic!("expected a revocation, got {other:?}"),
        }
    }

    pub(crate) async fn lost(&mut self) -> Vec<AssignmentId> {
        match self.next().await {
            Ok(Event::Lost(ids)) => ids,
            other => panic!("expected a loss, got {other:?}"),
        }
    }

    /// Returns what the next batch holds, as text, with where it comes from.
    pub(crate) async fn batch(&mut self) -> (u32, Vec<String>) {
        match self.next().await {
            Ok(Event::Batch(batch)) => {
                let text = |record: &mq_api::driver::Record| {
                    String::from_utf8(record.message.payload_or_empty().to_vec()).unwrap()
                };
                (
                    batch.assignment.partition,
                    batch.records.iter().map(text).collect(),
                )
            }
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    pub(crate) async fn commit(&self, id: AssignmentId, position: Offset) -> CommitOutcome {
        self.consumer
            .commit(vec![Commit::new(id, position)])
            .await
            .remove(0)
            .unwrap()
    }
}

/// Returns the partitions of assignments.
pub(crate) fn partitions(assignments: &[Assignment]) -> Vec<u32> {
    assignments
        .iter()
        .map(|assignment| assignment.id.partition)
        .collect()
}

pub(crate) fn ids(assignments: &[Assignment]) -> Vec<AssignmentId> {
    assignments.iter().map(|assignment| assignment.id).collect()
}

pub(crate) fn range(from: Offset, to: Offset) -> Vec<std::ops::Range<Offset>> {
    Vec::from([std::ops::Range { start: from, end: to }])
}
