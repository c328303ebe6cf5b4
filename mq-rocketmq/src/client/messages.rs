//! Sending and pulling.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::layout::QueueRef;
use super::session::{Session, no_master};
use crate::remoting::codes::{pull_flag, response, sys_flag};
use crate::remoting::{
    Command, EncodeBody, EndTransaction, PullMessage, RemotingError, SendBack, SendMessage, StoredMessages,
};

/// A broker answers a long poll up to five seconds late, since it looks that often; the rest is for the way.
const POLL_OVERRUN: Duration = Duration::from_secs(8);

/// What a broker says of a message that it stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendReceipt {
    /// The queue that it is in.
    pub queue: i32,
    /// The offset of the first message; of a delayed message or a half message it belongs to another queue.
    pub offset: i64,
    /// Address and physical offset in hexadecimal, one per message, between commas.
    pub message_id: String,
    /// The transaction id, by default the unique key.
    pub transaction_id: Option<String>,
}

/// A half message that is stored and waits for a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HalfMessage {
    /// The broker that holds it.
    pub broker: String,
    /// Its queue offset.
    pub state_offset: i64,
    /// Its physical offset.
    pub physical_offset: i64,
    /// The unique key.
    pub unique_key: String,
    /// The transaction id.
    pub transaction_id: Option<String>,
}

/// The outcome of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// The message is delivered.
    Commit,
    /// The message is dropped.
    Rollback,
    /// Not known yet; the broker asks later.
    Unknown,
}

/// What to pull, and how long to wait for it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PullOptions<'a> {
    /// The most messages; brokers cap it, at 32 by default.
    pub max_messages: usize,
    /// How long the broker may wait for a message; zero answers at once.
    pub wait: Duration,
    /// The tag expression.
    pub expression: &'a str,
    /// `TAG` or `SQL92`.
    pub expression_type: &'a str,
    /// The version of the subscription.
    pub version: i64,
}

impl Default for PullOptions<'_> {
    fn default() -> Self {
        Self {
            max_messages: 32,
            wait: Duration::ZERO,
            expression: "*",
            expression_type: "TAG",
            version: 0,
        }
    }
}

/// What a pull found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullStatus {
    /// Messages.
    Found,
    /// Nothing at this offset, or nothing that matches.
    Nothing,
    /// The offset is outside of what the queue holds.
    OffsetMoved,
}

/// The answer to a pull.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pulled {
    /// What was found.
    pub status: PullStatus,
    /// The offset to go on at.
    pub next_offset: i64,
    /// The oldest offset of the queue.
    pub min_offset: i64,
    /// The next offset of the queue.
    pub max_offset: i64,
    /// The messages as stored; empty unless [`PullStatus::Found`].
    pub body: Bytes,
}

impl Pulled {
    /// Decodes the messages; they are slices of the answer.
    pub fn messages(&self) -> StoredMessages {
        StoredMessages::new(self.body.clone())
    }
}

impl Session {
    /// Stores one message, or a batch of one queue, which gets consecutive offsets.
    ///
    /// Two requests under way for one queue may be stored in either order.
    ///
    /// # Errors
    ///
    /// What server and connection say; the error's [`effect`](RemotingError::effect) tells whether it can be stored.
    ///
    /// # Cancel safety
    ///
    /// It may be stored.
    pub async fn send<B: EncodeBody + ?Sized>(
        &self,
        broker: &str,
        request: &SendMessage<'_>,
        body: &B,
        deadline: Instant,
    ) -> Result<SendReceipt, RemotingError> {
        let answer = self.ask(broker, request, body, deadline).await?;
        Ok(SendReceipt {
            queue: answer.field("queueId")?,
            offset: answer.field("queueOffset")?,
            message_id: answer.field::<&str>("msgId")?.to_owned(),
            transaction_id: answer.field::<Option<&str>>("transactionId")?.map(str::to_owned),
        })
    }

    /// Queues a message without waiting for an answer; it may be lost.
    ///
    /// # Errors
    ///
    /// What happens before it is queued.
    ///
    /// # Cancel safety
    ///
    /// It is not sent.
    pub async fn send_oneway<B: EncodeBody + ?Sized>(
        &self,
        broker: &str,
        request: &SendMessage<'_>,
        body: &B,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let address = self.cluster().master(broker).ok_or_else(|| no_master(broker))?;
        let connection = self.connect(&address, deadline).await?;
        connection.send_oneway(request, body, deadline).await
    }

