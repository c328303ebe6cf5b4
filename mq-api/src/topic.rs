//! What a topic is made of.

use std::{collections::BTreeMap, time::Duration};

use crate::{Offset, TopicName};

/// Describes a topic that is to be created.
///
/// ```
/// use std::time::Duration;
/// use mq_api::TopicSpec;
///
/// # fn main() -> mq_api::Result<()> {
/// let spec = TopicSpec::new("orders", 4)?.with_retention_age(Duration::from_secs(3600));
/// assert_eq!(spec.partitions, 4);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicSpec {
    /// The name.
    pub name: TopicName,
    /// How many partitions, from 1 to the backend's limit.
    pub partitions: u32,
    /// How many copies the backend keeps. Default: the backend's own.
    pub replication: Option<u16>,
    /// How long and how much is kept. Default: the backend's own, stated on its page; never for ever.
    pub retention: Retention,
    /// Settings of the one backend; a name that it does not know is refused.
    pub properties: BTreeMap<String, String>,
}

/// Bounds what a topic keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Messages older than this may be removed.
    pub age: Option<Duration>,
    /// The oldest messages of a partition may be removed when it holds more than this, in bytes.
    pub bytes: Option<u64>,
}

impl TopicSpec {
    /// Describes a topic of so many partitions.
    ///
    /// ```
    /// # use mq_api::TopicSpec;
    /// # fn main() -> mq_api::Result<()> {
    /// let spec = TopicSpec::new("orders", 4)?;
    /// assert_eq!((spec.name.as_str(), spec.partitions), ("orders", 4));
    /// assert!(TopicSpec::new("9lives", 4).is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`](crate::ErrorKind::InvalidTopic) if the name breaks the portable rule.
    pub fn new(name: impl AsRef<str>, partitions: u32) -> crate::Result<Self> {
        Ok(Self {
            name: TopicName::new(name)?,
            partitions,
            replication: None,
            retention: Retention::default(),
            properties: BTreeMap::new(),
        })
    }

    /// Sets how many copies the backend keeps.
    ///
    /// ```
    /// # use mq_api::TopicSpec;
    /// # fn main() -> mq_api::Result<()> {
    /// let spec = TopicSpec::new("orders", 4)?.with_replication(3);
    /// assert_eq!(spec.replication, Some(3));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_replication(mut self, copies: u16) -> Self {
        self.replication = Some(copies);
        self
    }

    /// Sets how long messages are kept at least.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::TopicSpec;
    /// # fn main() -> mq_api::Result<()> {
    /// let spec = TopicSpec::new("orders", 4)?.with_retention_age(Duration::from_secs(3600));
    /// assert_eq!(spec.retention.age, Some(Duration::from_secs(3600)));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_retention_age(mut self, age: Duration) -> Self {
        self.retention.age = Some(age);
        self
    }

    /// Sets how many bytes a partition keeps at least, where it has as many.
    ///
    /// ```
    /// # use mq_api::TopicSpec;
    /// # fn main() -> mq_api::Result<()> {
    /// let spec = TopicSpec::new("orders", 4)?.with_retention_bytes(1 << 30);
    /// assert_eq!(spec.retention.bytes, Some(1 << 30));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_retention_bytes(mut self, bytes: u64) -> Self {
        self.retention.bytes = Some(bytes);
        self
    }

    /// Sets something that only this backend knows.
    ///
    /// ```
    /// # use mq_api::TopicSpec;
    /// # fn main() -> mq_api::Result<()> {
    /// let spec = TopicSpec::new("orders", 4)?.with_property("cleanup.policy", "compact");
    /// assert_eq!(spec.properties["cleanup.policy"], "compact");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }
}

/// Identifies one life of a topic: a topic that was deleted and made again has another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicId(String);

impl TopicId {
    /// Takes the backend's own text for it.
    ///
    /// ```
    /// use mq_api::TopicId;
    /// assert_ne!(TopicId::new("first"), TopicId::new("second"));
    /// ```
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Returns the text.
    ///
    /// ```
    /// use mq_api::TopicId;
    /// assert_eq!(TopicId::new("first").as_str(), "first");
    /// ```
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Describes a topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// The name.
    pub name: TopicName,
    /// Which life of the topic this is, where the backend tells.
    pub id: Option<TopicId>,
    /// The partitions in order, 0 first.
    pub partitions: Vec<PartitionDescription>,
}

/// Describes one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionDescription {
    /// The number.
    pub partition: u32,
    /// The offset of the oldest message retained, or of the next one where there is none.
    pub first_offset: Offset,
    /// The offset that the next message will have at least.
    pub next_offset: Offset,
}

impl TopicDescription {
    /// Makes a description.
    ///
    /// ```
    /// # use mq_api::{PartitionDescription, TopicDescription, TopicName};
    /// # fn main() -> mq_api::Result<()> {
    /// let partitions = vec![PartitionDescription::new(0, 0, 10)];
    /// let topic = TopicDescription::new(TopicName::new("orders")?, None, partitions);
    /// assert_eq!(topic.partitions.len(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn new(name: TopicName, id: Option<TopicId>, partitions: Vec<PartitionDescription>) -> Self {
        Self { name, id, partitions }
    }
}

impl PartitionDescription {
    /// Makes a description.
    ///
    /// ```
    /// use mq_api::PartitionDescription;
    /// let partition = PartitionDescription::new(0, 5, 8);
    /// assert_eq!((partition.first_offset, partition.next_offset), (5, 8));
    /// ```
    #[must_use]
    pub fn new(partition: u32, first_offset: Offset, next_offset: Offset) -> Self {
        Self {
            partition,
            first_offset,
            next_offset,
        }
    }
}
