//! What a consumer is doing.

use crate::{
    Error, Offset,
    engine::{Core, Counters, QueueEngine},
};

/// Names a partition that a consumer owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssignedPartition {
    /// The partition.
    pub partition: u32,
    /// The epoch of the tenure; it grows with each owner.
    pub epoch: u64,
    /// The lowest offset that is not acked.
    pub position: Offset,
}

/// Shows one partition of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStatus {
    /// The partition.
    pub partition: u32,
    /// The epoch of the tenure.
    pub epoch: u64,
    /// The lowest offset that is not acked.
    pub position: Offset,
    /// The position last stored.
    pub committed: Option<Offset>,
    /// Messages fetched and not handed over.
    pub buffered_messages: usize,
    /// Their bytes.
    pub buffered_bytes: usize,
    /// Messages handed over, or waiting to come again, and not settled.
    pub unacked: usize,
    /// Their bytes.
    pub unacked_bytes: usize,
    /// Nothing new is handed over until some are settled: the window is full.
    pub window_full: bool,
    /// The user has paused it.
    pub paused: bool,
    /// Messages that wait to come again.
    pub redelivering: usize,
    /// Messages on their way to the dead letters.
    pub dead_lettering: usize,
}

/// Shows what a consumer is doing and has done since it was opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// The partitions owned now; empty in shared mode.
    pub partitions: Vec<PartitionStatus>,
    /// Messages fetched and not handed over, of all partitions.
    pub buffered_messages: usize,
    /// Messages handed over and not settled, of all partitions.
    pub unacked: usize,
    /// Hand-overs.
    pub delivered: u64,
    /// Acks.
    pub acked: u64,
    /// Nacks, drops included.
    pub nacked: u64,
    /// Rejects.
    pub rejected: u64,
    /// Hand-overs that were not the first of their message.
    pub redelivered: u64,
    /// Messages written to the dead-letter topic.
    pub dead_lettered: u64,
    /// Tries of that which failed.
    pub dead_letter_failures: u64,
    /// Settlements that came too late.
    pub stale_acks: u64,
    /// Offsets that retention removed before they were read.
    pub trimmed: u64,
    /// Commits sent.
    pub commits: u64,
    /// Commits that failed.
    pub commit_failures: u64,
    /// The backend is out of reach.
    pub outage: bool,
    /// The error that happened last.
    pub last_error: Option<Error>,
}

impl ConsumerStatus {
    fn counted(counters: Counters) -> Self {
        Self {
            delivered: counters.delivered,
            acked: counters.acked,
            nacked: counters.nacked,
            rejected: counters.rejected,
            redelivered: counters.redelivered,
            dead_lettered: counters.dead_lettered,
            dead_letter_failures: counters.dead_letter_failures,
            stale_acks: counters.stale_acks,
            trimmed: counters.trimmed,
            commits: counters.commits,
            commit_failures: counters.commit_failures,
            ..Self::default()
        }
    }
}

pub(super) fn assignment(core: &mut Core) -> Vec<AssignedPartition> {
    core.assigned()
        .filter(|partition| !partition.revoking)
        .map(|partition| AssignedPartition {
            partition: partition.id.partition,
            epoch: partition.id.epoch,
            position: partition.position(),
        })
        .collect()
}

pub(super) fn of_core(core: &mut Core) -> ConsumerStatus {
    let partitions: Vec<PartitionStatus> = core
        .assigned()
        .map(|partition| PartitionStatus {
            partition: partition.id.partition,
            epoch: partition.id.epoch,
            position: partition.position(),
            committed: partition.commits.position,
            buffered_messages: partition.fetched_messages,
            buffered_bytes: partition.fetched_bytes,
            unacked: partition.window.pending(),
            unacked_bytes: partition.unacked_bytes,
            window_full: partition.window_full(&core.config),
            paused: partition.paused,
            redelivering: partition.redelivering(),
            dead_lettering: partition.dead_lettering,
        })
        .collect();
    ConsumerStatus {
        buffered_messages: partitions
            .iter()
            .map(|partition| partition.buffered_messages)
            .sum(),
        unacked: partitions.iter().map(|partition| partition.unacked).sum(),
        partitions,
        outage: core.outage.is_some(),
        last_error: core.last_error.clone(),
        ..ConsumerStatus::counted(core.counters)
    }
}

pub(super) fn of_queue(engine: &QueueEngine) -> ConsumerStatus {
    let (counters, buffered_messages, unacked, outage, last_error) = engine.snapshot();
    ConsumerStatus {
        buffered_messages,
        unacked,
        outage,
        last_error,
        ..ConsumerStatus::counted(counters)
    }
}
