//! The shared mode: members compete for the messages of one quorum queue, which the group's own members fill, or of a
//! queue that others made and fill.
//!
//! A message is a member's while its channel stands; the lease is kept by us: what is not extended in time goes back.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future};
use lapin::{Acker, Consumer, message::Delivery, options::QueueDeclareOptions};
use mq_api::{
    Clock, Error, ErrorKind, Moment, Result, Start,
    driver::{QueueConsumer, QueueReceipt, QueueRecord, Subscription, topic_not_found},
};
use tokio::{
    sync::{Mutex, Notify, watch},
    task::AbortHandle,
};

use crate::{
    consumer::{LeaveOnDrop, link},
    existing::Existing,
    feeder::{Feeder, Feeding, attempt, origin, work_arguments},
    format,
    link::{Backoff, Chan, Link},
    member::Member,
    meta::Mode,
    session::resolve_start,
    stream,
    topic::Shared,
};

/// How many messages a channel has at a time. Small, so that no member takes what others could work on.
const AHEAD: u16 = 32;
/// How many channels one member opens for messages that it holds.
const MOST_SOURCES: usize = 32;
/// How long a message may be held back in a member that gave it back: the server takes a holder of 30 minutes for stuck.
const LONGEST_HOLD: Duration = Duration::from_secs(20 * 60);
const LOOK: Duration = Duration::from_millis(20);

/// Receives for one member of a shared group.
pub(crate) struct AmqpQueue {
    filled: Filled,
    link: Arc<Link>,
    clock: Clock,
    queue: String,
    lease: Duration,
    /// How many messages one channel has at a time.
    ahead: u16,
    sources: Mutex<Sources>,
    /// What is closed even while a call holds the sources.
    chans: StdMutex<Vec<Weak<Chan>>>,
    held: Arc<Holds>,
    feeding: watch::Receiver<Feeding>,
    ended: watch::Receiver<()>,
    stopped: watch::Sender<bool>,
    closed: AtomicBool,
    keeper: AbortHandle,
    _guard: Option<LeaveOnDrop>,
}

/// Who fills the queue.
enum Filled {
    ByGroup(Arc<Member>),
    ByOthers {
        existing: Existing,
        /// Whether the connection is this consumer's alone.
        own_link: bool,
    },
}

impl Filled {
    /// Fails where what the queue belongs to is gone.
    async fn ask(&self, link: &Link) -> Result<()> {
        match self {
            Self::ByGroup(member) => member.open.ask(&member.shared).await,
            Self::ByOthers { existing, .. } => existing.check_queue(link).await,
        }
    }

    /// Waits until the topic is known to be gone.
    async fn gone(&self) -> Error {
        let Self::ByGroup(member) = self else {
            // The server cancels the consumer then.
            return std::future::pending().await;
        };
        let mut topic = member.open.state();
        if topic.wait_for(|state| state.gone).await.is_err() {
            std::future::pending::<()>().await;
        }
        topic_not_found(&member.open.topic.name)
    }
}

#[derive(Default)]
struct Sources {
    open: Vec<Source>,
    next: u64,
    backoff: Option<Backoff>,
}

struct Source {
    // Before the channel, which closes when both are gone.
    consumer: Consumer,
    chan: Arc<Chan>,
    id: u64,
}

/// What this member has, by source and tag. Acks and what is given back are handed over under the lock: an ack of several
/// must come after what was given back before, and cover nothing else.
struct Holds {
    all: StdMutex<Held>,
    changed: Notify,
    clock: Clock,
}

type Held = HashMap<u64, BTreeMap<u64, Hold>>;

/// What one call acks on a channel: tags, and the places of their receipts in the call.
type Acked = (Arc<Chan>, Vec<(u64, usize)>);

struct Hold {
    acker: Acker,
    chan: Arc<Chan>,
    /// Until when it is the engine's; where it was given back, when it is to go.
    until: Moment,
    given_back: bool,
}

impl Hold {
    fn is_the_engines(&self, now: Moment) -> bool {
        !self.given_back && self.until > now && self.acker.usable()
    }
}

