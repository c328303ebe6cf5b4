//! Opens connections: TCP, TLS where asked for, and the handshake of the protocol, all within one deadline.
//!
//! The client library runs each connection in a thread of its own, which ends only when its socket does. A second
//! handle on the socket lets us end it from outside, whatever the thread waits for.

use std::{
    io,
    net::Shutdown,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_rs::TokioRuntime;
use lapin::{
    Connection, ConnectionProperties,
    tcp::{AMQPUriTcpExt, AsyncTcpStream, TLSConfig},
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use mq_api::{Error, Outcome, Result};
use tokio::sync::watch;

use crate::{
    config::{AmqpConfig, Host},
    error,
};

/// The second handle on a socket. It ends the connection when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Socket {
    handle: Mutex<Option<std::net::TcpStream>>,
    /// The library notices later, and what is asked of it meanwhile may never be answered.
    ended: watch::Sender<bool>,
}

impl Socket {
    pub(crate) fn is_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until the connection is ended from this side.
    pub(crate) async fn ended(&self) {
        // The sender is this one's own.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Ends the connection at once.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
        let socket = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(socket) = socket {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn hold(&self, socket: Option<std::net::TcpStream>) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.end();
    }
}

/// Connects with a heartbeat in seconds; `name` is what the server shows for the connection.
pub(crate) async fn connect(
    config: &AmqpConfig,
    host: &Host,
    limit: Duration,
    heartbeat: u16,
    name: &str,
) -> Result<(Connection, Arc<Socket>)> {
    let socket = Arc::new(Socket::default());
    let opened = open(config, host, limit, heartbeat, name, Arc::clone(&socket));
    match tokio::time::timeout(limit, opened).await {
        Ok(Ok(connection)) => Ok((connection, socket)),
        Ok(Err(error)) => Err(error),
        // Dropping the socket ends the thread that waits on it.
        Err(_) => Err(Error::timeout("connecting", limit).with_outcome(Outcome::NotSent)),
    }
}

async fn open(
    config: &AmqpConfig,
    host: &Host,
    limit: Duration,
    heartbeat: u16,
    name: &str,
    socket: Arc<Socket>,
) -> Result<Connection> {
    let uri = AMQPUri {
        // TLS is put on by us, once the second handle is there.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: config.username.clone(),
                password: config.password.clone(),
            },
            host: host.name.clone(),
            port: host.port,
        },
        vhost: config.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(heartbeat),
            ..AMQPQueryString::default()
        },
    };
    let address = host.to_string();
    let runtime = lapin::runtime::default_runtime().map_err(|e| error::from_connect(&address, &e))?;
    let properties = ConnectionProperties::default().with_connection_name(name.as_bytes().to_vec().into());
    let tls = Tls::new(config)?;
    let held = Arc::downgrade(&socket);
    let connector = async move |uri: AMQPUri, runtime: TokioRuntime| {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let dial = async {
            let stream = uri
                .connect_with_config_async(TLSConfig::default(), &runtime)
                .await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                // Whoever waited for the connection may have gone.
                let holder = held.upgrade().ok_or_else(late)?;
                holder.hold(second_handle(plain.get_ref())?);
            }
            tls.wrap(stream, &uri.authority.host).await
        };
        let stream = tokio::time::timeout(limit, dial).await.map_err(|_| late())??;
        Ok(stream)
    };
    Connection::connector(uri, runtime, connector, properties)
        .await
        .map_err(|e| error::from_connect(&address, &e))
}

#[cfg(unix)]
fn second_handle(stream: &tokio::net::TcpStream) -> io::Result<Option<std::net::TcpStream>> {
    use std::os::fd::AsFd;
    let handle = stream.as_fd().try_clone_to_owned()?;
    Ok(Some(std::net::TcpStream::from(handle)))
}

#[cfg(windows)]
fn second_handle(stream: &tokio::net::TcpStream) -> io::Result<Option<std::net::TcpStream>> {
    use std::os::windows::io::AsSocket;
    let handle = stream.as_socket().try_clone_to_owned()?;
    Ok(Some(std::net::TcpStream::from(handle)))
}

#[cfg(not(any(unix, windows)))]
fn second_handle(_stream: &tokio::net::TcpStream) -> io::Result<Option<std::net::TcpStream>> {
    Ok(None)
}

#[cfg(feature = "tls")]
use crate::tls::Tls;

/// Plain connections alone: asking for TLS was refused before.
#[cfg(not(feature = "tls"))]
struct Tls;

#[cfg(not(feature = "tls"))]
impl Tls {
    fn new(_config: &AmqpConfig) -> Result<Self> {
        Ok(Self)
    }

    async fn wrap<S>(&self, stream: S, _host: &str) -> io::Result<S> {
        Ok(stream)
    }
}
