//! Proofs of the cases about modes, delay and codecs.

use std::{sync::Arc, time::Duration};

use mq_api::Due;

use super::{
    Proof,
    consume_tweaks::DamagesPayloads,
    read_tweaks::{AcksOnReceive, ExtendsNoLease, FeedsOneMember, ReadsPastSome},
    sends::ChangeSends,
};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "S1",
        mutant: "gives messages to the first member of a shared group only",
        tweak: || Arc::new(FeedsOneMember::default()),
        says: "a message for",
    },
    Proof {
        case: "S2",
        mutant: "acks a message of a shared group when it is received",
        tweak: || Arc::new(AcksOnReceive),
        says: "lost: what a killed member held",
    },
    Proof {
        case: "S3",
        mutant: "says that leases are extended and extends none",
        tweak: || Arc::new(ExtendsNoLease),
        says: "a message that its live member holds: unexpected",
    },
    Proof {
        case: "S4",
        mutant: "answers Ok and drops every other message",
        tweak: || ChangeSends::losing_one_in(2),
        says: "1 of 2 messages came",
    },
    Proof {
        case: "B1",
        mutant: "reads past one message in seven",
        tweak: || Arc::new(ReadsPastSome(7)),
        says: "the first member: ",
    },
    Proof {
        case: "D1",
        mutant: "delivers delayed messages at once",
        tweak: || {
            ChangeSends::each(|mut message| {
                message.clear_due();
                message
            })
        },
        says: "early: ",
    },
    Proof {
        case: "D1",
        mutant: "delivers delayed messages a second late",
        tweak: || {
            ChangeSends::each(|mut message| {
                const LATE: Duration = Duration::from_secs(1);
                let due = message.due();
                message.clear_due();
                match due {
                    Some(Due::After(delay)) => message.with_delay(delay + LATE),
                    Some(Due::At(at)) => message.with_deliver_at(at.saturating_add(LATE)),
                    None => message,
                }
            })
        },
        says: "late: ",
    },
    Proof {
        case: "D2",
        mutant: "answers Ok to one delayed message in eight and drops it",
        tweak: || ChangeSends::losing_one_in(8),
        says: "delayed messages and a restart of the server: of 20 messages",
    },
    Proof {
        case: "D3",
        mutant: "answers Ok to one delayed message in eight and drops it",
        tweak: || ChangeSends::losing_one_in(8),
        says: "lost: ",
    },
    Proof {
        case: "J1",
        mutant: "changes a byte of each payload",
        tweak: || Arc::new(DamagesPayloads),
        says: "invalid message: the payload does not fit",
    },
];
