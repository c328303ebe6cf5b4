//! A batch on its way to the backend, and the results on their way back.

use std::{
    fmt,
    future::Future,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::slots::{Slots, Wakes};
use crate::{Error, Message, Offset, Receipt, Result};

/// Hands a driver messages of one partition, and takes their results, each once: the first settlement wins.
///
/// It may be settled from any thread, with or without a runtime, also within
/// [`Producer::send`](super::Producer::send). Settling runs no user code, and wakes waiters outside every lock. What is
/// not settled when the batch is dropped settles as [`Outcome::Unknown`](crate::Outcome::Unknown), or as `NotSent` where
/// [`begin_io`](Self::begin_io) was not called for it.
///
/// Dropping the batch gives its room in the window and in the producer's buffer back, and starts the retries of what
/// failed: drop it as soon as it is settled.
pub struct SendBatch {
    partition: u32,
    messages: SmallVec<[Message; 1]>,
    runs: Runs,
    ticket: Ticket,
}

/// Who takes a batch back when the driver is done with it.
pub(crate) trait BatchOwner: Send + Sync {
    /// Returns how long a send may take from now on, where it has no deadline yet.
    fn timeout(&self) -> Duration;

    /// Tells whether a message that failed so may be sent again.
    fn may_retry(&self, error: &Error) -> bool;

    /// Takes back a batch in which everything is settled, or failed in a way that may be sent again.
    fn landed(&self, batch: Landed<'_>);
}

/// A batch that a driver has dropped.
pub(crate) struct Landed<'a> {
    pub(crate) partition: u32,
    pub(crate) ticket: Ticket,
    pub(crate) runs: &'a [Run],
    /// The messages, or none where the driver took them.
    pub(crate) messages: SmallVec<[Message; 1]>,
}

/// What the owner needs to know its batch by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ticket {
    pub(crate) id: u64,
    pub(crate) weight: usize,
    /// Whether it is counted in the buffer and the client's budget.
    pub(crate) counted: bool,
    /// Whether it has exactly the messages of one set of slots.
    pub(crate) whole: bool,
}

/// The parts that a batch consists of; one as a rule.
pub(crate) type Runs = SmallVec<[Run; 1]>;

/// Messages that follow one another in a batch and share a set of result slots.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) slots: Arc<Slots>,
    /// The first slot.
    pub(crate) first: u32,
    pub(crate) len: u32,
    /// The place of the first message in the order of the producer; the others follow without a gap.
    pub(crate) seq: u64,
    /// Whether the producer chose the partition freely.
    pub(crate) movable: bool,
    /// How often its messages have been sent before.
    pub(crate) tries: u32,
}

impl Run {
    /// Returns the slots of the run.
    pub(crate) fn range(&self) -> Range<u32> {
        self.first..self.first + self.len
    }
}

impl SendBatch {
    /// Makes a batch and, for each message, what waits for its result. For tests of drivers.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// let deadline = Instant::now() + Duration::from_secs(5);
    /// let (batch, waiting) = SendBatch::new(3, vec![Message::new("paid")], deadline);
    /// batch.complete_all(Some(7));
    /// for status in waiting {
    ///     assert_eq!(status.await?.offset, Some(7));
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn new(partition: u32, messages: Vec<Message>, deadline: Instant) -> (Self, Vec<SendStatus>) {
        let slots: Vec<Arc<Slots>> = messages
            .iter()
            .map(|_| {
                let slots = Slots::new(1, false, None);
                slots.deadline_or(|| deadline.into());
                Arc::new(slots)
            })
            .collect();
        let runs = slots
            .iter()
            .zip(0..)
            .map(|(slots, seq)| Run {
                slots: Arc::clone(slots),
                first: 0,
                len: 1,
                seq,
                movable: false,
                tries: 0,
            })
            .collect();
        let waiting = slots.into_iter().map(|slots| SendStatus { slots }).collect();
        let batch = Self::of(partition, messages.into(), runs, Ticket::default());
        (batch, waiting)
    }

