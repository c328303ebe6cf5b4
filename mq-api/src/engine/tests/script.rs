//! A driver whose events a test writes, and whose calls it reads.

use std::{
    collections::VecDeque,
    future::IntoFuture,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    Capabilities, ClientOptions, Clock, Consumer, ConsumerBuilder, Error, Message, Mq, Offset, Position,
    Result, Support, Timestamp, TopicDescription, TopicName, TopicSpec,
    driver::{
        self, Assignment, AssignmentId, Batch, Commit, CommitOutcome, CommittedPosition, CommittedRequest,
        Event, Events, Record, Subscription,
    },
};

type Answer = Box<dyn FnMut() -> Result<CommitOutcome> + Send>;

#[derive(Clone)]
pub(super) struct Script {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    waker: Option<Waker>,
    calls: Vec<String>,
    commits: Vec<Commit>,
    paused: Vec<(u32, bool)>,
    answer: Option<Answer>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    pub(super) fn new() -> Self {
        Self::with_clock(&Clock::system())
    }

    pub(super) fn with_clock(clock: &Clock) -> Self {
        Self {
            state: Arc::default(),
            clock: clock.clone(),
        }
    }

    pub(super) async fn open(&self, options: impl FnOnce(ConsumerBuilder) -> ConsumerBuilder) -> Consumer {
        options(self.client(capabilities()).consumer("topic", "group"))
            .into_future()
            .await
            .unwrap()
    }

    /// Makes a client of a driver that declares this.
    pub(super) fn client(&self, capabilities: Capabilities) -> Mq {
        let client = ClientOptions::default().with_clock(self.clock.clone());
        Mq::from_driver_with(Scripted(self.clone(), capabilities), client)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn event(&self, event: Event) {
        let mut state = self.state();
        state.events.push_back(event);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn assign(&self, assignment: Assignment) {
        self.event(Event::Assigned(vec![assignment]));
    }

    pub(super) fn batch(&self, id: AssignmentId, generation: u64, offsets: Range<Offset>) {
        let next = offsets.end;
        let records: Vec<Record> = offsets
            .map(|offset| {
                let key = if offset % 2 == 0 { "a" } else { "b" };
                Record::new(
                    offset,
                    Timestamp::from_millis(0),
                    Message::new("payload").with_key(key),
                )
            })
            .collect();
        self.event(Event::Batch(Batch::new(id, generation, records.into(), next)));
    }

    /// Tells of one record that comes alone; its payload is its offset.
    pub(super) fn one(&self, id: AssignmentId, generation: u64, offset: Offset) {
        let message = Message::new(offset.to_string());
        let record = Record::new(offset, Timestamp::from_millis(0), message);
        self.event(Event::Batch(Batch::new(
            id,
            generation,
            record.into(),
            offset + 1,
        )));
    }

    pub(super) fn answer_commits(&self, answer: impl FnMut() -> Result<CommitOutcome> + Send + 'static) {
        self.state().answer = Some(Box::new(answer));
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    pub(super) fn commits(&self) -> Vec<Commit> {
        self.state().commits.clone()
    }

    pub(super) fn last_commit(&self) -> Commit {
        self.commits().pop().unwrap()
    }

    pub(super) fn paused(&self) -> Vec<(u32, bool)> {
        self.state().paused.clone()
    }

    pub(super) async fn released(&self, times: usize) {
        self.until(move |calls| calls.iter().filter(|call| call.starts_with("release")).count() >= times)
            .await;
    }

    pub(super) async fn closed(&self) {
        self.until(|calls| calls.iter().any(|call| call == "close")).await;
    }

    async fn until(&self, done: impl Fn(&[String]) -> bool) {
        let wait = async {
            while !done(&self.calls()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
    }
}

pub(super) fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::new("script");
    capabilities.partitioned = Support::Native;
    capabilities.seek = Support::Native;
    capabilities.pause = Support::Native;
    capabilities.sparse_acks = Support::Native;
    capabilities.durable_attempts = Support::Native;
    capabilities
}

struct ScriptedEvents(Script);

impl Events for ScriptedEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let mut state = self.0.state();
        match state.events.pop_front() {
            Some(event) => Poll::Ready(Ok(event)),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn name(id: AssignmentId) -> String {
    format!("{}@{}", id.partition, id.epoch)
}

#[async_trait]
impl driver::Consumer for Script {
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        tokio::task::yield_now().await;
        let mut state = self.state();
        commits
            .into_iter()
            .map(|commit| {
                state
                    .calls
                    .push(format!("commit {} {}", name(commit.assignment), commit.position));
                state.commits.push(commit);
                state
                    .answer
                    .as_mut()
                    .map_or(Ok(CommitOutcome::Stored), |answer| answer())
            })
            .collect()
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        let names: Vec<String> = assignments.into_iter().map(name).collect();
        self.state().calls.push(format!("release {}", names.join(" ")));
        Ok(())
    }

    async fn seek(&self, _assignment: AssignmentId, to: Position, _generation: u64) -> Result<Offset> {
        match to {
            Position::Offset(offset) => Ok(offset),
            _ => Ok(0),
        }
    }

    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        self.state()
            .paused
            .extend(assignments.iter().map(|id| (id.partition, paused)));
    }

    async fn close(&self) -> Result<()> {
        self.state().calls.push("close".to_owned());
        Ok(())
    }
}

#[derive(Debug)]
struct Scripted(Script, Capabilities);

fn unsupported<T>() -> Result<T> {
    Err(Error::unsupported("script", "this"))
}

#[async_trait]
impl driver::Mq for Scripted {
    fn capabilities(&self) -> &Capabilities {
        &self.1
    }

    async fn create_topic(&self, _spec: TopicSpec) -> Result<()> {
        unsupported()
    }

    async fn add_partitions(&self, _topic: TopicName, _partitions: u32) -> Result<()> {
        unsupported()
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        topics.iter().map(|_| unsupported()).collect()
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        unsupported()
    }

    async fn describe_topic(&self, _topic: TopicName) -> Result<TopicDescription> {
        unsupported()
    }

    async fn committed(&self, _request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        unsupported()
    }

    async fn producer(&self, _request: driver::ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        unsupported()
    }

    async fn consumer(
        &self,
        _subscription: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        Ok((Arc::new(self.0.clone()), Box::new(ScriptedEvents(self.0.clone()))))
    }

    async fn queue_consumer(&self, _subscription: Subscription) -> Result<Arc<dyn driver::QueueConsumer>> {
        unsupported()
    }

    async fn reader(&self, _topic: TopicName) -> Result<Arc<dyn driver::Reader>> {
        unsupported()
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