    /// Stores the first half of a transaction; `request` must carry the properties `TRAN_MSG`, `PGROUP` and
    /// `UNIQ_KEY`, and its producer group must be joined to be asked for the outcome.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// It may be stored; the broker then asks for the outcome.
    pub async fn send_half<B: EncodeBody + ?Sized>(
        &self,
        broker: &str,
        request: &SendMessage<'_>,
        unique_key: &str,
        body: &B,
        deadline: Instant,
    ) -> Result<HalfMessage, RemotingError> {
        let request = SendMessage {
            sys_flag: request.sys_flag | sys_flag::TRANSACTION_PREPARED,
            ..*request
        };
        let receipt = self.send(broker, &request, body, deadline).await?;
        // The id ends with the physical offset in 16 hexadecimal digits.
        let digits = receipt
            .message_id
            .len()
            .checked_sub(16)
            .and_then(|at| receipt.message_id.get(at..));
        let physical_offset = digits.and_then(|digits| i64::from_str_radix(digits, 16).ok());
        Ok(HalfMessage {
            broker: broker.to_owned(),
            state_offset: receipt.offset,
            physical_offset: physical_offset.ok_or_else(|| {
                RemotingError::malformed("send answer", "its id does not end with an offset")
            })?,
            unique_key: unique_key.to_owned(),
            transaction_id: receipt.transaction_id,
        })
    }

    /// Tells the outcome of a transaction. It must be told once: a commit told twice delivers twice, and a commit
    /// delivers even after a rollback.
    ///
    /// # Errors
    ///
    /// What server and connection say; after an unknown effect the broker asks again.
    ///
    /// # Cancel safety
    ///
    /// It may have been told.
    pub async fn end_transaction(
        &self,
        group: &str,
        topic: &str,
        half: &HalfMessage,
        decision: Decision,
        from_check: bool,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let request = EndTransaction {
            topic: Some(topic),
            producer_group: group,
            state_offset: half.state_offset,
            physical_offset: half.physical_offset,
            decision: match decision {
                Decision::Commit => sys_flag::TRANSACTION_COMMIT,
                Decision::Rollback => sys_flag::TRANSACTION_ROLLBACK,
                Decision::Unknown => 0,
            },
            from_check: Some(from_check),
            message_id: &half.unique_key,
            transaction_id: half.transaction_id.as_deref(),
            broker: Some(&half.broker),
        };
        // A broker leaves "unknown" without an answer.
        if decision == Decision::Unknown {
            let address = self
                .cluster()
                .master(&half.broker)
                .ok_or_else(|| no_master(&half.broker))?;
            let connection = self.connect(&address, deadline).await?;
            return connection.send_oneway(&request, &(), deadline).await;
        }
        self.ask(&half.broker, &request, &(), deadline).await.map(drop)
    }

    /// Gives a message back to its broker for a later delivery to the group's retry topic.
    ///
    /// # Errors
    ///
    /// What server and connection say.
    ///
    /// # Cancel safety
    ///
    /// It may have been given back.
    pub async fn send_back(
        &self,
        broker: &str,
        request: &SendBack<'_>,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        self.ask(broker, request, &(), deadline).await.map(drop)
    }

    /// Reads messages of one queue from an offset on; a replica is asked where the master cannot be reached.
    ///
    /// The call may take the wait and eight seconds more, since brokers overrun waits by up to five.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Refused`] with [`TOPIC_NOT_EXIST`](response::TOPIC_NOT_EXIST) for a topic that is gone, or
    /// what server and connection say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn pull(
        &self,
        group: &str,
        topic: &str,
        queue: &QueueRef,
        offset: i64,
        options: &PullOptions<'_>,
        deadline: Instant,
    ) -> Result<Pulled, RemotingError> {
        let suspend = if options.wait.is_zero() {
            0
        } else {
            pull_flag::SUSPEND
        };
        let request = PullMessage {
            group,
            topic,
            queue: queue.queue,
            offset,
            max_messages: i32::try_from(options.max_messages).unwrap_or(i32::MAX),
            sys_flag: pull_flag::SUBSCRIPTION | suspend,
            commit_offset: 0,
            suspend_ms: i64::try_from(options.wait.as_millis()).unwrap_or(i64::MAX),
            subscription: Some(options.expression),
            sub_version: options.version,
            expression_type: Some(options.expression_type),
            max_bytes: None,
            broker: Some(&*queue.broker),
        };
        let deadline = if options.wait.is_zero() {
            deadline
        } else {
            deadline + options.wait + POLL_OVERRUN
        };
        let (connection, answer) = self.call_any(&queue.broker, &request, &(), deadline).await?;
        pulled(answer).map_err(|answer| connection.refused(request_code(&request), &answer))?
    }
}

fn request_code(request: &PullMessage<'_>) -> i32 {
    crate::remoting::Request::code(request)
}

/// Reads an answer to a pull, or gives it back if it is a refusal.
fn pulled(answer: Command) -> Result<Result<Pulled, RemotingError>, Box<Command>> {
    let status = match answer.code() {
        response::SUCCESS => PullStatus::Found,
        response::PULL_NOT_FOUND | response::PULL_RETRY_IMMEDIATELY => PullStatus::Nothing,
        response::PULL_OFFSET_MOVED => PullStatus::OffsetMoved,
        _ => return Err(Box::new(answer)),
    };
    let read = || {
        Ok(Pulled {
            status,
            next_offset: answer.field("nextBeginOffset")?,
            min_offset: answer.field("minOffset")?,
            max_offset: answer.field("maxOffset")?,
            body: if status == PullStatus::Found {
                answer.body.clone()
            } else {
                Bytes::new()
            },
        })
    };
    Ok(read())
}
