//! What the tests of this driver share: a server, and calls of the driver traits as the portable layer makes them.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use mq_amqp::{AmqpConfig, AmqpMq};
use mq_api::{
    GroupName, Message, Offset, Receipt, Result, TopicName, TopicSpec,
    driver::{self, Assignment, AssignmentId, Event, Events, Mq, ProducerRequest, SendBatch, Subscription},
    url::ConnectUrl,
};
use test_brokers::{Broker, RabbitMq, RabbitMqOptions, RabbitMqVersion};

pub const PATIENCE: Duration = Duration::from_secs(40);

pub fn options() -> RabbitMqOptions {
    RabbitMqOptions::new().with_version(RabbitMqVersion::from_environment().unwrap())
}

/// Nothing is lost for want of a word on a machine that has much else to do.
pub fn config(rabbit: &RabbitMq) -> AmqpConfig {
    AmqpConfig::from_url(&ConnectUrl::parse(&rabbit.url()).unwrap())
        .unwrap()
        .with_session_timeout(Duration::from_secs(15))
        .with_request_timeout(Duration::from_secs(20))
}

pub async fn connect(rabbit: &RabbitMq) -> AmqpMq {
    AmqpMq::connect_with(config(rabbit)).await.unwrap()
}

pub fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub fn group(name: &str) -> GroupName {
    GroupName::new(name).unwrap()
}

pub async fn create(mq: &AmqpMq, name: &str, partitions: u32) -> TopicName {
    mq.create_topic(TopicSpec::new(name, partitions).unwrap())
        .await
        .unwrap();
    topic(name)
}

pub async fn producer(mq: &AmqpMq, topic: &TopicName) -> Arc<dyn driver::Producer> {
    mq.producer(ProducerRequest::new(topic.clone())).await.unwrap()
}

/// Sends a batch and waits for its results.
pub async fn send(
    producer: &dyn driver::Producer,
    partition: u32,
    messages: Vec<Message>,
) -> Vec<Result<Receipt>> {
    let (batch, waiting) = SendBatch::new(partition, messages, Instant::now() + PATIENCE);
    producer.send(batch);
    let mut results = Vec::new();
    for status in waiting {
        results.push(status.await);
    }
    results
}

pub async fn send_numbers(
    producer: &dyn driver::Producer,
    partition: u32,
    numbers: impl IntoIterator<Item = u64>,
) {
    let messages = numbers
        .into_iter()
        .map(|number| Message::new(number.to_string()))
        .collect();
    for result in send(producer, partition, messages).await {
        result.unwrap();
    }
}

pub fn number(message: &Message) -> u64 {
    String::from_utf8_lossy(message.payload_or_empty())
        .parse()
        .unwrap()
}

/// A member of a group as the engine sees it.
pub struct Member {
    pub consumer: Arc<dyn driver::Consumer>,
    pub events: Box<dyn Events>,
    pub assigned: BTreeMap<u32, Assignment>,
    pub received: Vec<(AssignmentId, Offset, u64)>,
    pub next: BTreeMap<u32, Offset>,
    pub trimmed: Vec<(Offset, Offset)>,
    pub lost: Vec<AssignmentId>,
    pub outages: usize,
    pub recoveries: usize,
    pub topic_gone: bool,
}

pub fn subscription(topic: &TopicName, name: &str) -> Subscription {
    Subscription::new(topic.clone(), group(name))
}

pub async fn join(mq: &AmqpMq, subscription: Subscription) -> Member {
    let (consumer, events) = mq.consumer(subscription).await.unwrap();
    Member {
        consumer,
        events,
        assigned: BTreeMap::new(),
        received: Vec::new(),
        next: BTreeMap::new(),
        trimmed: Vec::new(),
        lost: Vec::new(),
        outages: 0,
        recoveries: 0,
        topic_gone: false,
    }
}

impl Member {
    pub async fn next_event(&mut self, wait: Duration) -> Option<Result<Event>> {
        tokio::time::timeout(wait, poll_fn(|cx| self.events.poll_event(cx)))
            .await
            .ok()
    }

    /// Takes one event in, as the engine would.
    pub async fn step(&mut self, wait: Duration) -> bool {
        let Some(event) = self.next_event(wait).await else {
            return false;
        };
        match event.unwrap() {
            Event::Assigned(assignments) => {
                for assignment in assignments {
                    self.next.insert(assignment.id.partition, assignment.position);
                    self.assigned.insert(assignment.id.partition, assignment);
                }
            }
            Event::Revoked(ids) => {
                for id in &ids {
                    self.assigned.remove(&id.partition);
                }
                self.consumer.release(ids).await.unwrap();
            }
            Event::Lost(ids) => {
                for id in ids {
                    if self.assigned.get(&id.partition).is_some_and(|a| a.id == id) {
                        self.assigned.remove(&id.partition);
                    }
                    self.lost.push(id);
                }
            }
            Event::Batch(batch) => {
                let lease = self
                    .assigned
                    .get(&batch.assignment.partition)
                    .filter(|assignment| assignment.id == batch.assignment)
                    .and_then(|assignment| assignment.lease.clone());
                if lease.is_some_and(|lease| lease.stands_at(lease.clock().now())) {
                    for record in batch.records.iter() {
                        self.received
                            .push((batch.assignment, record.offset, number(&record.message)));
                    }
                    self.next.insert(batch.assignment.partition, batch.next_offset);
                }
            }
            Event::Trimmed { from, to, .. } => self.trimmed.push((from, to)),
            Event::TopicGone => self.topic_gone = true,
            Event::Outage(_) => self.outages += 1,
            Event::Recovered => self.recoveries += 1,
            _ => {}
        }
        true
    }

    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: assigned {:?}, received {}, lost {:?}, outages {}, recoveries {}",
                self.assigned.keys().collect::<Vec<_>>(),
                self.received.len(),
                self.lost,
                self.outages,
                self.recoveries
            );
            self.step(Duration::from_millis(100)).await;
        }
    }

    pub fn numbers(&self) -> Vec<u64> {
        self.received.iter().map(|(_, _, number)| *number).collect()
    }

    pub fn id(&self, partition: u32) -> AssignmentId {
        self.assigned[&partition].id
    }

    pub async fn commit(&self, partition: u32, position: Offset) -> Result<driver::CommitOutcome> {
        self.consumer
            .commit(vec![driver::Commit::new(self.id(partition), position)])
            .await
            .pop()
            .unwrap()
    }
}

/// Lets two members take their events in until something holds.
pub async fn until_both(a: &mut Member, b: &mut Member, what: &str, done: impl Fn(&Member, &Member) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(a, b) {
        assert!(
            Instant::now() < deadline,
            "{what}: {:?} and {:?}",
            a.assigned.keys().collect::<Vec<_>>(),
            b.assigned.keys().collect::<Vec<_>>()
        );
        a.step(Duration::from_millis(10)).await;
        b.step(Duration::from_millis(10)).await;
    }
}
