//! Positions: readers, seeks, times, pauses, lag.

mod readers;
mod seeks;

use crate::{
    capability::Capability,
    cases::{Case, case},
};

use self::{
    readers::{
        fetch_gives_n_from_an_offset, offset_beyond_the_end_is_refused, reader_starts_where_it_says,
        time_finds_the_first_message_at_or_after_it,
    },
    seeks::{
        lag_is_the_end_minus_the_committed, pause_keeps_the_partition_and_loses_nothing, seek_moves_both_ways,
    },
};

pub(super) const CASES: &[Case] = &[
    case!("R1", Positions, reader_starts_where_it_says).needs(&[Capability::Reader]),
    case!("R2", Positions, seek_moves_both_ways).needs(&[Capability::Seek]),
    case!("R3", Positions, time_finds_the_first_message_at_or_after_it)
        .needs(&[Capability::OffsetAt, Capability::Reader]),
    case!("R4", Positions, pause_keeps_the_partition_and_loses_nothing).needs(&[Capability::Pause]),
    case!("R5", Positions, lag_is_the_end_minus_the_committed).needs(&[Capability::Lag]),
    case!("R6", Positions, fetch_gives_n_from_an_offset).needs(&[Capability::Reader]),
    case!("R7", Positions, offset_beyond_the_end_is_refused).needs(&[Capability::Reader]),
];
