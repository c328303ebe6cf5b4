//! What a case under load has sent, received and settled, each with its outcome.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mq_api::{Consumer, Delivery, Error, ErrorKind, Moment, Offset, Outcome, Producer, Receipt};

use crate::{
    agent::Seen,
    checker::{self, Expect},
    failure::CaseResult,
};

/// How many bytes a payload of the history has beside its filler.
const CHECKED: char = '|';

/// Collects what happens, from any task. Clones are the same history.
#[derive(Clone, Debug)]
pub(crate) struct History {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    begun: Instant,
    records: Mutex<Vec<Record>>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// When it was written down, from the beginning of the history.
    pub(crate) at: Duration,
    pub(crate) what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A send has its result. Sends of one sender to one partition are in order if they were begun in order.
    Sent {
        payload: String,
        sender: String,
        /// Counts the sends of the sender in the order in which they were begun.
        sequence: u64,
        result: SendResult,
    },
    /// A message was handed over.
    HandedOver {
        group: String,
        member: String,
        payload: String,
        partition: u32,
        offset: Offset,
        epoch: u64,
        attempt: u32,
        /// The engine's stamp, on the machine's clock.
        stamp: u64,
    },
    /// A hand-over was settled.
    Settled {
        group: String,
        member: String,
        partition: u32,
        offset: Offset,
        epoch: u64,
        how: How,
        /// False where it was refused as stale.
        accepted: bool,
        /// When it was asked for, on the machine's clock.
        stamp: u64,
    },
    /// `commit` has returned `Ok`: what the member acked before it was called is stored.
    Stored {
        group: String,
        member: String,
        called: Duration,
        /// When it returned, on the machine's clock.
        stamp: u64,
    },
    /// `commit` has failed: what the member acked before it was called may be lost, which it has been told by that.
    NotStored { group: String, member: String },
    /// The group's committed position was read.
    Committed {
        group: String,
        partition: u32,
        position: Offset,
    },
    /// The member is gone in whatever way; what it had is free.
    Gone { group: String, member: String },
    /// The server went away, came back, or broke connections; waiting across this is not being stuck.
    Disturbed {
        what: String,
        /// Whether there is no server from here to the next of these.
        away: bool,
    },
}

/// What a send ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendResult {
    Stored(u32, Option<Offset>),
    NotSent(String),
    Unknown(String),
}

/// How a hand-over was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Ack,
    Nack,
    Drop,
}

/// Sends through a producer and writes down each send with its result.
#[derive(Debug)]
pub(crate) struct Sender {
    history: History,
    producer: Producer,
    name: String,
    next: u64,
}

