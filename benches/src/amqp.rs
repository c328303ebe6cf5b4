//! The raw RabbitMQ client's way to do each piece of work: lapin, with the same kind of queue, payloads, windows and checks
//! as ours.

#[cfg(feature = "amqp-peers")]
mod peer;
pub mod power;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, PublisherConfirm,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use mq_amqp::AmqpMq;
use mq_api::{Mode, Mq, url::ConnectUrl};
use test_brokers::{Broker, RabbitMq};
use tokio::runtime::Runtime;

use crate::{
    command::Options,
    idle::Idle,
    meter::{Meter, Sample, Times},
    ours::{Ours, STILL, Sending, SteadySends, since, verify},
    payload::{Check, Payloads},
    rounds::Goal,
    side::Work,
    standard::Standard,
};

/// How many messages one ack covers.
const ACK: u64 = 64;
/// How many copies may be without a confirm, where messages go from a stream into another queue.
const COPIED: usize = 256;
/// How many messages the server may send ahead of the acks.
const AHEAD: u16 = 1024;

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The raw client on a server: one connection to send on, one to receive on.
struct Raw {
    runtime: Rc<Runtime>,
    sending: Connection,
    receiving: Connection,
    #[cfg(feature = "amqp-peers")]
    url: String,
    next: Cell<u64>,
    stored: RefCell<HashMap<(u64, usize), String>>,
}

/// Connects both clients and lists the work.
///
/// # Errors
/// Says what could not be reached.
pub fn works(server: RabbitMq, options: &Options) -> Outcome<Vec<Work>> {
    let runtime = Rc::new(crate::core::two_workers());
    let server = Rc::new(server);
    let url = server.url();
    let (mq, raw) = runtime.block_on(async {
        let ours = ConnectUrl::parse(&url).map_err(text)?;
        let mq = AmqpMq::connect(&ours).await.map(Mq::from_driver).map_err(text)?;
        let connect = async || {
            Connection::connect(&url, ConnectionProperties::default())
                .await
                .map_err(text)
        };
        let raw = Raw {
            runtime: Rc::clone(&runtime),
            sending: connect().await?,
            receiving: connect().await?,
            #[cfg(feature = "amqp-peers")]
            url: url.clone(),
            next: Cell::new(0),
            stored: RefCell::default(),
        };
        Ok::<_, String>((mq, Rc::new(raw)))
    })?;
    let mut all = Standard::new(Ours::new(runtime, mq), options);
    let memory = all.memory();
    // So that a run ends in minutes: a confirm takes the server longer than those of the other backends.
    all.many = options.messages(30_000);
    let (many, some, few) = (all.many, all.some, all.few);
    let send = |count: u64, size: usize, window: usize| {
        let raw = Rc::clone(&raw);
        move || raw.produce(count, size, window)
    };
    let read = |count: u64, size: usize| {
        let raw = Rc::clone(&raw);
        move || raw.consume(count, size)
    };
    let times = |count: u64, gap: Duration, figures: fn(Times, Times) -> Sample| {
        let raw = Rc::clone(&raw);
        move || {
            raw.times(count, gap)
                .map(|(published, delivered)| figures(published, delivered))
        }
    };
    let at_least = |ratio: f64| [Goal::AtLeast(ratio)];
    let confirms = |window: usize| format!("lapin, {window} open confirms");
    let acks = "lapin, `multiple` every 64";
    let produce = |sending: Sending, size: usize, window: usize, ratio: Goal| {
        all.produce(sending, size)
            .against(confirms(window), [ratio], send(many, size, window))
    };
    let in_flight = produce(Sending::InFlight(1000), 100, 1000, Goal::AtLeast(0.7));
    let consume = all
        .consume(many, 100, Mode::Partitioned)
        .against(acks, at_least(0.7), read(many, 100));
    #[cfg(feature = "amqp-peers")]
    let in_flight = in_flight.against("ruststream-lapin, 1000 tasks, classic queue", [Goal::Shown], {
        let raw = Rc::clone(&raw);
        move || raw.ruststream_produce(many, 100, 1000)
    });
    #[cfg(feature = "amqp-peers")]
    let consume = consume.against("ruststream-lapin, classic queue", at_least(2.5), {
        let raw = Rc::clone(&raw);
        move || raw.ruststream_consume(many, 100)
    });
    let idle = Idle::new(Rc::clone(all.ours()), 64, move || connections(&server));
    let mut works = vec![
        idle.memory(),
        memory,
        in_flight,
        produce(Sending::InFlight(1000), 1024, 1000, Goal::AtLeast(0.7)),
        produce(Sending::InFlight(64), 100, 64, Goal::Shown),
        produce(Sending::Batches(1000), 100, 1000, Goal::Shown),
        all.produce(Sending::Tasks(1), 100)
            .against("lapin, one by one", at_least(0.95), send(some, 100, 1)),
        consume,
        all.consume(many, 1024, Mode::Partitioned)
            .against(acks, at_least(0.7), read(many, 1024)),
        all.consume(many, 100, Mode::Shared)
            .against("lapin, from the stream through a quorum queue", [Goal::Shown], {
                let raw = Rc::clone(&raw);
                move || raw.share(many, 100)
            })
            .against("lapin, the stream alone", [Goal::Shown], read(many, 100)),
        all.catch_up().against(acks, [Goal::Shown], read(10 * many, 100)),
        all.group_of_four(),
        all.latency().against(
            "lapin",
            [Goal::AtMost(1.4), Goal::AtMost(1.4)],
            times(few, Standard::EACH_MILLISECOND, |_, delivered| {
                Sample::latency(delivered)
            }),
        ),
        all.promise().against(
            "lapin",
            [Goal::AtMost(1.2); 4],
            times(few / 2, Standard::EACH_TWO_MILLISECONDS, Sample::promise),
        ),
    ];
    works.extend(all.growth());
    works.push(idle.idles(2.0));
    Ok(works)
}

