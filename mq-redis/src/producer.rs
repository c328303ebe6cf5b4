//! The producers of a client share one connection and one task, which packs what has gathered into one write.

use std::{
    collections::VecDeque,
    fmt,
    io::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mq_api::{
    Due, Error, Message, Offset, Outcome, Result, Timestamp, TopicName,
    driver::{
        self, NotNow, ProducerRequest, SendBatch, SendWindow, Wakes, invalid_partition, topic_not_found,
    },
};
use smallvec::SmallVec;
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task::AbortHandle,
};

use crate::{
    delay, error,
    format::{EntryId, encode, field_count},
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
/// How many batches of a partition are under way. Many tasks that each await a message are not made to wait for one
/// another; what they send together is written together all the same.
const BATCHES: usize = 64;

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
    wire: Option<Wire>,
    /// Whether the task knows that something waits.
    told: bool,
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

/// What is under way on the connection. Who sends while nothing is under way writes to the socket at once. Who sends
/// while something is leaves it to the task, which writes when everyone who could run has run: a write costs the server as
/// much as several messages.
struct Wire {
    /// None where the connection is encrypted: then the task alone writes.
    socket: Option<Arc<TcpStream>>,
    flights: VecDeque<Flight>,
    in_flight: usize,
    output: Vec<u8>,
    /// Where in the connection's life `output` begins, and how much has left.
    queued: u64,
    written: u64,
}

/// What was packed of one batch, in order.
struct Flight {
    batch: SendBatch,
    route: Arc<Route>,
    /// For each command: the message, and where its bytes begin in the connection's life.
    commands: SmallVec<[(usize, u64); 1]>,
    answers: SmallVec<[Answer; 1]>,
    packed_at: Instant,
}

enum Answer {
    Stored(Option<u64>),
    Delayed,
    Gone,
    Refused(String),
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
        let left_over = {
            let mut queue = self.lock();
            if queue.closed {
                drop(queue);
                job.batch
                    .fail_all(&Error::closed("connection").with_outcome(Outcome::NotSent));
                return;
            }
            queue.waiting.push_back(job);
            let is_busy = queue.wire.as_ref().is_some_and(|wire| !wire.flights.is_empty());
            (is_busy || self.push(&mut queue)) && !std::mem::replace(&mut queue.told, true)
        };
        if left_over {
            self.arrived.notify_one();
        }
    }

    /// Packs and writes what there is room for; returns whether the task has to go on with it.
    fn push(&self, queue: &mut Queue) -> bool {
        let Queue { waiting, wire, .. } = queue;
        let Some(wire) = wire else { return true };
        pack(waiting, wire, self.shared.clock.now());
        !wire.write()
    }

    /// Ends the task; what was not sent is told so.
    pub(crate) fn close(&self) {
        let (waiting, wire) = {
            let mut queue = self.lock();
            queue.closed = true;
            if let Some(task) = queue.task.take() {
                task.abort();
            }
            (std::mem::take(&mut queue.waiting), queue.wire.take())
        };
        drop(waiting);
        if let Some(wire) = wire {
            settle_broken(self, wire, &Error::closed("connection"));
        }
    }
}

impl Wire {
    /// Writes as much as the socket takes; returns whether that is all.
    fn write(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            return self.output.is_empty();
        };
        let mut gone = 0;
        while let Some(rest) = self.output.get(gone..).filter(|rest| !rest.is_empty()) {
            match socket.try_write(rest) {
                Ok(0) => break,
                Ok(count) => gone += count,
                // What is wrong with it, the task that reads it will say.
                Err(_) => break,
            }
        }
        self.written += gone as u64;
        if gone == self.output.len() {
            self.output.clear();
        } else {
            self.output.drain(..gone);
        }
        self.output.is_empty()
    }
}

