//! The partitioned consumer: a member of a classic group with cooperative assignment.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mq_api::{
    Error, ErrorKind, Offset, Position, Result,
    driver::{self, AssignmentId, Commit, CommitOutcome, Events, Subscription},
};
use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    client::{self, Client},
    config::{self, MIN_SESSION_TIMEOUT},
    error, ffi,
    format::Stored,
    member::{self, Job, LeaveOnDrop, Member, MemberContext},
    outbox::{KafkaEvents, Outbox},
    session,
};

/// How long a commit that met a new generation of the group is tried again before that is an error.
const REBALANCE_LIMIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Controls one member of a group on Kafka.
#[derive(Debug)]
pub(crate) struct KafkaConsumer {
    member: Arc<Member>,
    /// Closes when the member has left.
    ended: watch::Receiver<()>,
    _guard: LeaveOnDrop,
}

/// Joins a group.
pub(crate) async fn join(
    client: &Arc<Client>,
    subscription: Subscription,
) -> Result<(Arc<dyn driver::Consumer>, Box<dyn Events>)> {
    config::check_properties(subscription.properties.iter().map(|(name, _)| name.as_str()))?;
    let session = subscription
        .session_timeout
        .unwrap_or(client.config.session_timeout);
    if session < MIN_SESSION_TIMEOUT {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("session timeout {session:?}: it is at least {MIN_SESSION_TIMEOUT:?}"),
        ));
    }
    let topic = subscription.topic.as_str().to_owned();
    let watch = client.watch(&topic).await?;
    let begun = begin(client, &subscription, watch.id.as_deref(), watch.partitions()).await?;

    let (jobs, todo) = mpsc::unbounded_channel();
    let outbox = Arc::new(Outbox::new(jobs.clone(), subscription.prefetch));
    let link = Arc::new(member::link(&topic, &client.cause, Arc::clone(&outbox), jobs));
    let mut settings = client
        .config
        .member(subscription.group.as_str(), subscription.prefetch, session);
    for (name, value) in &subscription.properties {
        settings.set(name, value);
    }
    let context = MemberContext {
        link: Arc::clone(&link),
    };
    let consumer: BaseConsumer<MemberContext> = settings
        .create_with_context(context)
        .map_err(|error| error::from_kafka("opening a consumer", &error))?;
    // One heartbeat may be on its way when the broker begins to count, and the clocks of both are not the same.
    let lease = session - config::heartbeat(session) - session / 10;
    let member = Arc::new(Member::new(
        Arc::clone(client),
        watch,
        subscription.topic,
        subscription.group,
        subscription.clock,
        lease,
        Arc::clone(&link),
        begun.start,
        consumer,
    ));
    let (alive, ended) = watch::channel(());
    let serving = Arc::clone(&member);
    client::spawn("mq-kafka-member", move || member::run(&serving, alive))?;
    let events = KafkaEvents {
        outbox: Arc::clone(&outbox),
        _guard: LeaveOnDrop(Arc::clone(&member)),
    };
    let consumer = KafkaConsumer {
        member: Arc::clone(&member),
        ended: ended.clone(),
        _guard: LeaveOnDrop(Arc::clone(&member)),
    };
    // Both end when the member leaves, which the guards ask it to.
    tokio::spawn(session::run(Arc::clone(&member), subscription.prefetch, todo));
    tokio::spawn(session::pass_wakes_on(Arc::clone(&member), ended.clone()));
    member
        .consumer()?
        .subscribe(&[&topic])
        .map_err(|error| error::from_kafka("subscribing", &error))?;
    if begun.new {
        // From here on nobody can store another start for the group from outside.
        wait_until_joined(&member, client.config.request_timeout).await?;
    }
    Ok((Arc::new(consumer), Box::new(events)))
}

/// Says where a group begins.
struct Begun {
    /// Whether it had nothing stored for some partition.
    new: bool,
    start: HashMap<u32, Offset>,
}

