//! Proofs of the cases about faults.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mq_api::{
    Error, ErrorKind, Outcome,
    driver::{Producer, SendBatch},
};

use super::{
    Proof,
    consume_tweaks::{NeverRecovers, ReordersTwo},
    sends::ChangeSends,
};
use crate::wrap::{Scope, Tweak};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "F1",
        mutant: "answers Ok and drops one message in 100",
        tweak: || ChangeSends::losing_one_in(100),
        says: "never came to group group",
    },
    Proof {
        case: "F1",
        mutant: "stays silent for good once the backend was out of reach",
        tweak: || Arc::new(NeverRecovers::default()),
        says: "stuck: 100 new messages after kill 0 and a start",
    },
    Proof {
        case: "F2",
        mutant: "hands two messages of a batch over in the wrong order",
        tweak: || Arc::new(ReordersTwo),
        says: "reordered: in partition",
    },
    Proof {
        case: "F3",
        mutant: "denies one message in fifty that it has stored",
        tweak: || Arc::new(DeniesWhatIsStored::default()),
        says: "was answered NotSent",
    },
    Proof {
        case: "F5",
        mutant: "stays silent for good once the backend was out of reach",
        tweak: || Arc::new(NeverRecovers::default()),
        says: "lost: 5 of 5 messages did not come",
    },
];

/// Stores one message in fifty and answers that it is not sent.
#[derive(Debug, Default)]
struct DeniesWhatIsStored {
    count: AtomicU64,
}

impl Tweak for DeniesWhatIsStored {
    fn send(&self, _scope: &Scope, inner: &Arc<dyn Producer>, batch: SendBatch) {
        batch.begin_io(0..batch.len());
        let before = self.count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let messages = batch.messages().to_vec();
        let (stored, results) = SendBatch::new(batch.partition(), messages, batch.deadline());
        inner.send(stored);
        tokio::spawn(async move {
            for (place, result) in results.into_iter().enumerate() {
                let denied = (before + place as u64) % 50 == 49;
                match result.await {
                    Ok(_) if denied => {
                        let error = Error::new(ErrorKind::ResourceExhausted, "injected: denied");
                        let error = error.with_outcome(Outcome::NotSent).with_retryable(false);
                        batch.fail(place..place + 1, &error);
                    }
                    Ok(receipt) => batch.complete_one(place, receipt.offset),
                    Err(error) => batch.fail(place..place + 1, &error),
                }
            }
        });
    }
}
