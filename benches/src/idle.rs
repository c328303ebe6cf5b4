//! What a group member costs while nothing happens: processor time, connections and memory.

use std::{cell::RefCell, rc::Rc, time::Duration};

use mq_api::Consumer;

use crate::{
    meter::{Meter, Sample},
    ours::Ours,
    rounds::Goal,
    side::{IDLE, MEMORY, Work},
};

/// How long one round looks.
const LOOK: Duration = Duration::from_secs(1);

type Connections = Box<dyn Fn() -> Result<f64, String>>;

/// One member that owns every partition of a topic without messages. It is opened by the first round and stays.
pub struct Idle {
    ours: Rc<Ours>,
    partitions: u32,
    connections: Connections,
    opened: RefCell<Option<Opened>>,
}

struct Opened {
    /// Owns the partitions as long as it lives.
    _consumer: Consumer,
    memory: f64,
    connections: f64,
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idle")
            .field("partitions", &self.partitions)
            .finish_non_exhaustive()
    }
}

impl Idle {
    /// Describes the member; `connections` counts those of our client.
    pub fn new(
        ours: Rc<Ours>,
        partitions: u32,
        connections: impl Fn() -> Result<f64, String> + 'static,
    ) -> Rc<Self> {
        Rc::new(Self {
            ours,
            partitions,
            connections: Box::new(connections),
            opened: RefCell::default(),
        })
    }

    /// Lists the work, with how many connections are asked for; of the processor it is 1 % at most.
    #[must_use]
    pub fn works(self: Rc<Self>, connections: f64) -> [Work; 2] {
        let name = format!("{} partitions, one idle member", self.partitions);
        let (looks, holds) = (Rc::clone(&self), self);
        [
            Work::new(name.clone(), IDLE, move || looks.look()).against(
                "what is asked for",
                [Goal::AtMost(1.0), Goal::AtMost(1.0)],
                move || Ok(Sample::of([1.0, connections])),
            ),
            Work::new(format!("{name}, memory of each partition"), MEMORY, move || {
                holds.with(|opened| Ok(Sample::of([opened.memory])))
            }),
        ]
    }

    fn with<T>(&self, read: impl FnOnce(&Opened) -> Result<T, String>) -> Result<T, String> {
        let mut opened = self.opened.borrow_mut();
        if let Some(opened) = &*opened {
            return read(opened);
        }
        let (consumer, grown) = self.ours.idle_member(self.partitions)?;
        read(opened.insert(Opened {
            _consumer: consumer,
            memory: grown / f64::from(self.partitions),
            connections: (self.connections)()?,
        }))
    }

    fn look(&self) -> Result<Sample, String> {
        self.with(|opened| {
            let meter = Meter::start();
            self.ours.rest(LOOK);
            // Of one "message": microseconds of processor time in all.
            let spent = meter.stop(1).cpu.unwrap_or(f64::NAN);
            Ok(Sample::of([
                100.0 * spent / 1e6 / LOOK.as_secs_f64(),
                opened.connections,
            ]))
        })
    }
}
