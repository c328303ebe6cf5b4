//! A send that is awaited.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::task::coop::poll_proceed;

use super::{Producer, core::Refused, operation, pending::PendingReceipt};
use crate::{Message, Receipt, Result};

/// Sends a message and waits for its result.
///
/// It is written by hand, so that the message stays in it until it is stored or handed on, and the receipt is made where
/// the caller gets it: to move either from what has just been written in parts stalls the processor, which took a tenth of
/// the time of a stream one by one.
pub(super) struct Produce<'a> {
    producer: &'a Producer,
    message: Message,
    partition: Option<u32>,
    state: State<'a>,
}

enum State<'a> {
    New,
    /// Waits for room. It is boxed, so that sends that find room stay small.
    Room(Pin<Box<dyn Future<Output = Result<PendingReceipt>> + Send + 'a>>),
    Taken(PendingReceipt),
}

impl<'a> Produce<'a> {
    #[inline]
    pub(super) fn new(producer: &'a Producer, message: Message, partition: Option<u32>) -> Self {
        Self {
            producer,
            message,
            partition,
            state: State::New,
        }
    }

    fn look(&mut self, cx: &mut Context<'_>, result: &mut Poll<Result<Receipt>>) {
        if let State::New = self.state {
            // A loop of sends that never wait must let others run, as every call of Tokio's own does.
            let Poll::Ready(budget) = poll_proceed(cx) else {
                return;
            };
            budget.made_progress();
            match self.begin() {
                Ok(Some(receipt)) => return *result = Poll::Ready(Ok(receipt)),
                Ok(None) => {}
                Err(error) => return *result = Poll::Ready(Err(operation(error))),
            }
        }
        *result = self.poll_result(cx);
    }

    /// Begins the send; `None` where it is not over at once.
    #[inline]
    fn begin(&mut self) -> Result<Option<Receipt>> {
        let target = self.producer.check(&mut self.message, self.partition)?;
        let stored = self.producer.core.store_now(target, &mut self.message);
        if stored.is_none() {
            self.state = match self.producer.submit(target, &mut self.message) {
                Ok(taken) => State::Taken(PendingReceipt::new(taken)),
                Err(Refused::Failed(error)) => return Err(error),
                Err(Refused::Full(group)) => State::Room(Box::pin(self.producer.when_there_is_room(group))),
            };
        }
        Ok(stored)
    }

    fn poll_result(&mut self, cx: &mut Context<'_>) -> Poll<Result<Receipt>> {
        if let State::Room(room) = &mut self.state {
            self.state = State::Taken(ready!(room.as_mut().poll(cx))?);
        }
        match &mut self.state {
            State::Taken(pending) => Pin::new(pending).poll(cx),
            State::New | State::Room(_) => Poll::Pending,
        }
    }
}

impl Future for Produce<'_> {
    type Output = Result<Receipt>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut result = Poll::Pending;
        self.look(cx, &mut result);
        result
    }
}
