//! Mutants that change messages on their way to the broker.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mq_api::{
    Message,
    driver::{Producer, SendBatch},
};

use crate::wrap::{Scope, Tweak};

/// What a mutant makes of a batch: the partition and the messages to store instead, each with the place of the message
/// in the original that its result is for.
pub(super) struct Stored {
    pub(super) partition: u32,
    pub(super) messages: Vec<(usize, Message)>,
}

type Change = dyn Fn(&Scope, &mut Stored, &AtomicU64) + Send + Sync;

/// Stores something else than what was sent, and answers as if it had not.
pub(super) struct ChangeSends {
    counter: AtomicU64,
    change: Box<Change>,
}

impl ChangeSends {
    /// Makes a mutant of a change. The counter is the mutant's own memory, zero at first.
    pub(super) fn tweak(
        change: impl Fn(&Scope, &mut Stored, &AtomicU64) + Send + Sync + 'static,
    ) -> Arc<dyn Tweak> {
        Arc::new(Self {
            counter: AtomicU64::new(0),
            change: Box::new(change),
        })
    }

    /// Makes a mutant that drops every message which a condition names, and answers `Ok`.
    pub(super) fn losing(lost: impl Fn(&Scope, &Message) -> bool + Send + Sync + 'static) -> Arc<dyn Tweak> {
        Self::tweak(move |scope, stored, _| stored.messages.retain(|(_, message)| !lost(scope, message)))
    }

    /// Makes a mutant that changes every message.
    pub(super) fn each(change: impl Fn(Message) -> Message + Send + Sync + 'static) -> Arc<dyn Tweak> {
        Self::tweak(move |_, stored, _| {
            for (_, message) in &mut stored.messages {
                *message = change(std::mem::take(message));
            }
        })
    }

    /// Makes a mutant that drops one message in so many, and answers `Ok`.
    pub(super) fn losing_one_in(many: u64) -> Arc<dyn Tweak> {
        Self::tweak(move |_, stored, counter| {
            stored
                .messages
                .retain(|_| counter.fetch_add(1, Ordering::Relaxed) % many != many / 2);
        })
    }
}

impl Tweak for ChangeSends {
    fn send(&self, scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        batch.begin_io(0..batch.len());
        let mut stored = Stored {
            partition: batch.partition(),
            messages: batch.messages().iter().cloned().enumerate().collect(),
        };
        (self.change)(scope, &mut stored, &self.counter);
        let places: Vec<usize> = stored.messages.iter().map(|(place, _)| *place).collect();
        let messages = stored.messages.into_iter().map(|(_, message)| message).collect();
        let (other, results) = SendBatch::new(stored.partition, messages, batch.deadline());
        if !other.is_empty() {
            inner.send(other);
        }
        tokio::spawn(async move {
            for (place, result) in places.into_iter().zip(results) {
                match result.await {
                    Ok(receipt) => batch.complete_one(place, receipt.offset),
                    Err(error) => batch.fail(place..place + 1, &error),
                }
            }
            // What was left out is answered as if it were stored.
            batch.complete_all(None);
        });
    }
}

impl fmt::Debug for ChangeSends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChangeSends")
    }
}
