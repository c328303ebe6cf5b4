//! The entry point: one connection to one backend.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tracing::Instrument;

use crate::{
    Capabilities, ClientOptions, Error, ErrorKind, GroupName, Lag, Result, Support, TopicDescription,
    TopicName, TopicSpec,
    budget::Budget,
    close_once::CloseOnce,
    consumer::Modes,
    driver::{self, CommittedPosition, CommittedRequest},
};

/// A future on the heap; for calls that are not made once a message.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens producers, consumers and readers on one backend, and manages its topics.
///
/// It is a handle: clones share one connection, and producers, consumers and readers keep that connection alive.
/// Every call is over within [`ClientOptions::request_timeout`].
///
/// ```
/// # use mq_api::Mq;
/// # use mq_memory::MemoryMq;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> mq_api::Result<()> {
/// let mq = Mq::from_driver(MemoryMq::new());
/// mq.create_topic("orders", 4).await?;
/// assert_eq!(mq.describe_topic("orders").await?.partitions.len(), 4);
/// assert_eq!(mq.list_topics().await?[0].as_str(), "orders");
/// mq.add_partitions("orders", 6).await?;
/// mq.delete_topic("orders").await?;
/// mq.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Mq {
    pub(crate) inner: Arc<MqInner>,
}

/// What the handles of one connection share.
pub(crate) struct MqInner {
    pub(crate) driver: Arc<dyn driver::Mq>,
    pub(crate) options: ClientOptions,
    pub(crate) budget: Arc<Budget>,
    pub(crate) modes: Arc<Modes>,
    /// What [`ClientOptions::validate`] said: every call is refused with it.
    misconfigured: Option<Error>,
    children: Mutex<Children>,
    close: CloseOnce,
}

/// Something that an [`Mq`] has opened and closes before itself.
pub(crate) trait Child: Send + Sync {
    /// Closes it, idempotently and in a bounded time.
    fn close(self: Arc<Self>) -> BoxFuture<'static, Result<()>>;
}

#[derive(Default)]
struct Children {
    closed: bool,
    open: Vec<Weak<dyn Child>>,
    /// When to look for children that are gone: at twice of what was left the last time.
    prune_at: usize,
}

impl Mq {
    /// Opens a driver with the default options.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// assert_eq!(mq.capabilities().backend, "memory");
    /// # Ok(()) }
    /// ```
    pub fn from_driver(driver: impl driver::Mq) -> Self {
        Self::from_driver_with(driver, ClientOptions::default())
    }

    /// Opens a driver. With an option out of its range every call fails with
    /// [`ErrorKind::InvalidConfig`]; ask [`ClientOptions::validate`] before.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// use std::time::Duration;
    /// use mq_api::ClientOptions;
    ///
    /// let options = ClientOptions::default().with_request_timeout(Duration::from_secs(5));
    /// let mq = Mq::from_driver_with(MemoryMq::new(), options);
    /// mq.create_topic("orders", 4).await?;
    /// # Ok(()) }
    /// ```
    pub fn from_driver_with(driver: impl driver::Mq, options: ClientOptions) -> Self {
        Self {
            inner: Arc::new(MqInner {
                driver: Arc::new(driver),
                budget: Arc::new(Budget::new(options.memory_budget)),
                modes: Arc::default(),
                misconfigured: options.validate().err(),
                options,
                children: Mutex::default(),
                close: CloseOnce::new(),
            }),
        }
    }

