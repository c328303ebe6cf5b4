//! A group member that can be killed and frozen, as cases see it.

use std::{
    process::Stdio,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Child,
    sync::{Notify, mpsc, oneshot},
};

use crate::{
    agent::{self, Command, ConsumerSpec, Death, Report, Seen, SeenError, Settle, ToSend},
    context::Context,
    failure::{CaseResult, Failure, fail, note},
    harness::Harness,
};

/// Says to a re-executed process that it is a member.
pub(crate) const MEMBER: &str = "MQ_CONFORMANCE_MEMBER";

/// How long a member may need for what does not depend on messages: to start, to answer, to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says what a member runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberKind {
    /// The test executable, run once more.
    Process,
    /// A thread with a runtime of its own; killing it drops the runtime with everything in it.
    Runtime,
}

/// Holds a member. Dropping it kills it.
pub(crate) struct Member {
    name: String,
    cx: Context,
    commands: mpsc::UnboundedSender<Command>,
    answers: mpsc::UnboundedReceiver<Report>,
    seen: Arc<Sightings>,
    body: Body,
}

/// What a member has reported so far.
#[derive(Default)]
struct Sightings {
    state: Mutex<Vec<Seen>>,
    more: Notify,
}

enum Body {
    Process(Box<Child>),
    Runtime(Thread),
    Dead,
}

struct Thread {
    gate: Arc<Gate>,
    kill: Option<oneshot::Sender<()>>,
    handle: Option<std::thread::JoinHandle<()>>,
}

/// Blocks a member's thread, and so everything in its runtime.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    asked: AtomicBool,
    ask: Notify,
    blocked: Notify,
}

impl Member {
    /// Starts a member and waits until its client is connected.
    pub(crate) async fn start(cx: &Context, name: &str, kind: MemberKind) -> CaseResult<Self> {
        let (commands, from_case) = mpsc::unbounded_channel();
        let (to_case, reports) = mpsc::unbounded_channel();
        let body = match kind {
            MemberKind::Process => Body::Process(Box::new(spawn_process(cx, from_case, to_case)?)),
            MemberKind::Runtime => Body::Runtime(spawn_thread(cx, from_case, to_case)?),
        };
        let seen = Arc::new(Sightings::default());
        let answers = sort(cx.clone(), name.to_owned(), reports, Arc::clone(&seen));
        let mut member = Self {
            name: name.to_owned(),
            cx: cx.clone(),
            commands,
            answers,
            seen,
            body,
        };
        member.done("start").await?;
        Ok(member)
    }

    /// Opens the member's consumer.
    pub(crate) async fn consume(&mut self, spec: ConsumerSpec) -> CaseResult {
        self.ask(Command::Consume(spec))?;
        self.done("open its consumer").await
    }

    /// Has the member take and settle so many messages, and returns them.
    pub(crate) async fn take(&mut self, n: usize, settle: Settle) -> CaseResult<Vec<Seen>> {
        let before = self.seen().len();
        self.ask(Command::Take { n, settle })?;
        self.done(&format!("take {n} messages")).await?;
        Ok(self.seen().split_off(before))
    }

    /// Has the member take and settle what comes until it is stopped.
    pub(crate) async fn run(&mut self, settle: Settle) -> CaseResult {
        self.ask(Command::Run { settle })?;
        self.done("run").await
    }

    /// Ends [`run`](Self::run).
    pub(crate) async fn stop(&mut self) -> CaseResult {
        self.ask(Command::Stop)?;
        self.done("stop").await
    }

    /// Settles a message that the member kept; returns the error's kind and text where it was refused.
    pub(crate) async fn settle(&mut self, seen: &Seen, settle: Settle) -> CaseResult<Result<(), SeenError>> {
        self.ask(Command::Settle {
            partition: seen.partition,
            offset: seen.offset,
            settle,
        })?;
        self.outcome("settle").await
    }

    /// Has the member's process die at the hand-over of this payload.
    pub(crate) async fn die_on(&mut self, payload: &str) -> CaseResult {
        self.ask(Command::DieOn {
            payload: payload.to_owned(),
        })?;
        self.done("be told when to die").await
    }

    /// Waits until what the member has acked is stored.
    pub(crate) async fn commit(&mut self) -> CaseResult<Result<(), SeenError>> {
        self.ask(Command::Commit)?;
        self.outcome("commit").await
    }

    /// Closes the member's consumer.
    pub(crate) async fn close(&mut self) -> CaseResult {
        self.ask(Command::Close)?;
        self.done("close").await
    }

    /// Returns the partitions that the member owns, with their epochs.
    pub(crate) async fn assignment(&mut self) -> CaseResult<Vec<(u32, u64)>> {
        self.ask(Command::Assignment)?;
        match self.answer("tell its assignment").await? {
            Report::Assignment(owned) => Ok(owned),
            other => self.confused(&other),
        }
    }

