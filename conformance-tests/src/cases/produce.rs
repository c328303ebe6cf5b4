//! Producing: what is stored, where, in which order, and what is said about it.

mod limits;
mod load;
mod places;
mod round_trip;

use self::{
    limits::{
        batch_gives_one_result_a_message, flush_settles_what_was_enqueued,
        one_way_sends_arrive_and_failures_are_counted, oversized_message_is_refused_and_the_next_works,
        sends_to_a_frozen_server_end_in_their_deadline,
    },
    load::{
        dropped_sends_damage_nothing, enqueued_messages_arrive_in_order, keyless_messages_spread,
        many_tasks_send_each_message_once,
    },
    places::{explicit_partition_is_kept, one_key_has_one_partition, receipts_name_the_place},
    round_trip::message_survives_the_round_trip,
};
use super::{Case, case};
use crate::harness::Fault;

/// The cases of this theme.
pub(crate) const CASES: &[Case] = &[
    case!("P1", Produce, message_survives_the_round_trip),
    case!("P2", Produce, explicit_partition_is_kept),
    case!("P3", Produce, one_key_has_one_partition),
    case!("P4", Produce, keyless_messages_spread),
    case!("P5", Produce, receipts_name_the_place),
    case!("P6", Produce, enqueued_messages_arrive_in_order),
    case!("P7", Produce, many_tasks_send_each_message_once),
    case!("P8", Produce, dropped_sends_damage_nothing),
    case!("P9", Produce, batch_gives_one_result_a_message),
    case!("P10", Produce, oversized_message_is_refused_and_the_next_works),
    case!("P11", Produce, flush_settles_what_was_enqueued),
    case!("P12", Produce, one_way_sends_arrive_and_failures_are_counted),
    case!("P13", Produce, sends_to_a_frozen_server_end_in_their_deadline).breaks_its_server(&[Fault::Freeze]),
];
