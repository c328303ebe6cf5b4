//! Stands between clients and a broker and changes single answers of the protocol, which no broker can be made to give at
//! the moment when a test wants them.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use test_brokers::{ReservedPort, free_port};

/// The numbers of requests, as Kafka's protocol has them.
const LIST_OFFSETS: i16 = 2;
const OFFSET_COMMIT: i16 = 8;
/// The first version of an answer to a commit that ends in the empty tags of its partition, its topic and itself.
const TAGGED_COMMIT: i16 = 8;
const ILLEGAL_GENERATION: i16 = 22;

/// Passes everything on, but for what it is asked to meddle with.
#[derive(Debug)]
pub struct Meddler {
    address: SocketAddr,
    _port: ReservedPort,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    ended: AtomicBool,
    to_refuse: AtomicUsize,
    refused: AtomicUsize,
    holding: Mutex<bool>,
    released: Condvar,
    held: AtomicUsize,
}

impl Meddler {
    pub fn start(target: SocketAddr) -> Self {
        let port = free_port().unwrap();
        let listener = TcpListener::bind(port.address()).unwrap();
        let meddler = Self {
            address: port.address(),
            _port: port,
            shared: Arc::new(Shared {
                target,
                ended: AtomicBool::new(false),
                to_refuse: AtomicUsize::new(0),
                refused: AtomicUsize::new(0),
                holding: Mutex::new(false),
                released: Condvar::new(),
                held: AtomicUsize::new(0),
            }),
        };
        let shared = Arc::clone(&meddler.shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&client, &shared));
            }
        });
        meddler
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers the next commits of one partition as if the group had moved on to a new generation.
    pub fn refuse_commits(&self, count: usize) {
        self.shared.to_refuse.store(count, Ordering::Release);
    }

    /// Returns how many commits were refused.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Acquire)
    }

    /// Keeps the answers to questions for offsets, such as that of a partition's end.
    pub fn hold_lookups(&self) {
        *self.shared.holding.lock().unwrap() = true;
    }

    /// Returns how many answers were kept so far.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Acquire)
    }

    /// Lets them go, and those that come; returns how many were kept.
    pub fn release_lookups(&self) -> usize {
        *self.shared.holding.lock().unwrap() = false;
        self.shared.released.notify_all();
        self.held()
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.release_lookups();
        self.shared.ended.store(true, Ordering::Release);
        // The listener looks at that after each connection.
        drop(TcpStream::connect(self.address));
    }
}

/// What was asked on one connection and not answered: the kind and the version of each request by its number.
type Asked = Mutex<HashMap<i32, (i16, i16)>>;

fn serve(client: &TcpStream, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(shared.target) else {
        return;
    };
    for stream in [client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let asked = Asked::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = pass_requests(client, &server, &asked);
            let _ = server.shutdown(Shutdown::Both);
        });
        let _ = pass_answers(&server, client, &asked, shared);
        let _ = client.shutdown(Shutdown::Both);
    });
}

fn pass_requests(mut from: &TcpStream, mut to: &TcpStream, asked: &Asked) -> io::Result<()> {
    loop {
        let frame = read_frame(&mut from)?;
        if let (Some(kind), Some(version), Some(number)) =
            (short(&frame, 4), short(&frame, 6), long(&frame, 8))
        {
            asked.lock().unwrap().insert(number, (kind, version));
        }
        to.write_all(&frame)?;
    }
}

fn pass_answers(mut from: &TcpStream, mut to: &TcpStream, asked: &Asked, shared: &Shared) -> io::Result<()> {
    loop {
        let mut frame = read_frame(&mut from)?;
        let question = long(&frame, 4).and_then(|number| asked.lock().unwrap().remove(&number));
        match question {
            Some((OFFSET_COMMIT, version)) => shared.refuse(&mut frame, version),
            Some((LIST_OFFSETS, _)) => shared.wait(),
            _ => {}
        }
        to.write_all(&frame)?;
    }
}

impl Shared {
    fn refuse(&self, frame: &mut [u8], version: i16) {
        let one_less = |left: usize| left.checked_sub(1);
        let mine = self
            .to_refuse
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
        if mine.is_err() {
            return;
        }
        // The error of the one partition is the last that is said.
        let behind = if version >= TAGGED_COMMIT { 3 } else { 0 };
        let at = frame.len() - behind - 2;
        frame[at..at + 2].copy_from_slice(&ILLEGAL_GENERATION.to_be_bytes());
        self.refused.fetch_add(1, Ordering::AcqRel);
    }

    fn wait(&self) {
        let mut holding = self.holding.lock().unwrap();
        if *holding {
            self.held.fetch_add(1, Ordering::AcqRel);
        }
        while *holding {
            holding = self.released.wait(holding).unwrap();
        }
    }
}

/// Reads one message with the length before it.
fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame)?;
    let length = long(&frame, 0).and_then(|length| u64::try_from(length).ok());
    let length = length.ok_or(io::ErrorKind::InvalidData)?;
    if from.take(length).read_to_end(&mut frame)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}

fn short(frame: &[u8], at: usize) -> Option<i16> {
    Some(i16::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}

fn long(frame: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}
