//! What a driver supplies so that the suite can run on it.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use mq_api::{Capabilities, Mq, TopicSpec};

/// The error of a harness: whatever went wrong with its server.
pub type HarnessError = Box<dyn std::error::Error + Send + Sync>;

/// Shortens the result of what a harness does.
pub type HarnessResult<T> = Result<T, HarnessError>;

/// Connects the suite to one driver and its servers.
///
/// A driver's test file holds one value of this and a `main` that hands it to [`run`](crate::run). The two methods
/// without a default are enough to run all cases that need no fault.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Names the backend as [`Capabilities::backend`] does; the report carries it.
    fn name(&self) -> &str;

    /// Opens a client. It is called in this process and in the member processes that the suite starts from the same
    /// executable.
    async fn connect(&self, url: &str) -> mq_api::Result<Mq>;

    /// Starts a server, or names one that runs already. [`ServerKind::Shared`] is asked for once; each
    /// [`ServerKind::Own`] one is broken by one case and dropped.
    async fn server(&self, kind: ServerKind) -> HarnessResult<Arc<dyn Server>>;

    /// Returns a URL that leads a client to this address, where something other than a server listens, or nothing.
    /// `None`: the backend has no addresses, and the cases about silent, absent and babbling servers do not apply.
    fn url_at(&self, address: SocketAddr) -> Option<String> {
        let _ = address;
        None
    }

    /// Returns what the driver must declare; the suite compares it field by field, so that no driver passes by
    /// claiming less. For the drivers of this project that is the table of the design; for others `None`: whatever it
    /// declares is taken at its word.
    fn expected(&self) -> Option<Capabilities> {
        crate::table::expected(self.name())
    }

    /// Returns the times that the driver declares.
    fn times(&self) -> Times {
        Times::default()
    }

    /// Says what the backend is, as far as it decides which cases make sense.
    fn nature(&self) -> Nature {
        Nature::default()
    }

    /// Says which faults its servers supply. A case that needs another one is reported as left out.
    fn faults(&self) -> &'static [Fault] {
        &[]
    }

    /// Adds to the topic that [`Server::trim`] will be asked to trim what that needs, such as a bound in bytes which the
    /// messages of the case stay below.
    fn to_be_trimmed(&self, topic: TopicSpec) -> TopicSpec {
        topic
    }

    /// Says that a case which is left out for want of a fault is a failure. The drivers of this project say so.
    fn must_supply_faults(&self) -> bool {
        false
    }

    /// Says that this driver also proves the cases which the driver in memory cannot run: each is run once more on the
    /// driver with one behaviour changed, and must fail. One driver of the project does.
    fn proves_the_rest(&self) -> bool {
        false
    }

    /// Returns what the suite sets in the environment of the processes that it starts from the same executable.
    #[doc(hidden)]
    fn child_environment(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Lists the formats that the driver stores in the backend, for the case about versions.
    fn formats(&self) -> Vec<Arc<dyn StoredFormat>> {
        Vec::new()
    }
}

/// Holds a server that cases talk to. Dropping it ends what the harness started.
#[async_trait]
pub trait Server: Send + Sync + 'static {
    /// Returns the URL for clients.
    fn url(&self) -> String;

    /// Ends the server in order and starts it on the same data and address. Returns when clients can work.
    async fn restart(&self) -> HarnessResult<()> {
        missing(Fault::Restart)
    }

    /// Kills the server without notice. [`start`](Self::start) brings it back.
    async fn kill(&self) -> HarnessResult<()> {
        missing(Fault::Kill)
    }

    /// Starts a killed server on the same data and address. Returns when clients can work.
    async fn start(&self) -> HarnessResult<()> {
        missing(Fault::Kill)
    }

    /// Makes the server stop answering while its connections stand.
    async fn freeze(&self) -> HarnessResult<()> {
        missing(Fault::Freeze)
    }

    /// Lets a frozen server go on.
    async fn thaw(&self) -> HarnessResult<()> {
        missing(Fault::Freeze)
    }

    /// Ends every connection of clients; new ones are served.
    async fn cut_connections(&self) -> HarnessResult<()> {
        missing(Fault::Cut)
    }

    /// Removes the messages of a partition below an offset, as retention would, or more than those where the backend
    /// removes in larger pieces. Returns when they can no longer be read.
    async fn trim(&self, topic: &str, partition: u32, before: u64) -> HarnessResult<()> {
        let _ = (topic, partition, before);
        missing(Fault::Trim)
    }

    /// Returns the end of the server's logs, to be shown when a case fails.
    fn logs(&self) -> String {
        String::new()
    }
}

fn missing<T>(fault: Fault) -> HarnessResult<T> {
    Err(format!("this harness does not supply {fault:?}").into())
}

