//! What is known of a cluster: nameservers, brokers and the layout of topics.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::layout::Layout;
use super::nameservers::Nameservers;
use super::options::ClusterOptions;
use super::snapshot::Snapshot;
use crate::remoting::codes::{request as codes, response};
use crate::remoting::{
    ClusterInfo, Command, Effect, EncodeBody, GetKv, Plain, QueryRoute, RemotingError, Request, TopicRoute,
};

/// The nameserver's namespace for layout records.
pub(super) const LAYOUTS: &str = "MQ_TOPIC_LAYOUT";
/// A topic that nobody watches or asks for is forgotten after this long.
const FORGET_AFTER: Duration = Duration::from_secs(300);
/// Routes asked for out of turn come at most this often.
const LEAST_PAUSE: Duration = Duration::from_millis(500);

/// Where a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// The queues by partition number.
    pub layout: Layout,
    /// Whether a nameserver keeps the layout, so that numbers stand while a broker is down at the first look.
    pub recorded: bool,
}

/// The client of one cluster; clones share it. The last one dropped ends its task.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: ClusterOptions,
    nameservers: Nameservers,
    state: Mutex<State>,
    wake: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

#[derive(Debug, Default)]
struct State {
    topics: HashMap<Arc<str>, Arc<Topic>>,
    brokers: BTreeMap<Arc<str>, BTreeMap<i64, Arc<str>>>,
    /// What was written to disk last.
    stored: Option<Snapshot>,
}

#[derive(Debug)]
struct Topic {
    route: watch::Sender<Option<Arc<Route>>>,
    /// Held while a nameserver is asked, so that callers share one question; the time of the last answer.
    asking: tokio::sync::Mutex<Option<Instant>>,
    used: Mutex<Instant>,
}

impl Topic {
    fn new(route: Option<Arc<Route>>) -> Self {
        let asking = tokio::sync::Mutex::default();
        Self {
            route: watch::Sender::new(route),
            asking,
            used: Mutex::new(Instant::now()),
        }
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_idle(&self) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.route.receiver_count() == 0 && used.elapsed() > FORGET_AFTER
    }
}

impl Cluster {
    /// Begins to use a cluster. It asks nothing yet; a snapshot file, if there is one, is read here.
    ///
    /// It must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Config`] when the snapshot file cannot be used.
    pub fn open(options: ClusterOptions) -> Result<Self, RemotingError> {
        let state = match &options.snapshot {
            None => State::default(),
            Some(path) => {
                let snapshot = Snapshot::load(path).map_err(|error| RemotingError::Config {
                    option: "route snapshot",
                    rule: format!("{}: {error}", path.display()).into(),
                })?;
                restore(snapshot)?
            }
        };
        let nameservers = Nameservers::new(
            options.nameservers.clone(),
            options.nameserver_timeout,
            options.connection.clone(),
        );
        let wake = Arc::new(Notify::new());
        let refresh = options.route_refresh;
        let inner = Arc::new(Inner {
            options,
            nameservers,
            state: Mutex::new(state),
            wake: wake.clone(),
            task: Mutex::default(),
        });
        let task = tokio::spawn(keep_fresh(Arc::downgrade(&inner), wake, refresh));
        *inner.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(Self { inner })
    }

    /// The options that it was opened with.
    pub fn options(&self) -> &ClusterOptions {
        &self.inner.options
    }

