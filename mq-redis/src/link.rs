//! The control connection: everything but messages on their way in and out.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mq_api::{Error, ErrorKind, Outcome, Result};
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, RedisConnectionInfo, aio::MultiplexedConnection,
};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    config::{RedisConfig, RedisProtocol},
    dial::{dial, within},
    error,
    guard::{Guarded, Limits},
    resp::Reply,
};

/// One life of the control connection. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub(crate) struct Conn {
    redis: MultiplexedConnection,
    life: Arc<Life>,
    limit: Duration,
    address: Arc<str>,
}

struct Life {
    task: AbortHandle,
    /// Nothing is sent: the sender is dropped with the connection's task.
    ended: watch::Receiver<()>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Conn {
    async fn open(config: &RedisConfig) -> Result<Self> {
        within("connecting", config.connect_timeout, Self::handshake(config)).await
    }

    async fn handshake(config: &RedisConfig) -> Result<Self> {
        let stream = dial(config).await?.stream;
        let stream = Guarded::new(stream, Limits::new(config.max_bulk));
        let options = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(1024);
        let address: Arc<str> = config.address().into();
        let (redis, driver) =
            MultiplexedConnection::new_with_config(&connection_info(config), stream, options)
                .await
                .map_err(|e| error::from_redis(&address, &e).with_outcome(Outcome::NotSent))?;
        let (alive, ended) = watch::channel(());
        let task = tokio::spawn(async move {
            driver.await;
            drop(alive);
        });
        Ok(Self {
            redis,
            life: Arc::new(Life {
                task: task.abort_handle(),
                ended,
            }),
            limit: config.request_timeout,
            address,
        })
    }

    /// Sends a command and returns its reply; what the server refuses is an error.
    pub(crate) async fn call(&self, cmd: &Cmd) -> Result<Reply> {
        match self.ask(cmd).await? {
            Reply::Refused(words) => Err(error::refused(&words)),
            reply => Ok(reply),
        }
    }

    /// Sends a command and returns its reply, be it a refusal.
    pub(crate) async fn ask(&self, cmd: &Cmd) -> Result<Reply> {
        let mut redis = self.redis.clone();
        let reply = self.limited(redis.send_packed_command(cmd)).await?;
        Ok(Reply::from(reply))
    }

    /// Sends commands in one go and returns their replies, refusals among them.
    pub(crate) async fn ask_all(&self, pipe: &Pipeline) -> Result<Vec<Reply>> {
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        let mut redis = self.redis.clone();
        let replies = self
            .limited(redis.send_packed_commands(pipe, 0, pipe.len()))
            .await?;
        if replies.len() != pipe.len() {
            return Err(error::protocol(format!(
                "{} replies to {} commands",
                replies.len(),
                pipe.len()
            )));
        }
        Ok(replies.into_iter().map(Reply::from).collect())
    }

    /// Sends commands in one go; the first refusal is the error of all.
    pub(crate) async fn call_all(&self, pipe: &Pipeline) -> Result<Vec<Reply>> {
        let replies = self.ask_all(pipe).await?;
        for reply in &replies {
            if let Reply::Refused(words) = reply {
                return Err(error::refused(words));
            }
        }
        Ok(replies)
    }

    async fn limited<T>(&self, work: impl Future<Output = redis::RedisResult<T>>) -> Result<T> {
        match tokio::time::timeout(self.limit, work).await {
            Ok(result) => result.map_err(|e| error::from_redis(&self.address, &e)),
            Err(_) => {
                // A server that is silent for so long is given up, so that every user of the connection hears of it.
                self.life.task.abort();
                Err(Error::timeout("a command", self.limit))
            }
        }
    }

    /// Ends when the connection does.
    pub(crate) async fn ended(&self) {
        let mut ended = self.life.ended.clone();
        let _ = ended.changed().await;
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.life.ended.has_changed().is_err()
    }

    /// Returns the client library's own connection.
    pub(crate) fn native(&self) -> MultiplexedConnection {
        self.redis.clone()
    }
}

fn connection_info(config: &RedisConfig) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default()
        .set_db(config.database)
        .set_lib_name("mq-redis", env!("CARGO_PKG_VERSION"))
        .set_protocol(match config.protocol {
            RedisProtocol::Resp2 => ProtocolVersion::RESP2,
            RedisProtocol::Resp3 => ProtocolVersion::RESP3,
        });
    if let Some(username) = &config.username {
        info = info.set_username(username);
    }
    if let Some(password) = &config.password {
        info = info.set_password(password);
    }
    info
}

