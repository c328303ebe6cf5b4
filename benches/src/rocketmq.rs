//! RocketMQ's own clients in Java and Go, and one in Rust: their ways to do each piece of work, with the same payloads,
//! windows and checks as ours.

mod programs;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::Duration,
};

use mq_api::{Message, Mode, Mq};
use mq_rocketmq::{RocketMq, RocketMqConfig};
use test_brokers::{Broker, JavaProgram};
use tokio::runtime::Runtime;

pub use self::programs::Programs;
use crate::{
    command::Options,
    meter::Sample,
    ours::{Ours, Sending},
    payload::Payloads,
    rounds::Goal,
    side::{Figure, Unit, Work},
    standard::Standard,
};

/// How many messages go at the steady pace before those that count, on every side: a second of them, so that a JVM has
/// compiled what it runs and every member has what it is to own.
const WARM_UP: u64 = 500;
/// How long one round of another client may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The name of the crate `rocketmq-client-rust` in the table; no goal names it.
const RUST: &str = "rocketmq-client-rust";
/// How many messages it has in flight where others have more: it refuses what goes over the bounds of its own queues, 700
/// always and 512 now and then.
const RUST_IN_FLIGHT: u64 = 256;

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// How the others send.
#[derive(Clone, Copy, Debug)]
pub enum PeerSending {
    /// One by one, each awaited.
    Singles,
    /// Single messages with so many in flight.
    InFlight(u64),
    /// Batches of so many, each awaited.
    Batches(u64),
}

/// The processor time of the client's process for one message.
const CPU: &[Figure] = &[Figure {
    name: "",
    unit: Unit::Micros,
}];

