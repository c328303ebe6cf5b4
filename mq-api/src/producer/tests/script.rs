//! A driver that does with each batch what a test has written down.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    Capabilities, ClientOptions, Error, ErrorKind, Message, Mq, Offset, Outcome, Producer, ProducerBuilder,
    Result, Support, TopicDescription, TopicName, TopicSpec,
    driver::{
        self, CommittedPosition, CommittedRequest, Events, NotNow, ProducerRequest, QueueConsumer, SendBatch,
        SendWindow, Subscription, Wakes,
    },
    producer::core::Core,
};

/// What becomes of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Do {
    /// It is stored within `send`.
    Store,
    /// It is stored by a thread that no runtime knows.
    StoreFromThread,
    /// It fails, within `send`.
    Fail(ErrorKind, Outcome),
    /// It fails in a thread that no runtime knows.
    FailFromThread(ErrorKind, Outcome),
    /// It is kept for the test to settle.
    Hold,
    /// It is dropped unsettled.
    Drop,
    /// It is dropped unsettled after its bytes began to leave.
    BeginAndDrop,
}

#[derive(Clone)]
pub(crate) struct Script(Arc<Inner>);

struct Inner {
    capabilities: Capabilities,
    window: SendWindow,
    partitions: watch::Sender<u32>,
    plan: Mutex<VecDeque<Do>>,
    otherwise: Mutex<Do>,
    held: Mutex<VecDeque<SendBatch>>,
    sent: Mutex<Vec<(u32, Vec<String>)>>,
    stored: Mutex<Vec<(u32, String)>>,
    offset: AtomicU64,
    in_send: Mutex<HashSet<u32>>,
    closes: AtomicUsize,
    close_with: Mutex<Option<Error>>,
    probe: OnceLock<Arc<Core>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Script {
    pub(crate) fn new(partitions: u32, window: usize) -> Self {
        Self::with_window(partitions, SendWindow::new(window, 1000, 1 << 20))
    }

    pub(crate) fn with_window(partitions: u32, window: SendWindow) -> Self {
        let mut capabilities = Capabilities::new("script");
        capabilities.tombstone = Support::Native;
        Self::with_capabilities(partitions, window, capabilities)
    }

    pub(crate) fn with_capabilities(partitions: u32, window: SendWindow, capabilities: Capabilities) -> Self {
        Self(Arc::new(Inner {
            capabilities,
            window,
            partitions: watch::Sender::new(partitions),
            plan: Mutex::default(),
            otherwise: Mutex::new(Do::Store),
            held: Mutex::default(),
            sent: Mutex::default(),
            stored: Mutex::default(),
            offset: AtomicU64::new(0),
            in_send: Mutex::default(),
            closes: AtomicUsize::new(0),
            close_with: Mutex::default(),
            probe: OnceLock::new(),
        }))
    }

    pub(crate) fn mq(&self) -> Mq {
        Mq::from_driver(self.clone())
    }

    pub(crate) fn mq_with(&self, options: ClientOptions) -> Mq {
        Mq::from_driver_with(self.clone(), options)
    }

    /// Opens a producer; `send` then checks that it is not called with the producer's lock held.
    pub(super) async fn open(&self, options: impl FnOnce(ProducerBuilder) -> ProducerBuilder) -> Producer {
        let producer = options(self.mq().producer("t")).await.unwrap();
        let _ = self.0.probe.set(Arc::clone(&producer.core));
        producer
    }

    /// Says what becomes of the next batches.
    pub(crate) fn next(&self, plan: impl IntoIterator<Item = Do>) {
        lock(&self.0.plan).extend(plan);
    }

    /// Says what becomes of batches that nothing else is said about.
    pub(crate) fn otherwise(&self, what: Do) {
        *lock(&self.0.otherwise) = what;
    }

    pub(crate) fn grow(&self, partitions: u32) {
        self.0.partitions.send_replace(partitions);
    }

    pub(crate) fn close_with(&self, error: Error) {
        *lock(&self.0.close_with) = Some(error);
    }

    pub(crate) fn closes(&self) -> usize {
        self.0.closes.load(Ordering::SeqCst)
    }

    /// Takes the oldest batch that is held, waiting for it.
    pub(crate) async fn held(&self) -> SendBatch {
        for _ in 0..5000 {
            if let Some(batch) = lock(&self.0.held).pop_front() {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no batch came; sent so far: {:?}", self.sent());
    }

    /// Returns the batches as they were handed over.
    pub(crate) fn sent(&self) -> Vec<(u32, Vec<String>)> {
        lock(&self.0.sent).clone()
    }

    /// Returns what is stored, in order.
    pub(crate) fn stored(&self) -> Vec<(u32, String)> {
        lock(&self.0.stored).clone()
    }

    pub(crate) fn stored_in(&self, partition: u32) -> Vec<String> {
        let stored = self.stored();
        let mine = stored.into_iter().filter(|(at, _)| *at == partition);
        mine.map(|(_, text)| text).collect()
    }

    /// Takes the nth batch that is held, if there is one.
    pub(crate) fn take_held(&self, at: usize) -> Option<SendBatch> {
        lock(&self.0.held).remove(at)
    }

    /// Takes the oldest batch that is held of the partition that the nth one is of.
    pub(crate) fn take_oldest_of_same(&self, at: usize) -> Option<SendBatch> {
        let mut held = lock(&self.0.held);
        let partition = held.get(at)?.partition();
        let oldest = held.iter().position(|batch| batch.partition() == partition)?;
        held.remove(oldest)
    }

    /// Stores a batch as a backend does, skipping what was given up.
    pub(crate) fn store(&self, batch: &SendBatch) {
        self.store_range(batch, 0..batch.len());
    }

    /// Stores a part of a batch.
    pub(crate) fn store_range(&self, batch: &SendBatch, range: std::ops::Range<usize>) {
        for (index, text) in texts(batch).into_iter().enumerate() {
            if range.contains(&index) && batch.begin_one(index) {
                lock(&self.0.stored).push((batch.partition(), text));
                let offset = self.0.offset.fetch_add(1, Ordering::SeqCst);
                batch.complete_one(index, Some(offset));
            }
        }
    }

    fn act(&self, what: Do, batch: SendBatch) {
        match what {
            Do::Store => self.store(&batch),
            Do::StoreFromThread => {
                let script = self.clone();
                std::thread::spawn(move || script.store(&batch));
            }
            Do::Fail(kind, outcome) => batch.fail_all(&failure(kind, outcome)),
            Do::FailFromThread(kind, outcome) => {
                std::thread::spawn(move || batch.fail_all(&failure(kind, outcome)));
            }
            Do::Hold => lock(&self.0.held).push_back(batch),
            Do::Drop => drop(batch),
            Do::BeginAndDrop => {
                batch.begin_io(0..batch.len());
            }
        }
    }
}

pub(crate) fn failure(kind: ErrorKind, outcome: Outcome) -> Error {
    Error::new(kind, "as the script says").with_outcome(outcome)
}

pub(crate) fn texts(batch: &SendBatch) -> Vec<String> {
    let text = |message: &crate::Message| String::from_utf8_lossy(message.payload_or_empty()).into_owned();
    batch.messages().iter().map(text).collect()
}

#[async_trait]
impl driver::Producer for Script {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.0.partitions.subscribe()
    }

    fn window(&self) -> SendWindow {
        self.0.window
    }

    /// Stores, where the window says so and nothing else is said about the next batch.
    fn store_now(
        &self,
        partition: u32,
        message: &mut Message,
        _: &mut Wakes,
    ) -> Result<Option<Offset>, NotNow> {
        if !lock(&self.0.plan).is_empty() {
            return Err(NotNow);
        }
        let stored = std::mem::take(message);
        let text = String::from_utf8_lossy(stored.payload_or_empty()).into_owned();
        lock(&self.0.stored).push((partition, text));
        Ok(Some(self.0.offset.fetch_add(1, Ordering::SeqCst)))
    }

    fn send(&self, batch: SendBatch) {
        let partition = batch.partition();
        assert!(
            lock(&self.0.in_send).insert(partition),
            "two threads send to partition {partition}"
        );
        if let Some(core) = self.0.probe.get() {
            core.assert_unlocked();
        }
        lock(&self.0.sent).push((partition, texts(&batch)));
        let planned = lock(&self.0.plan).pop_front();
        let what = planned.unwrap_or_else(|| lock(&self.0.otherwise).clone());
        self.act(what, batch);
        lock(&self.0.in_send).remove(&partition);
    }

    async fn close(&self) -> Result<()> {
        self.0.closes.fetch_add(1, Ordering::SeqCst);
        lock(&self.0.close_with).clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl driver::Mq for Script {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        lock(&self.0.stored).push((spec.partitions, format!("create {}", spec.name)));
        Ok(())
    }

    async fn add_partitions(&self, _: TopicName, partitions: u32) -> Result<()> {
        self.grow(partitions);
        Ok(())
    }

    async fn delete_topics(&self, topics: Vec<TopicName>) -> Vec<Result<()>> {
        topics
            .into_iter()
            .map(|topic| match topic.as_str() {
                "stuck" => Err(failure(ErrorKind::PermissionDenied, Outcome::NotSent)),
                _ => Ok(()),
            })
            .collect()
    }

    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        Ok(Vec::new())
    }

    async fn describe_topic(&self, _: TopicName) -> Result<TopicDescription> {
        std::future::pending().await
    }

    async fn committed(&self, _: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        Ok(Vec::new())
    }

    async fn producer(&self, request: ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        match request.topic.as_str() {
            "none" => Err(driver::topic_not_found(&request.topic)),
            _ => Ok(Arc::new(self.clone())),
        }
    }

    async fn consumer(&self, _: Subscription) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
        Err(Error::unsupported("script", "consumers"))
    }

    async fn queue_consumer(&self, _: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        Err(Error::unsupported("script", "consumers"))
    }

    async fn reader(&self, _: TopicName) -> Result<Arc<dyn driver::Reader>> {
        Err(Error::unsupported("script", "readers"))
    }

    async fn close(&self) -> Result<()> {
        self.0.closes.fetch_add(1, Ordering::SeqCst);
        lock(&self.0.close_with).clone().map_or(Ok(()), Err)
    }
}