async fn send_on(sender: Arc<Sender>) {
    let mut backoff = Backoff::new();
    loop {
        wait_for_work(&sender).await;
        let mut conn = match RawConn::open(&sender.shared.config).await {
            Ok(conn) => conn,
            Err(error) => {
                give_up(&sender, &error);
                tokio::time::sleep(backoff.pause()).await;
                continue;
            }
        };
        sender.lock().wire = Some(Wire {
            socket: conn.socket().cloned(),
            flights: VecDeque::new(),
            in_flight: 0,
            output: Vec::new(),
            queued: conn.written(),
            written: conn.written(),
        });
        let error = exchange(&sender, &mut conn, &mut backoff).await;
        tracing::debug!(%error, "the connection for sending ended");
        let wire = sender.lock().wire.take();
        if let Some(wire) = wire {
            settle_broken(&sender, wire, &error);
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn wait_for_work(sender: &Sender) {
    loop {
        {
            let mut queue = sender.lock();
            queue.told = false;
            if !queue.waiting.is_empty() {
                return;
            }
        }
        sender.arrived.notified().await;
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

/// Writes what senders could not, and settles what is answered, until the connection breaks.
async fn exchange(sender: &Arc<Sender>, conn: &mut RawConn, backoff: &mut Backoff) -> Error {
    let limit = sender.shared.config.request_timeout;
    let socket = conn.socket().cloned();
    let mut look = tokio::time::interval((limit / 8).max(Duration::from_millis(10)));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let stuck = {
            let mut queue = sender.lock();
            queue.told = false;
            let stuck = sender.push(&mut queue);
            if let Some(wire) = &mut queue.wire
                && wire.socket.is_none()
            {
                wire.written = conn.written();
                if !wire.output.is_empty() {
                    conn.queue_bytes(std::mem::take(&mut wire.output));
                }
            }
            stuck
        };
        tokio::select! {
            biased;
            replies = conn.replies() => match replies {
                Ok(replies) => {
                    backoff.reset();
                    if let Err(error) = answered(sender, replies) {
                        return error;
                    }
                }
                Err(error) => return error,
            },
            // Whoever was woken with the sender may be about to send as well.
            () = sender.arrived.notified() => tokio::task::yield_now().await,
            result = writable(socket.as_deref()), if stuck && socket.is_some() => {
                if let Err(error) = result {
                    return error::from_io(&sender.shared.config.address(), &error);
                }
            }
            _ = look.tick() => {
                let late = sender.lock().wire.as_ref().is_some_and(|wire| {
                    wire.flights.front().is_some_and(|flight| flight.packed_at.elapsed() > limit)
                });
                if late {
                    return Error::timeout("a send", limit);
                }
            }
        }
        if socket.is_none()
            && let Some(wire) = &mut sender.lock().wire
        {
            wire.written = conn.written();
        }
    }
}

async fn writable(socket: Option<&TcpStream>) -> std::io::Result<()> {
    match socket {
        Some(socket) => socket.writable().await,
        None => std::future::pending().await,
    }
}

/// Packs what waits, as much as may be under way.
fn pack(waiting: &mut VecDeque<Job>, wire: &mut Wire, now: Timestamp) {
    let stamp = now.as_millis().to_string();
    while wire.in_flight < MOST_IN_FLIGHT && wire.queued - wire.written < MOST_PACKED {
        let Some(Job { batch, route }) = waiting.pop_front() else {
            break;
        };
        let begun = batch.begin_io(0..batch.len());
        let before = wire.output.len();
        let mut commands = SmallVec::with_capacity(batch.len());
        for (index, message) in batch.messages().iter().enumerate() {
            // Those that were given up meanwhile are skipped.
            if !begun && !batch.begin_one(index) {
                continue;
            }
            let begins = wire.queued + (wire.output.len() - before) as u64;
            commands.push((index, begins));
            match message.due() {
                None => pack_add(&mut wire.output, &route.key, message, &stamp),
                Some(due) => {
                    let due = due_at(due, now);
                    delay::store(&route.key, &route.delay_key, message, &stamp, due)
                        .write_packed_command(&mut wire.output);
                }
            }
        }
        wire.queued += (wire.output.len() - before) as u64;
        if commands.is_empty() {
            continue;
        }
        wire.in_flight += commands.len();
        wire.flights.push_back(Flight {
            answers: SmallVec::with_capacity(commands.len()),
            batch,
            route,
            commands,
            packed_at: Instant::now(),
        });
    }
}

/// Packs `XADD key NOMKSTREAM 0-* field value ...` without a stop between.
fn pack_add(output: &mut Vec<u8>, key: &str, message: &Message, stamp: &str) {
    // Writing to a vector cannot fail.
    let _ = write!(output, "*{}\r\n", 4 + field_count(message));
    let mut bulk = |bytes: &[u8]| {
        output.push(b'$');
        push_number(output, bytes.len());
        output.extend_from_slice(b"\r\n");
        output.extend_from_slice(bytes);
        output.extend_from_slice(b"\r\n");
    };
    bulk(b"XADD");
    bulk(key.as_bytes());
    bulk(b"NOMKSTREAM");
    bulk(b"0-*");
    encode(message, stamp, bulk);
}

fn push_number(output: &mut Vec<u8>, number: usize) {
    match u8::try_from(number) {
        Ok(digit @ 0..=9) => output.push(b'0' + digit),
        _ => {
            let _ = write!(output, "{number}");
        }
    }
}

fn due_at(due: Due, now: Timestamp) -> Timestamp {
    match due {
        Due::After(delay) => now.saturating_add(delay),
        Due::At(at) => at,
    }
}

/// Takes answers in, in the order of their commands; settles batches that are complete, outside the lock.
fn answered(sender: &Sender, replies: Vec<Reply>) -> Result<()> {
    let mut done = Vec::new();
    let result = {
        let mut queue = sender.lock();
        match &mut queue.wire {
            Some(wire) => replies
                .into_iter()
                .try_for_each(|reply| wire.take(reply, &mut done)),
            None => Err(Error::closed("connection")),
        }
    };
    for flight in done {
        flight.settle(sender);
    }
    result
}

impl Wire {
    fn take(&mut self, reply: Reply, done: &mut Vec<Flight>) -> Result<()> {
        let flight = self
            .flights
            .front_mut()
            .ok_or_else(|| error::protocol("a reply that nobody asked for"))?;
        flight.answers.push(match reply {
            Reply::Text(id) => match EntryId::parse(&id) {
                Some(id) => Answer::Stored(Some(id.offset())),
                None => return Err(error::protocol("an entry id that is none")),
            },
            // Its offset is not known before it is due.
            Reply::Int(1) => Answer::Delayed,
            Reply::Nil | Reply::Int(_) => Answer::Gone,
            Reply::Refused(words) => Answer::Refused(words),
            Reply::Array(_) => return Err(error::protocol("an array in answer to a send")),
        });
        self.in_flight -= 1;
        if flight.answers.len() == flight.commands.len() {
            done.extend(self.flights.pop_front());
        }
        Ok(())
    }
}

impl Flight {
    /// Settles what is answered.
    fn settle(&self, sender: &Sender) {
        if let Some(first) = self.dense() {
            self.batch.complete_all(Some(first));
            return;
        }
        for ((index, _), answer) in self.commands.iter().zip(&self.answers) {
            match answer {
                Answer::Stored(offset) => self.batch.complete_one(*index, *offset),
                Answer::Delayed => {
                    self.tell_due(sender, *index);
                    self.batch.complete_one(*index, None);
                }
                Answer::Gone => {
                    let error = topic_not_found(&self.route.topic);
                    self.batch.fail(*index..*index + 1, &error);
                }
                Answer::Refused(words) => self.batch.fail(*index..*index + 1, &error::refused(words)),
            }
        }
    }

    /// Returns the first offset where every message of the batch was stored right behind the one before.
    fn dense(&self) -> Option<u64> {
        let Some(Answer::Stored(Some(first))) = self.answers.first() else {
            return None;
        };
        let all = self.answers.len() == self.batch.len()
            && self.answers.iter().zip(*first..).all(
                |(answer, expected)| matches!(answer, Answer::Stored(Some(offset)) if *offset == expected),
            );
        all.then_some(*first)
    }

    fn tell_due(&self, sender: &Sender, index: usize) {
        if let Some(due) = self.batch.messages().get(index).and_then(Message::due) {
            let now = sender.shared.clock.now();
            let after = due_at(due, now).saturating_since(now);
            sender.upkeep.due(&self.route.topic, self.route.partition, after);
        }
    }
}

/// What has left may be stored; what has not is not.
fn settle_broken(sender: &Sender, wire: Wire, error: &Error) {
    let not_sent = error.clone().with_outcome(Outcome::NotSent);
    let unknown = error.clone().with_outcome(Outcome::Unknown);
    for flight in wire.flights {
        flight.settle(sender);
        for (index, begins) in flight.commands.iter().skip(flight.answers.len()) {
            let error = if *begins >= wire.written {
                &not_sent
            } else {
                &unknown
            };
            flight.batch.fail(*index..*index + 1, error);
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
            window: SendWindow::new(BATCHES, most, 1024 * 1024),
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

    fn store_now(&self, _: u32, _: &mut Message, _: &mut Wakes) -> Result<Option<Offset>, NotNow> {
        Err(NotNow)
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
