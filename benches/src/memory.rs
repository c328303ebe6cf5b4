//! The work that measures the core on memory, where nothing hides its price, and whom it is compared with.

use std::rc::Rc;

use mq_api::Mq;
use mq_memory::MemoryMq;
use tokio::runtime::Runtime;

use crate::{
    apart,
    command::Options,
    core::{Load, broadcast, current_thread, mpsc, ours, steady_mpsc, two_workers},
    flat,
    meter::Sample,
    ours::Ours,
    rounds::Goal,
    side::{EACH, MEMORY, RATE, THERE_AND_BACK, Work},
    standard::Standard,
};

type Outcome = Result<Sample, String>;
type Round = fn(&Runtime, &Load) -> Outcome;

/// The most bytes that a retained message of 100 bytes may keep, its payload included.
const MOST_KEPT: f64 = 256.0;

/// Lists the work.
#[must_use]
pub fn works(options: &Options) -> Vec<Work> {
    let all = Memory {
        one: Rc::new(current_thread()),
        two: Rc::new(two_workers()),
        messages: options.messages(1_000_000),
    };
    let mut works = vec![all.kept()];
    works.extend(all.channels());
    works.push(all.fresh());
    works.extend(all.there_and_back(options));
    works.push(all.promise(options));
    works.extend(all.growth(options));
    works
}

struct Memory {
    one: Rc<Runtime>,
    two: Rc<Runtime>,
    messages: u64,
}

impl Memory {
    fn kept(&self) -> Work {
        let count = self.messages;
        Work::new("kept by a retained message of 100 B", MEMORY, move || {
            apart::kept(count)
        })
        .against("the bound", [Goal::AtMost(1.0)], || Ok(Sample::of([MOST_KEPT])))
    }

    /// Shows what batches cost in a process that has just begun: most of it is the system's, which gives each page anew.
    fn fresh(&self) -> Work {
        let count = self.messages;
        Work::new("1 to 1, batches of 256, fresh memory", RATE, move || {
            apart::fresh_ours(count)
        })
        .against("mpsc recv_many", [Goal::Shown], move || {
            apart::fresh_channel(count)
        })
    }

    /// Moves messages as far as tokio's channels move them, which keep, ack and repeat nothing.
    fn channels(&self) -> Vec<Work> {
        let single = Load::one_to_one(self.messages);
        let batch = |size| Load {
            batch: size,
            ..single.clone()
        };
        let four = |size| Load {
            producers: 4,
            members: 4,
            partitions: 4,
            ..batch(size)
        };
        let groups = |size| Load {
            groups: 3,
            ..batch(size)
        };
        let (one, two) = (&self.one, &self.two);
        let goal = |ratio| [Goal::AtLeast(ratio)];
        let line = |name: &str, runtime: &Rc<Runtime>, load: &Load, against, round: Round, ratio| {
            Work::new(name, RATE, bound(ours, runtime, load)).against(
                against,
                goal(ratio),
                bound(round, runtime, load),
            )
        };
        let alone = |name: &str, runtime: &Rc<Runtime>, ratio| {
            let work = line(name, runtime, &single, "mpsc", mpsc, ratio);
            #[cfg(feature = "peers")]
            let work = crate::peers::ALL.into_iter().fold(work, |work, (peer, round)| {
                work.against(peer, goal(1.4), bound(round, runtime, &single))
            });
            work
        };
        let many = "mpsc recv_many";
        vec![
            alone("1 to 1, one by one, 2 workers", two, 1.2),
            alone("1 to 1, one by one, current thread", one, 0.7),
            line("1 to 1, batches of 64", two, &batch(64), many, mpsc, 1.5),
            line("1 to 1, batches of 256", two, &batch(256), many, mpsc, 1.5),
            line("4 to 4, one by one", two, &four(1), "mpsc", mpsc, 0.65),
            line("4 to 4, batches of 64", two, &four(64), many, mpsc, 1.3),
            line(
                "3 groups, one by one",
                two,
                &groups(1),
                "broadcast",
                broadcast,
                1.4,
            ),
            line(
                "3 groups, batches of 64",
                two,
                &groups(64),
                "broadcast",
                broadcast,
                2.5,
            ),
        ]
    }

    fn there_and_back(&self, options: &Options) -> Vec<Work> {
        let count = options.messages(100_000);
        [(&self.one, "current thread"), (&self.two, "2 workers")]
            .into_iter()
            .map(|(runtime, on)| {
                let (ours, other) = (Rc::clone(runtime), Rc::clone(runtime));
                Work::new(format!("there and back, {on}"), THERE_AND_BACK, move || {
                    flat::ping_pong(&ours, count)
                })
                .against("two mpsc", [Goal::AtMost(1.5)], move || {
                    flat::ping_pong_mpsc(&other, count)
                })
            })
            .collect()
    }

    /// Sends at 500 messages a second, beside a channel: what a message takes where nothing is busy.
    fn promise(&self, options: &Options) -> Work {
        let (runtime, count) = (Rc::clone(&self.two), options.messages(1500));
        let mq = Mq::from_driver(MemoryMq::new());
        let all = Standard::new(Ours::new(Rc::clone(&runtime), mq), options);
        all.promise().against("mpsc", [], move || {
            steady_mpsc(&runtime, count, Standard::EACH_TWO_MILLISECONDS)
        })
    }

    /// Shows what a message costs while something else grows: ours against ours.
    fn growth(&self, options: &Options) -> Vec<Work> {
        type Grown = fn(&Runtime, u64, u64) -> Outcome;
        let count = options.messages(640_000);
        let goal = Goal::AtMost(1.2);
        // What grows, its values from the base on, and what is asked of each against the base.
        let plans: [(&str, Grown, &[u64], Goal); 5] = [
            (
                "messages behind",
                flat::behind,
                &[0, options.messages(10_000_000)],
                goal,
            ),
            ("messages un-acked", flat::unacked, &[0, 10_000, 100_000], goal),
            ("partitions", flat::partitions, &[1, 16, 256], Goal::Shown),
            ("topics open", flat::topics, &[1, 100], Goal::Shown),
            ("groups, a delivery", flat::groups, &[1, 10], Goal::Shown),
        ];
        let mut works = Vec::new();
        for (what, grown, values, goal) in plans {
            let Some((&base, more)) = values.split_first() else {
                continue;
            };
            for &value in more {
                let (ours, other) = (Rc::clone(&self.one), Rc::clone(&self.one));
                let work = Work::new(format!("{value} {what}"), EACH, move || {
                    grown(&ours, value, count)
                });
                works.push(work.against(format!("mq, {base}"), [goal], move || grown(&other, base, count)));
            }
        }
        works
    }
}

/// Binds a round to what it runs on and what it moves.
fn bound(round: Round, runtime: &Rc<Runtime>, load: &Load) -> impl Fn() -> Outcome + 'static {
    let (runtime, load) = (Rc::clone(runtime), load.clone());
    move || round(&runtime, &load)
}
