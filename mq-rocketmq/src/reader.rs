//! Reading partitions without a group.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mq_api::{
    Error, Offset, Position, Result, Timestamp,
    driver::{self, FetchRequest, Fetched, Record, Records, topic_not_found},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    admin::no_partition,
    client::{PullOptions, PullStatus, Pulled, QueueRef, Route},
    error::from_remoting,
    fetch::{Filter, INDEX_PAUSE, PULL_WAIT, records},
    remoting::{RemotingError, codes::response},
    topic::{Shared, Topic, number_of, offset_of, out_of_range},
};

/// The most messages of one fetch; brokers give 32 by default.
const MOST_AT_ONCE: usize = 1024;

/// Reads one topic on RocketMQ.
pub(crate) struct RocketMqReader {
    shared: Arc<Shared>,
    topic: Topic,
    route: Arc<Route>,
    group: String,
    filter: Filter,
    closed: AtomicBool,
}

impl RocketMqReader {
    pub(crate) async fn open(shared: &Arc<Shared>, topic: &mq_api::TopicName) -> Result<Arc<Self>> {
        let (topic, route) = shared.open(topic).await?;
        Ok(Arc::new(Self {
            shared: Arc::clone(shared),
            group: shared.names.reader_group(),
            filter: Filter::new(None, 0)?,
            topic,
            route,
            closed: AtomicBool::new(false),
        }))
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::closed("reader"))
        } else {
            Ok(())
        }
    }

    /// Finds a partition; one that was added later is asked for.
    async fn queue(&self, partition: u32) -> Result<QueueRef> {
        self.check_open()?;
        if let Some(queue) = self.route.layout.queue(partition) {
            return Ok(queue.clone());
        }
        let route = self.shared.route(&self.topic).await?;
        route
            .layout
            .queue(partition)
            .cloned()
            .ok_or_else(|| no_partition(&self.topic, partition, route.layout.len()))
    }

    async fn pull(&self, queue: &QueueRef, from: i64, most: usize, until: Instant) -> Result<Option<Pulled>> {
        let now = Instant::now();
        let waits = until > now;
        let options = PullOptions {
            max_messages: most.clamp(1, MOST_AT_ONCE),
            wait: if waits { PULL_WAIT } else { Duration::ZERO },
            expression: "*",
            expression_type: "TAG",
            version: 0,
        };
        let deadline = if waits { now } else { self.shared.deadline() };
        let pull =
            self.shared
                .session
                .pull(&self.group, &self.topic.physical, queue, from, &options, deadline);
        let answer = if waits {
            // A broker overruns waits by up to five seconds; what is dropped here is read again.
            match timeout_at(until, pull).await {
                Ok(answer) => answer,
                Err(_) => return Ok(None),
            }
        } else {
            pull.await
        };
        answer.map(Some).map_err(|error| self.refused(error))
    }

    fn refused(&self, error: RemotingError) -> Error {
        if error.refusal() == Some(response::TOPIC_NOT_EXIST) {
            topic_not_found(&self.topic.name)
        } else {
            from_remoting(error)
        }
    }
}

#[async_trait]
impl driver::Reader for RocketMqReader {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        let partition = request.partition;
        let queue = self.queue(partition).await?;
        let mut from = match request.position {
            Position::Offset(offset) => number_of(offset),
            other => self.shared.resolve(&self.topic, partition, &queue, other).await?,
        };
        let until = Instant::now() + request.wait;
        let nothing = |from: i64| Fetched::new(Records::from(Vec::new()), offset_of(from));
        let mut caught_up = false;
        loop {
            let Some(pulled) = self.pull(&queue, from, request.max_messages, until).await? else {
                return Ok(nothing(from));
            };
            let next = pulled.next_offset;
            match pulled.status {
                PullStatus::Found => {
                    let found = records(&pulled, &self.shared.config, &self.filter).map_err(from_remoting)?;
                    let (records, next) = within(found, next, request.max_messages, request.max_bytes);
                    return Ok(Fetched::new(Records::from(records), offset_of(next)));
                }
                PullStatus::OffsetMoved if next < from => {
                    self.shared.reach_master(&queue).await?;
                    let bounds = self
                        .shared
                        .bounds(&self.topic, std::slice::from_ref(&queue))
                        .await?;
                    let end = bounds.first().map_or(0, |bounds| bounds.next);
                    if from > end {
                        return Err(out_of_range(
                            &self.topic,
                            partition,
                            offset_of(from),
                            offset_of(end),
                        ));
                    }
                    sleep(INDEX_PAUSE).await;
                }
                _ if next > from => from = next,
                _ if Instant::now() < until => {}
                _ if caught_up => return Ok(nothing(from)),
                // What was answered may not be indexed yet.
                _ => {
                    let deadline = self.shared.deadline();
                    self.shared
                        .session
                        .catch_up(&queue.broker, deadline)
                        .await
                        .map_err(from_remoting)?;
                    caught_up = true;
                }
            }
        }
    }

    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        let queue = self.queue(partition).await?;
        let to = Position::Time(time);
        let found = self.shared.resolve(&self.topic, partition, &queue, to).await?;
        Ok(offset_of(found))
    }

    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        self.check_open()?;
        let route = self.shared.route(&self.topic).await?;
        let bounds = self.shared.bounds(&self.topic, route.layout.queues()).await?;
        Ok(bounds
            .into_iter()
            .map(|bounds| (offset_of(bounds.first), offset_of(bounds.next)))
            .collect())
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

/// Keeps messages up to a number and a size, one at least, and says where to go on.
fn within(mut found: Vec<Record>, next: i64, most: usize, max_bytes: usize) -> (Vec<Record>, i64) {
    let mut bytes = 0;
    let mut keep = found.len().min(most.max(1));
    for (at, record) in found.iter().enumerate().take(keep) {
        bytes += record.message.weight();
        if bytes > max_bytes && at > 0 {
            keep = at;
            break;
        }
    }
    let next = found.get(keep).map_or(next, |left| number_of(left.offset));
    found.truncate(keep);
    (found, next)
}

impl fmt::Debug for RocketMqReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocketMqReader")
            .field("topic", &self.topic.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use mq_api::Message;

    use super::*;

    #[test]
    fn a_fetch_keeps_to_its_bounds() {
        let record = |offset| Record::new(offset, Timestamp::now(), Message::new("x"));
        let found: Vec<Record> = (5..9).map(record).collect();
        let (kept, next) = within(found.clone(), 9, 2, usize::MAX);
        assert_eq!((kept.len(), next), (2, 7));
        let (kept, next) = within(found.clone(), 9, 9, 1);
        assert_eq!((kept.len(), next), (1, 6));
        let (kept, next) = within(found, 12, 9, usize::MAX);
        assert_eq!((kept.len(), next), (4, 12));
    }
}
