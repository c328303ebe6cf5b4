//! What a case works with.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mq_api::{Capabilities, ClientOptions, Mq};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::{
    capability::Capability,
    cases::Case,
    failure::{CaseResult, Failure},
    harness::{Harness, HarnessResult, Nature, Server, Times},
    history::History,
    member::{Member, MemberKind},
    report::Verdict,
    wrap::Forward,
};

/// How many lines of a case's log are kept.
const LOG_LINES: usize = 400;

/// How often a condition without an event is asked for.
const POLL: Duration = Duration::from_millis(10);

/// How long the clean-up of one client or topic may take before it is left to the end of the process.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Gives a case its server, its clients, its names, its times and its log. Clones are the same context.
#[derive(Clone)]
pub(crate) struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    case: &'static Case,
    harness: Arc<dyn Harness>,
    server: Arc<dyn Server>,
    url: String,
    times: Times,
    capabilities: Capabilities,
    mq: OnceCell<Mq>,
    token: String,
    begun: Instant,
    history: History,
    state: Mutex<State>,
    counts: Counts,
    verdicts: HashMap<&'static str, Verdict>,
}

#[derive(Default)]
struct State {
    log: VecDeque<String>,
    left_out: usize,
    clients: Vec<Mq>,
    topics: Vec<String>,
    names: u64,
    refusal: Option<String>,
    measured: Vec<Measurement>,
    shown: Vec<(String, Show)>,
}

/// Says how something is now.
type Show = Box<dyn Fn() -> String + Send>;

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    delivered: AtomicU64,
    repeated: AtomicU64,
}

/// Names a time that the report shows beside its ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Measured {
    /// From a produce that was `Ok` to its hand-over.
    WakeUp,
    /// How late a redelivery came beyond its delay.
    RedeliverySlack,
    /// From a member's close to the first hand-over by its successor.
    CloseTakeover,
    /// From a member's kill to the first hand-over by its successor.
    CrashTakeover,
    /// From a member's freeze to the first hand-over by its successor.
    FreezeTakeover,
    /// From the deletion of a topic to the first `TopicNotFound` of every call.
    TopicGone,
    /// From the growth of a topic to its use.
    PartitionsSeen,
    /// From a server that is ready again to messages that flow.
    Recovery,
    /// How late a delayed message came.
    DelayLate,
}

/// Holds one measured time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured.
    pub what: Measured,
    /// How long it took, in milliseconds.
    pub millis: f64,
}

/// What a case leaves behind for the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Remains {
    pub(crate) log: Vec<String>,
    pub(crate) refusal: Option<String>,
    pub(crate) measured: Vec<Measurement>,
    pub(crate) sent: u64,
    pub(crate) delivered: u64,
    pub(crate) repeated: u64,
}

impl Context {
    /// Makes the context of one run of a case. The case's own client is opened when it is first asked for, so that
    /// what a case leaves unused costs it nothing.
    pub(crate) fn new(
        case: &'static Case,
        harness: Arc<dyn Harness>,
        server: Arc<dyn Server>,
        capabilities: Capabilities,
        verdicts: HashMap<&'static str, Verdict>,
    ) -> Self {
        let token: String = std::iter::repeat_with(fastrand::lowercase).take(8).collect();
        Self {
            inner: Arc::new(Inner {
                case,
                url: server.url(),
                times: harness.times(),
                harness,
                server,
                capabilities,
                mq: OnceCell::new(),
                token,
                begun: Instant::now(),
                history: History::new(),
                state: Mutex::default(),
                counts: Counts::default(),
                verdicts,
            }),
        }
    }

    /// Returns the harness.
    pub(crate) fn harness(&self) -> &Arc<dyn Harness> {
        &self.inner.harness
    }

    /// Returns what the backend is.
    pub(crate) fn nature(&self) -> Nature {
        self.inner.harness.nature()
    }

    /// Returns the server that the case works on.
    pub(crate) fn server(&self) -> &Arc<dyn Server> {
        &self.inner.server
    }

    /// Returns the server's URL.
    pub(crate) fn url(&self) -> &str {
        &self.inner.url
    }

    /// Returns the times that the driver declares.
    pub(crate) fn times(&self) -> &Times {
        &self.inner.times
    }

    /// Returns what the backend says it can do.
    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Tells whether the backend says that it can do this.
    pub(crate) fn can(&self, capability: Capability) -> bool {
        capability.of(&self.inner.capabilities).is_supported()
    }