/// Resolves the start of a group and stores it where nothing is stored yet. While the group has members, it is their
/// coordinator that keeps others from storing; what is refused so is stored by the member that gets the partition.
async fn begin(
    client: &Client,
    subscription: &Subscription,
    topic_id: Option<&str>,
    partitions: u32,
) -> Result<Begun> {
    let topic = subscription.topic.as_str();
    let all: Vec<u32> = (0..partitions).collect();
    let stored = client.stored(topic, &subscription.group, &all, topic_id).await?;
    let new: Vec<u32> = all
        .into_iter()
        .filter(|partition| !stored.contains_key(partition))
        .collect();
    if new.is_empty() {
        return Ok(Begun {
            new: false,
            start: HashMap::new(),
        });
    }
    let offsets = client.resolve(topic, new.clone(), subscription.start).await?;
    let start: HashMap<u32, Offset> = new.iter().copied().zip(offsets).collect();
    let beside = Stored {
        topic_id: topic_id.map(str::to_owned),
        ..Stored::default()
    };
    let (group, name) = (subscription.group.as_str().to_owned(), topic.to_owned());
    let positions = start.clone();
    let refused = client
        .ask(format!("group {group:?}"), move |client, limit| {
            let list = client::partition_list(&name, &new, |partition| {
                client::raw_offset(positions.get(&partition).copied().unwrap_or(0))
            })?;
            for mut element in list.elements() {
                let position = u64::try_from(element.partition())
                    .ok()
                    .and_then(|partition| positions.get(&u32::try_from(partition).ok()?))
                    .copied()
                    .unwrap_or(0);
                element.set_metadata(beside.encode(position));
            }
            match ffi::store_group_offsets(client, &group, &list, limit) {
                Ok(()) => Ok(false),
                // The group has members: one of them stores it.
                Err(
                    Code::UnknownMemberId
                    | Code::NonEmptyGroup
                    | Code::IllegalGeneration
                    | Code::RebalanceInProgress,
                ) => Ok(true),
                Err(code) => Err(code),
            }
        })
        .await?;
    if refused {
        tracing::debug!(topic, group = %subscription.group, "the group has members already, who store its start");
    }
    Ok(Begun { new: true, start })
}

async fn wait_until_joined(member: &Member, limit: Duration) -> Result<()> {
    let mut joined = member.link.joined.subscribe();
    let by = tokio::time::Instant::now() + limit;
    loop {
        if *joined.borrow_and_update() {
            return Ok(());
        }
        if let Some(error) = member.link.outbox.ended() {
            return Err(error);
        }
        let wait = Duration::from_millis(50);
        // An error that ends the member does not change `joined`: look from time to time.
        let _ = tokio::time::timeout(wait, joined.changed()).await;
        if tokio::time::Instant::now() >= by {
            let error = Error::timeout(&format!("joining group {:?}", member.group), limit);
            return Err(member.client.cause.explain(error));
        }
    }
}

#[async_trait]
impl driver::Consumer for KafkaConsumer {
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let member = &self.member;
        let mut results: Vec<Option<Result<CommitOutcome>>> = Vec::with_capacity(commits.len());
        let mut positions = Vec::with_capacity(commits.len());
        let mut stored = Vec::with_capacity(commits.len());
        let mut ids = Vec::with_capacity(commits.len());
        for commit in &commits {
            let beside = member.link.outbox.part(commit.assignment, |part| Stored {
                topic_id: part.stored.topic_id.clone(),
                open: true,
                acked_above: commit.acked_above.clone(),
                attempts: commit.attempts.clone(),
                unknown: part.stored.unknown.clone(),
            });
            // A tenure that is over must not store: the broker knows the member, not what it owns.
            results.push(beside.is_none().then_some(Ok(CommitOutcome::Lost)));
            if let Some(beside) = beside {
                let text = beside.encode(commit.position);
                positions.push((commit.assignment.partition, commit.position, text));
                stored.push(beside);
                ids.push(commit.assignment);
            }
        }
        let mut outcomes = Vec::new();
        if !positions.is_empty() {
            outcomes = self.store(&positions, &ids).await;
        }
        let mut outcomes = outcomes.into_iter().zip(stored);
        commits
            .into_iter()
            .zip(results)
            .map(|(commit, result)| {
                if let Some(result) = result {
                    return result;
                }
                let Some((outcome, beside)) = outcomes.next() else {
                    return Err(Error::closed("consumer"));
                };
                if let Ok(CommitOutcome::Stored) = outcome {
                    member.link.outbox.part(commit.assignment, |part| {
                        part.position = commit.position;
                        part.stored = beside;
                    });
                }
                outcome
            })
            .collect()
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        for id in assignments {
            self.member.link.outbox.part(id, |part| part.released = true);
        }
        self.member.released.notify_one();
        Ok(())
    }

    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        let (done, moved) = oneshot::channel();
        self.member.link.do_next(Job::Seek {
            id: assignment,
            to,
            generation,
            done,
        })?;
        moved.await.unwrap_or_else(|_| Err(Error::closed("consumer")))
    }

    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        for id in assignments {
            self.member.link.outbox.part(*id, |part| part.paused = paused);
        }
        if !paused {
            self.member.link.outbox.wake();
        }
    }

    async fn close(&self) -> Result<()> {
        self.member.ask_to_leave();
        let mut ended = self.ended.clone();
        let _ = ended.changed().await;
        Ok(())
    }
}

