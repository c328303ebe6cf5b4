//! Our way to do each piece of work, through the public API: the same code for every backend.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mq_api::{Consumer, Message, Mode, Mq, PartitionDescription, Producer, Result, Start};
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use crate::{
    meter::{Meter, Pace, Sample, Times, resident, steady},
    payload::{Check, Payloads},
    side::JOIN,
    tasks::by_tasks,
};

/// How many messages a consumer takes at once.
pub const TAKE: usize = 1000;
/// How long a round may stand still before it is a failure.
pub const STILL: Duration = Duration::from_secs(60);
/// How many topics are opened or closed at once.
const AT_ONCE: usize = 8;
/// How long after their joining idle members are left alone, so that what they do then is not measured.
const SETTLE: Duration = Duration::from_secs(3);
/// How long after its confirm a message may be missing in what a topic is said to hold.
const SEEN: Duration = Duration::from_secs(10);
/// The size of a payload that carries a time, in bytes.
pub const STAMPED: usize = 100;

/// How a message is sent.
#[derive(Clone, Copy, Debug)]
pub enum Sending {
    /// By so many tasks, each awaiting its message.
    Tasks(u64),
    /// By one task, with so many in flight.
    InFlight(usize),
    /// By one task, in batches of so many.
    Batches(u64),
}

/// A client of ours on a broker, and a runtime.
pub struct Ours {
    runtime: Rc<Runtime>,
    mq: Mq,
    next: Cell<u64>,
    warm_up: Cell<u64>,
    stored: RefCell<HashMap<(usize, u32, u64), String>>,
}

impl std::fmt::Debug for Ours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ours")
            .field("mq", &self.mq)
            .finish_non_exhaustive()
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Says what is wrong with what a receiver saw.
///
/// # Errors
/// Where a message is missing, doubled or another one.
pub fn verify(check: Check, messages: u64) -> std::result::Result<(), String> {
    if check == Check::expected(messages, 1) {
        Ok(())
    } else {
        Err(format!("{check:?} came of {messages} messages"))
    }
}

/// Makes a payload that tells when it was made.
#[must_use]
pub fn stamp(zero: Instant) -> Vec<u8> {
    let nanos = u64::try_from(zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut bytes = nanos.to_le_bytes().to_vec();
    bytes.resize(STAMPED, 0xAB);
    bytes
}

/// Returns how long ago a payload was made.
#[must_use]
pub fn since(zero: Instant, payload: &[u8]) -> Duration {
    let sent = payload
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    zero.elapsed().saturating_sub(Duration::from_nanos(sent))
}

/// The payloads of a steady rate, and how long the send of each takes: from when it is given until the next is asked for.
#[derive(Debug)]
pub struct SteadySends {
    left: u64,
    zero: Instant,
    pace: Pace,
    begun: Option<Instant>,
    times: Times,
}

impl SteadySends {
    /// Gives so many [stamped](stamp) payloads, one each `gap`.
    #[must_use]
    pub fn new(messages: u64, gap: Duration, zero: Instant) -> Self {
        Self {
            left: messages,
            zero,
            pace: steady(gap),
            begun: None,
            times: Times::default(),
        }
    }

    /// Returns the next payload when its time has come; none after the last.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(begun) = self.begun.take() {
            self.times.take(begun.elapsed());
        }
        self.left = self.left.checked_sub(1)?;
        self.pace.tick().await;
        self.begun = Some(Instant::now());
        Some(stamp(self.zero))
    }

    /// Returns how long each send took.
    #[must_use]
    pub fn times(self) -> Times {
        self.times
    }
}

impl Ours {
    /// Takes a client that is connected.
    #[must_use]
    pub fn new(runtime: Rc<Runtime>, mq: Mq) -> Rc<Self> {
        Rc::new(Self {
            runtime,
            mq,
            next: Cell::new(0),
            warm_up: Cell::new(1),
            stored: RefCell::default(),
        })
    }

