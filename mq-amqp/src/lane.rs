//! Sends the batches of one partition, in order, on a channel of its own.
//!
//! Only this task sends on the channel: the client library pairs confirms with messages by the order in which they were
//! handed to it. It hands out a returned message with whichever confirm comes next, so returned messages are told by
//! their stamps, and a message counts as stored when its confirm is there and no return of it has come before.

use std::{
    collections::{HashSet, VecDeque},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use lapin::{BasicProperties, Confirmation, types::ShortString};
use mq_api::{
    Error, ErrorKind, Message, Outcome, Result, Timestamp, TopicName,
    driver::{SendBatch, topic_not_found},
};
use tokio::sync::{mpsc, watch};

use crate::{
    delay, error,
    existing::Existing,
    format,
    link::{Backoff, Chan, MANDATORY, Published, hand_over, published, short},
    topic::Shared,
    watch::Open,
};

/// How soon to look again whether the server takes messages again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(20);
/// How long the client library may take to fail the confirms of a connection that is over.
const LAST_CONFIRMS: Duration = Duration::from_secs(2);

/// Where a producer sends to.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    Topic(Arc<Open>),
    /// An exchange that others made.
    Existing(Arc<Existing>),
}

impl Sink {
    pub(crate) fn topic(&self) -> &TopicName {
        match self {
            Self::Topic(open) => &open.topic.name,
            Self::Existing(existing) => &existing.name,
        }
    }

    pub(crate) fn count(&self) -> watch::Receiver<u32> {
        match self {
            Self::Topic(open) => open.count(),
            Self::Existing(existing) => existing.count(),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Topic(open) => open.check(),
            Self::Existing(_) => Ok(()),
        }
    }
}

/// Sends to one partition until the other end of the queue is dropped and everything is settled.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    sink: Sink,
    partition: u32,
    /// The queue of the partition, where the topic is ours.
    queue: Option<ShortString>,
    /// Whether delayed messages have a way to the partition.
    delays: bool,
    batches: mpsc::UnboundedReceiver<SendBatch>,
    last_stamp: i64,
    backoff: Backoff,
}

/// A channel, and the returned messages whose confirms have not come.
struct Wire {
    chan: Arc<Chan>,
    returned: HashSet<i64>,
    flights: VecDeque<Flight>,
    /// Numbers the first flight.
    first: u64,
}

/// A batch that was handed to the client library.
struct Flight {
    batch: SendBatch,
    begun: Instant,
    /// How many of its messages wait for a confirm.
    open: usize,
    failed: Vec<(usize, Error)>,
}

impl Flight {
    /// Settles the batch: one by one only where something failed.
    fn land(self) {
        if self.failed.is_empty() {
            self.batch.complete_all(None);
            return;
        }
        let failed: HashSet<usize> = self.failed.iter().map(|(index, _)| *index).collect();
        for index in (0..self.batch.len()).filter(|index| !failed.contains(index)) {
            self.batch.complete_one(index, None);
        }
        for (index, error) in &self.failed {
            self.batch.fail(*index..*index + 1, error);
        }
    }
}

/// One message with its confirm.
struct Sent {
    flight: u64,
    index: usize,
    stamp: i64,
    result: lapin::Result<Confirmation>,
}

struct Outgoing {
    chan: Arc<Chan>,
    exchange: ShortString,
    key: ShortString,
    body: Bytes,
    properties: BasicProperties,
    flight: u64,
    index: usize,
    stamp: i64,
}

/// Is polled for the first time in the order of the messages, which hands them to the library in that order.
async fn send(message: Outgoing) -> Sent {
    let result = async {
        message
            .chan
            .native()
            .basic_publish(
                message.exchange,
                message.key,
                MANDATORY,
                &message.body,
                message.properties,
            )
            .await?
            .await
    }
    .await;
    Sent {
        flight: message.flight,
        index: message.index,
        stamp: message.stamp,
        result,
    }
}

