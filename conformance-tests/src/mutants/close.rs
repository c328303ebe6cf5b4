//! Proofs of the cases about close.

use std::sync::Arc;

use super::{
    Proof,
    consume_tweaks::{BlocksOnClose, HangsOnClose, StoresNoCommit},
    read_tweaks::LeaksTasks,
    sends::ChangeSends,
};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "Z1",
        mutant: "hangs on the close of a member",
        tweak: || Arc::new(HangsOnClose),
        says: "the concurrent closes of the consumer did not happen",
    },
    Proof {
        case: "Z2",
        mutant: "hangs on the close of a member",
        tweak: || Arc::new(HangsOnClose),
        says: "leaving the group did not finish",
    },
    Proof {
        case: "Z3",
        mutant: "answers Ok and drops one message in 100",
        tweak: || ChangeSends::losing_one_in(100),
        says: "of 500 messages came",
    },
    Proof {
        case: "Z4",
        mutant: "hangs on the close of a member",
        tweak: || Arc::new(HangsOnClose),
        says: "close of the consumer did not happen",
    },
    Proof {
        case: "Z5",
        mutant: "holds up the thread that closes a producer",
        tweak: || Arc::new(BlocksOnClose),
        says: "hangs: close of the producer with the server frozen",
    },
    Proof {
        case: "Z6",
        mutant: "says that commits are stored and stores none",
        tweak: || Arc::new(StoresNoCommit),
        says: "the client was closed after an ack: unexpected",
    },
    Proof {
        case: "Z7",
        mutant: "starts a task with each consumer that nothing ends",
        tweak: || Arc::new(LeaksTasks),
        says: "left behind by five rounds in which everything was dropped without close",
    },
    Proof {
        case: "Z8",
        mutant: "starts a task with each consumer that nothing ends",
        tweak: || Arc::new(LeaksTasks),
        says: "left behind by a hundred rounds of open and close",
    },
];
