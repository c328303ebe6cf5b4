//! One member of a group: the thread that serves its client, and what its parts share.
//!
//! The thread polls the client of the library, which runs the callbacks, and moves the leases on. The callbacks of a
//! rebalance decide nothing: they hand the partitions to the member's task (see `session`), which answers the library
//! when the engine has done its part. Only when the member leaves does the thread answer by itself.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mq_api::{Clock, Error, GroupName, Offset, Position, Result, TopicName, driver::AssignmentId};
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    topic_partition_list::TopicPartitionListElem,
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr as RespErr},
};
use tokio::sync::{Notify, mpsc::UnboundedSender, oneshot, watch};

use crate::{
    client::{self, Cause, Client},
    config::GroupProtocol,
    error,
    ffi::{self, PartitionQueue},
    outbox::Outbox,
    watch::TopicWatch,
};

/// How long leaving waits for the mark that partitions were given back in order.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How long leaving waits for the identity that the broker gives to a new member.
const NAMED: Duration = Duration::from_secs(1);
/// How long leaving waits for the group to let go.
const LEAVING: Duration = Duration::from_secs(5);

/// What the member's task is to do, one after the other: the library takes one change of an assignment at a time.
#[derive(Debug)]
pub(crate) enum Job {
    /// The group gives these partitions to this member.
    Assign { partitions: Vec<u32>, generation: i32 },
    /// The group wants these partitions back, or has taken them.
    Revoke { partitions: Vec<u32>, lost: bool },
    /// The engine moves a tenure.
    Seek {
        id: AssignmentId,
        to: Position,
        generation: u64,
        done: oneshot::Sender<Result<Offset>>,
    },
    /// The library does not stand where a tenure wants to read next: it is to be moved there, or to what is nearest.
    Reset(AssignmentId),
    /// Partitions are this member's, and nobody reads them: a lease ran out while the session lived, or the generation
    /// changed while they were taken over.
    Retake(Vec<u32>),
}

/// What the library has asked and was not told yet.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Assign(Vec<u32>),
    Revoke(Vec<u32>),
}

/// Commits under way, by partition.
type Waiting = HashMap<u32, VecDeque<Sent>>;

/// Waits for the result of one commit, which is told by what was committed: results may overtake each other.
struct Sent {
    position: Offset,
    beside: String,
    done: oneshot::Sender<Result<(), Code>>,
}

impl Sent {
    fn is(&self, element: &TopicPartitionListElem<'_>) -> bool {
        element.offset() == client::raw_offset(self.position) && element.metadata() == self.beside
    }
}

/// What the callbacks of the library reach.
pub(crate) struct Link {
    pub(crate) topic: String,
    pub(crate) cause: Arc<Cause>,
    pub(crate) outbox: Arc<Outbox>,
    jobs: UnboundedSender<Job>,
    commits: Mutex<Waiting>,
    pub(crate) question: Mutex<Option<Question>>,
    pub(crate) leaving: AtomicBool,
    pub(crate) leave: Notify,
    /// Whether the group has taken this member in.
    pub(crate) joined: watch::Sender<bool>,
}

impl Link {
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    fn ask(&self, question: Question, job: Job) {
        *lock(&self.question) = Some(question);
        // Nobody hears it once the member's task has ended: then the thread answers, as it leaves.
        let _ = self.jobs.send(job);
    }

    fn committed(&self, result: &KafkaResult<()>, offsets: &TopicPartitionList) {
        let whole = result
            .as_ref()
            .err()
            .map(|error| error.rdkafka_error_code().unwrap_or(Code::Fail));
        let mut commits = lock(&self.commits);
        for element in offsets.elements() {
            let own = element
                .error()
                .err()
                .map(|error| error.rdkafka_error_code().unwrap_or(Code::Fail));
            let outcome = own.or(whole).map_or(Ok(()), Err);
            let sent = u32::try_from(element.partition()).ok().and_then(|partition| {
                let sent = commits.get_mut(&partition)?;
                let place = sent.iter().position(|sent| sent.is(&element))?;
                sent.remove(place)
            });
            if let Some(sent) = sent {
                // Whoever waited may have given up.
                let _ = sent.done.send(outcome);
            }
        }
    }
}

