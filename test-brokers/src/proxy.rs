//! The outside hand: a TCP proxy that cuts, refuses, swallows or passes.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use crate::error::Context;
use crate::wait::wait_for;
use crate::{ReservedPort, Result, free_port};

/// Says what a [`Proxy`] does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyMode {
    /// Passes everything on.
    Pass,
    /// Accepts, and passes nothing on in either direction; what was held flows when the mode changes.
    Blackhole,
    /// Refuses new connections, as if nobody listened; those that stand are left alone (see [`Proxy::cut`]).
    Refuse,
}

/// A TCP proxy on a port of its own, which ends, refuses or swallows connections between two parties.
///
/// It stands for the network between a client and a server: neither of the two takes part in what it does.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    // Held where the port is the proxy's own.
    _port: Option<ReservedPort>,
    shared: Arc<Shared>,
    // `None` while connections are refused.
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    mode: ProxyMode,
    target: SocketAddr,
    closing: bool,
    next: u64,
    connections: HashMap<u64, Connection>,
}

/// The sockets of one connection; the one to the target comes later.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: Option<TcpStream>,
}

impl Proxy {
    /// Starts a proxy that passes everything on to `target`.
    ///
    /// # Errors
    /// Those of [`free_port`], and [`crate::Error::Io`] where its port cannot be listened on.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let port = free_port()?;
        Self::listen_at(port.address(), Some(port), target)
    }

    /// Starts a proxy on an address that the caller has reserved.
    pub(crate) fn start_at(address: SocketAddr, target: SocketAddr) -> Result<Self> {
        Self::listen_at(address, None, target)
    }

    fn listen_at(address: SocketAddr, port: Option<ReservedPort>, target: SocketAddr) -> Result<Self> {
        let state = State {
            mode: ProxyMode::Pass,
            target,
            closing: false,
            next: 0,
            connections: HashMap::new(),
        };
        let proxy = Self {
            address,
            _port: port,
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
            acceptor: Mutex::new(None),
        };
        proxy.listen(&mut proxy.acceptor())?;
        Ok(proxy)
    }

    /// Returns the address that clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where new connections are sent.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.shared.state().target
    }

    /// Sends new connections to another address.
    pub fn set_target(&self, target: SocketAddr) {
        self.shared.state().target = target;
    }

    /// Returns the present mode.
    #[must_use]
    pub fn mode(&self) -> ProxyMode {
        self.shared.state().mode
    }

    /// Changes the mode, for new connections and for those that stand.
    ///
    /// # Errors
    /// [`crate::Error::Io`] where the port cannot be listened on again.
    pub fn set_mode(&self, mode: ProxyMode) -> Result<()> {
        let mut acceptor = self.acceptor();
        self.shared.state().mode = mode;
        self.shared.changed.notify_all();
        if mode == ProxyMode::Refuse {
            self.stop_listening(&mut acceptor);
            Ok(())
        } else {
            self.listen(&mut acceptor)
        }
    }

    /// Ends all connections that stand, on both sides, and returns how many there were.
    pub fn cut(&self) -> usize {
        let cut: Vec<Connection> = self
            .shared
            .state()
            .connections
            .drain()
            .map(|(_, ends)| ends)
            .collect();
        self.shared.changed.notify_all();
        cut.iter().for_each(Connection::end);
        cut.len()
    }

    /// Returns how many connections stand.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    fn acceptor(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.acceptor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, acceptor: &mut Option<JoinHandle<()>>) -> Result<()> {
        if acceptor.is_some() {
            return Ok(());
        }
        let listener =
            TcpListener::bind(self.address).context(format!("cannot listen on {}", self.address))?;
        let shared = Arc::clone(&self.shared);
        *acceptor = Some(thread::spawn(move || accept(&listener, &shared)));
        Ok(())
    }

    fn stop_listening(&self, acceptor: &mut Option<JoinHandle<()>>) {
        let Some(thread) = acceptor.take() else { return };
        // The thread looks at the mode after each connection that it accepts, this one included.
        let woken = wait_for(Duration::from_secs(5), Duration::from_millis(10), || {
            let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
            Ok::<_, std::convert::Infallible>(thread.is_finished().then_some(()))
        });
        if matches!(woken, Ok(Some(()))) {
            let _ = thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.cut();
        self.stop_listening(&mut self.acceptor());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while everything is swallowed. Returns `false` when the connection was cut meanwhile.
    fn wait_for_passage(&self, id: u64) -> bool {
        let mut state = self.state();
        while state.mode == ProxyMode::Blackhole && state.connections.contains_key(&id) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.connections.contains_key(&id)
    }
}

impl Connection {
    fn end(&self) {
        for socket in [Some(&self.client), self.server.as_ref()].into_iter().flatten() {
            // A reset instead of a polite end, once the last handle of the socket is closed.
            let _ = set_socket_linger(socket, Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(cause) if cause.kind() == ErrorKind::ConnectionAborted => continue,
            Err(_) => return,
        };
        let mut state = shared.state();
        if state.closing || state.mode == ProxyMode::Refuse {
            return;
        }
        let Ok(handle) = client.try_clone() else { continue };
        let id = state.next;
        state.next += 1;
        state.connections.insert(
            id,
            Connection {
                client: handle,
                server: None,
            },
        );
        drop(state);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            serve(client, id, &shared);
            if let Some(ends) = shared.state().connections.remove(&id) {
                ends.end();
            }
        });
    }
}

