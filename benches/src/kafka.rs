//! The raw Kafka client's way to do each piece of work: librdkafka by its Rust wrapper, with the same durability, window,
//! commits and checks as ours.

#[cfg(feature = "kafka-peers")]
mod peer;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use mq_api::{Mode, Mq};
use mq_kafka::{KafkaConfig, KafkaMq};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, StreamConsumer},
    error::KafkaError,
    message::BorrowedMessage,
    producer::{BaseRecord, DeliveryResult, FutureProducer, FutureRecord, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use test_brokers::{Kafka, KafkaListener};
use tokio::runtime::Runtime;

use crate::{
    command::Options,
    meter::{Meter, Sample, Times, steady},
    ours::{Ours, STILL, Sending, TAKE, since, stamp, verify},
    payload::{Check, Payloads},
    rounds::Goal,
    side::Work,
    standard::Standard,
    tasks::by_tasks,
};

type Outcome<T> = Result<T, String>;

/// How often the raw client commits where messages come one by one: the default of ours.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// How the raw client sends.
#[derive(Clone, Copy, Debug)]
enum RawSending {
    /// `FutureProducer` from so many tasks, each awaiting its message.
    Tasks(u64),
    /// `FutureProducer` from one task, with so many in flight.
    Window(usize),
    /// `ThreadedProducer` with one counter shared by a batch of 1,000, and so many in flight.
    Threaded(u64),
}

/// How the raw client consumes.
#[derive(Clone, Copy, Debug)]
enum RawReading {
    /// `StreamConsumer::stream`.
    Stream,
    /// `BaseConsumer::poll` in a loop that gathers batches, on a thread of its own.
    Loop,
}

/// The raw client on a broker.
struct Raw {
    runtime: Rc<Runtime>,
    brokers: String,
    admin: AdminClient<DefaultClientContext>,
    /// Asks for what a topic holds.
    questions: BaseConsumer,
    // Ends after those who are connected to it.
    _server: Kafka,
    next: Cell<u64>,
    stored: RefCell<HashMap<(u64, usize), String>>,
}

/// Connects both clients and lists the work.
///
/// # Errors
/// Says what could not be reached.
pub fn works(server: Kafka, options: &Options) -> Outcome<Vec<Work>> {
    let runtime = Rc::new(crate::core::two_workers());
    let brokers = server.bootstrap(KafkaListener::Plain);
    let mq = runtime.block_on(async {
        KafkaMq::connect_with(KafkaConfig::new([brokers.clone()]))
            .await
            .map(Mq::from_driver)
            .map_err(text)
    })?;
    let all = Standard::new(Ours::new(Rc::clone(&runtime), mq), options);
    let raw = Rc::new(Raw {
        runtime,
        admin: base(&brokers).create().map_err(text)?,
        questions: base(&brokers).create().map_err(text)?,
        brokers,
        _server: server,
        next: Cell::new(0),
        stored: RefCell::default(),
    });
    let (many, some, few) = (all.many, all.some, all.few);
    let send = |count: u64, size: usize, how: RawSending| {
        let raw = Rc::clone(&raw);
        move || raw.produce(count, size, how)
    };
    let read = |count: u64, size: usize, how: RawReading| {
        let raw = Rc::clone(&raw);
        move || raw.consume(count, size, how)
    };
    let times = |count: u64, gap: Duration, figures: fn(Times, Times) -> Sample| {
        let raw = Rc::clone(&raw);
        move || {
            raw.times(count, gap)
                .map(|(published, delivered)| figures(published, delivered))
        }
    };
    let at_least = |ratio: f64| [Goal::AtLeast(ratio)];
    let (future, threaded) = ("`FutureProducer`", "`ThreadedProducer`, 10,000 in flight");
    let (stream, bare) = (
        "`StreamConsumer::stream`, async commits",
        "`BaseConsumer` in a loop of batches",
    );
    let mut works = vec![
        all.memory(),
        all.produce(Sending::Tasks(1000), 100).against(
            future,
            at_least(1.3),
            send(many, 100, RawSending::Tasks(1000)),
        ),
        all.produce(Sending::InFlight(1000), 100).against(
            future,
            at_least(1.0),
            send(many, 100, RawSending::Window(1000)),
        ),
    ];
    for (size, ratio) in [(100, 0.8), (1024, 0.9)] {
        works.push(all.produce(Sending::InFlight(10_000), size).against(
            threaded,
            at_least(ratio),
            send(many, size, RawSending::Threaded(10_000)),
        ));
    }
    works.push(all.produce(Sending::Tasks(1), 100).against(
        future,
        at_least(0.95),
        send(some, 100, RawSending::Tasks(1)),
    ));
    for (size, to_stream, to_bare) in [(100, 1.3, Goal::AtLeast(0.7)), (1024, 0.95, Goal::Shown)] {
        works.push(
            all.consume(many, size, Mode::Partitioned)
                .against(stream, at_least(to_stream), read(many, size, RawReading::Stream))
                .against(bare, [to_bare], read(many, size, RawReading::Loop)),
        );
    }
    works.extend([
        all.produce(Sending::InFlight(64), 100).against(
            future,
            [Goal::Shown],
            send(many, 100, RawSending::Window(64)),
        ),
        all.produce(Sending::Batches(1000), 100).against(
            future,
            [Goal::Shown],
            send(many, 100, RawSending::Window(1000)),
        ),
        all.catch_up()
            .against(stream, [Goal::Shown], read(10 * many, 100, RawReading::Stream)),
        all.group_of_four(),
        all.latency().against(
            "`FutureProducer` to `stream`",
            [Goal::AtMost(1.2), Goal::AtMost(1.2), Goal::AtMost(1.2)],
            times(few, Standard::EACH_MILLISECOND, |_, delivered| {
                Sample::latency(delivered)
            }),
        ),
        all.promise().against(
            "`FutureProducer` to `stream`",
            [Goal::AtMost(1.2); 4],
            times(few / 2, Standard::EACH_TWO_MILLISECONDS, Sample::promise),
        ),
    ]);
    works.extend(all.growth());
    #[cfg(feature = "kafka-peers")]
    works.extend(peer::works(&all, &raw));
    Ok(works)
}

fn base(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// Counts the messages that are heard of, and keeps the first failure.
#[derive(Default)]
struct Heard {
    count: AtomicU64,
    failure: Mutex<Option<KafkaError>>,
}

struct Counting;

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = Arc<Heard>;

    fn delivery(&self, result: &DeliveryResult<'_>, heard: Arc<Heard>) {
        if let Err((error, _)) = result {
            let mut failure = heard.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.clone());
        }
        heard.count.fetch_add(1, Ordering::Release);
    }
}

