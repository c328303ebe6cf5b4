//! RocketMQ's own client in Java: its way to do each piece of work, with the same payloads, windows, commits and checks
//! as ours.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::Path,
    rc::Rc,
    time::Duration,
};

use mq_api::{Message, Mode, Mq};
use mq_rocketmq::{RocketMq, RocketMqConfig};
use test_brokers::{Broker, JavaProgram};
use tokio::runtime::Runtime;

use crate::{
    command::Options,
    meter::Sample,
    ours::{Ours, Sending},
    payload::Payloads,
    rounds::Goal,
    side::Work,
    standard::Standard,
};

/// How long one round in Java may take.
const PATIENCE: Duration = Duration::from_secs(120);

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// How Java sends.
#[derive(Clone, Copy, Debug)]
pub enum JavaSending {
    /// One by one, each awaited.
    Singles,
    /// Single messages with so many in flight.
    InFlight(u64),
    /// Batches of so many, each awaited.
    Batches(u64),
}

/// The program in Java on a cluster.
pub struct Java {
    // Before the cluster, whose folder it writes to: fields are dropped in this order.
    program: RefCell<JavaProgram>,
    runtime: Rc<Runtime>,
    /// Makes and fills topics.
    mq: Mq,
    _cluster: test_brokers::RocketMq,
    next: Cell<u64>,
    stored: RefCell<HashMap<(u64, usize), String>>,
}

impl std::fmt::Debug for Java {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Java").finish_non_exhaustive()
    }
}

/// Connects both clients and lists the work.
///
/// # Errors
/// Says what could not be reached.
pub fn works(cluster: test_brokers::RocketMq, options: &Options) -> Outcome<Vec<Work>> {
    let runtime = Rc::new(crate::core::two_workers());
    let address = cluster.url().replace("rocketmq://", "");
    let connect = || {
        let config = RocketMqConfig::new([address.clone()]);
        let driver = runtime.block_on(RocketMq::connect_with(config));
        driver.map(Mq::from_driver).map_err(text)
    };
    let all = Standard::new(Ours::new(Rc::clone(&runtime), connect()?), options);
    let java = Rc::new(Java::start(cluster, Rc::clone(&runtime), connect()?)?);
    let (many, some, few) = (all.many, all.some, all.few);
    let send = |count: u64, size: usize, how: JavaSending| {
        let java = Rc::clone(&java);
        move || java.produce(count, size, how)
    };
    let consume = |count: u64, size: usize| {
        let java = Rc::clone(&java);
        move || java.consume(count, size)
    };
    let times = |count: u64, gap: Duration, figures: fn(Times) -> Sample| {
        let java = Rc::clone(&java);
        move || java.times(count, gap).map(figures)
    };
    let at_least = |ratio: f64| [Goal::AtLeast(ratio)];
    let no_worse = Goal::AtMost(1.1);
    Ok(vec![
        all.memory(),
        all.produce(Sending::Tasks(1), 100).against(
            "Java, singles",
            at_least(1.3),
            send(some, 100, JavaSending::Singles),
        ),
        all.produce(Sending::InFlight(1000), 100)
            .against(
                "Java, 1000 singles in flight",
                at_least(5.0),
                send(many, 100, JavaSending::InFlight(1000)),
            )
            .against(
                "Java, batches of 32",
                at_least(1.5),
                send(many, 100, JavaSending::Batches(32)),
            ),
        all.produce(Sending::InFlight(1000), 1024)
            .against(
                "Java, 1000 singles in flight",
                at_least(5.0),
                send(many, 1024, JavaSending::InFlight(1000)),
            )
            .against(
                "Java, batches of 32",
                at_least(1.5),
                send(many, 1024, JavaSending::Batches(32)),
            ),
        all.consume(many, 100, Mode::Partitioned)
            .against("Java", at_least(1.3), consume(many, 100)),
        all.consume(many, 1024, Mode::Partitioned)
            .against("Java", at_least(1.3), consume(many, 1024)),
        all.group_of_four(),
        all.latency().against(
            "Java",
            [no_worse; 2],
            times(few, Standard::EACH_MILLISECOND, |times| {
                Sample::of([times.delivered.0, times.delivered.1, times.delivered.2])
            }),
        ),
        all.promise().against(
            "Java",
            [no_worse; 4],
            times(few / 2, Standard::EACH_TWO_MILLISECONDS, |times| {
                let ((p50, p99), delivered) = (times.published, times.delivered);
                Sample::of([p50, p99, delivered.0, delivered.1])
            }),
        ),
    ])
}

