//! The raw Redis client's way to do each piece of work, with the same payloads, windows, acks and checks as ours.

#[cfg(feature = "redis-peers")]
mod peer;
pub mod power;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use mq_api::{Mode, Mq};
use mq_redis::{RedisConfig, RedisMq};
use redis::{Value, aio::MultiplexedConnection, cmd, pipe};
use test_brokers::Redis;
use tokio::runtime::Runtime;

use crate::{
    command::Options,
    meter::{Meter, Sample, Times},
    ours::{Ours, Sending, SteadySends, since, verify},
    payload::{Check, Payloads},
    rounds::Goal,
    side::Work,
    standard::Standard,
    tasks::by_tasks,
};

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// How the raw client sends.
#[derive(Clone, Copy, Debug)]
pub enum RawSending {
    /// One pipeline of so many commands after the other.
    Pipelines(u64),
    /// Single commands from so many tasks on one connection.
    Singles(u64),
}

/// The raw client on a server.
pub struct Raw {
    server: Redis,
    runtime: Rc<Runtime>,
    raw: MultiplexedConnection,
    blocking: MultiplexedConnection,
    next: Cell<u64>,
    stored: RefCell<HashMap<(&'static str, u64, usize), String>>,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Connects both clients and lists the work.
///
/// # Errors
/// Says what could not be reached.
pub fn works(server: Redis, options: &Options) -> Outcome<Vec<Work>> {
    let runtime = Rc::new(crate::core::two_workers());
    let address = server.address();
    let mq = runtime.block_on(async {
        let config = RedisConfig::new("127.0.0.1", address.port());
        RedisMq::connect_with(config)
            .await
            .map(Mq::from_driver)
            .map_err(text)
    })?;
    let all = Standard::new(Ours::new(Rc::clone(&runtime), mq), options);
    let raw = Rc::new(Raw::connect(server, runtime)?);
    let (many, some, few) = (all.many, all.some, all.few);
    let send = |count: u64, size: usize, how: RawSending| {
        let raw = Rc::clone(&raw);
        move || raw.produce(count, size, how)
    };
    let group = |count: u64, size: usize| {
        let raw = Rc::clone(&raw);
        move || raw.group(count, size)
    };
    let read = |count: u64, size: usize| {
        let raw = Rc::clone(&raw);
        move || raw.read(count, size)
    };
    let times = |count: u64, gap: Duration, figures: fn(Times, Times) -> Sample| {
        let raw = Rc::clone(&raw);
        move || {
            raw.times(count, gap)
                .map(|(published, delivered)| figures(published, delivered))
        }
    };
    let at_least = |ratio: f64| [Goal::AtLeast(ratio)];
    let (groups, reads) = ("XREADGROUP and XACK of 100", "XREAD of 100, no acks");
    let mut works = vec![
        all.memory(),
        all.produce(Sending::InFlight(1000), 100).against(
            "pipelines of 512",
            at_least(0.8),
            send(many, 100, RawSending::Pipelines(512)),
        ),
        all.produce(Sending::InFlight(1000), 1024).against(
            "pipelines of 512",
            at_least(0.8),
            send(many, 1024, RawSending::Pipelines(512)),
        ),
        all.produce(Sending::Batches(512), 100).against(
            "pipelines of 512",
            at_least(0.8),
            send(many, 100, RawSending::Pipelines(512)),
        ),
        all.produce(Sending::InFlight(64), 100).against(
            "pipelines of 64",
            at_least(0.6),
            send(many, 100, RawSending::Pipelines(64)),
        ),
        all.produce(Sending::Tasks(64), 100).against(
            "64 tasks, single commands",
            at_least(0.8),
            send(many, 100, RawSending::Singles(64)),
        ),
        all.produce(Sending::Tasks(1), 100).against(
            "single commands",
            at_least(0.95),
            send(some, 100, RawSending::Singles(1)),
        ),
        all.consume(many, 100, Mode::Partitioned)
            .against(groups, at_least(1.5), group(many, 100))
            .against(reads, at_least(0.6), read(many, 100)),
        all.consume(many, 1024, Mode::Partitioned)
            .against(groups, at_least(1.5), group(many, 1024))
            .against(reads, at_least(0.6), read(many, 1024)),
        all.consume(many, 100, Mode::Shared)
            .against(groups, at_least(1.0), group(many, 100)),
        all.catch_up()
            .against(groups, at_least(1.5), group(10 * many, 100)),
        all.group_of_four(),
        all.latency().against(
            "XADD to a blocking XREAD",
            [Goal::AtMost(1.4), Goal::AtMost(1.4)],
            times(few, Standard::EACH_MILLISECOND, |_, delivered| {
                Sample::latency(delivered)
            }),
        ),
        all.promise().against(
            "XADD to a blocking XREAD",
            [Goal::AtMost(1.2); 4],
            times(few / 2, Standard::EACH_TWO_MILLISECONDS, Sample::promise),
        ),
    ];
    works.extend(all.growth());
    #[cfg(feature = "redis-peers")]
    works.extend(peer::works(&all, &raw));
    Ok(works)
}

impl Raw {
    fn connect(server: Redis, runtime: Rc<Runtime>) -> Outcome<Self> {
        let address = server.address();
        let (raw, blocking) = runtime.block_on(async {
            let client = redis::Client::open(format!("redis://{address}")).map_err(text)?;
            let options = redis::AsyncConnectionConfig::new()
                .set_pipeline_buffer_size(1024)
                .set_response_timeout(Some(Duration::from_secs(30)));
            let connect = async || {
                client
                    .get_multiplexed_async_connection_with_config(&options)
                    .await
                    .map_err(text)
            };
            Ok::<_, String>((connect().await?, connect().await?))
        })?;
        Ok(Self {
            server,
            runtime,
            raw,
            blocking,
            next: Cell::new(0),
            stored: RefCell::default(),
        })
    }

    fn name(&self) -> String {
        self.next.set(self.next.get() + 1);
        format!("raw-{}", self.next.get())
    }

    fn produce(&self, messages: u64, size: usize, how: RawSending) -> Outcome<Sample> {
        let key = self.name();
        let payloads = Payloads::new(size);
        let sample = self.runtime.block_on(async {
            match how {
                RawSending::Pipelines(size) => self.pipelines(&key, &payloads, messages, size).await,
                RawSending::Singles(tasks) => self.singles(&key, &payloads, messages, tasks).await,
            }
        })?;
        self.remove(&key)?;
        Ok(sample)
    }

    fn remove(&self, key: &str) -> Outcome<()> {
        self.server.command(&["DEL", key]).map(drop).map_err(text)
    }

    async fn pipelines(&self, key: &str, payloads: &Payloads, messages: u64, size: u64) -> Outcome<Sample> {
        self.pipelines_of("payload", key, payloads, messages, size).await
    }

    async fn pipelines_of(
        &self,
        field: &str,
        key: &str,
        payloads: &Payloads,
        messages: u64,
        size: u64,
    ) -> Outcome<Sample> {
        let mut raw = self.raw.clone();
        let meter = Meter::start();
        let mut sent = 0;
        while sent < messages {
            let mut batch = pipe();
            for number in sent..(sent + size).min(messages) {
                batch
                    .cmd("XADD")
                    .arg(key)
                    .arg("*")
                    .arg(field)
                    .arg(&payloads.of(number)[..]);
            }
            let ids: Vec<String> = batch.query_async(&mut raw).await.map_err(text)?;
            sent += ids.len() as u64;
        }
        Ok(meter.stop(messages))
    }

    async fn singles(&self, key: &str, payloads: &Payloads, messages: u64, tasks: u64) -> Outcome<Sample> {
        let meter = Meter::start();
        let sent = by_tasks(0..messages, tasks, |numbers| {
            let (mut raw, key, payloads) = (self.raw.clone(), key.to_owned(), payloads.clone());
            async move {
                for number in numbers {
                    let _: String = cmd("XADD")
                        .arg(&key)
                        .arg("*")
                        .arg("payload")
                        .arg(&payloads.of(number)[..])
                        .query_async(&mut raw)
                        .await?;
                }
                Ok::<_, redis::RedisError>(())
            }
        });
        sent.await.map_err(text)?;
        Ok(meter.stop(messages))
    }

    /// Returns a stream that holds so many messages; it is filled once in a run.
    async fn stored(&self, messages: u64, size: usize) -> Outcome<String> {
        self.stored_in("payload", messages, size).await
    }

    async fn stored_in(&self, field: &'static str, messages: u64, size: usize) -> Outcome<String> {
        if let Some(key) = self.stored.borrow().get(&(field, messages, size)) {
            return Ok(key.clone());
        }
        let key = self.name();
        self.pipelines_of(field, &key, &Payloads::new(size), messages, 1000)
            .await?;
        self.stored
            .borrow_mut()
            .insert((field, messages, size), key.clone());
        Ok(key)
    }

    /// Reads what is stored by `XREAD COUNT 100`, without acks.
    fn read(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let (sample, check) = self.runtime.block_on(async {
            let key = self.stored(messages, size).await?;
            let mut raw = self.raw.clone();
            let meter = Meter::start();
            let (mut check, mut last, mut left) = (Check::default(), "0".to_owned(), messages);
            while left > 0 {
                let reply: Value = cmd("XREAD")
                    .arg("COUNT")
                    .arg(100)
                    .arg("STREAMS")
                    .arg(&key)
                    .arg(&last)
                    .query_async(&mut raw)
                    .await
                    .map_err(text)?;
                for (id, payload) in entries(&reply)? {
                    check.take(payload);
                    last = String::from_utf8_lossy(id).into_owned();
                    left -= 1;
                }
            }
            Ok::<_, String>((meter.stop(messages), check))
        })?;
        verify(check, messages)?;
        Ok(sample)
    }

    /// Reads what is stored by `XREADGROUP COUNT 100` and acks by `XACK`, in one round trip.
    fn group(&self, messages: u64, size: usize) -> Outcome<Sample> {
        let group = self.name();
        let (sample, check) = self.runtime.block_on(async {
            let key = self.stored(messages, size).await?;
            let mut raw = self.raw.clone();
            cmd("XGROUP")
                .arg("CREATE")
                .arg(&key)
                .arg(&group)
                .arg("0")
                .exec_async(&mut raw)
                .await
                .map_err(text)?;
            let meter = Meter::start();
            let (mut check, mut left) = (Check::default(), messages);
            let mut acks = Vec::new();
            while left > 0 {
                let mut both = pipe();
                if !acks.is_empty() {
                    both.cmd("XACK").arg(&key).arg(&group).arg(&acks).ignore();
                }
                both.cmd("XREADGROUP")
                    .arg("GROUP")
                    .arg(&group)
                    .arg("c")
                    .arg("COUNT")
                    .arg(100)
                    .arg("STREAMS")
                    .arg(&key)
                    .arg(">");
                let (reply,): (Value,) = both.query_async(&mut raw).await.map_err(text)?;
                acks.clear();
                for (id, payload) in entries(&reply)? {
                    check.take(payload);
                    acks.push(id.to_vec());
                    left -= 1;
                }
            }
            cmd("XACK")
                .arg(&key)
                .arg(&group)
                .arg(&acks)
                .exec_async(&mut raw)
                .await
                .map_err(text)?;
            let sample = meter.stop(messages);
            cmd("XGROUP")
                .arg("DESTROY")
                .arg(&key)
                .arg(&group)
                .exec_async(&mut raw)
                .await
                .map_err(text)?;
            Ok::<_, String>((sample, check))
        })?;
        verify(check, messages)?;
        Ok(sample)
    }

    /// Sends by `XADD` at a steady rate to a blocking `XREAD`.
    fn times(&self, messages: u64, gap: Duration) -> Outcome<(Times, Times)> {
        let key = self.name();
        let both = self.runtime.block_on(async {
            let (mut raw, mut blocking) = (self.raw.clone(), self.blocking.clone());
            let zero = Instant::now();
            let to = key.clone();
            let sending = tokio::spawn(async move {
                let mut sends = SteadySends::new(messages, gap, zero);
                while let Some(payload) = sends.next().await {
                    let _: String = cmd("XADD")
                        .arg(&to)
                        .arg("*")
                        .arg("payload")
                        .arg(payload)
                        .query_async(&mut raw)
                        .await?;
                }
                Ok::<_, redis::RedisError>(sends.times())
            });
            let (mut delivered, mut last) = (Times::default(), "0".to_owned());
            while delivered.count() < messages {
                let reply: Value = cmd("XREAD")
                    .arg("BLOCK")
                    .arg(5000)
                    .arg("STREAMS")
                    .arg(&key)
                    .arg(&last)
                    .query_async(&mut blocking)
                    .await
                    .map_err(text)?;
                for (id, payload) in entries(&reply)? {
                    delivered.take(since(zero, payload));
                    last = String::from_utf8_lossy(id).into_owned();
                }
            }
            let published = sending.await.map_err(text)?.map_err(text)?;
            Ok::<_, String>((published, delivered))
        })?;
        self.remove(&key)?;
        Ok(both)
    }
}

/// Takes ids and the first field's values out of a reply, as a careful user of the raw client does.
fn entries(reply: &Value) -> Outcome<Vec<(&[u8], &[u8])>> {
    let odd = || "an odd reply".to_owned();
    let Value::Array(streams) = reply else {
        return if matches!(reply, Value::Nil) {
            Ok(Vec::new())
        } else {
            Err(odd())
        };
    };
    let mut all = Vec::new();
    for stream in streams {
        let Value::Array(pair) = stream else {
            return Err(odd());
        };
        let [_, Value::Array(entries)] = pair.as_slice() else {
            return Err(odd());
        };
        for entry in entries {
            let Value::Array(entry) = entry else {
                return Err(odd());
            };
            let [Value::BulkString(id), Value::Array(fields)] = entry.as_slice() else {
                return Err(odd());
            };
            let [_, Value::BulkString(payload)] = fields.as_slice() else {
                return Err(odd());
            };
            all.push((id.as_slice(), payload.as_slice()));
        }
    }
    Ok(all)
}
