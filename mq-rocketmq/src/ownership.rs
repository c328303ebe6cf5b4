//! Who owns a queue: RocketMQ's locks, and beside each queue a register that says whose lock it is.
//!
//! A lock outlives its holder by a minute, and a broker does not say who holds it. So the owner writes its number
//! into the group's offset of a queue that the topic does not have, under the lock: members that find the owner gone
//! can free the lock in its name. The register is a broker's 64-bit offset: 23 bits of epoch, 40 bits of member.

use std::{collections::BTreeSet, sync::Arc};

use crate::{client::QueueRef, topic::Mode};

/// Registers of version 1 are this far above the queues that they stand beside.
const REGISTERS: i32 = 1 << 20;
/// Where the mode of a group is kept, beside the first partition.
const MODES: i32 = 1 << 21;
const MEMBER_BITS: u32 = 40;
const MEMBER_MASK: i64 = (1 << MEMBER_BITS) - 1;
const EPOCH_MASK: i64 = (1 << 23) - 1;

/// What a register says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    /// Counts the tenures.
    pub(crate) epoch: u64,
    /// The owner's number; 0 after it gave the queue back.
    pub(crate) member: u64,
}

impl Register {
    pub(crate) fn unpack(stored: Option<i64>) -> Self {
        let stored = stored.unwrap_or(0).max(0);
        Self {
            epoch: u64::try_from((stored >> MEMBER_BITS) & EPOCH_MASK).unwrap_or(0),
            member: u64::try_from(stored & MEMBER_MASK).unwrap_or(0),
        }
    }

    pub(crate) fn pack(self) -> i64 {
        let epoch = i64::try_from(self.epoch).unwrap_or(0) & EPOCH_MASK;
        let member = i64::try_from(self.member).unwrap_or(0) & MEMBER_MASK;
        epoch << MEMBER_BITS | member
    }
}

/// Where the register of a queue is.
pub(crate) fn register_queue(queue: &QueueRef) -> QueueRef {
    beside(queue, REGISTERS)
}

/// Where the mode of a group is.
pub(crate) fn mode_queue(queue: &QueueRef) -> QueueRef {
    beside(queue, MODES)
}

fn beside(queue: &QueueRef, distance: i32) -> QueueRef {
    QueueRef {
        broker: Arc::clone(&queue.broker),
        queue: queue.queue.saturating_add(distance),
    }
}

pub(crate) fn pack_mode(mode: Mode) -> i64 {
    match mode {
        Mode::Partitioned => 1,
        Mode::Shared => 2,
    }
}

/// Draws the number of a new member.
pub(crate) fn new_member() -> u64 {
    fastrand::u64(1..(1 << MEMBER_BITS))
}

/// Names the client of a member, so that others know it by its number.
pub(crate) fn client_id(member: u64) -> String {
    format!("mq@{member:010x}")
}

/// Says which queues a member should own, by the averaging rule of the clients in Java and Go: queues and members in
/// the order of their names, a run of queues to each, the first members getting one more.
pub(crate) fn averaged(queues: &[QueueRef], members: &BTreeSet<String>, me: &str) -> Vec<QueueRef> {
    let Some(index) = members.iter().position(|member| member == me) else {
        return Vec::new();
    };
    let mut sorted = queues.to_vec();
    sorted.sort();
    let (share, rest) = (sorted.len() / members.len(), sorted.len() % members.len());
    let start = index * share + index.min(rest);
    let count = share + usize::from(index < rest);
    sorted.into_iter().skip(start).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_of_version_1_stands() {
        let register = Register {
            epoch: 3,
            member: 0xab_cdef_0123,
        };
        assert_eq!(register.pack(), 0x3ab_cdef_0123);
        assert_eq!(Register::unpack(Some(register.pack())), register);
        assert_eq!(Register::unpack(None), Register::default());
        assert_eq!(Register::unpack(Some(-1)), Register::default());
        assert_eq!(client_id(0xab), "mq@00000000ab");
        let queue = QueueRef {
            broker: "a".into(),
            queue: 3,
        };
        assert_eq!(register_queue(&queue).queue, 1_048_579);
        assert_eq!(mode_queue(&queue).queue, 2_097_155);
    }

    #[test]
    fn queues_are_shared_out_as_other_clients_do() {
        let queues: Vec<QueueRef> = ["b", "a"]
            .iter()
            .flat_map(|broker| {
                (0..4).map(|queue| QueueRef {
                    broker: (*broker).into(),
                    queue,
                })
            })
            .collect();
        let members: BTreeSet<String> = ["m1", "m2", "m3"].map(str::to_owned).into();
        let text = |member: &str| {
            averaged(&queues, &members, member)
                .iter()
                .map(|queue| format!("{}{}", queue.broker, queue.queue))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(text("m1"), "a0 a1 a2");
        assert_eq!(text("m2"), "a3 b0 b1");
        assert_eq!(text("m3"), "b2 b3");
        assert_eq!(text("stranger"), "");
        let many: BTreeSet<String> = (10..30).map(|n| format!("m{n}")).collect();
        assert_eq!(averaged(&queues, &many, "m17").len(), 1);
        assert_eq!(averaged(&queues, &many, "m18").len(), 0);
    }
}
