//! Looking at a topic from time to time: partitions that were added, a topic that is gone, brokers out of reach.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use mq_api::{Error, ErrorKind, Result};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    client::Client,
    ffi::{self, TopicInfo},
};

/// How often a topic is looked at while somebody uses it.
const INTERVAL: Duration = Duration::from_millis(1500);
/// How long a topic must be unknown before it counts as gone: a broker that has just started may not know it yet.
const MAKE_SURE: Duration = Duration::from_millis(300);
/// How long one look may take before the brokers count as out of reach.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// Says how a topic looked last.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) partitions: u32,
    /// The topic is deleted, or deleted and made again.
    pub(crate) gone: bool,
    /// Why the brokers could not be asked.
    pub(crate) trouble: Option<Error>,
}

/// Looks at one topic while it is held.
pub(crate) struct TopicWatch {
    pub(crate) topic: String,
    /// The id that the topic had when it was first looked at.
    pub(crate) id: Option<String>,
    client: Arc<Client>,
    seen: watch::Sender<Seen>,
    task: std::sync::OnceLock<AbortHandle>,
}

impl TopicWatch {
    pub(crate) async fn open(client: &Arc<Client>, topic: &str) -> Result<Arc<Self>> {
        let info = ask(client, topic, client.config.request_timeout).await?;
        let (seen, _) = watch::channel(Seen {
            partitions: info.partitions,
            gone: false,
            trouble: None,
        });
        let watch = Arc::new(Self {
            topic: topic.to_owned(),
            id: info.id,
            client: Arc::clone(client),
            seen,
            task: std::sync::OnceLock::new(),
        });
        // Ends with the watch, which aborts it.
        let task = tokio::spawn(keep_looking(Arc::downgrade(&watch)));
        let _ = watch.task.set(task.abort_handle());
        Ok(watch)
    }

    /// Follows what is seen.
    pub(crate) fn follow(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.seen.borrow().partitions
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.seen.borrow().gone
    }

    /// Looks now; fails where the brokers cannot be asked.
    pub(crate) async fn look(&self) -> Result<()> {
        let mut result = ask(&self.client, &self.topic, LOOK_LIMIT).await;
        if is_unknown(&result) {
            tokio::time::sleep(MAKE_SURE).await;
            result = ask(&self.client, &self.topic, LOOK_LIMIT).await;
        }
        let gone = is_unknown(&result);
        self.seen.send_if_modified(|seen| {
            let before = (seen.partitions, seen.gone, seen.trouble.is_some());
            match &result {
                Ok(info) => {
                    seen.trouble = None;
                    if info.id != self.id {
                        seen.gone = true;
                    } else if !seen.gone {
                        // Partitions are never taken away: a smaller number is a broker's that lags behind.
                        seen.partitions = seen.partitions.max(info.partitions);
                    }
                }
                Err(_) if gone => {
                    seen.trouble = None;
                    seen.gone = true;
                }
                Err(error) => seen.trouble = Some(error.clone()),
            }
            before != (seen.partitions, seen.gone, seen.trouble.is_some())
        });
        match result {
            Err(error) if !gone => Err(error),
            _ => Ok(()),
        }
    }
}

async fn keep_looking(watch: Weak<TopicWatch>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(watch) = watch.upgrade() else { return };
        if watch.is_gone() {
            return;
        }
        if let Err(error) = watch.look().await {
            tracing::debug!(topic = watch.topic, %error, "the topic could not be looked at");
        }
    }
}

fn is_unknown<T>(result: &Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::TopicNotFound)
}

/// Asks for a topic once.
pub(crate) async fn ask(client: &Client, topic: &str, limit: Duration) -> Result<TopicInfo> {
    let name = topic.to_owned();
    client
        .ask_within(limit, format!("topic {topic:?}"), move |client, limit| {
            ffi::describe_topic(client, &name, limit)
        })
        .await
}

impl Drop for TopicWatch {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl fmt::Debug for TopicWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicWatch")
            .field("topic", &self.topic)
            .field("seen", &*self.seen.borrow())
            .finish_non_exhaustive()
    }
}
