//! Faults: servers that die, connections that break, peers that are silent or babble.

mod absent;
mod load;
mod peers;
mod under_load;

use crate::{
    cases::{Case, case},
    harness::Fault,
};

use self::{
    absent::server_that_comes_back_is_used_again,
    peers::{absent_server_is_a_typed_error, silent_and_babbling_peers_are_typed_errors},
    under_load::{cut_connections_lose_nothing, frozen_server_loses_nothing, killed_server_loses_nothing},
};

pub(super) const CASES: &[Case] = &[
    case!("F1", Faults, killed_server_loses_nothing)
        .breaks_its_server(&[Fault::Kill])
        .within_seconds(240),
    case!("F2", Faults, cut_connections_lose_nothing).breaks_its_server(&[Fault::Cut]),
    case!("F3", Faults, frozen_server_loses_nothing).breaks_its_server(&[Fault::Freeze]),
    case!("F4", Faults, absent_server_is_a_typed_error),
    case!("F5", Faults, server_that_comes_back_is_used_again)
        .breaks_its_server(&[Fault::Kill])
        .within_seconds(240),
    case!("F6", Faults, silent_and_babbling_peers_are_typed_errors).alone(),
];
