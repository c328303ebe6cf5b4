//! What must repeat of RocketMQ's codec alone, without a connection: allocations and, under `callgrind`, instructions a
//! message of 1 KiB. `cargo xtask ci gates` runs it.
//!
//! `codec allocations` checks its own limits. `codec work NAME COUNT` only does the work COUNT times.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The numbers are what it is for.

use std::{alloc::System, hint::black_box, process::ExitCode};

use bytes::{Bytes, BytesMut};
use mq_rocketmq::remoting::{
    BatchWriter, RemotingError, SendMessage, StoredMessage, StoredMessages, UniqueKeys, decode_frame,
    encode_request, encode_response,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Messages of one request, and of one answer.
const BATCH: usize = 32;
/// The most allocations a message: two and three of each batch are counted, and one more is too many.
const MOST_SENT: f64 = 0.07;
const MOST_RECEIVED: f64 = 0.10;

type Outcome<T> = Result<T, RemotingError>;

/// Encodes a request that stores messages.
struct Sender {
    payload: Vec<u8>,
    keys: UniqueKeys,
    /// What a connection writes from.
    out: BytesMut,
}

impl Sender {
    fn new() -> Self {
        Self {
            payload: vec![0xAB; 1024],
            keys: UniqueKeys::new(),
            out: BytesMut::new(),
        }
    }

    fn run(&mut self, count: usize) -> Outcome<()> {
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH);
            left -= batch;
            let mut body = BytesMut::with_capacity(batch * (self.payload.len() + 128));
            let mut writer = BatchWriter::new(&mut body);
            for _ in 0..batch {
                writer.push(0, &self.payload, |properties| {
                    properties.put("UNIQ_KEY", self.keys.next().as_str())?;
                    properties.put("KEYS", "user-7")?;
                    properties.put("colour", "blue")
                })?;
            }
            let request = SendMessage {
                group: "producers",
                topic: "orders",
                default_topic: "TBW102",
                default_queues: 4,
                queue: 3,
                born: 1_700_000_000_000,
                reconsume_times: Some(0),
                unit_mode: Some(false),
                batch: true,
                broker: Some("broker-a"),
                ..SendMessage::default()
            };
            self.out.clear();
            encode_request(&mut self.out, 7, false, &request, &body.freeze(), None)?;
            black_box(&self.out);
        }
        Ok(())
    }
}

/// Decodes the answer to a pull.
struct Receiver {
    answer: Bytes,
}

impl Receiver {
    fn new() -> Outcome<Self> {
        let mut sender = Sender::new();
        sender.run(BATCH)?;
        let mut sent = sender.out;
        let request =
            decode_frame(&mut sent)?.ok_or_else(|| RemotingError::malformed("frame", "cut short"))?;
        let mut stored = BytesMut::new();
        for (offset, entry) in (0..).zip(mq_rocketmq::remoting::decode_batch(request.body)?) {
            let host = ([127, 0, 0, 1], 10911).into();
            let message = StoredMessage {
                long_topic: false,
                body_crc: 0,
                queue: 3,
                flag: 0,
                offset,
                physical_offset: offset * 1200,
                sys_flag: 0,
                born: 1_700_000_000_000,
                born_host: host,
                stored: 1_700_000_000_001,
                store_host: host,
                reconsume_times: 0,
                prepared_offset: 0,
                body: entry.body,
                topic: Bytes::from_static(b"orders"),
                properties: entry.properties,
            };
            message.encode(&mut stored)?;
        }
        let mut out = BytesMut::new();
        encode_response(&mut out, 7, 0, Some("FOUND"), &stored.freeze(), |fields| {
            for (name, value) in [
                ("nextBeginOffset", 32_i64),
                ("minOffset", 0),
                ("maxOffset", 32),
                ("suggestWhichBrokerId", 0),
            ] {
                fields.put(name, value);
            }
        })?;
        Ok(Self { answer: out.freeze() })
    }

    fn run(&self, count: usize) -> Outcome<()> {
        let mut left = count;
        while left > 0 {
            // As bytes come from a socket.
            let mut buffer = BytesMut::from(&self.answer[..]);
            let answer =
                decode_frame(&mut buffer)?.ok_or_else(|| RemotingError::malformed("frame", "cut short"))?;
            let next: i64 = answer.field("nextBeginOffset")?;
            black_box(next);
            for message in StoredMessages::new(answer.body) {
                let message = message?;
                message.properties().for_each(|property| {
                    black_box(property);
                });
                black_box(message.payload(1 << 20)?);
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
fn each(total: usize, count: usize) -> f64 {
    total as f64 / count as f64
}

fn allocations() -> Outcome<bool> {
    const COUNT: usize = BATCH * 1000;
    let mut holds = true;
    let mut measured = |what: &str, most: f64, run: &mut dyn FnMut(usize) -> Outcome<()>| {
        run(BATCH)?;
        let region = Region::new(ALLOCATOR);
        run(COUNT)?;
        let change = region.change();
        let count = each(change.allocations + change.reallocations, COUNT);
        println!("allocations a message of 1 KiB, RocketMQ's codec, {what}: {count:.3} (at most {most})");
        holds &= count <= most;
        Ok::<_, RemotingError>(())
    };
    let mut sender = Sender::new();
    measured("sending", MOST_SENT, &mut |count| sender.run(count))?;
    let receiver = Receiver::new()?;
    measured("receiving", MOST_RECEIVED, &mut |count| receiver.run(count))?;
    Ok(holds)
}

fn work(name: &str, count: usize) -> Outcome<bool> {
    match name {
        "rocketmq-send" => Sender::new().run(count)?,
        "rocketmq-receive" => Receiver::new()?.run(count)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["allocations"] => allocations(),
        ["work", name, count] => count.parse().map_or(Ok(false), |count| work(name, count)),
        _ => Ok(false),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a limit does not hold, or the words are not `allocations` or `work NAME COUNT`");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
