//! Receives through a bounded channel and shuts down in order: `cargo run -p mq --example channel_shutdown [URL]`.
//!
//! At shutdown the message in hand is finished, what waits in the channel goes back to the group with no attempt counted,
//! and `close` returns when what was acked is stored. The next process goes on exactly there.

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use std::time::Duration;

use mq::{Consumer, Mq, Result};

const TOPIC: &str = "uploads";
const MESSAGES: usize = 60;

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let mq = mq::connect(url).await?;
    mq.create_topic(TOPIC, 1).await?;
    let producer = mq.producer(TOPIC).await?;
    let uploads = (1..=MESSAGES).map(|number| format!("upload {number}"));
    for result in producer.produce_batch(uploads).await {
        result?;
    }

    // A service would wait for `tokio::signal::ctrl_c()`.
    let shutdown = tokio::time::sleep(Duration::from_millis(120));
    let consumer = mq.consumer(TOPIC, "scanner").await?;
    let done = scan_until(shutdown, &consumer).await?;
    consumer.close().await?;
    println!("first run: {done} scanned, closed in order");

    let rest = scan_rest(&mq, MESSAGES - done).await?;
    println!("second run: {rest} scanned, each for the first time");
    assert_eq!(done + rest, MESSAGES);
    mq.delete_topic(TOPIC).await?;
    mq.close().await
}

/// Scans uploads until the shutdown is asked for; returns how many were scanned.
async fn scan_until(shutdown: impl Future<Output = ()>, consumer: &Consumer) -> Result<usize> {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut channel = consumer.channel(16)?;
    let mut done = 0;
    loop {
        let delivery = tokio::select! {
            // `recv` may be dropped at any point: no message is lost.
            delivery = channel.recv() => delivery?,
            () = &mut shutdown => {
                println!("shutdown with {} messages in the channel: they go back", channel.len());
                return Ok(done);
            }
        };
        // The work; a shutdown does not cut it short.
        tokio::time::sleep(Duration::from_millis(5)).await;
        delivery.ack()?;
        done += 1;
    }
}

/// Scans what is left, as the next process would.
async fn scan_rest(mq: &Mq, left: usize) -> Result<usize> {
    let consumer = mq.consumer(TOPIC, "scanner").await?;
    let mut done = 0;
    while done < left {
        for delivery in consumer.consume_batch(16).await? {
            assert_eq!(
                delivery.attempt(),
                1,
                "what sat in the channel was not an attempt"
            );
            delivery.ack()?;
            done += 1;
        }
    }
    consumer.close().await?;
    Ok(done)
}
