//! Sending batches of one topic.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Error, ErrorKind, Message, Offset, Outcome, Result, TopicName,
    driver::{self, NotNow, ProducerRequest, SendBatch, SendWindow, invalid_partition, topic_not_found},
};
use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::KafkaError,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig},
    types::RDKafkaErrorCode as Code,
};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    client::{self, Cause, Client, LOOK},
    error, ffi, record,
    watch::{Seen, TopicWatch},
};

/// Batches of one partition that may be under way: the library keeps their order by itself.
const BATCHES: usize = 64;
const MOST_MESSAGES: usize = 1000;
const MOST_BYTES: usize = 1024 * 1024;

/// How long the thread of an idle producer rests before it looks around. The wrapper cuts what is left of a wait to whole
/// milliseconds and asks without rest in the last one, which took a hundredth of a processor for each idle producer: with
/// so little above whole milliseconds, the wait is over when it wakes.
const REST: Duration = LOOK.saturating_add(Duration::from_micros(20));

// A message is found again by the number of its batch and its place in it, in one pointer.
const _: () = assert!(usize::BITS >= 64, "mq-kafka needs pointers of 64 bits");

/// Sends to one topic with a client of the library of its own.
pub(crate) struct KafkaProducer {
    topic: TopicName,
    client: Arc<Client>,
    window: SendWindow,
    partitions: watch::Sender<u32>,
    flights: Arc<Flights>,
    /// Replaced when the library says that it can never be used again; none once closed, so that the thread of the client
    /// is its last holder and destroys it.
    line: RwLock<Option<Line>>,
    closed: AtomicBool,
    ended: watch::Sender<Option<watch::Receiver<()>>>,
    follower: OnceLock<AbortHandle>,
    watch: Arc<TopicWatch>,
}

/// A client of the library and the thread that serves it.
#[derive(Clone)]
struct Line {
    producer: Arc<BaseProducer<SendContext>>,
    stop: Arc<AtomicBool>,
    ended: watch::Receiver<()>,
}

impl Line {
    fn open(client: &Client, flights: &Arc<Flights>) -> Result<Self> {
        let context = SendContext {
            cause: Arc::clone(&client.cause),
            flights: Arc::clone(flights),
        };
        let producer: BaseProducer<SendContext> = client
            .config
            .producer()
            .create_with_context(context)
            .map_err(|error| error::from_kafka("opening a producer", &error))?;
        let (alive, ended) = watch::channel(());
        let line = Self {
            producer: Arc::new(producer),
            stop: Arc::new(AtomicBool::new(false)),
            ended,
        };
        let Self { producer, stop, .. } = line.clone();
        client::spawn("mq-kafka-producer", move || {
            while !stop.load(Ordering::Acquire) {
                producer.poll(REST);
            }
            // What is still under way is purged, and settled by the callbacks of that.
            client::drop_last(producer);
            drop(alive);
        })?;
        Ok(line)
    }
}

impl KafkaProducer {
    pub(crate) async fn open(client: &Arc<Client>, request: &ProducerRequest) -> Result<Arc<Self>> {
        let seen = client.watch(request.topic.as_str()).await?;
        let flights = Arc::new(Flights::new(request.topic.clone()));
        let line = Line::open(client, &flights)?;
        let (partitions, _) = watch::channel(seen.partitions());
        let producer = Arc::new(Self {
            topic: request.topic.clone(),
            client: Arc::clone(client),
            window: SendWindow::new(BATCHES, MOST_MESSAGES.min(request.max_batch.max(1)), MOST_BYTES),
            partitions,
            flights,
            line: RwLock::new(Some(line)),
            closed: AtomicBool::new(false),
            ended: watch::channel(None).0,
            follower: OnceLock::new(),
            watch: seen,
        });
        // Ends with the producer, which aborts it.
        let follower = tokio::spawn(follow(Arc::downgrade(&producer), producer.watch.follow()));
        let _ = producer.follower.set(follower.abort_handle());
        Ok(producer)
    }