    /// Returns how another case of this run went; only the last one is told.
    pub(crate) fn verdict(&self, id: &str) -> Option<Verdict> {
        self.inner.verdicts.get(id).copied()
    }

    /// Returns the case's own client, opened at the first call and closed behind the case.
    pub(crate) async fn mq(&self) -> CaseResult<&Mq> {
        self.inner.mq.get_or_try_init(|| self.connect()).await
    }

    /// Opens a client of its own; it is closed behind the case.
    pub(crate) async fn connect(&self) -> CaseResult<Mq> {
        let mq = self
            .within(
                "connect",
                Duration::from_secs(30),
                self.inner.harness.connect(self.url()),
            )
            .await??;
        self.keep(&mq);
        Ok(mq)
    }

    /// Opens a client with options of its own; it is closed behind the case.
    pub(crate) async fn connect_with(&self, options: ClientOptions) -> CaseResult<Mq> {
        let plain = self.connect().await?;
        let mq = Mq::from_driver_with(Forward::new(Arc::clone(plain.driver())), options);
        self.keep(&mq);
        Ok(mq)
    }

    /// Has a client closed behind the case.
    pub(crate) fn keep(&self, mq: &Mq) {
        self.state().clients.push(mq.clone());
    }

    /// Starts a group member that can be killed and frozen: a process of its own, or a runtime of its own where the
    /// messages live in this process. It ends with the value.
    pub(crate) async fn member(&self, name: &str) -> CaseResult<Member> {
        let kind = if self.nature().in_process {
            MemberKind::Runtime
        } else {
            MemberKind::Process
        };
        Member::start(self, name, kind).await
    }

    /// Makes a name that no other case and no other run uses; legal for topics and groups.
    pub(crate) fn name(&self, hint: &str) -> String {
        let mut state = self.state();
        state.names += 1;
        format!(
            "{}-{hint}-{}{}",
            self.inner.case.id.to_ascii_lowercase(),
            self.inner.token,
            state.names
        )
    }

    /// Creates a topic of its own; it is deleted behind the case. A case that needs one group names it like its topic, so
    /// that no two cases share a name: a backend may move the members of one name together, whatever they read.
    pub(crate) async fn topic(&self, hint: &str, partitions: u32) -> CaseResult<String> {
        let name = self.name(hint);
        self.delete_later(&name);
        self.mq()
            .await?
            .create_topic(&name, partitions)
            .await
            .map_err(|error| {
                Failure::from(error).during(format!("create topic {name} of {partitions} partitions"))
            })?;
        note!(self, "topic {name} of {partitions} partitions");
        Ok(name)
    }

    /// Has a topic deleted behind the case.
    pub(crate) fn delete_later(&self, topic: &str) {
        self.state().topics.push(topic.to_owned());
    }

    /// Waits for a future to its limit, and fails naming what it was.
    #[track_caller]
    pub(crate) fn within<F: Future>(
        &self,
        what: impl fmt::Display,
        limit: Duration,
        future: F,
    ) -> impl Future<Output = CaseResult<F::Output>> {
        let late = Failure::new(format!("{what} did not happen within {limit:?}"));
        async move { tokio::time::timeout(limit, future).await.map_err(|_| late) }
    }

