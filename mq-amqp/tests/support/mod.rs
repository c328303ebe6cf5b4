//! What the tests of this driver share: a server, and the calls of the driver traits.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use conformance_tests::calls::*;
use mq_amqp::{AmqpConfig, AmqpMq};
use mq_api::url::ConnectUrl;
use test_brokers::{Broker, RabbitMq, RabbitMqOptions, RabbitMqVersion};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

pub fn options() -> RabbitMqOptions {
    RabbitMqOptions::new().with_version(RabbitMqVersion::from_environment().unwrap())
}

/// Nothing is lost for want of a word on a machine that has much else to do.
pub fn config(rabbit: &RabbitMq) -> AmqpConfig {
    AmqpConfig::from_url(&ConnectUrl::parse(&rabbit.url()).unwrap())
        .unwrap()
        .with_session_timeout(Duration::from_secs(15))
        .with_request_timeout(Duration::from_secs(20))
}

pub async fn connect(rabbit: &RabbitMq) -> AmqpMq {
    AmqpMq::connect_with(config(rabbit)).await.unwrap()
}

/// Passes connections on to a server, and what the server says no faster than so many bytes a second.
#[derive(Debug)]
pub struct SlowLine {
    pub address: SocketAddr,
    most_held: Arc<AtomicUsize>,
    line: JoinHandle<()>,
}

impl SlowLine {
    pub async fn start(server: SocketAddr, bytes_a_second: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let most_held = Arc::new(AtomicUsize::new(0));
        let most = Arc::clone(&most_held);
        let line = tokio::spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(upstream) = TcpStream::connect(server).await {
                    passing.spawn(pass(client, upstream, bytes_a_second, Arc::clone(&most)));
                }
            }
        });
        Self {
            address,
            most_held,
            line,
        }
    }

    /// Returns how many bytes of one connection the server had sent, at most, which had not got to the other end.
    pub fn most_held(&self) -> usize {
        self.most_held.load(Ordering::Relaxed)
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.line.abort();
    }
}

async fn pass(client: TcpStream, server: TcpStream, bytes_a_second: u32, most_held: Arc<AtomicUsize>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // It holds whatever comes, as the buffers of a long way do.
    let (hold, mut held) = mpsc::unbounded_channel::<Vec<u8>>();
    let bytes = AtomicUsize::new(0);
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let come = async {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(size @ 1..) = from_server.read(&mut piece).await {
            most_held.fetch_max(bytes.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
            let _ = hold.send(piece[..size].to_vec());
        }
    };
    let go = async {
        let mut free_at = Instant::now();
        while let Some(piece) = held.recv().await {
            let size = u32::try_from(piece.len()).unwrap();
            free_at = free_at.max(Instant::now()) + Duration::from_secs(1) * size / bytes_a_second;
            tokio::time::sleep_until(free_at).await;
            if to_client.write_all(&piece).await.is_err() {
                break;
            }
            bytes.fetch_sub(piece.len(), Ordering::Relaxed);
        }
    };
    // Who has gone ends it.
    tokio::select! {
        _ = up => {}
        () = come => {}
        () = go => {}
    }
}
