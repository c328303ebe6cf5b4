//! Opens connections: TCP, TLS where asked for, and the handshake of the protocol.

use std::time::Duration;

use mq_api::{Error, Outcome, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{config::RedisConfig, error};

/// Any kind of connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects. The caller bounds the time, the handshake of the protocol included.
pub(crate) async fn dial(config: &RedisConfig) -> Result<Box<dyn Stream>> {
    let address = config.address();
    let stream = TcpStream::connect((config.host.as_str(), config.port))
        .await
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        .map_err(|e| error::from_io(&address, &e).with_outcome(Outcome::NotSent))?;
    if config.tls {
        return tls(config, stream).await;
    }
    Ok(Box::new(stream))
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
