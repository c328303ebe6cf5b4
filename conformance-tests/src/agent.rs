//! What a member does: it takes commands and reports what it sees. It runs in a process or a runtime of its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mq_api::{
    Backoff, Consumer, DeadLetter, Delivery, Error, Message, Mode, Mq, Offset, Ordering, Producer, Start,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::harness::Harness;

/// Asks a member to do something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Opens the member's one consumer. Answered by `Done`.
    Consume(ConsumerSpec),
    /// Takes so many messages, reporting and settling each. Answered by `Done` behind the last.
    Take { n: usize, settle: Settle },
    /// Goes on taking, reporting and settling until `Stop`. Answered by `Done` at once.
    Run { settle: Settle },
    /// Ends `Run`. Answered by `Done`.
    Stop,
    /// Settles one message that was kept. Answered by `Done`.
    Settle {
        partition: u32,
        offset: Offset,
        settle: Settle,
    },
    /// Kills the whole process at the hand-over of this payload, before it is reported.
    DieOn { payload: String },
    /// Waits until what is acked is stored. Answered by `Done`.
    Commit,
    /// Closes the consumer. Answered by `Done`.
    Close,
    /// Tells which partitions the member owns. Answered by `Assignment`.
    Assignment,
    /// Produces messages one after the other. Answered by `Sent`.
    Produce { topic: String, messages: Vec<ToSend> },
}

/// Tells what a member saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A message was handed over.
    Seen(Seen),
    /// The last command is done, or failed with this error.
    Done(Option<SeenError>),
    /// The partitions that the member owns, with their epochs.
    Assignment(Vec<(u32, u64)>),
    /// One result a message: partition and offset.
    Sent(Vec<Result<(u32, Option<Offset>), SeenError>>),
    /// `Run` met an error; it goes on if the error is retryable.
    Trouble(SeenError),
}

/// Copies what a delivery shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) payload: String,
    pub(crate) key: Option<String>,
    pub(crate) partition: u32,
    pub(crate) offset: Offset,
    pub(crate) attempt: u32,
    pub(crate) epoch: u64,
    /// The engine's stamp, on the clock that all processes of the machine share.
    pub(crate) handed_over_at: u64,
}

/// Copies what an error shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenError {
    /// The kind, as `Debug` writes it.
    pub(crate) kind: String,
    pub(crate) text: String,
    pub(crate) retryable: bool,
}

/// Says what a member does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Settle {
    Ack,
    Nack,
    Reject,
    Drop,
    /// Holds it un-settled until it is told what to do.
    Keep,
    /// Acks those at even places in what it was handed, keeps the others.
    AckEven,
}

/// Holds one message for a member to produce.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ToSend {
    pub(crate) payload: String,
    pub(crate) key: Option<String>,
    pub(crate) partition: Option<u32>,
    pub(crate) delay: Option<Duration>,
}

/// Holds the options of a member's consumer that cases use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConsumerSpec {
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) mode: ModeSpec,
    pub(crate) start: StartSpec,
    pub(crate) key_order: bool,
    pub(crate) max_attempts: Option<u32>,
    /// A dead-letter topic; an empty name asks for the group's own.
    pub(crate) dead_letter: Option<String>,
    pub(crate) session_timeout: Option<Duration>,
    pub(crate) commit_interval: Option<Duration>,
    pub(crate) backoff: Option<Duration>,
    pub(crate) prefetch: Option<usize>,
    pub(crate) max_unacked: Option<usize>,
    pub(crate) auto_ack: bool,
}

/// Names a [`Mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ModeSpec {
    Partitioned,
    Shared,
    Broadcast,
}

/// Names a [`Start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StartSpec {
    Earliest,
    Latest,
    Offset(Offset),
    Time(i64),
}

