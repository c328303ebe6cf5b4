//! What brings the messages of one assignment: a stream consumer of its own, ahead of the engine by a bounded run. It
//! is polled by who waits for messages.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use lapin::{Consumer, message::Delivery};
use mq_api::{
    Error, Offset, Result,
    driver::{AssignmentId, Prefetch},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    format,
    link::{Backoff, Chan, Conn, From},
    outbox::Outbox,
    share, stream,
};

/// The most messages that the server sends ahead of their acks.
const MOST_AHEAD: usize = 512;
const LEAST_AHEAD: usize = 4;
/// The most messages of one batch.
const MOST_AT_ONCE: usize = 256;
/// How large a message is taken to be before one was seen, by what this partition may take.
const FIRST_GUESS: usize = 16 * 1024;
/// How long the server may send nothing before it is asked anew, at first and at most.
///
/// A server that removes the file which it reads for a consumer may take its end for the end of the stream, and says
/// nothing more until something is sent to the stream. Asked anew, it begins at the file that has the offset.
const QUIET: Duration = Duration::from_secs(8);
const MOST_QUIET: Duration = Duration::from_secs(600);

/// Steers the fetching of one assignment.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    wanted: Mutex<Wanted>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    paused: bool,
    seek: Option<(Offset, u64)>,
}

impl Flow {
    /// Says that something has changed: there is room again.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.change(|wanted| wanted.paused = paused);
    }

    /// Goes on elsewhere; what is read from there on carries the generation.
    pub(crate) fn seek(&self, to: Offset, generation: u64) {
        self.change(|wanted| wanted.seek = Some((to, generation)));
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn take_seek(&self) -> (bool, Option<(Offset, u64)>) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        (wanted.paused, wanted.seek.take())
    }
}

/// How long nothing has come. What comes costs it a look at the clock, and its timer goes on.
struct Quiet {
    since: Instant,
    limit: Duration,
}

impl Quiet {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            limit: QUIET,
        }
    }

    fn until(&self) -> Instant {
        self.since + self.limit
    }

    /// Tells whether it has lasted for too long; the next one may last twice as long then.
    fn is_over(&mut self) -> bool {
        let over = Instant::now() >= self.until();
        if over {
            self.since = Instant::now();
            self.limit = (self.limit * 2).min(MOST_QUIET);
        }
        over
    }
}

/// What one look has brought.
enum Came {
    /// All that was there.
    Few,
    /// A batch, and there may be more.
    Many,
    /// Nothing more can be read.
    End,
}

/// Lets who polls take what has come before there is more.
async fn let_take() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Fetches for one assignment.
pub(crate) struct Fetching {
    pub(crate) conn: Conn,
    pub(crate) queue: String,
    pub(crate) id: AssignmentId,
    pub(crate) next: Offset,
    pub(crate) prefetch: Prefetch,
    pub(crate) flow: Arc<Flow>,
    pub(crate) outbox: Arc<Outbox>,
}

struct Source {
    // Before the channel, which closes when both are gone.
    consumer: Consumer,
    chan: Chan,
    ahead: usize,
    unacked: usize,
}

impl Fetching {
    /// Runs until it is dropped, or what is stored cannot be read.
    pub(crate) async fn run(mut self) {
        let mut generation = 0;
        let mut guess = None;
        let mut source: Option<Source> = None;
        let mut backoff = Backoff::new();
        let mut quiet = Quiet::new();
        let mut look = pin!(sleep_until(quiet.until()));
        loop {
            let (paused, seek) = self.flow.take_seek();
            if let Some((to, new)) = seek {
                (self.next, generation) = (to, new);
                source = None;
            }
            if paused || !self.outbox.has_room(self.id) {
                self.flow.changed.notified().await;
                quiet = Quiet::new();
                continue;
            }
            let reading = match &mut source {
                Some(reading) => reading,
                None => match self.open(guess).await {
                    Ok(opened) => source.insert(opened),
                    Err(error) => {
                        self.wait(&mut backoff, &error).await;
                        continue;
                    }
                },
            };
            let came = tokio::select! {
                biased;
                () = self.flow.changed.notified() => continue,
                next = reading.consumer.next() => next,
                () = look.as_mut() => {
                    if quiet.is_over() {
                        source = None;
                    }
                    look.as_mut().reset(quiet.until());
                    continue;
                }
            };
            quiet = Quiet::new();
            let taken = match came {
                Some(Ok(first)) => {
                    backoff.reset();
                    self.take(reading, first, generation, &mut guess)
                }
                Some(Err(error)) => Err(reading.chan.map(&error)),
                None => Err(stream::cancelled()),
            };
            match taken {
                Ok(Came::End) => return,
                Ok(_) if self.is_unfit(reading, guess) => source = None,
                Ok(Came::Few) => {}
                Ok(Came::Many) => let_take().await,
                Err(error) => {
                    source = None;
                    self.wait(&mut backoff, &error).await;
                }
            }
        }
    }

