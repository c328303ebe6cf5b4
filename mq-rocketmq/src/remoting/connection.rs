//! A connection to one broker or nameserver.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::codes::response;
use super::error::{Effect, RemotingError};
use super::frame::{Command, EncodeBody, encode_request, encode_response, is_busy};
use super::header::{Fields, Request};
use super::pump::pump;
use super::sign::Credentials;
use super::tls::TlsSetup;

/// How connections are made and bounded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionOptions {
    /// TLS, if the server wants it.
    pub tls: Option<TlsSetup>,
    /// Signs every request.
    pub credentials: Option<Arc<Credentials>>,
    /// The bytes that may wait to be written; callers wait at it. One frame may go over it.
    pub max_outgoing: usize,
    /// A connection that stayed silent this long while a call ran out of time is given up.
    pub silence: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            tls: None,
            credentials: None,
            max_outgoing: 4 * 1024 * 1024,
            silence: Duration::from_secs(15),
        }
    }
}

/// A request that a server sent, and the way to answer it.
#[derive(Debug)]
pub struct Inbound {
    /// The request.
    pub command: Command,
    /// Where it came from.
    pub address: Arc<str>,
    pub(super) shared: Weak<Shared>,
}

impl Inbound {
    /// Queues an answer; without effect on a request that wants none.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Closed`] when the connection has ended or its outgoing buffer is full.
    pub fn reply<B: EncodeBody + ?Sized>(
        &self,
        code: i32,
        remark: Option<&str>,
        body: &B,
        fields: impl FnOnce(&mut Fields<'_>),
    ) -> Result<(), RemotingError> {
        if self.command.is_oneway() {
            return Ok(());
        }
        let closed = || RemotingError::Closed {
            address: self.address.clone(),
        };
        let shared = self.shared.upgrade().ok_or_else(closed)?;
        let mut state = shared.lock();
        if state.ended.is_some() || state.buffer.len() >= shared.options.max_outgoing {
            return Err(closed());
        }
        let before = state.buffer.len();
        encode_response(
            &mut state.buffer,
            self.command.header.opaque,
            code,
            remark,
            body,
            fields,
        )?;
        state.queued += (state.buffer.len() - before) as u64;
        drop(state);
        shared.work.notify_one();
        Ok(())
    }
}

/// Takes the requests that servers send. It is called from the connection's task and must not block.
pub trait InboundHandler: fmt::Debug + Send + Sync + 'static {
    /// Takes one request.
    fn on_request(&self, inbound: Inbound);
}

/// Answers every request of a server with "not supported".
#[derive(Debug, Clone, Copy, Default)]
pub struct RefuseInbound;

impl InboundHandler for RefuseInbound {
    fn on_request(&self, inbound: Inbound) {
        let code = response::REQUEST_CODE_NOT_SUPPORTED;
        let remark = Some("this client does not take the request");
        if let Err(error) = inbound.reply(code, remark, &(), |_| ()) {
            tracing::debug!(address = %inbound.address, %error, "could not refuse a request");
        }
    }
}

/// A connection to one address; clones share it.
///
/// One task reads and writes. It ends when the peer closes, when bytes break the protocol, on
/// [`close`](Self::close), and when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.end(RemotingError::Closed {
            address: self.shared.address.clone(),
        });
    }
}

