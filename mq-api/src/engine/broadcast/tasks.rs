//! The tasks of a broadcast member: one for each partition, and one that owns them.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::state::{End, Plan, Shared, Tenure};
use crate::{Error, ErrorKind, PartitionDescription};

/// How often the topic is looked at for partitions that were added, and for its end.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The first pause after a fetch that failed, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Owns the tasks of the partitions, and adds one for each partition that is added.
pub(super) async fn supervise(shared: Arc<Shared>, mut partitions: usize) {
    let mut stop = shared.stop.subscribe();
    let mut tasks = JoinSet::new();
    let mut started = 0;
    loop {
        for partition in started..partitions {
            let partition = u32::try_from(partition).unwrap_or(u32::MAX);
            tasks.spawn(read_partition(Arc::clone(&shared), partition));
        }
        started = partitions;
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(done) = tasks.join_next() => if let Err(error) = done {
                shared.end(End::Failed(
                    Error::new(ErrorKind::Other, "the task that reads a partition ended early").with_source(error),
                ));
            },
            more = watch_topic(&shared, partitions) => match more {
                Some(added) => {
                    partitions += added.len();
                    shared.assign(added);
                }
                None => break,
            },
        }
    }
    tasks.shutdown().await;
}

/// Waits until the topic has more partitions, which begin at their oldest message so that nothing produced to them is
/// missed. Returns none once the member has ended.
async fn watch_topic(shared: &Shared, known: usize) -> Option<Vec<Tenure>> {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match shared.driver.describe_topic(shared.topic.clone()).await {
            Ok(topic) if topic.id != shared.topic_id => {
                shared.end(End::TopicGone);
                return None;
            }
            Ok(topic) => {
                let added = topic.partitions.get(known..).unwrap_or_default();
                if !added.is_empty() {
                    let tenure =
                        |added: &PartitionDescription| Tenure::new(added.partition, added.first_offset);
                    return Some(added.iter().map(tenure).collect());
                }
            }
            // The partitions' tasks tell of an outage; this one only looks again.
            Err(error) if shared.survives(&error) => {}
            Err(_) => return None,
        }
    }
}

/// Fetches one partition for as long as the member has it.
async fn read_partition(shared: Arc<Shared>, partition: u32) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (request, from, generation, wake) = match shared.plan(partition) {
            Plan::End => return,
            Plan::Wait(wake) => {
                wake.notified().await;
                continue;
            }
            Plan::Fetch {
                request,
                from,
                generation,
                wake,
            } => (request, from, generation, wake),
        };
        let mut fetch = pin!(shared.fetch(request, from));
        let fetched = loop {
            tokio::select! {
                biased;
                fetched = &mut fetch => break fetched,
                () = wake.notified() => if !shared.is_current(partition, generation) {
                    break Err(Error::new(ErrorKind::Interrupted, "the position was moved"));
                },
            }
        };
        match fetched {
            Ok(fetched) => {
                pause = FIRST_PAUSE;
                shared.queue(partition, generation, from, fetched);
            }
            // What failed is no longer wanted.
            Err(_) if !shared.is_current(partition, generation) => {}
            Err(error) if shared.survives(&error) => {
                shared.fails(partition, error);
                // Up to half of it by chance, so that partitions do not come back all at once.
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(_) => return,
        }
    }
}
