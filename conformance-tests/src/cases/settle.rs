//! Settling: what is acked is done, what is not comes again, and what cannot be handled is put aside.

mod acks;
mod crashes;
mod dead_letters;
mod lanes;
mod redelivery;

use std::{collections::BTreeSet, time::Duration};

use mq_api::{Consumer, ConsumerBuilder, Mode, Mq};

use self::{
    acks::{
        acked_message_does_not_come_again, acks_of_a_batch_are_stored, auto_ack_is_at_most_once,
        full_window_stops_until_acks_come, late_ack_is_stale_and_harmless,
        shared_acked_message_does_not_come_again, shared_acks_of_a_batch_are_stored,
        shared_unacked_message_comes_back, unacked_message_comes_back,
    },
    crashes::{
        acks_out_of_order_survive_a_kill, committed_acks_survive_a_kill,
        message_that_kills_ends_in_the_dead_letters,
    },
    dead_letters::{
        last_attempt_ends_in_the_dead_letters, nothing_is_lost_while_dead_letters_cannot_be_written,
        rejected_message_ends_in_the_dead_letters, shared_last_attempt_ends_in_the_dead_letters,
        shared_rejected_message_ends_in_the_dead_letters,
    },
    lanes::{nacked_message_blocks_its_lane_only, nacked_message_holds_up_no_other},
    redelivery::{
        dropped_delivery_comes_back, nacked_message_comes_back, nacked_message_waits_its_delay,
        shared_dropped_delivery_comes_back, shared_nacked_message_comes_back,
        shared_nacked_message_waits_its_delay,
    },
};
use super::{Case, case};
use crate::{
    capability::Capability::Shared,
    context::Context,
    failure::{CaseResult, ensure},
    flow::{self, Taken},
};

/// The cases of this theme.
pub(crate) const CASES: &[Case] = &[
    case!("A1", Settle, acked_message_does_not_come_again),
    case!("A1s", Settle, shared_acked_message_does_not_come_again).needs(&[Shared]),
    case!("A2", Settle, unacked_message_comes_back),
    case!("A2s", Settle, shared_unacked_message_comes_back).needs(&[Shared]),
    case!("A3", Settle, nacked_message_comes_back),
    case!("A3s", Settle, shared_nacked_message_comes_back).needs(&[Shared]),
    case!("A4", Settle, nacked_message_waits_its_delay),
    case!("A4s", Settle, shared_nacked_message_waits_its_delay).needs(&[Shared]),
    case!("A5", Settle, rejected_message_ends_in_the_dead_letters),
    case!("A5s", Settle, shared_rejected_message_ends_in_the_dead_letters).needs(&[Shared]),
    case!("A6", Settle, acks_out_of_order_survive_a_kill),
    case!("A7", Settle, full_window_stops_until_acks_come),
    case!("A8", Settle, last_attempt_ends_in_the_dead_letters),
    case!("A8s", Settle, shared_last_attempt_ends_in_the_dead_letters).needs(&[Shared]),
    case!("A9", Settle, dropped_delivery_comes_back),
    case!("A9s", Settle, shared_dropped_delivery_comes_back).needs(&[Shared]),
    case!("A10", Settle, late_ack_is_stale_and_harmless),
    case!("A11", Settle, nacked_message_holds_up_no_other),
    case!("O1", Settle, nacked_message_blocks_its_lane_only),
    case!("A12", Settle, committed_acks_survive_a_kill),
    case!("A13", Settle, acks_of_a_batch_are_stored),
    case!("A13s", Settle, shared_acks_of_a_batch_are_stored).needs(&[Shared]),
    case!("A14", Settle, auto_ack_is_at_most_once),
    case!(
        "A15",
        Settle,
        nothing_is_lost_while_dead_letters_cannot_be_written
    ),
    case!("A16", Settle, message_that_kills_ends_in_the_dead_letters).within_seconds(240),
];

/// Opens a consumer of a group in a mode.
fn join(mq: &Mq, topic: &str, group: &str, mode: Mode) -> ConsumerBuilder {
    mq.consumer(topic, group).mode(mode)
}

/// Sends one more message to each partition and takes until all of them have come; fails if anything else comes.
async fn nothing_but_new(cx: &Context, mq: &Mq, consumer: &Consumer) -> CaseResult {
    let topic = consumer.topic().clone();
    let producer = mq.producer(&topic).await?;
    let mut missing = BTreeSet::new();
    for partition in 0..producer.partitions() {
        let payload = format!("new-{partition}");
        producer.produce_to(partition, payload.clone()).await?;
        missing.insert(payload);
    }
    while !missing.is_empty() {
        let delivery = flow::one(cx, consumer)
            .await
            .map_err(|failure| failure.during(format!("lost: {missing:?}")))?;
        let taken = Taken::of(&delivery);
        delivery.ack()?;
        ensure!(
            missing.remove(&taken.payload),
            "delivered after its ack: {:?} came again with attempt {} (partition {}, offset {}), and only {missing:?} should",
            taken.payload,
            taken.attempt,
            taken.partition,
            taken.offset
        );
    }
    flow::nothing(cx, consumer, Duration::from_millis(300)).await
}
