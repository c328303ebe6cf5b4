//! One client id, its connections to brokers and its heartbeats.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::inbox::{Inbox, OffsetReset, TransactionCheck};
use super::pool::Pool;
use crate::remoting::codes::request as codes;
use crate::remoting::{
    Command, Connection, ConsumerData, EncodeBody, HeartbeatBody, JsonBody, Plain, ProducerData,
    RemotingError, Request, SubscriptionData, UniqueKeys, UnregisterClient,
};

/// How long one heartbeat may take.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Talks to the brokers of a cluster under one client id; clones share it.
///
/// A broker tells members of a group apart by connection and client id, so each member has a session of its own.
/// The last clone dropped ends the task and the connections.
#[derive(Debug, Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    client_id: String,
    pool: Pool,
    inbox: Arc<Inbox>,
    groups: Mutex<Groups>,
    /// Wakes the heartbeat task.
    beat: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
    keys: UniqueKeys,
}

#[derive(Debug, Default)]
struct Groups {
    producers: BTreeSet<String>,
    consumers: BTreeMap<String, Consumer>,
}

#[derive(Debug)]
struct Consumer {
    data: ConsumerData,
    brokers: BTreeSet<Arc<str>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl Session {
    /// Begins a session. It connects to a broker when that is first asked something.
    ///
    /// It must be called within a tokio runtime.
    pub fn new(cluster: &Cluster) -> Self {
        let options = cluster.options();
        let (pid, random) = (std::process::id(), fastrand::u64(..));
        Self::with_client_id(cluster, format!("{}@{pid}-{random:016x}", options.instance))
    }

    /// Begins a session under a client id, which must be unique among the clients of the cluster.
    ///
    /// It must be called within a tokio runtime.
    pub fn with_client_id(cluster: &Cluster, client_id: String) -> Self {
        let options = cluster.options();
        let inbox = Arc::new(Inbox::default());
        let beat = Arc::new(Notify::new());
        let inner = Arc::new(Inner {
            cluster: cluster.clone(),
            client_id,
            pool: Pool::new(options.connection.clone(), inbox.clone()),
            inbox,
            groups: Mutex::default(),
            beat: beat.clone(),
            task: Mutex::default(),
            keys: UniqueKeys::new(),
        });
        let task = tokio::spawn(keep_beating(
            Arc::downgrade(&inner),
            beat,
            options.heartbeat_interval,
        ));
        *inner.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Self { inner }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.inner.cluster
    }

    /// The client id that brokers know.
    pub fn client_id(&self) -> &str {
        &self.inner.client_id
    }

    /// The maker of unique message keys.
    pub fn unique_keys(&self) -> &UniqueKeys {
        &self.inner.keys
    }

    /// Asks the master of a broker and requires success.
    ///
    /// A broker that is about to close its connection is asked once more over a new one. Where the master cannot be
    /// reached, routes are asked for soon.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Refused`] for any other code, [`RemotingError::NoServer`] for a broker without a known master,
    /// or what the connection says.
    ///
    /// # Cancel safety
    ///
    /// As [`Connection::call`].
    pub async fn ask<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        broker: &str,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Command, RemotingError> {
        let answered = self.call(broker, request, body, deadline).await?;
        succeeded(request, answered)
    }

    /// Asks the master of a broker, whatever the code of its answer.
    pub(super) async fn call<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        broker: &str,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<(Connection, Command), RemotingError> {
        let address = self.master(broker)?;
        self.call_at(&address, request, body, deadline).await
    }

    fn master(&self, broker: &str) -> Result<Arc<str>, RemotingError> {
        self.inner.cluster.master(broker).ok_or_else(|| {
            self.inner.cluster.hurry();
            no_master(broker)
        })
    }

    /// Connects to the master of a broker unless it is connected, so that a later call only fails once it is under
    /// way.
    ///
    /// # Errors
    ///
    /// [`RemotingError::NoServer`] for a broker without a known master, or what the connection says.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn reach(&self, broker: &str, deadline: Instant) -> Result<(), RemotingError> {
        let address = self.master(broker)?;
        self.connect(&address, deadline).await.map(drop)
    }

