//! Connections of the client, opened again after they were lost, and channels on them whose every call has a deadline.
//!
//! The client library's automatic recovery stays off: it hangs silently in an outage. A connection that is lost is
//! another one afterwards, with channels of its own; nothing of the old one is used again.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, Consumer, ExchangeKind,
    message::BasicReturnMessage,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
        BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use mq_api::{Error, ErrorKind, Result};
use tokio::sync::Mutex;

use crate::{
    config::{AmqpConfig, Host},
    dial::{self, Socket},
    error,
    share::Shares,
};

/// One life of a connection. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub(crate) struct Conn {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Connection,
    socket: Arc<Socket>,
    limit: Duration,
    address: String,
    /// How many numbers of channels were passed over.
    passed: AtomicU32,
    shares: Arc<Shares>,
}

impl Conn {
    async fn open(
        config: &AmqpConfig,
        host: &Host,
        limit: Duration,
        heartbeat: u16,
        name: &str,
    ) -> Result<Self> {
        let (connection, socket) = dial::connect(config, host, limit, heartbeat, name).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                connection,
                socket,
                limit: config.request_timeout,
                address: host.to_string(),
                passed: AtomicU32::new(0),
                shares: Arc::default(),
            }),
        })
    }

    /// Returns what the partitions that are read on it share.
    pub(crate) fn shares(&self) -> &Arc<Shares> {
        &self.inner.shares
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.inner.socket.is_ended() && self.inner.connection.status().connected()
    }

    /// Tells whether the server takes no messages for now, as while its memory or disk is full.
    pub(crate) fn is_blocked(&self) -> bool {
        self.inner.connection.status().blocked()
    }

    /// Returns the heartbeat that was agreed on; none where the server wants none.
    pub(crate) fn heartbeat(&self) -> Option<Duration> {
        match self.inner.connection.configuration().heartbeat() {
            0 => None,
            seconds => Some(Duration::from_secs(u64::from(seconds))),
        }
    }

    /// Ends the connection at once; every channel on it fails.
    pub(crate) fn end(&self) {
        self.inner.socket.end();
    }

    /// Ends the connection in order, or at once where the server does not answer.
    async fn close(&self) {
        let close = self.inner.connection.close(200, "closed".into());
        let _ = tokio::time::timeout(CLOSE_LIMIT, close).await;
        self.end();
    }

    pub(crate) async fn channel(&self) -> Result<Chan> {
        let channel = self.within("opening a channel", self.open_channel()).await?;
        Ok(Chan {
            channel,
            conn: self.clone(),
        })
    }

    /// Opens a channel. The client library keeps the error that the server ended a channel with, and when the numbers of
    /// channels come round, answers the next opening of that number with it: then it is the next number's turn.
    async fn open_channel(&self) -> lapin::Result<Channel> {
        loop {
            match self.inner.connection.create_channel().await {
                Err(refused) if error::is_of_a_channel(&refused) && self.is_alive() => {
                    self.inner.passed.fetch_add(1, Ordering::Relaxed);
                }
                result => return result,
            }
        }
    }

    /// Tells whether so many numbers were passed over that another connection is better for what is opened next: the
    /// client library never frees them, and after the last one the connection opens nothing any more.
    fn is_worn(&self) -> bool {
        let most = u32::from(self.inner.connection.configuration().channel_max());
        self.inner.passed.load(Ordering::Relaxed) > most / 4
    }

    pub(crate) async fn confirm_channel(&self) -> Result<Chan> {
        let chan = self.channel().await?;
        self.within(
            "asking for confirms",
            chan.channel.confirm_select(ConfirmSelectOptions::default()),
        )
        .await?;
        Ok(chan)
    }

    async fn within<T>(&self, what: &str, work: impl Future<Output = lapin::Result<T>>) -> Result<T> {
        let limit = self.inner.limit;
        let work = async {
            tokio::select! {
                biased;
                done = work => Some(done),
                () = self.inner.socket.ended() => None,
            }
        };
        match tokio::time::timeout(limit, work).await {
            Ok(None) => Err(self.broken()),
            Ok(Some(result)) => result.map_err(|e| self.map(&e)),
            Err(_) => {
                let late = self.why_late(Error::timeout(what, limit));
                // A server that is silent for so long is given up, so that every user of the connection hears of it.
                self.end();
                Err(late)
            }
        }
    }

    /// Says why an answer has not come in time, where the server has told: it reads nothing more from a connection that
    /// sends while its memory or disk is full.
    pub(crate) fn why_late(&self, error: Error) -> Error {
        if self.is_blocked() {
            error::blocked()
        } else {
            error
        }
    }

    pub(crate) fn map(&self, error: &lapin::Error) -> Error {
        error::from_lapin(&self.inner.address, error)
    }

    pub(crate) fn broken(&self) -> Error {
        error::broken(&self.inner.address)
    }

    pub(crate) fn limit(&self) -> Duration {
        self.inner.limit
    }
}