impl KafkaConsumer {
    /// Stores positions and says what became of each. What met a new generation of the group, while the member keeps the
    /// partition, is stored again in that one.
    async fn store(
        &self,
        positions: &[(u32, Offset, String)],
        ids: &[AssignmentId],
    ) -> Vec<Result<CommitOutcome>> {
        let member = &self.member;
        let begun = Instant::now();
        let limit = member.client.config.request_timeout;
        let mut outcomes: Vec<Result<(), Code>> = positions.iter().map(|_| Err(Code::InProgress)).collect();
        let mut open: Vec<usize> = (0..positions.len()).collect();
        let mut pause = FIRST_PAUSE;
        loop {
            let now: Vec<_> = open.iter().filter_map(|at| positions.get(*at)).cloned().collect();
            let heard = match member.store(&now) {
                Ok(receivers) => session::heard(receivers, limit.saturating_sub(begun.elapsed())).await,
                Err(error) => Err(error),
            };
            let heard = match heard {
                Ok(heard) => heard,
                Err(error) => {
                    let error = member.client.cause.explain(error);
                    let failed = |at: usize| open.contains(&at).then(|| Err(error.clone()));
                    let outcomes = outcomes.into_iter().enumerate();
                    return outcomes
                        .map(|(at, outcome)| failed(at).unwrap_or_else(|| self.outcome(ids.get(at), outcome)))
                        .collect();
                }
            };
            for (at, outcome) in open.iter().zip(heard) {
                if let Some(place) = outcomes.get_mut(*at) {
                    *place = outcome;
                }
            }
            open.retain(|at| {
                let outdated = matches!(outcomes.get(*at), Some(Err(code)) if error::is_outdated(*code));
                // A tenure that is over must not be stored in the next one.
                outdated
                    && ids
                        .get(*at)
                        .is_some_and(|id| member.link.outbox.part(*id, |_| ()).is_some())
            });
            if open.is_empty() || begun.elapsed() >= REBALANCE_LIMIT.min(limit) {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let outcomes = outcomes.into_iter().enumerate();
        outcomes
            .map(|(at, outcome)| self.outcome(ids.get(at), outcome))
            .collect()
    }

    fn outcome(&self, id: Option<&AssignmentId>, outcome: Result<(), Code>) -> Result<CommitOutcome> {
        let member = &self.member;
        match outcome {
            Ok(()) => Ok(CommitOutcome::Stored),
            Err(code) if error::is_lost(code) => Ok(CommitOutcome::Lost),
            Err(code) if error::is_outdated(code) => {
                let stands = id.is_some_and(|id| member.link.outbox.part(*id, |_| ()).is_some());
                match stands {
                    true => Err(error::from_code(
                        &format!("commit of topic {:?}", member.topic),
                        code,
                    )),
                    false => Ok(CommitOutcome::Lost),
                }
            }
            Err(code) => Err(error::from_code(
                &format!("commit of topic {:?}", member.topic),
                code,
            )),
        }
    }
}
