//! The driver traits, called by a driver's own tests as the portable layer calls them.
//!
//! The suite goes through the public API. What stands below it (a batch's results, which partitions a member was given,
//! a commit that is refused) is tested with these. All of them panic where a test would.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{
    GroupName, Message, Offset, Receipt, Result, TopicName, TopicSpec,
    driver::{self, Assignment, AssignmentId, Event, Events, ProducerRequest, SendBatch, Subscription},
};

/// How long something may take that is waited for, on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Makes the name of a topic.
#[must_use]
pub fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// Makes the name of a group.
#[must_use]
pub fn group(name: &str) -> GroupName {
    GroupName::new(name).unwrap()
}

/// Creates a topic and returns its name.
pub async fn create(mq: &dyn driver::Mq, name: &str, partitions: u32) -> TopicName {
    mq.create_topic(TopicSpec::new(name, partitions).unwrap())
        .await
        .unwrap();
    topic(name)
}

/// Opens a producer of a topic.
pub async fn producer(mq: &dyn driver::Mq, topic: &TopicName) -> Arc<dyn driver::Producer> {
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

/// Sends numbers as texts, in one batch, all of which must be stored.
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

/// Reads the number that [`send_numbers`] has sent.
#[must_use]
pub fn number(message: &Message) -> u64 {
    String::from_utf8_lossy(message.payload_or_empty())
        .parse()
        .unwrap()
}

/// A member of a group as the engine sees it.
pub struct Member {
    /// What the engine calls.
    pub consumer: Arc<dyn driver::Consumer>,
    /// What tells the engine.
    pub events: Box<dyn Events>,
    /// What the member owns, by partition.
    pub assigned: BTreeMap<u32, Assignment>,
    /// The numbers that have come, with their tenures and offsets.
    pub received: Vec<(AssignmentId, Offset, u64)>,
    /// The offset after what has come, by partition.
    pub next: BTreeMap<u32, Offset>,
    /// From where to where the server had removed what was to be read.
    pub trimmed: Vec<(Offset, Offset)>,
    /// The tenures that ended without being asked for.
    pub lost: Vec<AssignmentId>,
    /// How often the server went out of reach.
    pub outages: usize,
    /// How often it was back.
    pub recoveries: usize,
    /// Whether the topic was told to be gone.
    pub topic_gone: bool,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("assigned", &self.assigned)
            .field("received", &self.received.len())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

/// Asks to join a group by its name, with everything else as it is by default.
#[must_use]
pub fn subscription(topic: &TopicName, name: &str) -> Subscription {
    Subscription::new(topic.clone(), group(name))
}

/// Joins a group.
pub async fn join(mq: &dyn driver::Mq, subscription: Subscription) -> Member {
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
    /// Waits for an event.
    pub async fn next_event(&mut self, wait: Duration) -> Option<Result<Event>> {
        tokio::time::timeout(wait, poll_fn(|cx| self.events.poll_event(cx)))
            .await
            .ok()
    }

    /// Takes one event in, as the engine would. Returns whether there was one.
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
                let owned = self
                    .assigned
                    .get(&batch.assignment.partition)
                    .filter(|assignment| assignment.id == batch.assignment);
                let stands = owned.is_some_and(|assignment| {
                    let lease = assignment.lease.as_ref();
                    lease.is_none_or(|lease| lease.stands_at(lease.clock().now()))
                });
                if stands {
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

    /// Takes events in until something holds.
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

    /// Returns the numbers that have come.
    #[must_use]
    pub fn numbers(&self) -> Vec<u64> {
        self.received.iter().map(|(_, _, number)| *number).collect()
    }

    /// Returns the tenure of a partition that the member owns.
    #[must_use]
    pub fn id(&self, partition: u32) -> AssignmentId {
        self.assigned[&partition].id
    }

    /// Commits a position of a partition that the member owns.
    ///
    /// # Errors
    /// Those of the driver.
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
