//! A driver around a driver: it forwards everything, and a [`Tweak`] changes what it wants to.
//!
//! Cases use it for faults that a server cannot be asked for, and the mutants that prove the suite are made of it.

mod consumer;
mod producer;
mod reader;

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Capabilities, Moment, Offset, Position, Result, Timestamp, TopicDescription, TopicName, TopicSpec,
    driver::{
        AssignmentId, Commit, CommitOutcome, CommittedPosition, CommittedRequest, Consumer, Event, Events,
        FetchRequest, Fetched, Mq, Producer, ProducerRequest, QueueConsumer, QueueReceipt, QueueRecord,
        Reader, SendBatch, SendWindow, Subscription,
    },
};

use tokio::sync::watch;

pub(crate) use self::{consumer::TweakedConsumer, producer::TweakedProducer, reader::TweakedReader};

/// Names one thing that was opened through a tweaked driver.
#[derive(Clone, Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "only mutants look at all of it"))]
pub(crate) struct Scope {
    /// Counts what was opened through all tweaked drivers of this process.
    pub(crate) id: u64,
    /// The topic.
    pub(crate) topic: TopicName,
    /// The group; empty for producers and readers.
    pub(crate) group: String,
}

impl Scope {
    fn new(topic: TopicName, group: impl Into<String>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            topic,
            group: group.into(),
        }
    }
}

/// Changes what a driver does. Each method stands for one of the driver traits' and forwards unless it is replaced.
#[async_trait]
pub(crate) trait Tweak: Debug + Send + Sync + 'static {
    /// Says how often the broker is to drop all connections.
    #[cfg_attr(not(test), allow(dead_code, reason = "only the mutants' harness asks"))]
    fn loses_sessions_every(&self) -> Option<Duration> {
        None
    }
    fn capabilities(&self, declared: Capabilities) -> Capabilities {
        declared
    }
    async fn create_topic(&self, inner: &dyn Mq, spec: TopicSpec) -> Result<()> {
        inner.create_topic(spec).await
    }
    async fn add_partitions(&self, inner: &dyn Mq, topic: TopicName, partitions: u32) -> Result<()> {
        inner.add_partitions(topic, partitions).await
    }
    async fn delete_topics(&self, inner: &dyn Mq, topics: Vec<TopicName>) -> Vec<Result<()>> {
        inner.delete_topics(topics).await
    }
    async fn list_topics(&self, inner: &dyn Mq) -> Result<Vec<TopicName>> {
        inner.list_topics().await
    }
    async fn describe_topic(&self, inner: &dyn Mq, topic: TopicName) -> Result<TopicDescription> {
        inner.describe_topic(topic).await
    }
    async fn committed(&self, inner: &dyn Mq, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        inner.committed(request).await
    }
    async fn producer(&self, inner: &dyn Mq, request: ProducerRequest) -> Result<Arc<dyn Producer>> {
        inner.producer(request).await
    }
    async fn consumer(
        &self,
        inner: &dyn Mq,
        subscription: Subscription,
    ) -> Result<(Arc<dyn Consumer>, Box<dyn Events>)> {
        inner.consumer(subscription).await
    }
    async fn queue_consumer(
        &self,
        inner: &dyn Mq,
        subscription: Subscription,
    ) -> Result<Arc<dyn QueueConsumer>> {
        inner.queue_consumer(subscription).await
    }
    async fn reader(&self, inner: &dyn Mq, topic: TopicName) -> Result<Arc<dyn Reader>> {
        inner.reader(topic).await
    }
    async fn close(&self, inner: &dyn Mq) -> Result<()> {
        inner.close().await
    }

    fn partitions(&self, _scope: &Scope, partitions: watch::Receiver<u32>) -> watch::Receiver<u32> {
        partitions
    }
    fn window(&self, _scope: &Scope, window: SendWindow) -> SendWindow {
        window
    }
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        inner.send(batch);
    }
    async fn close_producer(&self, _scope: &Scope, inner: &dyn Producer) -> Result<()> {
        inner.close().await
    }

    fn poll_event(
        &self,
        _scope: &Scope,
        inner: &mut dyn Events,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event>> {
        inner.poll_event(cx)
    }
    async fn commit(
        &self,
        _scope: &Scope,
        inner: &dyn Consumer,
        commits: Vec<Commit>,
    ) -> Vec<Result<CommitOutcome>> {
        inner.commit(commits).await
    }
    async fn release(
        &self,
        _scope: &Scope,
        inner: &dyn Consumer,
        assignments: Vec<AssignmentId>,
    ) -> Result<()> {
        inner.release(assignments).await
    }
    async fn seek(
        &self,
        _scope: &Scope,
        inner: &dyn Consumer,
        assignment: AssignmentId,
        to: Position,
        generation: u64,
    ) -> Result<Offset> {
        inner.seek(assignment, to, generation).await
    }
    fn pause(&self, _scope: &Scope, inner: &dyn Consumer, assignments: &[AssignmentId], paused: bool) {
        inner.pause(assignments, paused);
    }
    async fn close_consumer(&self, _scope: &Scope, inner: &dyn Consumer) -> Result<()> {
        inner.close().await
    }

    async fn receive(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        max: usize,
    ) -> Result<Vec<QueueRecord>> {
        inner.receive(max).await
    }
    async fn ack(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        receipts: Vec<QueueReceipt>,
    ) -> Vec<Result<()>> {
        inner.ack(receipts).await
    }
    async fn nack(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        receipts: Vec<(QueueReceipt, Duration)>,
    ) -> Vec<Result<()>> {
        inner.nack(receipts).await
    }
    async fn extend(
        &self,
        _scope: &Scope,
        inner: &dyn QueueConsumer,
        receipts: Vec<QueueReceipt>,
    ) -> Vec<Result<(QueueReceipt, Moment)>> {
        inner.extend(receipts).await
    }
    async fn close_queue(&self, _scope: &Scope, inner: &dyn QueueConsumer) -> Result<()> {
        inner.close().await
    }

    async fn fetch(&self, _scope: &Scope, inner: &dyn Reader, request: FetchRequest) -> Result<Fetched> {
        inner.fetch(request).await
    }
    async fn offset_at(
        &self,
        _scope: &Scope,
        inner: &dyn Reader,
        partition: u32,
        time: Timestamp,
    ) -> Result<Offset> {
        inner.offset_at(partition, time).await
    }
    async fn bounds(&self, _scope: &Scope, inner: &dyn Reader) -> Result<Vec<(Offset, Offset)>> {
        inner.bounds().await
    }
    async fn close_reader(&self, _scope: &Scope, inner: &dyn Reader) -> Result<()> {
        inner.close().await
    }
}