    /// Has the member produce messages, one after the other.
    pub(crate) async fn produce(
        &mut self,
        topic: &str,
        messages: Vec<ToSend>,
    ) -> CaseResult<Vec<Result<(u32, Option<u64>), SeenError>>> {
        self.ask(Command::Produce {
            topic: topic.to_owned(),
            messages,
        })?;
        match self.answer("produce").await? {
            Report::Sent(sent) => Ok(sent),
            Report::Done(Some(error)) => fail!("member {} could not produce: {}", self.name, error.text),
            other => self.confused(&other),
        }
    }

    /// Returns everything that was handed over to the member so far, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Waits until what was handed over to the member satisfies a condition.
    pub(crate) async fn wait_seen(
        &self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&[Seen]) -> bool,
    ) -> CaseResult<Vec<Seen>> {
        let waiting = async {
            loop {
                let more = self.seen.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                let seen = self.seen();
                if condition(&seen) {
                    return seen;
                }
                more.await;
            }
        };
        match tokio::time::timeout(limit, waiting).await {
            Ok(seen) => Ok(seen),
            Err(_) => fail!(
                "member {}: {what}: not within {limit:?}; it saw {} messages",
                self.name,
                self.seen().len()
            ),
        }
    }

    /// Kills the member without notice and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> CaseResult {
        note!(self.cx, "member {}: killed", self.name);
        match std::mem::replace(&mut self.body, Body::Dead) {
            Body::Process(mut child) => child.kill().await?,
            Body::Runtime(mut thread) => {
                thread.end();
                if let Some(handle) = thread.handle.take() {
                    let joined = tokio::task::spawn_blocking(move || handle.join());
                    if joined.await?.is_err() {
                        fail!("member {} panicked", self.name);
                    }
                }
            }
            Body::Dead => {}
        }
        Ok(())
    }

    /// Tells whether the member has ended by itself.
    pub(crate) fn has_ended(&mut self) -> CaseResult<bool> {
        Ok(match &mut self.body {
            Body::Process(child) => child.try_wait()?.is_some(),
            Body::Runtime(thread) => thread
                .handle
                .as_ref()
                .is_none_or(std::thread::JoinHandle::is_finished),
            Body::Dead => true,
        })
    }

    /// Stops everything in the member: its connections stand and nothing answers.
    pub(crate) async fn freeze(&mut self) -> CaseResult {
        note!(self.cx, "member {}: frozen", self.name);
        match &self.body {
            Body::Process(child) => signal(child, Signal::Stop),
            Body::Runtime(thread) => {
                let blocked = thread.gate.blocked.notified();
                tokio::pin!(blocked);
                blocked.as_mut().enable();
                thread.gate.shut();
                self.cx
                    .within(format!("freeze of member {}", self.name), PATIENCE, blocked)
                    .await
            }
            Body::Dead => fail!("member {} is dead", self.name),
        }
    }

    /// Lets a frozen member go on.
    pub(crate) async fn thaw(&mut self) -> CaseResult {
        note!(self.cx, "member {}: thawed", self.name);
        match &self.body {
            Body::Process(child) => signal(child, Signal::Continue),
            Body::Runtime(thread) => {
                thread.gate.open();
                Ok(())
            }
            Body::Dead => fail!("member {} is dead", self.name),
        }
    }

    fn ask(&self, command: Command) -> CaseResult {
        note!(self.cx, "member {}: {}", self.name, brief(&command));
        self.commands
            .send(command)
            .map_err(|_| Failure::new(format!("member {} is gone", self.name)))
    }

    async fn answer(&mut self, what: &str) -> CaseResult<Report> {
        let limit = PATIENCE + self.cx.times().progress;
        match tokio::time::timeout(limit, self.answers.recv()).await {
            Ok(Some(report)) => Ok(report),
            Ok(None) => fail!("member {} died when it was to {what}", self.name),
            Err(_) => {
                let seen = self.seen();
                fail!(
                    "member {} did not {what} within {limit:?}; it saw {} messages, the last {:?}",
                    self.name,
                    seen.len(),
                    seen.last()
                )
            }
        }
    }

    async fn outcome(&mut self, what: &str) -> CaseResult<Result<(), SeenError>> {
        match self.answer(what).await? {
            Report::Done(None) => Ok(Ok(())),
            Report::Done(Some(error)) => Ok(Err(error)),
            other => self.confused(&other),
        }
    }

    async fn done(&mut self, what: &str) -> CaseResult {
        match self.outcome(what).await? {
            Ok(()) => Ok(()),
            Err(error) => fail!("member {} could not {what}: {}", self.name, error.text),
        }
    }

    fn confused<T>(&self, report: &Report) -> CaseResult<T> {
        fail!("member {} answered something else: {report:?}", self.name)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A process is killed by the drop of its handle.
        if let Body::Runtime(thread) = &mut self.body {
            thread.end();
        }
    }
}

impl Sightings {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Thread {
    fn end(&mut self) {
        self.gate.open();
        if let Some(kill) = self.kill.take() {
            let _ = kill.send(());
        }
    }
}

impl Gate {
    fn shut(&self) {
        *self.shut.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.asked.store(true, Ordering::SeqCst);
        self.ask.notify_one();
    }