/// Connects all clients and lists the work.
///
/// # Errors
/// Says what could not be reached.
pub fn works(cluster: test_brokers::RocketMq, programs: &Programs, options: &Options) -> Outcome<Vec<Work>> {
    let runtime = Rc::new(crate::core::two_workers());
    let address = cluster.url().replace("rocketmq://", "");
    let connect = || {
        let config = RocketMqConfig::new([address.clone()]);
        let driver = runtime.block_on(RocketMq::connect_with(config));
        driver.map(Mq::from_driver).map_err(text)
    };
    let all = Standard::new(Ours::new(Rc::clone(&runtime), connect()?), options);
    all.ours().warm_up(WARM_UP);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rocketmq/Bench.java");
    let jvm = ["-XX:TieredStopAtLevel=4", "-Xmx1g"];
    let java = cluster.java_program(&source, &jvm).map_err(text)?;
    let start = |program: &Option<PathBuf>| {
        let program = program.as_ref().map(|program| {
            let mut command = Command::new(program);
            command.env("NAMESRV_ADDR", &address);
            JavaProgram::start(command).map_err(text)
        });
        program.transpose()
    };
    let (go, rust) = (start(&programs.go)?, start(&programs.rust)?);
    let topics = Rc::new(Topics {
        runtime: Rc::clone(&runtime),
        mq: connect()?,
        _cluster: cluster,
        next: Cell::new(0),
        stored: RefCell::default(),
    });
    let java = Peer::start("Java", java, &topics)?;
    let mut peers = vec![java];
    for (name, program) in [("Go", go), (RUST, rust)] {
        if let Some(program) = program {
            peers.push(Peer::start(name, program, &topics)?);
        }
    }
    let (many, some, few) = (all.many, all.some, all.few);
    let against = |work: Work, what: &str, goals: &dyn Fn(&Peer) -> Vec<Goal>, round: PeerRound| {
        peers.iter().fold(work, |work, peer| {
            let (mut name, mut goals) = (format!("{}{what}", peer.name), goals(peer));
            if peer.name == RUST {
                name = name.replace("1000 singles", &format!("{RUST_IN_FLIGHT} singles"));
                goals.fill(Goal::Shown);
            }
            let (runs, round) = (Rc::clone(peer), Rc::clone(&round));
            work.against(name, goals, move || round(&runs))
        })
    };
    let at_least = |ratio: f64| move |_: &Peer| vec![Goal::AtLeast(ratio)];
    let no_worse = |figures: usize| move |_: &Peer| vec![Goal::AtMost(1.1); figures];
    let send = |count: u64, size: usize, how: PeerSending| -> PeerRound {
        Rc::new(move |peer| peer.produce(count, size, how))
    };
    let consumed = |peer: &Peer| vec![Goal::AtLeast(if peer.name == "Go" { 2.0 } else { 1.3 })];
    let consume = |size: usize| -> PeerRound { Rc::new(move |peer| peer.consume(many, size, 1)) };
    let times = |count: u64, gap: Duration, figures: fn(Times) -> Sample| -> PeerRound {
        Rc::new(move |peer| peer.times(count, gap).map(figures))
    };
    let mut works = vec![
        all.memory(),
        against(
            all.produce(Sending::Tasks(1), 100),
            ", singles",
            &at_least(1.3),
            send(some, 100, PeerSending::Singles),
        ),
    ];
    for size in [100, 1024] {
        let work = against(
            all.produce(Sending::InFlight(1000), size),
            ", 1000 singles in flight",
            &at_least(5.0),
            send(many, size, PeerSending::InFlight(1000)),
        );
        let batches = send(many, size, PeerSending::Batches(32));
        works.push(against(work, ", batches of 32", &at_least(1.5), batches));
    }
    let ours = Rc::clone(all.ours());
    let work = Work::new("client CPU, produce, 1000 in flight, 100 B", CPU, move || {
        cpu_of(ours.produce(many, 100, 1, Sending::InFlight(1000))?)
    });
    let tenth = |peer: &Peer| {
        vec![if peer.name == "Go" {
            Goal::AtMost(0.1)
        } else {
            Goal::Shown
        }]
    };
    let singles: PeerRound =
        Rc::new(move |peer| cpu_of(peer.produce(many, 100, PeerSending::InFlight(1000))?));
    works.push(against(work, ", 1000 singles in flight", &tenth, singles));
    for size in [100, 1024] {
        let work = all.consume(many, size, Mode::Partitioned);
        works.push(against(work, "", &consumed, consume(size)));
    }
    let backlog: PeerRound = Rc::new(move |peer| peer.consume(10 * many, 100, 4));
    works.push(against(all.catch_up(), "", &|_| vec![Goal::Shown], backlog));
    works.push(all.group_of_four());
    works.push(against(
        all.latency(),
        "",
        &no_worse(2),
        times(few, Standard::EACH_MILLISECOND, |times| {
            Sample::of([times.delivered.0, times.delivered.1, times.delivered.2])
        }),
    ));
    works.push(against(
        all.promise(),
        "",
        &no_worse(4),
        times(few / 2, Standard::EACH_TWO_MILLISECONDS, |times| {
            let ((p50, p99), delivered) = (times.published, times.delivered);
            Sample::of([p50, p99, delivered.0, delivered.1])
        }),
    ));
    works.extend(all.growth());
    Ok(works)
}

type PeerRound = Rc<dyn Fn(&Peer) -> Outcome<Sample>>;

/// Takes the processor time for the result.
fn cpu_of(sample: Sample) -> Outcome<Sample> {
    let cpu = sample
        .cpu
        .ok_or_else(|| "no processor time was taken".to_owned())?;
    Ok(Sample::of([cpu]))
}

/// Times of a round, in microseconds.
struct Times {
    /// The median and the 99th percentile of sends.
    published: (f64, f64),
    /// The median, the 99th and the 99.9th percentile until the hand-over.
    delivered: (f64, f64, f64),
}

/// Makes and fills topics for the others.
struct Topics {
    runtime: Rc<Runtime>,
    mq: Mq,
    _cluster: test_brokers::RocketMq,
    next: Cell<u64>,
    stored: RefCell<HashMap<(u64, usize, u32), String>>,
}

impl Topics {
    fn make(&self, partitions: u32) -> Outcome<String> {
        self.next.set(self.next.get() + 1);
        let name = format!("peer-{}", self.next.get());
        let made = self.runtime.block_on(self.mq.create_topic(&name, partitions));
        made.map(|()| name).map_err(text)
    }

    fn remove(&self, topic: &str) -> Outcome<()> {
        self.runtime.block_on(self.mq.delete_topic(topic)).map_err(text)
    }