    /// Sets how many messages go before those that count, at the same pace, where a steady rate is measured (default: 1).
    pub fn warm_up(&self, messages: u64) {
        self.warm_up.set(messages);
    }

    /// Returns the client.
    #[must_use]
    pub fn mq(&self) -> &Mq {
        &self.mq
    }

    fn name(&self, hint: &str) -> String {
        self.next.set(self.next.get() + 1);
        format!("bench-{hint}-{}", self.next.get())
    }

    /// Sends messages of a size over so many partitions, and waits until all are stored.
    ///
    /// # Errors
    /// Says what failed.
    pub fn produce(
        &self,
        messages: u64,
        size: usize,
        partitions: u32,
        sending: Sending,
    ) -> std::result::Result<Sample, String> {
        let topic = self.name("produce");
        let payloads = Payloads::new(size);
        self.runtime.block_on(async {
            self.mq.create_topic(&topic, partitions).await.map_err(text)?;
            let sample = send(&self.mq, &topic, messages, &payloads, sending).await;
            let sample = sample.map_err(text)?;
            holds(&self.mq, &topic, messages).await?;
            self.mq.delete_topic(&topic).await.map_err(text)?;
            Ok(sample)
        })
    }

    /// Returns a topic that holds so many messages; it is filled once in a run.
    ///
    /// # Errors
    /// Says what failed.
    pub fn stored(&self, messages: u64, size: usize, partitions: u32) -> std::result::Result<String, String> {
        let key = (size, partitions, messages);
        if let Some(topic) = self.stored.borrow().get(&key) {
            return Ok(topic.clone());
        }
        let topic = self.name("stored");
        let payloads = Payloads::new(size);
        self.runtime
            .block_on(async {
                self.mq.create_topic(&topic, partitions).await?;
                send(&self.mq, &topic, messages, &payloads, Sending::Batches(1000)).await
            })
            .map_err(text)?;
        self.stored.borrow_mut().insert(key, topic.clone());
        Ok(topic)
    }

    /// Consumes what is stored in a topic and acks each message. The clock runs from the first hand-over to the end of the
    /// last commit.
    ///
    /// # Errors
    /// Says what failed.
    pub fn consume(&self, topic: &str, messages: u64, mode: Mode) -> std::result::Result<Sample, String> {
        let group = self.name("group");
        self.take(messages, 0, 0, async {
            let builder = self.mq.consumer(topic, &group).mode(mode);
            builder.start_at(Start::Earliest).await
        })
    }

    /// Does the same by a member that owns all of so many partitions before it takes the first message, with so many of the
    /// first messages left without an ack until the end. The clock runs for the second half of the messages: what the join
    /// takes, and what comes ahead meanwhile, is not in it.
    ///
    /// # Errors
    /// Says what failed.
    pub fn consume_owned(
        &self,
        topic: &str,
        messages: u64,
        partitions: u32,
        held: usize,
    ) -> std::result::Result<Sample, String> {
        let group = self.name("group");
        self.take(messages, messages / 2, held, async {
            let builder = self.mq.consumer(topic, &group).start_at(Start::Earliest);
            let consumer = builder.max_unacked(held + 10 * TAKE).await?;
            owns(&consumer, partitions).await?;
            Ok(consumer)
        })
    }

    fn take(
        &self,
        messages: u64,
        before: u64,
        held: usize,
        open: impl Future<Output = Result<Consumer>>,
    ) -> std::result::Result<Sample, String> {
        let (sample, check) = self
            .runtime
            .block_on(async {
                let consumer = open.await?;
                let (mut check, mut left, mut first) = (Check::default(), messages, 0);
                let mut meter = None;
                let mut holding = Vec::with_capacity(held + TAKE);
                while left > 0 {
                    let batch = still(consumer.consume_batch(TAKE)).await?;
                    left = left.saturating_sub(batch.len() as u64);
                    if meter.is_none() && messages - left > before {
                        meter = Some(Meter::start());
                        first = messages - left;
                    }
                    for delivery in &batch {
                        check.take(delivery.payload());
                    }
                    if holding.len() < held {
                        holding.extend(batch);
                    } else {
                        consumer.ack_all(batch)?;
                    }
                }
                consumer.ack_all(holding)?;
                consumer.commit().await?;
                let sample = meter.map(|meter| meter.stop(messages - first));
                consumer.close().await?;
                Ok::<_, mq_api::Error>((sample, check))
            })
            .map_err(text)?;
        verify(check, messages)?;
        sample.ok_or_else(|| "nothing was handed over".to_owned())
    }

