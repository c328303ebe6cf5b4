//! Transactions: messages that are delivered when a local transaction commits. An extension of this backend.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use mq_api::{Error, ErrorKind, Message, MessageLimits, Result, Timestamp};
use tokio::{sync::mpsc, task::AbortHandle, time::Instant};

use crate::{
    admin::no_partition,
    client::{Decision, HalfMessage, Session, TransactionCheck},
    error::from_remoting,
    flight::single_properties,
    format::{self, BodyForm},
    packing::Packed,
    remoting::SendMessage,
    topic::{Shared, Topic},
};

/// Decisions that are remembered for brokers that ask.
const REMEMBERED: usize = 65_536;
/// Checks that are answered at once.
const MOST_CHECKS: usize = 64;
/// How long after a broker took a decision its questions are left open: it may ask before it has noted it, and an
/// answer would deliver the message again.
const GRACE: Duration = Duration::from_secs(30);

type Check = dyn Fn(Message) -> Pin<Box<dyn Future<Output = Decision> + Send>> + Send + Sync;

/// Sends messages that are delivered only once their transaction commits.
///
/// A broker that hears nothing asks the members of the producer group; what was decided here is said again, anything
/// else is put to the check that the producer was opened with.
pub struct TransactionProducer {
    inner: Arc<Inner>,
    task: AbortHandle,
}

struct Inner {
    shared: Arc<Shared>,
    session: Session,
    topic: Topic,
    group: String,
    check: Box<Check>,
    decided: Mutex<Decided>,
}

#[derive(Default)]
struct Decided {
    by_key: HashMap<String, Verdict>,
    order: VecDeque<String>,
    /// Transactions that this process is about to decide, one for each value that is held.
    open: HashSet<String>,
}

#[derive(Clone, Copy)]
struct Verdict {
    decision: Decision,
    /// When the broker said that it has it.
    taken: Option<Instant>,
}

impl Decided {
    /// Notes a decision; the first one stands and is returned.
    fn note(&mut self, key: &str, decision: Decision) -> Decision {
        if let Some(verdict) = self.by_key.get(key) {
            return verdict.decision;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
        self.order.push_back(key.to_owned());
        let verdict = Verdict {
            decision,
            taken: None,
        };
        self.by_key.insert(key.to_owned(), verdict);
        decision
    }
}

impl TransactionProducer {
    pub(crate) async fn open<F, A>(
        shared: &Arc<Shared>,
        topic: &mq_api::TopicName,
        group: &mq_api::GroupName,
        check: F,
    ) -> Result<Self>
    where
        F: Fn(Message) -> A + Send + Sync + 'static,
        A: Future<Output = Decision> + Send + 'static,
    {
        let (topic, _) = shared.open(topic).await?;
        let group = shared.group(&topic, group)?;
        let session = Session::new(&shared.cluster);
        let checks = session.join_producers(&group);
        let inner = Arc::new(Inner {
            shared: Arc::clone(shared),
            session,
            topic,
            group,
            check: Box::new(move |message| Box::pin(check(message))),
            decided: Mutex::default(),
        });
        let task = tokio::spawn(answer(Arc::clone(&inner), checks)).abort_handle();
        Ok(Self { inner, task })
    }

    /// Stores a message that nobody sees until its transaction commits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPartition`], [`ErrorKind::InvalidMessage`] for a delayed or malformed message,
    /// [`ErrorKind::MessageTooLarge`], and those of a produce.
    ///
    /// # Cancel safety
    /// The message may be stored; the broker then asks what became of it.
    pub async fn begin(&self, partition: u32, message: impl Into<Message>) -> Result<Transaction> {
        let message = message.into();
        message.validate(&MessageLimits::default())?;
        if message.due().is_some() {
            return Err(Error::new(
                ErrorKind::InvalidMessage,
                "a message of a transaction cannot be delayed",
            ));
        }
        let inner = &self.inner;
        let route = inner.shared.route(&inner.topic).await?;
        let queue = route
            .layout
            .queue(partition)
            .ok_or_else(|| no_partition(&inner.topic, partition, route.layout.len()))?;
        let key = inner.session.unique_keys().next();
        let before = [("TRAN_MSG", "true"), ("PGROUP", inner.group.as_str())];
        let tag = inner.shared.config.tag_header.as_deref();
        let properties = single_properties(&message, key.as_str(), tag, &before)
            .map_err(|error| Error::new(ErrorKind::MessageTooLarge, error.to_string()))?;
        let packed = Packed::new(std::slice::from_ref(&message), &inner.shared.config).await;
        let body = packed
            .body(0)
            .unwrap_or_else(|| format::body(&message, BodyForm::Single));
        let request = SendMessage {
            group: &inner.group,
            topic: &inner.topic.physical,
            default_topic: "TBW102",
            default_queues: 4,
            queue: queue.queue,
            sys_flag: packed.sys_flag(),
            born: Timestamp::now().as_millis(),
            properties: Some(&properties),
            reconsume_times: Some(0),
            unit_mode: Some(false),
            broker: Some(&queue.broker),
            ..SendMessage::default()
        };
        // Before the broker knows of it, since it may ask at once.
        let open = Open::new(inner, key.as_str());
        let half = inner
            .session
            .send_half(
                &queue.broker,
                &request,
                key.as_str(),
                body,
                inner.shared.deadline(),
            )
            .await
            .map_err(from_remoting)?;
        Ok(Transaction { open, half })
    }

