//! What a death of the server, and a power cut, leave of messages that were answered `Ok`.
//!
//! At one moment the server is stopped and killed, and goes on with the disk that it wrote to, or with what a power cut
//! then would have left of it (see [`crate::disk`]).

use std::{collections::HashSet, time::Duration};

use mq_amqp::AmqpMq;
use mq_api::{ErrorKind, Message, Mq, url::ConnectUrl};
use test_brokers::{Broker, RabbitMq, RabbitMqOptions, RabbitMqVersion};

use super::{Outcome, text};
use crate::{
    disk::Disk,
    power::{self, Answers, COLUMNS, Fault, Left, before_the_fault},
};

/// How many tasks send, each awaiting its message, and how long each pauses after it: so much that the system is not
/// made to write by the amount alone.
const TASKS: u64 = 8;
const PAUSE: Duration = Duration::from_millis(20);
/// How long messages are sent before the fault, at least, and how much longer at most: longer than the system keeps what
/// nobody asked it to write, so that it is seen how old the lost may be.
const BEFORE: (Duration, Duration) = (Duration::from_secs(45), Duration::from_secs(15));
const TOPIC: &str = "power";
/// How many messages are read at a time.
const AT_ONCE: usize = 1000;

/// Measures both faults, so many rounds each, and writes the table.
///
/// # Errors
/// Says what could not be done, such as mounting.
pub fn table(rounds: usize) -> Outcome<String> {
    let rows = power::rows("", rounds, round)?;
    Ok(format!("| {COLUMNS}\n|---|---|---|---|\n{rows}"))
}

fn round(fault: Fault) -> Outcome<Left> {
    let disk = Disk::new()?;
    let version = RabbitMqVersion::from_environment().map_err(text)?;
    let server = RabbitMqOptions::new()
        .with_version(version)
        .with_data_in(disk.mounted())
        .start()
        .map_err(text)?;
    let runtime = crate::core::two_workers();
    let answers = Answers::default();
    runtime.block_on(send(&server, &answers))?;
    server.freeze().map_err(text)?;
    let answered = answers.last();
    // Nothing more may come to the server that is started next.
    runtime.shutdown_timeout(Duration::from_secs(5));
    let after = match fault {
        Fault::Kill => None,
        // As the disk is now, before what the system does when the server is gone.
        Fault::PowerCut => Some(disk.image_now()?),
    };
    server.kill().map_err(text)?;
    if let Some(after) = after {
        disk.go_on_with(&after)?;
    }
    server.start().map_err(text)?;
    let stored = crate::core::two_workers().block_on(stored(&server))?;
    Ok(Left::of(&answered, |number| stored.contains(&number)))
}

async fn connect(server: &RabbitMq) -> Outcome<Mq> {
    let url = ConnectUrl::parse(&server.url()).map_err(text)?;
    AmqpMq::connect(&url).await.map(Mq::from_driver).map_err(text)
}

/// Sends for a while, and leaves the senders running.
async fn send(server: &RabbitMq, answers: &Answers) -> Outcome<()> {
    let mq = connect(server).await?;
    mq.create_topic(TOPIC, 1).await.map_err(text)?;
    let producer = mq.producer(TOPIC).await.map_err(text)?;
    for task in 0..TASKS {
        let (mq, producer, answers) = (mq.clone(), producer.clone(), answers.clone());
        tokio::spawn(async move {
            let mut number = task;
            while producer
                .produce(Message::new(number.to_be_bytes().to_vec()))
                .await
                .is_ok()
            {
                answers.note(number);
                number += TASKS;
                tokio::time::sleep(PAUSE).await;
            }
            drop(mq);
        });
    }
    before_the_fault(BEFORE).await;
    Ok(())
}

/// Returns the numbers that the partition holds; none where the topic is gone too.
async fn stored(server: &RabbitMq) -> Outcome<HashSet<u64>> {
    let mq = connect(server).await?;
    let mut found = HashSet::new();
    let reader = match mq.reader(TOPIC).await {
        Ok(reader) => reader,
        Err(error) if error.kind() == ErrorKind::TopicNotFound => return Ok(found),
        Err(error) => return Err(text(error)),
    };
    let bounds = reader.bounds().await.map_err(text)?;
    let mut next = bounds.first().map_or(0, |partition| partition.first_offset);
    let end = bounds.first().map_or(0, |partition| partition.next_offset);
    while next < end {
        let messages = reader.pull(0, next, AT_ONCE).await.map_err(text)?;
        let Some(last) = messages.last() else { break };
        next = last.offset() + 1;
        for message in &messages {
            let number: [u8; 8] = message.payload().try_into().map_err(text)?;
            found.insert(u64::from_be_bytes(number));
        }
    }
    mq.close().await.map_err(text)?;
    Ok(found)
}
