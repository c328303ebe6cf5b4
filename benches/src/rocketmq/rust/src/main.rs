//! The crate `rocketmq-client-rust`, measured: one command a line, one answer a line with seconds and seconds of the
//! processor.

use std::{
    io::BufRead,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rocketmq_client_rust::{
    ClientConfig, ClientError, ClientRuntime, ClientRuntimeConfig, ConsumeConcurrentlyContext,
    ConsumeConcurrentlyStatus, DefaultMQProducer, DefaultMQPushConsumer, MQPushConsumer, SendResult,
    SendStatus,
};
use rocketmq_model::common::{
    consumer::consume_from_where::ConsumeFromWhere,
    message::{MessageTrait, message_ext::MessageExt, message_single::Message},
};
use rocketmq_observability::TelemetryRuntimeGuard;
use rocketmq_runtime::{RuntimeConfig, RuntimeOwner};
use tokio::sync::{Semaphore, mpsc};

const VARIETY: usize = 1024;
const PATIENCE: Duration = Duration::from_secs(30);
/// The first word of the payloads that tell that a consumer has its queue.
const FIRST: u64 = u64::MAX;

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string().replace('\n', " ")
}

fn main() {
    // What the crate does runs on the runtime that it wants to own; what measures it, on two workers as ours.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(text)
        .and_then(|runtime| runtime.block_on(serve()));
    if let Err(error) = outcome {
        println!("failed\t{error}");
    }
}

async fn serve() -> Outcome<()> {
    let owner = RuntimeOwner::plan(RuntimeConfig {
        worker_threads: 2,
        thread_name: "rocketmq".to_owned(),
        ..Default::default()
    })
    .map_err(text)?
    .build()
    .map_err(text)?;
    // It would log each refused send.
    let telemetry = TelemetryRuntimeGuard::noop();
    let context = owner.root_context().component("client");
    let runtime =
        ClientRuntime::try_new(context, ClientRuntimeConfig::default(), telemetry.handle()).map_err(text)?;
    let servers = std::env::var("NAMESRV_ADDR").map_err(text)?;
    let mut producer = DefaultMQProducer::builder(Arc::clone(&runtime))
        .producer_group("rust-bench")
        .name_server_addr(servers.clone())
        .send_msg_timeout(30_000)
        .retry_times_when_send_failed(0)
        .retry_times_when_send_async_failed(0)
        .build();
    producer.start().await.map_err(text)?;
    let bench = Bench {
        runtime,
        servers,
        producer,
    };
    println!("ready");
    // Ends with the program that reads the answers.
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(text)?;
        match bench.obey(&line).await {
            Ok(answer) => println!("done\t{answer}"),
            Err(error) => println!("failed\t{line}\t{error}"),
        }
    }
    std::process::exit(0)
}

struct Bench {
    runtime: Arc<ClientRuntime>,
    servers: String,
    producer: DefaultMQProducer,
}

impl Bench {
    async fn obey(&self, line: &str) -> Outcome<String> {
        let words: Vec<&str> = line.split('\t').collect();
        let [command, topic, numbers @ ..] = words.as_slice() else {
            return Err("no command".to_owned());
        };
        let numbers: Vec<u64> = numbers
            .iter()
            .map(|word| word.parse().map_err(text))
            .collect::<Outcome<_>>()?;
        match (*command, numbers.as_slice()) {
            ("single", [count, size, ..]) => {
                let (payloads, meter) = self.begin(topic, *size).await?;
                for number in 1..*count {
                    self.send(topic, payload(&payloads, number)).await?;
                }
                Ok(meter.stop())
            }
            ("window", [count, size, width, ..]) => {
                let (payloads, meter) = self.begin(topic, *size).await?;
                self.window(topic, *count, &payloads, *width).await?;
                Ok(meter.stop())
            }
            ("batch", [count, size, each, ..]) => {
                let (payloads, meter) = self.begin(topic, *size).await?;
                let mut sent = 1;
                while sent < *count {
                    let end = (sent + each).min(*count);
                    let batch = (sent..end).map(|number| message(topic, payload(&payloads, number)));
                    let result = self.producer.send_batch(batch.collect::<Vec<_>>()).await;
                    stored(result.map_err(text)?.send_status)?;
                    sent = end;
                }
                Ok(meter.stop())
            }
            ("consume", [count, ..]) => self.consume(topic, *count).await,
            ("times", [count, gap, warm, ..]) => {
                self.times(topic, *count, Duration::from_micros(*gap), *warm)
                    .await
            }
            _ => Err("no such command".to_owned()),
        }
    }