    /// Gives the route of a topic: what is known, else what a nameserver says.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Refused`] with [`TOPIC_NOT_EXIST`](response::TOPIC_NOT_EXIST) for an unknown topic,
    /// [`RemotingError::NoServer`] for a known one whose brokers are all down, or what the connections say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn route(&self, topic: &str, deadline: Instant) -> Result<Arc<Route>, RemotingError> {
        let entry = self.inner.topic(topic);
        entry.touch();
        let known = entry.route.borrow().clone();
        match known {
            Some(route) => Ok(route),
            None => self.inner.refresh(topic, &entry, Duration::MAX, deadline).await,
        }
    }

    /// Asks a nameserver for the route of a topic now, or joins a question that is under way. What is known stays in
    /// use if none answers.
    ///
    /// # Errors
    ///
    /// As [`route`](Self::route).
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn refresh(&self, topic: &str, deadline: Instant) -> Result<Arc<Route>, RemotingError> {
        let entry = self.inner.topic(topic);
        entry.touch();
        self.inner.refresh(topic, &entry, Duration::ZERO, deadline).await
    }

    /// Asks what a nameserver routes now, without the record; `None` for a topic that is not routed.
    pub(super) async fn routed(
        &self,
        topic: &str,
        deadline: Instant,
    ) -> Result<Option<Layout>, RemotingError> {
        match self
            .ask(
                &QueryRoute {
                    topic,
                    standard_json: Some(true),
                },
                &(),
                deadline,
            )
            .await
        {
            Ok(answer) => answer
                .json("route")
                .map(|route: TopicRoute| Some(Layout::of_route(&route))),
            Err(error) if error.refusal() == Some(response::TOPIC_NOT_EXIST) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the layout that a nameserver keeps of a topic.
    pub(super) async fn record(
        &self,
        topic: &str,
        deadline: Instant,
    ) -> Result<Option<Layout>, RemotingError> {
        match self
            .ask(
                &GetKv {
                    namespace: LAYOUTS,
                    key: topic,
                },
                &(),
                deadline,
            )
            .await
        {
            Ok(answer) => answer.field::<&str>("value")?.parse().map(Some),
            Err(error) if error.refusal() == Some(response::QUERY_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Watches the route of a topic; it is `None` until it is known. It is refreshed while there is a receiver.
    pub fn watch(&self, topic: &str) -> watch::Receiver<Option<Arc<Route>>> {
        self.inner.topic(topic).route.subscribe()
    }

    /// Asks for all routes in use soon, for instance because a broker cannot be reached.
    pub fn hurry(&self) {
        self.inner.wake.notify_one();
    }

    /// Drops what is known of a topic, because it was deleted.
    pub fn forget(&self, topic: &str) {
        if let Some(entry) = self.inner.lock().topics.remove(topic) {
            entry.route.send_replace(None);
        }
    }

    /// Gives the addresses of a broker by id, 0 being the master; empty if it was never seen.
    pub fn addresses(&self, broker: &str) -> BTreeMap<i64, Arc<str>> {
        self.inner.lock().brokers.get(broker).cloned().unwrap_or_default()
    }

    /// Gives the address of a broker's master, if it was ever seen.
    pub fn master(&self, broker: &str) -> Option<Arc<str>> {
        self.inner.lock().brokers.get(broker)?.get(&0).cloned()
    }

    /// Lists the brokers that have a master now, by name.
    ///
    /// # Errors
    ///
    /// What the connections say.
    ///
    /// # Cancel safety
    ///
    /// Safe; nothing is lost.
    pub async fn masters(&self, deadline: Instant) -> Result<Vec<Arc<str>>, RemotingError> {
        let request = Plain(codes::GET_BROKER_CLUSTER_INFO);
        let answer = self.ask(&request, &(), deadline).await?;
        let info = ClusterInfo::parse(&answer.body)?;
        let wanted = self.inner.options.cluster_name.as_deref();
        let mut masters = Vec::new();
        for (name, broker) in &info.broker_addr_table {
            self.inner.learn(name, &broker.broker_addrs);
            let listed = info.cluster_addr_table.get(wanted.unwrap_or(&broker.cluster));
            let belongs = wanted.is_none() || listed.is_some_and(|names| names.contains(name));
            if belongs && broker.broker_addrs.contains_key(&0) {
                masters.push(Arc::from(name.as_str()));
            }
        }
        Ok(masters)
    }

    /// Asks a nameserver and requires success.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Refused`] for any other code, or what the connections say.
    ///
    /// # Cancel safety
    ///
    /// As [`Connection::call`](crate::remoting::Connection::call).
    pub async fn ask<R: Request, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Command, RemotingError> {
        require(
            request,
            self.inner.nameservers.call(request, body, deadline).await?,
        )
    }

    /// Tells every nameserver, and requires that at least one took it and none refused.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Refused`] if one refused, the last error if none answered.
    ///
    /// # Cancel safety
    ///
    /// Any of them may have taken it.
    pub async fn tell_all<R: Request + Sync>(
        &self,
        request: &R,
        deadline: Instant,
    ) -> Result<(), RemotingError> {
        let mut taken = false;
        let mut last = None;
        for outcome in self.inner.nameservers.call_all(request, &(), deadline).await? {
            match outcome.and_then(|answer| require(request, answer)) {
                Ok(_) => taken = true,
                Err(error @ RemotingError::Refused { .. }) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if !taken => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends the task and the connections to nameservers.
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
        self.inner.nameservers.close(deadline).await;
    }
}

fn require<R: Request>(request: &R, answer: Command) -> Result<Command, RemotingError> {
    if answer.code() == response::SUCCESS {
        return Ok(answer);
    }
    let (code, remark) = (answer.code(), answer.remark().into());
    Err(RemotingError::Refused {
        address: "nameserver".into(),
        request: request.code(),
        code,
        remark,
    })
}

fn restore(snapshot: Snapshot) -> Result<State, RemotingError> {
    let mut state = State::default();
    for (topic, record) in &snapshot.topics {
        let route = Route {
            layout: record.parse()?,
            recorded: true,
        };
        state
            .topics
            .insert(topic.as_str().into(), Arc::new(Topic::new(Some(Arc::new(route)))));
    }
    for (name, addresses) in &snapshot.brokers {
        let addresses = addresses
            .iter()
            .map(|(id, address)| (*id, Arc::from(address.as_str())))
            .collect();
        state.brokers.insert(name.as_str().into(), addresses);
    }
    state.stored = Some(snapshot);
    Ok(state)
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn topic(&self, name: &str) -> Arc<Topic> {
        let mut state = self.lock();
        if let Some(entry) = state.topics.get(name) {
            return entry.clone();
        }
        let entry = Arc::new(Topic::new(None));
        state.topics.insert(name.into(), entry.clone());
        entry
    }

    fn learn(&self, broker: &str, addresses: &BTreeMap<i64, String>) {
        if addresses.is_empty() {
            return;
        }
        let addresses = addresses
            .iter()
            .map(|(id, address)| (*id, Arc::from(address.as_str())))
            .collect();
        self.lock().brokers.insert(broker.into(), addresses);
    }

    /// Asks for a route unless an answer of at most `fresh` old is there by the time it is this call's turn.
    async fn refresh(
        &self,
        name: &str,
        entry: &Topic,
        fresh: Duration,
        deadline: Instant,
    ) -> Result<Arc<Route>, RemotingError> {
        let began = Instant::now();
        let Ok(mut answered) = timeout_at(deadline, entry.asking.lock()).await else {
            return Err(RemotingError::Timeout {
                address: "nameserver".into(),
                code: codes::GET_ROUTE_BY_TOPIC,
                waited: began.elapsed(),
                effect: Effect::NotSent,
            });
        };
        let known = entry.route.borrow().clone();
        if let (Some(at), Some(route)) = (*answered, &known)
            && (at >= began || at.elapsed() <= fresh)
        {
            return Ok(route.clone());
        }
        let route = Arc::new(self.fetch(name, known.as_deref(), deadline).await?);
        *answered = Some(Instant::now());
        entry.route.send_if_modified(|slot| {
            let changed = slot.as_ref() != Some(&route);
            if changed {
                *slot = Some(route.clone());
            }
            changed
        });
        Ok(route)
    }

    async fn fetch(
        &self,
        name: &str,
        known: Option<&Route>,
        deadline: Instant,
    ) -> Result<Route, RemotingError> {
        let route = QueryRoute {
            topic: name,
            standard_json: Some(true),
        };
        let record = GetKv {
            namespace: LAYOUTS,
            key: name,
        };
        let (answer, record) = tokio::join!(
            self.nameservers.call(&route, &(), deadline),
            self.nameservers.call(&record, &(), deadline),
        );
        let record = match record? {
            answer if answer.code() == response::SUCCESS => {
                Some(answer.field::<&str>("value")?.parse::<Layout>()?)
            }
            _ => None,
        };
        let answer = answer?;
        match answer.code() {
            response::SUCCESS => {
                let route: TopicRoute = answer.json("route")?;
                for broker in &route.brokers {
                    self.learn(&broker.broker_name, &broker.broker_addrs);
                }
                let now = Layout::of_route(&route);
                let recorded = record.is_some();
                let layout = match (record, known) {
                    // Queues that an operator added come after those that have a number.
                    (Some(record), _) => record.union(&now),
                    (None, Some(known)) => keep_absent(&known.layout, now),
                    (None, None) => now,
                };
                Ok(Route { layout, recorded })
            }
            response::TOPIC_NOT_EXIST if record.is_some() || known.is_some_and(|known| !known.recorded) => {
                Err(RemotingError::NoServer {
                    what: name.into(),
                    rule: "no broker that holds it is registered".into(),
                })
            }
            _ => Err(match require(&route, answer) {
                Err(error) => error,
                Ok(_) => RemotingError::malformed("route", "unexpected success"),
            }),
        }
    }

    async fn refresh_all(&self, deadline: Instant) {
        let topics: Vec<_> = {
            let mut state = self.lock();
            state.topics.retain(|_, topic| !topic.is_idle());
            state
                .topics
                .iter()
                .map(|(name, topic)| (name.clone(), topic.clone()))
                .collect()
        };
        for (name, topic) in topics {
            if topic.route.borrow().is_none() && topic.route.receiver_count() == 0 {
                continue;
            }
            if let Err(error) = self.refresh(&name, &topic, LEAST_PAUSE, deadline).await {
                tracing::debug!(topic = &*name, %error, "a route could not be refreshed");
            }
        }
        self.store();
    }

    /// Writes the routes to disk if they changed.
    fn store(&self) {
        let Some(path) = self.options.snapshot.clone() else {
            return;
        };
        let mut snapshot = Snapshot::new();
        {
            let mut state = self.lock();
            for (name, topic) in &state.topics {
                if let Some(route) = &*topic.route.borrow() {
                    snapshot.topics.insert(name.to_string(), route.layout.to_string());
                }
            }
            for (name, addresses) in &state.brokers {
                let addresses = addresses
                    .iter()
                    .map(|(id, address)| (*id, address.to_string()))
                    .collect();
                snapshot.brokers.insert(name.to_string(), addresses);
            }
            if state.stored.as_ref() == Some(&snapshot) || snapshot.topics.is_empty() {
                return;
            }
            state.stored = Some(snapshot.clone());
        }
        // It outlives this call on purpose: a file that is half written is never put in place.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = snapshot.store(&path) {
                tracing::warn!(path = %path.display(), %error, "the route snapshot could not be written");
            }
        });
    }
}

/// Without a record, a broker that is missing from a route has died: its numbers stay as long as this client lives.
fn keep_absent(known: &Layout, now: Layout) -> Layout {
    let present = now.brokers();
    if known.brokers().iter().all(|broker| present.contains(broker)) {
        return now;
    }
    known.clone().union(&now)
}

async fn keep_fresh(cluster: Weak<Inner>, wake: Arc<Notify>, pause: Duration) {
    loop {
        let turn = tokio::time::sleep(pause);
        tokio::select! {
            () = turn => {}
            () = wake.notified() => tokio::time::sleep(LEAST_PAUSE).await,
        }
        let Some(cluster) = cluster.upgrade() else { return };
        let deadline = Instant::now() + cluster.options.nameserver_timeout.saturating_mul(2);
        cluster.refresh_all(deadline).await;
    }
}