    /// Joins a group that is new, on a topic of so many partitions in which nothing is, and then a second time when the
    /// first member has left; gives the figures of [`JOIN`]: how long it took to own all of them.
    ///
    /// # Errors
    /// Says what failed.
    pub fn join(&self, partitions: u32) -> std::result::Result<Sample, String> {
        let (topic, group) = (self.name("join"), self.name("group"));
        self.runtime
            .block_on(async {
                self.mq.create_topic(&topic, partitions).await?;
                let mut times = Vec::new();
                for _ in JOIN {
                    let begun = Instant::now();
                    let consumer = self.mq.consumer(&topic, &group).await?;
                    owns(&consumer, partitions).await?;
                    times.push(begun.elapsed().as_secs_f64() * 1e6);
                    consumer.close().await?;
                }
                self.mq.delete_topic(&topic).await?;
                Ok::<_, mq_api::Error>(Sample::of(times))
            })
            .map_err(text)
    }

    /// Moves messages through a group of members with one partition each. Everyone is connected and has joined before the
    /// clock runs, from the first send to the last commit; leaving is not in it.
    ///
    /// # Errors
    /// Says what failed.
    pub fn group(&self, messages: u64, members: u32) -> std::result::Result<Sample, String> {
        let (topic, group) = (self.name("group"), self.name("group"));
        let payloads = Payloads::new(STAMPED);
        let (sample, check) = self
            .runtime
            .block_on(async {
                self.mq.create_topic(&topic, members).await?;
                let (counts, mut seen) = mpsc::channel(1024);
                let (done, _) = watch::channel(false);
                let mut tasks = JoinSet::new();
                let mut all = Vec::new();
                for _ in 0..members {
                    let consumer = self.mq.consumer(&topic, &group).start_at(Start::Earliest).await?;
                    all.push(consumer);
                }
                while all.iter().any(|one| one.assignment().len() != 1) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                for consumer in &all {
                    tasks.spawn(member(consumer.clone(), counts.clone(), done.subscribe()));
                }
                let producer = warm(&self.mq, &topic, &payloads).await?;
                let meter = Meter::start();
                send_rest(&producer, messages, &payloads, Sending::Batches(1000)).await?;
                let mut left = messages;
                while left > 0 {
                    let count = tokio::time::timeout(STILL, seen.recv()).await;
                    let Ok(Some(count)) = count else {
                        return Err(mq_api::Error::closed("a member"));
                    };
                    left = left.saturating_sub(count);
                }
                let _ = done.send(true);
                let mut check = Check::default();
                while let Some(one) = tasks.join_next().await {
                    check.add(one.map_err(|_| mq_api::Error::closed("a task"))??);
                }
                let sample = meter.stop(messages - 1);
                let mut closing = JoinSet::new();
                for consumer in all {
                    closing.spawn(async move { consumer.close().await });
                }
                while let Some(closed) = closing.join_next().await {
                    closed.map_err(|_| mq_api::Error::closed("a task"))??;
                }
                producer.close().await?;
                self.mq.delete_topic(&topic).await?;
                Ok((sample, check))
            })
            .map_err(text)?;
        verify(check, messages)?;
        Ok(sample)
    }