    /// The first message goes before the clock runs, so that the route is known, as it does in the bench itself.
    async fn begin(&self, topic: &str, size: u64) -> Outcome<(Vec<Vec<u8>>, Meter)> {
        let size = usize::try_from(size).map_err(text)?;
        let payloads: Vec<Vec<u8>> = (0..VARIETY as u64)
            .map(|index| {
                let mut bytes = index.to_le_bytes().to_vec();
                bytes.resize(size, 0xAB);
                bytes
            })
            .collect();
        self.send(topic, payload(&payloads, 0)).await?;
        Ok((payloads, Meter::start()))
    }

    async fn send(&self, topic: &str, payload: &[u8]) -> Outcome<()> {
        let result = self.producer.send(message(topic, payload)).await.map_err(text)?;
        stored(result.ok_or("no result of a send")?.send_status)
    }

    async fn window(&self, topic: &str, count: u64, payloads: &[Vec<u8>], width: u64) -> Outcome<()> {
        let width = u32::try_from(width).map_err(text)?;
        let room = Arc::new(Semaphore::new(width as usize));
        let failure = Arc::new(OnceLock::new());
        for number in 1..count {
            Arc::clone(&room).acquire_owned().await.map_err(text)?.forget();
            let (room, failure) = (Arc::clone(&room), Arc::clone(&failure));
            let answered = move |result: Option<&SendResult>, error: Option<&ClientError>| {
                let outcome = match (result, error) {
                    (Some(result), None) => stored(result.send_status),
                    (_, error) => Err(error.map_or_else(|| "no result of a send".to_owned(), text)),
                };
                if let Err(error) = outcome {
                    let _ = failure.set(error);
                }
                room.add_permits(1);
            };
            let message = message(topic, payload(payloads, number));
            self.producer
                .send_with_callback(message, answered)
                .await
                .map_err(text)?;
        }
        let all = tokio::time::timeout(PATIENCE, room.acquire_many(width)).await;
        drop(all.map_err(|_| "a send was never answered")?.map_err(text)?);
        failure.get().map_or(Ok(()), |error: &String| Err(error.clone()))
    }

    /// Opens a consumer in a group of its own, which begins with the first message.
    async fn open<F>(&self, topic: &str, listener: F) -> Outcome<DefaultMQPushConsumer>
    where
        F: Fn(&[&MessageExt]) + Send + Sync + 'static,
    {
        static GROUPS: AtomicU64 = AtomicU64::new(0);
        let group = GROUPS.fetch_add(1, Ordering::Relaxed);
        let mut config = ClientConfig::default();
        config.set_persist_consumer_offset_interval(1_000);
        let mut consumer = DefaultMQPushConsumer::builder(Arc::clone(&self.runtime))
            .client_config(config)
            .name_server_addr(self.servers.clone())
            .consumer_group(format!("rust-{}-{group}", std::process::id()))
            .consume_from_where(ConsumeFromWhere::ConsumeFromFirstOffset)
            .consume_message_batch_max_size(32)
            .pull_batch_size(32)
            .build();
        consumer.subscribe(topic, "*").await.map_err(text)?;
        consumer.register_message_listener_concurrently(
            move |messages: &[&MessageExt], _: &ConsumeConcurrentlyContext| {
                listener(messages);
                Ok(ConsumeConcurrentlyStatus::ConsumeSuccess)
            },
        );
        consumer.start().await.map_err(text)?;
        Ok(consumer)
    }

    /// From the first message to the last one; positions are stored by a timer meanwhile.
    async fn consume(&self, topic: &str, count: u64) -> Outcome<String> {
        let (got, sum) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let begun = Arc::new(OnceLock::new());
        let (over, mut all) = mpsc::channel(1);
        let listener = {
            let (got, sum, begun) = (Arc::clone(&got), Arc::clone(&sum), Arc::clone(&begun));
            move |messages: &[&MessageExt]| {
                begun.get_or_init(Instant::now);
                let words: u64 = messages.iter().map(|message| first_word(message)).sum();
                sum.fetch_add(words, Ordering::Relaxed);
                let more = messages.len() as u64;
                if got.fetch_add(more, Ordering::Relaxed) + more >= count {
                    let _ = over.try_send(());
                }
            }
        };
        let cpu = processor();
        let mut consumer = self.open(topic, listener).await?;
        let _ = tokio::time::timeout(2 * PATIENCE, all.recv()).await;
        let took = begun.get().map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        let spent = processor() - cpu;
        consumer.shutdown().await;
        let (got, sum) = (got.load(Ordering::Relaxed), sum.load(Ordering::Relaxed));
        if got == count {
            Ok(format!("{took}\t{spent}\t{sum}"))
        } else {
            Err(format!("{got} of {count} came"))
        }
    }

