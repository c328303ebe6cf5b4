//! Proofs of the cases about positions.

use std::sync::Arc;

use super::{
    Proof,
    consume_tweaks::{LosesWhilePaused, SeeksTooFar},
    read_tweaks::{
        FindsTimeTooLate, ReadsLatestFromEarliest, ReadsPastSome, TakesBeyondForTheEnd, TellsCommittedTooHigh,
    },
};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "R1",
        mutant: "reads from the earliest where the latest was asked for",
        tweak: || Arc::new(ReadsLatestFromEarliest),
        says: "a reader from the latest: of 5 messages",
    },
    Proof {
        case: "R2",
        mutant: "seeks one message too far",
        tweak: || Arc::new(SeeksTooFar),
        says: "a seek to Offset(3) says that it arrived at 4, wanted is 3",
    },
    Proof {
        case: "R3",
        mutant: "finds the message behind the one that a time asks for",
        tweak: || Arc::new(FindsTimeTooLate),
        says: "the time of the first message of group 0: the time",
    },
    Proof {
        case: "R4",
        mutant: "drops the messages that come while partitions are paused",
        tweak: || Arc::new(LosesWhilePaused::default()),
        says: "of 50 messages came",
    },
    Proof {
        case: "R5",
        mutant: "tells one offset more as committed than is stored",
        tweak: || Arc::new(TellsCommittedTooHigh),
        says: "of partition 0 the lowest un-acked offset is Some(4), committed is",
    },
    Proof {
        case: "R6",
        mutant: "reads past one message in seven",
        tweak: || Arc::new(ReadsPastSome(7)),
        says: "of 30 came",
    },
    Proof {
        case: "R7",
        mutant: "takes an offset beyond the end for the end",
        tweak: || Arc::new(TakesBeyondForTheEnd),
        says: "a fetch beyond the end: expected OffsetOutOfRange, got Ok",
    },
];
