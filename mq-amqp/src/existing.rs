//! Topics that stand for what others made: an exchange to send to, a queue to receive from.

use std::fmt;

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use mq_api::{Error, ErrorKind, Result, TopicName, driver::topic_not_found};
use tokio::sync::watch;

use crate::link::Link;

/// The longest name or routing key of the protocol, in bytes.
const MAX_SHORT: usize = 255;

/// Names what others made on the server, for a topic of ours to stand for.
///
/// Nothing is declared, bound or deleted: it has to be there.
///
/// ```
/// use mq_amqp::{AmqpConfig, ExistingTopic};
///
/// let invoices = ExistingTopic::new()
///     .with_exchange("billing", "invoice.created")
///     .with_queue("invoices");
/// let config = AmqpConfig::new("127.0.0.1", 5672).with_existing("invoices", invoices);
/// assert_eq!(config.existing.len(), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExistingTopic {
    /// The exchange and the routing key that producers send with. The exchange with the empty name is the server's own,
    /// which takes the name of a queue as the key. Default: none, and producers are refused.
    pub exchange: Option<(String, String)>,
    /// The classic or quorum queue that consumers in shared mode receive from. Default: none, and they are refused.
    pub queue: Option<String>,
}

impl ExistingTopic {
    /// Names nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the exchange and the routing key that producers send with.
    #[must_use]
    pub fn with_exchange(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.exchange = Some((exchange.into(), routing_key.into()));
        self
    }

    /// Sets the queue that shared consumers receive from.
    #[must_use]
    pub fn with_queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Checks what can be checked without a server.
    pub(crate) fn validate(&self, topic: &str) -> Result<()> {
        let rule = |what: String| Err(Error::new(ErrorKind::InvalidConfig, what));
        TopicName::existing(topic)?;
        if self.exchange.is_none() && self.queue.is_none() {
            return rule(format!("existing topic {topic:?} names no exchange and no queue"));
        }
        let (exchange, key) = self.exchange.clone().unwrap_or_default();
        let queue = self.queue.clone();
        if queue.as_ref().is_some_and(String::is_empty) {
            return rule(format!(
                "existing topic {topic:?}: the name of its queue is empty"
            ));
        }
        for (what, name) in [
            ("exchange", exchange),
            ("routing key", key),
            ("queue", queue.unwrap_or_default()),
        ] {
            if name.len() > MAX_SHORT {
                return rule(format!(
                    "existing topic {topic:?}: its {what} has {} bytes, the protocol takes {MAX_SHORT}",
                    name.len()
                ));
            }
        }
        Ok(())
    }
}

/// An existing topic in use.
pub(crate) struct Existing {
    pub(crate) name: TopicName,
    pub(crate) what: ExistingTopic,
    /// Always one: the server alone knows where a message goes.
    partitions: watch::Sender<u32>,
}

impl Existing {
    pub(crate) fn new(name: &TopicName, what: &ExistingTopic) -> Self {
        Self {
            name: name.clone(),
            what: what.clone(),
            partitions: watch::Sender::new(1),
        }
    }

    pub(crate) fn count(&self) -> watch::Receiver<u32> {
        self.partitions.subscribe()
    }

    /// Returns the exchange and the key to send with.
    pub(crate) fn route(&self) -> Result<(&str, &str)> {
        match &self.what.exchange {
            Some((exchange, key)) => Ok((exchange, key)),
            None => Err(self.refusal("producing to a queue without an exchange")),
        }
    }

    /// Returns the queue to receive from.
    pub(crate) fn queue(&self) -> Result<&str> {
        match &self.what.queue {
            Some(queue) => Ok(queue),
            None => Err(self.refusal("receiving from an exchange without a queue")),
        }
    }

    /// Makes the error of what only topics of our own can do.
    pub(crate) fn refusal(&self, what: &str) -> Error {
        Error::unsupported(
            "amqp",
            &format!("{what} (topic {:?} stands for what others made)", self.name),
        )
    }

    /// Asks the server whether what producers send to is there.
    pub(crate) async fn check_route(&self, link: &Link) -> Result<()> {
        let (exchange, key) = self.route()?;
        if exchange.is_empty() {
            // The server's own exchange cannot be asked for.
            return self.check(link, key, true).await;
        }
        self.check(link, exchange, false).await
    }

    /// Asks the server whether the queue is there.
    pub(crate) async fn check_queue(&self, link: &Link) -> Result<()> {
        self.check(link, self.queue()?, true).await
    }

    async fn check(&self, link: &Link, name: &str, is_queue: bool) -> Result<()> {
        let checked = link
            .with_channel(|chan| async move {
                if is_queue {
                    let look = QueueDeclareOptions::durable().passive();
                    chan.declare(name, look, FieldTable::default()).await?;
                } else {
                    chan.look_for_exchange(name).await?;
                }
                chan.close().await;
                Ok(())
            })
            .await;
        checked.map_err(|error| match error.kind() {
            ErrorKind::TopicNotFound => topic_not_found(&self.name).with_source(error),
            _ => error,
        })
    }
}

impl fmt::Debug for Existing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Existing")
            .field("name", &self.name)
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_nothing_or_too_much_is_refused_with_its_rule() {
        for (what, words) in [
            (ExistingTopic::new(), "no exchange and no queue"),
            (ExistingTopic::new().with_queue(""), "queue is empty"),
            (
                ExistingTopic::new().with_queue("q".repeat(256)),
                "queue has 256 bytes",
            ),
            (
                ExistingTopic::new().with_exchange("e", "k".repeat(300)),
                "routing key has 300 bytes",
            ),
        ] {
            let error = what.validate("invoices").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.context().contains(words), "{error}");
        }
        let to_queue = ExistingTopic::new().with_exchange("", "invoices");
        assert!(to_queue.validate("invoices").is_ok());
        assert_eq!(to_queue.validate("").unwrap_err().kind(), ErrorKind::InvalidTopic);
    }
}
