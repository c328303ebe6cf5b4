//! Runs the conformance suite against a broker that runs already: `conformance URL [--json FILE] [FILTER...]`.
//!
//! Cases that restart, kill, freeze or cut their server are left out, and the report says so: they need a harness that
//! owns a server. The topics that the suite makes are its own and are deleted again. The exit code says pass or fail.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance_tests::{Harness, HarnessResult, Nature, Server, ServerKind, Times};
use mq::Mq;

const USAGE: &str = "usage: conformance URL [--json FILE] [FILTER...]

Runs the cases whose names contain one of the filters, such as A3 or Settle's `acked`; without a filter, all of them.";

/// The broker that a URL names.
#[derive(Clone)]
struct Named {
    url: String,
}

impl Named {
    fn scheme(&self) -> &str {
        self.url.split("://").next().unwrap_or_default()
    }
}

#[async_trait]
impl Harness for Named {
    fn name(&self) -> &str {
        match self.scheme().trim_end_matches("+tls") {
            "rediss" => "redis",
            "amqps" => "amqp",
            other => other,
        }
    }

    async fn connect(&self, url: &str) -> mq::Result<Mq> {
        mq::connect(url).await
    }

    async fn server(&self, _kind: ServerKind) -> HarnessResult<Arc<dyn Server>> {
        let mut named = self.clone();
        if named.url == "memory://" {
            // Without a name, every connection would have a broker of its own.
            named.url.push_str("conformance");
        }
        if self.name() == "memory" && !self.url.contains('?') {
            // Without a lease, nobody takes over from a member that is frozen.
            named.url.push_str("?lease=30s&shared_lease=4s");
        }
        Ok(Arc::new(named))
    }

    fn times(&self) -> Times {
        match self.name() {
            "memory" => Times::default()
                .with_message_lease(Duration::from_secs(4))
                .with_session_timeout(Duration::from_secs(2))
                .with_retention(Duration::from_secs(5)),
            _ => Times::default(),
        }
    }

    fn url_at(&self, address: SocketAddr) -> Option<String> {
        (self.name() != "memory").then(|| format!("{}://{address}", self.scheme()))
    }

    fn nature(&self) -> Nature {
        match self.name() {
            "memory" => Nature::default().in_process(),
            "rocketmq" => Nature::default().delays_by_itself(),
            _ => Nature::default(),
        }
    }
}

#[async_trait]
impl Server for Named {
    fn url(&self) -> String {
        self.url.clone()
    }
}

struct Arguments {
    url: String,
    json: Option<PathBuf>,
    filters: Vec<String>,
}

fn arguments() -> Option<Arguments> {
    let mut words = std::env::args().skip(1);
    let mut arguments = Arguments {
        url: words.next().filter(|url| url.contains("://"))?,
        json: None,
        filters: Vec::new(),
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => arguments.json = Some(words.next()?.into()),
            flag if flag.starts_with('-') => return None,
            _ => arguments.filters.push(word),
        }
    }
    Some(arguments)
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is what the command is for"
)]
fn main() -> ExitCode {
    // Member processes get their URL from the suite; the harness needs it for its name alone.
    let url = std::env::args().nth(1).unwrap_or_default();
    if let Some(code) = conformance_tests::serve_child(Named { url }) {
        return code;
    }
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let harness = Named {
        url: arguments.url.clone(),
    };
    let filters = arguments.filters;
    let report = match conformance_tests::run_to_end(harness, move |name| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    }) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::from(2);
        }
    };
    println!("{report}\n{}", report.explain_failures());
    if let Some(path) = arguments.json
        && let Err(error) = std::fs::write(&path, report.to_json())
    {
        eprintln!("the report could not be written to {}: {error}", path.display());
        return ExitCode::from(2);
    }
    if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