    fn line(&self) -> Option<Line> {
        self.line.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the client; its thread destroys it when the sends that use it have returned.
    fn end(&self) -> Option<watch::Receiver<()>> {
        self.closed.store(true, Ordering::Release);
        if let Some(follower) = self.follower.get() {
            follower.abort();
        }
        let line = self.line.write().unwrap_or_else(PoisonError::into_inner).take()?;
        line.stop.store(true, Ordering::Release);
        Some(line.ended)
    }

    /// Puts a new client in the place of one that can never be used again.
    fn replace(&self, broken: &Line) {
        let mut line = self.line.write().unwrap_or_else(PoisonError::into_inner);
        if line
            .as_ref()
            .is_none_or(|line| !Arc::ptr_eq(&line.producer, &broken.producer))
        {
            return;
        }
        match Line::open(&self.client, &self.flights) {
            Ok(fresh) => {
                tracing::warn!(topic = %self.topic, "the kafka producer met a fatal error and was replaced");
                *line = Some(fresh);
                broken.stop.store(true, Ordering::Release);
            }
            Err(error) => {
                tracing::warn!(topic = %self.topic, %error, "the kafka producer cannot be replaced");
            }
        }
    }
}

/// Follows what becomes of the topic.
async fn follow(producer: Weak<KafkaProducer>, mut seen: watch::Receiver<Seen>) {
    while seen.changed().await.is_ok() {
        let now = seen.borrow_and_update().clone();
        let Some(producer) = producer.upgrade() else {
            return;
        };
        let Some(Line { producer: client, .. }) = producer.line() else {
            return;
        };
        if now.gone {
            producer.flights.gone.store(true, Ordering::Release);
            client.purge(PurgeConfig::default().queue().inflight());
            return;
        }
        if now.partitions > *producer.partitions.borrow() {
            // The client of the library learns of them before anybody sends there.
            let topic = producer.topic.as_str().to_owned();
            let told =
                client::blocking(move || client.client().fetch_metadata(Some(&topic), LOOK * 40).is_ok())
                    .await;
            if told.unwrap_or(false) {
                producer.partitions.send_replace(now.partitions);
            } else {
                tokio::time::sleep(LOOK).await;
                seen.mark_changed();
            }
        }
    }
}

#[async_trait]
impl driver::Producer for KafkaProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.partitions.subscribe()
    }

    fn window(&self) -> SendWindow {
        self.window
    }

    fn send(&self, batch: SendBatch) {
        if self.closed.load(Ordering::Acquire) {
            return batch.fail_all(&Error::closed("producer"));
        }
        if self.flights.gone.load(Ordering::Acquire) {
            return batch.fail_all(&topic_not_found(&self.topic));
        }
        let known = *self.partitions.borrow();
        if batch.partition() >= known {
            return batch.fail_all(&invalid_partition(&self.topic, batch.partition(), known));
        }
        let Some(line) = self.line() else {
            return batch.fail_all(&Error::closed("producer"));
        };
        if self.flights.send(&line.producer, batch) == Sent::Fatal {
            self.replace(&line);
        }
    }

    fn store_now(&self, _: u32, _: &mut Message, _: &mut driver::Wakes) -> Result<Option<Offset>, NotNow> {
        Err(NotNow)
    }

    async fn close(&self) -> Result<()> {
        if let Some(ended) = self.end() {
            self.ended.send_replace(Some(ended));
        }
        // A second caller waits for the same end.
        let ended = self.ended.borrow().clone();
        if let Some(mut ended) = ended {
            let _ = ended.changed().await;
        }
        Ok(())
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for KafkaProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaProducer")
            .field("topic", &self.topic)
            .field("partitions", &*self.partitions.borrow())
            .finish_non_exhaustive()
    }
}

#[derive(PartialEq, Eq)]
enum Sent {
    Handed,
    Fatal,
}

/// Keeps the batches that are under way, each until every message of it is heard of.
struct Flights {
    topic: TopicName,
    gone: AtomicBool,
    next: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The batch that was heard of last: the next report is of the same one as a rule.
    current: Option<(u32, Flight)>,
    others: HashMap<u32, Flight>,
}

struct Flight {
    batch: Arc<SendBatch>,
    open: usize,
    /// What to add to a message's place to get its offset, where the offsets are dense.
    base: Option<i64>,
    odd: Vec<(usize, i64)>,
    failed: Vec<(usize, Error)>,
}