    /// One message each `gap`: the times of its send, and until it is handed over, in microseconds. So many go before
    /// those that count, at the same pace, and must have come.
    async fn times(&self, topic: &str, count: u64, gap: Duration, warm: u64) -> Outcome<String> {
        let zero = Instant::now();
        let delivered = Arc::new(Mutex::new(Vec::new()));
        let (events, mut came) = mpsc::unbounded_channel();
        let listener = {
            let delivered = Arc::clone(&delivered);
            move |messages: &[&MessageExt]| {
                let now = zero.elapsed();
                for message in messages {
                    let word = first_word(message);
                    if word != FIRST && word != 0 {
                        let mut delivered = delivered.lock().unwrap_or_else(|broken| broken.into_inner());
                        delivered.push(micros(now.saturating_sub(Duration::from_nanos(word))));
                    }
                    let _ = events.send(word);
                }
            }
        };
        self.send(topic, &FIRST.to_le_bytes()).await?;
        let mut consumer = self.open(topic, listener).await?;
        wait(&mut came, 1)
            .await
            .map_err(|_| "the consumer has not got its queue")?;
        let mut pace = pace(gap, warm);
        while pace.recv().await.is_some() {
            self.send(topic, &[0; 100]).await?;
        }
        wait(&mut came, warm).await?;
        let mut published = Vec::new();
        let mut pace = self::pace(gap, count);
        while pace.recv().await.is_some() {
            let begun = zero.elapsed();
            let mut payload = [0; 100];
            let nanos = u64::try_from(begun.as_nanos()).map_err(text)?;
            payload[..8].copy_from_slice(&nanos.to_le_bytes());
            self.send(topic, &payload).await?;
            published.push(micros(zero.elapsed().saturating_sub(begun)));
        }
        let all = wait(&mut came, count).await;
        consumer.shutdown().await;
        let mut delivered = std::mem::take(&mut *delivered.lock().map_err(text)?);
        if delivered.len() as u64 != count {
            return Err(format!("{} of {count} came: {all:?}", delivered.len()));
        }
        published.sort_by(f64::total_cmp);
        delivered.sort_by(f64::total_cmp);
        let at = |all: &[f64], thousandths: usize| all[all.len() * thousandths / 1000];
        let sends = (at(&published, 500), at(&published, 990));
        let times = (at(&delivered, 500), at(&delivered, 990), at(&delivered, 999));
        Ok(format!(
            "{}\t{}\t{}\t{}\t{}",
            sends.0, sends.1, times.0, times.1, times.2
        ))
    }
}

/// Ticks so often, at times that a thread sleeps for: a timer of the runtime knows milliseconds only, and begins to count
/// them when the last answer came.
fn pace(gap: Duration, ticks: u64) -> mpsc::UnboundedReceiver<()> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut next = Instant::now();
        for _ in 0..ticks {
            next += gap;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn wait(came: &mut mpsc::UnboundedReceiver<u64>, count: u64) -> Outcome<()> {
    for number in 0..count {
        let next = tokio::time::timeout(PATIENCE, came.recv()).await;
        next.map_err(|_| format!("{number} of {count} messages came"))?;
    }
    Ok(())
}

fn stored(status: SendStatus) -> Outcome<()> {
    match status {
        SendStatus::SendOk => Ok(()),
        other => Err(format!("a send ended with {other:?}")),
    }
}

fn message(topic: &str, payload: &[u8]) -> Message {
    Message::builder()
        .topic(topic)
        .body_slice(payload)
        .build_unchecked()
}

fn payload(payloads: &[Vec<u8>], number: u64) -> &[u8] {
    &payloads[usize::try_from(number % VARIETY as u64).unwrap_or(0)]
}

fn first_word(message: &MessageExt) -> u64 {
    let word = message.get_body().and_then(|body| body.first_chunk().copied());
    word.map_or(u64::MAX / 2, u64::from_le_bytes)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

struct Meter {
    begun: Instant,
    cpu: f64,
}

impl Meter {
    fn start() -> Self {
        Self {
            begun: Instant::now(),
            cpu: processor(),
        }
    }

    fn stop(self) -> String {
        format!(
            "{}\t{}",
            self.begun.elapsed().as_secs_f64(),
            processor() - self.cpu
        )
    }
}

/// The processor time of this process, in seconds.
fn processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