fn serve(client: TcpStream, id: u64, shared: &Arc<Shared>) {
    if !shared.wait_for_passage(id) {
        return;
    }
    let target = shared.state().target;
    let Ok(server) = TcpStream::connect(target) else {
        return;
    };
    let (Ok(client_back), Ok(server_back), Ok(handle)) =
        (client.try_clone(), server.try_clone(), server.try_clone())
    else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    {
        let mut state = shared.state();
        let Some(ends) = state.connections.get_mut(&id) else {
            return;
        };
        ends.server = Some(handle);
    }
    let other = Arc::clone(shared);
    let back = thread::spawn(move || pump(server_back, client_back, id, &other));
    pump(client, server, id, shared);
    let _ = back.join();
}

/// Copies one direction until it ends; an end is handed on, a failure ends both directions.
fn pump(mut from: TcpStream, mut to: TcpStream, id: u64, shared: &Shared) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(length) => {
                let passed = shared.wait_for_passage(id)
                    && to.write_all(buffer.get(..length).unwrap_or_default()).is_ok();
                if passed {
                    continue;
                }
            }
            Err(cause) if cause.kind() == ErrorKind::Interrupted => continue,
            Err(_) => {}
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut back = stream.try_clone().unwrap();
                    std::io::copy(&mut &stream, &mut back)
                });
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn round_trip(stream: &mut TcpStream, data: &[u8]) {
        stream.write_all(data).unwrap();
        let mut back = vec![0; data.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, data);
    }

    #[test]
    fn passes_both_ways_and_hands_on_the_end() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        round_trip(&mut stream, b"hello");
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn cut_ends_what_stands_and_serves_what_comes() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut streams = [connect(&proxy), connect(&proxy)];
        streams.iter_mut().for_each(|stream| round_trip(stream, b"x"));
        assert_eq!(proxy.cut(), 2);
        for stream in &mut streams {
            assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
        }
        round_trip(&mut connect(&proxy), b"again");
    }

    #[test]
    fn refuses_and_serves_again_on_the_same_port() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut standing = connect(&proxy);
        round_trip(&mut standing, b"before");
        proxy.set_mode(ProxyMode::Refuse).unwrap();
        let refused = TcpStream::connect(proxy.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        round_trip(&mut standing, b"still");
        proxy.set_mode(ProxyMode::Pass).unwrap();
        round_trip(&mut connect(&proxy), b"after");
    }

    #[test]
    fn a_blackhole_holds_and_then_delivers() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut standing = connect(&proxy);
        round_trip(&mut standing, b"before");
        proxy.set_mode(ProxyMode::Blackhole).unwrap();
        let mut new = connect(&proxy);
        for stream in [&mut standing, &mut new] {
            stream.write_all(b"held").unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            assert!(stream.read(&mut [0; 8]).is_err());
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        proxy.set_mode(ProxyMode::Pass).unwrap();
        for stream in [&mut standing, &mut new] {
            let mut back = [0; 4];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"held");
        }
    }

    #[test]
    fn an_absent_target_ends_the_connection() {
        let absent = free_port().unwrap();
        let proxy = Proxy::start(absent.address()).unwrap();
        let mut stream = connect(&proxy);
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
        proxy.set_target(echo());
        round_trip(&mut connect(&proxy), b"present");
    }

    #[test]
    fn cut_reaches_connections_in_a_blackhole() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.set_mode(ProxyMode::Blackhole).unwrap();
        let mut stream = connect(&proxy);
        let cut = wait_for(
            Duration::from_secs(5),
            Duration::from_millis(5),
            || -> Result<_> { Ok((proxy.cut() == 1).then_some(())) },
        );
        assert!(cut.unwrap().is_some());
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
        assert_eq!(proxy.connections(), 0);
    }
}
