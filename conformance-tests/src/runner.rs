//! Runs the cases.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    process::{ExitCode, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::FutureExt;
use libtest_mimic::{Arguments, Failed, Trial};
use mq_api::Capabilities;
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{OnceCell, Semaphore, watch},
};

use crate::{
    capability::Capability,
    cases::{self, Case, Isolation},
    context::{Context, Remains},
    failure::{CaseResult, Failure},
    harness::{Harness, HarnessError, Server, ServerKind},
    member, proofs, refusal,
    report::{CaseReport, Report, Verdict},
};

/// Says to a re-executed process which case it is to run alone; the server's URL is in [`ALONE_URL`].
pub(crate) const ALONE: &str = "MQ_CONFORMANCE_ALONE";
const ALONE_URL: &str = "MQ_CONFORMANCE_ALONE_URL";

/// Begins the line on which a process that runs a case alone reports.
const ALONE_ANSWER: &str = "conformance-outcome: ";

/// Sets how many cases run at once on the shared server.
const PARALLEL: &str = "MQ_CONFORMANCE_PARALLEL";
const DEFAULT_PARALLEL: usize = 8;

/// How many cases with a server of their own run at once.
const OWN_SERVERS: usize = 2;

/// Names a file for the report as JSON.
const REPORT: &str = "MQ_CONFORMANCE_REPORT";

/// How long a server may need to start.
const SERVER_START: Duration = Duration::from_secs(300);

/// Runs the suite with the arguments of this process, as a test executable does: filters, `--list` and `--exact` work
/// as usual. Prints the report, and writes it as JSON where `MQ_CONFORMANCE_REPORT` names a file.
///
/// It also serves this executable's child processes, which it starts for members that are killed and for cases that
/// count threads and descriptors: call it first in `main`.
#[must_use]
pub fn run(harness: impl Harness) -> ExitCode {
    let harness: Arc<dyn Harness> = Arc::new(harness);
    if let Some(served) = serve(&harness) {
        return served;
    }
    let mut arguments = Arguments::from_args();
    let runtime = match runtime(4) {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => return complain(&format!("no runtime: {error}")),
    };
    let chosen = cases::all().filter(|case| is_chosen(&arguments, &case.full_name()));
    let suite = Arc::new(Suite::new(harness, chosen.count()));
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut trials = Vec::new();
    for (place, case) in cases::all().enumerate() {
        let (suite, runtime, done) = (Arc::clone(&suite), Arc::clone(&runtime), Arc::clone(&done));
        trials.push(Trial::test(case.full_name(), move || {
            let report = runtime.block_on(suite.run(case));
            let outcome = match report.verdict {
                Verdict::Failed => Err(Failed::from(explain(suite.harness.name(), &report))),
                _ => Ok(()),
            };
            lock(&done).push((place, report));
            outcome
        }));
    }
    if suite.harness.proves_the_rest() {
        for proof in proofs::PROOFS {
            let (runtime, harness) = (Arc::clone(&runtime), Arc::clone(&suite.harness));
            trials.push(Trial::test(proofs::name(proof), move || {
                let proved = runtime.block_on(proofs::prove(proof, harness));
                proved.map_err(|failure| Failed::from(failure.to_string()))
            }));
        }
    }
    // A thread a case: those wait for their turn in the suite, which knows how many may run at once.
    arguments.test_threads.get_or_insert(trials.len().max(1));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut reports = std::mem::take(&mut *lock(&done));
    if !reports.is_empty() {
        reports.sort_by_key(|(place, _)| *place);
        let reports = reports.into_iter().map(|(_, report)| report).collect();
        publish(&Report::new(
            suite.harness.name(),
            &suite.harness.times(),
            reports,
        ));
    }
    drop(suite);
    conclusion.exit_code()
}

/// Runs every case and returns the report, without a test runner around it.
///
/// The cases that run alone in a child process need the executable's `main` to call [`serve_child`] first.
pub async fn run_all(harness: impl Harness) -> Report {
    run_some(harness, |_| true).await
}

