//! Faults on demand, for tests of what a program does when its broker fails.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mq_api::{Error, GroupName, Result, TopicName, driver::SendBatch};
use tokio::sync::watch;

use crate::{
    broker::Broker,
    error::MemoryError,
    producer,
    sync::lock,
    topic::{Members, Topic},
    wakes::Wakes,
};

/// Says how an injected fault fails a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendFault {
    /// The message is not stored and the error says so: `Connection`, retryable, `NotSent`.
    NotSent,
    /// The message is not stored and the error does not say whether it is: `Connection`, `Unknown`.
    Lost,
    /// The message is stored and the error does not say whether it is: `Connection`, `Unknown`.
    AnswerLost,
}

/// Makes the broker fail on demand. All faults are off until they are asked for, and act on every connection to it.
///
/// ```
/// use mq_memory::{MemoryMq, SendFault};
///
/// let mq = MemoryMq::new();
/// let faults = mq.faults();
/// faults.fail_nth_send(3, SendFault::NotSent); // the third message from now on
/// faults.fail_sends_at_random(42, 0.01, SendFault::AnswerLost); // one in a hundred, the same ones with each run
/// faults.restart(); // sessions, memberships, leases and sends under way are lost; what was answered `Ok` stays
/// faults.clear();
/// ```
#[derive(Clone)]
pub struct Faults {
    broker: Arc<Broker>,
}

/// Keeps what is injected.
#[derive(Default)]
pub(crate) struct FaultState {
    /// Whether any fault is on that a send or a call must look at. Off: one load is all that faults cost.
    engaged: AtomicBool,
    /// Whether the broker gives nothing out: frozen or cut off.
    halted: AtomicBool,
    plan: Mutex<Plan>,
    phase: watch::Sender<Phase>,
}

#[derive(Default)]
struct Plan {
    /// The number of the freeze that lasts, so that a timer thaws its own only.
    frozen: Option<u64>,
    cut: Option<u64>,
    next: u64,
    slow: Duration,
    sends: u64,
    planned: BTreeMap<u64, SendFault>,
    random: Option<Random>,
    held: VecDeque<Held>,
    draining: bool,
}

struct Random {
    state: u64,
    probability: f64,
    fault: SendFault,
}

/// A send that waits because the broker is frozen or slow.
struct Held {
    at: Instant,
    producer: u64,
    topic: Arc<Topic>,
    batch: SendBatch,
}

/// What waiting calls look at.
#[derive(Clone, Copy, Default)]
struct Phase {
    frozen: bool,
    cut: bool,
    /// Counts lost connections.
    sessions: u64,
}

impl Faults {
    pub(crate) fn new(broker: Arc<Broker>) -> Self {
        Self { broker }
    }

    /// Fails one message: the `n`-th that is sent from now on, counted from 1 over all producers.
    ///
    /// ```
    /// # use mq_api::{Mq, Outcome};
    /// # use mq_memory::{MemoryMq, SendFault};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// faults.fail_nth_send(1, SendFault::AnswerLost);
    /// let error = producer.produce("paid").await.unwrap_err();
    /// assert_eq!(error.outcome(), Outcome::Unknown);
    /// assert_eq!(mq.describe_topic("orders").await?.partitions[0].next_offset, 1); // it is there all the same
    /// # Ok(()) }
    /// ```
    pub fn fail_nth_send(&self, n: u64, fault: SendFault) {
        self.change(|plan| {
            let number = plan.sends.saturating_add(n.max(1));
            plan.planned.insert(number, fault);
        });
    }

    /// Fails messages with a probability between 0 and 1. The same seed fails the same ones of the same run.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// use mq_memory::SendFault;
    ///
    /// faults.fail_sends_at_random(42, 1.0, SendFault::Lost); // every one
    /// let error = producer.produce("paid").await.unwrap_err();
    /// assert_eq!(error.outcome(), mq_api::Outcome::Unknown);
    /// # Ok(()) }
    /// ```
    pub fn fail_sends_at_random(&self, seed: u64, probability: f64, fault: SendFault) {
        self.change(|plan| {
            plan.random = Some(Random {
                state: seed,
                probability,
                fault,
            });
        });
    }

    /// Makes each send and each call take so much longer; zero ends it.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// use std::time::{Duration, Instant};
    ///
    /// let begun = Instant::now();
    /// faults.slow_down(Duration::from_millis(20));
    /// producer.produce("paid").await?;
    /// assert!(begun.elapsed() >= Duration::from_millis(20));
    /// # Ok(()) }
    /// ```
    pub fn slow_down(&self, by: Duration) {
        self.change(|plan| plan.slow = by);
    }

