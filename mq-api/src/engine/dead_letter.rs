//! Messages that were rejected, or have had their last attempt.

use std::{sync::Arc, time::Duration};

use tokio::sync::Mutex;

use super::{config::EngineConfig, item::Item};
use crate::{
    Error, ErrorKind, GroupName, Message, Result, TopicName, TopicSpec,
    driver::{self, ProducerRequest, SendBatch},
    mq::{MqInner, deadline},
};

/// Writes messages to the dead-letter topic of a group, which it opens when the first one comes.
pub(crate) struct DeadLetters {
    mq: Arc<MqInner>,
    target: Option<TopicName>,
    create: bool,
    topic: TopicName,
    group: GroupName,
    // Held across the opening, so that many messages open one producer.
    producer: Mutex<Option<Arc<dyn driver::Producer>>>,
}

impl DeadLetters {
    pub(crate) fn new(mq: Arc<MqInner>, config: &EngineConfig) -> Self {
        Self {
            mq,
            target: config.dead_letter.clone(),
            create: config.create_dead_letter,
            topic: config.topic.clone(),
            group: config.group.clone(),
            producer: Mutex::new(None),
        }
    }

    /// Writes one message into the partition of the same number, trying until that works; the offset stays un-acked until then.
    pub(crate) async fn bury(
        &self,
        item: &Item,
        reason: &'static str,
        attempts: u32,
        failed: impl Fn(Error) + Send,
    ) {
        const MOST: Duration = Duration::from_secs(5);
        let message = self.letter(item, reason, attempts);
        let mut pause = Duration::from_millis(50);
        loop {
            let error: Error = match self
                .write(message.clone(), item.source.assignment.partition)
                .await
            {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::warn!(
                partition = item.source.assignment.partition, offset = item.record().offset, %error,
                "dead letter not written yet"
            );
            failed(error);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST);
        }
    }

    async fn write(&self, message: Message, origin: u32) -> Result<()> {
        let producer = self.producer().await?;
        let partitions = (*producer.partitions().borrow()).max(1);
        let limit = self.mq.options.request_timeout;
        let (batch, mut waiting) = SendBatch::new(
            origin % partitions,
            vec![message],
            std::time::Instant::now() + limit,
        );
        producer.send(batch);
        match waiting.pop() {
            Some(stored) => deadline("dead letter", limit, stored).await.map(|_| ()),
            None => Ok(()),
        }
    }

    async fn producer(&self) -> Result<Arc<dyn driver::Producer>> {
        let mut slot = self.producer.lock().await;
        if let Some(producer) = slot.as_ref() {
            return Ok(Arc::clone(producer));
        }
        let target = self
            .target
            .clone()
            .ok_or_else(|| Error::closed("dead-letter producer"))?;
        let limit = self.mq.options.request_timeout;
        let driver = &self.mq.driver;
        if self.create {
            let spec = TopicSpec::new(target.as_str(), 1)?;
            match deadline("create_topic", limit, driver.create_topic(spec)).await {
                // Others may have made it with more partitions.
                Err(error) if error.kind() == ErrorKind::TopicExists => {}
                other => other?,
            }
        }
        let producer = deadline("producer", limit, driver.producer(ProducerRequest::new(target))).await?;
        *slot = Some(Arc::clone(&producer));
        Ok(producer)
    }

    /// Makes the dead letter of a message: the message as it was, with where it came from.
    fn letter(&self, item: &Item, reason: &'static str, attempts: u32) -> Message {
        let record = item.record();
        let mut message = record.message.clone();
        message.clear_due();
        let headers = message.headers_mut();
        headers.set("mq-origin-topic", self.topic.as_str().to_owned());
        headers.set("mq-origin-group", self.group.as_str().to_owned());
        headers.set(
            "mq-origin-partition",
            item.source.assignment.partition.to_string(),
        );
        headers.set("mq-origin-offset", record.offset.to_string());
        headers.set("mq-origin-timestamp", record.stored_at.as_millis().to_string());
        headers.set("mq-attempts", attempts.to_string());
        headers.set("mq-reason", reason);
        message
    }

    pub(crate) async fn close(&self) {
        if let Some(producer) = self.producer.lock().await.take()
            && let Err(error) = deadline("close", self.mq.options.close_timeout, producer.close()).await
        {
            tracing::warn!(%error, "closing the dead-letter producer failed");
        }
    }
}