    /// Ends the answering of brokers and the connections. Idempotent.
    ///
    /// # Cancel safety
    /// What was not closed ends when the producer is dropped.
    pub async fn close(&self) {
        self.task.abort();
        self.inner.session.close(self.inner.shared.deadline()).await;
    }
}

impl Drop for TransactionProducer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A message that waits for its transaction. While this value lives, questions of the broker are left open; when it
/// is dropped undecided, they are put to the producer's check.
#[must_use = "a transaction is decided by `commit` or `rollback`"]
pub struct Transaction {
    open: Open,
    half: HalfMessage,
}

/// Keeps a transaction open.
struct Open {
    inner: Arc<Inner>,
    key: String,
}

impl Open {
    fn new(inner: &Arc<Inner>, key: &str) -> Self {
        inner.lock().open.insert(key.to_owned());
        Self {
            inner: Arc::clone(inner),
            key: key.to_owned(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.inner.lock().open.remove(&self.key);
    }
}

impl Transaction {
    /// Returns the id under which RocketMQ's tools show it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.half.unique_key
    }

    /// Has the message delivered.
    ///
    /// # Errors
    /// What server and connection say. The decision stands: the broker asks, and is told again.
    ///
    /// # Cancel safety
    /// The decision stands.
    pub async fn commit(self) -> Result<()> {
        self.end(Decision::Commit).await
    }

    /// Has the message dropped.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    ///
    /// # Cancel safety
    /// The decision stands.
    pub async fn rollback(self) -> Result<()> {
        self.end(Decision::Rollback).await
    }

    async fn end(self, decision: Decision) -> Result<()> {
        let inner = &self.open.inner;
        let first = inner.lock().note(&self.half.unique_key, decision);
        if first != decision {
            return Err(Error::new(
                ErrorKind::Interrupted,
                "the broker was told another decision by the check",
            )
            .with_retryable(false));
        }
        inner.tell(&self.half, decision, false).await
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Decided> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, half: &HalfMessage, decision: Decision, from_check: bool) -> Result<()> {
        self.session
            .end_transaction(
                &self.group,
                &self.topic.physical,
                half,
                decision,
                from_check,
                self.shared.deadline(),
            )
            .await
            .map_err(from_remoting)?;
        if let Some(verdict) = self.lock().by_key.get_mut(&half.unique_key) {
            verdict.taken = Some(Instant::now());
        }
        Ok(())
    }

    /// Says what became of a half message.
    async fn answer(&self, check: TransactionCheck) -> Result<()> {
        let message = &check.message;
        let key = message.property("UNIQ_KEY").unwrap_or_default().to_owned();
        let (verdict, open) = {
            let decided = self.lock();
            (decided.by_key.get(&key).copied(), decided.open.contains(&key))
        };
        let decision = match verdict {
            None if open => return Ok(()),
            Some(Verdict {
                taken: Some(taken), ..
            }) if taken.elapsed() < GRACE => return Ok(()),
            Some(verdict) => verdict.decision,
            None => {
                let config = &self.shared.config;
                let record = format::decode(message, config.tag_header.as_deref(), config.max_payload)
                    .map_err(from_remoting)?;
                let asked = (self.check)(record.message);
                match tokio::time::timeout(config.call_timeout, asked).await {
                    Ok(Decision::Unknown) | Err(_) => Decision::Unknown,
                    Ok(decision) => self.lock().note(&key, decision),
                }
            }
        };
        let broker = match check.broker {
            Some(broker) => broker,
            None => self.broker_at(&check.address).unwrap_or_default(),
        };
        let half = HalfMessage {
            broker,
            state_offset: check.state_offset,
            physical_offset: check.physical_offset,
            unique_key: key,
            transaction_id: check.transaction_id,
        };
        self.tell(&half, decision, true).await
    }

    /// Finds the broker of an address, for servers that do not name themselves.
    fn broker_at(&self, address: &str) -> Option<String> {
        let route = self.shared.cluster.watch(&self.topic.physical).borrow().clone()?;
        let is_at = |broker: &Arc<str>| {
            let addresses = self.shared.cluster.addresses(broker);
            addresses.values().any(|known| **known == *address)
        };
        let found = route.layout.brokers().into_iter().find(is_at);
        found.map(|broker| broker.to_string())
    }
}

async fn answer(inner: Arc<Inner>, mut checks: mpsc::Receiver<TransactionCheck>) {
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(outcome) = answers.next(), if !answers.is_empty() => {
                let outcome: Result<()> = outcome;
                if let Err(error) = outcome {
                    tracing::warn!(%error, "a transaction check was not answered; the broker asks again");
                }
            }
            check = checks.recv(), if answers.len() < MOST_CHECKS => match check {
                Some(check) => answers.push(inner.answer(check)),
                None => return,
            },
        }
    }
}

impl fmt::Debug for TransactionProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionProducer")
            .field("topic", &self.inner.topic.name)
            .field("group", &self.inner.group)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("id", &self.half.unique_key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_decision_stands_and_old_ones_are_forgotten() {
        let mut decided = Decided::default();
        assert_eq!(decided.note("a", Decision::Commit), Decision::Commit);
        assert_eq!(decided.note("a", Decision::Rollback), Decision::Commit);
        for number in 0..REMEMBERED {
            decided.note(&number.to_string(), Decision::Commit);
        }
        assert_eq!(decided.by_key.len(), REMEMBERED);
        assert!(!decided.by_key.contains_key("a"));
    }
}
