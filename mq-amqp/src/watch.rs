//! What is known of an open topic, kept up to date: new records of its description are pushed by the server.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use futures_util::StreamExt;
use lapin::options::BasicAckOptions;
use mq_api::{Error, ErrorKind, Result, TopicName, driver::topic_not_found};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    link::{Backoff, From, Link},
    meta::Meta,
    stream,
    topic::{Shared, Topic},
    words::Words,
};

/// A topic that is in use. The watch ends with the last user.
pub(crate) struct Open {
    pub(crate) topic: Topic,
    state: watch::Receiver<State>,
    count: watch::Receiver<u32>,
    watcher: AbortHandle,
}

/// What changes in the life of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) partitions: u32,
    /// It was deleted.
    pub(crate) gone: bool,
}

impl Open {
    pub(crate) fn start(shared: &Arc<Shared>, name: &TopicName, meta: Meta) -> Arc<Self> {
        let topic = Topic {
            name: name.clone(),
            id: meta.id.clone(),
        };
        let (told, state) = watch::channel(State {
            partitions: meta.partitions,
            gone: false,
        });
        let (counted, count) = watch::channel(meta.partitions);
        let watcher = Watcher {
            shared: Arc::downgrade(shared),
            link: Arc::clone(&shared.consume),
            queue: shared.names.meta(name),
            topic: topic.clone(),
            meta,
            told,
            counted,
        };
        let task = tokio::spawn(watcher.run());
        Arc::new(Self {
            topic,
            state,
            count,
            watcher: task.abort_handle(),
        })
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    pub(crate) fn partitions(&self) -> u32 {
        *self.count.borrow()
    }

    pub(crate) fn count(&self) -> watch::Receiver<u32> {
        self.count.clone()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state.borrow().gone
    }

    /// Fails where the topic is known to be gone.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_gone() {
            Err(topic_not_found(&self.topic.name))
        } else {
            Ok(())
        }
    }

    /// Asks the server whether this life of the topic stands.
    pub(crate) async fn ask(&self, shared: &Shared) -> Result<()> {
        self.check()?;
        match shared.meta(&self.topic.name).await? {
            Some(meta) if meta.id == self.topic.id && !meta.deleting => Ok(()),
            _ => Err(topic_not_found(&self.topic.name)),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("topic", &self.topic)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

struct Watcher {
    shared: Weak<Shared>,
    link: Arc<Link>,
    queue: String,
    topic: Topic,
    meta: Meta,
    told: watch::Sender<State>,
    counted: watch::Sender<u32>,
}

impl Watcher {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            match self.listen(&mut backoff).await {
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) if error.kind() == ErrorKind::TopicNotFound => {
                    // Deleted, or the queue moves to another node.
                    if self.is_gone().await {
                        self.told.send_modify(|state| state.gone = true);
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, topic = %self.topic.name, "watching a topic was interrupted");
                }
                Ok(()) => {}
            }
            if self.meta.deleting {
                self.told.send_modify(|state| state.gone = true);
                return;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn listen(&mut self, backoff: &mut Backoff) -> Result<()> {
        let chan = self.link.conn().await?.channel().await?;
        chan.prefetch(64).await?;
        let from = From::At(self.meta.next);
        let mut records = chan.consume_stream(&self.queue, "watch", from).await?;
        backoff.reset();
        while let Some(record) = records.next().await {
            let record = record.map_err(|e| chan.map(&e))?;
            let offset = crate::format::offset_of(&record)?;
            if offset >= self.meta.next {
                self.take(offset, &record.data)?;
            }
            if self.meta.deleting {
                return Ok(());
            }
            record
                .ack(BasicAckOptions::default())
                .await
                .map_err(|e| chan.map(&e))?;
        }
        Err(stream::cancelled())
    }

    fn take(&mut self, offset: u64, body: &[u8]) -> Result<()> {
        let words = Words::parse("the description of a topic", body)?;
        let mut meta = Some(self.meta.clone());
        Meta::apply(&mut meta, offset, &words)?;
        if let Some(meta) = meta {
            self.meta = meta;
        }
        let partitions = self.meta.partitions;
        self.counted
            .send_if_modified(|count| std::mem::replace(count, partitions) != partitions);
        self.told.send_if_modified(|state| {
            let grown = state.partitions < partitions;
            state.partitions = state.partitions.max(partitions);
            grown
        });
        Ok(())
    }

    async fn is_gone(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return true;
        };
        match shared.meta(&self.topic.name).await {
            Ok(Some(meta)) => meta.id != self.topic.id || meta.deleting,
            Ok(None) => true,
            Err(error) => is_final(&error),
        }
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::TopicNotFound)
}
