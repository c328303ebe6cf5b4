//! Sends two messages and receives them: `cargo run -p mq --example quickstart [URL]`, by default in memory.

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use mq::Message;

#[tokio::main]
async fn main() -> mq::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());

    let mq = mq::connect(url).await?;
    mq.create_topic("orders", 4).await?;

    let producer = mq.producer("orders").await?;
    let receipt = producer.produce(Message::new("paid").with_key("user-7")).await?;
    println!("sent `paid` by its key to partition {}", receipt.partition);
    let receipt = producer.produce_to(2, Message::new("shipped")).await?;
    println!("sent `shipped` by number to partition {}", receipt.partition);

    let consumer = mq.consumer("orders", "billing").await?;
    let delivery = consumer.consume().await?;
    println!(
        "received `{}` from partition {}",
        text(&delivery),
        delivery.partition()
    );
    delivery.ack()?;

    let mut channel = consumer.channel(1024)?;
    let delivery = channel.recv().await?;
    println!(
        "received `{}` from partition {}",
        text(&delivery),
        delivery.partition()
    );
    delivery.ack()?;

    mq.close().await?;
    println!("closed: what was acked is stored");
    Ok(())
}

fn text(delivery: &mq::Delivery) -> String {
    String::from_utf8_lossy(delivery.payload()).into_owned()
}