impl Holds {
    fn new(clock: &Clock) -> Self {
        Self {
            all: StdMutex::default(),
            changed: Notify::new(),
            clock: clock.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what is still the engine's.
    fn take(all: &mut Held, key: (u64, u64), now: Moment) -> Option<Hold> {
        let of_source = all.get_mut(&key.0)?;
        of_source.get(&key.1).filter(|hold| hold.is_the_engines(now))?;
        of_source.remove(&key.1)
    }

    /// Acks what is still the engine's: of a channel all before the oldest that stays at once, the others one by one. Returns
    /// the channels on which something was acked.
    fn ack(&self, receipts: &[QueueReceipt]) -> (Vec<Result<()>>, Vec<Arc<Chan>>) {
        let now = self.clock.now();
        let mut results: Vec<Result<()>> = Vec::with_capacity(receipts.len());
        let mut sources: BTreeMap<u64, Acked> = BTreeMap::new();
        let mut all = self.lock();
        for (at, receipt) in receipts.iter().enumerate() {
            let taken = key(receipt).and_then(|key| Some((key, Self::take(&mut all, key, now)?)));
            let Some(((source, tag), hold)) = taken else {
                results.push(Err(stale()));
                continue;
            };
            results.push(Ok(()));
            let (_, tags) = sources.entry(source).or_insert((hold.chan, Vec::new()));
            tags.push((tag, at));
        }
        let mut chans = Vec::with_capacity(sources.len());
        for (source, (chan, mut tags)) in sources {
            tags.sort_unstable();
            let staying = all.get(&source).and_then(|held| held.keys().next());
            let before = staying.map_or(tags.len(), |oldest| tags.partition_point(|(tag, _)| tag < oldest));
            let (together, alone) = tags.split_at(before);
            if let Some((last, _)) = together.last() {
                settled(&mut results, together, &chan.ack(*last, true));
            }
            for one in alone {
                settled(&mut results, std::slice::from_ref(one), &chan.ack(one.0, false));
            }
            chans.push(chan);
        }
        (results, chans)
    }

    /// Gives back what is over, and says when to look again.
    fn give_back_over(&self) -> Option<Moment> {
        let now = self.clock.now();
        let mut all = self.lock();
        let mut next: Option<Moment> = None;
        for of_source in all.values_mut() {
            of_source.retain(|tag, hold| {
                if !hold.acker.usable() {
                    return false;
                }
                if hold.until <= now {
                    hold.chan.nack(*tag);
                    return false;
                }
                next = Some(next.map_or(hold.until, |next| next.min(hold.until)));
                true
            });
        }
        all.retain(|_, of_source| !of_source.is_empty());
        next
    }

    /// Gives back what is over, until it is aborted.
    async fn keep(self: Arc<Self>) {
        loop {
            let next = self.give_back_over();
            // Not one long sleep: the clock may be another than the runtime's.
            let pause = next.map(|next| {
                next.saturating_since(self.clock.now())
                    .max(Duration::from_millis(1))
            });
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause.unwrap_or(LOOK * 50).min(LOOK * 50)) => {}
            }
        }
    }
}

/// Says of acks what became of handing them over.
fn settled(results: &mut [Result<()>], tags: &[(u64, usize)], handed: &Result<()>) {
    if let Err(error) = handed {
        for (_, at) in tags {
            if let Some(result) = results.get_mut(*at) {
                *result = Err(error.clone());
            }
        }
    }
}

fn receipt(source: u64, tag: u64) -> QueueReceipt {
    let mut bytes = [0; 16];
    let (first, second) = bytes.split_at_mut(8);
    first.copy_from_slice(&source.to_be_bytes());
    second.copy_from_slice(&tag.to_be_bytes());
    QueueReceipt(Bytes::copy_from_slice(&bytes))
}

fn key(receipt: &QueueReceipt) -> Option<(u64, u64)> {
    let (source, tag) = receipt.0.split_at_checked(8)?;
    Some((
        u64::from_be_bytes(source.try_into().ok()?),
        u64::from_be_bytes(tag.try_into().ok()?),
    ))
}