    /// Drops every connection: members lose what they own and join again at once with new epochs, messages held in
    /// shared groups go back, sends under way fail as `Unknown`.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// producer.produce("paid").await?;
    /// faults.drop_connections();
    /// let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.consume().await?.payload(), b"paid");
    /// # Ok(()) }
    /// ```
    pub fn drop_connections(&self) {
        self.lose(|_| {});
        self.recover();
    }

    /// Restarts the broker: as [`drop_connections`](Self::drop_connections), and a freeze or a cut is over. What was
    /// answered `Ok` is still there: messages, delayed ones too, topics, committed positions and attempts. What was
    /// not stored is gone: sends under way, memberships, leases, and what shared groups had handed out.
    ///
    /// ```
    /// # use mq_api::{Mq, Outcome};
    /// # use mq_memory::{MemoryMq, SendFault};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// producer.produce("paid").await?;
    /// faults.restart();
    /// let consumer = mq.consumer("orders", "billing").await?;
    /// assert_eq!(consumer.consume().await?.payload(), b"paid");
    /// # Ok(()) }
    /// ```
    pub fn restart(&self) {
        self.lose(|plan| {
            plan.frozen = None;
            plan.cut = None;
        });
        self.recover();
    }

    /// Cuts the broker off until [`reconnect`](Self::reconnect): sessions end, connects, calls and sends fail with
    /// `Connection`.
    ///
    /// ```
    /// # use mq_api::{Mq, Outcome};
    /// # use mq_memory::{MemoryMq, SendFault};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// faults.cut();
    /// let error = mq.describe_topic("orders").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::Connection);
    /// faults.reconnect();
    /// producer.produce("paid").await?;
    /// # Ok(()) }
    /// ```
    pub fn cut(&self) {
        self.lose(|plan| {
            plan.next += 1;
            plan.cut = Some(plan.next);
        });
    }

    /// Cuts the broker off for a while.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// use std::time::{Duration, Instant};
    ///
    /// let begun = Instant::now();
    /// faults.cut_for(Duration::from_millis(20));
    /// producer.produce("paid").await?; // tried again until the broker is back
    /// assert!(begun.elapsed() >= Duration::from_millis(20));
    /// # Ok(()) }
    /// ```
    pub fn cut_for(&self, time: Duration) {
        self.cut();
        let number = lock(&self.broker.faults.plan).cut;
        self.later(time, move |faults| {
            if lock(&faults.broker.faults.plan).cut == number {
                faults.reconnect();
            }
        });
    }

    /// Ends a cut: members join again with new epochs.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// faults.cut();
    /// assert!(mq.describe_topic("orders").await.is_err());
    /// faults.reconnect();
    /// assert!(mq.describe_topic("orders").await.is_ok());
    /// # Ok(()) }
    /// ```
    pub fn reconnect(&self) {
        self.change(|plan| plan.cut = None);
        self.recover();
    }

    /// Freezes the broker until [`thaw`](Self::thaw): calls and sends wait, nothing is given out, no lease is renewed.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// faults.freeze();
    /// let pending = producer.enqueue("paid").await?; // taken, not stored
    /// faults.thaw();
    /// assert_eq!(pending.await?.offset, Some(0));
    /// # Ok(()) }
    /// ```
    pub fn freeze(&self) {
        self.change(|plan| {
            plan.next += 1;
            plan.frozen = Some(plan.next);
        });
    }

    /// Freezes the broker for a while.
    ///
    /// ```
    /// # use mq_api::{Mq, Outcome};
    /// # use mq_memory::{MemoryMq, SendFault};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// use std::time::{Duration, Instant};
    ///
    /// let begun = Instant::now();
    /// faults.freeze_for(Duration::from_millis(20));
    /// producer.produce("paid").await?; // waits for the thaw
    /// assert!(begun.elapsed() >= Duration::from_millis(20));
    /// # Ok(()) }
    /// ```
    pub fn freeze_for(&self, time: Duration) {
        self.freeze();
        let number = lock(&self.broker.faults.plan).frozen;
        self.later(time, move |faults| {
            if lock(&faults.broker.faults.plan).frozen == number {
                faults.thaw();
            }
        });
    }

    /// Ends a freeze: what waited goes on, in order.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// faults.freeze();
    /// let first = producer.enqueue("a").await?;
    /// let second = producer.enqueue("b").await?;
    /// faults.thaw();
    /// assert_eq!((first.await?.offset, second.await?.offset), (Some(0), Some(1)));
    /// # Ok(()) }
    /// ```
    pub fn thaw(&self) {
        self.change(|plan| plan.frozen = None);
        drain(&self.broker);
        self.broker.alert();
    }

    /// Asks the owner of a partition to give it back, as a rebalance does; `false` where it has none. It goes to
    /// whoever is to have it then, maybe to the same member with a new epoch.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?; // it owns the partition by now
    /// assert!(faults.revoke(consumer.topic(), consumer.group(), 0));
    /// assert!(!faults.revoke(consumer.topic(), consumer.group(), 1)); // there is no such partition
    /// # Ok(()) }
    /// ```
    pub fn revoke(&self, topic: &TopicName, group: &GroupName, partition: u32) -> bool {
        self.with_group(topic, group, |group, wakes| group.revoke(partition, false, wakes))
    }

