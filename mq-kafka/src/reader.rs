//! Reading partitions without a group.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Error, Offset, Position, Result, Timestamp, TopicName,
    driver::{self, FetchRequest, Fetched, Prefetch, Record, Records, topic_not_found},
};
use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    types::RDKafkaErrorCode as Code,
};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::Instant,
};

use crate::{
    client::{self, Client, Context, check_partition},
    error,
    ffi::PartitionQueue,
    outbox::take_all,
    watch::TopicWatch,
};

/// The library wants a group's name where partitions are assigned. Nothing is joined or stored under it.
const NO_GROUP: &str = "mq-reader";
/// How much is fetched ahead of a reader, for each partition.
const PREFETCH: Prefetch = Prefetch {
    messages: 1000,
    bytes: 8 * 1024 * 1024,
};
/// The most messages of one look at a queue: what does not fit an answer is kept for the next.
const MOST_AT_ONCE: usize = 64;

/// Reads the partitions of one topic.
pub(crate) struct KafkaReader {
    topic: TopicName,
    client: Arc<Client>,
    watch: Arc<TopicWatch>,
    /// None once closed: the thread that serves it is then its last holder.
    consumer: Mutex<Option<Arc<BaseConsumer<Context>>>>,
    stop: Arc<AtomicBool>,
    slots: Mutex<HashMap<u32, Arc<AsyncMutex<Slot>>>>,
}

/// Where the reading of one partition stands.
#[derive(Default)]
struct Slot {
    queue: Option<PartitionQueue<Context>>,
    woken: Arc<Notify>,
    /// The offset that the queue gives next.
    next: Offset,
    /// What was read beyond what an answer could hold.
    kept: std::collections::VecDeque<Record>,
    /// Everything up to the end was read when the broker was last heard.
    at_end: bool,
}

/// What a look at a queue brought.
enum Look {
    Records,
    Nothing,
    OutOfRange,
}

impl Slot {
    /// Returns the offset that the next message has at least.
    fn position(&self) -> Offset {
        self.kept.front().map_or(self.next, |record| record.offset)
    }

    fn look(&mut self) -> Look {
        let Some(queue) = &self.queue else {
            return Look::Nothing;
        };
        if !queue.signal().ready.swap(false, Ordering::AcqRel) {
            return Look::Nothing;
        }
        let raw = queue.read(MOST_AT_ONCE);
        if raw.is_full() {
            queue.signal().ready.store(true, Ordering::Release);
        }
        let (records, next, error) = take_all(&raw, self.next);
        if !records.is_empty() {
            self.at_end = false;
        }
        self.next = next;
        self.kept.extend(records);
        let end = raw
            .iter()
            .filter(|message| message.error() == Some(Code::PartitionEOF))
            .filter_map(|message| u64::try_from(message.offset()).ok())
            .max();
        if let Some(end) = end {
            self.at_end = end >= self.next;
            self.next = self.next.max(end);
        }
        match error {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Look::OutOfRange,
            _ if self.kept.is_empty() => Look::Nothing,
            _ => Look::Records,
        }
    }

    fn answer(&mut self, request: &FetchRequest) -> Fetched {
        let mut records = Vec::new();
        let mut bytes = 0;
        while records.len() < request.max_messages.max(1) {
            let Some(record) = self.kept.pop_front() else {
                break;
            };
            bytes += record.message.weight();
            if bytes > request.max_bytes && !records.is_empty() {
                self.kept.push_front(record);
                break;
            }
            records.push(record);
        }
        let after = records.last().map_or(0, |record: &Record| record.offset + 1);
        let next = match self.kept.is_empty() {
            true => self.next.max(after),
            false => after,
        };
        Fetched::new(Records::from(records), next)
    }
}

impl KafkaReader {
    pub(crate) async fn open(client: &Arc<Client>, topic: &TopicName) -> Result<Self> {
        let watch = client.watch(topic.as_str()).await?;
        let context = Context {
            cause: Arc::clone(&client.cause),
        };
        let mut settings = client.config.reading(NO_GROUP, PREFETCH);
        settings.set("enable.partition.eof", "true");
        let consumer: BaseConsumer<Context> = settings
            .create_with_context(context)
            .map_err(|error| error::from_kafka("opening a reader", &error))?;
        let consumer = Arc::new(consumer);
        let stop = Arc::new(AtomicBool::new(false));
        client::serve("mq-kafka-reader", Arc::clone(&consumer), Arc::clone(&stop))?;
        Ok(Self {
            topic: topic.clone(),
            client: Arc::clone(client),
            watch,
            consumer: Mutex::new(Some(consumer)),
            stop,
            slots: Mutex::default(),
        })
    }

    fn consumer(&self) -> Result<Arc<BaseConsumer<Context>>> {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        consumer.clone().ok_or_else(|| Error::closed("reader"))
    }

    fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Acquire) {
            return Err(Error::closed("reader"));
        }
        if self.watch.is_gone() {
            return Err(topic_not_found(&self.topic));
        }
        Ok(())
    }

    fn slot(&self, partition: u32) -> Arc<AsyncMutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(partition).or_default())
    }

    async fn bounds_of(&self, partition: u32) -> Result<(Offset, Offset)> {
        let bounds = self.client.bounds(self.topic.as_str(), vec![partition]).await?;
        bounds
            .first()
            .copied()
            .ok_or_else(|| error::from_code(&format!("partition {partition}"), Code::UnknownPartition))
    }

    /// Begins to fetch a partition at an offset.
    async fn move_to(&self, slot: &mut Slot, partition: u32, offset: Offset) -> Result<()> {
        let consumer = self.consumer()?;
        // Whatever happens below, what was there is no longer what comes next.
        let before = slot.queue.take().is_some();
        slot.kept.clear();
        let queue = PartitionQueue::open(
            &consumer,
            self.topic.as_str(),
            client::number(partition),
            &slot.woken,
        );
        let name = self.topic.as_str().to_owned();
        client::blocking(move || {
            let list = client::partition_list(&name, &[partition], |_| client::raw_offset(offset))
                .map_err(|code| error::from_code("reading", code))?;
            if before {
                // It may have been taken away by a call that was dropped half-way.
                let _ = consumer.incremental_unassign(&list);
            }
            let begun = consumer.incremental_assign(&list).or_else(|_| {
                consumer.incremental_unassign(&list)?;
                consumer.incremental_assign(&list)
            });
            begun.map_err(|error| error::from_kafka("reading", &error))
        })
        .await??;
        slot.queue = queue;
        slot.next = offset;
        slot.at_end = false;
        Ok(())
    }

    async fn place(&self, slot: &mut Slot, request: &FetchRequest) -> Result<()> {
        if let Position::Offset(offset) = request.position
            && slot.queue.is_some()
            && offset == slot.position()
        {
            return Ok(());
        }
        let found = self
            .client
            .resolve(self.topic.as_str(), vec![request.partition], request.position)
            .await?;
        let offset = found.first().copied().unwrap_or(0);
        if slot.queue.is_some() && offset == slot.position() {
            return Ok(());
        }
        self.move_to(slot, request.partition, offset).await
    }
}

#[async_trait]
impl driver::Reader for KafkaReader {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        self.check()?;
        check_partition(&self.topic, request.partition, self.watch.partitions())?;
        let slot = self.slot(request.partition);
        let mut slot = slot.lock().await;
        let begun = Instant::now();
        self.place(&mut slot, &request).await?;
        let limit = self.client.config.request_timeout;
        let mut sure = false;
        loop {
            if !slot.kept.is_empty() {
                return Ok(slot.answer(&request));
            }
            match slot.look() {
                Look::Records => return Ok(slot.answer(&request)),
                Look::OutOfRange => {
                    let at = slot.next;
                    let (first, next) = self.bounds_of(request.partition).await?;
                    if at > next {
                        return Err(client::beyond(self.topic.as_str(), request.partition, at, next));
                    }
                    self.move_to(&mut slot, request.partition, at.max(first)).await?;
                    continue;
                }
                Look::Nothing => {}
            }
            self.check()?;
            let waited = begun.elapsed();
            if slot.at_end && waited >= request.wait {
                if sure || !request.wait.is_zero() {
                    return Ok(slot.answer(&request));
                }
                // The end may have moved since the broker was last heard.
                sure = true;
                let (_, next) = self.bounds_of(request.partition).await?;
                if next > slot.next {
                    slot.at_end = false;
                }
                continue;
            }
            if !slot.at_end && waited >= limit + request.wait {
                return Err(self
                    .client
                    .cause
                    .explain(Error::timeout("reading a partition", limit + request.wait)));
            }
            let until = match slot.at_end {
                true => request.wait,
                false => limit + request.wait,
            };
            // A topic that is gone says nothing by itself.
            let nap = until.saturating_sub(waited).min(Duration::from_millis(500));
            let woken = Arc::clone(&slot.woken);
            let _ = tokio::time::timeout(nap, woken.notified()).await;
        }
    }

    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        self.check()?;
        check_partition(&self.topic, partition, self.watch.partitions())?;
        let found = self
            .client
            .resolve(self.topic.as_str(), vec![partition], Position::Time(time))
            .await?;
        Ok(found.first().copied().unwrap_or(0))
    }

    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        self.check()?;
        let all = (0..self.watch.partitions()).collect();
        self.client.bounds(self.topic.as_str(), all).await
    }

    async fn close(&self) -> Result<()> {
        self.end();
        Ok(())
    }
}

impl KafkaReader {
    fn end(&self) {
        self.stop.store(true, Ordering::Release);
        let consumer = self
            .consumer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(consumer);
        // The queues hold the client too.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for KafkaReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaReader")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}