    /// Makes a batch that goes back to the owner of its slots.
    pub(crate) fn of(partition: u32, messages: SmallVec<[Message; 1]>, runs: Runs, ticket: Ticket) -> Self {
        Self {
            partition,
            messages,
            runs,
            ticket,
        }
    }

    /// Returns the partition.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, _waiting) = SendBatch::new(3, messages, deadline);
    /// assert_eq!(batch.partition(), 3);
    /// ```
    #[must_use]
    #[inline]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns when the last of the messages is given up.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let deadline = Instant::now() + Duration::from_secs(5);
    /// let (batch, _waiting) = SendBatch::new(3, messages, deadline);
    /// assert_eq!(batch.deadline(), deadline);
    /// ```
    #[must_use]
    pub fn deadline(&self) -> Instant {
        let timeout = || self.owner().map_or(Duration::ZERO, |owner| owner.timeout());
        self.runs
            .iter()
            .map(|run| run.slots.deadline_or(|| tokio::time::Instant::now() + timeout()))
            .max()
            .unwrap_or_else(tokio::time::Instant::now)
            .into_std()
    }

    /// Counts the messages, also those that were taken.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (mut batch, _waiting) = SendBatch::new(3, messages, deadline);
    /// let _taken = batch.take_messages();
    /// assert_eq!(batch.len(), 2);
    /// ```
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        match self.runs.as_slice() {
            [run] => run.len as usize,
            runs => runs.iter().map(|run| run.len as usize).sum(),
        }
    }

    /// Tells whether there are none.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// let (batch, waiting) = SendBatch::new(3, Vec::new(), deadline);
    /// assert!(batch.is_empty() && waiting.is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns the messages in order; empty after [`take_messages`](Self::take_messages).
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, _waiting) = SendBatch::new(3, messages, deadline);
    /// assert_eq!(batch.messages()[1].payload_or_empty(), b"sent");
    /// ```
    #[must_use]
    #[inline]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Moves the messages out, for a driver that cannot fail any more. They can then not be sent again.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (mut batch, _waiting) = SendBatch::new(3, messages, deadline);
    /// assert_eq!(batch.take_messages().len(), 2);
    /// assert!(batch.messages().is_empty());
    /// ```
    #[inline]
    pub fn take_messages(&mut self) -> impl ExactSizeIterator<Item = Message> + use<> {
        std::mem::take(&mut self.messages).into_iter()
    }

    /// Says that messages are about to leave this process: from here on a deadline that passes means
    /// [`Outcome::Unknown`](crate::Outcome::Unknown). Returns `false` where some of them have been given up before; ask
    /// [`begin_one`](Self::begin_one) which, and skip those.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, _waiting) = SendBatch::new(3, messages, deadline);
    /// assert!(batch.begin_io(0..2));
    /// batch.complete_all(Some(7));
    /// assert!(!batch.begin_io(0..2)); // settled by now
    /// ```
    #[inline]
    pub fn begin_io(&self, range: Range<usize>) -> bool {
        if let Some(run) = self.only_run()
            && range.start == 0
            && range.end >= run.len as usize
        {
            return run.slots.begin(run.range());
        }
        self.parts(range)
            .fold(true, |all, (run, slots, _)| run.slots.begin(slots) && all)
    }

    /// Says that one message is about to leave this process; `false` where it has been given up and must be skipped.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, _waiting) = SendBatch::new(3, messages, deadline);
    /// batch.complete_one(0, Some(7));
    /// assert!(!batch.begin_one(0)); // settled by now
    /// assert!(batch.begin_one(1));
    /// ```
    pub fn begin_one(&self, index: usize) -> bool {
        index < self.len() && self.begin_io(index..index + 1)
    }

    /// Settles one message as stored, at an offset where the backend tells.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, mut waiting) = SendBatch::new(3, messages, deadline);
    /// batch.complete_one(1, Some(8));
    /// let receipt = waiting.remove(1).await?;
    /// assert_eq!((receipt.partition, receipt.offset), (3, Some(8)));
    /// # Ok(()) }
    /// ```
    pub fn complete_one(&self, index: usize, offset: Option<Offset>) {
        for (run, slots, _) in self.parts(index..index.saturating_add(1)) {
            run.slots.store(slots, self.partition, offset);
        }
    }

    /// Settles every message as stored, at dense offsets from `first` on where the backend tells.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Message, driver::SendBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, mut waiting) = SendBatch::new(3, messages, deadline);
    /// batch.complete_all(Some(7));
    /// assert_eq!(waiting.remove(1).await?.offset, Some(8));
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn complete_all(&self, first: Option<Offset>) {
        if let Some(run) = self.only_run() {
            run.slots.store(run.range(), self.partition, first);
            return;
        }
        for (run, slots, at) in self.parts(0..usize::MAX) {
            let offset = first.map(|first| first + at as u64);
            run.slots.store(slots, self.partition, offset);
        }
    }

    /// Settles messages as failed. Where the error says `NotSent` and retryable, the portable layer may send them again.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Error, ErrorKind, Message, driver::SendBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, mut waiting) = SendBatch::new(3, messages, deadline);
    /// batch.fail(0..1, &Error::new(ErrorKind::MessageTooLarge, "over the limit"));
    /// let error = waiting.remove(0).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::MessageTooLarge);
    /// # Ok(()) }
    /// ```
    pub fn fail(&self, range: Range<usize>, error: &Error) {
        let retry = self.may_retry(error);
        let mut wakes = Wakes::new();
        for (run, slots, _) in self.parts(range) {
            run.slots.fail(slots, error, retry, &mut wakes);
        }
        wakes.wake_all();
    }

    /// Settles every message as failed.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use mq_api::{Error, ErrorKind, Message, driver::SendBatch};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let deadline = Instant::now() + Duration::from_secs(5);
    /// # let messages = vec![Message::new("paid"), Message::new("sent")];
    /// let (batch, waiting) = SendBatch::new(3, messages, deadline);
    /// batch.fail_all(&Error::new(ErrorKind::PermissionDenied, "read only"));
    /// for status in waiting {
    ///     assert_eq!(status.await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn fail_all(&self, error: &Error) {
        self.fail(0..usize::MAX, error);
    }

    /// Returns the run where there is no other, as a rule.
    #[inline]
    fn only_run(&self) -> Option<&Run> {
        match self.runs.as_slice() {
            [run] => Some(run),
            _ => None,
        }
    }

    fn owner(&self) -> Option<&Arc<dyn BatchOwner>> {
        self.runs.first()?.slots.owner()
    }

    fn may_retry(&self, error: &Error) -> bool {
        !self.messages.is_empty() && self.owner().is_some_and(|owner| owner.may_retry(error))
    }

    /// Goes through the runs that a range touches: the run, the slots of it, and where in the batch they begin.
    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = (&Run, Range<u32>, usize)> {
        let mut start = 0;
        self.runs.iter().filter_map(move |run| {
            let (from, to) = (start, start + run.len as usize);
            start = to;
            let (low, high) = (range.start.max(from), range.end.min(to));
            // Both ends lie within the run, so they fit its numbers.
            (low < high).then(|| {
                let slots = run.first + (low - from) as u32..run.first + (high - from) as u32;
                (run, slots, low)
            })
        })
    }
}

impl Drop for SendBatch {
    fn drop(&mut self) {
        if self.ticket.whole && self.runs.first().is_some_and(|run| run.slots.land()) {
            return;
        }
        for run in &self.runs {
            run.slots
                .abandon(run.range(), self.partition, |error| self.may_retry(error));
        }
        let messages = std::mem::take(&mut self.messages);
        if let Some(owner) = self.owner() {
            owner.landed(Landed {
                partition: self.partition,
                ticket: self.ticket,
                runs: &self.runs,
                messages,
            });
        }
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatch")
            .field("partition", &self.partition)
            .field("messages", &self.len())
            .finish_non_exhaustive()
    }
}

/// Waits for the result of one message of a batch.
#[must_use]
pub struct SendStatus {
    slots: Arc<Slots>,
}

impl Future for SendStatus {
    type Output = Result<Receipt>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.slots.poll_done(cx));
        Poll::Ready(self.slots.result(0))
    }
}

impl fmt::Debug for SendStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendStatus").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
