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
    share::{self, Loan},
    stream,
};

/// The most messages that the server sends ahead of their acks.
const MOST_AHEAD: usize = 512;
const LEAST_AHEAD: usize = 4;
/// The most messages of one batch.
const MOST_AT_ONCE: usize = 256;
/// How often as much as is sent ahead must have come within [`FAST`] for a partition to be behind; it no longer is where
/// that takes longer than [`SLOW`].
const ROUNDS: usize = 8;
const FAST: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(30);
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
    /// The part of it that is lent.
    loan: Loan,
    unacked: usize,
    pace: Pace,
}

/// How fast messages come.
struct Pace {
    since: Instant,
    came: usize,
    /// Whether the partition is behind, where that was found and not looked at yet.
    told: Option<bool>,
}

impl Pace {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            came: 0,
            told: None,
        }
    }

    /// Counts what came, and finds from time to time whether the partition is behind.
    fn count(&mut self, came: usize, ahead: usize, now: Instant) {
        self.came += came;
        let took = now.saturating_duration_since(self.since);
        let enough = self.came >= ahead.saturating_mul(ROUNDS);
        if enough || took >= SLOW {
            let told = (!enough || took <= FAST).then_some(enough);
            *self = Self {
                since: now,
                came: 0,
                told,
            };
        }
    }
}

impl Fetching {
    /// Runs until it is dropped, or what is stored cannot be read.
    pub(crate) async fn run(mut self) {
        let mut generation = 0;
        let mut guess = None;
        // Whether more than an even share is asked for.
        let mut behind = false;
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
                None => match self.open(guess, behind).await {
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
                        (source, behind) = (None, false);
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
                Ok(came) => {
                    if let Some(now) = self.has_other_pace(reading, guess) {
                        (source, behind) = (None, now);
                    }
                    if matches!(came, Came::Many) {
                        let_take().await;
                    }
                }
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

    /// Says how many messages the server may send ahead, where they are about as large as the last ones: this partition's
    /// share, and how many more there could be.
    fn ahead(&self, guess: Option<usize>) -> (usize, usize) {
        let most = self.prefetch.messages.clamp(LEAST_AHEAD, MOST_AHEAD);
        let mine = self.prefetch.bytes / guess.unwrap_or(FIRST_GUESS).max(1);
        let mine = mine.clamp(LEAST_AHEAD, most);
        let share = self.conn.shares().ahead(guess.unwrap_or(share::FIRST_GUESS));
        (mine.min(share), mine.saturating_sub(share))
    }

    /// Tells whether the partition turned out to be behind, or no longer to be, and what is sent ahead should be another
    /// amount for that.
    fn has_other_pace(&self, source: &mut Source, guess: Option<usize>) -> Option<bool> {
        let behind = source.pace.told.take()?;
        if !behind {
            return (source.loan.messages() > 0).then_some(false);
        }
        let (share, more) = self.ahead(guess);
        let size = guess.unwrap_or(share::FIRST_GUESS);
        let lendable = self.conn.shares().lendable(size, &source.loan);
        (share + more.min(lendable) >= source.ahead * 2).then_some(true)
    }

    /// Messages have become so large, or the partitions of the connection so many, that what is sent ahead breaks the
    /// bounds; or so small or so few that it could be much more. To begin anew costs what some messages cost.
    fn is_unfit(&self, source: &Source, guess: Option<usize>) -> bool {
        let Some(size) = guess else { return false };
        let too_large = source.ahead > LEAST_AHEAD
            && source.ahead.saturating_mul(size) > self.prefetch.bytes.saturating_mul(4);
        let share = source.ahead - source.loan.messages();
        too_large
            || share > self.conn.shares().ahead(size).saturating_mul(2)
            || source.loan.is_outgrown_by(size)
            || source.ahead.saturating_mul(8) <= self.ahead(guess).0
    }

    async fn open(&self, guess: Option<usize>, behind: bool) -> Result<Source> {
        let (share, more) = self.ahead(guess);
        let more = if behind { more } else { 0 };
        let loan = self.conn.shares().lend(more, guess.unwrap_or(share::FIRST_GUESS));
        let ahead = share + loan.messages();
        let chan = self.conn.channel().await?;
        chan.prefetch(u16::try_from(ahead).unwrap_or(u16::MAX)).await?;
        let consumer = chan
            .consume_stream(&self.queue, "fetch", From::At(self.next))
            .await?;
        Ok(Source {
            consumer,
            chan,
            ahead,
            loan,
            unacked: 0,
            pace: Pace::new(),
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
        source.pace.count(count, source.ahead, Instant::now());
        if source.unacked * 4 >= source.ahead
            && let Some(last) = last
        {
            source.unacked = 0;
            source.chan.ack(last, true)?;
        }
        Ok(came)
    }
}