/// How long ending a connection in order may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A channel. It is closed when it and its consumers are dropped.
pub(crate) struct Chan {
    channel: Channel,
    conn: Conn,
}

/// Closes a channel whose consumer was not waited for, when it is dropped. The client library makes that consumer all the
/// same when the server answers, and keeps it, and with it the channel and all messages that the server sends it, as long as
/// the connection lasts.
struct GivenUp<'a>(&'a Channel);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if self.0.status().connected() {
            // It is on its way with the first poll; nobody waits for the answer.
            let _ = self.0.close(200, "given up".into()).now_or_never();
        }
    }
}

/// What became of one message that waited for its confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Stored,
    /// It went to no queue.
    Returned,
    /// The server could not take it.
    Refused,
}

/// Where in a stream to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    First,
    /// At the beginning of the last chunk, which holds the last message.
    LastChunk,
    At(u64),
}

impl Chan {
    pub(crate) fn conn(&self) -> &Conn {
        &self.conn
    }

    /// Returns the client library's own channel.
    pub(crate) fn native(&self) -> &Channel {
        &self.channel
    }

    pub(crate) fn into_native(self) -> Channel {
        self.channel
    }

    pub(crate) async fn within<T>(
        &self,
        what: &str,
        work: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        self.conn.within(what, work).await
    }

    pub(crate) async fn declare_stream(&self, name: &str, arguments: FieldTable) -> Result<()> {
        let mut arguments = arguments;
        arguments.insert("x-queue-type".into(), text("stream"));
        self.declare(name, QueueDeclareOptions::durable(), arguments)
            .await?;
        Ok(())
    }