/// Opens the control connection, again after it was lost, for all who need it.
///
/// It is opened by a task of its own: who waits for it may be dropped, or not be polled for a while, and holds nobody up.
pub(crate) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<RedisConfig>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    conn: Option<Conn>,
    failed: Option<(Instant, Error)>,
    opening: Option<Opening>,
    closed: bool,
}

/// A connection that is being opened.
struct Opening {
    opened: watch::Receiver<Option<Result<Conn>>>,
    task: AbortHandle,
}

/// How long a failed attempt answers for those who come after it.
const FAILURE_HOLDS: Duration = Duration::from_millis(50);

impl Link {
    pub(crate) fn new(config: Arc<RedisConfig>) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                state: Mutex::default(),
            }),
        }
    }

    /// Returns the connection, opened anew where it is gone.
    pub(crate) async fn conn(&self) -> Result<Conn> {
        let mut opened = {
            let mut state = self.inner.lock();
            if state.closed {
                return Err(Error::closed("connection"));
            }
            if let Some(conn) = &state.conn
                && !conn.is_ended()
            {
                return Ok(conn.clone());
            }
            if let Some((at, error)) = &state.failed
                && at.elapsed() < FAILURE_HOLDS
            {
                return Err(error.clone());
            }
            match &state.opening {
                Some(opening) => opening.opened.clone(),
                None => {
                    state.conn = None;
                    let (tell, opened) = watch::channel(None);
                    // Ends within the connect timeout, or with the link.
                    let task = tokio::spawn(open(Arc::clone(&self.inner), tell)).abort_handle();
                    state.opening = Some(Opening {
                        opened: opened.clone(),
                        task,
                    });
                    opened
                }
            }
        };
        let opened = opened
            .wait_for(Option::is_some)
            .await
            .map(|opened| opened.clone());
        match opened {
            Ok(Some(result)) => result,
            // The task was ended: by close, or with the runtime that it ran in.
            _ => {
                self.inner.lock().opening = None;
                Err(error::broken(&self.inner.config.address()))
            }
        }
    }

    pub(crate) fn close(&self) {
        let mut state = self.inner.lock();
        state.closed = true;
        state.conn = None;
        if let Some(opening) = state.opening.take() {
            opening.task.abort();
        }
    }

    /// Sends a command on the connection of the moment.
    pub(crate) async fn call(&self, cmd: &Cmd) -> Result<Reply> {
        self.conn().await?.call(cmd).await
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(inner: Arc<Inner>, tell: watch::Sender<Option<Result<Conn>>>) {
    let mut result = Conn::open(&inner.config).await;
    {
        let mut state = inner.lock();
        state.opening = None;
        if state.closed {
            result = Err(Error::closed("connection"));
        }
        match &result {
            Ok(conn) => {
                state.failed = None;
                state.conn = Some(conn.clone());
            }
            Err(error) => state.failed = Some((Instant::now(), error.clone())),
        }
    }
    tell.send_replace(Some(result));
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("address", &self.address)
            .field("ended", &self.is_ended())
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

/// Tells whether trying again on a new connection may help.
pub(crate) fn is_passing(error: &Error) -> bool {
    error.is_retryable() || error.kind() == ErrorKind::Protocol
}