    fn open(&self) {
        *self.shut.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.opened.notify_all();
    }

    /// Blocks the thread while the gate is shut. That it blocks a runtime is what it is for.
    fn pass(&self) {
        self.blocked.notify_one();
        let mut shut = self.shut.lock().unwrap_or_else(PoisonError::into_inner);
        while *shut {
            shut = self.opened.wait(shut).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Shows a command in the log.
fn brief(command: &Command) -> String {
    match command {
        Command::Produce { topic, messages } => format!("produce {} messages to {topic}", messages.len()),
        Command::Consume(spec) => format!("consume {} as {}", spec.topic, spec.group),
        other => format!("{other:?}"),
    }
}

/// Parts a member's sightings from its answers.
fn sort(
    cx: Context,
    name: String,
    mut reports: mpsc::UnboundedReceiver<Report>,
    seen: Arc<Sightings>,
) -> mpsc::UnboundedReceiver<Report> {
    let (to_case, answers) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(report) = reports.recv().await {
            match report {
                Report::Seen(one) => {
                    note!(
                        cx,
                        "member {name} got {:?} (partition {}, offset {}, attempt {}, epoch {})",
                        crate::flow::shorten(&one.payload),
                        one.partition,
                        one.offset,
                        one.attempt,
                        one.epoch
                    );
                    cx.count_delivered(one.attempt);
                    seen.lock().push(one);
                    seen.more.notify_waiters();
                }
                Report::Trouble(error) => {
                    note!(cx, "member {name} met: {}", error.text);
                }
                answer => {
                    if to_case.send(answer).is_err() {
                        break;
                    }
                }
            }
        }
    });
    answers
}

fn spawn_process(
    cx: &Context,
    mut commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::UnboundedSender<Report>,
) -> CaseResult<Child> {
    let mut child = crate::runner::this_executable(&**cx.harness())?
        .env(MEMBER, cx.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        fail!("a member's pipes are missing")
    };
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            let Ok(mut line) = serde_json::to_vec(&command) else {
                break;
            };
            line.push(b'\n');
            if stdin.write_all(&line).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // What else the process prints is none of ours.
            if let Ok(report) = serde_json::from_str(&line)
                && reports.send(report).is_err()
            {
                break;
            }
        }
    });
    Ok(child)
}

fn spawn_thread(
    cx: &Context,
    commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::UnboundedSender<Report>,
) -> CaseResult<Thread> {
    let (kill, killed) = oneshot::channel();
    let gate = Arc::new(Gate::default());
    let (harness, url, inside) = (Arc::clone(cx.harness()), cx.url().to_owned(), Arc::clone(&gate));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = std::thread::Builder::new()
        .name("conformance-member".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let freezes = async {
                    loop {
                        inside.ask.notified().await;
                        if inside.asked.swap(false, Ordering::SeqCst) {
                            inside.pass();
                        }
                    }
                };
                tokio::select! {
                    () = agent::serve(harness, url, commands, reports, Death::EndRuntime) => {}
                    () = freezes => {}
                    _ = killed => {}
                }
            });
            // Whatever still runs goes with the runtime, as it would with a process.
            runtime.shutdown_background();
        })?;
    Ok(Thread {
        gate,
        kill: Some(kill),
        handle: Some(handle),
    })
}

#[derive(Clone, Copy)]
enum Signal {
    Stop,
    Continue,
}

#[cfg(unix)]
fn signal(child: &Child, signal: Signal) -> CaseResult {
    use rustix::process::{Pid, Signal as Unix, kill_process};
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
        .ok_or_else(|| Failure::new("the member has ended"))?;
    let signal = match signal {
        Signal::Stop => Unix::STOP,
        Signal::Continue => Unix::CONT,
    };
    Ok(kill_process(pid, signal)?)
}

#[cfg(not(unix))]
fn signal(_child: &Child, _signal: Signal) -> CaseResult {
    fail!("members cannot be frozen on this platform")
}

/// Serves as a member in a re-executed process: commands come by standard input, reports go by standard output.
pub(crate) async fn serve_process(harness: Arc<dyn Harness>, url: String) {
    let (to_agent, commands) = mpsc::unbounded_channel();
    let (reports, mut from_agent) = mpsc::unbounded_channel::<Report>();
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        // The end of the input is the end of the case: the member closes and ends.
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(command) = serde_json::from_str(&line) else {
                break;
            };
            if to_agent.send(command).is_err() {
                break;
            }
        }
    });
    let writer = tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        while let Some(report) = from_agent.recv().await {
            let Ok(mut line) = serde_json::to_vec(&report) else {
                break;
            };
            line.push(b'\n');
            if stdout.write_all(&line).await.is_err() || stdout.flush().await.is_err() {
                break;
            }
        }
    });
    agent::serve(harness, url, commands, reports, Death::Abort).await;
    let _ = writer.await;
}