    /// Returns the driver, for what only one backend can do.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// assert_eq!(mq.driver().capabilities().backend, "memory");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn driver::Mq> {
        &self.inner.driver
    }

    /// Says what the backend can do.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// assert!(mq.capabilities().delay.is_supported());
    /// assert!(!mq.capabilities().replication.is_supported());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        self.inner.driver.capabilities()
    }

    /// Creates a topic of so many partitions and returns when it can be used. Again with the same count is `Ok`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] for a name that breaks the portable rule, [`ErrorKind::InvalidPartition`] for a count
    /// out of the backend's range, [`ErrorKind::TopicExists`] where it exists with another count.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// mq.create_topic("orders", 4).await?;
    /// mq.create_topic("orders", 4).await?; // again is fine
    /// let error = mq.create_topic("orders", 5).await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::TopicExists);
    /// # Ok(()) }
    /// ```
    pub async fn create_topic(&self, name: impl AsRef<str>, partitions: u32) -> Result<()> {
        let spec = TopicSpec::new(name, partitions).map_err(|error| error.with_operation("create_topic"))?;
        self.create_topic_with(spec).await
    }

    /// Creates a topic as described and returns when it can be used.
    ///
    /// # Errors
    /// As [`create_topic`](Self::create_topic); [`ErrorKind::Unsupported`] for a setting that the backend does not have,
    /// [`ErrorKind::InvalidConfig`] for one out of its range.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// use std::time::Duration;
    /// use mq_api::TopicSpec;
    ///
    /// let spec = TopicSpec::new("orders", 4)?.with_retention_age(Duration::from_secs(3600));
    /// mq.create_topic_with(spec).await?;
    /// # Ok(()) }
    /// ```
    pub async fn create_topic_with(&self, spec: TopicSpec) -> Result<()> {
        const OPERATION: &str = "create_topic";
        let driver = &self.inner.driver;
        check_spec(&spec, driver.capabilities()).map_err(|error| error.with_operation(OPERATION))?;
        let name = spec.name.clone();
        self.inner
            .call(OPERATION, Some(&name), driver.create_topic(spec))
            .await
    }

    /// Grows a topic to so many partitions; running producers and consumers begin to use them by themselves. The same
    /// count is `Ok`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPartition`] for a smaller count or one out of the backend's range,
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Unsupported`].
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// mq.add_partitions("orders", 6).await?;
    /// assert_eq!(mq.describe_topic("orders").await?.partitions.len(), 6);
    /// # Ok(()) }
    /// ```
    pub async fn add_partitions(&self, topic: impl AsRef<str>, partitions: u32) -> Result<()> {
        const OPERATION: &str = "add_partitions";
        let driver = &self.inner.driver;
        let capabilities = driver.capabilities();
        let topic = existing_topic(OPERATION, topic)?;
        require(capabilities, capabilities.add_partitions, "adding partitions")
            .and_then(|()| check_partitions(&topic, partitions, capabilities))
            .map_err(|error| error.with_operation(OPERATION))?;
        self.inner
            .call(
                OPERATION,
                Some(&topic),
                driver.add_partitions(topic.clone(), partitions),
            )
            .await
    }

    /// Deletes a topic and all that its groups have stored. A topic that does not exist is `Ok`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] for a name that no topic can have, and what the backend says.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// mq.delete_topic("orders").await?;
    /// let error = mq.describe_topic("orders").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::TopicNotFound);
    /// # Ok(()) }
    /// ```
    pub async fn delete_topic(&self, topic: impl AsRef<str>) -> Result<()> {
        self.delete_topics([topic]).await.pop().unwrap_or(Ok(()))
    }

    /// Deletes topics; one result each, in order, so that the failure of one hides no other.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let results = mq.delete_topics(["orders", "a\0b"]).await;
    /// assert!(results[0].is_ok());
    /// assert_eq!(results[1].as_ref().unwrap_err().kind(), mq_api::ErrorKind::InvalidTopic);
    /// # Ok(()) }
    /// ```
    pub async fn delete_topics(&self, topics: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Result<()>> {
        const OPERATION: &str = "delete_topics";
        let names: Vec<Result<TopicName>> = topics
            .into_iter()
            .map(|name| existing_topic(OPERATION, name))
            .collect();
        let legal: Vec<TopicName> = names.iter().flatten().cloned().collect();
        let driver = &self.inner.driver;
        let call = async {
            if legal.is_empty() {
                return Ok(Vec::new());
            }
            let count = legal.len();
            let results = driver.delete_topics(legal).await;
            if results.len() == count {
                Ok(results)
            } else {
                let context = format!("the driver gave {} results for {count} topics", results.len());
                Err(Error::new(ErrorKind::Other, context))
            }
        };
        let mut results = match self.inner.call(OPERATION, None, call).await {
            Ok(results) => Ok(results.into_iter()),
            Err(error) => Err(error),
        };
        names
            .into_iter()
            .map(|name| {
                name?;
                match &mut results {
                    Ok(results) => results.next().unwrap_or(Ok(())),
                    Err(error) => Err(error.clone()),
                }
            })
            .collect()
    }

    /// Lists the topics that users have made.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the backend cannot, and what the backend says.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// assert_eq!(mq.list_topics().await?[0].as_str(), "orders");
    /// # Ok(()) }
    /// ```
    pub async fn list_topics(&self) -> Result<Vec<TopicName>> {
        const OPERATION: &str = "list_topics";
        let capabilities = self.capabilities();
        require(capabilities, capabilities.list_topics, "listing topics")
            .map_err(|error| error.with_operation(OPERATION))?;
        self.inner
            .call(OPERATION, None, self.inner.driver.list_topics())
            .await
    }

    /// Describes a topic: its partitions, each with its first and next offset.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], and what the backend says.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// let partition = mq.describe_topic("orders").await?.partitions[0];
    /// assert_eq!((partition.first_offset, partition.next_offset), (0, 1));
    /// # Ok(()) }
    /// ```
    pub async fn describe_topic(&self, topic: impl AsRef<str>) -> Result<TopicDescription> {
        const OPERATION: &str = "describe_topic";
        let topic = existing_topic(OPERATION, topic)?;
        self.inner.describe(OPERATION, &topic).await
    }

    /// Reads what a group has stored, without joining it. Partitions without a position are left out.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::InvalidGroup`], and what the backend says.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// consumer.consume().await?.ack()?;
    /// consumer.commit().await?;
    /// assert_eq!(mq.committed("orders", "billing").await?[0].position, 1);
    /// # Ok(()) }
    /// ```
    pub async fn committed(
        &self,
        topic: impl AsRef<str>,
        group: impl AsRef<str>,
    ) -> Result<Vec<CommittedPosition>> {
        const OPERATION: &str = "committed";
        let topic = existing_topic(OPERATION, topic)?;
        let group = existing_group(OPERATION, group)?;
        self.inner.committed(OPERATION, &topic, &group).await
    }

    /// Tells how far a group is behind, without joining it.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::InvalidGroup`], [`ErrorKind::Unsupported`], and what the backend says.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 4).await?;
    /// mq.producer("orders").await?.produce("paid").await?;
    /// assert_eq!(mq.lag("orders", "billing").await?.total(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn lag(&self, topic: impl AsRef<str>, group: impl AsRef<str>) -> Result<Lag> {
        const OPERATION: &str = "lag";
        let topic = existing_topic(OPERATION, topic)?;
        let group = existing_group(OPERATION, group)?;
        self.inner.lag(&topic, &group).await
    }

    /// Closes everything that was opened here, then the connection. Every call after it is [`ErrorKind::Closed`].
    ///
    /// It is idempotent: whoever calls it, at the same time or later, gets the same result. The errors of what was open
    /// come back as one, whose context lists them and whose kind is that of the first.
    ///
    /// # Errors
    /// What could not be flushed, committed or released in its time.
    ///
    /// # Cancel safety
    /// The close goes on when this future is dropped.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// let producer = mq.producer("orders").await?;
    /// mq.close().await?;
    /// let error = producer.produce("late").await.unwrap_err();
    /// assert_eq!(error.kind(), mq_api::ErrorKind::Closed);
    /// # Ok(()) }
    /// ```
    pub async fn close(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        self.inner.close.run(move || inner.close_all()).await
    }
}

