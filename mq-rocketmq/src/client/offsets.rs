//! Offsets of queues and of groups.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::admin::QueueBounds;
use super::layout::QueueRef;
use super::session::Session;
use crate::remoting::codes::{request as codes, response};
use crate::remoting::{
    Effect, MaxOffset, MinOffset, Plain, QueryOffset, RemotingError, SearchOffset, UpdateOffset,
};

/// The pause between two looks at the counters of a broker.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The pause where the counters cannot be read: a broker that is not overloaded indexes within a few milliseconds.
const UNSURE_PAUSE: Duration = Duration::from_millis(100);

/// The counters of a broker, as text.
#[derive(Deserialize)]
struct RuntimeInfo {
    table: BTreeMap<String, String>,
}

impl RuntimeInfo {
    fn count(&self, name: &str) -> Option<i64> {
        self.table.get(name)?.parse().ok()
    }
}

impl Session {
    /// Reads the stored offset of a group, or `None` if it has none.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn committed(
        &self,
        group: &str,
        topic: &str,
        queue: &QueueRef,
        deadline: Instant,
    ) -> Result<Option<i64>, RemotingError> {
        // Without this a broker answers 0 for a new group on a small topic.
        let zero_if_not_found = Some(false);
        let broker = Some(&*queue.broker);
        let request = QueryOffset {
            group,
            topic,
            queue: queue.queue,
            zero_if_not_found,
            broker,
        };
        match self.ask(&queue.broker, &request, &(), deadline).await {
            Ok(answer) => answer.field("offset").map(Some),
            Err(error) if error.refusal() == Some(response::QUERY_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores the offset of a group, which must exist; the broker takes any number. It writes it to disk every five
    /// seconds by default: a broker that is killed loses younger ones.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Refused`] with
    /// [`SUBSCRIPTION_GROUP_NOT_EXIST`](response::SUBSCRIPTION_GROUP_NOT_EXIST) for an unknown group, or what server
    /// and connection say.
    ///
    /// # Cancel safety
    ///
    /// It may be stored.
    pub async fn commit(
        &self,
        group: &str,
        topic: &str,
        queue: &QueueRef,
        offset: i64,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let broker = Some(&*queue.broker);
        let request = UpdateOffset {
            group,
            topic,
            queue: queue.queue,
            offset,
            broker,
        };
        self.ask(&queue.broker, &request, &(), deadline).await.map(drop)
    }

    /// Reads what a queue holds; a replica is asked where the master cannot be reached. Brokers answer zeros for an
    /// unknown topic.
    ///
    /// A broker indexes messages a moment after it answers their send, and counts only what is indexed: half of the
    /// time the next offset lacks the message that was just sent. [`catch_up`](Self::catch_up) before it cures that.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn bounds(
        &self,
        topic: &str,
        queue: &QueueRef,
        deadline: Instant,
    ) -> Result<QueueBounds, RemotingError> {
        let broker = Some(&*queue.broker);
        let least = MinOffset {
            topic,
            queue: queue.queue,
            broker,
        };
        let most = MaxOffset {
            topic,
            queue: queue.queue,
            committed: None,
            broker,
        };
        let (least, most) = tokio::try_join!(
            self.ask_any(&queue.broker, &least, &(), deadline),
            self.ask_any(&queue.broker, &most, &(), deadline),
        )?;
        let next = most.field("offset")?;
        // The two are read apart, and a queue may be trimmed in between.
        Ok(QueueBounds {
            first: least.field::<i64>("offset")?.clamp(0, next),
            next,
        })
    }

    /// Waits until a broker has indexed all that it had stored when this was called, and tells whether that is sure.
    ///
    /// It is not where access control keeps the broker's counters from this client; a short pause has to do then.
    ///
    /// # Errors
    ///
    /// What server and connection say, and a timeout when the index does not catch up by the deadline.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn catch_up(&self, broker: &str, deadline: Instant) -> Result<bool, RemotingError> {
        let began = Instant::now();
        let mut target = None;
        loop {
            let answer = self
                .ask_any(broker, &Plain(codes::GET_BROKER_RUNTIME_INFO), &(), deadline)
                .await;
            let info: RuntimeInfo = match answer {
                Ok(answer) => answer.json("broker counters")?,
                Err(error) if error.refusal() == Some(response::NO_PERMISSION) => {
                    sleep(UNSURE_PAUSE).await;
                    return Ok(false);
                }
                // A broker that has just started has no counters for a second, and fails on that.
                Err(error)
                    if error.refusal() == Some(response::SYSTEM_ERROR)
                        && Instant::now() + UNSURE_PAUSE < deadline =>
                {
                    sleep(UNSURE_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (Some(end), Some(behind)) = (
                info.count("commitLogMaxOffset"),
                info.count("dispatchBehindBytes"),
            ) else {
                sleep(UNSURE_PAUSE).await;
                return Ok(false);
            };
            let target = *target.get_or_insert(end);
            if behind <= 0 || end - behind >= target {
                return Ok(true);
            }
            if Instant::now() + LOOK_AGAIN >= deadline {
                let (code, waited) = (codes::GET_BROKER_RUNTIME_INFO, began.elapsed());
                let effect = Effect::NotSent;
                return Err(RemotingError::Timeout {
                    address: broker.into(),
                    code,
                    waited,
                    effect,
                });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Finds the offset of the first message stored at or after a time in milliseconds since the epoch, by the
    /// broker's clock; the next offset if there is none. A replica is asked where the master cannot be reached.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn offset_at(
        &self,
        topic: &str,
        queue: &QueueRef,
        millis: i64,
        deadline: Instant,
    ) -> Result<i64, RemotingError> {
        let request = SearchOffset {
            topic,
            queue: queue.queue,
            timestamp: millis,
            boundary: Some("LOWER"),
            broker: Some(&*queue.broker),
        };
        self.ask_any(&queue.broker, &request, &(), deadline)
            .await?
            .field("offset")
    }
}
