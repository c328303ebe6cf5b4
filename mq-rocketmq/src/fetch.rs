//! The fetching of one partition: a pull that waits at the broker, again and again.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{
    Error, ErrorKind, Result,
    driver::{AssignmentId, Batch, Record, Records},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    client::{PullOptions, PullStatus, Pulled, QueueRef, Session},
    config::RocketMqConfig,
    error::{from_remoting, is_passing},
    format,
    outbox::Outbox,
    remoting::{RemotingError, StoredMessage, SubscriptionData, codes::response},
    topic::{Shared, Topic, offset_of},
};

/// How long a pull may wait at the broker, which looks every five seconds.
pub(crate) const PULL_WAIT: Duration = Duration::from_secs(15);
/// The pause where a broker has not indexed what it answered.
pub(crate) const INDEX_PAUSE: Duration = Duration::from_millis(2);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Chooses messages by their tags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) expression: String,
    tags: BTreeSet<String>,
    pub(crate) version: i64,
}

impl Filter {
    /// Reads an expression such as `a || b`; none and `*` take all.
    pub(crate) fn new(expression: Option<&str>, version: i64) -> Result<Self> {
        let expression = expression.map_or("*", str::trim);
        let tags: BTreeSet<String> = match expression {
            "*" => BTreeSet::new(),
            _ => expression.split("||").map(|tag| tag.trim().to_owned()).collect(),
        };
        if tags.iter().any(String::is_empty) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("consumer property `tags` {expression:?}: it is tags between `||`, or `*`"),
            ));
        }
        Ok(Self {
            expression: expression.to_owned(),
            tags,
            version,
        })
    }

    pub(crate) fn subscription(&self, topic: &str) -> SubscriptionData {
        SubscriptionData::tags(topic, &self.expression, self.version)
    }

    /// Brokers compare hashes only.
    pub(crate) fn takes(&self, message: &StoredMessage) -> bool {
        self.tags.is_empty() || self.names(message.property("TAGS"))
    }

    fn names(&self, tag: Option<&str>) -> bool {
        tag.is_some_and(|tag| self.tags.contains(tag))
    }
}

/// What a member and the fetching of one of its partitions share.
#[derive(Debug)]
pub(crate) struct Lane {
    id: AssignmentId,
    paused: AtomicBool,
    /// The tenure is to end: the queue ends before what was read, or an operator wants the group elsewhere.
    over: AtomicBool,
    /// Where an operator wants the group to go on.
    reset: Mutex<Option<i64>>,
    /// Woken when there is room again, and when a pause ends.
    pub(crate) wake: Arc<Notify>,
}

