//! One member's tenure of one partition: it waits for the token, holds it, writes positions into it, gives it back.
//!
//! The token's queue has a single active consumer: whoever gets the first message owns the partition, until its channel
//! ends. A fence with a higher epoch, sent on the same channel and read back, brings everything that an earlier owner
//! wrote before it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{StreamExt, future};
use lapin::{
    Acker, Consumer,
    message::Delivery,
    options::{BasicAckOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use mq_api::{
    Error, ErrorKind, Lease, Result,
    driver::{Assignment, AssignmentId, Commit, CommitOutcome},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

use crate::{
    config::TokenQueues,
    flow::{Fetching, Flow},
    link::{Chan, Conn, Published, text},
    member::{Member, Owned},
    share::Share,
    stream,
    token::Token,
};

/// A token that nobody touches is written again before the server takes its holder for stuck (30 minutes by default).
const REFRESH: Duration = Duration::from_secs(300);
/// How long to wait for the token before asking whether there is one.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long a stream may be shorter than the position in it before that counts as a loss, and how often it is looked at: a
/// server that starts serves a stream before it has found its end.
const SHORT_FOR: Duration = Duration::from_secs(5);
const LOOK_AT_END: Duration = Duration::from_millis(100);
/// How often a token may go back to its queue; without a limit of ours the server has one of its own.
const RETURNS: i64 = 1_000_000;

/// What the engine wants of a tenure.
pub(crate) enum Command {
    Commit(Box<Commit>, oneshot::Sender<Result<CommitOutcome>>),
    Release(oneshot::Sender<Result<()>>),
}

/// What a tenure needs to know.
pub(crate) struct Tenure {
    pub(crate) member: Arc<Member>,
    pub(crate) conn: Conn,
    pub(crate) session: String,
    pub(crate) partition: u32,
    /// From before any partition is read: who is first must not take what is for all.
    pub(crate) _share: Share,
    pub(crate) lease: Lease,
}

/// The token in hand.
struct Holding {
    // Before the channel, which closes when both are gone.
    tokens: Consumer,
    chan: Arc<Chan>,
    queue: String,
    copy: String,
    /// What came and is not acked; the last of it, in the order of tokens, stays so.
    held: VecDeque<(Token, Acker)>,
    token: Token,
}

pub(crate) fn token_arguments(kind: TokenQueues) -> FieldTable {
    let mut arguments = durable(kind);
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    arguments
}

pub(crate) fn copy_arguments(kind: TokenQueues) -> FieldTable {
    let mut arguments = durable(kind);
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments
}

fn durable(kind: TokenQueues) -> FieldTable {
    let mut arguments = FieldTable::default();
    match kind {
        TokenQueues::Classic => {
            arguments.insert("x-queue-type".into(), text("classic"));
        }
        TokenQueues::Quorum => {
            arguments.insert("x-queue-type".into(), text("quorum"));
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(RETURNS));
        }
    }
    arguments
}

impl Tenure {
    /// Runs until the partition is given back or lost, or `stop` says that it is not wanted before it was got.
    pub(crate) async fn run(self, stop: Arc<Notify>) {
        let chan = match self.conn.confirm_channel().await {
            Ok(chan) => Arc::new(chan),
            Err(error) => return self.failed(&error),
        };
        let acquired = tokio::select! {
            acquired = self.acquire(&chan) => acquired,
            () = stop.notified() => {
                // It may be the active consumer already, and would keep the token.
                chan.close().await;
                return;
            }
        };
        match acquired {
            Ok((holding, clean)) => self.hold(holding, clean).await,
            Err(error) => {
                chan.close().await;
                self.failed(&error);
            }
        }
    }

    fn failed(&self, error: &Error) {
        if error.is_retryable() || error.kind() == ErrorKind::TopicNotFound {
            tracing::debug!(%error, partition = self.partition, "a partition could not be taken or was lost");
        } else {
            self.member.outbox.fail(error.clone());
        }
        // The session looks again with its next probe.
    }

    async fn acquire(&self, chan: &Arc<Chan>) -> Result<(Holding, bool)> {
        let (topic, group) = (&self.member.open.topic, &self.member.group);
        let names = &self.member.shared.names;
        let queue = names.token(&topic.name, &topic.id, group, self.partition);
        let copy = names.position(&topic.name, &topic.id, group, self.partition);
        let (durable, kind) = (QueueDeclareOptions::durable(), self.member.shared.config.tokens);
        // Of a partition that was added since the group began there is neither.
        let (copies, _) = chan.declare(&copy, durable, copy_arguments(kind)).await?;
        let (messages, consumers) = chan.declare(&queue, durable, token_arguments(kind)).await?;
        let tokens = chan.consume(&queue, "token", false).await?;
        let mut holding = Holding {
            tokens,
            chan: Arc::clone(chan),
            copy,
            queue,
            held: VecDeque::new(),
            token: Token::start(0),
        };
        if messages == 0 && consumers == 0 {
            // Of a partition that was added none of its messages was skipped.
            holding.first_token().await?;
        }
        loop {
            match tokio::time::timeout(LOOK_AGAIN, holding.tokens.next()).await {
                Ok(next) => {
                    holding.take(next)?;
                    break;
                }
                // Another one has it; or it was never made, and nobody else waits for it.
                Err(_) => {
                    let look = QueueDeclareOptions::durable().passive();
                    let (messages, consumers) =
                        chan.declare(&holding.queue, look, FieldTable::default()).await?;
                    if messages == 0 && consumers <= 1 {
                        holding.first_token().await?;
                    }
                }
            }
        }
        let clean = holding.fence(&self.session).await?;
        self.stay_within(&mut holding).await?;
        if copies == 0 {
            holding.copy_again().await?;
        }
        Ok((holding, clean))
    }

    /// The server may have lost the tail of a stream, as in a power cut: a position beyond the end would skip what
    /// comes next.
    async fn stay_within(&self, holding: &mut Holding) -> Result<()> {
        let topic = &self.member.open.topic;
        let queue = self
            .member
            .shared
            .names
            .partition(&topic.name, &topic.id, self.partition);
        let token = &mut holding.token;
        let since = Instant::now();
        let end = loop {
            let end = {
                let _turn = self.conn.shares().turn().await;
                let chan = self.conn.channel().await?;
                stream::end(&chan, &queue).await?
            };
            if end >= token.next || since.elapsed() >= SHORT_FOR {
                break end;
            }
            tokio::time::sleep(LOOK_AT_END).await;
        };
        if token.next > end {
            tracing::warn!(
                partition = self.partition,
                position = token.next,
                end,
                "the position lies beyond the end, as after a loss of data; going on at the end"
            );
            token.next = end;
        }
        token.acked.retain(|range| range.end <= end);
        token.attempts.retain(|(offset, _)| *offset < end);
        Ok(())
    }

    async fn hold(self, mut holding: Holding, clean: bool) {
        let member = &self.member;
        let id = AssignmentId {
            partition: self.partition,
            epoch: holding.token.epoch,
        };
        let topic = &member.open.topic;
        let token = &holding.token;
        let assignment = Assignment::new(id, token.next)
            .with_acked_above(token.acked.clone())
            .with_attempts(token.attempts.clone())
            .with_clean(clean)
            .with_topic_id(topic.id())
            .with_lease(self.lease.clone());
        let flow = Arc::new(Flow::default());
        let fetching = Fetching {
            conn: self.conn.clone(),
            queue: member
                .shared
                .names
                .partition(&topic.name, &topic.id, self.partition),
            id,
            next: token.next,
            prefetch: member.prefetch,
            flow: Arc::clone(&flow),
            outbox: Arc::clone(&member.outbox),
        };
        let (commands, wanted) = mpsc::channel(4);
        // Calls for an assignment may come as soon as it is announced, and messages only after it.
        if !member.owns(Owned::new(id, commands, Arc::clone(&flow)), &self.session) {
            holding.chan.close().await;
            return;
        }
        member.outbox.assigned(assignment, Some(flow), member.prefetch);
        member.tell_changed();
        // It ends with this task, too.
        let fetches = member.outbox.fetch(fetching.run());
        let ended = holding.serve(wanted, id).await;
        drop(fetches);
        match ended {
            Ok(reply) => {
                holding.chan.close().await;
                let _ = reply.send(Ok(()));
            }
            Err(error) => {
                holding.chan.close().await;
                member.lose(id);
                member.tell_changed();
                self.failed(&error);
            }
        }
    }
}

impl Holding {
    async fn first_token(&self) -> Result<()> {
        self.send(&Token::start(0)).await
    }

    async fn send(&self, token: &Token) -> Result<()> {
        self.store(&self.queue, token).await
    }

    async fn store(&self, queue: &str, token: &Token) -> Result<()> {
        match self.chan.publish("", queue, &token.encode()).await? {
            Published::Stored => Ok(()),
            Published::Returned => Err(stream::cancelled()),
            Published::Refused => Err(refused()),
        }
    }

    /// Writes the copy that others read. RabbitMQ 4 forgets the one message of a queue of one where it is killed while that
    /// is replaced: of ten queues that were written just then, one or two.
    async fn copy_again(&self) -> Result<()> {
        self.store(&self.copy, &self.token).await
    }

    /// Takes a token in.
    fn take(&mut self, next: Option<lapin::Result<Delivery>>) -> Result<()> {
        match next {
            Some(Ok(delivery)) => {
                let token = Token::parse(&delivery.data)?;
                self.held.push_back((token, delivery.acker));
                Ok(())
            }
            Some(Err(error)) => Err(self.chan.map(&error)),
            None => Err(stream::cancelled()),
        }
    }

    /// Writes a higher epoch and reads until it comes back: nothing older comes after it. Tells whether the last owner
    /// gave the partition back.
    async fn fence(&mut self, session: &str) -> Result<bool> {
        let mut mine = Vec::new();
        loop {
            let best = self.best().cloned().ok_or_else(stream::cancelled)?;
            let mut fence = best.clone();
            (fence.epoch, fence.seq) = (best.epoch + 1, 0);
            session.clone_into(&mut fence.owner);
            mine.push(fence.order());
            self.send(&fence).await?;
            loop {
                let limit = self.chan.conn().limit();
                let next = tokio::time::timeout(limit, self.tokens.next())
                    .await
                    .map_err(|_| Error::timeout("taking a partition over", limit))?;
                self.take(next)?;
                // Tokens whose acks were lost in a crash come again: the epoch alone does not tell whose one is.
                if self
                    .held
                    .back()
                    .is_some_and(|(token, _)| token.owner == session && token.order() == fence.order())
                {
                    break;
                }
            }
            let newest = newest(
                self.held
                    .iter()
                    .map(|(token, _)| token)
                    .filter(|token| token.owner != session || !mine.contains(&token.order())),
            )
            .cloned()
            .ok_or_else(stream::cancelled)?;
            if newest.epoch >= fence.epoch {
                // There was more in the queue than the first token told.
                continue;
            }
            let clean = newest.owner.is_empty();
            self.token = newest;
            (self.token.epoch, self.token.seq) = fence.order();
            session.clone_into(&mut self.token.owner);
            if self.token.next != fence.next
                || self.token.acked != fence.acked
                || self.token.attempts != fence.attempts
            {
                self.token.seq += 1;
                let token = self.token.clone();
                self.send(&token).await?;
            }
            self.settle().await?;
            return Ok(clean);
        }
    }

    /// Returns the newest of what came; of equals the first, which is how two first members agree.
    fn best(&self) -> Option<&Token> {
        newest(self.held.iter().map(|(token, _)| token))
    }

    /// Acks all but the newest.
    async fn settle(&mut self) -> Result<()> {
        while self.held.len() > 1 {
            let oldest = self
                .held
                .iter()
                .enumerate()
                .min_by_key(|(at, (token, _))| (token.order(), std::cmp::Reverse(*at)))
                .map(|(at, _)| at);
            let Some((_, acker)) = oldest.and_then(|at| self.held.remove(at)) else {
                break;
            };
            acker
                .ack(BasicAckOptions::default())
                .await
                .map_err(|e| self.chan.map(&e))?;
        }
        Ok(())
    }

    /// Serves the engine until it gives the partition back; returns whom to tell when that is done.
    async fn serve(
        &mut self,
        mut wanted: mpsc::Receiver<Command>,
        id: AssignmentId,
    ) -> Result<oneshot::Sender<Result<()>>> {
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.reset();
        loop {
            tokio::select! {
                biased;
                command = wanted.recv() => match command {
                    Some(Command::Commit(commit, reply)) => {
                        debug_assert_eq!(commit.assignment, id);
                        let stored = self.commit(*commit).await;
                        let error = stored.as_ref().err().cloned();
                        let _ = reply.send(stored);
                        if let Some(error) = error {
                            return Err(error);
                        }
                    }
                    Some(Command::Release(reply)) => {
                        self.token.owner.clear();
                        self.token.seq += 1;
                        let token = self.token.clone();
                        // The token stays in the queue either way; it only says less then.
                        if let Err(error) = self.send(&token).await {
                            tracing::debug!(%error, "a partition was given back without a last word");
                        }
                        return Ok(reply);
                    }
                    None => return Err(self.chan.conn().broken()),
                },
                next = self.tokens.next() => {
                    self.take(next)?;
                    self.settle().await?;
                }
                _ = refresh.tick() => {
                    self.token.seq += 1;
                    let token = self.token.clone();
                    self.send(&token).await?;
                }
            }
        }
    }

    async fn commit(&mut self, commit: Commit) -> Result<CommitOutcome> {
        let mut token = self.token.clone();
        token.seq += 1;
        token.next = commit.position;
        token.acked = commit.acked_above;
        token.attempts = commit.attempts;
        let body = token.encode();
        // The channel is this task's alone, and both are handed over in this order.
        let (stored, copied) = future::join(
            self.chan.publish("", &self.queue, &body),
            self.chan.publish("", &self.copy, &body),
        )
        .await;
        let (stored, copied) = (stored?, copied?);
        // Which of two came back the client library does not tell; without its queues the group is gone.
        if stored == Published::Returned || copied == Published::Returned {
            return Err(stream::cancelled());
        }
        if stored == Published::Refused || copied == Published::Refused {
            return Err(refused());
        }
        self.token = token;
        Ok(CommitOutcome::Stored)
    }
}

fn newest<'a>(tokens: impl Iterator<Item = &'a Token>) -> Option<&'a Token> {
    tokens.reduce(|best, token| if token.order() > best.order() { token } else { best })
}

fn refused() -> Error {
    Error::new(ErrorKind::Interrupted, "the server did not take a position")
}
