//! The nameservers of a cluster, any of which can answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::pool::Pool;
use crate::remoting::{Command, ConnectionOptions, EncodeBody, RefuseInbound, RemotingError, Request};

/// How long a list from an address service is used.
const SERVICE_REFRESH: Duration = Duration::from_secs(120);
/// How long one question to an address service may take.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the addresses of nameservers come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameserverSource {
    /// A fixed list of `host:port`.
    List(Vec<String>),
    /// An `http` URL that answers with addresses between semicolons; asked every two minutes.
    Http(String),
}

impl NameserverSource {
    /// Reads addresses between semicolons, the form of the variable `NAMESRV_ADDR`.
    pub fn parse_list(text: &str) -> Self {
        Self::List(split(text))
    }
}

fn split(text: &str) -> Vec<String> {
    text.split([';', ','])
        .map(str::trim)
        .filter(|a| !a.is_empty())
        .map(str::to_owned)
        .collect()
}

#[derive(Debug)]
pub(super) struct Nameservers {
    source: NameserverSource,
    timeout: Duration,
    pool: Pool,
    known: Mutex<Known>,
    /// The index of the one that answered last.
    current: AtomicUsize,
}

#[derive(Debug)]
struct Known {
    addresses: Arc<[String]>,
    asked: Option<Instant>,
}

impl Nameservers {
    pub(super) fn new(source: NameserverSource, timeout: Duration, options: ConnectionOptions) -> Self {
        let addresses: Arc<[String]> = match &source {
            NameserverSource::List(list) => list.clone().into(),
            NameserverSource::Http(_) => Arc::default(),
        };
        let current = AtomicUsize::new(fastrand::usize(..addresses.len().max(1)));
        let known = Mutex::new(Known {
            addresses,
            asked: None,
        });
        Self {
            source,
            timeout,
            pool: Pool::new(options, Arc::new(RefuseInbound)),
            known,
            current,
        }
    }

    /// Asks one after the other until one answers, whatever its code.
    pub(super) async fn call<R: Request, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Command, RemotingError> {
        let addresses = self.addresses(deadline).await?;
        let first = self.current.load(Ordering::Relaxed);
        let mut last = None;
        for turn in 0..addresses.len() {
            let index = (first + turn) % addresses.len();
            let Some(address) = addresses.get(index) else {
                continue;
            };
            // Each gets a fair share of the time that is left, so that one that is silent leaves some to the next; the
            // last one gets all.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - turn).unwrap_or(1);
            let until = if turn + 1 == addresses.len() {
                deadline
            } else {
                Instant::now() + share.min(self.timeout)
            };
            match self.ask(address, request, body, until).await {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => {
                    tracing::debug!(address, %error, "a nameserver did not answer");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(none))
    }

    /// Asks all at once; one result each, in the order of the list.
    pub(super) async fn call_all<R: Request + Sync, B: EncodeBody + Sync + ?Sized>(
        &self,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Vec<Result<Command, RemotingError>>, RemotingError> {
        let addresses = self.addresses(deadline).await?;
        // A silent one among several must not use up the time of what comes after.
        let until = if addresses.len() == 1 {
            deadline
        } else {
            deadline.min(Instant::now() + self.timeout)
        };
        let mut answers = Vec::with_capacity(addresses.len());
        // Few, and seldom asked: one after the other would do, but a dead one must not use up the others' time.
        let calls = addresses
            .iter()
            .map(|address| self.ask(address, request, body, until));
        for answer in join_all(calls).await {
            answers.push(answer);
        }
        Ok(answers)
    }

    async fn ask<R: Request, B: EncodeBody + ?Sized>(
        &self,
        address: &str,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Command, RemotingError> {
        let (connection, _) = self.pool.connect(address, deadline).await?;
        match connection.call(request, body, deadline).await {
            Err(RemotingError::GoAway { .. }) => {
                let (connection, _) = self.pool.connect(address, deadline).await?;
                connection.call(request, body, deadline).await
            }
            outcome => outcome,
        }
    }

    async fn addresses(&self, deadline: Instant) -> Result<Arc<[String]>, RemotingError> {
        let (known, due) = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            (
                known.addresses.clone(),
                known.asked.is_none_or(|asked| asked.elapsed() >= SERVICE_REFRESH),
            )
        };
        let NameserverSource::Http(url) = &self.source else {
            return if known.is_empty() { Err(none()) } else { Ok(known) };
        };
        if !due && !known.is_empty() {
            return Ok(known);
        }
        let outcome = super::http::get(url, deadline.min(Instant::now() + SERVICE_TIMEOUT)).await;
        let mut state = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome.map(|text| split(&text)) {
            Ok(list) if !list.is_empty() => state.addresses = list.into(),
            Ok(_) => tracing::warn!("the address service named no nameserver"),
            Err(error) => tracing::warn!(%error, "the address service did not answer"),
        }
        state.asked = Some(Instant::now());
        if state.addresses.is_empty() {
            Err(none())
        } else {
            Ok(state.addresses.clone())
        }
    }

    pub(super) async fn close(&self, deadline: Instant) {
        self.pool.close(deadline).await;
    }
}

fn none() -> RemotingError {
    RemotingError::NoServer {
        what: "nameserver".into(),
        rule: "no address is known".into(),
    }
}