impl MqInner {
    /// Refuses a call after close, or with an option out of its range.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.close.is_begun() {
            return Err(Error::closed("client"));
        }
        self.misconfigured.clone().map_or(Ok(()), Err)
    }

    /// Keeps a child, to be closed before the client is. `Closed` where the client is closing: close the child then.
    pub(crate) fn register(&self, child: &Arc<dyn Child>) -> Result<()> {
        let mut children = self.children();
        if children.closed {
            return Err(Error::closed("client"));
        }
        if children.open.len() >= children.prune_at {
            children.open.retain(|child| child.strong_count() > 0);
            children.prune_at = (children.open.len() * 2).max(16);
        }
        children.open.push(Arc::downgrade(child));
        Ok(())
    }

    /// Makes one call to the driver: refused after close, over in the request timeout, with a span and the operation in
    /// its error.
    pub(crate) async fn call<T>(
        &self,
        operation: &'static str,
        topic: Option<&TopicName>,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.check_open()
            .map_err(|error| error.with_operation(operation))?;
        let span = tracing::debug_span!(
            "mq",
            messaging.system = self.driver.capabilities().backend,
            messaging.operation.name = operation,
            messaging.destination.name = topic.map(TopicName::as_str),
        );
        async {
            let result = deadline(operation, self.options.request_timeout, call).await;
            if let Err(error) = &result {
                tracing::debug!(error.type = error.kind().as_str(), %error, "call failed");
            }
            result
        }
        .instrument(span)
        .await
    }

    pub(crate) async fn describe(
        &self,
        operation: &'static str,
        topic: &TopicName,
    ) -> Result<TopicDescription> {
        self.call(operation, Some(topic), self.driver.describe_topic(topic.clone()))
            .await
    }

    pub(crate) async fn committed(
        &self,
        operation: &'static str,
        topic: &TopicName,
        group: &GroupName,
    ) -> Result<Vec<CommittedPosition>> {
        let request = CommittedRequest::new(topic.clone(), group.clone());
        let mut positions = self
            .call(operation, Some(topic), self.driver.committed(request))
            .await?;
        positions.sort_by_key(|position| position.partition);
        Ok(positions)
    }

    pub(crate) async fn lag(&self, topic: &TopicName, group: &GroupName) -> Result<Lag> {
        const OPERATION: &str = "lag";
        let capabilities = self.driver.capabilities();
        require(capabilities, capabilities.lag, "lag").map_err(|error| error.with_operation(OPERATION))?;
        // The positions first: the end only grows, so the lag is never too small.
        let committed = self.committed(OPERATION, topic, group).await?;
        let description = self.describe(OPERATION, topic).await?;
        Ok(Lag::of(&description, &committed))
    }

    async fn close_all(self: Arc<Self>) -> Result<()> {
        let open = {
            let mut children = self.children();
            children.closed = true;
            std::mem::take(&mut children.open)
        };
        let mut closing = tokio::task::JoinSet::new();
        for child in open.iter().filter_map(Weak::upgrade) {
            closing.spawn(child.close());
        }
        let mut errors = Vec::new();
        while let Some(closed) = closing.join_next().await {
            match closed {
                Ok(result) => errors.extend(result.err()),
                Err(error) => {
                    errors.push(
                        Error::new(ErrorKind::Other, "a close did not run to its end").with_source(error),
                    );
                }
            }
        }
        let driver = deadline("close", self.options.close_timeout, self.driver.close()).await;
        errors.extend(driver.err());
        together(errors)
    }

    fn children(&self) -> MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Mq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mq")
            .field("driver", &self.inner.driver)
            .finish_non_exhaustive()
    }
}