    /// Sends at a steady rate and returns the times of `produce` and those from its call to the hand-over.
    fn times(&self, messages: u64, gap: Duration) -> std::result::Result<(Times, Times), String> {
        let (topic, group) = (self.name("steady"), self.name("group"));
        self.runtime
            .block_on(async {
                self.mq.create_topic(&topic, 1).await?;
                let consumer = self.mq.consumer(&topic, &group).await?;
                owns(&consumer, 1).await?;
                let producer = self.mq.producer(&topic).await?;
                let zero = Instant::now();
                // Both ends are warm before the first that counts.
                let mut pace = steady(gap);
                for _ in 0..self.warm_up.get() {
                    pace.tick().await;
                    producer.produce(Message::new(stamp(zero))).await?;
                    still(consumer.consume()).await?.ack()?;
                }
                let sending = tokio::spawn(async move {
                    let mut sends = SteadySends::new(messages, gap, zero);
                    while let Some(payload) = sends.next().await {
                        producer.produce(Message::new(payload)).await?;
                    }
                    producer.close().await?;
                    Ok::<_, mq_api::Error>(sends.times())
                });
                let mut delivered = Times::default();
                while delivered.count() < messages {
                    let delivery = still(consumer.consume()).await?;
                    delivered.take(since(zero, delivery.payload()));
                    delivery.ack()?;
                }
                let published = sending.await.map_err(|_| mq_api::Error::closed("a task"))??;
                consumer.close().await?;
                self.mq.delete_topic(&topic).await?;
                Ok::<_, mq_api::Error>((published, delivered))
            })
            .map_err(text)
    }

    /// Sends one message each `gap`; gives the figures of [`LATENCY`](crate::side::LATENCY).
    ///
    /// # Errors
    /// Says what failed.
    pub fn latency(&self, messages: u64, gap: Duration) -> std::result::Result<Sample, String> {
        let (_, delivered) = self.times(messages, gap)?;
        Ok(Sample::latency(delivered))
    }

    /// Sends one message each `gap`; gives the figures of [`PROMISE`](crate::side::PROMISE).
    ///
    /// # Errors
    /// Says what failed.
    pub fn promise(&self, messages: u64, gap: Duration) -> std::result::Result<Sample, String> {
        let (published, delivered) = self.times(messages, gap)?;
        Ok(Sample::promise(published, delivered))
    }

    /// Opens a consumer and a producer on each of so many topics in which nothing happens.
    ///
    /// # Errors
    /// Says what failed.
    pub fn idle_topics(&self, topics: u32) -> std::result::Result<Vec<(Consumer, Producer)>, String> {
        let mut opening = JoinSet::new();
        self.runtime
            .block_on(async {
                let turn = Arc::new(Semaphore::new(AT_ONCE));
                for _ in 0..topics {
                    let (mq, name, turn) = (self.mq.clone(), self.name("idle"), turn.clone());
                    opening.spawn(async move {
                        let _turn = turn.acquire().await;
                        mq.create_topic(&name, 1).await?;
                        // A group of its own: where groups are the broker's, joins of others would disturb it.
                        let consumer = mq.consumer(&name, &name).await?;
                        let producer = mq.producer(&name).await?;
                        owns(&consumer, 1).await?;
                        Ok::<_, mq_api::Error>((consumer, producer))
                    });
                }
                let mut all = Vec::new();
                while let Some(one) = opening.join_next().await {
                    all.push(one.map_err(|_| mq_api::Error::closed("a task"))??);
                }
                tokio::time::sleep(if topics == 0 { Duration::ZERO } else { SETTLE }).await;
                Ok::<_, mq_api::Error>(all)
            })
            .map_err(text)
    }

    /// Closes what [`Ours::idle_topics`] opened, and deletes the topics.
    ///
    /// # Errors
    /// Says what failed.
    pub fn close_all(&self, all: Vec<(Consumer, Producer)>) -> std::result::Result<(), String> {
        let mut closing = JoinSet::new();
        self.runtime
            .block_on(async {
                let turn = Arc::new(Semaphore::new(AT_ONCE));
                for (consumer, producer) in all {
                    let (mq, turn) = (self.mq.clone(), turn.clone());
                    closing.spawn(async move {
                        let _turn = turn.acquire().await;
                        consumer.close().await?;
                        producer.close().await?;
                        mq.delete_topic(producer.topic()).await
                    });
                }
                while let Some(one) = closing.join_next().await {
                    one.map_err(|_| mq_api::Error::closed("a task"))??;
                }
                Ok::<_, mq_api::Error>(())
            })
            .map_err(text)
    }