/// Hears what the library says to one member.
pub(crate) struct MemberContext {
    pub(crate) link: Arc<Link>,
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.link.cause.note(&error, reason);
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RespErr, list: &mut TopicPartitionList) {
        let link = &self.link;
        link.joined.send_replace(true);
        let assign = what == RespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if link.is_leaving() {
            // The client is being closed, and waits for exactly this.
            let answered = match assign {
                true => consumer.incremental_assign(list),
                false => consumer.incremental_unassign(list),
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "a rebalance could not be answered while leaving");
            }
            return;
        }
        let partitions: Vec<u32> = list
            .elements()
            .iter()
            .filter_map(|element| u32::try_from(element.partition()).ok())
            .collect();
        if assign {
            let job = Job::Assign {
                partitions: partitions.clone(),
                generation: ffi::generation(consumer),
            };
            link.ask(Question::Assign(partitions), job);
        } else {
            let job = Job::Revoke {
                partitions: partitions.clone(),
                lost: consumer.assignment_lost(),
            };
            link.ask(Question::Revoke(partitions), job);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        self.link.committed(&result, offsets);
    }
}

/// Shares what the handle, the events, the task and the thread of one member need.
pub(crate) struct Member {
    pub(crate) client: Arc<Client>,
    pub(crate) watch: Arc<TopicWatch>,
    pub(crate) topic: TopicName,
    pub(crate) group: GroupName,
    pub(crate) clock: Clock,
    /// How long a lease stands from a look of the thread on.
    pub(crate) lease: Duration,
    pub(crate) link: Arc<Link>,
    /// Where partitions begin for which the group has nothing stored.
    pub(crate) start: HashMap<u32, Offset>,
    pub(crate) released: Notify,
    /// Woken by the queues of the partitions.
    pub(crate) incoming: Arc<Notify>,
    /// None once the member leaves: then the thread alone has it.
    consumer: Mutex<Option<Arc<BaseConsumer<MemberContext>>>>,
}

impl Member {
    #[expect(clippy::too_many_arguments, reason = "each is one part, made in one place")]
    pub(crate) fn new(
        client: Arc<Client>,
        watch: Arc<TopicWatch>,
        topic: TopicName,
        group: GroupName,
        clock: Clock,
        lease: Duration,
        link: Arc<Link>,
        start: HashMap<u32, Offset>,
        consumer: BaseConsumer<MemberContext>,
    ) -> Self {
        Self {
            client,
            watch,
            topic,
            group,
            clock,
            lease,
            link,
            start,
            released: Notify::new(),
            incoming: Arc::new(Notify::new()),
            consumer: Mutex::new(Some(Arc::new(consumer))),
        }
    }

    /// Returns the client of the library while the member has not begun to leave.
    pub(crate) fn consumer(&self) -> Result<Arc<BaseConsumer<MemberContext>>> {
        lock(&self.consumer)
            .clone()
            .ok_or_else(|| Error::closed("consumer"))
    }

    pub(crate) fn ask_to_leave(&self) {
        self.link.leaving.store(true, Ordering::Release);
        self.link.leave.notify_one();
        self.released.notify_one();
    }

    /// Stores positions with what stands beside them; one receiver each, in order. It does not wait.
    pub(crate) fn store(
        &self,
        positions: &[(u32, Offset, String)],
    ) -> Result<Vec<oneshot::Receiver<Result<(), Code>>>> {
        let consumer = self.consumer()?;
        store(&consumer, &self.link, positions)
    }

    /// Tells which of these partitions the library holds for this member, in no generation that is over. `None` while it
    /// waits for an answer about its partitions.
    pub(crate) fn held(&self, partitions: &[u32]) -> Result<Option<Vec<u32>>> {
        let consumer = self.consumer()?;
        if lock(&self.link.question).is_some() {
            return Ok(None);
        }
        if consumer.assignment_lost() {
            return Ok(Some(Vec::new()));
        }
        let held = consumer
            .assignment()
            .map_err(|error| error::from_kafka("looking at the assignment", &error))?;
        let holds = |partition: &u32| {
            held.find_partition(&self.link.topic, client::number(*partition))
                .is_some()
        };
        Ok(Some(partitions.iter().copied().filter(holds).collect()))
    }

