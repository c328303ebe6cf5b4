//! Reading partitions without a group: one stream consumer for each partition that is read, kept where it stands.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::{Acker, Consumer, message::Delivery, options::BasicAckOptions};
use mq_api::{
    Error, ErrorKind, Offset, Position, Result, Timestamp,
    driver::{self, FetchRequest, Fetched, Record, Records, invalid_partition, topic_not_found},
};
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

use crate::{
    format,
    link::{Chan, From},
    share::{FIRST_GUESS, Share},
    stream,
    topic::{Shared, beyond},
    watch::Open,
};

/// The most messages that the server sends ahead of their acks.
const MOST_AHEAD: usize = 128;
/// The most messages of one fetch.
const MOST_AT_ONCE: usize = 1000;

/// Reads one topic on RabbitMQ.
pub(crate) struct AmqpReader {
    shared: Arc<Shared>,
    open: Arc<Open>,
    cursors: StdMutex<BTreeMap<u32, Arc<Mutex<Option<Cursor>>>>>,
    closed: AtomicBool,
    ended: watch::Sender<bool>,
}

/// A place in a partition, with what was sent ahead from there.
struct Cursor {
    chan: Chan,
    consumer: Consumer,
    next: Offset,
    ahead: VecDeque<(Offset, Delivery)>,
    /// After so many messages the server may send as many again.
    ack_every: usize,
    unacked: usize,
    /// The message to ack next, which acks all before it.
    credit: Option<Acker>,
    _share: Share,
}

impl AmqpReader {
    pub(crate) fn new(shared: &Arc<Shared>, open: Arc<Open>) -> Self {
        Self {
            shared: Arc::clone(shared),
            open,
            cursors: StdMutex::default(),
            closed: AtomicBool::new(false),
            ended: watch::channel(false).0,
        }
    }

    fn check(&self, partition: u32) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed("reader"));
        }
        self.open.check()?;
        let partitions = self.open.partitions();
        if partition >= partitions {
            return Err(invalid_partition(&self.open.topic.name, partition, partitions));
        }
        Ok(())
    }

    fn cursor(&self, partition: u32) -> Arc<Mutex<Option<Cursor>>> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cursors.entry(partition).or_default())
    }

    async fn begin(&self, partition: u32, from: Offset) -> Result<Cursor> {
        let topic = &self.open.topic;
        let queue = self.shared.names.partition(&topic.name, &topic.id, partition);
        self.shared
            .consume
            .with_channel(|chan| {
                let queue = queue.clone();
                async move {
                    let shares = chan.conn().shares();
                    let share = shares.join();
                    let ahead = shares.ahead(FIRST_GUESS).min(MOST_AHEAD);
                    chan.prefetch(u16::try_from(ahead).unwrap_or(u16::MAX)).await?;
                    let consumer = chan.consume_stream(&queue, "read", From::At(from)).await?;
                    Ok(Cursor {
                        chan,
                        consumer,
                        next: from,
                        ahead: VecDeque::new(),
                        ack_every: (ahead / 4).max(1),
                        unacked: 0,
                        credit: None,
                        _share: share,
                    })
                }
            })
            .await
            .map_err(|error| self.name_topic(error))
    }

    async fn read(&self, request: &FetchRequest, slot: &mut Option<Cursor>) -> Result<Fetched> {
        let partition = request.partition;
        let from = match request.position {
            Position::Offset(offset) => offset,
            other => self.shared.resolve(&self.open.topic, partition, other).await?,
        };
        let known = slot
            .take()
            .filter(|cursor| cursor.next == from && cursor.chan.conn().is_alive());
        let (mut cursor, new) = match known {
            Some(cursor) => (cursor, false),
            None => (self.begin(partition, from).await?, true),
        };
        cursor.gather()?;
        if cursor.ahead.is_empty() && (new || request.wait.is_zero()) {
            // Nothing has come; whether there is something is asked, so that what is there is never left out.
            let bounds = self.shared.bounds(&self.open.topic, partition).await?;
            if from > bounds.next {
                return Err(beyond(&self.open.topic.name, partition, from, bounds.next));
            }
            if from < bounds.next {
                let limit = cursor.chan.conn().limit();
                cursor.wait(Instant::now() + limit).await?;
            }
        }
        if cursor.ahead.is_empty() && !request.wait.is_zero() {
            cursor.wait(Instant::now() + request.wait).await?;
        }
        let fetched = cursor.hand_out(request)?;
        cursor.ack().await?;
        *slot = Some(cursor);
        Ok(fetched)
    }

    fn name_topic(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::TopicNotFound {
            topic_not_found(&self.open.topic.name)
        } else {
            error
        }
    }
}

