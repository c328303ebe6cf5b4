//! Proofs of the cases about consuming and about two builds.

use std::{sync::Arc, time::Duration};

use super::{
    Proof,
    consume_tweaks::{
        CommitsOneLess, CommitsPastGaps, CountsWhatNobodySaw, HidesLostPartitions, HidesTrims, IgnoresClose,
        LosesSome, MakesUnknownTopics, MergesGroups, ReordersTwo, RevokesLate, SpinsWhenIdle,
        StartsLatestLate, WaitsToFill,
    },
    sends::ChangeSends,
};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "C1",
        mutant: "starts at the latest some time after the call has returned",
        tweak: || Arc::new(StartsLatestLate::default()),
        says: "a group that starts at the latest, sent to right after the call: lost",
    },
    Proof {
        case: "C2",
        mutant: "takes all groups of a topic for one",
        tweak: || Arc::new(MergesGroups),
        says: "group first: lost",
    },
    Proof {
        case: "C3",
        mutant: "hands two messages of a batch over in the wrong order",
        tweak: || Arc::new(ReordersTwo),
        says: "reordered: at place",
    },
    Proof {
        case: "C4",
        mutant: "takes the close of a member and does nothing",
        tweak: || Arc::new(IgnoresClose::default()),
        says: "the extra member in the place of the one that left: not within",
    },
    Proof {
        case: "C5",
        mutant: "gives a partition away before it tells its owner",
        tweak: || Arc::new(RevokesLate),
        says: "overlapping owners: ",
    },
    Proof {
        case: "C6",
        mutant: "commits past what is not acked",
        tweak: || Arc::new(CommitsPastGaps),
        says: "lost of what was not acked: [\"leaving-0001\"",
    },
    Proof {
        case: "C6",
        mutant: "commits one message less than was acked",
        tweak: || Arc::new(CommitsOneLess),
        says: "came that were acked: [\"leaving-0000\"]",
    },
    Proof {
        case: "C7",
        mutant: "commits past what is not acked",
        tweak: || Arc::new(CommitsPastGaps),
        says: "lost of what was not acked: [\"victim-0001\"",
    },
    Proof {
        case: "C8",
        mutant: "loses one message in fifty",
        tweak: || Arc::new(LosesSome(50)),
        says: "with dropped calls between: of 600 messages",
    },
    Proof {
        case: "C8",
        mutant: "hands two messages of a batch over in the wrong order",
        tweak: || Arc::new(ReordersTwo),
        says: "with dropped calls between: reordered",
    },
    Proof {
        case: "C9",
        mutant: "counts an attempt for what nobody saw",
        tweak: || Arc::new(CountsWhatNobodySaw),
        says: "came as attempt 2, and nobody had been handed it before",
    },
    Proof {
        case: "C10",
        mutant: "loses one message in 1,000",
        tweak: || Arc::new(LosesSome(1000)),
        says: "eight tasks on one consumer: of 2000 messages",
    },
    Proof {
        case: "C11",
        mutant: "makes a topic that does not exist",
        tweak: || Arc::new(MakesUnknownTopics),
        says: "a consumer of an unknown topic: expected TopicNotFound, got Ok",
    },
    Proof {
        case: "C12",
        mutant: "asks again at once where there is nothing",
        tweak: || Arc::new(SpinsWhenIdle),
        says: "spins: a consumer with nothing to do used",
    },
    Proof {
        case: "C12",
        mutant: "hands a message over half a second after it is stored",
        tweak: || ChangeSends::each(|message| message.with_delay(Duration::from_millis(500))),
        says: "late: half of the messages took",
    },
    Proof {
        case: "C13",
        mutant: "hands messages over when ten have gathered",
        tweak: || Arc::new(WaitsToFill::default()),
        says: "a batch of at most 10 where there are messages did not happen",
    },
    Proof {
        case: "C14",
        mutant: "hides leases that ran out and partitions that are gone",
        tweak: || Arc::new(HidesLostPartitions),
        says: "overlapping owners: ",
    },
    Proof {
        case: "C15",
        mutant: "goes on behind a trim without a word",
        tweak: || Arc::new(HidesTrims),
        says: "skipped without a word",
    },
    Proof {
        case: "V2",
        mutant: "commits one message less than was acked",
        tweak: || Arc::new(CommitsOneLess),
        says: "unexpected: 1 messages came",
    },
];
