//! A batch on its way to the backend, and the results on their way back.

use std::{
    fmt,
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use smallvec::SmallVec;

use crate::{Error, ErrorKind, Message, Offset, Outcome, Receipt, Result};

/// Hands a driver messages of one partition, and takes their results, each once: the first settlement wins.
///
/// It may be settled from any thread, with or without a runtime, also within
/// [`Producer::send`](super::Producer::send). Settling runs no user code, and wakes waiters outside every lock. What is
/// not settled when the batch is dropped settles as [`Outcome::Unknown`], or as `NotSent` where
/// [`begin_io`](Self::begin_io) was not called for it.
pub struct SendBatch {
    partition: u32,
    deadline: Instant,
    messages: SmallVec<[Message; 1]>,
    slots: Arc<Slots>,
}

/// One batch's results.
pub(crate) struct Slots {
    partition: u32,
    state: Mutex<SmallVec<[Slot; 1]>>,
}

struct Slot {
    begun: bool,
    state: State,
}

enum State {
    Waiting(Option<Waker>),
    Done(Result<Receipt>),
    Taken,
}

impl SendBatch {
    /// Makes a batch and, for each message, what waits for its result. For tests of drivers.
    #[must_use]
    pub fn new(partition: u32, messages: Vec<Message>, deadline: Instant) -> (Self, Vec<SendStatus>) {
        let slots = messages
            .iter()
            .map(|_| Slot {
                begun: false,
                state: State::Waiting(None),
            })
            .collect();
        let slots = Arc::new(Slots {
            partition,
            state: Mutex::new(slots),
        });
        let waiting = (0..messages.len())
            .map(|index| SendStatus {
                slots: Arc::clone(&slots),
                index,
            })
            .collect();
        (
            Self {
                partition,
                deadline,
                messages: messages.into(),
                slots,
            },
            waiting,
        )
    }

    /// Returns the partition.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns when the last of the messages is given up.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Counts the messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns the messages in order; empty after [`take_messages`](Self::take_messages).
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Moves the messages out, for a driver that cannot fail any more. They can then not be sent again.
    pub fn take_messages(&mut self) -> impl ExactSizeIterator<Item = Message> + use<> {
        std::mem::take(&mut self.messages).into_iter()
    }

    /// Says that messages are about to leave this process: from here on a deadline that passes means
    /// [`Outcome::Unknown`]. Returns `false` where some of them have been given up before; ask
    /// [`begin_one`](Self::begin_one) which, and skip those.
    pub fn begin_io(&self, range: Range<usize>) -> bool {
        let mut all = true;
        for slot in self.slots.lock().get_mut(range).unwrap_or_default() {
            all &= slot.begin();
        }
        all
    }

    /// Says that one message is about to leave this process; `false` where it has been given up and must be skipped.
    pub fn begin_one(&self, index: usize) -> bool {
        self.slots.lock().get_mut(index).is_some_and(Slot::begin)
    }

    /// Settles one message as stored, at an offset where the backend tells.
    pub fn complete_one(&self, index: usize, offset: Option<Offset>) {
        self.slots
            .settle(index..index + 1, |_| Ok(Receipt::new(self.partition, offset)));
    }

    /// Settles every message as stored, at dense offsets from `first` on where the backend tells.
    pub fn complete_all(&self, first: Option<Offset>) {
        self.slots.settle(0..usize::MAX, |index| {
            Ok(Receipt::new(
                self.partition,
                first.map(|first| first + index as u64),
            ))
        });
    }

    /// Settles messages as failed. Where the error says `NotSent` and retryable, the portable layer may send them again.
    pub fn fail(&self, range: Range<usize>, error: &Error) {
        self.slots.settle(range, |_| Err(error.clone()));
    }

    /// Settles every message as failed.
    pub fn fail_all(&self, error: &Error) {
        self.fail(0..usize::MAX, error);
    }
}

impl Slot {
    fn begin(&mut self) -> bool {
        let waiting = matches!(self.state, State::Waiting(_));
        self.begun |= waiting;
        waiting
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, SmallVec<[Slot; 1]>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, range: Range<usize>, result: impl Fn(usize) -> Result<Receipt>) {
        let mut wakers: SmallVec<[Waker; 4]> = SmallVec::new();
        {
            let mut slots = self.lock();
            let end = range.end.min(slots.len());
            for index in range.start..end {
                if let Some(slot) = slots.get_mut(index)
                    && let State::Waiting(waker) = &mut slot.state
                {
                    wakers.extend(waker.take());
                    slot.state = State::Done(result(index));
                }
            }
        }
        for waker in wakers {
            waker.wake();
        }
    }
}

impl Drop for SendBatch {
    fn drop(&mut self) {
        let begun: SmallVec<[bool; 4]> = self.slots.lock().iter().map(|slot| slot.begun).collect();
        let partition = self.slots.partition;
        self.slots.settle(0..usize::MAX, |index| {
            let outcome = if begun.get(index) == Some(&true) {
                Outcome::Unknown
            } else {
                Outcome::NotSent
            };
            Err(Error::new(
                ErrorKind::Interrupted,
                format!("the driver gave up a send to partition {partition}"),
            )
            .with_outcome(outcome))
        });
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatch")
            .field("partition", &self.partition)
            .field("messages", &self.messages.len())
            .finish_non_exhaustive()
    }
}

/// Waits for the result of one message of a batch.
#[must_use]
pub struct SendStatus {
    slots: Arc<Slots>,
    index: usize,
}

impl Future for SendStatus {
    type Output = Result<Receipt>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.get_mut(self.index) else {
            return Poll::Ready(Err(Error::closed("batch")));
        };
        match std::mem::replace(&mut slot.state, State::Taken) {
            State::Waiting(_) => {
                slot.state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            State::Done(result) => Poll::Ready(result),
            State::Taken => Poll::Ready(Err(Error::closed("batch"))),
        }
    }
}

impl fmt::Debug for SendStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendStatus")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}