impl ConsumerSpec {
    /// Asks for a partitioned consumer from the earliest message on, with the default options.
    pub(crate) fn new(topic: &str, group: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            group: group.to_owned(),
            mode: ModeSpec::Partitioned,
            start: StartSpec::Earliest,
            key_order: false,
            max_attempts: None,
            dead_letter: None,
            session_timeout: None,
            commit_interval: None,
            backoff: None,
            prefetch: None,
            max_unacked: None,
            auto_ack: false,
        }
    }

    async fn open(&self, mq: &Mq) -> mq_api::Result<Consumer> {
        let mut builder = mq
            .consumer(&self.topic, &self.group)
            .mode(match self.mode {
                ModeSpec::Partitioned => Mode::Partitioned,
                ModeSpec::Shared => Mode::Shared,
                ModeSpec::Broadcast => Mode::Broadcast,
            })
            .start_at(match self.start {
                StartSpec::Earliest => Start::Earliest,
                StartSpec::Latest => Start::Latest,
                StartSpec::Offset(offset) => Start::Offset(offset),
                StartSpec::Time(millis) => Start::Time(Timestamp::from_millis(millis)),
            });
        if self.key_order {
            builder = builder.ordering(Ordering::Key);
        }
        if let Some(most) = self.max_attempts {
            builder = builder.max_attempts(most);
        }
        if let Some(topic) = &self.dead_letter {
            builder = builder.dead_letter(if topic.is_empty() {
                DeadLetter::default()
            } else {
                DeadLetter::topic(topic)
            });
        }
        if let Some(timeout) = self.session_timeout {
            builder = builder.session_timeout(timeout);
        }
        if let Some(interval) = self.commit_interval {
            builder = builder.commit_interval(interval);
        }
        if let Some(backoff) = self.backoff {
            builder = builder.backoff(if backoff.is_zero() {
                Backoff::NONE
            } else {
                Backoff::fixed(backoff)
            });
        }
        if let Some(prefetch) = self.prefetch {
            builder = builder.prefetch(prefetch);
        }
        if let Some(most) = self.max_unacked {
            builder = builder.max_unacked(most);
        }
        if self.auto_ack {
            builder = builder.auto_ack();
        }
        builder.await
    }
}

impl From<&Error> for SeenError {
    fn from(error: &Error) -> Self {
        Self {
            kind: format!("{:?}", error.kind()),
            text: error.to_string(),
            retryable: error.is_retryable(),
        }
    }
}

/// What a member has open.
struct Agent {
    mq: Mq,
    reports: mpsc::UnboundedSender<Report>,
    consumer: Option<Consumer>,
    producers: HashMap<String, Producer>,
    kept: HashMap<(u32, Offset), Delivery>,
    handed_over: usize,
    running: Option<Settle>,
    die_on: Option<String>,
    death: Death,
    dead: bool,
}

/// Says how a member dies by a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Its process aborts.
    Abort,
    /// Its runtime ends with everything in it.
    EndRuntime,
}

/// Serves commands until there are no more, then closes the client.
pub(crate) async fn serve(
    harness: Arc<dyn Harness>,
    url: String,
    mut commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::UnboundedSender<Report>,
    death: Death,
) {
    let mq = match harness.connect(&url).await {
        Ok(mq) => mq,
        Err(error) => {
            let _ = reports.send(Report::Done(Some((&error).into())));
            return;
        }
    };
    let _ = reports.send(Report::Done(None));
    let mut agent = Agent {
        mq: mq.clone(),
        reports,
        consumer: None,
        producers: HashMap::new(),
        kept: HashMap::new(),
        handed_over: 0,
        running: None,
        die_on: None,
        death,
        dead: false,
    };
    while !agent.dead {
        let running = agent.running.zip(agent.consumer.clone());
        let command = match running {
            None => commands.recv().await,
            Some((settle, consumer)) => tokio::select! {
                biased;
                command = commands.recv() => command,
                delivery = consumer.consume() => {
                    agent.ran(delivery, settle).await;
                    continue;
                }
            },
        };
        match command {
            Some(command) => agent.obey(command).await,
            None => break,
        }
    }
    if !agent.dead {
        let _ = mq.close().await;
    }
}

impl Agent {
    async fn ran(&mut self, delivery: mq_api::Result<Delivery>, settle: Settle) {
        match delivery.map(|delivery| self.hand_over(delivery, settle)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.report(Report::Trouble((&error).into())),
            Err(error) => {
                self.report(Report::Trouble((&error).into()));
                if !error.is_retryable() {
                    self.running = None;
                }
            }
        }
        // A member that is never at rest must still read its commands in time.
        tokio::task::yield_now().await;
    }

