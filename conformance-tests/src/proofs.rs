//! Proofs for the cases that the driver in memory cannot run: each is run once more on a real driver that is changed in
//! one behaviour, and must fail for the right reason.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use mq_api::{
    Capabilities, Error, ErrorKind, Mq, Result, TopicName,
    driver::{self, Consumer, Events, Subscription},
    url::ConnectUrl,
};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    cases::{self, BoxFuture},
    failure::{CaseResult, Failure},
    harness::{Fault, Harness, HarnessResult, Nature, Server, ServerKind, StoredFormat, Times},
    report::Verdict,
    runner::Suite,
    wrap::{Tweak, Tweaked},
};

/// Says to a re-executed process which of [`PROOFS`] it belongs to.
const PROOF: &str = "MQ_CONFORMANCE_PROOF";

/// Pairs a case with a change that must fail it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proof {
    pub(crate) case: &'static str,
    /// What the changed driver does, in words.
    mutant: &'static str,
    change: Change,
    /// What the failure must say.
    says: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    /// Stands between the portable layer and the driver.
    Driver(fn() -> Arc<dyn Tweak>),
    /// Is what a connect does that has failed; it gets the URL and the error.
    FailedConnect(fn(String, Error) -> BoxFuture<Error>),
}

/// All of them.
pub(crate) const PROOFS: &[Proof] = &[
    Proof {
        case: "C2b",
        mutant: "goes by the name of the group and forgets its topic",
        change: Change::Driver(|| Arc::new(ForgetsTopics)),
        says: "lost: ",
    },
    Proof {
        case: "F4",
        mutant: "gives no kind to the errors of a connect",
        change: Change::FailedConnect(|_, error| {
            Box::pin(async move { Error::new(ErrorKind::Other, error.context()) })
        }),
        says: "was to be a connection error or a timeout, it gave Other",
    },
    Proof {
        case: "F6",
        mutant: "keeps whatever a peer sends",
        change: Change::FailedConnect(|url, error| Box::pin(keep_all(url, error))),
        says: "unbounded: peers that sent 64 MB of junk each",
    },
];

/// Runs one proof; fails unless the changed driver fails the case for the right reason.
pub(crate) async fn prove(proof: &'static Proof, harness: Arc<dyn Harness>) -> CaseResult {
    let Some(case) = cases::all().find(|case| case.id == proof.case) else {
        return Err(Failure::new(format!("there is no case {}", proof.case)));
    };
    let changed = Changed {
        inner: harness,
        proof,
    };
    let report = Suite::new(Arc::new(changed), 1).run(case).await;
    if report.verdict == Verdict::Failed && report.detail.contains(proof.says) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} on a driver that {}: {:?}, wanted is a failure that says {:?}\n  {}\n    {}",
        case.full_name(),
        proof.mutant,
        report.verdict,
        proof.says,
        report.detail,
        report.log.join("\n    ")
    )))
}

/// Names a proof in the runner's summary.
pub(crate) fn name(proof: &Proof) -> String {
    format!("{}_fails_on_a_mutant", proof.case)
}

/// Changes the harness of a child process that belongs to a proof.
pub(crate) fn for_child(harness: Arc<dyn Harness>) -> Arc<dyn Harness> {
    let named = std::env::var(PROOF).ok();
    let proof = named.and_then(|case| PROOFS.iter().find(|proof| proof.case == case));
    match proof {
        Some(proof) => Arc::new(Changed {
            inner: harness,
            proof,
        }),
        None => harness,
    }
}

/// A harness whose driver is changed in one behaviour.
struct Changed {
    inner: Arc<dyn Harness>,
    proof: &'static Proof,
}

#[async_trait]
impl Harness for Changed {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn connect(&self, url: &str) -> Result<Mq> {
        let connected = self.inner.connect(url).await;
        match (self.proof.change, connected) {
            (Change::Driver(tweak), Ok(mq)) => {
                Ok(Mq::from_driver(Tweaked::new(Arc::clone(mq.driver()), tweak())))
            }
            (Change::FailedConnect(change), Err(error)) => Err(change(url.to_owned(), error).await),
            (_, connected) => connected,
        }
    }

    async fn server(&self, kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        self.inner.server(kind).await
    }

    fn url_at(&self, address: SocketAddr) -> Option<String> {
        self.inner.url_at(address)
    }

    fn expected(&self) -> Option<Capabilities> {
        self.inner.expected()
    }

    fn times(&self) -> Times {
        // What does not come is given up soon.
        self.inner.times().with_progress(Duration::from_secs(5))
    }

    fn nature(&self) -> Nature {
        self.inner.nature()
    }

    fn faults(&self) -> &'static [Fault] {
        self.inner.faults()
    }

    fn must_supply_faults(&self) -> bool {
        self.inner.must_supply_faults()
    }

    fn formats(&self) -> Vec<Arc<dyn StoredFormat>> {
        self.inner.formats()
    }

    fn child_environment(&self) -> Vec<(&'static str, String)> {
        vec![(PROOF, self.proof.case.to_owned())]
    }
}

/// Takes the first of a case's topics for the topic of every group.
#[derive(Debug)]
struct ForgetsTopics;

#[async_trait]
impl Tweak for ForgetsTopics {
    async fn consumer(
        &self,
        inner: &dyn driver::Mq,
        mut subscription: Subscription,
    ) -> Result<(Arc<dyn Consumer>, Box<dyn Events>)> {
        let case = |topic: &TopicName| topic.as_str().split('-').next().map(str::to_owned);
        let wanted = case(&subscription.topic);
        let topics = inner.list_topics().await?;
        if let Some(first) = topics.into_iter().filter(|topic| case(topic) == wanted).min() {
            subscription.topic = first;
        }
        inner.consumer(subscription).await
    }
}

/// Reads all that the peer has to say, and keeps it.
async fn keep_all(url: String, error: Error) -> Error {
    /// How long the peer may say nothing. A limit for the whole would keep too little on a machine that is busy.
    const PATIENCE: Duration = Duration::from_secs(5);
    let Ok(url) = ConnectUrl::parse(&url) else {
        return error;
    };
    let mut kept = Vec::new();
    for host in url.hosts() {
        if let Ok(mut peer) = TcpStream::connect((host.name.as_str(), host.port.unwrap_or_default())).await {
            while let Ok(Ok(1..)) = tokio::time::timeout(PATIENCE, peer.read_buf(&mut kept)).await {}
        }
    }
    drop(kept);
    error
}
