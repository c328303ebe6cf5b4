//! Servers that are none: one says nothing, one says junk.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::Context;
use crate::{ReservedPort, Result, free_port};

/// Accepts connections and says nothing on them.
#[derive(Debug)]
pub struct SilentServer {
    acceptor: Acceptor,
}

impl SilentServer {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// Those of [`free_port`], and [`crate::Error::Io`] where the port cannot be listened on.
    pub fn start() -> Result<Self> {
        Ok(Self {
            acceptor: Acceptor::start(|_| {})?,
        })
    }

    /// Returns the address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.acceptor.port.address()
    }

    /// Returns how many connections it has accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.acceptor.shared.accepted.load(Ordering::SeqCst)
    }
}

/// Sends junk to everybody who connects.
#[derive(Debug)]
pub struct JunkServer {
    acceptor: Acceptor,
    sent: Arc<AtomicU64>,
}

impl JunkServer {
    /// How many bytes of junk a connection gets by default: 64 MB.
    pub const DEFAULT_LENGTH: u64 = 64_000_000;

    /// Starts one that sends [`JunkServer::DEFAULT_LENGTH`] bytes on each connection and then holds it open.
    ///
    /// # Errors
    /// Those of [`SilentServer::start`].
    pub fn start() -> Result<Self> {
        Self::start_with(Vec::new(), Self::DEFAULT_LENGTH)
    }

    /// Starts one that sends `prefix`, for example the announcement of a huge frame, then `length` bytes of junk.
    ///
    /// # Errors
    /// Those of [`SilentServer::start`].
    pub fn start_with(prefix: Vec<u8>, length: u64) -> Result<Self> {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let acceptor = Acceptor::start(move |stream| {
            // Ends early when the client closes, which is what it should do.
            let _ = send_junk(stream, &prefix, length, &counter);
        })?;
        Ok(Self { acceptor, sent })
    }

    /// Returns the address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.acceptor.port.address()
    }

    /// Returns how many bytes clients and their sockets have taken, over all connections.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

fn send_junk(mut stream: &TcpStream, prefix: &[u8], length: u64, sent: &AtomicU64) -> std::io::Result<()> {
    stream.write_all(prefix)?;
    // A fixed seed: a failure has to come again. No line ends, which text protocols would take for an answer.
    let mut state: u32 = 0x9E37_79B9;
    let block: Vec<u8> = (0..64 * 1024)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let byte = state.to_le_bytes()[0];
            if matches!(byte, b'\r' | b'\n') { b'?' } else { byte }
        })
        .collect();
    let mut left = length;
    while left > 0 {
        let size = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        stream.write_all(block.get(..size).unwrap_or_default())?;
        left -= size as u64;
        sent.fetch_add(size as u64, Ordering::SeqCst);
    }
    Ok(())
}

/// Accepts, hands each connection to a thread of its own, and ends them all on drop.
#[derive(Debug)]
struct Acceptor {
    port: ReservedPort,
    shared: Arc<Accepted>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Accepted {
    closing: AtomicBool,
    accepted: AtomicU64,
    // Bounded by what a test opens; kept so that the connections stay open.
    streams: Mutex<Vec<TcpStream>>,
}

impl Acceptor {
    fn start(serve: impl Fn(&TcpStream) + Send + Sync + 'static) -> Result<Self> {
        let port = free_port()?;
        let listener =
            TcpListener::bind(port.address()).context(format!("cannot listen on {}", port.address()))?;
        let shared = Arc::new(Accepted::default());
        let own = Arc::clone(&shared);
        let serve = Arc::new(serve);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if own.closing.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Ok(handle) = stream.try_clone() else { continue };
                own.accepted.fetch_add(1, Ordering::SeqCst);
                own.streams
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(handle);
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(&stream));
            }
        });
        Ok(Self {
            port,
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        let woken = TcpStream::connect_timeout(&self.port.address(), Duration::from_secs(1)).is_ok();
        for stream in self
            .shared
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if woken && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::wait::wait_for;

    #[test]
    fn the_silent_server_accepts_and_says_nothing() {
        let server = SilentServer::start().unwrap();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"anybody?").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(stream.read(&mut [0; 8]).is_err());
        assert_eq!(server.accepted(), 1);
        drop(server);
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    }

    #[test]
    fn the_junk_server_sends_its_prefix_and_its_length() {
        let server = JunkServer::start_with(b"$536870912\r\n".to_vec(), 100_000).unwrap();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let mut all = vec![0; 12 + 100_000];
        stream.read_exact(&mut all).unwrap();
        assert!(all.starts_with(b"$536870912\r\n"));
        assert!(!all[12..].contains(&b'\n'));
        // The last bytes may be here before they are counted there.
        let counted = wait_for(Duration::from_secs(10), Duration::from_millis(5), || {
            Ok::<_, std::convert::Infallible>((server.sent() == 100_000).then_some(()))
        });
        assert_eq!(counted, Ok(Some(())), "{} counted", server.sent());
    }
}
