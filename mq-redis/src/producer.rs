//! The producers of a client share one connection and one task, which packs what has gathered into one write.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mq_api::{
    Due, Error, Message, Offset, Outcome, Result, Timestamp, TopicName,
    driver::{self, ProducerRequest, SendBatch, SendWindow, Wakes, invalid_partition, topic_not_found},
};
use redis::Cmd;
use tokio::{sync::Notify, sync::watch, task::AbortHandle};

use crate::{
    delay, error,
    format::{EntryId, encode},
    link::Backoff,
    raw::RawConn,
    resp::Reply,
    topic::{Shared, Topic},
    upkeep::{OpenTopic, Upkeep},
};

/// How many messages may be written and not answered.
const MOST_IN_FLIGHT: usize = 8 * 1024;
/// How many bytes are packed ahead of the socket: enough to keep it busy, little enough to know what has not left.
const MOST_PACKED: u64 = 1024 * 1024;

/// Sends for every producer of a client.
pub(crate) struct Sender {
    shared: Arc<Shared>,
    upkeep: Arc<Upkeep>,
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    /// Bounded by the window that each producer declares.
    waiting: VecDeque<Job>,
    task: Option<AbortHandle>,
    closed: bool,
}

/// A batch and where it goes.
struct Job {
    batch: SendBatch,
    route: Arc<Route>,
}

/// The keys of one partition.
struct Route {
    topic: TopicName,
    partition: u32,
    key: String,
    delay_key: String,
}

/// What was packed of one batch, in order.
struct Flight {
    batch: SendBatch,
    route: Arc<Route>,
    /// For each command: the message, and where its bytes begin in the connection's life.
    commands: VecDeque<(usize, u64)>,
    packed_at: Instant,
    offsets: Offsets,
}

/// Offsets as they come, settled together where they are dense.
#[derive(Default)]
struct Offsets {
    first: Option<u64>,
    count: u64,
    settled: bool,
}

impl Sender {
    pub(crate) fn new(shared: Arc<Shared>, upkeep: Arc<Upkeep>) -> Self {
        Self {
            shared,
            upkeep,
            queue: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the task with the first producer.
    fn start(self: &Arc<Self>) -> Result<()> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Error::closed("connection"));
        }
        if queue.task.is_none() {
            queue.task = Some(tokio::spawn(send_on(Arc::clone(self))).abort_handle());
        }
        Ok(())
    }

    fn send(&self, job: Job) {
        let mut queue = self.lock();
        if queue.closed {
            drop(queue);
            job.batch
                .fail_all(&Error::closed("connection").with_outcome(Outcome::NotSent));
            return;
        }
        queue.waiting.push_back(job);
        drop(queue);
        self.arrived.notify_one();
    }

    /// Ends the task; what was not sent is told so.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut queue = self.lock();
            queue.closed = true;
            if let Some(task) = queue.task.take() {
                task.abort();
            }
            std::mem::take(&mut queue.waiting)
        };
        drop(waiting);
    }
}

/// Holds the connection and what is under way on it.
struct Wire {
    conn: RawConn,
    flights: VecDeque<Flight>,
    in_flight: usize,
}