/// Waits until the server has answered to what was sent last on a channel, or the channel is over.
async fn last_confirm(chan: Arc<Chan>) {
    // What it was the message's own confirm tells.
    let _ = chan.native().wait_for_confirms().await;
}

impl Lane {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        sink: &Sink,
        partition: u32,
        batches: mpsc::UnboundedReceiver<SendBatch>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            sink: sink.clone(),
            partition,
            queue: None,
            delays: false,
            batches,
            last_stamp: 0,
            backoff: Backoff::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        while let Some(batch) = self.batches.recv().await {
            let deadline = batch.deadline();
            match self.wire(deadline).await {
                Ok(wire) => self.drive(wire, batch).await,
                Err(error) => batch.fail_all(&error.with_outcome(Outcome::NotSent)),
            }
        }
    }

    /// Opens a channel that the server takes messages on, for as long as the batch may wait.
    async fn wire(&mut self, deadline: Instant) -> Result<Wire> {
        loop {
            self.sink.check()?;
            let opened = async {
                let conn = self.shared.publish.conn().await?;
                while conn.is_blocked() && conn.is_alive() {
                    if Instant::now() >= deadline {
                        return Err(error::blocked());
                    }
                    tokio::time::sleep(BLOCKED_PAUSE).await;
                }
                conn.confirm_channel().await
            };
            match opened.await {
                Ok(chan) => {
                    return Ok(Wire {
                        chan: Arc::new(chan),
                        returned: HashSet::new(),
                        flights: VecDeque::new(),
                        first: 0,
                    });
                }
                Err(error) if !error::is_passing(&error) => return Err(error),
                Err(error) => {
                    let pause = self.backoff.pause();
                    if Instant::now() + pause >= deadline {
                        return Err(error);
                    }
                    tracing::debug!(%error, "a producer waits for the server");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Sends on a channel until it breaks, or until there is nothing to send and nobody who would.
    async fn drive(&mut self, mut wire: Wire, first: SendBatch) {
        let mut confirms = FuturesUnordered::new();
        let limit = self.shared.config.request_timeout;
        let mut look = tokio::time::interval((limit / 8).max(Duration::from_millis(10)));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut broken = false;
        let mut over = None;
        let mut more = true;
        let mut handed = Some(first);
        // While it waits, what is under way wakes nobody: each message would, once it is written and once more when it
        // is confirmed.
        let mut last = pin!(Fuse::terminated());
        loop {
            if let Some(batch) = handed.take() {
                for message in self.pack(&mut wire, batch).await {
                    confirms.push(send(message));
                }
                broken |= self.take_ready(&mut wire, &mut confirms, None).await;
                // Of several batches each settles as soon as it can.
                if wire.flights.len() == 1 {
                    last.set(last_confirm(Arc::clone(&wire.chan)).fuse());
                } else {
                    last.set(Fuse::terminated());
                }
            }
            if confirms.is_empty() && (broken || !more) {
                return;
            }
            let conn = wire.chan.conn();
            let takes = more && !broken && !conn.is_blocked();
            tokio::select! {
                biased;
                () = &mut last, if !last.is_terminated() => {
                    broken |= self.take_ready(&mut wire, &mut confirms, None).await;
                }
                Some(sent) = confirms.next(), if last.is_terminated() && !confirms.is_empty() => {
                    broken |= self.take_ready(&mut wire, &mut confirms, Some(sent)).await;
                }
                batch = self.batches.recv(), if takes => match batch {
                    Some(batch) => handed = Some(batch),
                    None => more = false,
                },
                _ = look.tick() => {
                    // Should the client library have forgotten to tell.
                    last.set(Fuse::terminated());
                    let late = wire.flights.front().is_some_and(|flight| flight.begun.elapsed() > limit);
                    if late && !conn.is_blocked() {
                        // Every confirm fails then, and with it what waits for it.
                        conn.end();
                        broken = true;
                    }
                    if !conn.is_alive() {
                        let since: &mut Instant = over.get_or_insert_with(Instant::now);
                        if confirms.is_empty() || since.elapsed() >= LAST_CONFIRMS {
                            // What is unsettled settles as its batch is dropped.
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Hands over what has not been yet, takes what is confirmed by now, and settles it. Returns whether the channel is
    /// broken.
    async fn take_ready(
        &mut self,
        wire: &mut Wire,
        confirms: &mut FuturesUnordered<impl Future<Output = Sent>>,
        first: Option<Sent>,
    ) -> bool {
        let mut ready = Vec::from_iter(first);
        ready.extend(hand_over(confirms));
        !ready.is_empty() && self.settle(wire, ready).await
    }

    /// Prepares the messages of a batch that have not been given up.
    async fn pack(&mut self, wire: &mut Wire, batch: SendBatch) -> Vec<Outgoing> {
        let delayed = batch.messages().iter().any(|message| message.due().is_some());
        if let Err(error) = self.prepare(delayed).await {
            batch.fail_all(&error.with_outcome(Outcome::NotSent));
            return Vec::new();
        }
        let begun = batch.begin_io(0..batch.len());
        let flight = wire.first + wire.flights.len() as u64;
        let mut outgoing = Vec::with_capacity(batch.len());
        let now = format::now_micros();
        for (index, message) in batch.messages().iter().enumerate() {
            if !begun && !batch.begin_one(index) {
                continue;
            }
            self.last_stamp = now.max(self.last_stamp + 1);
            match self.address(message) {
                Ok((exchange, key, properties)) => outgoing.push(Outgoing {
                    chan: Arc::clone(&wire.chan),
                    exchange,
                    key,
                    body: message.payload().cloned().unwrap_or_default(),
                    properties,
                    flight,
                    index,
                    stamp: self.last_stamp,
                }),
                Err(error) => batch.fail(index..index + 1, &error),
            }
        }
        if !outgoing.is_empty() {
            wire.flights.push_back(Flight {
                open: outgoing.len(),
                failed: Vec::new(),
                begun: Instant::now(),
                batch,
            });
        }
        outgoing
    }

    /// Looks whether there is a place for messages, also for those that are to wait.
    async fn prepare(&mut self, delayed: bool) -> Result<()> {
        self.sink.check()?;
        if let Sink::Topic(open) = &self.sink
            && delayed
            && !self.delays
        {
            self.shared.prepare_delays(&open.topic, self.partition).await?;
            self.delays = true;
        }
        Ok(())
    }

    /// Says where a message is sent to, and with what.
    fn address(&mut self, message: &Message) -> Result<(ShortString, ShortString, BasicProperties)> {
        let open = match &self.sink {
            Sink::Topic(open) => open,
            Sink::Existing(existing) => {
                if message.due().is_some() {
                    return Err(existing
                        .refusal("delaying a message")
                        .with_outcome(Outcome::NotSent));
                }
                let (exchange, key) = existing.route()?;
                let properties = format::encode_plain(message, self.last_stamp)?;
                return Ok((short(exchange)?, short(key)?, properties));
            }
        };
        let (names, topic) = (&self.shared.names, &open.topic);
        let due = message.due().and_then(|due| {
            let now = Timestamp::now();
            let due = format::due_at(due, now);
            (due > now).then(|| (due, due.saturating_since(now)))
        });
        let (exchange, key, due) = match (due, &self.queue) {
            (Some((due, wait)), _) => {
                let route = delay::route(names, topic, self.partition, wait);
                (short(&route.exchange)?, short(&route.key)?, Some(due))
            }
            (None, Some(queue)) => (ShortString::default(), queue.clone(), None),
            (None, None) => {
                let queue = short(&names.partition(&topic.name, &topic.id, self.partition))?;
                self.queue = Some(queue.clone());
                (ShortString::default(), queue, None)
            }
        };
        Ok((exchange, key, format::encode(message, self.last_stamp, due)?))
    }

    /// Settles what is known by now; returns whether the channel is broken.
    async fn settle(&mut self, wire: &mut Wire, ready: Vec<Sent>) -> bool {
        let mut broken = None;
        for sent in &ready {
            match &sent.result {
                Ok(confirmation) => {
                    if let (_, Some(message)) = published(confirmation) {
                        wire.returned
                            .extend(format::stamp_of(&message.delivery.properties));
                    }
                }
                Err(error) => {
                    broken.get_or_insert_with(|| wire.chan.map(error));
                }
            }
        }
        let returned = if wire.returned.is_empty() {
            None
        } else {
            Some(self.why_returned().await)
        };
        if broken.is_none() {
            self.backoff.reset();
        }
        for sent in ready {
            let Some(at) = sent
                .flight
                .checked_sub(wire.first)
                .and_then(|at| usize::try_from(at).ok())
            else {
                continue;
            };
            let Some(flight) = wire.flights.get_mut(at) else {
                continue;
            };
            flight.open -= 1;
            let failed = match (&sent.result, &returned) {
                (_, Some(why)) if wire.returned.remove(&sent.stamp) => Some(why.clone()),
                (Ok(confirmation), _) => match published(confirmation).0 {
                    // A return that came with it was another's.
                    Published::Stored | Published::Returned => None,
                    Published::Refused => Some(refused()),
                },
                (Err(_), _) => broken
                    .as_ref()
                    .map(|error| of_broken(error, &flight.batch, sent.index)),
            };
            if let Some(error) = failed {
                flight.failed.push((sent.index, error));
            }
        }
        while wire.flights.front().is_some_and(|flight| flight.open == 0) {
            if let Some(flight) = wire.flights.pop_front() {
                flight.land();
            }
            wire.first += 1;
        }
        broken.is_some()
    }

    /// A message came back: the topic is gone, or its queue is not up yet.
    async fn why_returned(&mut self) -> Error {
        if std::mem::take(&mut self.delays) {
            self.shared.forget_delays().await;
        }
        let topic = self.sink.topic();
        let asked = match &self.sink {
            Sink::Topic(open) => open.ask(&self.shared).await,
            Sink::Existing(existing) => existing.check_route(&self.shared.consume).await,
        };
        let error = match asked {
            Ok(()) => Error::new(
                ErrorKind::Interrupted,
                format!("the server has no queue for messages of topic {topic:?} yet"),
            ),
            Err(error) if error.kind() == ErrorKind::TopicNotFound => topic_not_found(topic),
            Err(error) => error,
        };
        error.with_outcome(Outcome::NotSent)
    }
}

/// Says what became of a message whose confirm will not come.
fn of_broken(error: &Error, batch: &SendBatch, index: usize) -> Error {
    let outcome = match error.kind() {
        // Nothing that was sent to this queue was taken.
        ErrorKind::PermissionDenied => Outcome::NotSent,
        ErrorKind::MessageTooLarge => {
            let size = batch
                .messages()
                .get(index)
                .map_or(0, |message| message.payload_or_empty().len());
            if too_large(error.context(), size) {
                Outcome::NotSent
            } else {
                // It was not the one; what became of it is open.
                return Error::new(ErrorKind::Interrupted, "a message before it ended the channel")
                    .with_outcome(Outcome::Unknown);
            }
        }
        _ => Outcome::Unknown,
    };
    error.clone().with_outcome(outcome)
}

/// Tells whether a size is above the last number in `message size 5 is larger than configured max size 4`.
fn too_large(words: &str, size: usize) -> bool {
    words
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse::<usize>().ok())
        .next_back()
        .is_none_or(|most| size > most)
}

fn refused() -> Error {
    // The server says so also of a queue that goes away just then.
    Error::new(ErrorKind::Interrupted, "the server did not take the message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_message_that_is_too_large_is_called_so() {
        let words = "message size 900 is larger than configured max size 500";
        assert!(too_large(words, 900));
        assert!(!too_large(words, 500));
        assert!(too_large("message size too large", 1));
    }
}