    /// Keeps the messages of partitions that nobody reads out of the client's own queue, where they would count as read.
    pub(crate) fn keep_unread(&self, partitions: &[u32]) {
        let Ok(consumer) = self.consumer() else { return };
        for partition in partitions {
            // What is taken away once stays away.
            let number = client::number(*partition);
            drop(PartitionQueue::open(
                &consumer,
                &self.link.topic,
                number,
                &self.incoming,
            ));
        }
    }

    /// Answers the library's question, unless the thread has done so as it left. Blocks for a moment.
    pub(crate) fn answer(
        &self,
        answer: impl FnOnce(&BaseConsumer<MemberContext>) -> KafkaResult<()>,
    ) -> Result<()> {
        let consumer = self.consumer()?;
        let mut question = lock(&self.link.question);
        if self.link.is_leaving() {
            return Err(Error::closed("consumer"));
        }
        answer(&consumer).map_err(|error| error::from_kafka("changing the assignment", &error))?;
        *question = None;
        Ok(())
    }

    /// Changes the assignment outside a rebalance, unless the member leaves. Blocks for a moment.
    pub(crate) fn reassign(
        &self,
        change: impl FnOnce(&BaseConsumer<MemberContext>) -> KafkaResult<()>,
    ) -> Result<()> {
        let consumer = self.consumer()?;
        let question = lock(&self.link.question);
        if self.link.is_leaving() {
            return Err(Error::closed("consumer"));
        }
        if question.is_some() {
            // The library would take it for the answer.
            let why = "the group is being rebalanced";
            return Err(Error::new(mq_api::ErrorKind::Interrupted, why));
        }
        change(&consumer).map_err(|error| error::from_kafka("changing the assignment", &error))
    }
}

fn store(
    consumer: &BaseConsumer<MemberContext>,
    link: &Link,
    positions: &[(u32, Offset, String)],
) -> Result<Vec<oneshot::Receiver<Result<(), Code>>>> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    let mut receivers = Vec::with_capacity(positions.len());
    // Held over the call: no result comes before it is known who waits for it.
    let mut commits = lock(&link.commits);
    for (partition, position, beside) in positions {
        let mut element = list.add_partition(&link.topic, client::number(*partition));
        element.set_metadata(beside);
        element
            .set_offset(client::raw_offset(*position))
            .map_err(|error| error::from_kafka("commit", &error))?;
    }
    ffi::commit(consumer, &list).map_err(|code| error::from_code("commit", code))?;
    for (partition, position, beside) in positions {
        let (done, receiver) = oneshot::channel();
        let sent = commits.entry(*partition).or_default();
        sent.retain(|sent| !sent.done.is_closed());
        sent.push_back(Sent {
            position: *position,
            beside: beside.clone(),
            done,
        });
        receivers.push(receiver);
    }
    Ok(receivers)
}

/// Serves a member until it is to leave, then leaves.
pub(crate) fn run(member: &Member, alive: watch::Sender<()>) {
    let Ok(consumer) = member.consumer() else { return };
    while !member.link.is_leaving() {
        let look = member.clock.now();
        if let Some(Err(error)) = consumer.poll(member.client.config.look) {
            trouble(member, &error);
        }
        if consumer.assignment_lost() {
            member.link.outbox.lose_all();
        }
        member.link.outbox.renew(look + member.lease);
        if !*member.link.joined.borrow() && ffi::generation(&consumer) >= 0 {
            member.link.joined.send_replace(true);
        }
    }
    let last = lock(&member.consumer).take();
    drop(last);
    let left = leave(member, &consumer);
    drop(alive);
    if !left {
        // Nobody waits any more, and the others would without the word.
        poll_until(&consumer, member.lease, || has_left(member, &consumer));
    }
    // May take as long as a session where no broker answers; nobody waits for it.
    client::drop_last(consumer);
}

fn trouble(member: &Member, error: &KafkaError) {
    let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
    let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_))
        || matches!(
            code,
            Code::GroupAuthorizationFailed
                | Code::TopicAuthorizationFailed
                | Code::InvalidSessionTimeout
                | Code::InconsistentGroupProtocol
                | Code::InvalidGroupId
                | Code::GroupMaxSizeReached
                | Code::SaslAuthenticationFailed
        );
    if fatal {
        let what = format!("group {:?} of topic {:?}", member.group, member.topic);
        member.link.outbox.end(error::from_code(&what, code));
    } else {
        tracing::debug!(topic = %member.topic, group = %member.group, ?code, "the member's client reports an error");
    }
}