impl Flights {
    fn new(topic: TopicName) -> Self {
        Self {
            topic,
            gone: AtomicBool::new(false),
            next: AtomicU32::new(0),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a batch to the library, message by message in order.
    fn send(&self, producer: &BaseProducer<SendContext>, batch: SendBatch) -> Sent {
        let batch = Arc::new(batch);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let flight = Flight {
            batch: Arc::clone(&batch),
            open: batch.len(),
            base: None,
            odd: Vec::new(),
            failed: Vec::new(),
        };
        self.lock().others.insert(number, flight);
        let whole = batch.begin_io(0..batch.len());
        let partition = client::number(batch.partition());
        let mut outcome = Sent::Handed;
        let mut refused: Option<Error> = None;
        for (place, message) in batch.messages().iter().enumerate() {
            if !whole && !batch.begin_one(place) {
                // Given up by the portable layer, which has settled it.
                self.settle(number, place, None);
                continue;
            }
            if let Some(error) = &refused {
                // Behind one that could not be taken, so that order holds.
                self.settle(number, place, Some(Err(error.clone())));
                continue;
            }
            let opaque = (number as usize) << 32 | place;
            if let Err(code) = hand_over(producer, self.topic.as_str(), partition, message, opaque) {
                let error = self.refusal(code);
                if code == Code::Fatal {
                    outcome = Sent::Fatal;
                }
                if error.is_retryable() {
                    refused = Some(error.clone());
                }
                self.settle(number, place, Some(Err(error)));
            }
        }
        outcome
    }

    /// What the library refuses at once has not left the process.
    fn refusal(&self, code: Code) -> Error {
        match code {
            // It exists, or this would not have been sent: the library learns of it in a moment.
            Code::UnknownPartition | Code::Fatal => Error::new(
                ErrorKind::Interrupted,
                format!("topic {:?}: {}", self.topic, error::describe(code)),
            )
            .with_outcome(Outcome::NotSent),
            code => error::of_send(self.topic.as_str(), code, Outcome::NotSent),
        }
    }

    /// Notes what became of a message; the last one of a batch settles the batch.
    fn settle(&self, number: u32, place: usize, result: Option<Result<i64>>) {
        let mut state = self.lock();
        if state
            .current
            .as_ref()
            .is_none_or(|(current, _)| *current != number)
        {
            let Some(flight) = state.others.remove(&number) else {
                return;
            };
            if let Some((before, flight)) = state.current.replace((number, flight)) {
                state.others.insert(before, flight);
            }
        }
        let Some((_, flight)) = &mut state.current else {
            return;
        };
        match result {
            None => {}
            Some(Ok(offset)) => {
                let base = offset - i64::try_from(place).unwrap_or(0);
                if *flight.base.get_or_insert(base) != base {
                    flight.odd.push((place, offset));
                }
            }
            Some(Err(error)) => flight.failed.push((place, error)),
        }
        flight.open = flight.open.saturating_sub(1);
        if flight.open == 0 {
            let done = state.current.take();
            // Settling calls into the portable layer, which may send again from within.
            drop(state);
            if let Some((_, flight)) = done {
                flight.land();
            }
        }
    }

    fn delivered(&self, cause: &Cause, result: &DeliveryResult<'_>, opaque: usize) {
        // Both halves were put there by `send`.
        let (number, place) = ((opaque >> 32) as u32, opaque & 0xffff_ffff);
        let result = match result {
            Ok(message) => Ok(message.offset()),
            Err((failure, message)) => {
                let code = failure.rdkafka_error_code().unwrap_or(Code::Fail);
                let outcome = match ffi::may_be_stored(message) {
                    true => Outcome::Unknown,
                    false => Outcome::NotSent,
                };
                Err(self.failure(cause, code, outcome))
            }
        };
        self.settle(number, place, Some(result));
    }

    fn failure(&self, cause: &Cause, code: Code, outcome: Outcome) -> Error {
        // Partitions are only ever added: where one that was there is not, the topic is not, and the library may know
        // that before the watch does.
        if self.gone.load(Ordering::Acquire) || code == Code::UnknownPartition {
            return topic_not_found(&self.topic).with_outcome(outcome);
        }
        cause
            .explain(error::of_send(self.topic.as_str(), code, outcome))
            .with_outcome(outcome)
    }
}

impl Flight {
    fn land(self) {
        let Self {
            batch,
            base,
            odd,
            mut failed,
            ..
        } = self;
        let offset = |place: usize| {
            let place = i64::try_from(place).ok()?;
            u64::try_from(base?.checked_add(place)?).ok()
        };
        if odd.is_empty() && failed.is_empty() {
            batch.complete_all(offset(0));
            return;
        }
        let odd: HashMap<usize, i64> = odd.into_iter().collect();
        failed.sort_by_key(|(place, _)| *place);
        let mut failures = failed.into_iter().peekable();
        for place in 0..batch.len() {
            match failures.next_if(|(at, _)| *at == place) {
                Some((_, error)) => batch.fail(place..place + 1, &error),
                None => {
                    let odd = odd.get(&place).and_then(|offset| u64::try_from(*offset).ok());
                    batch.complete_one(place, odd.or_else(|| offset(place)));
                }
            }
        }
    }
}

fn hand_over(
    producer: &BaseProducer<SendContext>,
    topic: &str,
    partition: i32,
    message: &Message,
    opaque: usize,
) -> Result<(), Code> {
    let mut record: BaseRecord<'_, [u8], [u8], usize> =
        BaseRecord::with_opaque_to(topic, opaque).partition(partition);
    record.payload = message.payload().map(|payload| &**payload);
    record.key = message.key().map(|key| &**key);
    record.timestamp = record::timestamp(message);
    record.headers = record::headers(message);
    producer
        .send(record)
        .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::Fail))
}

/// Hears what becomes of the messages of one producer.
struct SendContext {
    cause: Arc<Cause>,
    flights: Arc<Flights>,
}

impl ClientContext for SendContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.cause.note(&error, reason);
    }
}

impl ProducerContext for SendContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        self.flights.delivered(&self.cause, result, opaque);
    }
}