impl Lane {
    pub(crate) fn new(id: AssignmentId) -> Self {
        Self {
            id,
            paused: AtomicBool::new(false),
            over: AtomicBool::new(false),
            reset: Mutex::default(),
            wake: Arc::default(),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends the tenure, so that the next one begins elsewhere.
    pub(crate) fn move_to(&self, offset: i64) {
        *self.reset.lock().unwrap_or_else(PoisonError::into_inner) = Some(offset);
        self.over.store(true, Ordering::Release);
    }

    /// Where the next tenure is to begin, if an operator says so.
    pub(crate) fn moved_to(&self) -> Option<i64> {
        *self.reset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
        self.wake.notify_one();
    }
}

/// Decodes what a pull found.
pub(crate) fn records(
    pulled: &Pulled,
    config: &RocketMqConfig,
    filter: &Filter,
) -> Result<Vec<Record>, RemotingError> {
    let mut records = Vec::new();
    for message in pulled.messages() {
        let message = message?;
        if filter.takes(&message) {
            records.push(format::decode(
                &message,
                config.tag_header.as_deref(),
                config.max_payload,
            )?);
        }
    }
    Ok(records)
}

/// Fetches one partition in one tenure.
pub(crate) struct Source {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session: Session,
    pub(crate) topic: Topic,
    pub(crate) group: String,
    pub(crate) filter: Filter,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) most: usize,
    pub(crate) lane: Arc<Lane>,
    /// Wakes the member.
    pub(crate) ended: Arc<Notify>,
    pub(crate) queue: QueueRef,
}

impl Source {
    /// Runs until it is aborted, or nothing is to be had any more.
    pub(crate) async fn run(self, mut from: i64, generation: u64) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.until_wanted().await;
            match self.pull(from).await {
                Ok(pulled) => {
                    pause = FIRST_PAUSE;
                    match self.take(&pulled, from, generation).await {
                        Ok(next) => from = next,
                        Err(error) if is_passing(&error) && error.kind() != ErrorKind::Protocol => {
                            sleep(grow(&mut pause)).await;
                        }
                        Err(error) => return self.outbox.fail(error),
                    }
                }
                Err(error) => {
                    match error.refusal() {
                        Some(response::TOPIC_NOT_EXIST) => return self.outbox.topic_gone(),
                        Some(
                            response::SUBSCRIPTION_GROUP_NOT_EXIST
                            | response::SUBSCRIPTION_NOT_EXIST
                            | response::SUBSCRIPTION_NOT_LATEST,
                        ) => {
                            let beat = self.session.beat(&self.queue.broker, self.shared.deadline());
                            if let Err(error) = beat.await {
                                tracing::debug!(%error, "a heartbeat failed");
                            }
                        }
                        _ => {}
                    }
                    let error = from_remoting(error);
                    if !is_passing(&error) {
                        return self.outbox.fail(error);
                    }
                    tracing::debug!(%error, "a pull failed");
                    sleep(grow(&mut pause)).await;
                }
            }
        }
    }

    async fn until_wanted(&self) {
        while self.lane.paused.load(Ordering::Acquire) || !self.outbox.has_room(self.lane.id) {
            self.lane.wake.notified().await;
        }
    }

    async fn pull(&self, from: i64) -> Result<Pulled, RemotingError> {
        let options = PullOptions {
            max_messages: self.most,
            wait: PULL_WAIT,
            expression: &self.filter.expression,
            expression_type: "TAG",
            version: self.filter.version,
        };
        self.session
            .pull(
                &self.group,
                &self.topic.physical,
                &self.queue,
                from,
                &options,
                Instant::now(),
            )
            .await
    }

    /// Hands on what a pull found; returns where to go on.
    async fn take(&self, pulled: &Pulled, from: i64, generation: u64) -> Result<i64> {
        let id = self.lane.id;
        let next = pulled.next_offset;
        match pulled.status {
            PullStatus::Found | PullStatus::Nothing if next > from => {
                let records = records(pulled, &self.shared.config, &self.filter).map_err(from_remoting)?;
                let batch = Batch::new(id, generation, Records::from(records), offset_of(next));
                self.outbox.batch(batch);
                Ok(next)
            }
            // A broker tells of an operator's order as it tells of a position out of its range.
            PullStatus::OffsetMoved
                if next != from && (pulled.min_offset..=pulled.max_offset).contains(&from) =>
            {
                self.lane.move_to(next);
                self.end().await
            }
            PullStatus::OffsetMoved if next > from => {
                self.outbox
                    .trimmed(id, generation, offset_of(from), offset_of(next));
                Ok(next)
            }
            PullStatus::OffsetMoved => self.look_back(from).await,
            PullStatus::Found | PullStatus::Nothing => Ok(from),
        }
    }

    /// Tells a broker that has not indexed what it answered from one that has lost it.
    async fn look_back(&self, from: i64) -> Result<i64> {
        self.shared.reach_master(&self.queue).await?;
        let bounds = self
            .shared
            .bounds(&self.topic, std::slice::from_ref(&self.queue))
            .await?;
        if bounds.first().is_none_or(|bounds| bounds.next >= from) {
            sleep(INDEX_PAUSE).await;
            return Ok(from);
        }
        // The next tenure begins at what there is.
        self.lane.over.store(true, Ordering::Release);
        self.end().await
    }

    /// Has the member end the tenure, and this task with it.
    async fn end(&self) -> Result<i64> {
        self.ended.notify_one();
        std::future::pending().await
    }
}

fn grow(pause: &mut Duration) -> Duration {
    let now = *pause;
    *pause = (now * 2).min(LONGEST_PAUSE);
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_its_tags_only() {
        let all = Filter::new(None, 1).unwrap();
        assert!(all.tags.is_empty());
        let some = Filter::new(Some("a || b"), 1).unwrap();
        assert!(some.names(Some("b")) && !some.names(Some("c")) && !some.names(None));
        assert_eq!(some.subscription("t").tags_set, ["a", "b"]);
        for bad in ["", "a ||", "|| b"] {
            assert_eq!(
                Filter::new(Some(bad), 1).unwrap_err().kind(),
                ErrorKind::InvalidConfig
            );
        }
    }
}
