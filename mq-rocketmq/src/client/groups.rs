//! Members of a group, and the locks by which one of them owns a queue.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::session::Session;
use crate::remoting::codes::{request as codes, response};
use crate::remoting::{
    ConsumerList, JsonBody, ListConsumers, LockBody, LockedBody, Plain, QueueName, RemotingError,
};

impl Session {
    /// Lists the members of a group that a broker knows, each once.
    ///
    /// # Errors
    ///
    /// What server and connection say; no member is no error.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn members(
        &self,
        broker: &str,
        group: &str,
        deadline: Instant,
    ) -> Result<BTreeSet<String>, RemotingError> {
        let request = ListConsumers {
            group,
            broker: Some(broker),
        };
        match self.ask(broker, &request, &(), deadline).await {
            Ok(answer) => {
                let list: ConsumerList = answer.json("member list")?;
                Ok(list.consumer_id_list.into_iter().collect())
            }
            // The code of any failure, told apart by its words.
            Err(RemotingError::Refused {
                code: response::SYSTEM_ERROR,
                remark,
                ..
            }) if remark.contains("no consumer for this group") => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        }
    }

    /// Locks queues of one broker for a member, renewing those that it has, and returns those that are its now.
    ///
    /// A lock lasts 60 s by default and outlives the member's connection.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// Some may be locked.
    pub async fn lock(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        queues: &[i32],
        deadline: Instant,
    ) -> Result<Vec<i32>, RemotingError> {
        let body = lock_body(broker, group, topic, self.client_id(), queues);
        let answer = self
            .ask(broker, &Plain(codes::LOCK_BATCH_MQ), &JsonBody(&body), deadline)
            .await?;
        let locked: LockedBody = answer.json("locks")?;
        let ours = |name: &&QueueName| name.topic == topic && name.broker_name == broker;
        Ok(locked
            .locked
            .iter()
            .filter(ours)
            .map(|name| name.queue_id)
            .collect())
    }

    /// Frees locks of one broker that a member holds. The member need not be this one: a broker takes the client's
    /// word for who it is, by which the lock of a dead member can be freed.
    ///
    /// # Errors
    ///
    /// What server and connection say; locks of others are left alone without an error.
    ///
    /// # Cancel safety
    ///
    /// Some may be free.
    pub async fn unlock(
        &self,
        broker: &str,
        group: &str,
        topic: &str,
        member: &str,
        queues: &[i32],
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let body = lock_body(broker, group, topic, member, queues);
        self.ask(broker, &Plain(codes::UNLOCK_BATCH_MQ), &JsonBody(&body), deadline)
            .await
            .map(drop)
    }
}

fn lock_body(broker: &str, group: &str, topic: &str, member: &str, queues: &[i32]) -> LockBody {
    LockBody {
        client_id: member.to_owned(),
        consumer_group: group.to_owned(),
        mq_set: queues
            .iter()
            .map(|queue| QueueName {
                broker_name: broker.to_owned(),
                queue_id: *queue,
                topic: topic.to_owned(),
            })
            .collect(),
        only_this_broker: false,
    }
}