/// Gives everything back; `false` where the group could not be told in time.
fn leave(member: &Member, consumer: &BaseConsumer<MemberContext>) -> bool {
    let link = &member.link;
    let last: Vec<(u32, Offset, String)> = link.outbox.change(|parts, _| {
        std::mem::take(parts)
            .into_iter()
            .map(|(partition, part)| {
                part.lease.revoke();
                let mut stored = part.stored;
                stored.open = false;
                (partition, part.position, stored.encode(part.position))
            })
            .collect()
    });
    if !last.is_empty()
        && !consumer.assignment_lost()
        && let Ok(mut receivers) = store(consumer, link, &last)
    {
        poll_until(consumer, LAST_WORD, || {
            receivers.retain_mut(|receiver| {
                matches!(receiver.try_recv(), Err(oneshot::error::TryRecvError::Empty))
            });
            receivers.is_empty()
        });
    }
    let question = lock(&link.question).take();
    let list = |partitions: &[u32]| {
        client::partition_list(&link.topic, partitions, |_| rdkafka::Offset::End).unwrap_or_default()
    };
    let answered = match question {
        // All of it, since all of it is asked back in a moment.
        Some(Question::Assign(partitions)) => consumer.incremental_assign(&list(&partitions)),
        Some(Question::Revoke(partitions)) => consumer.incremental_unassign(&list(&partitions)),
        None => Ok(()),
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "the last rebalance could not be answered");
    }
    let by = Instant::now() + LEAVING;
    let left = say_goodbye(member, consumer, by);
    if left {
        close(consumer, by.saturating_duration_since(Instant::now()));
    }
    left
}

fn close(consumer: &BaseConsumer<MemberContext>, limit: Duration) {
    if let Err(error) = consumer.close_queue() {
        tracing::debug!(%error, "the member's client could not be closed");
        return;
    }
    poll_until(consumer, limit, || consumer.closed());
}

/// Has the group told that this member leaves; `false` where it could not be told in time.
///
/// The library closes a member of a classic group that holds nothing, or waits to join, without a word. The group would
/// wait for it at its next rebalance until its session is over, and until then the other members could store nothing: the
/// broker answers nothing else on a connection that waits to join. Where the subscription ends first, the library sends
/// the word once it may.
fn say_goodbye(member: &Member, consumer: &BaseConsumer<MemberContext>, by: Instant) -> bool {
    if member.client.config.group_protocol != GroupProtocol::Classic {
        return true;
    }
    // The broker waits also for whom it has just given an identity, which the library must know to leave.
    poll_until(consumer, NAMED, || {
        ffi::is_named(consumer) || member.link.cause.is_down()
    });
    consumer.unsubscribe();
    let left = by.saturating_duration_since(Instant::now());
    poll_until(consumer, left, || has_left(member, consumer))
}

/// Tells whether the word is on its way, or there is nobody to tell.
fn has_left(member: &Member, consumer: &BaseConsumer<MemberContext>) -> bool {
    !ffi::is_named(consumer) || member.link.cause.is_down()
}

fn poll_until(
    consumer: &BaseConsumer<MemberContext>,
    limit: Duration,
    mut done: impl FnMut() -> bool,
) -> bool {
    let by = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= by {
            return false;
        }
        drop(consumer.poll(Duration::from_millis(5)));
    }
}

pub(crate) fn link(topic: &str, cause: &Arc<Cause>, outbox: Arc<Outbox>, jobs: UnboundedSender<Job>) -> Link {
    Link {
        topic: topic.to_owned(),
        cause: Arc::clone(cause),
        outbox,
        jobs,
        commits: Mutex::default(),
        question: Mutex::default(),
        leaving: AtomicBool::new(false),
        leave: Notify::new(),
        joined: watch::channel(false).0,
    }
}

impl Link {
    pub(crate) fn do_next(&self, job: Job) -> Result<()> {
        self.jobs.send(job).map_err(|_| Error::closed("consumer"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the member leave when its last handle is gone. The thread that leaves runs already; nothing is spawned here.
#[derive(Debug)]
pub(crate) struct LeaveOnDrop(pub(crate) Arc<Member>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.ask_to_leave();
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("topic", &self.topic)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}