/// Ends a call with `Timeout` where it is not over in time, and names the operation in its error.
pub(crate) async fn deadline<T>(
    what: &'static str,
    after: Duration,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let result = match tokio::time::timeout(after, call).await {
        Ok(result) => result,
        Err(_) => Err(Error::timeout(what, after)),
    };
    result.map_err(|error| match error.operation() {
        Some(_) => error,
        None => error.with_operation(what),
    })
}

/// Refuses what the backend cannot do, naming it.
pub(crate) fn require(capabilities: &Capabilities, support: Support, what: &str) -> Result<()> {
    if support.is_supported() {
        Ok(())
    } else {
        Err(Error::unsupported(capabilities.backend, what))
    }
}

/// Takes the name of a topic that should exist.
pub(crate) fn existing_topic(operation: &'static str, name: impl AsRef<str>) -> Result<TopicName> {
    TopicName::existing(name).map_err(|error| error.with_operation(operation))
}

/// Takes the name of a group that may exist.
pub(crate) fn existing_group(operation: &'static str, name: impl AsRef<str>) -> Result<GroupName> {
    GroupName::existing(name).map_err(|error| error.with_operation(operation))
}

/// Puts errors together: the kind, outcome and source of the first, a context that lists all.
fn together(mut errors: Vec<Error>) -> Result<()> {
    if errors.len() < 2 {
        return errors.pop().map_or(Ok(()), Err);
    }
    let Some(first) = errors.first().cloned() else {
        return Ok(());
    };
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Err(Error::new(first.kind(), all.join("; "))
        .with_retryable(first.is_retryable())
        .with_outcome(first.outcome())
        .with_operation("close")
        .with_source(first))
}

fn check_partitions(topic: &TopicName, partitions: u32, capabilities: &Capabilities) -> Result<()> {
    if (1..=capabilities.max_partitions).contains(&partitions) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidPartition,
        format!(
            "{partitions} partitions of topic {topic:?}: the {} backend takes 1 to {}",
            capabilities.backend, capabilities.max_partitions
        ),
    ))
}

fn check_spec(spec: &TopicSpec, capabilities: &Capabilities) -> Result<()> {
    check_partitions(&spec.name, spec.partitions, capabilities)?;
    let zero = |option: &str| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "option `{option}` of topic {:?} is zero, it must be more",
                spec.name
            ),
        )
    };
    if let Some(age) = spec.retention.age {
        require(capabilities, capabilities.retention_age, "retention by age")?;
        if age.is_zero() {
            return Err(zero("retention.age"));
        }
    }
    if let Some(bytes) = spec.retention.bytes {
        require(capabilities, capabilities.retention_bytes, "retention by bytes")?;
        if bytes == 0 {
            return Err(zero("retention.bytes"));
        }
    }
    if let Some(copies) = spec.replication {
        require(capabilities, capabilities.replication, "replication")?;
        if copies == 0 {
            return Err(zero("replication"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
