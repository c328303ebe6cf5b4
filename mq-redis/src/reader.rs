//! Reading partitions without a group.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use mq_api::{
    Error, Offset, Position, Result, Timestamp,
    driver::{self, FetchRequest, Fetched, Record, Records, invalid_partition, topic_not_found},
};
use tokio::sync::oneshot;

use crate::{
    format::{self, Entry},
    link::Conn,
    reads::{Reads, Sink, SlotSpec},
    topic::{Shared, Topic, ask_bounds, read_bounds},
    upkeep::OpenTopic,
};

/// Reads one topic on Redis.
pub(crate) struct RedisReader {
    shared: Arc<Shared>,
    reads: Reads,
    topic: Topic,
    closed: AtomicBool,
    _open: OpenTopic,
}

impl RedisReader {
    pub(crate) fn new(shared: &Arc<Shared>, reads: &Reads, topic: Topic, open: OpenTopic) -> Self {
        Self {
            shared: Arc::clone(shared),
            reads: reads.clone(),
            topic,
            closed: AtomicBool::new(false),
            _open: open,
        }
    }

    async fn conn(&self, partition: u32) -> Result<Conn> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed("reader"));
        }
        if partition >= self.topic.partitions {
            return Err(invalid_partition(
                &self.topic.name,
                partition,
                self.topic.partitions,
            ));
        }
        self.shared.link.conn().await
    }

    /// Checks that the topic is the one that was opened.
    async fn check(&self, conn: &Conn) -> Result<()> {
        let now = self.shared.topic(conn, &self.topic.name).await?;
        if now.id() == self.topic.id() {
            Ok(())
        } else {
            Err(topic_not_found(&self.topic.name))
        }
    }

    /// Waits for what comes after an offset.
    async fn wait(&self, partition: u32, from: Offset, request: &FetchRequest) -> Result<Vec<Entry>> {
        let (sender, receiver) = oneshot::channel();
        let slot = self.reads.add(SlotSpec {
            key: self.topic.key(&self.shared.keys, partition),
            after: self.topic.before(from),
            token: 0,
            most: request.max_messages,
            waits: false,
            sink: Arc::new(Once(Mutex::new(Some(sender)))),
        })?;
        let came = tokio::time::timeout(request.wait, receiver).await;
        drop(slot);
        match came {
            Ok(Ok(entries)) => entries,
            // Nothing came in time; or the client is being closed.
            Err(_) => Ok(Vec::new()),
            Ok(Err(_)) => Err(Error::closed("connection")),
        }
    }
}

/// Takes the first entries that come.
struct Once(Mutex<Option<oneshot::Sender<Result<Vec<Entry>>>>>);

impl Once {
    fn send(&self, result: Result<Vec<Entry>>) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // Whoever waited may have gone: what is read here is taken from nobody.
            let _ = sender.send(result);
        }
    }
}

impl Sink for Once {
    fn take(&self, _token: u64, entries: Vec<Entry>) -> bool {
        self.send(Ok(entries));
        false
    }

    fn refused(&self, error: Error) {
        self.send(Err(error));
    }

    fn outage(&self, error: Option<&Error>) {
        if let Some(error) = error {
            self.send(Err(error.clone()));
        }
    }
}

#[async_trait]
impl driver::Reader for RedisReader {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        let partition = request.partition;
        let conn = self.conn(partition).await?;
        let from = match request.position {
            Position::Offset(offset) => offset,
            other => self.shared.resolve(&conn, &self.topic, partition, other).await?,
        };
        let key = self.topic.key(&self.shared.keys, partition);
        let mut range = redis::cmd("XRANGE");
        range
            .arg(&key)
            .arg(self.topic.entry_id(from).to_string())
            .arg("+")
            .arg("COUNT")
            .arg(request.max_messages.clamp(1, MOST_AT_ONCE));
        let mut entries = Entry::parse_all(conn.call(&range).await?)?;
        if entries.is_empty() {
            let bounds = conn.ask(&ask_bounds(&key)).await?;
            let bounds = read_bounds(&self.topic, &bounds)?;
            self.check(&conn).await?;
            if from > bounds.next {
                return Err(Error::new(
                    mq_api::ErrorKind::OffsetOutOfRange,
                    format!(
                        "offset {from} of partition {partition} of topic {:?}: the next one is {}",
                        self.topic.name, bounds.next
                    ),
                ));
            }
            if !request.wait.is_zero() {
                entries = self.wait(partition, from, &request).await?;
                if entries.is_empty() {
                    // A stream that was deleted while it was waited for says nothing.
                    self.check(&self.conn(partition).await?).await?;
                }
            }
        }
        let (records, next) = within_bytes(&entries, from, request.max_bytes)?;
        Ok(Fetched::new(Records::from(records), next))
    }

    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        let conn = self.conn(partition).await?;
        self.check(&conn).await?;
        self.shared
            .resolve(&conn, &self.topic, partition, Position::Time(time))
            .await
    }

    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        let conn = self.conn(0).await?;
        self.check(&conn).await?;
        let all: Vec<u32> = (0..self.topic.partitions).collect();
        let bounds = self.shared.bounds(&conn, &self.topic, &all).await?;
        Ok(bounds
            .into_iter()
            .map(|bounds| (bounds.first, bounds.next))
            .collect())
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

/// The most messages of one fetch.
const MOST_AT_ONCE: usize = 1000;

/// Takes messages up to a number of bytes, one at least, and says where to go on.
fn within_bytes(entries: &[Entry], from: Offset, max_bytes: usize) -> Result<(Vec<Record>, Offset)> {
    let mut records = Vec::with_capacity(entries.len());
    let (mut bytes, mut next) = (0, from);
    for entry in entries {
        let offset = entry.id.offset();
        if !entry.fields.is_empty() {
            let record = format::decode(entry)?;
            bytes += record.message.weight();
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.push(record);
        }
        next = offset + 1;
    }
    Ok((records, next))
}

impl fmt::Debug for RedisReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisReader")
            .field("topic", &self.topic.name)
            .finish_non_exhaustive()
    }
}
