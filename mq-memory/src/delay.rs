//! Messages that wait for their time.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mq_api::{Clock, Due, Message, Result, Timestamp};

use crate::{broker::Broker, error::MemoryError, log::Partition, timer::Timer, topic::Topic, wakes::Wakes};

/// Keeps a message back where it is not due yet; returns it, without its delay, where it is to be stored now.
pub(crate) fn hold_back(
    broker: &Broker,
    topic: &Topic,
    partition: &Arc<Partition>,
    mut message: Message,
) -> Result<Option<Message>> {
    let (delay, at) = match message.due() {
        None => return Ok(Some(message)),
        Some(Due::After(delay)) => (delay, None),
        Some(Due::At(at)) => (at.saturating_since(Timestamp::now()), Some(at)),
    };
    message.clear_due();
    if delay.is_zero() {
        return Ok(Some(message));
    }
    topic.check()?;
    let most = broker.config.max_delay;
    if delay > most {
        return Err(MemoryError::DelayTooLong { delay, most }.into());
    }
    let waiting = Waiting::new(&broker.delayed, broker.config.max_delayed)?;
    let held = Held {
        message,
        at,
        partition: Arc::downgrade(partition),
        timer: Arc::downgrade(&broker.timer),
        waiting,
    };
    broker.timer.at(Instant::now() + delay, move || held.release());
    Ok(None)
}

/// Holds one message until it is due; it goes with its topic.
struct Held {
    message: Message,
    /// The wall time that the sender asked for, which may be set back while the message waits.
    at: Option<Timestamp>,
    partition: Weak<Partition>,
    timer: Weak<Timer>,
    waiting: Waiting,
}

impl Held {
    fn release(self) {
        let left = self
            .at
            .map_or(Duration::ZERO, |at| at.saturating_since(Timestamp::now()));
        if !left.is_zero() {
            if let Some(timer) = self.timer.upgrade() {
                timer.at(Instant::now() + left, move || self.release());
            }
            return;
        }
        if let Some(partition) = self.partition.upgrade() {
            // No hand-over of it is stamped earlier than what the clock has told, and so none before it was due.
            let _ = Clock::system().now();
            let wakes = &mut Wakes::default();
            // An error says that the topic is gone, and the message with it.
            let _ = partition.append(std::iter::once(self.message), wakes);
        }
        drop(self.waiting);
    }
}

/// Counts one waiting message for as long as it lives.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn new(count: &Arc<AtomicUsize>, most: usize) -> Result<Self> {
        count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < most).then_some(n + 1)
            })
            .map_err(|_| MemoryError::TooManyDelayed(most))?;
        Ok(Self(Arc::clone(count)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
