//! A connection whose owner writes and reads it itself, in one task: for messages on their way in and out.
//!
//! The client library's connection answers requests; here it has to be known which bytes have left when a connection
//! breaks, strings of a reply are to be lent out without a copy, and no second task may stand between a message and
//! the socket. Commands are still built and packed by the client library.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;
use mq_api::{Outcome, Result};
use redis::Cmd;
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::TcpStream,
};

use crate::{
    config::{RedisConfig, RedisProtocol},
    dial::{Dialed, Stream, dial, within},
    error,
    guard::{Limits, Scanner},
    resp::Reply,
};

/// How much is read at once where nothing more is announced.
const READ_CHUNK: usize = 64 * 1024;
/// How much room is made at once for an announced string, so that memory follows what really comes.
const READ_MOST: usize = 1024 * 1024;

pub(crate) struct RawConn {
    stream: Box<dyn Stream>,
    socket: Option<Arc<TcpStream>>,
    address: Arc<str>,
    input: BytesMut,
    scanned: usize,
    scanner: Scanner,
    /// What is to be written, in pieces, and how much of the first piece has been.
    output: VecDeque<Vec<u8>>,
    front_written: usize,
    unflushed: bool,
    written: u64,
    client_id: i64,
}

impl RawConn {
    /// Connects and introduces itself, within the connect timeout.
    pub(crate) async fn open(config: &RedisConfig) -> Result<Self> {
        within("connecting", config.connect_timeout, Self::introduce(config))
            .await
            .map_err(|error| error.with_outcome(Outcome::NotSent))
    }

    async fn introduce(config: &RedisConfig) -> Result<Self> {
        let Dialed { stream, socket } = dial(config).await?;
        let mut conn = Self {
            stream,
            socket,
            address: config.address().into(),
            input: BytesMut::new(),
            scanned: 0,
            scanner: Scanner::new(Limits::new(config.max_bulk)),
            output: VecDeque::new(),
            front_written: 0,
            unflushed: false,
            written: 0,
            client_id: 0,
        };
        let mut must_pass = 0;
        let user = config.username.as_deref();
        let password = config.password.as_deref();
        match (config.protocol, password) {
            (RedisProtocol::Resp3, _) => {
                let mut hello = redis::cmd("HELLO");
                hello.arg(3);
                if let Some(password) = password {
                    hello.arg("AUTH").arg(user.unwrap_or("default")).arg(password);
                }
                conn.queue(&hello);
                must_pass += 1;
            }
            (RedisProtocol::Resp2, Some(password)) => {
                let mut auth = redis::cmd("AUTH");
                if let Some(user) = user {
                    auth.arg(user);
                }
                conn.queue(auth.arg(password));
                must_pass += 1;
            }
            (RedisProtocol::Resp2, None) => {}
        }
        if config.database != 0 {
            conn.queue(redis::cmd("SELECT").arg(config.database));
            must_pass += 1;
        }
        conn.queue(redis::cmd("CLIENT").arg("ID"));
        // Redis 7.0 does not know it yet, and needs it for nothing.
        conn.queue(
            redis::cmd("CLIENT")
                .arg("SETINFO")
                .arg("LIB-NAME")
                .arg("mq-redis"),
        );
        for _ in 0..must_pass {
            if let Reply::Refused(words) = conn.reply().await? {
                return Err(error::refused(&words));
            }
        }
        match conn.reply().await? {
            Reply::Refused(words) => return Err(error::refused(&words)),
            reply => conn.client_id = reply.int().unwrap_or(0),
        }
        conn.reply().await?;
        Ok(conn)
    }

    /// Returns the number that `CLIENT UNBLOCK` takes.
    pub(crate) fn client_id(&self) -> i64 {
        self.client_id
    }

    pub(crate) fn queue(&mut self, cmd: &Cmd) {
        self.queue_bytes(cmd.get_packed_command());
    }

    /// Takes packed commands, to be written as soon as the socket takes them.
    pub(crate) fn queue_bytes(&mut self, bytes: Vec<u8>) {
        self.output.push_back(bytes);
    }

    /// Returns the socket, where bytes may be written to it past this.
    pub(crate) fn socket(&self) -> Option<&Arc<TcpStream>> {
        self.socket.as_ref()
    }

    /// Counts the bytes that the system has taken since the connection began.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Writes what is queued, waits for a reply, and returns all that are there. Dropping the future loses nothing.
    pub(crate) async fn replies(&mut self) -> Result<Vec<Reply>> {
        let mut all = vec![self.reply().await?];
        while let Some(reply) = self.take_reply()? {
            all.push(reply);
        }
        Ok(all)
    }

    /// Writes what is queued and returns the next reply. Dropping the future loses nothing.
    pub(crate) async fn reply(&mut self) -> Result<Reply> {
        poll_fn(|cx| self.poll_reply(cx)).await
    }

    pub(crate) fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply>> {
        self.poll_write(cx)?;
        loop {
            if let Some(reply) = self.take_reply()? {
                return Poll::Ready(Ok(reply));
            }
            if self.input.capacity() - self.input.len() < READ_CHUNK / 4 {
                self.input
                    .reserve(self.scanner.missing().clamp(READ_CHUNK, READ_MOST));
            }
            let read = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(error::broken(&self.address))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(error::from_io(&self.address, &e))),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<()> {
        while let Some(front) = self.output.front() {
            let rest = front.get(self.front_written..).unwrap_or_default();
            if rest.is_empty() {
                self.output.pop_front();
                self.front_written = 0;
                continue;
            }
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(error::broken(&self.address)),
                Poll::Ready(Ok(count)) => {
                    self.front_written += count;
                    self.written += count as u64;
                    self.unflushed = true;
                }
                Poll::Ready(Err(e)) => return Err(error::from_io(&self.address, &e)),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(e)) => return Err(error::from_io(&self.address, &e)),
            }
        }
        Ok(())
    }

    fn take_reply(&mut self) -> Result<Option<Reply>> {
        loop {
            let fresh = self.input.get(self.scanned..).unwrap_or_default();
            if fresh.is_empty() {
                return Ok(None);
            }
            let is_push = self.scanned == 0 && fresh.first() == Some(&b'>');
            let (gone_over, ended) = self.scanner.advance(fresh).map_err(error::protocol)?;
            self.scanned += gone_over;
            if !ended {
                return Ok(None);
            }
            let frame = self.input.split_to(self.scanned).freeze();
            self.scanned = 0;
            // Nothing was subscribed to, so what is pushed answers nothing.
            if !is_push {
                return Reply::parse(&frame).map(Some).map_err(error::protocol);
            }
        }
    }
}

impl fmt::Debug for RawConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawConn")
            .field("address", &self.address)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}
