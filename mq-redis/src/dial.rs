//! Opens connections: TCP, TLS where asked for, and the handshake of the protocol.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use mq_api::{Error, Outcome, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{config::RedisConfig, error};

/// Any kind of connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection, and its socket where bytes may be written to that past it.
pub(crate) struct Dialed {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) socket: Option<Arc<TcpStream>>,
}

/// Connects. The caller bounds the time, the handshake of the protocol included.
pub(crate) async fn dial(config: &RedisConfig) -> Result<Dialed> {
    let address = config.address();
    let stream = TcpStream::connect((config.host.as_str(), config.port))
        .await
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        .map_err(|e| error::from_io(&address, &e).with_outcome(Outcome::NotSent))?;
    if config.tls {
        let stream = tls(config, stream).await?;
        return Ok(Dialed { stream, socket: None });
    }
    let socket = Arc::new(stream);
    Ok(Dialed {
        stream: Box::new(Plain(Arc::clone(&socket))),
        socket: Some(socket),
    })
}

/// A socket that others may write to as well.
struct Plain(Arc<TcpStream>);

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Plain {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket closes with its last owner; nothing here ends one direction alone.
        Poll::Ready(Ok(()))
    }
}

/// Ends what takes too long. What it was doing has not reached the server as far as sends are concerned.
pub(crate) async fn within<T>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::timeout(what, limit).with_outcome(Outcome::NotSent)),
    }
}

#[cfg(not(feature = "tls"))]
async fn tls(config: &RedisConfig, _stream: TcpStream) -> Result<Box<dyn Stream>> {
    Err(Error::new(
        mq_api::ErrorKind::InvalidConfig,
        format!("server {}: this build has no TLS", config.address()),
    ))
}

#[cfg(feature = "tls")]
async fn tls(config: &RedisConfig, stream: TcpStream) -> Result<Box<dyn Stream>> {
    crate::tls::connect(config, stream).await
}