    /// Opens a consumer on a topic of so many partitions and waits until it owns them all and has settled; tells by how
    /// many bytes the process grew.
    ///
    /// # Errors
    /// Says what failed.
    pub fn idle_member(&self, partitions: u32) -> std::result::Result<(Consumer, f64), String> {
        let (topic, group) = (self.name("idle"), self.name("group"));
        let create = self.mq.create_topic(&topic, partitions);
        self.runtime.block_on(create).map_err(text)?;
        let before = resident()?;
        let consumer = self.runtime.block_on(async {
            let consumer = self.mq.consumer(&topic, &group).await?;
            owns(&consumer, partitions).await?;
            tokio::time::sleep(SETTLE).await;
            Ok::<_, mq_api::Error>(consumer)
        });
        Ok((consumer.map_err(text)?, resident()? - before))
    }

    /// Lets the client run for a while.
    pub fn rest(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Holds so many messages without an ack and returns the memory that each takes, in bytes.
    ///
    /// # Errors
    /// Says what failed.
    pub fn unacked(&self, topic: &str, messages: u64) -> std::result::Result<Sample, String> {
        let group = self.name("group");
        let count = usize::try_from(messages).map_err(text)?;
        let before = resident()?;
        let (held, consumer) = self
            .runtime
            .block_on(async {
                let consumer = self
                    .mq
                    .consumer(topic, &group)
                    .start_at(Start::Earliest)
                    .max_unacked(count)
                    .await?;
                let mut held = Vec::with_capacity(count + TAKE);
                while held.len() < count {
                    held.extend(still(consumer.consume_batch(TAKE)).await?);
                }
                Ok::<_, mq_api::Error>((held, consumer))
            })
            .map_err(text)?;
        let grown = resident()? - before;
        self.runtime
            .block_on(async {
                consumer.ack_all(held)?;
                consumer.close().await
            })
            .map_err(text)?;
        #[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
        let each = grown / messages as f64;
        Ok(Sample::of([each]))
    }
}

/// Waits until a member owns so many partitions.
async fn owns(consumer: &Consumer, partitions: u32) -> Result<()> {
    still(async {
        while consumer.assignment().len() < partitions as usize {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    })
    .await
}

/// Fails where a call stands still.
async fn still<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(STILL, call)
        .await
        .unwrap_or_else(|_| Err(mq_api::Error::closed("nothing came, and the wait")))
}

async fn member(
    consumer: Consumer,
    counts: mpsc::Sender<u64>,
    mut done: watch::Receiver<bool>,
) -> Result<Check> {
    let mut check = Check::default();
    loop {
        let batch = tokio::select! {
            batch = consumer.consume_batch(TAKE) => batch?,
            _ = done.changed() => break,
        };
        for delivery in &batch {
            check.take(delivery.payload());
        }
        let count = batch.len() as u64;
        consumer.ack_all(batch)?;
        let _ = counts.send(count).await;
    }
    consumer.commit().await?;
    Ok(check)
}

async fn send(mq: &Mq, topic: &str, messages: u64, payloads: &Payloads, sending: Sending) -> Result<Sample> {
    let producer = warm(mq, topic, payloads).await?;
    let meter = Meter::start();
    send_rest(&producer, messages, payloads, sending).await?;
    let sample = meter.stop(messages - 1);
    producer.close().await?;
    Ok(sample)
}

/// Opens a producer and sends the first message, so that it is connected: every contender does before the clock runs.
async fn warm(mq: &Mq, topic: &str, payloads: &Payloads) -> Result<Producer> {
    let producer = mq.producer(topic).await?;
    producer.produce(Message::new(payloads.of(0))).await?;
    Ok(producer)
}

async fn send_rest(producer: &Producer, messages: u64, payloads: &Payloads, sending: Sending) -> Result<()> {
    match sending {
        Sending::Tasks(tasks) => {
            let payloads = Arc::new(payloads.clone());
            let sent = by_tasks(1..messages, tasks, |numbers| {
                let (producer, payloads) = (producer.clone(), Arc::clone(&payloads));
                async move {
                    for number in numbers {
                        producer.produce(Message::new(payloads.of(number))).await?;
                    }
                    Ok::<_, mq_api::Error>(())
                }
            });
            sent.await?;
        }
        Sending::InFlight(window) => {
            let mut pending = VecDeque::with_capacity(window);
            for number in 1..messages {
                if pending.len() == window
                    && let Some(oldest) = pending.pop_front()
                {
                    oldest.await?;
                }
                pending.push_back(producer.enqueue(Message::new(payloads.of(number))).await?);
            }
            for receipt in pending {
                receipt.await?;
            }
        }
        Sending::Batches(size) => {
            let mut sent = 1;
            while sent < messages {
                let end = (sent + size).min(messages);
                let batch = (sent..end).map(|number| Message::new(payloads.of(number)));
                for result in producer.produce_batch(batch).await {
                    result?;
                }
                sent = end;
            }
        }
    }
    Ok(())
}

/// Waits until a topic is seen to hold all messages; says what it holds where it does not.
pub(crate) async fn holds(mq: &Mq, topic: &str, messages: u64) -> std::result::Result<(), String> {
    let by = Instant::now() + SEEN;
    loop {
        let described = mq.describe_topic(topic).await.map_err(text)?;
        let count = |one: &PartitionDescription| one.next_offset - one.first_offset;
        let stored: u64 = described.partitions.iter().map(count).sum();
        if stored == messages {
            return Ok(());
        }
        if stored > messages || Instant::now() > by {
            return Err(format!("{stored} of {messages} messages are stored"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mq_memory::MemoryMq;

    fn memory() -> Rc<Ours> {
        let runtime = Rc::new(crate::core::two_workers());
        Ours::new(runtime, Mq::from_driver(MemoryMq::new()))
    }

    #[test]
    fn every_way_to_send_stores_every_message() {
        let ours = memory();
        for sending in [Sending::Tasks(7), Sending::InFlight(64), Sending::Batches(100)] {
            let sample = ours.produce(5_000, 100, 4, sending).unwrap();
            assert!(sample.cpu.is_some_and(|cpu| cpu > 0.0), "{sample:?}");
        }
    }

    #[test]
    fn what_is_stored_is_consumed_by_one_by_a_group_and_with_messages_held() {
        let ours = memory();
        let topic = ours.stored(5_000, 100, 4).unwrap();
        assert_eq!(topic, ours.stored(5_000, 100, 4).unwrap());
        ours.consume(&topic, 5_000, Mode::Partitioned).unwrap();
        ours.consume_owned(&topic, 5_000, 4, 2_000).unwrap();
        ours.consume(&topic, 5_000, Mode::Shared).unwrap();
        assert_eq!(ours.join(4).unwrap().values.len(), JOIN.len());
        ours.group(5_000, 4).unwrap();
        ours.unacked(&topic, 5_000).unwrap();
    }

    #[test]
    fn a_steady_rate_gives_all_its_figures() {
        let ours = memory();
        let gap = Duration::from_micros(200);
        assert_eq!(ours.latency(100, gap).unwrap().values.len(), 3);
        assert_eq!(ours.promise(100, gap).unwrap().values.len(), 4);
    }

    #[test]
    fn a_missing_message_is_seen() {
        let mut check = Check::default();
        let payloads = Payloads::new(100);
        for number in 0..999 {
            check.take(&payloads.of(number));
        }
        assert!(verify(check, 1000).is_err());
    }
}