fn stale() -> Error {
    Error::new(ErrorKind::StaleAck, "the message is no longer this member's")
}

/// Joins a group in shared mode.
pub(crate) async fn join(shared: &Arc<Shared>, subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
    let link = link(shared, &subscription)?;
    let open = shared.open(&subscription.topic).await?;
    let (lease, ahead) = bounds(shared, &subscription);
    let member = Arc::new(Member::new(shared, link, open, &subscription));
    resolve_start(&member, subscription.start, Mode::Shared).await?;
    let topic = &member.open.topic;
    let queue = shared.names.work(&topic.name, &topic.id, &member.group);
    member
        .link
        .with_channel(|chan| {
            let queue = queue.clone();
            async move {
                chan.declare(&queue, QueueDeclareOptions::durable(), work_arguments())
                    .await
            }
        })
        .await?;
    let (alive, ended) = watch::channel(());
    let (told, feeding) = watch::channel(Feeding::default());
    let feeder = Feeder {
        member: Arc::clone(&member),
        queue: queue.clone(),
        told,
    };
    let held = Arc::new(Holds::new(&member.clock));
    let keeper = tokio::spawn(Arc::clone(&held).keep()).abort_handle();
    let consumer = AmqpQueue {
        queue,
        lease,
        ahead,
        sources: Mutex::default(),
        chans: StdMutex::default(),
        held,
        feeding,
        ended: ended.clone(),
        stopped: watch::channel(false).0,
        closed: AtomicBool::new(false),
        keeper,
        _guard: Some(LeaveOnDrop::new(&member)),
        link: Arc::clone(&member.link),
        clock: member.clock.clone(),
        filled: Filled::ByGroup(Arc::clone(&member)),
    };
    // Both end when the member has left, which the guard asks it to.
    tokio::spawn(member.run(alive));
    tokio::spawn(feeder.run(ended));
    Ok(Arc::new(consumer))
}

/// Says how long a message is kept, and how many a channel has at a time.
fn bounds(shared: &Shared, subscription: &Subscription) -> (Duration, u16) {
    let lease = subscription
        .session_timeout
        .unwrap_or(shared.config.session_timeout);
    let ahead = u16::try_from(subscription.prefetch.messages)
        .unwrap_or(AHEAD)
        .clamp(1, AHEAD);
    (lease, ahead)
}

/// Receives from a queue that others made. Who consumes from it they decide: the group is a name alone.
pub(crate) async fn open(
    shared: &Arc<Shared>,
    subscription: Subscription,
    existing: Existing,
) -> Result<Arc<dyn QueueConsumer>> {
    if subscription.start != Start::Earliest {
        return Err(existing.refusal("beginning elsewhere than with what is in the queue"));
    }
    let link = link(shared, &subscription)?;
    let queue = existing.queue()?.to_owned();
    existing.check_queue(&link).await?;
    let (lease, ahead) = bounds(shared, &subscription);
    let held = Arc::new(Holds::new(&subscription.clock));
    Ok(Arc::new(AmqpQueue {
        filled: Filled::ByOthers {
            own_link: !Arc::ptr_eq(&link, &shared.consume),
            existing,
        },
        link,
        clock: subscription.clock.clone(),
        queue,
        lease,
        ahead,
        sources: Mutex::default(),
        chans: StdMutex::default(),
        // Ended with the consumer.
        keeper: tokio::spawn(Arc::clone(&held).keep()).abort_handle(),
        held,
        feeding: watch::channel(Feeding::default()).1,
        ended: watch::channel(()).1,
        stopped: watch::channel(false).0,
        closed: AtomicBool::new(false),
        _guard: None,
    }))
}

impl AmqpQueue {
    /// Opens one more channel to receive on.
    async fn open(&self, sources: &mut Sources) -> Result<()> {
        let chan = self.link.conn().await?.channel().await?;
        chan.prefetch(self.ahead).await?;
        let consumer = chan.consume(&self.queue, "work", false).await?;
        let chan = Arc::new(chan);
        {
            let mut chans = self.chans.lock().unwrap_or_else(PoisonError::into_inner);
            chans.retain(|chan| chan.strong_count() > 0);
            chans.push(Arc::downgrade(&chan));
        }
        sources.next += 1;
        sources.open.push(Source {
            consumer,
            chan,
            id: sources.next,
        });
        Ok(())
    }