/// Changes nothing.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Tweak for Nothing {}

/// A driver that another one stands behind, with a tweak in between.
#[derive(Debug)]
pub(crate) struct Tweaked {
    inner: Arc<dyn Mq>,
    tweak: Arc<dyn Tweak>,
    capabilities: Capabilities,
}

impl Tweaked {
    /// Puts a tweak in front of a driver.
    pub(crate) fn new(inner: Arc<dyn Mq>, tweak: Arc<dyn Tweak>) -> Self {
        let capabilities = tweak.capabilities(inner.capabilities().clone());
        Self {
            inner,
            tweak,
            capabilities,
        }
    }
}

/// Puts nothing in front of a driver, so that an open one can be given to another portable client.
#[derive(Debug)]
pub(crate) struct Forward;

impl Forward {
    /// Wraps a driver.
    #[expect(
        clippy::new_ret_no_self,
        reason = "what forwards is a tweaked driver without a tweak"
    )]
    pub(crate) fn new(inner: Arc<dyn Mq>) -> Tweaked {
        Tweaked::new(inner, Arc::new(Nothing))
    }
}

#[async_trait]
impl Mq for Tweaked {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        self.tweak.create_topic(&*self.inner, spec).await
    }
    async fn add_partitions(&self, topic: TopicName, partitions: u32) -> Result<()> {
        self.tweak.add_partitions(&*self.inner, topic, partitions).await
    }
    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        self.tweak.delete_topics(&*self.inner, topics).await
    }
    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        self.tweak.list_topics(&*self.inner).await
    }
    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        self.tweak.describe_topic(&*self.inner, topic).await
    }
    async fn committed(&self, request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        self.tweak.committed(&*self.inner, request).await
    }
    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn Producer>> {
        let scope = Scope::new(request.topic.clone(), "");
        let inner = self.tweak.producer(&*self.inner, request).await?;
        Ok(Arc::new(TweakedProducer::new(
            inner,
            Arc::clone(&self.tweak),
            scope,
        )))
    }
    async fn consumer(&self, subscription: Subscription) -> Result<(Arc<dyn Consumer>, Box<dyn Events>)> {
        let scope = Scope::new(subscription.topic.clone(), subscription.group.as_str());
        let (inner, events) = self.tweak.consumer(&*self.inner, subscription).await?;
        let (consumer, events) = TweakedConsumer::pair(inner, events, Arc::clone(&self.tweak), scope);
        Ok((Arc::new(consumer), Box::new(events)))
    }
    async fn queue_consumer(&self, subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        let scope = Scope::new(subscription.topic.clone(), subscription.group.as_str());
        let inner = self.tweak.queue_consumer(&*self.inner, subscription).await?;
        Ok(Arc::new(consumer::TweakedQueue::new(
            inner,
            Arc::clone(&self.tweak),
            scope,
        )))
    }
    async fn reader(&self, topic: TopicName) -> Result<Arc<dyn Reader>> {
        let scope = Scope::new(topic.clone(), "");
        let inner = self.tweak.reader(&*self.inner, topic).await?;
        Ok(Arc::new(TweakedReader::new(
            inner,
            Arc::clone(&self.tweak),
            scope,
        )))
    }
    async fn close(&self) -> Result<()> {
        self.tweak.close(&*self.inner).await
    }
}