impl Connection {
    /// Connects to `address`, a host and a port.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Connect`] or [`RemotingError::Tls`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future leaves no connection behind.
    pub async fn open(
        address: &str,
        options: ConnectionOptions,
        handler: Arc<dyn InboundHandler>,
        deadline: Instant,
    ) -> Result<Self, RemotingError> {
        let address: Arc<str> = address.into();
        let late = |_| Arc::new(io::Error::from(io::ErrorKind::TimedOut));
        let stream = timeout_at(deadline, TcpStream::connect(&*address))
            .await
            .map_err(late)
            .and_then(|outcome| outcome.map_err(Arc::new))
            .map_err(|source| RemotingError::Connect {
                address: address.clone(),
                source,
            })?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "could not switch off Nagle's algorithm");
        }
        let tls = options.tls.clone();
        let shared = Arc::new(Shared::new(address.clone(), options, handler));
        let task = match tls {
            None => {
                let (reader, writer) = stream.into_split();
                tokio::spawn(pump(reader, writer, shared.clone()))
            }
            Some(tls) => {
                let stream = timeout_at(deadline, tls.connect(&address, stream))
                    .await
                    .map_err(late)
                    .and_then(|outcome| outcome.map_err(Arc::new))
                    .map_err(|source| RemotingError::Tls { address, source })?;
                let (reader, writer) = tokio::io::split(stream);
                tokio::spawn(pump(reader, writer, shared.clone()))
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                task: Mutex::new(Some(task)),
            }),
        })
    }

    /// The address that was connected to.
    pub fn address(&self) -> &Arc<str> {
        &self.inner.shared.address
    }

    /// Tells whether new requests can be sent.
    pub fn is_usable(&self) -> bool {
        let state = self.inner.shared.lock();
        state.ended.is_none() && !state.going_away && !state.closing
    }

    /// Sends a request and waits for its answer until `deadline`.
    ///
    /// The answer is returned whatever its code is, except that codes for overload and for a closing server
    /// become errors.
    ///
    /// # Errors
    ///
    /// Any [`RemotingError`] except `Refused`; its [`effect`](RemotingError::effect) tells whether the server
    /// can have acted.
    ///
    /// # Cancel safety
    ///
    /// A future dropped while it waits for room sends nothing; later, the request may be carried out and its
    /// answer is ignored.
    pub async fn call<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Command, RemotingError> {
        let shared = &self.inner.shared;
        let began = Instant::now();
        let (sender, receiver) = oneshot::channel();
        let opaque = self.enqueue(request, body, deadline, Some(sender)).await?;
        let guard = Waiting { shared, opaque };
        let outcome = timeout_at(deadline, receiver).await;
        match outcome {
            Ok(Ok(answer)) => {
                std::mem::forget(guard);
                self.judge(answer?)
            }
            Ok(Err(_)) => Err(shared.lost("its task ended", Effect::Unknown)),
            Err(_) => {
                let waited = began.elapsed();
                shared.check_silence(began);
                let (address, code) = (shared.address.clone(), request.code());
                Err(RemotingError::Timeout {
                    address,
                    code,
                    waited,
                    effect: Effect::Unknown,
                })
            }
        }
    }

    /// Sends a request and requires the code [`SUCCESS`](response::SUCCESS).
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), and [`RemotingError::Refused`] for any other code.
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    pub async fn call_ok<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Command, RemotingError> {
        let answer = self.call(request, body, deadline).await?;
        if answer.code() == response::SUCCESS {
            Ok(answer)
        } else {
            Err(self.refused(request.code(), &answer))
        }
    }

    /// Builds the error for an answer that is a refusal.
    pub fn refused(&self, request: i32, answer: &Command) -> RemotingError {
        let address = self.address().clone();
        RemotingError::Refused {
            address,
            request,
            code: answer.code(),
            remark: answer.remark().into(),
        }
    }

    /// Queues a request that wants no answer.
    ///
    /// # Errors
    ///
    /// Any [`RemotingError`] that comes before the request is queued.
    ///
    /// # Cancel safety
    ///
    /// A dropped future sends nothing.
    pub async fn send_oneway<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        self.enqueue(request, body, deadline, None).await.map(drop)
    }

    /// Writes what is queued, then ends the connection; calls that wait for an answer fail.
    ///
    /// # Cancel safety
    ///
    /// A dropped future leaves the connection closing.
    pub async fn close(&self, deadline: Instant) {
        let shared = &self.inner.shared;
        shared.lock().closing = true;
        shared.work.notify_one();
        let task = self
            .inner
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut task) = task
            && timeout_at(deadline, &mut task).await.is_err()
        {
            shared.end(RemotingError::Closed {
                address: shared.address.clone(),
            });
            // The task only has to leave its select now.
            drop(task.await);
        }
    }

    async fn enqueue<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
        deadline: Instant,
        reply: Option<oneshot::Sender<Reply>>,
    ) -> Result<i32, RemotingError> {
        let shared = &*self.inner.shared;
        let mut reply = Some(reply);
        if let Some(opaque) = shared.try_enqueue(request, body, &mut reply)? {
            return Ok(opaque);
        }
        let began = Instant::now();
        loop {
            let room = shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(opaque) = shared.try_enqueue(request, body, &mut reply)? {
                return Ok(opaque);
            }
            if timeout_at(deadline, room).await.is_err() {
                let (address, code, waited) = (shared.address.clone(), request.code(), began.elapsed());
                return Err(RemotingError::Timeout {
                    address,
                    code,
                    waited,
                    effect: Effect::NotSent,
                });
            }
        }
    }

    fn judge(&self, answer: Command) -> Result<Command, RemotingError> {
        let address = || self.address().clone();
        match answer.code() {
            response::GO_AWAY => Err(RemotingError::GoAway { address: address() }),
            code if is_busy(code) => Err(RemotingError::Busy {
                address: address(),
                remark: answer.remark().into(),
            }),
            _ => Ok(answer),
        }
    }
}

/// Takes a call out of the table when its future is dropped.
struct Waiting<'a> {
    shared: &'a Shared,
    opaque: i32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().pending.remove(&self.opaque);
    }
}

pub(super) type Reply = Result<Command, RemotingError>;

struct Pending {
    reply: oneshot::Sender<Reply>,
    /// The position in the outgoing stream where the request ends.
    end: u64,
}