    /// Takes a partition away from its owner unasked, as a lost session does; `false` where it has none.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let held = consumer.consume().await?;
    /// assert!(faults.take_away(consumer.topic(), consumer.group(), 0));
    /// assert_eq!(consumer.consume().await?.payload(), b"paid"); // again, it was not acked
    /// # drop(held);
    /// # Ok(()) }
    /// ```
    pub fn take_away(&self, topic: &TopicName, group: &GroupName, partition: u32) -> bool {
        self.with_group(topic, group, |group, wakes| group.revoke(partition, true, wakes))
    }

    /// Freezes the member that owns a partition, as a stopped process: it hears nothing and renews no lease. Where
    /// [`MemoryConfig::lease`](crate::MemoryConfig::lease) is set, others take over once its lease is over.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?; // it owns the partition by now
    /// assert!(faults.freeze_owner(consumer.topic(), consumer.group(), 0));
    /// assert!(faults.thaw_members(consumer.topic(), consumer.group()));
    /// # Ok(()) }
    /// ```
    pub fn freeze_owner(&self, topic: &TopicName, group: &GroupName, partition: u32) -> bool {
        self.with_group(topic, group, |group, wakes| group.freeze_owner(partition, wakes))
    }

    /// Thaws the frozen members of a group.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?;
    /// faults.freeze_owner(consumer.topic(), consumer.group(), 0);
    /// assert!(faults.thaw_members(consumer.topic(), consumer.group()));
    /// producer.produce("shipped").await?;
    /// assert_eq!(consumer.consume().await?.payload(), b"shipped");
    /// # Ok(()) }
    /// ```
    pub fn thaw_members(&self, topic: &TopicName, group: &GroupName) -> bool {
        self.with_group(topic, group, |group, wakes| {
            group.thaw_members(wakes);
            true
        })
    }

    /// Ends every fault that lasts. Frozen members stay so.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let memory = MemoryMq::new();
    /// # let faults = memory.faults();
    /// # let mq = Mq::from_driver(memory);
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// faults.cut();
    /// faults.clear();
    /// assert_eq!(producer.produce("paid").await?.offset, Some(0));
    /// # Ok(()) }
    /// ```
    pub fn clear(&self) {
        self.change(|plan| {
            plan.slow = Duration::ZERO;
            plan.planned.clear();
            plan.random = None;
        });
        self.reconnect();
        self.thaw();
    }

    fn with_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        run: impl FnOnce(&Arc<crate::group::Group>, &mut Wakes) -> bool,
    ) -> bool {
        let wakes = &mut Wakes::default();
        match self.broker.topic(topic).map(|topic| topic.group(group)) {
            Ok(Some(Members::Partitioned(group))) => run(&group, wakes),
            _ => false,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Plan)) {
        let state = &self.broker.faults;
        let mut plan = lock(&state.plan);
        change(&mut plan);
        state.publish(&plan, 0);
    }

    fn lose(&self, change: impl FnOnce(&mut Plan)) {
        let state = &self.broker.faults;
        let held = {
            let mut plan = lock(&state.plan);
            change(&mut plan);
            let held = std::mem::take(&mut plan.held);
            state.publish(&plan, 1);
            held
        };
        let error = Error::from(MemoryError::ConnectionLost);
        for held in held {
            held.batch.fail_all(&error);
        }
        self.broker.lose_sessions(&error);
    }

    fn recover(&self) {
        if !self.broker.faults.phase.borrow().cut {
            self.broker.recover_sessions();
            drain(&self.broker);
            self.broker.alert();
        }
    }

    fn later(&self, after: Duration, run: impl FnOnce(&Self) + Send + 'static) {
        let broker = Arc::downgrade(&self.broker);
        self.broker.timer.at(Instant::now() + after, move || {
            if let Some(broker) = broker.upgrade() {
                run(&Self { broker });
            }
        });
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = *self.broker.faults.phase.borrow();
        f.debug_struct("Faults")
            .field("frozen", &phase.frozen)
            .field("cut", &phase.cut)
            .finish_non_exhaustive()
    }
}

impl FaultState {
    /// Tells whether a send or a call must look further.
    pub(crate) fn is_engaged(&self) -> bool {
        self.engaged.load(Ordering::Acquire)
    }

    /// Tells whether nothing is given out.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// Refuses a connect to a broker that is cut off.
    pub(crate) fn check_reachable(&self) -> Result<()> {
        if self.phase.borrow().cut {
            Err(MemoryError::Unreachable.into())
        } else {
            Ok(())
        }
    }

