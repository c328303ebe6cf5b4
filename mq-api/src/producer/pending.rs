//! A send that is under way.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::core::Taken;
use crate::{Error, Receipt, Result, driver::Slots};

/// Waits for the result of a message that was enqueued. Dropping it changes nothing: the message is sent all the same.
///
/// # Errors
/// As [`Producer::produce`](super::Producer::produce).
///
/// # Cancel safety
/// It may be polled by reference and dropped at any point.
#[must_use = "the result of the send is lost where it is not awaited"]
pub struct PendingReceipt(State);

enum State {
    Done(Result<Receipt>),
    Waiting(Arc<Slots>),
    Taken,
}

impl PendingReceipt {
    pub(super) fn new(taken: Taken) -> Self {
        Self(match taken {
            Taken::Done(result) => State::Done(result),
            Taken::Waiting(slots) => State::Waiting(slots),
        })
    }
}

impl Future for PendingReceipt {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match std::mem::replace(&mut self.0, State::Taken) {
            State::Done(result) => result,
            State::Waiting(slots) => match slots.poll_done(cx) {
                Poll::Ready(()) => slots.result(0),
                Poll::Pending => {
                    self.0 = State::Waiting(slots);
                    return Poll::Pending;
                }
            },
            State::Taken => Err(Error::closed("receipt")),
        };
        Poll::Ready(result.map_err(|error| error.with_operation("produce")))
    }
}

impl fmt::Debug for PendingReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            State::Done(_) => "done",
            State::Waiting(_) => "under way",
            State::Taken => "taken",
        };
        f.debug_tuple("PendingReceipt").field(&state).finish()
    }
}

/// Waits until every message of a set is settled.
pub(super) async fn wait(slots: &Slots) {
    poll_fn(|cx| slots.poll_done(cx)).await;
}