/// Counts the connections that ours has: those with a name.
fn connections(server: &RabbitMq) -> Outcome<f64> {
    let listed = server
        .control(&["list_connections", "client_properties"])
        .map_err(text)?;
    let ours = listed.lines().filter(|line| line.contains("\"mq "));
    u32::try_from(ours.count()).map(f64::from).map_err(text)
}

impl Raw {
    fn name(&self) -> String {
        self.next.set(self.next.get() + 1);
        format!("raw-{}", self.next.get())
    }

    /// Declares a queue of a kind; opens the channel that confirms what is sent to it.
    async fn queue(&self, kind: &'static str) -> Outcome<(Channel, String)> {
        let name = self.name();
        let chan = self.sending.create_channel().await.map_err(text)?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        chan.queue_declare(name.as_str().into(), durable, arguments)
            .await
            .map_err(text)?;
        chan.confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(text)?;
        Ok((chan, name))
    }

    /// Deletes a queue and closes the channel.
    async fn remove(&self, chan: &Channel, queue: &str) -> Outcome<()> {
        chan.queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .map_err(text)?;
        chan.close(200, "".into()).await.map_err(text)
    }

    /// Sends with so many confirms open, from one task.
    fn produce(&self, messages: u64, size: usize, window: usize) -> Outcome<Sample> {
        self.runtime.block_on(async {
            let (chan, queue) = self.queue("stream").await?;
            let sample = if window == 1 {
                // By a task of the runtime, as ours: who is woken outside of it costs one thread more.
                let (chan, queue) = (chan.clone(), queue.clone());
                tokio::spawn(async move { fill(&chan, &queue, messages, size, window).await })
                    .await
                    .map_err(text)??
            } else {
                fill(&chan, &queue, messages, size, window).await?
            };
            self.receive(&queue, messages).await?;
            self.remove(&chan, &queue).await?;
            Ok(sample)
        })
    }

    /// Returns a stream that holds so many messages; it is filled once in a run.
    async fn stored(&self, messages: u64, size: usize) -> Outcome<String> {
        if let Some(queue) = self.stored.borrow().get(&(messages, size)) {
            return Ok(queue.clone());
        }
        let (chan, queue) = self.queue("stream").await?;
        fill(&chan, &queue, messages, size, 1000).await?;
        chan.close(200, "".into()).await.map_err(text)?;
        self.stored.borrow_mut().insert((messages, size), queue.clone());
        Ok(queue)
    }