    /// Asks until there is an answer, and fails at the limit naming what was waited for. `Ok(None)` means not yet.
    #[track_caller]
    pub(crate) fn eventually<T, F, P>(
        &self,
        what: impl fmt::Display,
        limit: Duration,
        mut probe: P,
    ) -> impl Future<Output = CaseResult<T>>
    where
        F: Future<Output = CaseResult<Option<T>>>,
        P: FnMut() -> F,
    {
        let late = Failure::new(format!("{what}: not within {limit:?}"));
        async move {
            let until = tokio::time::Instant::now() + limit;
            loop {
                match tokio::time::timeout_at(until, probe()).await {
                    Ok(answer) => {
                        if let Some(answer) = answer? {
                            return Ok(answer);
                        }
                    }
                    Err(_) => return Err(late),
                }
                if tokio::time::Instant::now() >= until {
                    return Err(late);
                }
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Watches that a future does not end for a while.
    #[track_caller]
    pub(crate) fn stays_pending<F: Future<Output: fmt::Debug>>(
        &self,
        what: impl fmt::Display,
        during: Duration,
        future: F,
    ) -> impl Future<Output = CaseResult> {
        let ended = Failure::new(format!("{what} within {during:?}, and should not"));
        async move {
            match tokio::time::timeout(during, future).await {
                Ok(output) => Err(ended.during(format!("{output:?}"))),
                Err(_) => Ok(()),
            }
        }
    }

    /// Does something to the server and fails where the harness could not.
    pub(crate) async fn fault(
        &self,
        what: &str,
        action: impl Future<Output = HarnessResult<()>>,
    ) -> CaseResult {
        note!(self, "server: {what}");
        action
            .await
            .map_err(|error| Failure::new(format!("the harness could not {what}: {error}")))
    }

    /// Writes a line into the log that is printed if the case fails.
    pub(crate) fn note(&self, line: impl Into<String>) {
        let line = format!(
            "{:>8.3} s  {}",
            self.inner.begun.elapsed().as_secs_f64(),
            line.into()
        );
        let mut state = self.state();
        if state.log.len() == LOG_LINES {
            state.log.pop_front();
            state.left_out += 1;
        }
        state.log.push_back(line);
    }

    /// Has the state of a member or a producer printed if the case fails.
    pub(crate) fn show(&self, what: impl Into<String>, state: impl Fn() -> String + Send + 'static) {
        self.state().shown.push((what.into(), Box::new(state)));
    }

    /// Writes the states into the log that a case wants to be seen when it fails.
    pub(crate) fn note_shown(&self) {
        let shown = std::mem::take(&mut self.state().shown);
        for (what, state) in shown {
            note!(self, "{what}: {}", state());
        }
    }

    /// Returns the case's history.
    pub(crate) fn history(&self) -> &History {
        &self.inner.history
    }

    /// Says that the backend refused what the case is about, as it declares. The case is reported so.
    pub(crate) fn refused(&self, why: impl Into<String>) {
        self.state().refusal = Some(why.into());
    }

    /// Puts a time into the report.
    pub(crate) fn measure(&self, what: Measured, time: Duration) {
        note!(self, "measured {what:?}: {time:?}");
        self.state().measured.push(Measurement {
            what,
            millis: time.as_secs_f64() * 1000.0,
        });
    }

    /// Counts messages answered `Ok` for the report.
    pub(crate) fn count_sent(&self, messages: usize) {
        self.inner
            .counts
            .sent
            .fetch_add(messages as u64, Ordering::Relaxed);
    }

    /// Counts a hand-over for the report; a repeated one is one whose attempt is above 1.
    pub(crate) fn count_delivered(&self, attempt: u32) {
        self.inner.counts.delivered.fetch_add(1, Ordering::Relaxed);
        if attempt > 1 {
            self.inner.counts.repeated.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Closes what the case has opened and deletes what it has made, each within a limit: a case that has broken its
    /// server cannot hold up the others.
    pub(crate) async fn clean_up(&self) {
        let (clients, topics) = {
            let mut state = self.state();
            state.shown.clear();
            (
                std::mem::take(&mut state.clients),
                std::mem::take(&mut state.topics),
            )
        };
        let shared = self.inner.case.isolation != crate::cases::Isolation::OwnServer;
        if shared
            && !topics.is_empty()
            && let Some(mq) = self.inner.mq.get()
        {
            // What cannot be deleted (the case may have closed the client) goes with the server.
            let _ = tokio::time::timeout(CLEAN_UP, mq.delete_topics(topics)).await;
        }
        let closes = clients.iter().map(Mq::close);
        let _ = tokio::time::timeout(CLEAN_UP, futures_util::future::join_all(closes)).await;
    }

    /// Takes what the report needs.
    pub(crate) fn remains(&self) -> Remains {
        let state = self.state();
        let mut log: Vec<String> = state.log.iter().cloned().collect();
        if state.left_out > 0 {
            log.insert(0, format!("({} earlier lines left out)", state.left_out));
        }
        Remains {
            log,
            refusal: state.refusal.clone(),
            measured: state.measured.clone(),
            sent: self.inner.counts.sent.load(Ordering::Relaxed),
            delivered: self.inner.counts.delivered.load(Ordering::Relaxed),
            repeated: self.inner.counts.repeated.load(Ordering::Relaxed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("case", &self.inner.case.id)
            .finish_non_exhaustive()
    }
}

use crate::failure::note;