pub(super) struct Shared {
    pub(super) address: Arc<str>,
    pub(super) options: ConnectionOptions,
    pub(super) handler: Arc<dyn InboundHandler>,
    state: Mutex<State>,
    /// Wakes the writer.
    pub(super) work: Notify,
    /// Wakes callers that wait for room.
    pub(super) room: Notify,
    /// Ends the task.
    pub(super) stop: Notify,
    /// Bytes handed to the operating system.
    pub(super) written: AtomicU64,
    epoch: Instant,
    /// When bytes last came in, in milliseconds after `epoch`.
    last_read: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) buffer: BytesMut,
    /// Bytes ever put into the buffer.
    pub(super) queued: u64,
    pending: HashMap<i32, Pending>,
    next_opaque: i32,
    pub(super) ended: Option<RemotingError>,
    going_away: bool,
    pub(super) closing: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn new(address: Arc<str>, options: ConnectionOptions, handler: Arc<dyn InboundHandler>) -> Self {
        Self {
            address,
            options,
            handler,
            state: Mutex::default(),
            work: Notify::new(),
            room: Notify::new(),
            stop: Notify::new(),
            written: AtomicU64::new(0),
            epoch: Instant::now(),
            last_read: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock held except an encoder, which leaves at most half a frame behind that
        // `encode_request` cuts off by its own start mark; going on is better than to poison all callers.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lost(&self, reason: &str, effect: Effect) -> RemotingError {
        RemotingError::Lost {
            address: self.address.clone(),
            reason: reason.into(),
            effect,
        }
    }

    /// Queues the request and registers its reply, or gives `None` when there is no room.
    fn try_enqueue<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
        reply: &mut Option<Option<oneshot::Sender<Reply>>>,
    ) -> Result<Option<i32>, RemotingError> {
        let mut state = self.lock();
        if let Some(error) = &state.ended {
            return Err(match error {
                RemotingError::Lost { reason, .. } => self.lost(reason, Effect::NotSent),
                RemotingError::Closed { .. } => error.clone(),
                other => self.lost(&other.to_string(), Effect::NotSent),
            });
        }
        if state.closing {
            return Err(RemotingError::Closed {
                address: self.address.clone(),
            });
        }
        if state.going_away {
            return Err(RemotingError::GoAway {
                address: self.address.clone(),
            });
        }
        if state.buffer.len() >= self.options.max_outgoing {
            return Ok(None);
        }
        let wants_answer = matches!(reply, Some(Some(_)));
        let opaque = state.next_opaque;
        let before = state.buffer.len();
        let credentials = self.options.credentials.as_deref();
        encode_request(
            &mut state.buffer,
            opaque,
            !wants_answer,
            request,
            body,
            credentials,
        )?;
        state.next_opaque = opaque.wrapping_add(1) & i32::MAX;
        state.queued += (state.buffer.len() - before) as u64;
        let end = state.queued;
        if let Some(reply) = reply.take().flatten() {
            state.pending.insert(opaque, Pending { reply, end });
        }
        drop(state);
        self.work.notify_one();
        Ok(Some(opaque))
    }

    /// Hands an answer to its caller; a late one is dropped.
    pub(super) fn answer(&self, command: Command) {
        let mut state = self.lock();
        if command.code() == response::GO_AWAY {
            state.going_away = true;
        }
        let pending = state.pending.remove(&command.header.opaque);
        drop(state);
        if let Some(pending) = pending {
            // The caller may have gone.
            drop(pending.reply.send(Ok(command)));
        }
    }

    pub(super) fn note_read(&self) {
        self.last_read
            .store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Gives the connection up when a call ran out of time and nothing at all came in for long.
    fn check_silence(&self, call_began: Instant) {
        let last_read = self.epoch + Duration::from_millis(self.last_read.load(Ordering::Relaxed));
        let since = last_read.max(call_began);
        if since.elapsed() >= self.options.silence {
            self.end(self.lost("the peer is silent", Effect::Unknown));
        }
    }

    /// Ends the connection: fails what waits, and stops the task. Only the first error counts.
    pub(super) fn end(&self, error: RemotingError) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.ended = Some(error);
        }
        let reason = match state.ended.as_ref() {
            Some(RemotingError::Lost { reason, .. }) => reason.clone(),
            Some(other) => other.to_string().into(),
            None => Arc::from(""),
        };
        let pending = std::mem::take(&mut state.pending);
        state.buffer = BytesMut::new();
        drop(state);
        let written = self.written.load(Ordering::Acquire);
        for (_, Pending { reply, end }) in pending {
            // A frame that did not leave whole cannot be carried out.
            let effect = if end <= written {
                Effect::Unknown
            } else {
                Effect::NotSent
            };
            drop(reply.send(Err(self.lost(&reason, effect))));
        }
        self.stop.notify_one();
        self.room.notify_waiters();
    }
}
