//! Broadcast: every member sees every message.
//!
//! There is no group on the backend: this adapter gives the engine a driver's consumer that is made of a reader. It
//! owns every partition for as long as it lives, so nothing is ever revoked, and positions are kept nowhere.

mod state;
mod tasks;

use std::{
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use async_trait::async_trait;
use tokio::{
    sync::{OnceCell, watch},
    task::JoinHandle,
};

use self::state::{End, Shared, Tenure, WakeAfter};
use crate::{
    Error, ErrorKind, Offset, PartitionDescription, Position, Result,
    driver::{self, AssignmentId, Commit, CommitOutcome, Event, Subscription, invalid_partition},
};

/// Opens a member that sees every message of the topic from its start on. When this returns, the start of every
/// partition is an offset, so `Latest` leaves out nothing that is produced afterwards.
///
/// Dropping the future, or both of what it returns, leaves no task behind.
pub(crate) async fn join(
    driver: &Arc<dyn driver::Mq>,
    subscription: &Subscription,
) -> Result<(Arc<dyn driver::Consumer>, Box<dyn driver::Events>)> {
    if let Some((name, _)) = subscription.properties.first() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("property {name:?}: broadcast mode takes no properties"),
        ));
    }
    let topic = &subscription.topic;
    let reader = driver.reader(topic.clone()).await?;
    let description = driver.describe_topic(topic.clone()).await?;
    let mut tenures = Vec::with_capacity(description.partitions.len());
    for partition in &description.partitions {
        let position = resolve(&*reader, partition, subscription.start).await?;
        tenures.push(Tenure::new(partition.partition, position));
    }
    let shared = Arc::new(Shared {
        driver: Arc::clone(driver),
        reader,
        topic: topic.clone(),
        topic_id: description.id,
        prefetch: subscription.prefetch,
        stop: watch::Sender::new(false),
        state: Mutex::default(),
    });
    let partitions = tenures.len();
    shared.assign(tenures);
    let tasks = tokio::spawn(tasks::supervise(Arc::clone(&shared), partitions));
    let events = BroadcastEvents(Handle(Arc::clone(&shared)));
    let consumer = BroadcastConsumer {
        handle: Handle(shared),
        tasks: tokio::sync::Mutex::new(tasks),
        closed: OnceCell::new(),
    };
    Ok((Arc::new(consumer), Box::new(events)))
}

/// The member as the engine controls it.
struct BroadcastConsumer {
    handle: Handle,
    tasks: tokio::sync::Mutex<JoinHandle<()>>,
    closed: OnceCell<Result<()>>,
}

#[async_trait]
impl driver::Consumer for BroadcastConsumer {
    /// Stores nothing: a member that comes back begins at its start again.
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let state = self.handle.0.lock();
        let outcome = |commit: &Commit| match state.tenure(commit.assignment) {
            Some(_) => Ok(CommitOutcome::Stored),
            None => Ok(CommitOutcome::Lost),
        };
        commits.iter().map(outcome).collect()
    }

    async fn release(&self, assignments: Vec<AssignmentId>) -> Result<()> {
        let mut dropped = Vec::new();
        let mut state = self.handle.0.lock();
        for id in assignments {
            if let Some(tenure) = state.tenure_mut(id) {
                tenure.released = true;
                dropped.push(tenure.clear());
                tenure.wake.notify_one();
                state.works_again(id.partition);
            }
        }
        state.wake_after(dropped);
        Ok(())
    }

    async fn seek(&self, assignment: AssignmentId, to: Position, generation: u64) -> Result<Offset> {
        let shared = &self.handle.0;
        let bounds = shared.reader.bounds().await?;
        let Some(&(first, next)) = bounds.get(assignment.partition as usize) else {
            let partitions = u32::try_from(bounds.len()).unwrap_or(u32::MAX);
            return Err(invalid_partition(&shared.topic, assignment.partition, partitions));
        };
        let partition = PartitionDescription::new(assignment.partition, first, next);
        let offset = resolve(&*shared.reader, &partition, to).await?;
        let mut state = shared.lock();
        if state.end.is_some() {
            return Err(Error::closed("consumer"));
        }
        let Some(tenure) = state.tenure_mut(assignment) else {
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!("partition {} was given back", assignment.partition),
            ));
        };
        // The later of two seeks that overtake each other is the one with the higher generation.
        if generation < tenure.generation {
            return Ok(offset);
        }
        tenure.generation = generation;
        tenure.position = offset;
        let dropped = tenure.clear();
        tenure.wake.notify_one();
        drop(state);
        drop(dropped);
        Ok(offset)
    }

    fn pause(&self, assignments: &[AssignmentId], paused: bool) {
        let mut state = self.handle.0.lock();
        for &id in assignments {
            let Some(tenure) = state.tenure_mut(id) else {
                continue;
            };
            tenure.paused = paused;
            if !paused {
                tenure.feed();
                state.list(id.partition);
            }
        }
        state.wake_after(());
    }

    async fn close(&self) -> Result<()> {
        self.handle.0.end(End::Closed);
        let close = async {
            // It ended by a panic of a driver at worst, which the events have told.
            let _ = (&mut *self.tasks.lock().await).await;
            self.handle.0.reader.close().await
        };
        self.closed.get_or_init(|| close).await.clone()
    }
}

impl fmt::Debug for BroadcastConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastConsumer")
            .field("topic", &self.handle.0.topic)
            .finish_non_exhaustive()
    }
}

/// What happens to the member.
struct BroadcastEvents(Handle);

impl driver::Events for BroadcastEvents {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let mut state = self.0.0.lock();
        if let Some(event) = state.next() {
            return Poll::Ready(event);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// Ends the member when the engine lets go of it.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.end(End::Closed);
    }
}

/// Turns a position into an offset that exists or will exist.
async fn resolve(
    reader: &dyn driver::Reader,
    partition: &PartitionDescription,
    to: Position,
) -> Result<Offset> {
    match to {
        Position::Earliest => Ok(partition.first_offset),
        Position::Latest => Ok(partition.next_offset),
        Position::Offset(offset) if offset > partition.next_offset => Err(Error::new(
            ErrorKind::OffsetOutOfRange,
            format!(
                "offset {offset} of partition {}: its end is {}",
                partition.partition, partition.next_offset
            ),
        )),
        Position::Offset(offset) => Ok(offset.max(partition.first_offset)),
        Position::Time(time) => reader.offset_at(partition.partition, time).await,
    }
}

#[cfg(test)]
mod tests;