    /// Waits for messages on any channel.
    async fn wait(&self, sources: &mut Sources, max: usize) -> Result<Vec<QueueRecord>> {
        loop {
            if sources.open.len() < MOST_SOURCES && self.is_short(sources) {
                self.open(sources).await?;
            }
            let came = std::future::poll_fn(|cx| {
                for (at, source) in sources.open.iter_mut().enumerate() {
                    if let std::task::Poll::Ready(next) = source.consumer.poll_next_unpin(cx) {
                        return std::task::Poll::Ready((at, next));
                    }
                }
                std::task::Poll::Pending
            });
            let came = match tokio::time::timeout(LOOK, came).await {
                Ok(came) => came,
                // What is held may have become more meanwhile.
                Err(_) => continue,
            };
            let (at, first) = came;
            // Nothing is awaited from here on: what is taken is returned.
            let mut taken = Vec::new();
            let mut next = Some(first);
            for at in (at..sources.open.len()).chain(0..at) {
                let Some(source) = sources.open.get_mut(at) else {
                    continue;
                };
                if next.is_none() && taken.len() < max {
                    next = source.consumer.next().now_or_never();
                }
                while let Some(one) = next.take() {
                    match one {
                        Some(Ok(delivery)) => taken.extend(self.take(source, delivery)?),
                        Some(Err(_)) | None if !taken.is_empty() => break,
                        Some(Err(error)) => return Err(source.chan.map(&error)),
                        None => return Err(stream::cancelled()),
                    }
                    if taken.len() < max {
                        next = source.consumer.next().now_or_never();
                    }
                }
            }
            if !taken.is_empty() {
                self.held.changed.notify_one();
                return Ok(taken);
            }
        }
    }

    /// Tells whether every open channel has given all that it may.
    fn is_short(&self, sources: &Sources) -> bool {
        let held = self.held.lock();
        sources.open.iter().all(|source| {
            let has = held.get(&source.id).map_or(0, BTreeMap::len);
            has >= usize::from(self.ahead)
        })
    }

