//! The messages of all partitions as one stream.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

use super::ReadMessage;
use crate::{
    Error, Offset, Position, Result,
    driver::{self, FetchRequest, Fetched},
};

/// How long one look waits at the backend for a message to come.
const WAIT: Duration = Duration::from_secs(1);

/// How often a reader that has nothing to do looks for partitions that were added.
const LOOK_FOR_PARTITIONS: Duration = Duration::from_secs(5);

/// How many messages are fetched from one partition at a time.
const BATCH: usize = 500;

/// How many bytes are fetched from all partitions at a time.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Where a reader is in each partition, and what it has fetched from there.
pub(super) struct Merge {
    parts: Vec<Part>,
    /// The partition whose turn it is.
    turn: usize,
    looked_at: Instant,
}

struct Part {
    next: Offset,
    fetched: VecDeque<ReadMessage>,
}

type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Fetched>> + Send + 'a>>;

impl Merge {
    pub(super) fn new(positions: Vec<Offset>) -> Self {
        Self {
            parts: positions.into_iter().map(Part::at).collect(),
            turn: 0,
            looked_at: Instant::now(),
        }
    }

    /// Returns the next message, waiting for it as long as there is none.
    pub(super) async fn next(
        &mut self,
        driver: &Arc<dyn driver::Reader>,
        limit: Duration,
    ) -> Result<ReadMessage> {
        loop {
            if let Some(message) = self.take() {
                return Ok(message);
            }
            // First a look at every partition to its end, so that a busy one starves no other; only where all of them
            // have nothing, a wait that the first of them ends.
            let mut failed = self.fetch(driver, Duration::ZERO, limit).await.err();
            if self.parts.iter().all(|part| part.fetched.is_empty()) {
                if let Some(error) = failed.take() {
                    return Err(error);
                }
                self.fetch(driver, WAIT, limit).await?;
                self.look_for_partitions(driver, limit).await?;
            }
        }
    }

    /// Takes a fetched message, from each partition in turn.
    fn take(&mut self) -> Option<ReadMessage> {
        let count = self.parts.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            if let Some(message) = self.parts.get_mut(at).and_then(|part| part.fetched.pop_front()) {
                self.turn = at + 1;
                return Some(message);
            }
        }
        None
    }

    /// Asks for the messages of all partitions at the same time. With a wait it ends with the first that has some, else
    /// when all are done. What comes is kept, also where another partition fails.
    async fn fetch(
        &mut self,
        driver: &Arc<dyn driver::Reader>,
        wait: Duration,
        limit: Duration,
    ) -> Result<()> {
        let bytes = (BATCH_BYTES / self.parts.len().max(1)).clamp(64 * 1024, 4 * 1024 * 1024);
        let mut fetches: Vec<Option<Fetch<'_>>> = (0..)
            .zip(&self.parts)
            .map(|(partition, part)| {
                let mut request =
                    FetchRequest::new(partition, Position::Offset(part.next), BATCH).with_wait(wait);
                request.max_bytes = bytes;
                Some(driver.fetch(request))
            })
            .collect();
        let mut failed = None;
        let all = poll_fn(|cx| {
            let (mut waiting, mut found) = (false, false);
            for ((partition, part), slot) in (0..).zip(&mut self.parts).zip(&mut fetches) {
                let Some(fetch) = slot else {
                    continue;
                };
                match fetch.as_mut().poll(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(result) => {
                        *slot = None;
                        match result {
                            Ok(fetched) => found |= part.put(partition, fetched),
                            Err(error) => failed = Some(error),
                        }
                    }
                }
            }
            // A first look waits for all, a wait only for the first that has something or fails.
            let enough = !wait.is_zero() && (found || failed.is_some());
            if waiting && !enough {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        if tokio::time::timeout(wait + limit, all).await.is_err() {
            failed = Some(Error::timeout("a fetch", wait + limit));
        }
        failed.map_or(Ok(()), Err)
    }

    async fn look_for_partitions(&mut self, driver: &Arc<dyn driver::Reader>, limit: Duration) -> Result<()> {
        if self.looked_at.elapsed() < LOOK_FOR_PARTITIONS {
            return Ok(());
        }
        self.looked_at = Instant::now();
        let bounds = crate::mq::deadline("next", limit, driver.bounds()).await?;
        let known = self.parts.len();
        // All that was ever sent to a partition that is new lies after the start of this reader.
        self.parts
            .extend(bounds.into_iter().skip(known).map(|(first, _)| Part::at(first)));
        Ok(())
    }
}

impl Part {
    fn at(next: Offset) -> Self {
        Self {
            next,
            fetched: VecDeque::new(),
        }
    }

    /// Keeps what was fetched; `true` where there was something.
    fn put(&mut self, partition: u32, fetched: Fetched) -> bool {
        let found = !fetched.records.is_empty();
        self.next = self.next.max(fetched.next_offset);
        self.fetched.extend(ReadMessage::all(partition, fetched.records));
        found
    }
}
