//! Mutants for the cases about producing.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mq_api::{
    Error, ErrorKind, Message, Outcome,
    driver::{Producer, SendBatch},
};
use tokio::sync::watch;

use super::{Proof, sends::ChangeSends};
use crate::wrap::{Scope, Tweak};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "P1",
        mutant: "takes an empty payload for a tombstone",
        tweak: || {
            ChangeSends::each(|message| match message.payload() {
                Some(payload) if payload.is_empty() => {
                    Message::from_parts(None, message.key().cloned()).with_headers(message.headers().clone())
                }
                _ => message,
            })
        },
        says: "an empty payload: a payload of 0 bytes came as a tombstone",
    },
    Proof {
        case: "P1",
        mutant: "changes the order of headers",
        tweak: || {
            ChangeSends::each(|mut message| {
                let mut pairs: Vec<_> = message.headers().iter().cloned().collect();
                pairs.sort_by(|a, b| a.name().cmp(b.name()));
                *message.headers_mut() = pairs
                    .iter()
                    .map(|header| (header.name(), header.value().cloned().unwrap_or_default()))
                    .collect();
                message
            })
        },
        says: "the headers came in another order",
    },
    Proof {
        case: "P2",
        mutant: "stores in the next partition of four",
        tweak: next_partition,
        says: "came from partition 0",
    },
    Proof {
        case: "P3",
        mutant: "stores in the next partition of four",
        tweak: next_partition,
        says: "its receipts said",
    },
    Proof {
        case: "P4",
        mutant: "shows one partition of several",
        tweak: || Arc::new(OnePartition),
        says: "each should have a tenth at least",
    },
    Proof {
        case: "P5",
        mutant: "reports the offset behind the message",
        tweak: || Arc::new(WrongOffset),
        says: "the receipt says offset",
    },
    Proof {
        case: "P6",
        mutant: "reorders two",
        tweak: || {
            ChangeSends::tweak(|_, stored, counter| {
                let many = stored.messages.len();
                if many >= 2 && counter.fetch_add(1, Ordering::Relaxed) == 3 {
                    stored.messages.swap(many - 1, many - 2);
                }
            })
        },
        says: "reordered",
    },
    Proof {
        case: "P7",
        mutant: "loses one message in 1,000",
        tweak: || ChangeSends::losing_one_in(1000),
        says: "lost: 16 messages answered Ok never came",
    },
    Proof {
        case: "P7",
        mutant: "stores a message twice",
        tweak: || {
            ChangeSends::tweak(|_, stored, counter| {
                if let Some(first) = stored.messages.first().cloned()
                    && counter.fetch_add(1, Ordering::Relaxed) == 50
                {
                    stored.messages.push(first);
                }
            })
        },
        says: "came more than once",
    },
    Proof {
        case: "P8",
        mutant: "damages one message in 100",
        tweak: || {
            ChangeSends::tweak(|_, stored, counter| {
                for (_, message) in &mut stored.messages {
                    if counter.fetch_add(1, Ordering::Relaxed) % 100 == 50 {
                        let mut payload = message.payload_or_empty().to_vec();
                        if let Some(last) = payload.last_mut() {
                            *last ^= 1;
                        }
                        *message = Message::new(payload);
                    }
                }
            })
        },
        says: "damaged or unexpected",
    },
    Proof {
        case: "P9",
        mutant: "fails the last message of a batch",
        tweak: || Arc::new(FailsTheLast),
        says: "of a good batch",
    },
    Proof {
        case: "P10",
        mutant: "has a limit that nobody knows of",
        tweak: || Arc::new(SmallLimit),
        says: "the message after a payload one byte over",
    },
    Proof {
        case: "P11",
        mutant: "answers Ok and drops what comes behind the first of a batch",
        tweak: || ChangeSends::tweak(|_, stored, _| stored.messages.truncate(1)),
        says: "of 2000 messages came",
    },
    Proof {
        case: "P12",
        mutant: "loses one message in 100",
        tweak: || ChangeSends::losing_one_in(100),
        says: "of 500 messages came",
    },
    Proof {
        case: "P13",
        mutant: "answers NotSent for what was stored",
        tweak: || Arc::new(NotSentForStored),
        says: "was answered NotSent",
    },
];

fn next_partition() -> Arc<dyn Tweak> {
    ChangeSends::tweak(|_, stored, _| stored.partition = (stored.partition + 1) % 4)
}

#[derive(Debug)]
struct OnePartition;

impl Tweak for OnePartition {
    fn partitions(&self, _scope: &Scope, _partitions: watch::Receiver<u32>) -> watch::Receiver<u32> {
        watch::channel(1).1
    }
}

#[derive(Debug)]
struct WrongOffset;

impl Tweak for WrongOffset {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        batch.begin_io(0..batch.len());
        let (other, results) = SendBatch::new(batch.partition(), batch.messages().to_vec(), batch.deadline());
        inner.send(other);
        tokio::spawn(async move {
            for (place, result) in results.into_iter().enumerate() {
                match result.await {
                    Ok(receipt) => batch.complete_one(place, receipt.offset.map(|offset| offset + 1)),
                    Err(error) => batch.fail(place..place + 1, &error),
                }
            }
        });
    }
}

#[derive(Debug)]
struct FailsTheLast;

impl Tweak for FailsTheLast {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        if batch.len() > 10 {
            let last = batch.len() - 1;
            let error = Error::new(ErrorKind::Other, "the last one is one too many");
            batch.fail(last..last + 1, &error);
        }
        inner.send(batch);
    }
}

#[derive(Debug)]
struct SmallLimit;

impl Tweak for SmallLimit {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        if batch
            .messages()
            .iter()
            .any(|message| message.payload_or_empty().len() > 10)
        {
            batch.fail_all(&Error::new(ErrorKind::MessageTooLarge, "more than 10 bytes"));
        } else {
            inner.send(batch);
        }
    }
}

/// Gives up waiting for a server that does not answer, and says that nothing was sent.
#[derive(Debug)]
struct NotSentForStored;

impl Tweak for NotSentForStored {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        batch.begin_io(0..batch.len());
        let long = batch.deadline() + Duration::from_secs(60);
        let (other, results) = SendBatch::new(batch.partition(), batch.messages().to_vec(), long);
        inner.send(other);
        tokio::spawn(async move {
            let all = futures_util::future::join_all(results);
            match tokio::time::timeout(Duration::from_millis(2800), all).await {
                Ok(results) => {
                    for (place, result) in results.into_iter().enumerate() {
                        match result {
                            Ok(receipt) => batch.complete_one(place, receipt.offset),
                            Err(error) => batch.fail(place..place + 1, &error),
                        }
                    }
                }
                Err(_) => {
                    let error = Error::new(ErrorKind::Timeout, "no answer");
                    batch.fail_all(&error.with_outcome(Outcome::NotSent));
                }
            }
        });
    }
}