impl Cursor {
    /// Takes what has come, without waiting.
    fn gather(&mut self) -> Result<()> {
        while let Some(next) = self.consumer.next().now_or_never() {
            self.push(next)?;
        }
        Ok(())
    }

    async fn wait(&mut self, until: Instant) -> Result<()> {
        if self.ahead.is_empty()
            && let Ok(next) = tokio::time::timeout_at(until, self.consumer.next()).await
        {
            self.push(next)?;
            self.gather()?;
        }
        Ok(())
    }

    fn push(&mut self, next: Option<lapin::Result<Delivery>>) -> Result<()> {
        match next {
            Some(Ok(delivery)) => {
                let offset = format::offset_of(&delivery)?;
                if offset >= self.next {
                    self.ahead.push_back((offset, delivery));
                }
                Ok(())
            }
            Some(Err(error)) => Err(self.chan.map(&error)),
            None => Err(stream::cancelled()),
        }
    }

    fn hand_out(&mut self, request: &FetchRequest) -> Result<Fetched> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        while records.len() < request.max_messages.clamp(1, MOST_AT_ONCE) {
            let Some((offset, delivery)) = self.ahead.front_mut() else {
                break;
            };
            let size = delivery.data.len();
            if bytes + size > request.max_bytes && !records.is_empty() {
                break;
            }
            bytes += size;
            let body = std::mem::take(&mut delivery.data);
            records.extend(format::decode(*offset, &delivery.properties, body)?);
            self.next = *offset + 1;
            let handed = self.ahead.pop_front().map(|(_, delivery)| delivery.acker);
            self.unacked += 1;
            if self.unacked >= self.ack_every {
                self.unacked = 0;
                self.credit = handed;
            }
        }
        Ok(Fetched::new(Records::from(records), self.next))
    }

    /// Lets the server send on, where enough has been handed out.
    async fn ack(&mut self) -> Result<()> {
        if let Some(acker) = self.credit.take() {
            let all = BasicAckOptions { multiple: true };
            acker.ack(all).await.map_err(|e| self.chan.map(&e))?;
        }
        Ok(())
    }
}

#[async_trait]
impl driver::Reader for AmqpReader {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        self.check(request.partition)?;
        let slot = self.cursor(request.partition);
        let mut slot = slot.lock().await;
        let mut ended = self.ended.subscribe();
        let mut gone = self.open.state();
        let fetched = tokio::select! {
            biased;
            fetched = self.read(&request, &mut slot) => fetched,
            () = until(&mut ended, |ended| *ended) => return Err(Error::closed("reader")),
            () = until(&mut gone, |state| state.gone) => return Err(topic_not_found(&self.open.topic.name)),
        };
        match fetched {
            Err(error) if error.kind() == ErrorKind::TopicNotFound => {
                // The queue is gone; whether the topic is, its description tells.
                self.open.ask(&self.shared).await?;
                Err(Error::new(
                    ErrorKind::Interrupted,
                    "a partition was not there for a moment",
                ))
            }
            other => other,
        }
    }

    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        self.check(partition)?;
        self.shared
            .resolve(&self.open.topic, partition, Position::Time(time))
            .await
    }

    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        self.check(0)?;
        let bounds = self
            .shared
            .all_bounds(&self.open.topic, self.open.partitions())
            .await?;
        Ok(bounds
            .into_iter()
            .map(|bounds| (bounds.first, bounds.next))
            .collect())
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.ended.send_replace(true);
        // A fetch under way ends by that; what the others hold is dropped here.
        self.cursors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        Ok(())
    }
}

async fn until<T>(told: &mut watch::Receiver<T>, is: impl Fn(&T) -> bool) {
    if told.wait_for(is).await.is_err() {
        // Nobody tells any more.
        std::future::pending::<()>().await;
    }
}

impl fmt::Debug for AmqpReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpReader")
            .field("topic", &self.open.topic.name)
            .finish_non_exhaustive()
    }
}
