//! The Redis driver and the raw client on one server, with the same payloads, windows, acks and checks.

use std::{
    cell::Cell,
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use mq_api::{Consumer, Message, Mode, Mq, Start};
use mq_redis::{RedisConfig, RedisMq};
use redis::{Value, aio::MultiplexedConnection, cmd, pipe};
use test_brokers::Redis;
use tokio::runtime::Runtime;

use crate::payload::{Check, Payloads};

/// The size of every payload, in bytes.
const SIZE: usize = 100;

/// A server, clients of both kinds, and a runtime.
pub struct Bench {
    server: Redis,
    runtime: Runtime,
    mq: Mq,
    raw: MultiplexedConnection,
    blocking: MultiplexedConnection,
    payloads: Payloads,
    next: Cell<u64>,
}

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Bench {
    /// Connects to a server.
    ///
    /// # Errors
    /// Says what could not be reached.
    pub fn new(server: Redis) -> Outcome<Rc<Self>> {
        let runtime = crate::core::two_workers();
        let address = server.address();
        let (mq, raw, blocking) = runtime.block_on(async {
            let config = RedisConfig::new("127.0.0.1", address.port());
            let mq = Mq::from_driver(RedisMq::connect_with(config).await.map_err(text)?);
            let client = redis::Client::open(format!("redis://{address}")).map_err(text)?;
            let options = redis::AsyncConnectionConfig::new()
                .set_pipeline_buffer_size(1024)
                .set_response_timeout(Some(Duration::from_secs(30)));
            let raw = client
                .get_multiplexed_async_connection_with_config(&options)
                .await
                .map_err(text)?;
            let blocking = client
                .get_multiplexed_async_connection_with_config(&options)
                .await
                .map_err(text)?;
            Ok::<_, String>((mq, raw, blocking))
        })?;
        Ok(Rc::new(Self {
            server,
            runtime,
            mq,
            raw,
            blocking,
            payloads: Payloads::new(SIZE),
            next: Cell::new(0),
        }))
    }

    fn name(&self) -> String {
        self.next.set(self.next.get() + 1);
        format!("bench-{}", self.next.get())
    }

    fn clean(&self) -> Outcome<()> {
        self.server.command(&["FLUSHALL"]).map(drop).map_err(text)
    }

    /// Sends with so many messages in flight, from one task.
    ///
    /// # Errors
    /// Says what failed.
    pub fn ours_produce(&self, messages: u64, in_flight: usize) -> Outcome<f64> {
        let topic = self.name();
        let took = self.runtime.block_on(async {
            self.mq.create_topic(&topic, 1).await?;
            let producer = self.mq.producer(&topic).await?;
            let begin = Instant::now();
            let mut pending = VecDeque::with_capacity(in_flight);
            for number in 0..messages {
                if pending.len() == in_flight
                    && let Some(oldest) = pending.pop_front()
                {
                    oldest.await?;
                }
                pending.push_back(producer.enqueue(Message::new(self.payloads.of(number))).await?);
            }
            for receipt in pending {
                receipt.await?;
            }
            let took = begin.elapsed();
            producer.close().await?;
            Ok::<_, mq_api::Error>(took)
        });
        self.clean()?;
        Ok(crate::rounds::rate(messages, took.map_err(text)?))
    }

    /// Sends from so many tasks, each awaiting its message.
    ///
    /// # Errors
    /// Says what failed.
    pub fn ours_awaited(&self, messages: u64, tasks: u64) -> Outcome<f64> {
        let topic = self.name();
        let took = self.runtime.block_on(async {
            self.mq.create_topic(&topic, 1).await?;
            let producer = self.mq.producer(&topic).await?;
            let begin = Instant::now();
            let mut all = Vec::new();
            for _ in 0..tasks {
                let (producer, payloads) = (producer.clone(), self.payloads.clone());
                all.push(tokio::spawn(async move {
                    for number in 0..messages / tasks {
                        producer.produce(Message::new(payloads.of(number))).await?;
                    }
                    Ok::<_, mq_api::Error>(())
                }));
            }
            for task in all {
                task.await.map_err(|_| mq_api::Error::closed("task"))??;
            }
            let took = begin.elapsed();
            producer.close().await?;
            Ok::<_, mq_api::Error>(took)
        });
        self.clean()?;
        Ok(crate::rounds::rate(messages, took.map_err(text)?))
    }

    /// Sends pipelines of so many commands, one after the other.
    ///
    /// # Errors
    /// Says what failed.
    pub fn raw_pipeline(&self, messages: u64, size: u64) -> Outcome<f64> {
        let key = self.name();
        let took = self.runtime.block_on(async {
            let mut raw = self.raw.clone();
            let begin = Instant::now();
            let mut sent = 0;
            while sent < messages {
                let mut batch = pipe();
                for number in sent..(sent + size).min(messages) {
                    batch
                        .cmd("XADD")
                        .arg(&key)
                        .arg("*")
                        .arg("payload")
                        .arg(&self.payloads.of(number)[..]);
                }
                let ids: Vec<String> = batch.query_async(&mut raw).await?;
                sent += ids.len() as u64;
            }
            Ok::<_, redis::RedisError>(begin.elapsed())
        });
        self.clean()?;
        Ok(crate::rounds::rate(messages, took.map_err(text)?))
    }

    /// Sends single commands from so many tasks on one connection.
    ///
    /// # Errors
    /// Says what failed.
    pub fn raw_singles(&self, messages: u64, tasks: u64) -> Outcome<f64> {
        let key = self.name();
        let took = self.runtime.block_on(async {
            let begin = Instant::now();
            let mut all = Vec::new();
            for _ in 0..tasks {
                let (mut raw, key, payloads) = (self.raw.clone(), key.clone(), self.payloads.clone());
                all.push(tokio::spawn(async move {
                    for number in 0..messages / tasks {
                        let _: String = cmd("XADD")
                            .arg(&key)
                            .arg("*")
                            .arg("payload")
                            .arg(&payloads.of(number)[..])
                            .query_async(&mut raw)
                            .await?;
                    }
                    Ok::<_, redis::RedisError>(())
                }));
            }
            for task in all {
                task.await.map_err(text)?.map_err(text)?;
            }
            Ok::<_, String>(begin.elapsed())
        });
        self.clean()?;
        Ok(crate::rounds::rate(messages, took?))
    }

    async fn fill_ours(&self, topic: &str, messages: u64) -> mq_api::Result<()> {
        self.mq.create_topic(topic, 1).await?;
        let producer = self.mq.producer(topic).await?;
        let mut sent = 0;
        while sent < messages {
            let batch =
                (sent..(sent + 1000).min(messages)).map(|number| Message::new(self.payloads.of(number)));
            for result in producer.produce_batch(batch).await {
                result?;
                sent += 1;
            }
        }
        producer.close().await
    }

    /// Consumes what was stored before and acks each message; the last commit is part of the time.
    ///
    /// # Errors
    /// Says what failed.
    pub fn ours_consume(&self, messages: u64, mode: Mode) -> Outcome<f64> {
        let topic = self.name();
        let took = self.runtime.block_on(async {
            self.fill_ours(&topic, messages).await?;
            let begin = Instant::now();
            let consumer: Consumer = self
                .mq
                .consumer(&topic, "bench")
                .mode(mode)
                .start_at(Start::Earliest)
                .await?;
            let mut check = Check::default();
            let mut left = messages;
            while left > 0 {
                let batch = consumer.consume_batch(1000).await?;
                left -= batch.len() as u64;
                for delivery in &batch {
                    check.take(delivery.payload());
                }
                consumer.ack_all(batch)?;
            }
            consumer.commit().await?;
            let took = begin.elapsed();
            consumer.close().await?;
            Ok::<_, mq_api::Error>((took, check))
        });
        self.clean()?;
        let (took, check) = took.map_err(text)?;
        verify(check, messages)?;
        Ok(crate::rounds::rate(messages, took))
    }

    async fn fill_raw(&self, key: &str, messages: u64) -> redis::RedisResult<()> {
        let mut raw = self.raw.clone();
        let mut sent = 0;
        while sent < messages {
            let mut batch = pipe();
            for number in sent..(sent + 1000).min(messages) {
                batch
                    .cmd("XADD")
                    .arg(key)
                    .arg("*")
                    .arg("payload")
                    .arg(&self.payloads.of(number)[..])
                    .ignore();
            }
            batch.exec_async(&mut raw).await?;
            sent = (sent + 1000).min(messages);
        }
        Ok(())
    }

    /// Reads what was stored before by `XREAD COUNT 100`, without acks.
    ///
    /// # Errors
    /// Says what failed.
    pub fn raw_read(&self, messages: u64) -> Outcome<f64> {
        let key = self.name();
        let took = self.runtime.block_on(async {
            self.fill_raw(&key, messages).await.map_err(text)?;
            let mut raw = self.raw.clone();
            let begin = Instant::now();
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
            Ok::<_, String>((begin.elapsed(), check))
        });
        self.clean()?;
        let (took, check) = took?;
        verify(check, messages)?;
        Ok(crate::rounds::rate(messages, took))
    }

    /// Reads what was stored before by `XREADGROUP COUNT 100` and acks by `XACK`, in one round trip.
    ///
    /// # Errors
    /// Says what failed.
    pub fn raw_group(&self, messages: u64) -> Outcome<f64> {
        let key = self.name();
        let took = self.runtime.block_on(async {
            self.fill_raw(&key, messages).await.map_err(text)?;
            let mut raw = self.raw.clone();
            cmd("XGROUP")
                .arg("CREATE")
                .arg(&key)
                .arg("g")
                .arg("0")
                .exec_async(&mut raw)
                .await
                .map_err(text)?;
            let begin = Instant::now();
            let (mut check, mut left) = (Check::default(), messages);
            let mut acks = Vec::new();
            while left > 0 {
                let mut both = pipe();
                if !acks.is_empty() {
                    both.cmd("XACK").arg(&key).arg("g").arg(&acks).ignore();
                }
                both.cmd("XREADGROUP")
                    .arg("GROUP")
                    .arg("g")
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
                .arg("g")
                .arg(&acks)
                .exec_async(&mut raw)
                .await
                .map_err(text)?;
            Ok::<_, String>((begin.elapsed(), check))
        });
        self.clean()?;
        let (took, check) = took?;
        verify(check, messages)?;
        Ok(crate::rounds::rate(messages, took))
    }

    /// Sends one message each `gap` and measures until it is handed over; returns a percentile in microseconds.
    ///
    /// # Errors
    /// Says what failed.
    pub fn ours_latency(&self, messages: u64, gap: Duration, percentile: f64) -> Outcome<f64> {
        let topic = self.name();
        let times = self.runtime.block_on(async {
            self.mq.create_topic(&topic, 1).await?;
            let consumer = self.mq.consumer(&topic, "bench").await?;
            while consumer.assignment().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let producer = self.mq.producer(&topic).await?;
            let zero = Instant::now();
            let sending = tokio::spawn(async move {
                for _ in 0..messages {
                    tokio::time::sleep(gap).await;
                    producer.produce(Message::new(stamp(zero))).await?;
                }
                Ok::<_, mq_api::Error>(())
            });
            let mut times = Vec::new();
            while (times.len() as u64) < messages {
                let delivery = consumer.consume().await?;
                times.push(since(zero, delivery.payload()));
                delivery.ack()?;
            }
            sending.await.map_err(|_| mq_api::Error::closed("task"))??;
            consumer.close().await?;
            Ok::<_, mq_api::Error>(times)
        });
        self.clean()?;
        Ok(at(times.map_err(text)?, percentile))
    }

    /// The same with `XADD` and a blocking `XREAD`.
    ///
    /// # Errors
    /// Says what failed.
    pub fn raw_latency(&self, messages: u64, gap: Duration, percentile: f64) -> Outcome<f64> {
        let key = self.name();
        let times = self.runtime.block_on(async {
            let (mut raw, mut blocking) = (self.raw.clone(), self.blocking.clone());
            let zero = Instant::now();
            let to = key.clone();
            let sending = tokio::spawn(async move {
                for _ in 0..messages {
                    tokio::time::sleep(gap).await;
                    let _: String = cmd("XADD")
                        .arg(&to)
                        .arg("*")
                        .arg("payload")
                        .arg(stamp(zero))
                        .query_async(&mut raw)
                        .await?;
                }
                Ok::<_, redis::RedisError>(())
            });
            let (mut times, mut last) = (Vec::new(), "0".to_owned());
            while (times.len() as u64) < messages {
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
                    times.push(since(zero, payload));
                    last = String::from_utf8_lossy(id).into_owned();
                }
            }
            sending.await.map_err(text)?.map_err(text)?;
            Ok::<_, String>(times)
        });
        self.clean()?;
        Ok(at(times?, percentile))
    }
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

fn verify(check: Check, messages: u64) -> Outcome<()> {
    if check == Check::expected(messages, 1) {
        Ok(())
    } else {
        Err(format!("{check:?} came of {messages} messages"))
    }
}

fn stamp(zero: Instant) -> Vec<u8> {
    let nanos = u64::try_from(zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut bytes = nanos.to_le_bytes().to_vec();
    bytes.resize(SIZE, 0xAB);
    bytes
}

fn since(zero: Instant, payload: &[u8]) -> f64 {
    let sent = payload
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (zero.elapsed().saturating_sub(Duration::from_nanos(sent))).as_secs_f64() * 1e6
}

fn at(mut times: Vec<f64>, percentile: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a percentile of a few thousand values"
    )]
    let index = (times.len() as f64 * percentile) as usize;
    times.get(index).copied().unwrap_or(f64::NAN)
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
