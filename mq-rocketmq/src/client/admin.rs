//! Topics and consumer groups.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::cluster::LAYOUTS;
use super::layout::Layout;
use super::session::Session;
use crate::remoting::codes::{request as codes, response};
use crate::remoting::{
    CreateTopic, DeleteGroup, DeleteKv, DeleteTopicInBroker, DeleteTopicInNamesrv, GetTopicConfig,
    GroupConfig, JsonBody, Plain, PutKv, RemotingError, TopicConfig, TopicList,
};

/// The pause between two looks at a route that is about to change.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The permission to read and write.
const READ_WRITE: i32 = 6;

/// What became of a request to create a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreatedTopic {
    /// It was created and can be used.
    New,
    /// It was there, with so many partitions; nothing was changed.
    Existed {
        /// The partitions that it has.
        partitions: usize,
    },
}

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueBounds {
    /// The offset of the oldest message that is retained.
    pub first: i64,
    /// The offset that the next message will get.
    pub next: i64,
}

impl Session {
    /// Creates a topic with its partitions spread over the masters, records the layout in the nameservers, and waits
    /// until the route shows all of it.
    ///
    /// It looks first, since brokers overwrite an existing topic without complaint. Of two that create one topic with
    /// different counts at the same moment, the later one wins; both then see the count that stands.
    ///
    /// # Errors
    ///
    /// What servers and connections say; [`RemotingError::NoServer`] without any master, or when the route does not
    /// show the topic by the deadline.
    ///
    /// # Cancel safety
    ///
    /// The topic may be there in part; creating it again completes it.
    pub async fn create_topic(
        &self,
        topic: &str,
        partitions: usize,
        attributes: Option<&str>,
        deadline: Instant,
    ) -> Result<CreatedTopic, RemotingError> {
        let unfinished = match self.cluster().refresh(topic, deadline).await {
            Ok(route) => {
                let existed = CreatedTopic::Existed {
                    partitions: route.layout.len(),
                };
                if route.layout.len() != partitions || self.is_on_all(topic, &route.layout, deadline).await? {
                    return Ok(existed);
                }
                // Some broker lacks its part: an earlier attempt stopped half-way.
                Some(route.layout.clone())
            }
            Err(error) if error.refusal() == Some(response::TOPIC_NOT_EXIST) => None,
            // The layout is known and no broker is. That is an outage, or a deletion that stopped half-way.
            Err(error @ RemotingError::NoServer { .. }) => {
                match self.cluster().record(topic, deadline).await? {
                    Some(layout) if self.is_nowhere(topic, &layout, deadline).await => None,
                    _ => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let layout = match unfinished {
            Some(layout) => layout,
            None => {
                let masters = self.cluster().masters(deadline).await?;
                if masters.is_empty() {
                    let rule = "no master is registered".into();
                    return Err(RemotingError::NoServer {
                        what: topic.into(),
                        rule,
                    });
                }
                Layout::spread(&masters, partitions)
            }
        };
        self.put_layout(topic, &layout, attributes, deadline).await?;
        let partitions = self.await_route(topic, &layout, deadline).await?;
        if partitions == layout.len() {
            Ok(CreatedTopic::New)
        } else {
            Ok(CreatedTopic::Existed { partitions })
        }
    }

    /// Adds partitions to a topic; those that exist keep their numbers. Fewer than there are changes nothing.
    ///
    /// # Errors
    ///
    /// As [`create_topic`](Self::create_topic), and [`RemotingError::Refused`] for an unknown topic.
    ///
    /// # Cancel safety
    ///
    /// The topic may have grown in part; growing it again completes it.
    pub async fn grow_topic(
        &self,
        topic: &str,
        partitions: usize,
        deadline: Instant,
    ) -> Result<usize, RemotingError> {
        let route = self.cluster().refresh(topic, deadline).await?;
        let mut layout = route.layout.clone();
        if layout.len() >= partitions {
            return Ok(layout.len());
        }
        let masters = self.cluster().masters(deadline).await?;
        layout.grow(&masters, partitions);
        self.put_layout(topic, &layout, None, deadline).await?;
        self.await_route(topic, &layout, deadline).await
    }

    /// Tells whether every broker that is up has the queues that a layout gives it.
    async fn is_on_all(
        &self,
        topic: &str,
        layout: &Layout,
        deadline: Instant,
    ) -> Result<bool, RemotingError> {
        for broker in layout.brokers() {
            match self.topic_config(&broker, topic, deadline).await {
                Ok(Some(config)) if config.read_queue_nums >= layout.queues_on(&broker) => {}
                Ok(_) => return Ok(false),
                // A broker that is down has it, or it would not be in the layout.
                Err(error) if error.is_connection() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Tells whether every broker of a layout says that it does not have the topic.
    async fn is_nowhere(&self, topic: &str, layout: &Layout, deadline: Instant) -> bool {
        for broker in layout.brokers() {
            if !matches!(self.topic_config(&broker, topic, deadline).await, Ok(None)) {
                return false;
            }
        }
        true
    }

    async fn put_layout(
        &self,
        topic: &str,
        layout: &Layout,
        attributes: Option<&str>,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        for broker in layout.brokers() {
            let queues = layout.queues_on(&broker);
            let request = CreateTopic {
                topic,
                default_topic: "TBW102",
                read_queues: queues,
                write_queues: queues,
                perm: READ_WRITE,
                filter_type: "SINGLE_TAG",
                attributes,
                ..CreateTopic::default()
            };
            self.ask(&broker, &request, &(), deadline).await?;
        }
        let record = layout.to_string();
        let request = PutKv {
            namespace: LAYOUTS,
            key: topic,
            value: &record,
        };
        self.cluster().tell_all(&request, deadline).await
    }

    async fn await_route(
        &self,
        topic: &str,
        layout: &Layout,
        deadline: Instant,
    ) -> Result<usize, RemotingError> {
        loop {
            let found = self.cluster().routed(topic, deadline).await?;
            if let Some(found) = found
                && layout
                    .queues()
                    .iter()
                    .all(|queue| found.partition(&queue.broker, queue.queue).is_some())
            {
                return self
                    .cluster()
                    .refresh(topic, deadline)
                    .await
                    .map(|route| route.layout.len());
            }
            if Instant::now() + LOOK_AGAIN >= deadline {
                let rule = "the nameserver does not show its queues yet".into();
                return Err(RemotingError::NoServer {
                    what: topic.into(),
                    rule,
                });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Reads the settings of a topic on one broker, or `None` if it is not there.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn topic_config(
        &self,
        broker: &str,
        topic: &str,
        deadline: Instant,
    ) -> Result<Option<TopicConfig>, RemotingError> {
        let request = GetTopicConfig {
            topic,
            local: Some(true),
        };
        match self.ask(broker, &request, &(), deadline).await {
            Ok(answer) => answer.json("topic config").map(Some),
            Err(error) if error.refusal() == Some(response::TOPIC_NOT_EXIST) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a topic from every master and nameserver, with its layout and what groups stored for it. An unknown
    /// topic is no error.
    ///
    /// # Errors
    ///
    /// What servers and connections say.
    ///
    /// # Cancel safety
    ///
    /// The topic may be deleted in part; deleting it again completes it.
    pub async fn delete_topic(&self, topic: &str, deadline: Instant) -> Result<(), RemotingError> {
        // First, so that a deletion which stops half-way leaves a topic rather than a layout without one.
        self.cluster()
            .tell_all(
                &DeleteKv {
                    namespace: LAYOUTS,
                    key: topic,
                },
                deadline,
            )
            .await?;
        let masters = self.cluster().masters(deadline).await?;
        let calls = masters.iter().map(|broker| async move {
            self.ask(broker, &DeleteTopicInBroker { topic }, &(), deadline)
                .await
        });
        join_all(calls)
            .await
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))?;
        let request = DeleteTopicInNamesrv { topic, cluster: None };
        self.cluster().tell_all(&request, deadline).await?;
        self.cluster()
            .tell_all(
                &DeleteKv {
                    namespace: LAYOUTS,
                    key: topic,
                },
                deadline,
            )
            .await?;
        self.cluster().forget(topic);
        Ok(())
    }

    /// Lists all topics that a nameserver knows, those of the system and of retries included.
    ///
    /// # Errors
    ///
    /// What servers and connections say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn list_topics(&self, deadline: Instant) -> Result<Vec<String>, RemotingError> {
        let answer = self
            .cluster()
            .ask(&Plain(codes::GET_ALL_TOPIC_LIST), &(), deadline)
            .await?;
        answer.json::<TopicList>("topic list").map(|list| list.topic_list)
    }

    /// Creates a consumer group at brokers, or changes its settings.
    ///
    /// # Errors
    ///
    /// The first error of a broker.
    ///
    /// # Cancel safety
    ///
    /// Some brokers may have it.
    pub async fn create_group(
        &self,
        brokers: &[Arc<str>],
        config: &GroupConfig,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let request = Plain(codes::UPDATE_AND_CREATE_SUBSCRIPTION_GROUP);
        let body = JsonBody(config);
        let calls = brokers
            .iter()
            .map(|broker| self.ask(broker, &request, &body, deadline));
        join_all(calls)
            .await
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }

    /// Deletes a consumer group at brokers, with its offsets.
    ///
    /// # Errors
    ///
    /// The first error of a broker.
    ///
    /// # Cancel safety
    ///
    /// Some brokers may have deleted it.
    pub async fn delete_group(
        &self,
        brokers: &[Arc<str>],
        group: &str,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let request = DeleteGroup {
            group,
            clean_offsets: true,
        };
        let calls = brokers
            .iter()
            .map(|broker| self.ask(broker, &request, &(), deadline));
        join_all(calls)
            .await
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }
}