    pub(super) async fn call_at<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        address: &str,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<(Connection, Command), RemotingError> {
        let connection = self.connect(address, deadline).await?;
        match connection.call(request, body, deadline).await {
            Ok(answer) => Ok((connection, answer)),
            Err(RemotingError::GoAway { .. }) => {
                let connection = self.connect(address, deadline).await?;
                let answer = connection.call(request, body, deadline).await?;
                Ok((connection, answer))
            }
            Err(error) => {
                if error.is_connection() {
                    self.inner.cluster.hurry();
                }
                Err(error)
            }
        }
    }

    /// Connects, and tells a broker of the groups first if the connection is new.
    pub(super) async fn connect(
        &self,
        address: &str,
        deadline: Instant,
    ) -> Result<Connection, RemotingError> {
        let opened = self.inner.pool.connect(address, deadline).await;
        let (connection, new) = opened.inspect_err(|_| self.inner.cluster.hurry())?;
        if new && let Some(body) = self.inner.heartbeat() {
            let until = deadline.min(Instant::now() + HEARTBEAT_TIMEOUT);
            connection
                .call_ok(&Plain(codes::HEART_BEAT), &JsonBody(&body), until)
                .await?;
        }
        Ok(connection)
    }

    /// Joins a producer group, so that brokers may ask it for the outcome of transactions, and returns the questions.
    /// Other clients that joined the group may get some.
    pub fn join_producers(&self, group: &str) -> mpsc::Receiver<TransactionCheck> {
        self.inner.groups().producers.insert(group.to_owned());
        let checks = self.inner.inbox.checks(group);
        self.inner.beat.notify_one();
        checks
    }

    /// Joins a consumer group at brokers: sends them a heartbeat, now and from then on. It is also the way to have
    /// the group made, and to change a subscription.
    ///
    /// # Errors
    ///
    /// The first error of a broker; the others have it then, and the task goes on trying.
    ///
    /// # Cancel safety
    ///
    /// The session is a member until [`leave_consumers`](Self::leave_consumers) or its end.
    pub async fn join_consumers(
        &self,
        group: &str,
        subscriptions: Vec<SubscriptionData>,
        brokers: &[Arc<str>],
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let data = ConsumerData {
            group_name: group.to_owned(),
            consume_type: "CONSUME_PASSIVELY".to_owned(),
            message_model: "CLUSTERING".to_owned(),
            consume_from_where: "CONSUME_FROM_FIRST_OFFSET".to_owned(),
            subscription_data_set: subscriptions,
            unit_mode: false,
        };
        self.inner
            .inbox
            .subscribe(group, data.subscription_data_set.clone());
        let consumer = Consumer {
            data,
            brokers: brokers.iter().cloned().collect(),
        };
        self.inner.groups().consumers.insert(group.to_owned(), consumer);
        let beats = brokers.iter().map(|broker| self.beat(broker, deadline));
        join_all(beats).await.into_iter().collect()
    }

    /// Leaves a consumer group, at every broker that is connected.
    ///
    /// # Errors
    ///
    /// The first error of a broker; the end of the session leaves the group there too.
    ///
    /// # Cancel safety
    ///
    /// No heartbeat names the group any more; brokers that were not told forget it when the session ends.
    pub async fn leave_consumers(&self, group: &str, deadline: Instant) -> Result<(), RemotingError> {
        if self.inner.groups().consumers.remove(group).is_none() {
            return Ok(());
        }
        self.inner.inbox.forget(group);
        let request = UnregisterClient {
            client_id: &self.inner.client_id,
            consumer_group: Some(group),
            ..UnregisterClient::default()
        };
        let open = self.inner.pool.open_ones();
        let calls = open
            .iter()
            .map(|connection| connection.call_ok(&request, &(), deadline));
        join_all(calls)
            .await
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }

    /// Watches the membership of a group: the number grows with each change that a broker tells of.
    pub fn members_changed(&self, group: &str) -> watch::Receiver<u64> {
        self.inner.inbox.members(group)
    }

