//! Reads the past of a topic without touching any group: `cargo run -p mq --example replay_reader [URL]`.

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use std::time::Duration;

use mq::{Message, Position, ReadMessage, Result, Timestamp};

const TOPIC: &str = "readings";

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let mq = mq::connect(url).await?;
    mq.create_topic(TOPIC, 1).await?;

    let producer = mq.producer(TOPIC).await?;
    for reading in 1..=5 {
        producer
            .produce(Message::new(format!("{reading} degrees")))
            .await?;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let noon = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(50)).await;
    for reading in 6..=10 {
        producer
            .produce(Message::new(format!("{reading} degrees")))
            .await?;
    }

    let consumer = mq.consumer(TOPIC, "display").await?;
    for _ in 0..7 {
        consumer.consume().await?.ack()?;
    }
    consumer.commit().await?;
    println!(
        "the group `display` has acked 7 readings and is {} behind",
        consumer.lag().await?.total()
    );

    let reader = mq.reader(TOPIC).start_at(Position::Earliest).await?;
    let bounds = reader.bounds().await?;
    for partition in &bounds {
        println!(
            "partition {} holds offsets {} up to {}",
            partition.partition, partition.first_offset, partition.next_offset
        );
    }

    println!("all of it, from the oldest on:");
    for _ in 0..10 {
        show(&reader.next().await?);
    }

    let from = reader.offset_at(0, noon).await?;
    let first = bounds.first().map_or(0, |partition| partition.first_offset);
    println!(
        "three from noon on, which is offset {from}, {} above the first:",
        from - first
    );
    for message in reader.pull(0, from, 3).await? {
        show(&message);
    }

    println!("the group is still {} behind", consumer.lag().await?.total());
    reader.close().await?;
    consumer.close().await?;
    mq.delete_topic(TOPIC).await?;
    mq.close().await
}

fn show(message: &ReadMessage) {
    println!(
        "  offset {}: {}",
        message.offset(),
        String::from_utf8_lossy(message.payload())
    );
}
