//! Offsets of queues and of groups.

use tokio::time::Instant;

use super::admin::QueueBounds;
use super::layout::QueueRef;
use super::session::Session;
use crate::remoting::codes::response;
use crate::remoting::{MaxOffset, MinOffset, QueryOffset, RemotingError, SearchOffset, UpdateOffset};

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

    /// Reads what a queue holds. Brokers answer zeros for an unknown topic.
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
            self.ask(&queue.broker, &least, &(), deadline),
            self.ask(&queue.broker, &most, &(), deadline),
        )?;
        let next = most.field("offset")?;
        // The two are read apart, and a queue may be trimmed in between.
        Ok(QueueBounds {
            first: least.field::<i64>("offset")?.clamp(0, next),
            next,
        })
    }

    /// Finds the offset of the first message stored at or after a time in milliseconds since the epoch, by the
    /// broker's clock; the next offset if there is none.
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
        self.ask(&queue.broker, &request, &(), deadline)
            .await?
            .field("offset")
    }
}
