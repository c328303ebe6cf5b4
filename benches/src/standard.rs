//! The work that is the same on every backend; a backend adds whom it is compared with.

use std::{rc::Rc, time::Duration};

use mq_api::Mode;

use crate::{
    command::Options,
    ours::{Ours, Sending},
    side::{JOIN, LATENCY, MEMORY, PROMISE, RATE, Work},
};

/// Our side of the standard work on one broker.
#[derive(Debug)]
pub struct Standard {
    ours: Rc<Ours>,
    /// How many messages fast work moves.
    pub many: u64,
    /// How many messages are sent one by one.
    pub some: u64,
    /// How many messages are sent at 1,000 a second.
    pub few: u64,
    /// How many partitions a topic has, and how many topics are open, where it is shown what grows with them.
    pub growing: (u32, u32),
    /// How many messages are held without an ack, where it is shown what grows with them.
    pub held: (u64, u64),
}

impl Standard {
    /// The gap of 1,000 messages a second.
    pub const EACH_MILLISECOND: Duration = Duration::from_millis(1);
    /// The gap of 500 messages a second.
    pub const EACH_TWO_MILLISECONDS: Duration = Duration::from_millis(2);

    /// Takes a client that is connected.
    #[must_use]
    pub fn new(ours: Rc<Ours>, options: &Options) -> Self {
        Self {
            ours,
            many: options.messages(100_000),
            some: options.messages(5_000),
            few: options.messages(3_000),
            growing: if options.quick { (64, 20) } else { (256, 100) },
            held: (options.messages(10_000), options.messages(100_000)),
        }
    }

    /// Returns our client.
    #[must_use]
    pub fn ours(&self) -> &Rc<Ours> {
        &self.ours
    }

    /// Sends [`Standard::many`] messages to one partition, or [`Standard::some`] where each is awaited.
    #[must_use]
    pub fn produce(&self, sending: Sending, size: usize) -> Work {
        let how = match sending {
            Sending::Tasks(1) => "one by one".to_owned(),
            Sending::Tasks(tasks) => format!("{tasks} tasks"),
            Sending::InFlight(window) => format!("{window} in flight"),
            Sending::Batches(size) => format!("batches of {size}"),
        };
        let count = if matches!(sending, Sending::Tasks(1)) {
            self.some
        } else {
            self.many
        };
        let ours = Rc::clone(&self.ours);
        Work::new(format!("produce, {how}, {size} B"), RATE, move || {
            ours.produce(count, size, 1, sending)
        })
    }

    /// Consumes and acks messages that are stored in one partition.
    #[must_use]
    pub fn consume(&self, messages: u64, size: usize, mode: Mode) -> Work {
        let name = match mode {
            Mode::Shared => "shared",
            _ => "partitioned",
        };
        let ours = Rc::clone(&self.ours);
        Work::new(format!("consume and ack, {name}, {size} B"), RATE, move || {
            ours.consume(&ours.stored(messages, size, 1)?, messages, mode)
        })
    }

    /// Consumes and acks ten times [`Standard::many`] messages that wait in four partitions.
    #[must_use]
    pub fn catch_up(&self) -> Work {
        let (ours, count) = (Rc::clone(&self.ours), 10 * self.many);
        Work::new(format!("catch up {count} messages"), RATE, move || {
            ours.consume(&ours.stored(count, 100, 4)?, count, Mode::Partitioned)
        })
    }

    /// Moves [`Standard::many`] messages through a group of four members.
    #[must_use]
    pub fn group_of_four(&self) -> Work {
        let (ours, count) = (Rc::clone(&self.ours), self.many);
        Work::new("through a group of 4 members", RATE, move || ours.group(count, 4))
    }

    /// Sends [`Standard::few`] messages at 1,000 a second.
    #[must_use]
    pub fn latency(&self) -> Work {
        let (ours, count) = (Rc::clone(&self.ours), self.few);
        Work::new("end to end at 1,000/s", LATENCY, move || {
            ours.latency(count, Self::EACH_MILLISECOND)
        })
    }

    /// Sends half of [`Standard::few`] messages at 500 a second.
    #[must_use]
    pub fn promise(&self) -> Work {
        let (ours, count) = (Rc::clone(&self.ours), self.few / 2);
        Work::new("at 500/s", PROMISE, move || {
            ours.promise(count, Self::EACH_TWO_MILLISECONDS)
        })
    }

    /// Shows what must not grow, ours against ours: by partitions, open topics and un-acked messages; and what a join
    /// takes, which grows with what there is to be opened.
    #[must_use]
    pub fn growth(&self) -> Vec<Work> {
        // More than hundreds of partitions bring ahead.
        let count = 20 * self.many;
        let plan = |partitions: u32, held: u64, topics: u32| {
            let ours = Rc::clone(&self.ours);
            move || {
                let topic = ours.stored(count, 100, partitions)?;
                let idle = ours.idle_topics(topics)?;
                let held = usize::try_from(held).unwrap_or(usize::MAX);
                let sample = ours.consume_owned(&topic, count, partitions, held);
                ours.close_all(idle)?;
                sample
            }
        };
        let join = |partitions: u32| {
            let ours = Rc::clone(&self.ours);
            move || ours.join(partitions)
        };
        let ((partitions, topics), (few, much)) = (self.growing, self.held);
        let against_many = format!("mq, {partitions} partitions");
        vec![
            Work::new("consume and ack, 1 partition", RATE, plan(1, 0, 0))
                .against("mq, 16 partitions", [], plan(16, 0, 0))
                .against(&against_many, [], plan(partitions, 0, 0)),
            Work::new("join, 1 partition", JOIN, join(1))
                .against("mq, 16 partitions", [], join(16))
                .against(&against_many, [], join(partitions)),
            Work::new("consume and ack, no other topic open", RATE, plan(1, 0, 0)).against(
                format!("mq, {topics} other topics open"),
                [],
                plan(1, 0, topics),
            ),
            Work::new("consume and ack, nothing un-acked", RATE, plan(1, 0, 0))
                .against(format!("mq, {few} un-acked"), [], plan(1, few, 0))
                .against(format!("mq, {much} un-acked"), [], plan(1, much, 0)),
        ]
    }

    /// Holds [`Standard::many`] messages without an ack. To be the first work of a run: later, what earlier work gave
    /// back to the allocator hides what this takes.
    #[must_use]
    pub fn memory(&self) -> Work {
        let (ours, many) = (Rc::clone(&self.ours), self.many);
        Work::new(
            format!("memory of each of {many} un-acked messages"),
            MEMORY,
            move || ours.unacked(&ours.stored(many, 100, 1)?, many),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::side::Rounds;
    use mq_api::Mq;
    use mq_memory::MemoryMq;

    #[test]
    fn every_piece_of_the_standard_work_runs_on_memory() {
        let runtime = Rc::new(crate::core::two_workers());
        let ours = Ours::new(runtime, Mq::from_driver(MemoryMq::new()));
        let mut all = Standard::new(ours, &Options::default());
        (all.many, all.some, all.few) = (2_000, 500, 50);
        all.held = (500, 1_000);
        let mut works = vec![all.memory()];
        works.extend(all.growth());
        works.extend([
            all.produce(Sending::Tasks(1), 100),
            all.produce(Sending::InFlight(64), 1024),
            all.consume(all.many, 100, Mode::Shared),
            all.catch_up(),
            all.group_of_four(),
            all.latency(),
            all.promise(),
        ]);
        for work in works {
            for line in work.run(Rounds::exactly(1)) {
                assert!(line.failed.is_none() && line.ours.is_some(), "{line:?}");
            }
        }
    }
}