async fn send_on(sender: Arc<Sender>) {
    let mut backoff = Backoff::new();
    loop {
        wait_for_work(&sender).await;
        let conn = match RawConn::open(&sender.shared.config).await {
            Ok(conn) => conn,
            Err(error) => {
                give_up(&sender, &error);
                tokio::time::sleep(backoff.pause()).await;
                continue;
            }
        };
        let mut wire = Wire {
            conn,
            flights: VecDeque::new(),
            in_flight: 0,
        };
        let error = exchange(&sender, &mut wire, &mut backoff).await;
        tracing::debug!(%error, "the connection for sending ended");
        settle_broken(wire, &error);
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn wait_for_work(sender: &Sender) {
    loop {
        let arrived = sender.arrived.notified();
        if !sender.lock().waiting.is_empty() {
            return;
        }
        arrived.await;
    }
}

/// What waits longer than it may is told why; the rest stays in order for the next connection. What no other
/// connection would take is refused at once.
fn give_up(sender: &Sender, error: &Error) {
    let now = Instant::now();
    let error = error.clone().with_outcome(Outcome::NotSent);
    let mut over = Vec::new();
    {
        let mut queue = sender.lock();
        let all = std::mem::take(&mut queue.waiting);
        for job in all {
            if error.is_retryable() && job.batch.deadline() > now {
                queue.waiting.push_back(job);
            } else {
                over.push(job);
            }
        }
    }
    for job in over {
        job.batch.fail_all(&error);
    }
}

/// Sends and settles until the connection breaks.
async fn exchange(sender: &Arc<Sender>, wire: &mut Wire, backoff: &mut Backoff) -> Error {
    let limit = sender.shared.config.request_timeout;
    loop {
        pack(sender, wire);
        let oldest = wire.flights.front().map(|flight| flight.packed_at);
        tokio::select! {
            biased;
            reply = wire.conn.reply() => match reply {
                Ok(reply) => {
                    backoff.reset();
                    if let Err(error) = settle(sender, wire, reply) {
                        return error;
                    }
                }
                Err(error) => return error,
            },
            () = sender.arrived.notified() => {}
            () = expire(oldest, limit) => return Error::timeout("a send", limit),
        }
    }
}

async fn expire(oldest: Option<Instant>, limit: Duration) {
    match oldest {
        Some(oldest) => tokio::time::sleep_until((oldest + limit).into()).await,
        None => std::future::pending().await,
    }
}

/// Packs what waits, as much as may be under way.
fn pack(sender: &Sender, wire: &mut Wire) {
    let mut bytes = Vec::new();
    let base = wire.conn.queued();
    let stamp = sender.shared.clock.now();
    while wire.in_flight < MOST_IN_FLIGHT && base + bytes.len() as u64 - wire.conn.written() < MOST_PACKED {
        let Some(job) = sender.lock().waiting.pop_front() else {
            break;
        };
        let mut commands = VecDeque::with_capacity(job.batch.len());
        for (index, message) in job.batch.messages().iter().enumerate() {
            if !job.batch.begin_one(index) {
                continue;
            }
            commands.push_back((index, base + bytes.len() as u64));
            match message.due() {
                None => {
                    let mut cmd = Cmd::with_capacity(
                        12 + 2 * message.headers().len(),
                        64 + job.route.key.len() + message.weight(),
                    );
                    cmd.arg("XADD").arg(&job.route.key).arg("NOMKSTREAM").arg("0-*");
                    encode(&mut cmd, message, stamp);
                    cmd.write_packed_command(&mut bytes);
                }
                Some(due) => {
                    delay::store(
                        &job.route.key,
                        &job.route.delay_key,
                        message,
                        stamp,
                        due_at(due, stamp),
                    )
                    .write_packed_command(&mut bytes);
                }
            }
        }
        if commands.is_empty() {
            continue;
        }
        wire.in_flight += commands.len();
        wire.flights.push_back(Flight {
            batch: job.batch,
            route: job.route,
            commands,
            packed_at: Instant::now(),
            offsets: Offsets::default(),
        });
    }
    if !bytes.is_empty() {
        wire.conn.queue_bytes(bytes);
    }
}

fn due_at(due: Due, now: Timestamp) -> Timestamp {
    match due {
        Due::After(delay) => now.saturating_add(delay),
        Due::At(at) => at,
    }
}

/// Settles the oldest command under way.
fn settle(sender: &Sender, wire: &mut Wire, reply: Reply) -> Result<()> {
    let Some(flight) = wire.flights.front_mut() else {
        return Err(error::protocol("a reply that nobody asked for"));
    };
    let Some((index, _)) = flight.commands.pop_front() else {
        return Err(error::protocol("a reply that nobody asked for"));
    };
    wire.in_flight -= 1;
    match reply {
        Reply::Text(id) => match EntryId::parse(&id) {
            Some(id) => flight.stored(index, Some(id.offset())),
            None => return Err(error::protocol("an entry id that is none")),
        },
        // A delayed message: its offset is not known before it is due.
        Reply::Int(1) => {
            let due = flight.batch.messages().get(index).and_then(mq_api::Message::due);
            if let Some(due) = due {
                let now = sender.shared.clock.now();
                let after = due_at(due, now).saturating_since(now);
                sender
                    .upkeep
                    .due(&flight.route.topic, flight.route.partition, after);
            }
            flight.stored(index, None);
        }
        Reply::Nil | Reply::Int(_) => {
            let error = topic_not_found(&flight.route.topic);
            flight.refused(index, &error);
        }
        Reply::Refused(words) => flight.refused(index, &error::refused(&words)),
        Reply::Array(_) => return Err(error::protocol("an array in answer to a send")),
    }
    if flight.commands.is_empty() {
        flight.settle_stored();
        wire.flights.pop_front();
    }
    Ok(())
}

impl Flight {
    fn stored(&mut self, index: usize, offset: Option<u64>) {
        let offsets = &mut self.offsets;
        let expected = offsets.first.map(|first| first + offsets.count);
        let dense = index as u64 == offsets.count
            && !offsets.settled
            && offset.is_some()
            && expected.is_none_or(|expected| Some(expected) == offset);
        if dense {
            offsets.first = offsets.first.or(offset);
            offsets.count += 1;
        } else {
            self.settle_stored();
            self.batch.complete_one(index, offset);
        }
    }

    fn refused(&mut self, index: usize, error: &Error) {
        self.settle_stored();
        self.batch.fail(index..index + 1, error);
    }

    /// Settles what has gathered, and from then on each message by itself.
    fn settle_stored(&mut self) {
        if std::mem::replace(&mut self.offsets.settled, true) {
            return;
        }
        let Some(first) = self.offsets.first else { return };
        if self.offsets.count == self.batch.len() as u64 {
            self.batch.complete_all(Some(first));
            return;
        }
        for at in 0..self.offsets.count {
            let index = usize::try_from(at).unwrap_or(usize::MAX);
            self.batch.complete_one(index, Some(first + at));
        }
    }
}

/// What has left may be stored; what has not is not.
fn settle_broken(wire: Wire, error: &Error) {
    let written = wire.conn.written();
    let not_sent = error.clone().with_outcome(Outcome::NotSent);
    let unknown = error.clone().with_outcome(Outcome::Unknown);
    for mut flight in wire.flights {
        flight.settle_stored();
        for (index, begins) in std::mem::take(&mut flight.commands) {
            let error = if begins >= written { &not_sent } else { &unknown };
            flight.batch.fail(index..index + 1, error);
        }
    }
}

/// Produces to one topic.
pub(crate) struct RedisProducer {
    sender: Arc<Sender>,
    topic: Topic,
    routes: Mutex<Vec<Arc<Route>>>,
    partitions: watch::Sender<u32>,
    closed: AtomicBool,
    window: SendWindow,
    _open: OpenTopic,
}

impl RedisProducer {
    pub(crate) fn open(sender: &Arc<Sender>, topic: Topic, request: &ProducerRequest) -> Result<Arc<Self>> {
        if topic.is_foreign() {
            return Err(Error::unsupported(
                "redis",
                "producing to a stream that others made",
            ));
        }
        sender.start()?;
        let most = request.max_batch.clamp(1, 1024);
        let (partitions, _) = watch::channel(topic.partitions);
        let producer = Arc::new(Self {
            _open: sender.upkeep.open(&topic),
            sender: Arc::clone(sender),
            routes: Mutex::new(routes(&sender.shared, &topic)),
            partitions,
            closed: AtomicBool::new(false),
            window: SendWindow::new(4, most, 1024 * 1024),
            topic,
        });
        sender.upkeep.add_producer(&producer);
        Ok(producer)
    }

    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Takes note of partitions that were added.
    pub(crate) fn grown_to(&self, partitions: u32) {
        let grown = Topic {
            partitions,
            ..self.topic.clone()
        };
        let mut all = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if partitions as usize > all.len() {
            *all = routes(&self.sender.shared, &grown);
            drop(all);
            self.partitions.send_replace(partitions);
        }
    }

    fn route(&self, partition: u32) -> Option<Arc<Route>> {
        self.routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(partition as usize)
            .cloned()
    }
}

fn routes(shared: &Shared, topic: &Topic) -> Vec<Arc<Route>> {
    (0..topic.partitions)
        .map(|partition| {
            Arc::new(Route {
                topic: topic.name.clone(),
                partition,
                key: topic.key(&shared.keys, partition),
                delay_key: shared.keys.delay(&topic.name, partition),
            })
        })
        .collect()
}

#[async_trait]
impl driver::Producer for RedisProducer {
    fn partitions(&self) -> watch::Receiver<u32> {
        self.partitions.subscribe()
    }

    fn window(&self) -> SendWindow {
        self.window
    }

    fn send(&self, batch: SendBatch) {
        if self.closed.load(Ordering::Acquire) {
            batch.fail_all(&Error::closed("producer"));
            return;
        }
        match self.route(batch.partition()) {
            Some(route) => self.sender.send(Job { batch, route }),
            None => {
                let error = invalid_partition(&self.topic.name, batch.partition(), *self.partitions.borrow());
                batch.fail_all(&error);
            }
        }
    }

    fn store_now(&self, _: u32, message: Message, _: &mut Wakes) -> Result<Option<Offset>, Message> {
        Err(message)
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for RedisProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisProducer")
            .field("topic", &self.topic.name)
            .field("partitions", &*self.partitions.borrow())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("waiting", &self.lock().waiting.len())
            .finish_non_exhaustive()
    }
}