    /// Takes the orders of operators to move the offsets of a group.
    pub fn offset_resets(&self, group: &str) -> mpsc::Receiver<OffsetReset> {
        self.inner.inbox.resets(group)
    }

    /// Sends a heartbeat to one broker now.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    ///
    /// # Cancel safety
    ///
    /// As [`Connection::call`].
    pub async fn beat(&self, broker: &str, deadline: Instant) -> Result<(), RemotingError> {
        match self.inner.heartbeat() {
            Some(body) => self
                .ask(broker, &Plain(codes::HEART_BEAT), &JsonBody(&body), deadline)
                .await
                .map(drop),
            None => Ok(()),
        }
    }

    /// Leaves all groups, writes what is queued and ends the connections.
    ///
    /// # Cancel safety
    ///
    /// What was not closed then ends when the last clone is dropped.
    pub async fn close(&self, deadline: Instant) {
        let task = self
            .inner
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
            drop(task.await);
        }
        let consumers: Vec<String> = self.inner.groups().consumers.keys().cloned().collect();
        for group in consumers {
            if let Err(error) = self.leave_consumers(&group, deadline).await {
                tracing::debug!(group, %error, "a broker was not told that a member left");
            }
        }
        self.inner.groups().producers.clear();
        self.inner.pool.close(deadline).await;
    }
}

/// Requires success of what was answered to a request.
pub(super) fn succeeded<R: Request + ?Sized>(
    request: &R,
    (connection, answer): (Connection, Command),
) -> Result<Command, RemotingError> {
    if answer.code() == crate::remoting::codes::response::SUCCESS {
        Ok(answer)
    } else {
        Err(connection.refused(request.code(), &answer))
    }
}

pub(super) fn no_master(broker: &str) -> RemotingError {
    RemotingError::NoServer {
        what: broker.into(),
        rule: "no address of its master is known".into(),
    }
}

impl Inner {
    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of a heartbeat, unless there is no group to tell of.
    fn heartbeat(&self) -> Option<HeartbeatBody> {
        let groups = self.groups();
        if groups.producers.is_empty() && groups.consumers.is_empty() {
            return None;
        }
        Some(HeartbeatBody {
            client_id: self.client_id.clone(),
            consumer_data_set: groups
                .consumers
                .values()
                .map(|consumer| consumer.data.clone())
                .collect(),
            producer_data_set: groups
                .producers
                .iter()
                .map(|group| ProducerData {
                    group_name: group.clone(),
                })
                .collect(),
            ..HeartbeatBody::default()
        })
    }

    /// Tells every broker that a group names or that is connected; a lost connection is made anew here.
    async fn beat_all(self: &Arc<Self>) {
        let Some(body) = self.heartbeat() else { return };
        let named: BTreeSet<Arc<str>> = self
            .groups()
            .consumers
            .values()
            .flat_map(|consumer| consumer.brokers.iter().cloned())
            .collect();
        let mut addresses: BTreeSet<Arc<str>> = self
            .pool
            .open_ones()
            .iter()
            .map(|connection| connection.address().clone())
            .collect();
        addresses.extend(
            named
                .iter()
                .filter_map(|broker| self.cluster.addresses(broker).remove(&0)),
        );
        let session = Session { inner: self.clone() };
        let beats = addresses.iter().map(|address| {
            let (session, body) = (&session, &body);
            async move {
                let deadline = Instant::now() + HEARTBEAT_TIMEOUT;
                let beat = Plain(codes::HEART_BEAT);
                if let Err(error) = session.call_at(address, &beat, &JsonBody(body), deadline).await {
                    tracing::debug!(address = &**address, %error, "a heartbeat failed");
                }
            }
        });
        join_all(beats).await;
    }
}

async fn keep_beating(session: Weak<Inner>, beat: Arc<Notify>, pause: Duration) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = beat.notified() => {}
        }
        let Some(session) = session.upgrade() else { return };
        session.beat_all().await;
    }
}
