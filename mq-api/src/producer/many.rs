//! Sends of many messages in one call: messages of one partition share a batch and its result slots.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::task::coop;

use super::{
    core::{Core, Group, Refused, Taken, Target},
    pending::wait,
};
use crate::{Error, Message, Receipt, Result};

/// How many messages are sorted by partition at a time.
const CHUNK: usize = 1024;

/// Where the result of a message will be.
enum Place {
    Failed(Error),
    In { part: usize, slot: u32 },
}

/// Messages of one partition that are being collected.
struct Gathering {
    partition: u32,
    part: usize,
    group: Group,
}

/// Sends messages and waits for all of them; one result each, in order.
pub(super) async fn produce_all(
    core: &Arc<Core>,
    mut messages: Vec<Message>,
    partition: Option<u32>,
) -> Vec<Result<Receipt>> {
    coop::consume_budget().await;
    if let Some((target, weight)) = one_target(core, &mut messages, partition) {
        return produce_together(core, target, messages, weight).await;
    }
    let mut places = Vec::with_capacity(messages.len());
    let mut parts: Vec<Result<Taken>> = Vec::new();
    let mut deadline = None;
    let mut messages = messages.into_iter().peekable();
    while messages.peek().is_some() {
        coop::consume_budget().await;
        for gathering in gather(core, &mut messages, &mut places, parts.len(), partition) {
            parts.push(match core.submit(gathering.group, None, false) {
                Ok(taken) => Ok(taken),
                Err(Refused::Failed(error)) => Err(error),
                Err(Refused::Full(group)) => core.submit_when_there_is_room(group, &mut deadline).await,
            });
        }
    }
    for part in &parts {
        if let Ok(Taken::Waiting(slots)) = part {
            wait(slots).await;
        }
    }
    let result = |place| match place {
        Place::Failed(error) => Err(error),
        Place::In { part, slot } => match parts.get(part) {
            Some(Ok(Taken::Waiting(slots))) => slots.result(slot),
            Some(Ok(Taken::Done(result))) => result.clone(),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::closed("producer")),
        },
    };
    places
        .into_iter()
        .map(|place| result(place).map_err(|error| error.with_operation("produce")))
        .collect()
}

/// Returns where all of the messages go and what they weigh, where that is one place, they are valid and a batch holds
/// them.
fn one_target(core: &Core, messages: &mut [Message], partition: Option<u32>) -> Option<(Target, usize)> {
    let most = core.options.buffer_messages.min(CHUNK);
    if messages.is_empty() || messages.len() > most {
        return None;
    }
    let mut weight = 0;
    for message in messages.iter_mut() {
        if partition.is_none() && message.key().is_some() {
            return None;
        }
        // What it adds to a message, it does not add again if the message goes the other way after all.
        core.prepare(message).ok()?;
        weight += message.weight();
    }
    if weight >= core.options.buffer_bytes {
        return None;
    }
    let target = match partition {
        Some(partition) => core.explicit(partition).ok()?,
        None if core.partitions() == 1 => Target::Chosen(0),
        None => {
            let (partition, count) = core.stick(messages.len());
            if (count as usize) < messages.len() {
                return None;
            }
            Target::Chosen(partition)
        }
    };
    Some((target, weight))
}

/// Sends messages of one partition and waits for them. Sorting them by partition and finding each one's result took
/// 180 instructions a message more.
async fn produce_together(
    core: &Arc<Core>,
    target: Target,
    messages: Vec<Message>,
    weight: usize,
) -> Vec<Result<Receipt>> {
    let count = messages.len();
    let group = Group {
        target,
        weight,
        messages: SmallVec::from_vec(messages),
    };
    let taken = match core.submit(group, None, false) {
        Ok(taken) => Ok(taken),
        Err(Refused::Failed(error)) => Err(error),
        Err(Refused::Full(group)) => core.submit_when_there_is_room(group, &mut None).await,
    };
    let failed = |error: Error| error.with_operation("produce");
    match taken {
        Ok(Taken::Done(result)) => vec![result.map_err(failed)],
        Ok(Taken::Waiting(slots)) => {
            wait(&slots).await;
            // A batch is far smaller than its numbers reach.
            let numbers = 0..count as u32;
            match slots.stored() {
                Some((partition, first)) => numbers
                    .map(|slot| {
                        let offset = first.map(|first| first + u64::from(slot));
                        Ok(Receipt::new(partition, offset))
                    })
                    .collect(),
                None => numbers.map(|slot| slots.result(slot).map_err(failed)).collect(),
            }
        }
        Err(error) => {
            let error = failed(error);
            (0..count).map(|_| Err(error.clone())).collect()
        }
    }
}

/// Sorts the next messages by partition, or puts them where the caller wants them; what is invalid fails alone. Messages of one partition stay in their order.
fn gather(
    core: &Core,
    messages: &mut impl Iterator<Item = Message>,
    places: &mut Vec<Place>,
    first_part: usize,
    partition: Option<u32>,
) -> SmallVec<[Gathering; 4]> {
    let mut gathered: SmallVec<[Gathering; 4]> = SmallVec::new();
    let (most, most_bytes) = (core.options.buffer_messages.min(CHUNK), core.options.buffer_bytes);
    let room = messages.size_hint().0.clamp(1, most);
    let (mut count, mut bytes) = (0, 0);
    // The partition of messages without a key, and for how many more it holds.
    let mut sticky = (0, 0);
    while count < most
        && bytes < most_bytes
        && let Some(mut message) = messages.next()
    {
        count += 1;
        let target = core.prepare(&mut message).and_then(|()| match partition {
            Some(partition) => core.explicit(partition),
            None => core.target(&message),
        });
        let target = match target {
            Err(error) => {
                places.push(Place::Failed(error));
                continue;
            }
            Ok(Target::Any) => {
                if sticky.1 == 0 {
                    sticky = core.stick(room);
                }
                sticky.1 -= 1;
                Target::Chosen(sticky.0)
            }
            Ok(target) => target,
        };
        let (Target::Chosen(partition) | Target::Partition(partition)) = target else {
            continue;
        };
        bytes += message.weight();
        let open = gathered
            .iter()
            .position(|gathering| gathering.partition == partition);
        let at = open.unwrap_or_else(|| {
            gathered.push(Gathering {
                partition,
                part: first_part + gathered.len(),
                group: Group {
                    target,
                    messages: SmallVec::with_capacity(room.min(64)),
                    weight: 0,
                },
            });
            gathered.len() - 1
        });
        let Some(Gathering { part, group, .. }) = gathered.get_mut(at) else {
            continue;
        };
        if target != group.target {
            // With one message bound to the partition the group must stay there.
            group.target = Target::Partition(partition);
        }
        group.weight += message.weight();
        places.push(Place::In {
            part: *part,
            slot: u32::try_from(group.messages.len()).unwrap_or(u32::MAX),
        });
        group.messages.push(message);
    }
    gathered
}
