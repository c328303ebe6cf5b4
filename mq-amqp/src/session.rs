//! One session of one member of a group: it joins, keeps its lease, takes what it should own and gives back what not.
//!
//! The server's own knowledge of who is alive decides: a member has an exclusive queue, which goes with its connection.
//! Every half second it asks for the queues of others by sending to them, and what comes back is gone. The answer is
//! also what renews the lease: the server waits for two heartbeats at least before it gives anything away.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{Consumer, ExchangeKind, options::QueueDeclareOptions, types::FieldTable};
use mq_api::{Error, ErrorKind, Lease, Moment, Position, Result, driver::topic_not_found};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use crate::{
    group::{Heard, Members, Say, say},
    link::{Chan, Conn, Published},
    member::Member,
    meta::Mode,
    stream,
    tenure::{Tenure, copy_arguments, token_arguments},
    token::Token,
    watch::State,
};

/// Members that start at the same time hear of each other before the first of them takes anything.
const SETTLE: Duration = Duration::from_millis(30);
const PROBE: Duration = Duration::from_millis(500);
/// How often something is said that the server refuses, and how soon again.
const TELLS: usize = 5;
const TELL_AGAIN: Duration = Duration::from_millis(20);
/// In how many partitions at once it is stored where a new group begins: each waits for the server's disk.
const STARTS: usize = 8;

/// How a session ended.
pub(crate) enum Exit {
    /// The member left.
    Left,
    TopicGone,
    /// The session is over; another one may be begun unless the error says otherwise.
    Failed(Error),
}

/// What a session keeps to itself.
struct Session<'a> {
    member: &'a Arc<Member>,
    conn: Conn,
    name: String,
    /// Only this task sends on it.
    talk: Chan,
    exchange: String,
    ears: Consumer,
    _listening: Chan,
    members: Members,
    lease: Lease,
    lease_time: Duration,
    topic: watch::Receiver<State>,
    running: BTreeMap<u32, Running>,
    settled_at: Instant,
    dirty: bool,
    said: Option<BTreeSet<u32>>,
}

/// The task of one partition, from the wish to own it until it is given back.
struct Running {
    task: JoinHandle<()>,
    stop: Arc<Notify>,
}

/// Runs one session to its end. Nothing of it runs on after that.
pub(crate) async fn run(member: &Arc<Member>, conn: Conn, name: &str, before: &mut Vec<String>) -> Exit {
    let result = async {
        let mut session = Session::join(member, &conn, name, before).await?;
        let exit = session.attend().await;
        session.end().await;
        exit
    }
    .await;
    match result {
        Ok(exit) => exit,
        Err(mut error) => {
            if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Timeout) {
                error = conn.why_late(error);
                // The server may have given away what it knows of this connection.
                conn.end();
            }
            match member.open.ask(&member.shared).await {
                Err(gone) if gone.kind() == ErrorKind::TopicNotFound => Exit::TopicGone,
                _ if error.kind() == ErrorKind::TopicNotFound => Exit::Failed(Error::new(
                    ErrorKind::Interrupted,
                    format!("what belongs to a group was removed from the server: {error}"),
                )),
                _ => Exit::Failed(error),
            }
        }
    }
}

impl<'a> Session<'a> {
    async fn join(
        member: &'a Arc<Member>,
        conn: &Conn,
        name: &str,
        before: &mut Vec<String>,
    ) -> Result<Self> {
        let heartbeat = conn.heartbeat().ok_or_else(|| {
            Error::unsupported("amqp", "a group on a server that has heartbeats turned off")
        })?;
        // The server waits for two to three of them; the lease ends a little before.
        let lease_time = heartbeat * 2 - heartbeat / 10;
        let asked = member.clock.now();
        let (topic, group) = (&member.open.topic, &member.group);
        let names = &member.shared.names;
        let exchange = names.group(&topic.name, &topic.id, group);
        let queue = names.member(&topic.name, &topic.id, group, name);
        let listening = conn.channel().await?;
        listening
            .declare_exchange(&exchange, ExchangeKind::Fanout, FieldTable::default())
            .await?;
        let mine = QueueDeclareOptions::exclusive().auto_delete();
        listening.declare(&queue, mine, FieldTable::default()).await?;
        listening.bind(&queue, &exchange, "").await?;
        let ears = listening.consume(&queue, "ears", true).await?;
        let talk = conn.confirm_channel().await?;
        let lease = Lease::new(member.clock.clone(), asked + lease_time);
        let mut members = Members::new(name);
        let session = {
            for old in before.iter() {
                members.bury(old);
                talk.publish(&exchange, "", &say(Say::Bye, old, [])).await?;
            }
            before.clear();
            before.push(name.to_owned());
            Self {
                member,
                conn: conn.clone(),
                name: name.to_owned(),
                talk,
                exchange,
                ears,
                _listening: listening,
                members,
                lease,
                lease_time,
                topic: member.open.state(),
                running: BTreeMap::new(),
                settled_at: Instant::now() + SETTLE,
                dirty: true,
                said: None,
            }
        };
        session.tell(Say::Join, &session.name, BTreeSet::new()).await?;
        member.begin(name, &session.lease);
        Ok(session)
    }

