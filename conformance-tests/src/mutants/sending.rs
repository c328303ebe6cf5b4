//! Drivers that get sending wrong, each in one way.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mq_api::{
    Error, ErrorKind, Message, Outcome,
    driver::{Producer, SendBatch},
};

use crate::wrap::{Scope, Tweak};

/// Forwards some messages of a batch, changed, and settles the batch with what becomes of them. What is left out is
/// answered `Ok`.
fn forward(
    inner: &Arc<dyn Producer>,
    batch: SendBatch,
    mut change: impl FnMut(usize, &Message) -> Option<Message>,
    answer: impl Fn(usize, mq_api::Result<mq_api::Receipt>) -> mq_api::Result<mq_api::Receipt> + Send + 'static,
) {
    let mut places = Vec::new();
    let mut messages = Vec::new();
    batch.begin_io(0..batch.len());
    for (place, message) in batch.messages().iter().enumerate() {
        match change(place, message) {
            Some(message) => {
                places.push(place);
                messages.push(message);
            }
            None => batch.complete_one(place, None),
        }
    }
    let (forwarded, results) = SendBatch::new(batch.partition(), messages, batch.deadline());
    inner.send(forwarded);
    tokio::spawn(async move {
        for (place, result) in places.into_iter().zip(results) {
            match answer(place, result.await) {
                Ok(receipt) => batch.complete_one(place, receipt.offset),
                Err(error) => batch.fail(place..place + 1, &error),
            }
        }
    });
}

/// Answers `Ok` and drops one message in so many.
pub(super) struct AnswersOkAndDrops {
    every: u64,
    count: AtomicU64,
}

impl AnswersOkAndDrops {
    pub(super) fn every(every: u64) -> Self {
        Self {
            every,
            count: AtomicU64::new(0),
        }
    }
}

impl Tweak for AnswersOkAndDrops {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        forward(
            inner,
            batch,
            |_, message| {
                let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
                (!count.is_multiple_of(self.every)).then(|| message.clone())
            },
            |_, result| result,
        );
    }
}

impl fmt::Debug for AnswersOkAndDrops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnswersOkAndDrops({})", self.every)
    }
}

/// Stores one message in so many and answers that it is not sent.
#[derive(Debug, Default)]
pub(super) struct DeniesWhatIsStored {
    count: AtomicU64,
}

impl Tweak for DeniesWhatIsStored {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        let before = self.count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        forward(
            inner,
            batch,
            |_, message| Some(message.clone()),
            move |place, result| {
                if (before + place as u64) % 50 == 49 {
                    let error = Error::new(ErrorKind::ResourceExhausted, "injected: denied");
                    Err(error.with_outcome(Outcome::NotSent).with_retryable(false))
                } else {
                    result
                }
            },
        );
    }
}

/// Delivers delayed messages at once.
#[derive(Debug)]
pub(super) struct ForgetsDelays;

impl Tweak for ForgetsDelays {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        forward(
            inner,
            batch,
            |_, message| {
                let mut message = message.clone();
                message.clear_due();
                Some(message)
            },
            |_, result| result,
        );
    }
}

/// Answers `Ok` to one delayed message in so many and drops it.
#[derive(Debug)]
pub(super) struct DropsDelayed(pub(super) usize);

impl Tweak for DropsDelayed {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        let lost = |message: &Message| {
            let payload = message.payload_or_empty();
            let sum: usize = payload.iter().map(|byte| usize::from(*byte)).sum();
            message.due().is_some() && sum.is_multiple_of(self.0)
        };
        forward(
            inner,
            batch,
            |_, message| (!lost(message)).then(|| message.clone()),
            |_, result| result,
        );
    }
}
