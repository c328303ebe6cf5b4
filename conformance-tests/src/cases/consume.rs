//! Consuming: where groups start, who owns what, hand-over, and what is never lost on the way.

mod groups;
mod handover;
mod idle;
mod order;
mod process;
mod trimmed;

use crate::{
    cases::{Case, case},
    harness::Fault,
};

use self::{
    groups::{a_group_starts_where_it_says, extra_member_idles_and_takes_over, two_groups_see_everything},
    handover::{closed_member_hands_on_what_is_not_acked, join_under_load_loses_nothing},
    idle::idle_consumer_costs_nothing_and_wakes,
    order::{
        batch_does_not_wait_to_fill, cancelled_consume_loses_nothing, channel_is_bounded_and_gives_back,
        each_message_goes_to_one_task, partitions_keep_their_order, unknown_topic_is_refused,
    },
    process::{
        frozen_member_hands_over_nothing_late, killed_member_is_replaced, one_group_name_on_two_topics,
    },
    trimmed::position_below_what_is_retained_goes_on,
};

pub(super) const CASES: &[Case] = &[
    case!("C1", Consume, a_group_starts_where_it_says),
    case!("C2", Consume, two_groups_see_everything),
    case!("C2b", Consume, one_group_name_on_two_topics),
    case!("C3", Consume, partitions_keep_their_order),
    case!("C4", Consume, extra_member_idles_and_takes_over),
    case!("C5", Consume, join_under_load_loses_nothing),
    case!("C6", Consume, closed_member_hands_on_what_is_not_acked),
    case!("C7", Consume, killed_member_is_replaced),
    case!("C8", Consume, cancelled_consume_loses_nothing),
    case!("C9", Consume, channel_is_bounded_and_gives_back),
    case!("C10", Consume, each_message_goes_to_one_task),
    case!("C11", Consume, unknown_topic_is_refused),
    case!("C12", Consume, idle_consumer_costs_nothing_and_wakes).alone(),
    case!("C13", Consume, batch_does_not_wait_to_fill),
    // Some brokers count a silent member for two minutes.
    case!("C14", Consume, frozen_member_hands_over_nothing_late).within_seconds(300),
    // Some brokers remove the messages of all topics at once.
    case!("C15", Consume, position_below_what_is_retained_goes_on).breaks_its_server(&[Fault::Trim]),
];