/// Times of a round, in microseconds.
struct Times {
    /// The median and the 99th percentile of sends.
    published: (f64, f64),
    /// The median, the 99th and the 99.9th percentile until the hand-over.
    delivered: (f64, f64, f64),
}

impl Java {
    fn start(cluster: test_brokers::RocketMq, runtime: Rc<Runtime>, mq: Mq) -> Outcome<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rocketmq/Bench.java");
        let options = ["-XX:TieredStopAtLevel=4", "-Xmx1g"];
        let mut program = cluster.java_program(&source, &options).map_err(text)?;
        program.hear("ready", PATIENCE)?;
        Ok(Self {
            program: RefCell::new(program),
            runtime,
            mq,
            _cluster: cluster,
            next: Cell::new(0),
            stored: RefCell::default(),
        })
    }

    fn topic(&self) -> Outcome<String> {
        self.next.set(self.next.get() + 1);
        let name = format!("java-{}", self.next.get());
        let made = self.runtime.block_on(self.mq.create_topic(&name, 1));
        made.map(|()| name).map_err(text)
    }

    fn remove(&self, topic: &str) -> Outcome<()> {
        self.runtime.block_on(self.mq.delete_topic(topic)).map_err(text)
    }

    /// Gives the program a command about a topic and returns the numbers of its answer.
    fn ask(&self, words: &[&str]) -> Outcome<Vec<f64>> {
        let mut program = self.program.borrow_mut();
        program.say(words).map_err(text)?;
        let answer = program.hear("done", PATIENCE)?;
        answer.iter().map(|number| number.parse().map_err(text)).collect()
    }

    fn produce(&self, messages: u64, size: usize, how: JavaSending) -> Outcome<Sample> {
        let topic = self.topic()?;
        let (command, last) = match how {
            JavaSending::Singles => ("single", 0),
            JavaSending::InFlight(window) => ("window", window),
            JavaSending::Batches(size) => ("batch", size),
        };
        let (count, size, last) = (messages.to_string(), size.to_string(), last.to_string());
        let answer = self.ask(&[command, &topic, &count, &size, &last])?;
        self.remove(&topic)?;
        spent(&answer, messages)
    }

    /// Returns a topic that holds so many messages; it is filled once in a run.
    fn stored(&self, messages: u64, size: usize) -> Outcome<String> {
        if let Some(topic) = self.stored.borrow().get(&(messages, size)) {
            return Ok(topic.clone());
        }
        let topic = self.topic()?;
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
        self.stored.borrow_mut().insert((messages, size), topic.clone());
        Ok(topic)
    }

    fn consume(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let topic = self.stored(messages, size)?;
        let answer = self.ask(&["consume", &topic, &messages.to_string(), "0"])?;
        let expected: u64 = (0..messages).map(|number| number % 1024).sum();
        match answer.last() {
            Some(sum) if (sum - number(expected)).abs() < 0.5 => spent(&answer, messages),
            sum => Err(format!("the sum of what came is {sum:?}, not {expected}")),
        }
    }

    fn times(&self, messages: u64, gap: Duration) -> Outcome<Times> {
        let topic = self.topic()?;
        let (count, gap) = (messages.to_string(), gap.as_micros().to_string());
        let answer = self.ask(&["times", &topic, &count, &gap])?;
        self.remove(&topic)?;
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