/// Stores one of the driver's own formats where the driver reads it, so that the suite can see what it makes of it.
#[async_trait]
pub trait StoredFormat: Send + Sync + 'static {
    /// Names the format, such as `commit metadata`.
    fn name(&self) -> &'static str;

    /// Lists the versions whose golden bytes [`plant`](Self::plant) can store; each must be read.
    fn versions(&self) -> Vec<u32>;

    /// Returns the offset that golden bytes say: the second message's, where the first one has the lowest.
    fn position(&self) -> u64 {
        1
    }

    /// Stores golden bytes of this version for a group of a topic that say: partition 0 is committed at
    /// [`position`](Self::position).
    /// With a version above every known one, it stores bytes of that version whose rest no build understands.
    async fn plant(&self, mq: &Mq, url: &str, topic: &str, group: &str, version: u32) -> HarnessResult<()>;
}

/// Says what a server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerKind {
    /// Most cases work on it at once; nothing is done to it.
    Shared,
    /// One case has it for itself, and kills, freezes or cuts it. It stores what it has acknowledged before it answers.
    Own,
}

/// Names what a harness can do to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// [`Server::restart`].
    Restart,
    /// [`Server::kill`] and [`Server::start`].
    Kill,
    /// [`Server::freeze`] and [`Server::thaw`].
    Freeze,
    /// [`Server::cut_connections`].
    Cut,
    /// [`Server::trim`].
    Trim,
}

/// Says what a backend is, as far as it decides which cases make sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Nature {
    /// The messages live in the client's process: cases with two processes cannot be.
    pub in_process: bool,
    /// The backend itself holds delayed messages back: there is no mover of the driver's that could be killed.
    pub delays_by_itself: bool,
}

impl Nature {
    /// Says that the messages live in the client's process.
    #[must_use]
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }

    /// Says that the backend itself holds delayed messages back.
    #[must_use]
    pub fn delays_by_itself(mut self) -> Self {
        self.delays_by_itself = true;
        self
    }
}

/// Holds the times that a driver declares and the suite holds it to; the defaults are the ceilings where it says
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Times {
    /// From a produce that is `Ok` to its hand-over to a consumer that waits.
    pub wake_up: Duration,
    /// How late a redelivery may be beyond its delay.
    pub redelivery_slack: Duration,
    /// From the close of a member to the first hand-over of its partitions to another one.
    pub close_takeover: Duration,
    /// The same after a member was killed.
    pub crash_takeover: Duration,
    /// The same after a member was frozen.
    pub freeze_takeover: Duration,
    /// From a member's join to a balanced assignment.
    pub join: Duration,
    /// From the deletion of a topic to the last success of a call on it.
    pub topic_gone: Duration,
    /// From the growth of a topic to its use by producers and consumers that run.
    pub partitions_seen: Duration,
    /// From a server that is ready again to messages that flow again.
    pub progress: Duration,
    /// From the moment that a message is over its topic's retention, by age or by bytes, to its removal. `None`, the
    /// default: not soon enough to wait for, so that the suite proves only that a topic can be told.
    pub retention: Option<Duration>,
    /// How long a message of a shared group is kept for a member that has vanished, beyond which it goes to another.
    pub message_lease: Duration,
    /// The session timeout that cases with killed and frozen members ask for.
    pub session_timeout: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            wake_up: Duration::from_millis(250),
            redelivery_slack: Duration::from_millis(200),
            close_takeover: Duration::from_secs(5),
            crash_takeover: Duration::from_secs(10),
            freeze_takeover: Duration::from_secs(10),
            join: Duration::from_secs(10),
            topic_gone: Duration::from_secs(10),
            partitions_seen: Duration::from_secs(10),
            progress: Duration::from_secs(30),
            retention: None,
            message_lease: Duration::from_secs(30),
            session_timeout: Duration::from_secs(6),
        }
    }
}

macro_rules! setters {
    ($($field:ident $setter:ident),*) => {
        impl Times {
            $(
                #[doc = concat!("Declares [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $setter(mut self, time: Duration) -> Self {
                    self.$field = time;
                    self
                }
            )*
        }
    };
}

impl Times {
    /// Declares [`retention`](Self::retention).
    #[must_use]
    pub fn with_retention(mut self, time: Duration) -> Self {
        self.retention = Some(time);
        self
    }
}

setters!(
    wake_up with_wake_up,
    redelivery_slack with_redelivery_slack,
    close_takeover with_close_takeover,
    crash_takeover with_crash_takeover,
    freeze_takeover with_freeze_takeover,
    join with_join,
    topic_gone with_topic_gone,
    partitions_seen with_partitions_seen,
    progress with_progress,
    message_lease with_message_lease,
    session_timeout with_session_timeout
);

impl fmt::Debug for dyn Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl fmt::Debug for dyn Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness").field("name", &self.name()).finish()
    }
}