    async fn obey(&mut self, command: Command) {
        let done = match command {
            Command::Consume(spec) => match spec.open(&self.mq).await {
                Ok(consumer) => {
                    self.consumer = Some(consumer);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Command::Take { n, settle } => self.take(n, settle).await,
            Command::Run { settle } => {
                self.running = Some(settle);
                Ok(())
            }
            Command::Stop => {
                self.running = None;
                Ok(())
            }
            Command::Settle {
                partition,
                offset,
                settle,
            } => match self.kept.remove(&(partition, offset)) {
                Some(delivery) => self.settle(delivery, settle),
                None => Err(Error::new(
                    mq_api::ErrorKind::Other,
                    format!("the member holds no message {partition}/{offset}"),
                )),
            },
            Command::DieOn { payload } => {
                self.die_on = Some(payload);
                Ok(())
            }
            Command::Commit => match &self.consumer {
                Some(consumer) => consumer.commit().await,
                None => Ok(()),
            },
            Command::Close => match self.consumer.take() {
                Some(consumer) => {
                    self.running = None;
                    let closed = consumer.close().await;
                    self.kept.clear();
                    closed
                }
                None => Ok(()),
            },
            Command::Assignment => {
                let owned = self.consumer.iter().flat_map(Consumer::assignment);
                let owned = owned
                    .map(|assigned| (assigned.partition, assigned.epoch))
                    .collect();
                return self.report(Report::Assignment(owned));
            }
            Command::Produce { topic, messages } => match self.produce(&topic, messages).await {
                Ok(sent) => return self.report(Report::Sent(sent)),
                Err(error) => Err(error),
            },
        };
        if !self.dead {
            self.report(Report::Done(done.err().as_ref().map(SeenError::from)));
        }
    }

    async fn take(&mut self, n: usize, settle: Settle) -> mq_api::Result<()> {
        let Some(consumer) = self.consumer.clone() else {
            return Err(Error::closed("member's consumer"));
        };
        for _ in 0..n {
            let delivery = consumer.consume().await?;
            self.hand_over(delivery, settle)?;
            if self.dead {
                break;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, delivery: Delivery, settle: Settle) -> mq_api::Result<()> {
        let payload = String::from_utf8_lossy(delivery.payload()).into_owned();
        if self.die_on.as_ref() == Some(&payload) {
            if self.death == Death::Abort {
                std::process::abort();
            }
            self.dead = true;
            // A dead process settles nothing, not even by a drop.
            std::mem::forget(delivery);
            return Ok(());
        }
        self.report(Report::Seen(Seen {
            payload,
            key: delivery
                .key()
                .map(|key| String::from_utf8_lossy(key).into_owned()),
            partition: delivery.partition(),
            offset: delivery.offset(),
            attempt: delivery.attempt(),
            epoch: delivery.epoch(),
            handed_over_at: delivery.handed_over_at().as_nanos(),
        }));
        self.handed_over += 1;
        self.settle(delivery, settle)
    }

    fn settle(&mut self, delivery: Delivery, settle: Settle) -> mq_api::Result<()> {
        match settle {
            Settle::Ack => delivery.ack(),
            Settle::AckEven if self.handed_over % 2 == 1 => delivery.ack(),
            Settle::Nack => delivery.nack(),
            Settle::Reject => delivery.reject(),
            Settle::Drop => {
                drop(delivery);
                Ok(())
            }
            Settle::Keep | Settle::AckEven => {
                self.kept
                    .insert((delivery.partition(), delivery.offset()), delivery);
                Ok(())
            }
        }
    }

    async fn produce(
        &mut self,
        topic: &str,
        messages: Vec<ToSend>,
    ) -> mq_api::Result<Vec<Result<(u32, Option<Offset>), SeenError>>> {
        if !self.producers.contains_key(topic) {
            let producer = self.mq.producer(topic).await?;
            self.producers.insert(topic.to_owned(), producer);
        }
        let Some(producer) = self.producers.get(topic) else {
            return Ok(Vec::new());
        };
        let mut sent = Vec::with_capacity(messages.len());
        for one in messages {
            let mut message = Message::from(one.payload);
            if let Some(key) = one.key {
                message = message.with_key(key);
            }
            if let Some(delay) = one.delay {
                message = message.with_delay(delay);
            }
            let result = match one.partition {
                Some(partition) => producer.produce_to(partition, message).await,
                None => producer.produce(message).await,
            };
            sent.push(
                result
                    .map(|receipt| (receipt.partition, receipt.offset))
                    .map_err(|error| (&error).into()),
            );
        }
        Ok(sent)
    }

    fn report(&self, report: Report) {
        // The reader is gone only when the case is over.
        let _ = self.reports.send(report);
    }
}