/// Runs the cases whose full names (such as `A3_nacked_message_comes_back`) a filter lets through, and returns the
/// report.
pub async fn run_some(harness: impl Harness, filter: impl Fn(&str) -> bool) -> Report {
    let harness: Arc<dyn Harness> = Arc::new(harness);
    let chosen: Vec<_> = cases::all().filter(|case| filter(&case.full_name())).collect();
    let suite = Arc::new(Suite::new(Arc::clone(&harness), chosen.len()));
    let runs = chosen.into_iter().map(|case| {
        let suite = Arc::clone(&suite);
        tokio::spawn(async move { suite.run(case).await })
    });
    let reports = futures_util::future::join_all(runs).await;
    let reports = reports.into_iter().filter_map(Result::ok).collect();
    Report::new(harness.name(), &harness.times(), reports)
}

/// Runs the cases that a filter lets through on a runtime of its own, and returns the report.
///
/// # Errors
/// The operating system's, where the runtime cannot be started.
pub fn run_to_end(harness: impl Harness, filter: impl Fn(&str) -> bool) -> std::io::Result<Report> {
    Ok(runtime(4)?.block_on(run_some(harness, filter)))
}

/// Serves this process if it is a child that the suite has started, and returns its exit code then.
#[must_use]
pub fn serve_child(harness: impl Harness) -> Option<ExitCode> {
    let harness: Arc<dyn Harness> = Arc::new(harness);
    serve(&harness)
}

fn serve(harness: &Arc<dyn Harness>) -> Option<ExitCode> {
    let harness = proofs::for_child(Arc::clone(harness));
    if let Ok(url) = std::env::var(member::MEMBER) {
        return Some(serve_member(harness, url));
    }
    std::env::var(ALONE).ok().map(|id| serve_alone(harness, &id))
}

/// What all cases of a run share.
pub(crate) struct Suite {
    harness: Arc<dyn Harness>,
    shared: OnceCell<(Arc<dyn Server>, Capabilities)>,
    beside: Semaphore,
    own: Semaphore,
    alone: Semaphore,
    /// How many cases of this run are not done.
    to_do: watch::Sender<usize>,
    verdicts: Mutex<HashMap<&'static str, Verdict>>,
}

impl Suite {
    /// Makes a suite that will run so many cases.
    pub(crate) fn new(harness: Arc<dyn Harness>, cases: usize) -> Self {
        let parallel = std::env::var(PARALLEL)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(DEFAULT_PARALLEL)
            .max(1);
        Self {
            harness,
            shared: OnceCell::new(),
            beside: Semaphore::new(parallel),
            own: Semaphore::new(OWN_SERVERS.min(parallel)),
            alone: Semaphore::new(1),
            to_do: watch::Sender::new(cases),
            verdicts: Mutex::default(),
        }
    }

    /// Runs one case when its turn has come.
    pub(crate) async fn run(&self, case: &'static Case) -> CaseReport {
        let turn = match case.isolation {
            Isolation::Shared => &self.beside,
            Isolation::OwnServer => &self.own,
            Isolation::Alone => &self.alone,
            Isolation::Last => {
                // Only this one is left; there is one such case.
                let _ = self.to_do.subscribe().wait_for(|left| *left <= 1).await;
                &self.beside
            }
        };
        let _turn = turn.acquire().await;
        let begun = Instant::now();
        let (verdict, detail, remains) = match self.decide(case).await {
            Ok(outcome) => outcome,
            Err(failure) => (Verdict::Failed, failure.to_string(), Remains::default()),
        };
        lock(&self.verdicts).insert(case.id, verdict);
        self.to_do.send_modify(|left| *left = left.saturating_sub(1));
        CaseReport::new(case, verdict, detail, begun.elapsed(), remains)
    }