    /// Returns a topic that holds so many messages; it is filled once in a run.
    fn stored(&self, messages: u64, size: usize, partitions: u32) -> Outcome<String> {
        let key = (messages, size, partitions);
        if let Some(topic) = self.stored.borrow().get(&key) {
            return Ok(topic.clone());
        }
        let topic = self.make(partitions)?;
        let payloads = Payloads::new(size);
        let filled = self.runtime.block_on(async {
            let producer = self.mq.producer(&topic).await?;
            let mut sent = 0;
            while sent < messages {
                let numbers = sent..(sent + 1000).min(messages);
                let batch = numbers.map(|number| Message::new(payloads.of(number)));
                for result in producer.produce_batch(batch).await {
                    result?;
                    sent += 1;
                }
            }
            producer.close().await
        });
        filled.map_err(text)?;
        self.stored.borrow_mut().insert(key, topic.clone());
        Ok(topic)
    }
}

/// A client in another language, in a process of its own.
struct Peer {
    name: &'static str,
    // Before the topics, which hold the cluster whose folder it writes to: fields are dropped in this order.
    program: RefCell<JavaProgram>,
    topics: Rc<Topics>,
}

impl Peer {
    fn start(name: &'static str, mut program: JavaProgram, topics: &Rc<Topics>) -> Outcome<Rc<Self>> {
        program.hear("ready", PATIENCE)?;
        Ok(Rc::new(Self {
            name,
            program: RefCell::new(program),
            topics: Rc::clone(topics),
        }))
    }

    /// Gives the program a command about a topic and returns the numbers of its answer.
    fn ask(&self, words: &[&str]) -> Outcome<Vec<f64>> {
        let mut program = self.program.borrow_mut();
        program.say(words).map_err(text)?;
        let answer = program.hear("done", PATIENCE)?;
        answer.iter().map(|number| number.parse().map_err(text)).collect()
    }

    fn produce(&self, messages: u64, size: usize, how: PeerSending) -> Outcome<Sample> {
        let topic = self.topics.make(1)?;
        let (command, last) = match how {
            PeerSending::Singles => ("single", 0),
            PeerSending::InFlight(window) if self.name == RUST => ("window", window.min(RUST_IN_FLIGHT)),
            PeerSending::InFlight(window) => ("window", window),
            PeerSending::Batches(size) => ("batch", size),
        };
        let (count, size, last) = (messages.to_string(), size.to_string(), last.to_string());
        let answer = self.ask(&[command, &topic, &count, &size, &last])?;
        let seen = crate::ours::holds(&self.topics.mq, &topic, messages);
        self.topics.runtime.block_on(seen)?;
        self.topics.remove(&topic)?;
        spent(&answer, messages - 1)
    }

    fn consume(&self, messages: u64, size: usize, partitions: u32) -> Outcome<Sample> {
        let topic = self.topics.stored(messages, size, partitions)?;
        let answer = self.ask(&["consume", &topic, &messages.to_string(), "0"])?;
        let expected: u64 = (0..messages).map(|number| number % 1024).sum();
        match answer.last() {
            Some(sum) if (sum - number(expected)).abs() < 0.5 => spent(&answer, messages),
            sum => Err(format!("the sum of what came is {sum:?}, not {expected}")),
        }
    }

    fn times(&self, messages: u64, gap: Duration) -> Outcome<Times> {
        let topic = self.topics.make(1)?;
        let (count, gap) = (messages.to_string(), gap.as_micros().to_string());
        let answer = self.ask(&["times", &topic, &count, &gap, &WARM_UP.to_string()])?;
        self.topics.remove(&topic)?;
        match answer.as_slice() {
            [publish50, publish99, p50, p99, p999] => Ok(Times {
                published: (*publish50, *publish99),
                delivered: (*p50, *p99, *p999),
            }),
            _ => Err(format!("an odd answer: {answer:?}")),
        }
    }
}

fn spent(answer: &[f64], messages: u64) -> Outcome<Sample> {
    match answer {
        [seconds, cpu, ..] => Ok(Sample {
            values: vec![number(messages) / seconds],
            cpu: Some(cpu * 1e6 / number(messages)),
        }),
        _ => Err(format!("an odd answer: {answer:?}")),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bench lie far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
