//! Mutants for the cases about truth and versions.

use std::sync::Arc;

use async_trait::async_trait;
use mq_api::{Capabilities, Error, ErrorKind, Result, Support, TopicDescription, TopicName, driver::Mq};
use tokio::sync::watch;

use super::Proof;
use crate::wrap::{Scope, Tweak};

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        case: "U1",
        mutant: "lacks a capability that it must have",
        tweak: || Arc::new(LacksDelay),
        says: "delay is declared Unsupported and must be Native",
    },
    Proof {
        case: "U2",
        mutant: "declares a capability that it lacks",
        tweak: || Arc::new(ClaimsReceipts),
        says: "the receipt of a delayed message says offset None",
    },
    Proof {
        case: "U3",
        mutant: "calls every error Other",
        tweak: || Arc::new(CallsThemOther),
        says: "expected TopicNotFound, got Other",
    },
    Proof {
        case: "V1",
        mutant: "shows one partition too few",
        tweak: || Arc::new(OneTooFew),
        says: "by the stored rule",
    },
];

#[derive(Debug)]
struct LacksDelay;

impl Tweak for LacksDelay {
    fn capabilities(&self, mut declared: Capabilities) -> Capabilities {
        declared.delay = Support::Unsupported;
        declared
    }
}

#[derive(Debug)]
struct ClaimsReceipts;

impl Tweak for ClaimsReceipts {
    fn capabilities(&self, mut declared: Capabilities) -> Capabilities {
        declared.delayed_receipt_offset = Support::Native;
        declared
    }
}

#[derive(Debug)]
struct CallsThemOther;

#[async_trait]
impl Tweak for CallsThemOther {
    async fn describe_topic(&self, inner: &dyn Mq, topic: TopicName) -> Result<TopicDescription> {
        let described = inner.describe_topic(topic).await;
        described.map_err(|error| Error::new(ErrorKind::Other, error.context()))
    }
}

#[derive(Debug)]
struct OneTooFew;

impl Tweak for OneTooFew {
    fn partitions(&self, _scope: &Scope, partitions: watch::Receiver<u32>) -> watch::Receiver<u32> {
        watch::channel(*partitions.borrow() - 1).1
    }
}