impl Raw {
    fn name(&self) -> String {
        self.next.set(self.next.get() + 1);
        format!("raw-{}", self.next.get())
    }

    async fn topic(&self) -> Outcome<String> {
        let name = self.name();
        let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(STILL));
        let made = self.admin.create_topics([&topic], &options).await.map_err(text)?;
        match made.into_iter().next() {
            Some(Err((name, code))) => Err(format!("{name}: {code}")),
            _ => Ok(name),
        }
    }

    async fn remove(&self, name: &str) -> Outcome<()> {
        let removed = self.admin.delete_topics(&[name], &AdminOptions::new()).await;
        removed.map(drop).map_err(text)
    }

    fn sending(&self) -> ClientConfig {
        let mut config = base(&self.brokers);
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("batch.size", "1000000")
            .set("queue.buffering.max.messages", "10000000");
        config
    }

    fn reading(&self, group: &str) -> ClientConfig {
        let mut config = base(&self.brokers);
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "100")
            .set("fetch.queue.backoff.ms", "10")
            .set("isolation.level", "read_committed")
            .set("partition.assignment.strategy", "cooperative-sticky");
        config
    }

    fn produce(&self, messages: u64, size: usize, how: RawSending) -> Outcome<Sample> {
        self.runtime.block_on(async {
            let topic = self.topic().await?;
            let payloads = Payloads::new(size);
            let sample = match how {
                RawSending::Tasks(tasks) => self.tasks(&topic, &payloads, messages, tasks).await?,
                RawSending::Window(window) => self.window(&topic, &payloads, messages, window).await?,
                RawSending::Threaded(window) => self.threaded(&topic, &payloads, messages, window).await?,
            };
            self.holds(&topic, messages)?;
            self.remove(&topic).await?;
            Ok(sample)
        })
    }

    /// Checks that all messages are there.
    fn holds(&self, topic: &str, messages: u64) -> Outcome<()> {
        let stored = self.count(topic)?;
        if stored == messages {
            Ok(())
        } else {
            Err(format!("{stored} of {messages} messages are stored"))
        }
    }

    /// Asks how many messages a topic holds.
    fn count(&self, topic: &str) -> Outcome<u64> {
        let bounds = self.questions.fetch_watermarks(topic, 0, STILL);
        let (first, next) = bounds.map_err(text)?;
        u64::try_from(next - first).map_err(text)
    }

    /// Makes a producer that has sent its first message: it knows the topic and is connected.
    async fn warm(&self, topic: &str, payloads: &Payloads) -> Outcome<FutureProducer> {
        let producer: FutureProducer = self.sending().create().map_err(text)?;
        let first = payloads.of(0);
        let sent = producer.send(record(topic, &first), STILL).await;
        sent.map_err(|(error, _)| text(error))?;
        Ok(producer)
    }

    async fn tasks(&self, topic: &str, payloads: &Payloads, messages: u64, tasks: u64) -> Outcome<Sample> {
        let producer = self.warm(topic, payloads).await?;
        let meter = Meter::start();
        let sent = by_tasks(1..messages, tasks, |numbers| {
            let (producer, topic, payloads) = (producer.clone(), topic.to_owned(), payloads.clone());
            async move {
                for number in numbers {
                    let payload = payloads.of(number);
                    let sent = producer.send(record(&topic, &payload), STILL).await;
                    sent.map_err(|(error, _)| error)?;
                }
                Ok::<_, KafkaError>(())
            }
        });
        sent.await.map_err(text)?;
        Ok(meter.stop(messages - 1))
    }

    async fn window(
        &self,
        topic: &str,
        payloads: &Payloads,
        messages: u64,
        window: usize,
    ) -> Outcome<Sample> {
        let producer = self.warm(topic, payloads).await?;
        let meter = Meter::start();
        let mut pending = VecDeque::with_capacity(window);
        for number in 1..messages {
            if pending.len() == window
                && let Some(oldest) = pending.pop_front()
            {
                settled(oldest).await?;
            }
            let payload = payloads.of(number);
            let sent = producer.send_result(record(topic, &payload));
            pending.push_back(sent.map_err(|(error, _)| text(error))?);
        }
        for receipt in pending {
            settled(receipt).await?;
        }
        Ok(meter.stop(messages - 1))
    }

    async fn threaded(
        &self,
        topic: &str,
        payloads: &Payloads,
        messages: u64,
        window: u64,
    ) -> Outcome<Sample> {
        const BATCH: u64 = 1000;
        let producer: ThreadedProducer<Counting> =
            self.sending().create_with_context(Counting).map_err(text)?;
        let mut batches: VecDeque<(u64, Arc<Heard>)> = VecDeque::new();
        let mut sent = 0;
        // The first message alone, so that the producer is connected.
        let mut meter = None;
        while sent < messages || !batches.is_empty() {
            // No more than one before it is confirmed and the clock runs.
            let (most, size) = match meter {
                None => (1, 1),
                Some(_) => (window / BATCH, BATCH),
            };
            while sent < messages && (batches.len() as u64) < most {
                let (heard, count) = (Arc::new(Heard::default()), size.min(messages - sent));
                for number in sent..sent + count {
                    let payload = payloads.of(number);
                    let mut record: BaseRecord<'_, (), [u8], Arc<Heard>> =
                        BaseRecord::with_opaque_to(topic, Arc::clone(&heard))
                            .partition(0)
                            .payload(&payload);
                    while let Err((error, again)) = producer.send(record) {
                        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                            return Err(text(error));
                        }
                        record = again;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                batches.push_back((count, heard));
                sent += count;
            }
            if let Some((count, heard)) = batches.front() {
                if heard.count.load(Ordering::Acquire) < *count {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                let failure = heard
                    .failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                if let Some(error) = failure {
                    return Err(text(error));
                }
                batches.pop_front();
                meter.get_or_insert_with(Meter::start);
            }
        }
        meter
            .map(|meter| meter.stop(messages - 1))
            .ok_or_else(|| "nothing was sent".to_owned())
    }

    /// Returns a topic that holds so many messages; it is filled once in a run.
    async fn stored(&self, messages: u64, size: usize) -> Outcome<String> {
        if let Some(topic) = self.stored.borrow().get(&(messages, size)) {
            return Ok(topic.clone());
        }
        let topic = self.topic().await?;
        self.window(&topic, &Payloads::new(size), messages, 10_000)
            .await?;
        self.stored.borrow_mut().insert((messages, size), topic.clone());
        Ok(topic)
    }

    /// Reads what is stored as a member of a group, and commits after each 1,000 messages. The clock runs from the first
    /// message to the end of the last commit.
    fn consume(&self, messages: u64, size: usize, how: RawReading) -> Outcome<Sample> {
        let config = self.reading(&self.name());
        let (sample, check) = self.runtime.block_on(async {
            let topic = self.stored(messages, size).await?;
            match how {
                RawReading::Stream => stream(&config, &topic, messages).await,
                RawReading::Loop => {
                    let reading = tokio::task::spawn_blocking(move || batches(&config, &topic, messages));
                    reading.await.map_err(text)?
                }
            }
        })?;
        verify(check, messages)?;
        Ok(sample)
    }

    /// Sends one message each `gap` and measures until it is answered, and until it is handed over.
    fn times(&self, messages: u64, gap: Duration) -> Outcome<(Times, Times)> {
        self.runtime.block_on(async {
            let topic = self.topic().await?;
            let producer: FutureProducer = self.sending().create().map_err(text)?;
            let consumer: StreamConsumer = self.reading(&topic).create().map_err(text)?;
            consumer.subscribe(&[&topic]).map_err(text)?;
            let zero = Instant::now();
            // Both ends are warm before the first that counts.
            let first = stamp(zero);
            let sent = producer.send(record(&topic, &first), STILL).await;
            sent.map_err(|(error, _)| text(error))?;
            consumer.recv().await.map_err(text)?;
            let to = topic.clone();
            let sending = tokio::spawn(async move {
                let mut ticks = steady(gap);
                let mut published = Times::default();
                for _ in 0..messages {
                    ticks.tick().await;
                    let (begun, payload) = (Instant::now(), stamp(zero));
                    let sent = producer.send(record(&to, &payload), STILL).await;
                    sent.map_err(|(error, _)| error)?;
                    published.take(begun.elapsed());
                }
                Ok::<_, KafkaError>(published)
            });
            let mut delivered = Times::default();
            let mut coming = consumer.stream();
            let mut committed = Instant::now();
            while delivered.count() < messages {
                let message = next(&mut coming).await?;
                delivered.take(since(zero, message.payload().unwrap_or_default()));
                // As ours does: an offset is stored this long after its message at the latest.
                if committed.elapsed() >= COMMIT_INTERVAL {
                    commit(&consumer, &topic, message.offset() + 1, CommitMode::Async)?;
                    committed = Instant::now();
                }
            }
            drop(coming);
            let published = sending.await.map_err(text)?.map_err(text)?;
            drop(consumer);
            self.remove(&topic).await?;
            Ok((published, delivered))
        })
    }
}

/// Consumes by `stream`.
async fn stream(config: &ClientConfig, topic: &str, messages: u64) -> Outcome<(Sample, Check)> {
    let consumer: StreamConsumer = config.create().map_err(text)?;
    consumer.subscribe(&[topic]).map_err(text)?;
    let mut coming = consumer.stream();
    let mut check = Check::default();
    check.take(next(&mut coming).await?.payload().unwrap_or_default());
    let meter = Meter::start();
    for count in 2..=messages {
        let message = next(&mut coming).await?;
        check.take(message.payload().unwrap_or_default());
        if count.is_multiple_of(TAKE as u64) {
            commit(&consumer, topic, message.offset() + 1, CommitMode::Async)?;
        }
    }
    let end = i64::try_from(messages).map_err(text)?;
    commit(&consumer, topic, end, CommitMode::Sync)?;
    Ok((meter.stop(messages - 1), check))
}

async fn next<'a, S>(coming: &mut S) -> Outcome<BorrowedMessage<'a>>
where
    S: futures_util::Stream<Item = Result<BorrowedMessage<'a>, KafkaError>> + Unpin,
{
    match tokio::time::timeout(STILL, coming.next()).await {
        Ok(Some(message)) => message.map_err(text),
        Ok(None) => Err("the stream ended".to_owned()),
        Err(_) => Err("nothing came".to_owned()),
    }
}

/// Consumes by `poll`, in batches of 1,000 that are held as a whole before they are looked at.
fn batches(config: &ClientConfig, topic: &str, messages: u64) -> Outcome<(Sample, Check)> {
    let consumer: BaseConsumer = config.create().map_err(text)?;
    consumer.subscribe(&[topic]).map_err(text)?;
    let mut check = Check::default();
    let poll = || {
        let by = Instant::now() + STILL;
        loop {
            // Nothing is also what it returns when it has served a rebalance or the answer to a commit.
            match consumer.poll(STILL) {
                Some(message) => return message.map_err(text),
                None if Instant::now() > by => return Err("nothing came".to_owned()),
                None => {}
            }
        }
    };
    check.take(poll()?.payload().unwrap_or_default());
    let meter = Meter::start();
    let mut left = messages - 1;
    let mut batch = Vec::with_capacity(TAKE);
    while left > 0 {
        while batch.len() < TAKE && left > 0 {
            batch.push(poll()?);
            left -= 1;
        }
        for message in &batch {
            check.take(message.payload().unwrap_or_default());
        }
        if let Some(last) = batch.last() {
            commit(&consumer, topic, last.offset() + 1, CommitMode::Async)?;
        }
        batch.clear();
    }
    let end = i64::try_from(messages).map_err(text)?;
    commit(&consumer, topic, end, CommitMode::Sync)?;
    Ok((meter.stop(messages - 1), check))
}

fn record<'a>(topic: &'a str, payload: &'a [u8]) -> FutureRecord<'a, (), [u8]> {
    FutureRecord::to(topic).partition(0).payload(payload)
}

async fn settled(receipt: rdkafka::producer::DeliveryFuture) -> Outcome<()> {
    match receipt.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(text(error)),
        Err(gone) => Err(text(gone)),
    }
}

fn commit<C, X>(consumer: &C, topic: &str, offset: i64, how: CommitMode) -> Outcome<()>
where
    C: Consumer<X>,
    X: ConsumerContext,
{
    let mut list = TopicPartitionList::new();
    let added = list.add_partition_offset(topic, 0, Offset::Offset(offset));
    added.map_err(text)?;
    consumer.commit(&list, how).map_err(text)
}