    async fn attend(&mut self) -> Result<Exit> {
        let mut probe = tokio::time::interval(PROBE);
        probe.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let member = self.member;
        loop {
            if self.topic.borrow().gone {
                return Err(topic_not_found(&member.open.topic.name));
            }
            if !self.lease.stands_at(member.clock.now()) {
                return Err(lease_over());
            }
            if member.is_closing() {
                let limit = self.lease_time;
                return match tokio::time::timeout(limit, self.leave()).await {
                    Ok(left) => left.map(|()| Exit::Left),
                    Err(_) => Err(Error::timeout("leaving the group", limit)),
                };
            }
            self.dirty |= member.take_changed();
            if self.dirty && Instant::now() >= self.settled_at {
                self.dirty = false;
                self.balance().await?;
                continue;
            }
            let settling = self.dirty.then_some(self.settled_at);
            tokio::select! {
                biased;
                () = member.changed.notified() => {}
                next = self.ears.next() => {
                    let heard = next.ok_or_else(stream::cancelled)?.map_err(|e| self.conn.map(&e))?;
                    self.hear(&heard.data)?;
                }
                changed = self.topic.changed() => {
                    if changed.is_err() {
                        return Err(self.conn.broken());
                    }
                    self.dirty = true;
                }
                _ = probe.tick() => {
                    self.probe().await?;
                    self.dirty = true;
                }
                () = until(settling) => {}
            }
        }
    }

