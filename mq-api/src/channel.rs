//! A bounded channel of deliveries.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::task::coop;

use crate::{Consumer, Delivery, Result, engine::Item, mq::BoxFuture};

/// Receives the deliveries of a consumer through a bounded buffer of its own.
///
/// It takes up to its capacity out of the consumer at a time and hands them over one by one. A message inside counts
/// as handed over only when it is received: what is inside when the channel is dropped goes back in order, with no
/// attempt counted and no back-off. What another member has taken over meanwhile is left out.
///
/// As a `Stream` it ends after an error that ends the consumer, and goes on after a retryable one.
///
/// In shared mode the backend counts attempts when it gives a message out, so the channel keeps none ahead.
///
/// ```
/// # use mq_api::{Message, Mq};
/// # use mq_memory::MemoryMq;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> mq_api::Result<()> {
/// # let mq = Mq::from_driver(MemoryMq::new());
/// # mq.create_topic("orders", 1).await?;
/// # let producer = mq.producer("orders").await?;
/// # producer.produce("a").await?;
/// # producer.produce("b").await?;
/// # let consumer = mq.consumer("orders", "billing").await?;
/// let mut channel = consumer.channel(16)?;
/// for expected in [b"a", b"b"] {
///     let delivery = channel.recv().await?;
///     assert_eq!(delivery.payload(), expected);
///     delivery.ack()?;
/// }
/// # Ok(()) }
/// ```
pub struct Channel {
    consumer: Consumer,
    capacity: usize,
    buffer: VecDeque<Item>,
    next: Option<BoxFuture<'static, Fill>>,
    ended: bool,
}

/// What filling the buffer has brought; the guard gives the messages back if nobody takes them.
enum Fill {
    Items(Result<Reserved>),
    Delivery(Result<Delivery>),
}

struct Reserved {
    consumer: Consumer,
    items: VecDeque<Item>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.items.is_empty() {
            self.consumer.unreserve(self.items.drain(..));
        }
    }
}

impl Channel {
    pub(crate) fn new(consumer: Consumer, capacity: usize) -> Self {
        Self {
            consumer,
            capacity,
            buffer: VecDeque::new(),
            next: None,
            ended: false,
        }
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// As [`Consumer::consume`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("a").await?;
    /// # producer.produce("b").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let mut channel = consumer.channel(16)?;
    /// channel.recv().await?.ack()?;
    /// drop(channel); // what is still inside goes back
    /// assert_eq!(consumer.consume().await?.attempt(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn recv(&mut self) -> Result<Delivery> {
        coop::consume_budget().await;
        loop {
            while let Some(item) = self.buffer.pop_front() {
                if let Some(delivery) = self.consumer.hand(item)? {
                    return Ok(delivery);
                }
            }
            if self.consumer.is_queue() {
                return self.consumer.consume().await;
            }
            // A stream that was polled before may have a fill under way; what it took goes back first.
            self.next = None;
            let mut reserved = Reserved {
                consumer: self.consumer.clone(),
                items: VecDeque::new(),
            };
            self.consumer.reserve(self.capacity, &mut reserved.items).await?;
            self.buffer = std::mem::take(&mut reserved.items);
        }
    }

    /// Counts the messages inside.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let channel = consumer.channel(16)?;
    /// assert_eq!(channel.len(), 0); // nothing is taken ahead of the first `recv`
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Tells whether none is inside.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let producer = mq.producer("orders").await?;
    /// # producer.produce("paid").await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let mut channel = consumer.channel(16)?;
    /// channel.recv().await?.ack()?; // the only message
    /// assert!(channel.is_empty());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Returns the most messages that can be inside.
    ///
    /// ```
    /// # use mq_api::{Message, Mq};
    /// # use mq_memory::MemoryMq;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mq_api::Result<()> {
    /// # let mq = Mq::from_driver(MemoryMq::new());
    /// # mq.create_topic("orders", 1).await?;
    /// # let consumer = mq.consumer("orders", "billing").await?;
    /// let channel = consumer.channel(16)?;
    /// assert_eq!((channel.len(), channel.capacity()), (0, 16));
    /// assert!(channel.is_empty());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Stream for Channel {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        // A loop over a long backlog must let others run, as every call of Tokio's own does.
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            while let Some(item) = this.buffer.pop_front() {
                match this.consumer.hand(item).transpose() {
                    None => {}
                    Some(result) => {
                        budget.made_progress();
                        return this.emit(result);
                    }
                }
            }
            let (consumer, capacity) = (this.consumer.clone(), this.capacity);
            let next = this
                .next
                .get_or_insert_with(|| Box::pin(fill(consumer, capacity)));
            match next.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(fill) => {
                    this.next = None;
                    budget.made_progress();
                    match fill {
                        Fill::Delivery(result) => return this.emit(result),
                        Fill::Items(Ok(mut reserved)) => this.buffer = std::mem::take(&mut reserved.items),
                        Fill::Items(Err(error)) => return this.emit(Err(error)),
                    }
                }
            }
        }
    }
}

impl Channel {
    fn emit(&mut self, result: Result<Delivery>) -> Poll<Option<Result<Delivery>>> {
        self.ended = result.as_ref().is_err_and(|error| !error.is_retryable());
        Poll::Ready(Some(result))
    }
}

async fn fill(consumer: Consumer, capacity: usize) -> Fill {
    if consumer.is_queue() {
        return Fill::Delivery(consumer.consume().await);
    }
    let mut reserved = Reserved {
        consumer: consumer.clone(),
        items: VecDeque::new(),
    };
    Fill::Items(
        consumer
            .reserve(capacity, &mut reserved.items)
            .await
            .map(|()| reserved),
    )
}

impl Drop for Channel {
    fn drop(&mut self) {
        if !self.buffer.is_empty() {
            let items = std::mem::take(&mut self.buffer);
            self.consumer.unreserve(items.into_iter());
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("consumer", &self.consumer)
            .field("len", &self.buffer.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