    async fn decide(&self, case: &'static Case) -> CaseResult<(Verdict, String, Remains)> {
        if let Some(why) = cases::not_applicable(case, self.harness.nature()) {
            return Ok((Verdict::NotApplicable, why.to_owned(), Remains::default()));
        }
        let supplied = self.harness.faults();
        if let Some(fault) = case.faults.iter().find(|fault| !supplied.contains(fault)) {
            let why = format!("the harness does not supply {fault:?}");
            let verdict = if self.harness.must_supply_faults() {
                Verdict::Failed
            } else {
                Verdict::LeftOut
            };
            return Ok((verdict, why, Remains::default()));
        }
        match case.isolation {
            Isolation::Shared | Isolation::Last => {
                let (server, capabilities) = self.shared().await?;
                Ok(self.attempt(case, server, capabilities).await)
            }
            Isolation::OwnServer => {
                let (server, capabilities) = self.start(ServerKind::Own).await?;
                Ok(self.attempt(case, server, capabilities).await)
            }
            Isolation::Alone => {
                let (server, _) = self.shared().await?;
                run_alone(case, &server.url(), &*self.harness).await
            }
        }
    }

    async fn shared(&self) -> CaseResult<(Arc<dyn Server>, Capabilities)> {
        let shared = self.shared.get_or_try_init(|| self.start(ServerKind::Shared));
        shared.await.cloned()
    }

    async fn start(&self, kind: ServerKind) -> CaseResult<(Arc<dyn Server>, Capabilities)> {
        let started = tokio::time::timeout(SERVER_START, self.harness.server(kind)).await;
        let server = match started {
            Ok(Ok(server)) => server,
            Ok(Err(error)) => return Err(Failure::new(format!("the harness has no server: {error}"))),
            Err(_) => return Err(Failure::new(format!("no server within {SERVER_START:?}"))),
        };
        let capabilities = self.capabilities(&server.url()).await?;
        Ok((server, capabilities))
    }

    async fn capabilities(&self, url: &str) -> CaseResult<Capabilities> {
        let mq = self.harness.connect(url).await?;
        let capabilities = mq.capabilities().clone();
        mq.close().await?;
        Ok(capabilities)
    }