    /// Lets a call through, after what is injected: at once where nothing is.
    pub(crate) async fn gate(&self, request_timeout: Duration) -> Result<()> {
        if !self.is_engaged() {
            return Ok(());
        }
        let mut phase = self.phase.subscribe();
        let sessions = phase.borrow().sessions;
        let slow = lock(&self.plan).slow;
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        let passed = async {
            loop {
                let now = *phase.borrow_and_update();
                if now.cut {
                    return Err(MemoryError::Unreachable);
                }
                if now.sessions != sessions {
                    return Err(MemoryError::ConnectionLost);
                }
                if !now.frozen {
                    return Ok(());
                }
                if phase.changed().await.is_err() {
                    return Err(MemoryError::ConnectionLost);
                }
            }
        };
        match tokio::time::timeout(request_timeout, passed).await {
            Ok(passed) => passed.map_err(Error::from),
            Err(_) => Err(MemoryError::Frozen(request_timeout).into()),
        }
    }

    /// Takes a send while faults are on.
    pub(crate) fn send(broker: &Arc<Broker>, producer: u64, topic: &Arc<Topic>, batch: SendBatch) {
        let state = &broker.faults;
        let mut plan = lock(&state.plan);
        if plan.cut.is_some() {
            drop(plan);
            batch.fail_all(&MemoryError::Unreachable.into());
        } else if plan.frozen.is_none() && plan.slow.is_zero() && plan.held.is_empty() && !plan.draining {
            drop(plan);
            producer::store(broker, topic, batch);
        } else {
            let at = Instant::now() + plan.slow;
            plan.held.push_back(Held {
                at,
                producer,
                topic: Arc::clone(topic),
                batch,
            });
            state.publish(&plan, 0);
            if plan.frozen.is_none() && !plan.draining {
                drain_at(broker, at);
            }
        }
    }

    /// Says what becomes of the next message.
    pub(crate) fn next_send(&self) -> Option<SendFault> {
        let mut plan = lock(&self.plan);
        plan.sends += 1;
        let number = plan.sends;
        let fault = plan
            .planned
            .remove(&number)
            .or_else(|| plan.random.as_mut().and_then(Random::next));
        if fault.is_some() {
            self.publish(&plan, 0);
        }
        fault
    }

    /// Gives up what a closed producer has waiting.
    pub(crate) fn forget(&self, producer: u64) {
        let forgotten: Vec<Held> = {
            let mut plan = lock(&self.plan);
            let (gone, kept): (Vec<Held>, Vec<Held>) = std::mem::take(&mut plan.held)
                .into_iter()
                .partition(|held| held.producer == producer);
            plan.held = kept.into();
            self.publish(&plan, 0);
            gone
        };
        drop(forgotten);
    }

    fn publish(&self, plan: &Plan, lost_sessions: u64) {
        let (frozen, cut) = (plan.frozen.is_some(), plan.cut.is_some());
        let engaged = frozen
            || cut
            || !plan.slow.is_zero()
            || !plan.planned.is_empty()
            || plan.random.is_some()
            || !plan.held.is_empty()
            || plan.draining;
        self.halted.store(frozen || cut, Ordering::Release);
        self.engaged.store(engaged, Ordering::Release);
        self.phase.send_if_modified(|phase| {
            let before = (phase.frozen, phase.cut);
            *phase = Phase {
                frozen,
                cut,
                sessions: phase.sessions + lost_sessions,
            };
            before != (frozen, cut) || lost_sessions > 0
        });
    }
}

impl Random {
    /// Rolls the dice: splitmix64, so that a seed means the same on every machine and with every version.
    fn next(&mut self) -> Option<SendFault> {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let roll = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
        (roll < self.probability).then_some(self.fault)
    }
}

/// Stores held sends whose time has come, in order, and sees to the rest later.
fn drain(broker: &Arc<Broker>) {
    let state = &broker.faults;
    let mut draining = false;
    loop {
        let held = {
            let mut plan = lock(&state.plan);
            if plan.draining && !draining {
                return;
            }
            let next = plan.held.front().map(|held| held.at);
            match next {
                Some(at) if plan.frozen.is_none() && at <= Instant::now() => {
                    draining = true;
                    plan.draining = true;
                    plan.held.pop_front()
                }
                _ => {
                    plan.draining = false;
                    state.publish(&plan, 0);
                    if let Some(at) = next.filter(|_| plan.frozen.is_none()) {
                        drain_at(broker, at);
                    }
                    return;
                }
            }
        };
        if let Some(held) = held {
            producer::store(broker, &held.topic, held.batch);
        }
    }
}

fn drain_at(broker: &Arc<Broker>, at: Instant) {
    let weak = Arc::downgrade(broker);
    broker.timer.at(at, move || {
        if let Some(broker) = weak.upgrade() {
            drain(&broker);
        }
    });
}
