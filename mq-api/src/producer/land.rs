//! What happens when a driver has dropped a batch.

use std::{sync::Arc, time::Duration};

use super::{
    core::Core,
    effects::Effects,
    lane::{Entry, Lane},
    state::{Life, State},
};
use crate::{
    Error, Outcome,
    driver::{BatchOwner, Landed},
};

impl BatchOwner for Core {
    fn timeout(&self) -> Duration {
        self.options.timeout
    }

    fn may_retry(&self, error: &Error) -> bool {
        error.is_retryable() && (error.outcome() == Outcome::NotSent || self.options.resend_unknown)
    }

    fn landed(&self, mut batch: Landed<'_>) {
        let mut fx = Effects::default();
        let mut failed = None;
        {
            let mut guard = self.lock();
            let state = &mut *guard;
            let over = state.life == Life::Over;
            let Some(lane) = state.lanes.get_mut(batch.partition as usize) else {
                return;
            };
            let counted = lane.land(batch.ticket.id) || batch.ticket.counted;
            let (mut count, mut stored, mut kept, mut kept_bytes) = (0, 0, 0, 0);
            let mut exhausted = Vec::new();
            for run in batch.runs {
                let tally = run.slots.tally(run.range());
                stored += tally.stored;
                fx.count_failed(&run.slots, tally.failed);
                if let Some(last) = tally.last_settled {
                    lane.settle(run.seq + u64::from(last - run.first));
                }
                for (slot, error) in tally.retries {
                    let index = count + (slot - run.first) as usize;
                    let Some(message) = batch.messages.get_mut(index).map(std::mem::take) else {
                        continue;
                    };
                    let weight = message.weight();
                    kept += 1;
                    kept_bytes += weight;
                    let unknown = error.outcome() == Outcome::Unknown;
                    failed = Some(error);
                    let entry = Entry {
                        message,
                        slots: Arc::clone(&run.slots),
                        slot,
                        seq: run.seq + u64::from(slot - run.first),
                        movable: run.movable,
                        tries: run.tries.saturating_add(1),
                        weight,
                    };
                    if self.options.retries.is_some_and(|most| run.tries >= most) {
                        if unknown {
                            lane.settle(entry.seq);
                        }
                        exhausted.push(entry);
                    } else {
                        lane.set_aside(entry);
                    }
                }
                count += run.len as usize;
            }
            lane.note(stored > 0, kept > 0);
            if over {
                lane.abandon(|outcome| Error::closed("producer").with_outcome(outcome), &mut fx);
            }
            state.counters.sent += stored;
            state.counters.retried += (kept - exhausted.len()) as u64;
            if counted {
                let released = batch.ticket.weight.saturating_sub(kept_bytes);
                state.in_flight = state.in_flight.saturating_sub(count);
                fx.released.0 += count - kept;
                fx.released.1 += released;
                fx.budget += released;
            } else if kept > 0 {
                state.reserve(kept, kept_bytes);
                self.client.budget.take(kept_bytes);
            }
            for entry in exhausted {
                fx.refuse_retry(&entry);
            }
            if kept > 0 || lane_waits(state, batch.partition) {
                state.resolve(batch.partition, &self.options, &self.window, &mut fx);
            }
            state.settle(&mut fx, &self.options, &self.client.budget);
            state.list(batch.partition, &self.window, &mut fx);
        }
        self.finish(&mut fx);
        if let Some(error) = failed {
            tracing::debug!(
                messaging.destination.name = %self.topic,
                messaging.destination.partition.id = batch.partition,
                error.type = error.kind().as_str(),
                %error,
                "a send failed and is tried again where its order allows"
            );
        }
    }
}

/// Tells whether a lane has failed messages that wait for a decision.
fn lane_waits(state: &State, partition: u32) -> bool {
    state.lanes.get(partition as usize).is_some_and(Lane::has_aside)
}