    /// Runs a case, or the refusal of what it needs, in a task of its own under its deadline.
    async fn attempt(
        &self,
        case: &'static Case,
        server: Arc<dyn Server>,
        capabilities: Capabilities,
    ) -> (Verdict, String, Remains) {
        let lacks = case
            .needs
            .iter()
            .copied()
            .find(|needed: &Capability| !needed.of(&capabilities).is_supported());
        let cx = Context::new(
            case,
            Arc::clone(&self.harness),
            Arc::clone(&server),
            capabilities,
            lock(&self.verdicts).clone(),
        );
        let work = match lacks {
            None => (case.run)(cx.clone()),
            Some(capability) => Box::pin(refusal::check(cx.clone(), capability)),
        };
        let task = tokio::spawn(AssertUnwindSafe(work).catch_unwind());
        let abort = task.abort_handle();
        let result = match tokio::time::timeout(case.deadline, task).await {
            Ok(Ok(Ok(result))) => result.map_err(|failure| failure.to_string()),
            Ok(Ok(Err(panic))) => Err(format!("panicked: {}", panic_text(&*panic))),
            Ok(Err(error)) => Err(format!("its task ended: {error}")),
            Err(_) => {
                abort.abort();
                Err(format!("not done within its deadline of {:?}", case.deadline))
            }
        };
        if result.is_err() {
            cx.note_shown();
        }
        let mut remains = cx.remains();
        cx.clean_up().await;
        match result {
            Ok(()) => match remains.refusal.take() {
                Some(why) => (Verdict::Refused, why, remains),
                None => (Verdict::Passed, String::new(), remains),
            },
            Err(text) => {
                let logs = server.logs();
                if !logs.is_empty() {
                    remains.log.push(format!("end of the server's logs:\n{logs}"));
                }
                (Verdict::Failed, text, remains)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells whether the test runner will run a case, by the runner's own rules.
fn is_chosen(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| {
        if arguments.exact {
            name == filter
        } else {
            name.contains(filter.as_str())
        }
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "with something that is not text".to_owned())
}

/// Says all that is known of a failure.
fn explain(harness: &str, report: &CaseReport) -> String {
    let mut text = format!("on {harness}: {}\n", report.detail);
    for line in &report.log {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// What a process that ran a case alone reports.
#[derive(Serialize, Deserialize)]
struct AloneAnswer {
    verdict: Verdict,
    detail: String,
    remains: Remains,
}

/// Makes a command that runs this executable once more, with the same arguments. The suite's own unit tests name the test in it that serves.
pub(crate) fn this_executable(harness: &dyn Harness) -> std::io::Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    if cfg!(test) {
        command.args(["mutants::serve_child", "--exact", "--nocapture"]);
    } else {
        command.args(std::env::args_os().skip(1));
    }
    command.envs(harness.child_environment());
    Ok(command)
}

/// Runs a case in a child process of its own.
async fn run_alone(
    case: &'static Case,
    url: &str,
    harness: &dyn Harness,
) -> CaseResult<(Verdict, String, Remains)> {
    let child = this_executable(harness)?
        .env(ALONE, case.id)
        .env(ALONE_URL, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let limit = case.deadline + Duration::from_secs(30);
    let output = match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(output) => output?,
        Err(_) => {
            return Err(Failure::new(format!(
                "the child process did not end within {limit:?}"
            )));
        }
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    let answer = printed.lines().find_map(|line| line.strip_prefix(ALONE_ANSWER));
    match answer.map(serde_json::from_str::<AloneAnswer>) {
        Some(Ok(answer)) => Ok((answer.verdict, answer.detail, answer.remains)),
        _ => Err(Failure::new(format!(
            "the child process ended with {} and no answer; it wrote: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}

/// Runs one case in this process, which runs nothing else.
#[expect(clippy::print_stdout, reason = "the parent process reads the answer there")]
fn serve_alone(harness: Arc<dyn Harness>, id: &str) -> ExitCode {
    let Some(case) = cases::all().find(|case| case.id == id) else {
        return complain(&format!("there is no case {id}"));
    };
    let runtime = match runtime(2) {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("no runtime: {error}")),
    };
    let answer = runtime.block_on(async {
        let suite = Suite::new(harness, 1);
        let url = std::env::var(ALONE_URL).unwrap_or_default();
        let capabilities = suite.capabilities(&url).await;
        let (verdict, detail, remains) = match capabilities {
            Ok(capabilities) => {
                let server: Arc<dyn Server> = Arc::new(Elsewhere { url });
                suite.attempt(case, server, capabilities).await
            }
            Err(failure) => (Verdict::Failed, failure.to_string(), Remains::default()),
        };
        AloneAnswer {
            verdict,
            detail,
            remains,
        }
    });
    println!(
        "\n{ALONE_ANSWER}{}",
        serde_json::to_string(&answer).unwrap_or_default()
    );
    runtime.shutdown_background();
    ExitCode::SUCCESS
}

fn serve_member(harness: Arc<dyn Harness>, url: String) -> ExitCode {
    let runtime = match runtime(2) {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("no runtime: {error}")),
    };
    runtime.block_on(member::serve_process(harness, url));
    // The thread that reads standard input may wait for a parent that keeps the pipe open.
    runtime.shutdown_background();
    ExitCode::SUCCESS
}

/// A server that the parent process holds.
struct Elsewhere {
    url: String,
}

#[async_trait]
impl Server for Elsewhere {
    fn url(&self) -> String {
        self.url.clone()
    }
}

pub(crate) fn runtime(workers: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
}

#[expect(clippy::print_stdout, reason = "the report is for whoever runs the suite")]
fn publish(report: &Report) {
    println!("{report}");
    if let Err(error) = write_json(report) {
        complain(&format!("the report could not be written: {error}"));
    }
}

/// Writes the report as JSON to the file that `MQ_CONFORMANCE_REPORT` names, if it does.
pub(crate) fn write_json(report: &Report) -> Result<(), HarnessError> {
    if let Some(path) = std::env::var_os(REPORT) {
        std::fs::write(path, report.to_json())?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "there is nobody else to tell")]
fn complain(text: &str) -> ExitCode {
    eprintln!("conformance: {text}");
    ExitCode::FAILURE
}