    /// The session tells of the outage and ends this; until then it may come back.
    async fn wait(&self, backoff: &mut Backoff, error: &Error) {
        tracing::debug!(%error, partition = self.id.partition, "fetching was interrupted");
        tokio::time::sleep(backoff.pause().max(Duration::from_millis(20))).await;
    }

    /// Says how many messages the server may send ahead, where they are about as large as the last ones.
    fn ahead(&self, guess: Option<usize>) -> usize {
        let most = self.prefetch.messages.clamp(LEAST_AHEAD, MOST_AHEAD);
        let mine = self.prefetch.bytes / guess.unwrap_or(FIRST_GUESS).max(1);
        let share = self.conn.shares().ahead(guess.unwrap_or(share::FIRST_GUESS));
        mine.clamp(LEAST_AHEAD, most).min(share)
    }

    /// Messages have become so large, or the partitions of the connection so many, that what is sent ahead breaks the
    /// bounds; or so small or so few that it could be much more. To begin anew costs what some messages cost.
    fn is_unfit(&self, source: &Source, guess: Option<usize>) -> bool {
        let Some(size) = guess else { return false };
        let too_large = source.ahead > LEAST_AHEAD
            && source.ahead.saturating_mul(size) > self.prefetch.bytes.saturating_mul(4);
        too_large
            || source.ahead > self.conn.shares().ahead(size).saturating_mul(2)
            || source.ahead.saturating_mul(8) <= self.ahead(guess)
    }

    async fn open(&self, guess: Option<usize>) -> Result<Source> {
        let ahead = self.ahead(guess);
        let chan = self.conn.channel().await?;
        chan.prefetch(u16::try_from(ahead).unwrap_or(u16::MAX)).await?;
        let consumer = chan
            .consume_stream(&self.queue, "fetch", From::At(self.next))
            .await?;
        Ok(Source {
            consumer,
            chan,
            ahead,
            unacked: 0,
        })
    }

    /// Hands on what has come.
    fn take(
        &mut self,
        source: &mut Source,
        first: Delivery,
        generation: u64,
        guess: &mut Option<usize>,
    ) -> Result<Came> {
        let mut records = Vec::new();
        let (mut began, mut bytes, mut count) = (None, 0, 0);
        let mut broken = None;
        let mut delivery = Some(first);
        let mut last = None;
        let mut came = Came::Few;
        while let Some(mut one) = delivery.take() {
            let offset = format::offset_of(&one)?;
            let body = std::mem::take(&mut one.data);
            count += 1;
            source.unacked += 1;
            if offset >= self.next {
                began.get_or_insert(offset);
                bytes += body.len() + 256;
                self.next = offset + 1;
                match format::decode(offset, &one.properties, body) {
                    Ok(record) => records.extend(record),
                    Err(error) => {
                        self.next = offset;
                        broken = Some(error);
                        break;
                    }
                }
            }
            last = Some(one.delivery_tag);
            if count >= MOST_AT_ONCE || bytes >= self.prefetch.bytes {
                came = Came::Many;
                break;
            }
            match source.consumer.next().now_or_never() {
                Some(Some(Ok(next))) => delivery = Some(next),
                Some(Some(Err(error))) => broken = Some(source.chan.map(&error)),
                Some(None) => broken = Some(stream::cancelled()),
                None => {}
            }
        }
        if let Some(began) = began {
            self.outbox
                .records(self.id, generation, began, records, self.next);
            let before = guess.unwrap_or(0);
            *guess = Some((bytes / count.max(1)).max(before / 2));
        }
        match broken {
            Some(error) if error.kind() == mq_api::ErrorKind::Protocol => {
                self.outbox.fail(error);
                return Ok(Came::End);
            }
            Some(error) => return Err(error),
            None => {}
        }
        if source.unacked * 4 >= source.ahead
            && let Some(last) = last
        {
            source.unacked = 0;
            source.chan.ack(last, true)?;
        }
        Ok(came)
    }
}