    fn hear(&mut self, body: &[u8]) -> Result<()> {
        match self.members.hear(body)? {
            Heard::Nothing => {}
            Heard::Changed => self.dirty = true,
            Heard::Asked => {
                self.dirty = true;
                self.said = None;
            }
            Heard::Buried => {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "the others of the group take this member for gone",
                ));
            }
        }
        Ok(())
    }

    async fn tell(&self, what: Say, about: &str, owned: BTreeSet<u32>) -> Result<Moment> {
        let body = say(what, about, owned);
        for _ in 0..TELLS {
            let asked = self.member.clock.now();
            // Its own queue is bound to the exchange: a message that comes back says that it is gone.
            match self.talk.publish(&self.exchange, "", &body).await? {
                Published::Stored => return Ok(asked),
                Published::Returned => return Err(gone()),
                // The queue of a member that leaves just then went away with it; the others may have it twice.
                Published::Refused => tokio::time::sleep(TELL_AGAIN).await,
            }
        }
        Err(Error::new(
            ErrorKind::Interrupted,
            "the group's exchange takes nothing",
        ))
    }

    /// Asks the server for the queues of others, and of itself where it is alone.
    async fn probe(&mut self) -> Result<()> {
        let (topic, group) = (&self.member.open.topic, &self.member.group);
        for other in self.members.next_probes() {
            let queue = self
                .member
                .shared
                .names
                .member(&topic.name, &topic.id, group, &other);
            let asked = self.member.clock.now();
            let left = self.lease.until().saturating_since(asked);
            let answer = tokio::time::timeout(left, self.talk.publish("", &queue, b"mq1 probe"))
                .await
                .map_err(|_| Error::timeout("asking for a member", left))??;
            if !self.lease.renew(asked + self.lease_time) {
                return Err(lease_over());
            }
            match answer {
                // It is just being deleted: the next round will tell.
                Published::Stored | Published::Refused => {}
                Published::Returned if other == self.name => return Err(gone()),
                Published::Returned => {
                    tracing::info!(group = %group, "a member is gone");
                    self.members.bury(&other);
                    self.tell(Say::Gone, &other, BTreeSet::new()).await?;
                    self.dirty = true;
                }
            }
        }
        Ok(())
    }

    /// Asks back what others should own, and takes what this member should.
    async fn balance(&mut self) -> Result<()> {
        let member = self.member;
        let owned = member.owned();
        let partitions = member.open.partitions();
        let target = self.members.target(partitions, &owned);
        member.revoke_all_but(&target);
        self.running.retain(|_, running| !running.task.is_finished());
        for (partition, running) in &self.running {
            if !target.contains(partition) && !owned.contains(partition) {
                running.stop.notify_one();
            }
        }
        for partition in target {
            if self.running.contains_key(&partition) {
                continue;
            }
            let stop = Arc::new(Notify::new());
            let tenure = Tenure {
                member: Arc::clone(member),
                conn: self.conn.clone(),
                session: self.name.clone(),
                partition,
                _share: self.conn.shares().join(),
                lease: self.lease.clone(),
            };
            // Ended with the session.
            let task = tokio::spawn(tenure.run(Arc::clone(&stop)));
            self.running.insert(partition, Running { task, stop });
        }
        if self.said.as_ref() != Some(&owned) {
            let asked = self.tell(Say::Own, &self.name, owned.clone()).await?;
            if !self.lease.renew(asked + self.lease_time) {
                return Err(lease_over());
            }
            self.said = Some(owned);
        }
        Ok(())
    }

    /// Gives everything back and says goodbye.
    async fn leave(&mut self) -> Result<()> {
        // A copy that does not end is a crash's: what it has doubled comes twice.
        let _copied = tokio::time::timeout(self.lease_time / 2, self.member.copying.lock()).await;
        let ids = self.member.assignments();
        self.member.release(&ids).await?;
        for (_, running) in std::mem::take(&mut self.running) {
            running.stop.notify_one();
            // One that had not got its partition yet closes its channel first.
            let _ = running.task.await;
        }
        self.tell(Say::Bye, &self.name, BTreeSet::new()).await?;
        Ok(())
    }

    /// Ends the tasks of the session; their channels close with them.
    async fn end(&mut self) {
        self.lease.revoke();
        for (_, running) in std::mem::take(&mut self.running) {
            running.task.abort();
            let _ = running.task.await;
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // Where the session itself was dropped: nothing of it is handed out any more.
        self.lease.revoke();
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn lease_over() -> Error {
    Error::new(
        ErrorKind::Interrupted,
        "the lease ran out before the server answered",
    )
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Interrupted,
        "the server has removed what belongs to this member",
    )
}

/// Records the group, and stores where it begins in every partition where nothing is stored yet.
pub(crate) async fn resolve_start(member: &Member, start: Position, mode: Mode) -> Result<()> {
    let topic = &member.open.topic;
    member.shared.claim_mode(topic, &member.group, mode).await?;
    let names = &member.shared.names;
    let partitions = member.open.partitions();
    let tokens = member.shared.config.tokens;
    let fresh = member
        .link
        .with_channel(|chan| async move {
            let mut fresh = Vec::new();
            for partition in 0..partitions {
                let copy = names.position(&topic.name, &topic.id, &member.group, partition);
                let token = names.token(&topic.name, &topic.id, &member.group, partition);
                let durable = QueueDeclareOptions::durable();
                chan.declare(&copy, durable, copy_arguments(tokens)).await?;
                if chan.declare(&token, durable, token_arguments(tokens)).await? == (0, 0) {
                    fresh.push((partition, token, copy));
                }
            }
            chan.close().await;
            Ok(fresh)
        })
        .await?;
    let mut storing = futures_util::stream::iter(
        fresh
            .into_iter()
            .map(|(partition, token, copy)| store_start(member, partition, start, [token, copy])),
    )
    .buffer_unordered(STARTS);
    while let Some(stored) = storing.next().await {
        stored?;
    }
    Ok(())
}

/// Stores where a new group begins in one partition.
async fn store_start(member: &Member, partition: u32, start: Position, queues: [String; 2]) -> Result<()> {
    let next = member
        .shared
        .resolve(&member.open.topic, partition, start)
        .await?;
    let body = Token::start(next).encode();
    member
        .link
        .with_channel(|chan| {
            let (queues, body) = (queues.clone(), body.clone());
            async move {
                let confirms = chan.conn().confirm_channel().await?;
                for queue in &queues {
                    if confirms.publish("", queue, &body).await? != Published::Stored {
                        return Err(Error::new(
                            ErrorKind::Interrupted,
                            "the server did not take the position of a new group",
                        ));
                    }
                }
                confirms.close().await;
                Ok(())
            }
        })
        .await
}