    fn take(&self, source: &Source, mut delivery: Delivery) -> Result<Option<QueueRecord>> {
        if format::is_of_stream(&delivery.properties) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "queue {:?} is a stream: a shared consumer needs a classic or quorum queue",
                    self.queue
                ),
            ));
        }
        let tag = delivery.delivery_tag;
        let from = origin(&delivery.properties);
        let offset = from.as_ref().map_or(0, |from| from.offset);
        let body = std::mem::take(&mut delivery.data);
        let decoded = format::decode(offset, &delivery.properties, body);
        if let Ok(None) = decoded {
            return Ok(None);
        }
        let until = self.clock.now() + self.lease;
        // A classic queue counts nothing, and tells only whether it is the first time.
        let attempt = attempt(&delivery.properties).max(1 + u32::from(delivery.redelivered));
        let hold = Hold {
            acker: delivery.acker,
            chan: Arc::clone(&source.chan),
            until,
            // What cannot be read goes back, for a later build: no ack of several may cover it.
            given_back: decoded.is_err(),
        };
        self.held.lock().entry(source.id).or_default().insert(tag, hold);
        let Some(record) = decoded? else { return Ok(None) };
        Ok(Some(QueueRecord::new(
            from.map_or(0, |from| from.partition),
            record,
            receipt(source.id, tag),
            attempt,
            until,
        )))
    }

    async fn receive_or_fail(&self, max: usize) -> Result<Vec<QueueRecord>> {
        let mut sources = self.sources.lock().await;
        if let Some(backoff) = &mut sources.backoff {
            // The last call told of the outage; this one waits before it tries again.
            let pause = backoff.pause();
            tokio::time::sleep(pause).await;
        }
        let down = sources.backoff.is_some();
        loop {
            match self.wait(&mut sources, max).await {
                Ok(records) => {
                    sources.backoff = None;
                    return Ok(records);
                }
                Err(error) => {
                    sources.open.clear();
                    if error.kind() == ErrorKind::TopicNotFound {
                        self.filled.ask(&self.link).await?;
                    } else if !error.is_retryable() {
                        return Err(error);
                    } else if !down {
                        sources.backoff = Some(Backoff::new());
                        return Err(error);
                    }
                    let pause = sources.backoff.get_or_insert_with(Backoff::new).pause();
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn failed(&self) -> Error {
        let mut feeding = self.feeding.clone();
        loop {
            if let Feeding::Failed(error) = &*feeding.borrow_and_update() {
                return error.clone();
            }
            if feeding.changed().await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    async fn stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        if stopped.wait_for(|stopped| *stopped).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn end(&self) {
        self.closed.store(true, Ordering::Release);
        self.stopped.send_replace(true);
        self.keeper.abort();
        self.held.lock().clear();
    }
}

#[async_trait]
impl QueueConsumer for AmqpQueue {
    async fn receive(&self, max: usize) -> Result<Vec<QueueRecord>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed("consumer"));
        }
        tokio::select! {
            biased;
            () = self.stopped() => Err(Error::closed("consumer")),
            error = self.failed() => Err(error),
            error = self.filled.gone() => Err(error),
            records = self.receive_or_fail(max.max(1)) => records,
        }
    }

    async fn ack(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<()>> {
        let (results, chans) = self.held.ack(&receipts);
        future::join_all(chans.iter().map(|chan| async move {
            // An answer tells that the acks before it have been read.
            if let Err(error) = chan.prefetch(self.ahead).await {
                tracing::debug!(%error, "acks may have been lost with their channel");
            }
        }))
        .await;
        results
    }

    async fn nack(&self, receipts: Vec<(QueueReceipt, Duration)>) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(receipts.len());
        let now = self.clock.now();
        let mut held = self.held.lock();
        for (receipt, after) in receipts {
            if after > LONGEST_HOLD {
                results.push(Err(Error::unsupported(
                    "amqp",
                    "giving a message of a shared group back for more than 20 minutes",
                )));
                continue;
            }
            let taken = key(&receipt).and_then(|key| Some((key, Holds::take(&mut held, key, now)?)));
            let Some(((source, tag), mut hold)) = taken else {
                results.push(Err(stale()));
                continue;
            };
            if after.is_zero() {
                hold.chan.nack(tag);
            } else {
                hold.given_back = true;
                hold.until = now + after;
                held.entry(source).or_default().insert(tag, hold);
                self.held.changed.notify_one();
            }
            results.push(Ok(()));
        }
        results
    }

    async fn extend(&self, receipts: Vec<QueueReceipt>) -> Vec<Result<(QueueReceipt, Moment)>> {
        let now = self.clock.now();
        let until = now + self.lease;
        let mut held = self.held.lock();
        receipts
            .into_iter()
            .map(|receipt| {
                let hold = key(&receipt)
                    .and_then(|(source, tag)| held.get_mut(&source)?.get_mut(&tag))
                    .filter(|hold| hold.is_the_engines(now))
                    .ok_or_else(stale)?;
                hold.until = until;
                Ok((receipt, until))
            })
            .collect()
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    async fn close(&self) -> Result<()> {
        self.end();
        let chans = std::mem::take(&mut *self.chans.lock().unwrap_or_else(PoisonError::into_inner));
        for chan in chans.iter().filter_map(Weak::upgrade) {
            // What was not settled goes back with the channel.
            chan.close().await;
        }
        match &self.filled {
            Filled::ByGroup(member) => {
                member.ask_to_leave();
                let mut ended = self.ended.clone();
                let _ = ended.changed().await;
            }
            Filled::ByOthers { own_link: true, .. } => self.link.close().await,
            Filled::ByOthers { .. } => {}
        }
        Ok(())
    }
}

impl Drop for AmqpQueue {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for AmqpQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpQueue")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}
