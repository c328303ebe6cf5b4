//! Passes bytes on between a client and the server, and breaks or slows what it is told to.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

pub struct Tap {
    pub address: SocketAddr,
    /// So many connections on which a member joins end once the server has the join and before it answers.
    pub joins_to_break: Arc<AtomicUsize>,
    /// Answers on a connection that has moved delayed messages come this many milliseconds late.
    pub moves_late_by: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Tap {
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let tap = Self {
            address: listener.local_addr().unwrap(),
            joins_to_break: Arc::default(),
            moves_late_by: Arc::default(),
            open: Arc::default(),
        };
        let (joins, late_by) = (Arc::clone(&tap.joins_to_break), Arc::clone(&tap.moves_late_by));
        let open = Arc::clone(&tap.open);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(server) else {
                    continue;
                };
                for end in [&client, &server] {
                    end.set_nodelay(true).unwrap();
                }
                open.lock().unwrap().push(client.try_clone().unwrap());
                let broken = Arc::new(AtomicBool::new(false));
                let moves = Arc::new(AtomicBool::new(false));
                let (back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (is_broken, has_moved) = (Arc::clone(&broken), Arc::clone(&moves));
                let (joins, late_by) = (Arc::clone(&joins), Arc::clone(&late_by));
                std::thread::spawn(move || {
                    pass(back_from, back_to, |_| {
                        if has_moved.load(Ordering::SeqCst) {
                            pause(late_by.load(Ordering::SeqCst));
                        }
                        !is_broken.load(Ordering::SeqCst)
                    });
                });
                std::thread::spawn(move || {
                    let ended = client.try_clone().unwrap();
                    pass(client, server, |bytes| {
                        if holds(bytes, b"BYSCORE") {
                            moves.store(true, Ordering::SeqCst);
                        }
                        if holds(bytes, b"\r\njoin\r\n") && take_one(&joins) {
                            broken.store(true, Ordering::SeqCst);
                            end_soon(ended.try_clone().unwrap());
                        }
                        true
                    });
                });
            }
        });
        tap
    }

    pub fn cut(&self) {
        for client in self.open.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|part| part == what)
}

#[expect(clippy::disallowed_methods, reason = "in threads of the tap's own")]
fn pause(millis: usize) {
    std::thread::sleep(Duration::from_millis(millis as u64));
}

/// Ends a connection by when the server has what was just passed on.
fn end_soon(connection: TcpStream) {
    std::thread::spawn(move || {
        pause(100);
        let _ = connection.shutdown(Shutdown::Both);
    });
}

fn take_one(count: &AtomicUsize) -> bool {
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1))
        .is_ok()
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if passes(&buffer[..count]) && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