impl History {
    /// Begins a history.
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                begun: Instant::now(),
                records: Mutex::default(),
            }),
        }
    }

    /// Writes one thing down.
    pub(crate) fn record(&self, what: What) {
        let mut records = self.lock();
        records.push(Record {
            at: self.inner.begun.elapsed(),
            what,
        });
    }

    /// Returns how far the history is.
    pub(crate) fn now(&self) -> Duration {
        self.inner.begun.elapsed()
    }

    /// Writes a send's result down.
    pub(crate) fn sent(&self, payload: &str, sender: &str, sequence: u64, result: &Result<Receipt, Error>) {
        let result = match result {
            Ok(receipt) => SendResult::Stored(receipt.partition, receipt.offset),
            Err(error) if error.outcome() == Outcome::NotSent => SendResult::NotSent(error.to_string()),
            Err(error) => SendResult::Unknown(error.to_string()),
        };
        self.record(What::Sent {
            payload: payload.to_owned(),
            sender: sender.to_owned(),
            sequence,
            result,
        });
    }

    /// Writes a hand-over down.
    pub(crate) fn handed_over(&self, group: &str, member: &str, delivery: &Delivery) {
        self.record(What::HandedOver {
            group: group.to_owned(),
            member: member.to_owned(),
            payload: crate::flow::text(delivery),
            partition: delivery.partition(),
            offset: delivery.offset(),
            epoch: delivery.epoch(),
            attempt: delivery.attempt(),
            stamp: delivery.handed_over_at().as_nanos(),
        });
    }

    /// Writes down what a member in another process was handed.
    pub(crate) fn seen(&self, group: &str, member: &str, seen: &Seen) {
        self.record(What::HandedOver {
            group: group.to_owned(),
            member: member.to_owned(),
            payload: seen.payload.clone(),
            partition: seen.partition,
            offset: seen.offset,
            epoch: seen.epoch,
            attempt: seen.attempt,
            stamp: seen.handed_over_at,
        });
    }

    /// Settles a delivery and writes down how that went. A settlement that comes too late, for its partition or its
    /// consumer, is written down and no error.
    pub(crate) fn settle(&self, group: &str, member: &str, delivery: Delivery, how: How) -> CaseResult {
        let (partition, offset, epoch) = (delivery.partition(), delivery.offset(), delivery.epoch());
        // Before the call: what happens between the call and a later stamp would be taken for a late acceptance.
        let stamp = now().as_nanos();
        let result = match how {
            How::Ack => delivery.ack(),
            How::Nack => delivery.nack(),
            How::Drop => {
                drop(delivery);
                Ok(())
            }
        };
        let accepted = match &result {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::StaleAck | ErrorKind::Closed) => false,
            Err(error) => return Err(error.clone().into()),
        };
        self.record(What::Settled {
            group: group.to_owned(),
            member: member.to_owned(),
            partition,
            offset,
            epoch,
            how,
            accepted,
            stamp,
        });
        Ok(())
    }

    /// Commits, and writes down that what was acked before is stored.
    pub(crate) async fn commit(&self, group: &str, member: &str, consumer: &Consumer) -> CaseResult {
        let called = self.now();
        if let Err(error) = consumer.commit().await {
            self.record(What::NotStored {
                group: group.to_owned(),
                member: member.to_owned(),
            });
            return Err(error.into());
        }
        self.record(What::Stored {
            group: group.to_owned(),
            member: member.to_owned(),
            called,
            stamp: now().as_nanos(),
        });
        Ok(())
    }

    /// Makes a sender that writes its sends down.
    pub(crate) fn sender(&self, producer: &Producer, name: &str) -> Sender {
        Sender {
            history: self.clone(),
            producer: producer.clone(),
            name: name.to_owned(),
            next: 0,
        }
    }

    /// Returns a copy of the records so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.lock().clone()
    }

    /// Judges the history so far.
    pub(crate) fn check(&self, expect: &Expect) -> CaseResult {
        checker::check(&self.records(), expect)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.inner.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Sends one message, waits for its result and writes it down. Returns whether it is stored.
    pub(crate) async fn send(&mut self, partition: Option<u32>, filler: usize) -> Result<Receipt, Error> {
        let (payload, sequence) = self.next_payload(filler);
        let result = match partition {
            Some(partition) => self.producer.produce_to(partition, payload.clone()).await,
            None => self.producer.produce(payload.clone()).await,
        };
        self.history.sent(&payload, &self.name, sequence, &result);
        result
    }

    /// Sends so many messages, pipelined and in order, and writes down every result.
    pub(crate) async fn send_all(&mut self, n: usize, partition: Option<u32>, filler: usize) -> Vec<String> {
        let mut under_way = Vec::with_capacity(n);
        let mut payloads = Vec::with_capacity(n);
        for _ in 0..n {
            let (payload, sequence) = self.next_payload(filler);
            let admitted = match partition {
                Some(partition) => self.producer.enqueue_to(partition, payload.clone()).await,
                None => self.producer.enqueue(payload.clone()).await,
            };
            payloads.push(payload.clone());
            under_way.push((payload, sequence, admitted));
        }
        for (payload, sequence, admitted) in under_way {
            let result = match admitted {
                Ok(pending) => pending.await,
                Err(error) => Err(error),
            };
            self.history.sent(&payload, &self.name, sequence, &result);
        }
        payloads
    }

    fn next_payload(&mut self, filler: usize) -> (String, u64) {
        let sequence = self.next;
        self.next += 1;
        (payload(&self.name, sequence, filler), sequence)
    }
}

/// Makes a payload that carries its own checksum, so that damage is seen.
pub(crate) fn payload(sender: &str, sequence: u64, filler: usize) -> String {
    let body = format!("{sender}-{sequence}{CHECKED}{}", "x".repeat(filler));
    format!("{:016x}{CHECKED}{body}", checksum(body.as_bytes()))
}

/// Tells whether a payload made by [`payload`] is undamaged.
pub(crate) fn is_intact(payload: &str) -> bool {
    match payload.split_once(CHECKED) {
        Some((sum, body)) => sum == format!("{:016x}", checksum(body.as_bytes())),
        None => false,
    }
}

/// FNV-1a, 64 bits: enough to see damage, and the same in every process.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn now() -> Moment {
    mq_api::Clock::system().now()
}
