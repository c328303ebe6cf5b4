//! What a group member costs while nothing happens: processor time, connections and memory.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

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

/// One member that owns every partition of a topic without messages.
pub struct Idle {
    ours: Rc<Ours>,
    partitions: u32,
    connections: Connections,
    memory: Cell<Option<f64>>,
    /// The member of the first round, which stays.
    opened: RefCell<Option<Opened>>,
}

struct Opened {
    /// Owns the partitions as long as it lives.
    _consumer: Consumer,
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
            memory: Cell::default(),
            opened: RefCell::default(),
        })
    }

    /// Describes the work that tells the memory. It belongs before all other work, which would leave free memory behind
    /// for the member to use.
    #[must_use]
    pub fn memory(self: &Rc<Self>) -> Work {
        let name = format!("{}, memory of each partition", self.name());
        let this = Rc::clone(self);
        Work::new(name, MEMORY, move || {
            // The first member's: another one would use what it leaves behind.
            let memory = match this.memory.get() {
                Some(memory) => memory,
                None => this.ours.idle_member(this.partitions)?.1 / f64::from(this.partitions),
            };
            this.memory.set(Some(memory));
            Ok(Sample::of([memory]))
        })
    }

    /// Describes the work that tells the processor time, and the connections, of which so many are asked for; of the
    /// processor it is 1 % at most. It belongs behind all other work: its member stays open.
    #[must_use]
    pub fn idles(self: &Rc<Self>, connections: f64) -> Work {
        let this = Rc::clone(self);
        Work::new(self.name(), IDLE, move || this.look()).against(
            "what is asked for",
            [Goal::AtMost(1.0), Goal::AtMost(1.0)],
            move || Ok(Sample::of([1.0, connections])),
        )
    }

    fn name(&self) -> String {
        format!("{} partitions, one idle member", self.partitions)
    }

    fn with<T>(&self, read: impl FnOnce(&Opened) -> Result<T, String>) -> Result<T, String> {
        let mut opened = self.opened.borrow_mut();
        if let Some(opened) = &*opened {
            return read(opened);
        }
        let (consumer, _) = self.ours.idle_member(self.partitions)?;
        read(opened.insert(Opened {
            _consumer: consumer,
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