    /// Consumes a stream from its first message on.
    async fn open(&self, queue: &str) -> Outcome<(Channel, Consumer)> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        self.open_with(queue, arguments).await
    }

    async fn open_with(&self, queue: &str, arguments: FieldTable) -> Outcome<(Channel, Consumer)> {
        let chan = self.receiving.create_channel().await.map_err(text)?;
        chan.basic_qos(AHEAD, BasicQosOptions::default())
            .await
            .map_err(text)?;
        let consumer = chan.basic_consume(
            queue.into(),
            "raw".into(),
            BasicConsumeOptions::default(),
            arguments,
        );
        let consumer = consumer.await.map_err(text)?;
        Ok((chan, consumer))
    }

    /// Receives what a stream holds.
    async fn receive(&self, queue: &str, messages: u64) -> Outcome<Sample> {
        let (chan, mut consumer) = self.open(queue).await?;
        let sample = receive_all(&mut consumer, messages).await?;
        chan.close(200, "".into()).await.map_err(text)?;
        Ok(sample)
    }

    fn consume(&self, messages: u64, size: usize) -> Outcome<Sample> {
        self.runtime.block_on(async {
            let queue = self.stored(messages, size).await?;
            self.receive(&queue, messages).await
        })
    }

    /// Copies a stream into a quorum queue and receives from there at the same time, as a shared group of one member does:
    /// the stream is acked where a copy is confirmed. The clock runs from the first message that came through on.
    fn share(&self, messages: u64, size: usize) -> Outcome<Sample> {
        self.runtime.block_on(async {
            let stored = self.stored(messages, size).await?;
            let (sender, work) = self.queue("quorum").await?;
            let (reading, mut stream) = self.open(&stored).await?;
            let (chan, mut consumer) = self.open_with(&work, FieldTable::default()).await?;
            let (copier, to) = (sender.clone(), work.clone());
            let copying = tokio::spawn(async move {
                let mut pending = VecDeque::with_capacity(COPIED);
                for number in 1..=messages {
                    let delivery = next(&mut stream).await?;
                    pending.push_back((publish(&copier, &to, &delivery.data).await?, delivery));
                    while pending.len() >= COPIED || number == messages {
                        let Some((confirm, delivery)) = pending.pop_front() else {
                            break;
                        };
                        confirmed(confirm).await?;
                        if delivery.delivery_tag.is_multiple_of(ACK) {
                            ack(&delivery).await?;
                        }
                    }
                }
                Ok::<_, String>(())
            });
            let sample = receive_all(&mut consumer, messages).await?;
            copying.await.map_err(text)??;
            for done in [chan, reading] {
                done.close(200, "".into()).await.map_err(text)?;
            }
            self.remove(&sender, &work).await?;
            Ok(sample)
        })
    }

    /// Sends one message each `gap`, awaiting its confirm, to a consumer that waits.
    fn times(&self, messages: u64, gap: Duration) -> Outcome<(Times, Times)> {
        self.runtime.block_on(async {
            let (chan, queue) = self.queue("stream").await?;
            let (receiving, mut consumer) = self.open(&queue).await?;
            let zero = Instant::now();
            let (to, sender) = (queue.clone(), chan.clone());
            let sending = tokio::spawn(async move {
                let mut sends = SteadySends::new(messages, gap, zero);
                while let Some(payload) = sends.next().await {
                    confirmed(publish(&sender, &to, &payload).await?).await?;
                }
                Ok::<_, String>(sends.times())
            });
            let mut delivered = Times::default();
            while delivered.count() < messages {
                let delivery = next(&mut consumer).await?;
                delivered.take(since(zero, &delivery.data));
                if delivered.count().is_multiple_of(ACK) {
                    ack(&delivery).await?;
                }
            }
            let published = sending.await.map_err(text)??;
            receiving.close(200, "".into()).await.map_err(text)?;
            self.remove(&chan, &queue).await?;
            Ok((published, delivered))
        })
    }
}

/// Receives so many messages, acks, and checks them. The clock runs from the first message on.
async fn receive_all(consumer: &mut Consumer, messages: u64) -> Outcome<Sample> {
    let mut check = Check::default();
    check.take(&next(consumer).await?.data);
    let meter = Meter::start();
    for count in 2..=messages {
        let delivery = next(consumer).await?;
        check.take(&delivery.data);
        if count.is_multiple_of(ACK) || count == messages {
            ack(&delivery).await?;
        }
    }
    let sample = meter.stop(messages - 1);
    verify(check, messages)?;
    Ok(sample)
}

async fn next(consumer: &mut Consumer) -> Outcome<Delivery> {
    match tokio::time::timeout(STILL, consumer.next()).await {
        Ok(Some(delivery)) => delivery.map_err(text),
        Ok(None) => Err("the consumer ended".to_owned()),
        Err(_) => Err("nothing came".to_owned()),
    }
}

async fn ack(last: &Delivery) -> Outcome<()> {
    last.ack(BasicAckOptions { multiple: true })
        .await
        .map(drop)
        .map_err(text)
}

/// Sends so many messages with so many confirms open, the first one before the clock runs.
async fn fill(chan: &Channel, queue: &str, messages: u64, size: usize, window: usize) -> Outcome<Sample> {
    let payloads = Payloads::new(size);
    confirmed(publish(chan, queue, &payloads.of(0)).await?).await?;
    let meter = Meter::start();
    let mut pending = VecDeque::with_capacity(window);
    for number in 1..messages {
        pending.push_back(publish(chan, queue, &payloads.of(number)).await?);
        if pending.len() == window
            && let Some(oldest) = pending.pop_front()
        {
            confirmed(oldest).await?;
        }
    }
    for confirm in pending {
        confirmed(confirm).await?;
    }
    Ok(meter.stop(messages - 1))
}

/// Sends a message that is to come back where no queue takes it, as ours does.
async fn publish(chan: &Channel, queue: &str, payload: &[u8]) -> Outcome<PublisherConfirm> {
    let mandatory = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    chan.basic_publish(
        "".into(),
        queue.into(),
        mandatory,
        payload,
        BasicProperties::default(),
    )
    .await
    .map_err(text)
}

async fn confirmed(confirm: PublisherConfirm) -> Outcome<()> {
    match confirm.await.map_err(text)? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("not confirmed: {other:?}")),
    }
}
