//! Close: it is idempotent and bounded, flushes, wakes who waits, and leaves nothing behind.

mod frozen;
mod leaks;
pub(crate) mod lifecycle;
pub(crate) mod refusals;

use crate::{
    cases::{Case, case},
    harness::Fault,
};

use self::{
    frozen::close_is_bounded_with_the_server_frozen,
    leaks::{hundred_rounds_end_where_they_began, what_is_dropped_is_gone},
    lifecycle::{
        client_closes_its_children, close_ends_a_pending_consume, close_flushes_what_was_enqueued,
        every_caller_of_close_gets_the_same_result,
    },
    refusals::every_call_after_close_is_closed,
};

pub(super) const CASES: &[Case] = &[
    case!("Z1", Close, every_caller_of_close_gets_the_same_result),
    case!("Z2", Close, every_call_after_close_is_closed),
    case!("Z3", Close, close_flushes_what_was_enqueued),
    case!("Z4", Close, close_ends_a_pending_consume),
    case!("Z5", Close, close_is_bounded_with_the_server_frozen).breaks_its_server(&[Fault::Freeze]),
    case!("Z6", Close, client_closes_its_children),
    case!("Z7", Close, what_is_dropped_is_gone).alone(),
    case!("Z8", Close, hundred_rounds_end_where_they_began)
        .alone()
        .within_seconds(300),
];