    /// Declares a queue and returns how many messages and consumers it has.
    pub(crate) async fn declare(
        &self,
        name: &str,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> Result<(u32, u32)> {
        let name = short(name)?;
        let declared = self
            .conn
            .within(
                "declaring a queue",
                self.channel.queue_declare(name, options, arguments),
            )
            .await?;
        Ok((declared.message_count(), declared.consumer_count()))
    }

    pub(crate) async fn delete_queue(&self, name: &str) -> Result<()> {
        let delete = self
            .channel
            .queue_delete(short(name)?, QueueDeleteOptions::default());
        self.conn.within("deleting a queue", delete).await?;
        Ok(())
    }

    pub(crate) async fn declare_exchange(
        &self,
        name: &str,
        kind: ExchangeKind,
        arguments: FieldTable,
    ) -> Result<()> {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declare = self
            .channel
            .exchange_declare(short(name)?, kind, options, arguments);
        self.conn.within("declaring an exchange", declare).await
    }

    /// Fails with `TopicNotFound` where there is no such exchange.
    pub(crate) async fn look_for_exchange(&self, name: &str) -> Result<()> {
        let options = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        // Of what kind it is the server does not compare.
        let look =
            self.channel
                .exchange_declare(short(name)?, ExchangeKind::Direct, options, FieldTable::default());
        self.conn.within("looking for an exchange", look).await
    }

    pub(crate) async fn delete_exchange(&self, name: &str) -> Result<()> {
        let delete = self
            .channel
            .exchange_delete(short(name)?, ExchangeDeleteOptions::default());
        self.conn.within("deleting an exchange", delete).await
    }

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let bind = self.channel.queue_bind(
            short(queue)?,
            short(exchange)?,
            short(key)?,
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        self.conn.within("binding a queue", bind).await
    }

    /// Bounds what is delivered without an ack to consumers that are opened from now on. It is a request with an
    /// answer: everything that the server sent before it has arrived when it returns.
    pub(crate) async fn prefetch(&self, most: u16) -> Result<()> {
        let qos = self.channel.basic_qos(most, BasicQosOptions::default());
        self.conn.within("setting the prefetch", qos).await
    }

    pub(crate) async fn consume(&self, queue: &str, tag: &str, no_ack: bool) -> Result<Consumer> {
        self.consume_with(queue, tag, no_ack, FieldTable::default()).await
    }

    pub(crate) async fn consume_stream(&self, queue: &str, tag: &str, from: From) -> Result<Consumer> {
        let from = match from {
            From::First => text("first"),
            From::LastChunk => text("last"),
            From::At(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), from);
        self.consume_with(queue, tag, false, arguments).await
    }

    async fn consume_with(
        &self,
        queue: &str,
        tag: &str,
        no_ack: bool,
        arguments: FieldTable,
    ) -> Result<Consumer> {
        let options = BasicConsumeOptions {
            no_ack,
            ..BasicConsumeOptions::default()
        };
        let consume = self
            .channel
            .basic_consume(short(queue)?, short(tag)?, options, arguments);
        let given_up = GivenUp(&self.channel);
        let consumer = self.conn.within("consuming", consume).await?;
        std::mem::forget(given_up);
        Ok(consumer)
    }

    pub(crate) async fn cancel(&self, tag: &str) -> Result<()> {
        let cancel = self
            .channel
            .basic_cancel(short(tag)?, BasicCancelOptions::default());
        self.conn.within("cancelling a consumer", cancel).await
    }

    /// Takes one message and leaves it unacked, so that it goes back when the channel closes.
    pub(crate) async fn get(&self, queue: &str) -> Result<Option<Vec<u8>>> {
        let get = self.channel.basic_get(short(queue)?, BasicGetOptions::default());
        let message = self.conn.within("reading a queue", get).await?;
        Ok(message.map(|message| message.delivery.data))
    }

    /// Sends one message and waits for its confirm. Of one channel only one task sends, else confirms are mistaken.
    pub(crate) async fn publish(&self, exchange: &str, key: &str, body: &[u8]) -> Result<Published> {
        self.publish_with(exchange, key, body, persistent()).await
    }

    pub(crate) async fn publish_with(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Published> {
        let (exchange, key) = (short(exchange)?, short(key)?);
        let confirmed = async {
            self.channel
                .basic_publish(exchange, key, MANDATORY, body, properties)
                .await?
                .await
        };
        Ok(published(&self.conn.within("a publish", confirmed).await?).0)
    }

    /// Sends messages to a queue, in order, and waits until the server has answered to all of them; false where it did not
    /// store each. As for one, only one task sends.
    pub(crate) async fn publish_all(
        &self,
        queue: &str,
        messages: Vec<(&[u8], BasicProperties)>,
    ) -> Result<bool> {
        let queue = short(queue)?;
        let mut sends: FuturesUnordered<_> = messages
            .into_iter()
            .map(|(body, properties)| {
                let (exchange, queue) = (ShortString::default(), queue.clone());
                async move {
                    self.channel
                        .basic_publish(exchange, queue, MANDATORY, body, properties)
                        .await?
                        .await
                }
            })
            .collect();
        let confirmed = async {
            let mut stored = true;
            // The last confirm is waited for alone: each by itself would wake this task twice.
            for sent in hand_over(&mut sends) {
                stored &= published(&sent?).0 == Published::Stored;
            }
            if !sends.is_empty() {
                self.channel.wait_for_confirms().await?;
            }
            while let Some(sent) = sends.next().await {
                stored &= published(&sent?).0 == Published::Stored;
            }
            Ok(stored)
        };
        self.conn.within("feeding a queue", confirmed).await
    }

    /// Hands an ack over, to be written with what follows. A delivery's own ack returns when it is written, after two
    /// tasks of the client library have had their turn.
    pub(crate) fn ack(&self, tag: u64, multiple: bool) -> Result<()> {
        let handed = self
            .channel
            .basic_ack(tag, BasicAckOptions { multiple })
            .now_or_never();
        match handed {
            Some(Err(error)) => Err(self.map(&error)),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Gives a message back, in the order of such calls with those of [`Chan::ack`].
    pub(crate) fn nack(&self, tag: u64) {
        let again = BasicNackOptions {
            requeue: true,
            ..BasicNackOptions::default()
        };
        // Where the channel is gone, the server has done it.
        let _ = self.channel.basic_nack(tag, again).now_or_never();
    }

    /// Ends the channel and returns when the server has ended it.
    pub(crate) async fn close(&self) {
        if self.channel.status().connected() {
            let _ = self
                .conn
                .within("closing a channel", self.channel.close(200, "closed".into()))
                .await;
        }
    }

    pub(crate) fn map(&self, error: &lapin::Error) -> Error {
        self.conn.map(error)
    }
}

/// Polls what was added to a set, and what has been woken, and returns what is ready. It wakes nobody later: who calls it
/// waits for something else that tells.
pub(crate) fn hand_over<F: Future>(sends: &mut FuturesUnordered<F>) -> Vec<F::Output> {
    /// Notices that the set has stopped before the last that can be polled, as it does now and then.
    #[derive(Default)]
    struct Stopped(AtomicBool);

    impl Wake for Stopped {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let stopped = Arc::new(Stopped::default());
    let waker = Waker::from(Arc::clone(&stopped));
    let mut cx = Context::from_waker(&waker);
    let mut ready = Vec::new();
    loop {
        stopped.0.store(false, Ordering::Relaxed);
        while let Poll::Ready(Some(sent)) = sends.poll_next_unpin(&mut cx) {
            ready.push(sent);
        }
        if sends.is_empty() || !stopped.0.load(Ordering::Relaxed) {
            return ready;
        }
    }
}

/// Without it a message that no queue takes is confirmed and gone.
pub(crate) const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

/// Reads a confirm: what it says, and the returned message that came with it.
pub(crate) fn published(confirmation: &Confirmation) -> (Published, Option<&BasicReturnMessage>) {
    match confirmation {
        Confirmation::Ack(None) | Confirmation::NotRequested => (Published::Stored, None),
        Confirmation::Ack(Some(returned)) => (Published::Returned, Some(returned)),
        Confirmation::Nack(returned) => (Published::Refused, returned.as_ref()),
    }
}

pub(crate) fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

pub(crate) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Makes a name of the protocol, which holds 255 bytes.
pub(crate) fn short(name: &str) -> Result<ShortString> {
    ShortString::try_new(name).map_err(|_| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("a name of {} bytes: the protocol takes 255", name.len()),
        )
    })
}

/// Opens one connection, again after it was lost, for all who need it.
pub(crate) struct Link {
    config: Arc<AmqpConfig>,
    heartbeat: u16,
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    conn: Option<Conn>,
    failed: Option<(Instant, Error)>,
    /// The host that is tried first.
    turn: usize,
    closed: bool,
}

/// How long a failed attempt answers for those who come after it.
const FAILURE_HOLDS: Duration = Duration::from_millis(50);

impl Link {
    /// Makes a link whose connections the server shows under a name.
    pub(crate) fn new(config: Arc<AmqpConfig>, heartbeat: u16, name: &str) -> Self {
        Self {
            config,
            heartbeat,
            name: format!("mq {name}"),
            state: Mutex::new(State::default()),
        }
    }

    /// Returns the connection, opened anew where it is gone.
    pub(crate) async fn conn(&self) -> Result<Conn> {
        let mut state = self.state.lock().await;
        if state.closed {
            return Err(Error::closed("connection"));
        }
        let alive = state.conn.clone().filter(Conn::is_alive);
        if let Some(conn) = &alive
            && !conn.is_worn()
        {
            return Ok(conn.clone());
        }
        if let Some((at, error)) = &state.failed
            && at.elapsed() < FAILURE_HOLDS
        {
            return alive.ok_or_else(|| error.clone());
        }
        if alive.is_none()
            && let Some(old) = state.conn.take()
        {
            // What still holds it has nothing to gain from it.
            old.end();
        }
        match self.open(&mut state.turn).await {
            Ok(conn) => {
                state.failed = None;
                // A worn one ends with the last who holds it.
                state.conn = Some(conn.clone());
                Ok(conn)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                alive.ok_or(error)
            }
        }
    }

    /// Tries each host once, all within the time for connecting; what one refuses for good, another would too.
    async fn open(&self, turn: &mut usize) -> Result<Conn> {
        let hosts = self.config.hosts();
        let deadline = Instant::now() + self.config.connect_timeout;
        let mut tried = 0;
        loop {
            let left = u32::try_from(hosts.len() - tried).unwrap_or(u32::MAX);
            let limit = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            let Some(host) = hosts.get(*turn % hosts.len().max(1)) else {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    "there is no host to connect to",
                ));
            };
            match Conn::open(&self.config, host, limit, self.heartbeat, &self.name).await {
                Ok(conn) => return Ok(conn),
                Err(error) => {
                    tried += 1;
                    *turn = (*turn + 1) % hosts.len();
                    if tried >= hosts.len() || !error.is_retryable() {
                        return Err(error);
                    }
                    tracing::debug!(%error, "the next host is tried");
                }
            }
        }
    }

    /// Does something on a channel of its own, and again while the server is not ready for it.
    pub(crate) async fn with_channel<T, F>(&self, work: impl Fn(Chan) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        let mut reconnects = 0;
        loop {
            let result = async { work(self.conn().await?.channel().await?).await }.await;
            let error = match result {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let again = match error.kind() {
                ErrorKind::Interrupted => true,
                // The connection was lost meanwhile; whether there is another one is soon known.
                ErrorKind::Connection => {
                    reconnects += 1;
                    reconnects <= 2
                }
                _ => false,
            };
            let pause = backoff.pause();
            if !again || begun.elapsed() + pause >= self.config.request_timeout {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    pub(crate) async fn close(&self) {
        let conn = {
            let mut state = self.state.lock().await;
            state.closed = true;
            state.conn.take()
        };
        if let Some(conn) = conn {
            conn.close().await;
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("config", &self.config)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Waits longer after each failure, with jitter, so that many clients do not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    pub(crate) fn reset(&mut self) {
        self.next = FIRST_PAUSE;
    }

    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        pause
    }
}
