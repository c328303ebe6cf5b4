//! A queue of jobs with retries and a dead-letter topic: `cargo run -p mq --example work_queue [URL]`.
//!
//! Three workers share one consumer. A job that fails comes again after a pause, at most three times; one that can never
//! work is rejected at once. Both end in the dead-letter topic of the group, which another group reads at the end.

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use std::time::Duration;

use mq::{Backoff, Consumer, DeadLetter, Delivery, ErrorKind, Result};

const TOPIC: &str = "emails";
const GROUP: &str = "mailer";
const JOBS: [&str; 6] = ["welcome", "flaky", "invoice", "bounces", "garbage", "reminder"];

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let mq = mq::connect(url).await?;
    mq.create_topic(TOPIC, 2).await?;

    let producer = mq.producer(TOPIC).await?;
    for result in producer.produce_batch(JOBS).await {
        result?;
    }
    println!("queued {} jobs", JOBS.len());

    let consumer = mq
        .consumer(TOPIC, GROUP)
        .backoff(Backoff::fixed(Duration::from_millis(50)))
        .max_attempts(3)
        .dead_letter(DeadLetter::default())
        .await?;
    let workers: Vec<_> = (1..=3)
        .map(|number| tokio::spawn(work(number, consumer.clone())))
        .collect();

    loop {
        let status = consumer.status();
        if status.acked + status.dead_lettered >= JOBS.len() as u64 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    consumer.close().await?;
    for worker in workers {
        worker.await.expect("a worker does not panic")?;
    }

    let dead = mq::dead_letter_topic(consumer.topic(), consumer.group());
    println!("dead letters, in topic {dead}:");
    let inspector = mq.consumer(&dead, "inspector").await?;
    for _ in 0..2 {
        let letter = inspector.consume().await?;
        let header = |name| letter.headers().text(name).unwrap_or("?");
        println!(
            "  `{}`: {} after {} attempts, offset {} of partition {} of {}",
            String::from_utf8_lossy(letter.payload()),
            header("mq-reason"),
            header("mq-attempts"),
            header("mq-origin-offset"),
            header("mq-origin-partition"),
            header("mq-origin-topic"),
        );
        letter.ack()?;
    }
    inspector.close().await?;
    mq.delete_topics([TOPIC, dead.as_str()])
        .await
        .into_iter()
        .collect::<Result<()>>()?;
    mq.close().await
}

/// Takes jobs until the consumer is closed.
async fn work(number: u32, consumer: Consumer) -> Result<()> {
    loop {
        match consumer.consume().await {
            Ok(delivery) => handle(number, delivery)?,
            Err(error) if error.kind() == ErrorKind::Closed => return Ok(()),
            // An outage: the next call goes on waiting.
            Err(error) if error.is_retryable() => println!("worker {number}: {error}"),
            Err(error) => return Err(error),
        }
    }
}

fn handle(worker: u32, delivery: Delivery) -> Result<()> {
    let job = String::from_utf8_lossy(delivery.payload()).into_owned();
    let attempt = delivery.attempt();
    match (job.as_str(), attempt) {
        ("garbage", _) => {
            println!("worker {worker}: `{job}` can never be sent, rejected");
            delivery.reject()
        }
        ("bounces", _) | ("flaky", 1) => {
            println!("worker {worker}: `{job}` failed, attempt {attempt}");
            delivery.nack()
        }
        _ => {
            println!("worker {worker}: `{job}` sent, attempt {attempt}");
            delivery.ack()
        }
    }
}
