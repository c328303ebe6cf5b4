//! Modes: members that compete for single messages, and members that each see all.

mod broadcast;
pub(crate) mod shared;

use crate::{
    capability::Capability,
    cases::{Case, case},
};

use self::{
    broadcast::each_member_sees_all_from_its_start,
    shared::{
        a_group_has_one_mode, held_message_stays_with_its_member, killed_holder_gives_up_its_message,
        more_members_than_partitions_all_work,
    },
};

pub(super) const CASES: &[Case] = &[
    case!("S1", Modes, more_members_than_partitions_all_work).needs(&[Capability::Shared]),
    case!("S2", Modes, killed_holder_gives_up_its_message).needs(&[Capability::Shared]),
    case!("S3", Modes, held_message_stays_with_its_member).needs(&[Capability::Shared]),
    case!("S4", Modes, a_group_has_one_mode),
    case!("B1", Modes, each_member_sees_all_from_its_start).needs(&[Capability::Broadcast]),
];
