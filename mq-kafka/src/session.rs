//! What a member does that needs waiting: taking partitions over, giving them back, moving them, watching the topic.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{
    Error, ErrorKind, Lease, Offset, Result, TopicId,
    driver::{Assignment, AssignmentId, Event, Prefetch},
};
use rdkafka::{consumer::Consumer, types::RDKafkaErrorCode as Code};
use tokio::{
    sync::{Semaphore, mpsc::UnboundedReceiver, oneshot, watch},
    task::JoinSet,
};

use crate::{
    client, error,
    ffi::{self, PartitionQueue},
    format::Stored,
    lookup::{self, Found, Wish},
    member::{Job, Member},
    outbox::Part,
    watch::Seen,
};

/// How long storing the mark of a takeover may take before it is tried again.
const MARK_LIMIT: Duration = Duration::from_secs(5);
/// How long giving partitions back waits for the mark that it was done in order.
const LAST_WORD: Duration = Duration::from_secs(2);
/// How long the library may take to move a partition; it needs no answer of a broker for it.
const MOVE_LIMIT: Duration = Duration::from_secs(2);
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often a member that waits for the engine looks whether its session is over.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many partitions a member asks brokers about at once; each question takes a thread.
const LOOKUPS: usize = 16;
/// An epoch is the group's generation, and below it in so many bits how often this member has taken over in it.
const TIMES_BITS: u32 = 16;

/// Does a member's jobs until it leaves: one after the other, but for what brokers are asked about where a partition may be
/// read, which holds up no other partition and no rebalance.
pub(crate) async fn run(member: Arc<Member>, prefetch: Prefetch, mut jobs: UnboundedReceiver<Job>) {
    let mut session = Session {
        member,
        prefetch,
        outage: false,
        taken: (0, 0),
        lookups: JoinSet::new(),
        behind: HashMap::new(),
        turns: Arc::new(Semaphore::new(LOOKUPS)),
    };
    let member = Arc::clone(&session.member);
    let mut seen = member.watch.follow();
    loop {
        tokio::select! {
            biased;
            () = member.link.leave.notified() => return,
            changed = seen.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = seen.borrow_and_update().clone();
                session.saw(now);
            }
            Some(found) = session.lookups.join_next() => session.found(found).await,
            job = jobs.recv() => match job {
                Some(job) => session.work(job).await,
                None => return,
            },
        }
        if member.link.is_leaving() {
            return;
        }
    }
}

/// Passes the wake-ups of the queues on. The library gives them under a lock of its own, where the engine's waker must
/// not be woken.
pub(crate) async fn pass_wakes_on(member: Arc<Member>, mut ended: watch::Receiver<()>) {
    let incoming = Arc::clone(&member.incoming);
    let outbox = Arc::clone(&member.link.outbox);
    drop(member);
    loop {
        tokio::select! {
            () = incoming.notified() => outbox.wake(),
            // Closed when the member has left.
            _ = ended.changed() => return,
        }
    }
}

struct Session {
    member: Arc<Member>,
    prefetch: Prefetch,
    outage: bool,
    /// The last generation in which partitions were taken over, and how often that was.
    taken: (u64, u64),
    /// What brokers are being asked, of one wish for each partition. They end with the session.
    lookups: JoinSet<Found>,
    /// What is wished for the partitions that are being looked up, in order: no wish overtakes another of its partition.
    behind: HashMap<u32, VecDeque<Wish>>,
    /// Bounds how many of them ask at once.
    turns: Arc<Semaphore>,
}

/// Why partitions were not taken over.
enum Refused {
    /// The session ended meanwhile.
    Lost,
    /// The group has a new generation, which the member hears of once it has answered for this one.
    Outdated,
    /// The member leaves, or has ended with an error.
    Over,
}

/// What became of taking partitions over.
enum Takeover {
    Done(Vec<(Part, Assignment)>),
    /// The group has given them to somebody else.
    Lost,
    /// The group has a new generation, in which they may still be this member's.
    Outdated,
}

impl Session {
    fn saw(&mut self, now: Seen) {
        let outbox = &self.member.link.outbox;
        if now.gone {
            outbox.push(Event::TopicGone);
            return;
        }
        match now.trouble {
            Some(error) if !self.outage => {
                self.outage = true;
                outbox.push(Event::Outage(error));
            }
            None if self.outage => {
                self.outage = false;
                outbox.push(Event::Recovered);
            }
            _ => {}
        }
    }

    async fn work(&mut self, job: Job) {
        match job {
            Job::Assign {
                partitions,
                generation,
            } => self.assign(partitions, generation).await,
            Job::Revoke { partitions, lost } => self.revoke(partitions, lost).await,
            Job::Seek {
                id,
                to,
                generation,
                done,
            } => self.wish(Wish::Seek {
                id,
                to,
                generation,
                done,
            }),
            Job::Reset(id) => self.wish(Wish::Reset { id, late: false }),
            Job::Retake(partitions) => self.retake(partitions).await,
        }
    }

    async fn assign(&mut self, partitions: Vec<u32>, generation: i32) {
        let taken = match self.take_over(&partitions, generation).await {
            Ok(taken) => taken,
            Err(Refused::Over) => return,
            Err(Refused::Lost) => Vec::new(),
            Err(Refused::Outdated) => {
                self.ask_to_retake(partitions.clone());
                Vec::new()
            }
        };
        let mine = !taken.is_empty();
        if !mine {
            self.member.keep_unread(&partitions);
        }
        let offsets: Vec<(u32, Offset)> = taken
            .iter()
            .map(|(part, _)| (part.id.partition, part.next))
            .collect();
        self.member.link.outbox.change(|parts, control| {
            let mut assignments = Vec::with_capacity(taken.len());
            for (part, assignment) in taken {
                parts.insert(part.id.partition, part);
                assignments.push(assignment);
            }
            if !assignments.is_empty() {
                control.push_back(Event::Assigned(assignments));
            }
        });
        // The library keeps its own list of what was given, and asks for all of it back: it is told of all of it. What
        // nobody reads must not begin at the end: an answer to where that is, if it is late, makes the library jump there
        // half a second later, wherever it was moved meanwhile.
        let start = move |partition: u32| {
            let own = offsets.iter().find(|(own, _)| *own == partition);
            client::raw_offset(own.map_or(0, |(_, offset)| *offset))
        };
        let topic = self.member.link.topic.clone();
        let answered = self
            .blocking(move |member| {
                let list = client::partition_list(&topic, &partitions, start)
                    .map_err(|code| error::from_code("assignment", code))?;
                member.answer(|consumer| consumer.incremental_assign(&list))
            })
            .await;
        if let Err(error) = answered
            && mine
            && !self.member.link.is_leaving()
        {
            tracing::warn!(topic = %self.member.topic, group = %self.member.group, %error, "partitions could not be assigned");
            self.member.link.outbox.lose_all();
        }
    }

    /// Reads what is stored for partitions and marks them as held, until that works.
    async fn take_over(
        &mut self,
        partitions: &[u32],
        generation: i32,
    ) -> Result<Vec<(Part, Assignment)>, Refused> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let trouble = match self.try_take_over(partitions, generation).await {
                Ok(Takeover::Done(taken)) => return Ok(taken),
                Ok(Takeover::Lost) => return Err(Refused::Lost),
                Ok(Takeover::Outdated) => return Err(Refused::Outdated),
                Err(trouble) => trouble,
            };
            let member = &self.member;
            if member.link.is_leaving() {
                return Err(Refused::Over);
            }
            match trouble.kind() {
                ErrorKind::Protocol
                | ErrorKind::PermissionDenied
                | ErrorKind::Authentication
                | ErrorKind::Tls => {
                    member.link.outbox.end(trouble);
                    return Err(Refused::Over);
                }
                // The watch tells of it.
                ErrorKind::TopicNotFound => {}
                _ => {
                    tracing::debug!(topic = %member.topic, error = %trouble, "taking partitions over is tried again");
                }
            }
            if member
                .consumer()
                .map_or(true, |consumer| consumer.assignment_lost())
            {
                return Err(Refused::Lost);
            }
            let _ = tokio::time::timeout(pause, member.link.leave.notified()).await;
            if member.link.is_leaving() {
                return Err(Refused::Over);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_take_over(&mut self, partitions: &[u32], generation: i32) -> Result<Takeover> {
        let epoch = self.next_epoch(generation);
        let member = &self.member;
        let topic_id = member.watch.id.as_deref();
        let mut stored = member
            .client
            .stored(&member.link.topic, &member.group, partitions, topic_id)
            .await?;
        let new: Vec<u32> = partitions
            .iter()
            .copied()
            .filter(|partition| !stored.contains_key(partition) && !member.start.contains_key(partition))
            .collect();
        if !new.is_empty() {
            // Partitions that were added since the group began.
            let bounds = member.client.bounds(&member.link.topic, new.clone()).await?;
            for (partition, (first, _)) in new.into_iter().zip(bounds) {
                stored.insert(partition, (first, Stored::default()));
            }
        }
        let consumer = member.consumer()?;
        let lease = member.clock.now() + member.lease;
        let mut taken = Vec::with_capacity(partitions.len());
        let mut marks = Vec::with_capacity(partitions.len());
        for partition in partitions.iter().copied() {
            let (position, mut found) = match stored.remove(&partition) {
                Some(found) => found,
                None => (
                    member.start.get(&partition).copied().unwrap_or(0),
                    Stored::default(),
                ),
            };
            let id = AssignmentId { partition, epoch };
            let lease = Lease::new(member.clock.clone(), lease);
            let mut assignment = Assignment::new(id, position)
                .with_acked_above(found.acked_above.clone())
                .with_attempts(found.attempts.clone())
                .with_clean(!found.open)
                .with_lease(lease.clone());
            if let Some(id) = topic_id {
                assignment = assignment.with_topic_id(TopicId::new(id));
                found.topic_id = Some(id.to_owned());
            }
            found.open = true;
            marks.push((partition, position, found.encode(position)));
            let queue = PartitionQueue::open(
                &consumer,
                &member.link.topic,
                client::number(partition),
                &member.incoming,
            )
            .ok_or_else(|| Error::new(ErrorKind::Other, format!("partition {partition} has no queue")))?;
            let part = Part {
                id,
                generation: 0,
                queue,
                lease,
                paused: false,
                moving: false,
                revoking: false,
                released: false,
                next: position,
                position,
                stored: found,
                weight: Part::first_weight(self.prefetch),
            };
            taken.push((part, assignment));
        }
        drop(consumer);
        // Before the first hand-over it must be known that somebody had them, in case this process dies of it.
        for outcome in heard(member.store(&marks)?, MARK_LIMIT).await? {
            match outcome {
                Ok(()) => {}
                Err(code) if error::is_lost(code) => return Ok(Takeover::Lost),
                Err(code) if error::is_outdated(code) => return Ok(Takeover::Outdated),
                Err(code) => return Err(error::from_code("taking partitions over", code)),
            }
        }
        // It may have taken long: the lease stands from now on.
        for (part, _) in &taken {
            part.lease.renew(member.clock.now() + member.lease);
        }
        Ok(Takeover::Done(taken))
    }

    /// Returns an epoch above all that were used for the group's partitions before.
    fn next_epoch(&mut self, generation: i32) -> u64 {
        let generation = u64::try_from(generation).unwrap_or(0);
        let (last, times) = self.taken;
        self.taken = match last == generation {
            true => (generation, times + 1),
            false => (generation, 0),
        };
        (generation << TIMES_BITS) + self.taken.1.min((1 << TIMES_BITS) - 1)
    }

    fn ask_to_retake(&self, partitions: Vec<u32>) {
        // The member is leaving where nobody hears it.
        let _ = self.member.link.do_next(Job::Retake(partitions));
    }

    /// Takes over again what the library holds for this member and nobody reads.
    async fn retake(&mut self, partitions: Vec<u32>) {
        let member = Arc::clone(&self.member);
        let held = match member.held(&partitions) {
            Ok(Some(held)) => held,
            // What the library asks for stands behind this job: then it is looked at again.
            Ok(None) => return self.ask_to_retake(partitions),
            Err(error) => {
                tracing::debug!(topic = %member.topic, %error, "partitions are not taken again");
                return;
            }
        };
        let unread: Vec<u32> = member.link.outbox.change(|parts, _| {
            let unread = held
                .into_iter()
                .filter(|partition| !parts.contains_key(partition));
            unread.collect()
        });
        if unread.is_empty() {
            return;
        }
        let generation = member
            .consumer()
            .map_or(-1, |consumer| ffi::generation(&consumer));
        let mut taken = match self.try_take_over(&unread, generation).await {
            Ok(Takeover::Done(taken)) => taken,
            Ok(Takeover::Lost) => return,
            Ok(Takeover::Outdated) => return self.retake_later(unread).await,
            Err(error) => {
                tracing::debug!(topic = %member.topic, %error, "taking partitions again is tried again");
                return self.retake_later(unread).await;
            }
        };
        for (part, _) in &mut taken {
            // The library reads from somewhere else until it is told.
            part.moving = true;
        }
        let places: Vec<(AssignmentId, Offset)> =
            taken.iter().map(|(part, _)| (part.id, part.next)).collect();
        member.link.outbox.change(|parts, control| {
            let mut assignments = Vec::with_capacity(taken.len());
            for (part, assignment) in taken {
                parts.insert(part.id.partition, part);
                assignments.push(assignment);
            }
            control.push_back(Event::Assigned(assignments));
        });
        for (id, offset) in places {
            if let Err(error) = self.move_to(id, offset, None).await {
                tracing::debug!(topic = %member.topic, partition = id.partition, %error, "reading is begun again later");
                self.wish(Wish::Reset { id, late: true });
            }
        }
    }

    async fn retake_later(&self, partitions: Vec<u32>) {
        let _ = tokio::time::timeout(FIRST_PAUSE, self.member.link.leave.notified()).await;
        self.ask_to_retake(partitions);
    }

    async fn revoke(&mut self, partitions: Vec<u32>, lost: bool) {
        let member = Arc::clone(&self.member);
        let ids = member.link.outbox.change(|parts, control| {
            let mut ids = Vec::new();
            for partition in &partitions {
                if let Some(part) = parts.get_mut(partition) {
                    part.revoking = true;
                    ids.push(part.id);
                }
            }
            if !ids.is_empty() && !lost {
                control.push_back(Event::Revoked(ids.clone()));
            }
            ids
        });
        let in_order = !lost && self.wait_for_release(&ids).await;
        if member.link.is_leaving() {
            return;
        }
        if in_order {
            self.say_last_word(&ids).await;
        }
        member.link.outbox.change(|parts, control| {
            let mut gone = Vec::new();
            for id in &ids {
                // Its queue is destroyed here, before the library stops fetching.
                if let Some(part) = parts.remove(&id.partition) {
                    part.lease.revoke();
                    gone.push(*id);
                }
            }
            if !in_order && !gone.is_empty() {
                control.push_back(Event::Lost(gone));
            }
        });
        let topic = member.link.topic.clone();
        let answered = self
            .blocking(move |member| {
                let list = client::partition_list(&topic, &partitions, |_| rdkafka::Offset::Invalid)
                    .map_err(|code| error::from_code("assignment", code))?;
                member.answer(|consumer| consumer.incremental_unassign(&list))
            })
            .await;
        if let Err(error) = answered
            && !member.link.is_leaving()
        {
            tracing::warn!(topic = %member.topic, group = %member.group, %error, "partitions could not be given back");
        }
    }

    /// Waits until the engine has released everything; `false` where the session ended before.
    async fn wait_for_release(&self, ids: &[AssignmentId]) -> bool {
        let member = &self.member;
        loop {
            let open = ids.iter().any(|id| {
                member
                    .link
                    .outbox
                    .part(*id, |part| !part.released)
                    .unwrap_or(false)
            });
            if !open {
                return true;
            }
            if member.link.is_leaving()
                || member
                    .consumer()
                    .map_or(true, |consumer| consumer.assignment_lost())
            {
                return false;
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, member.released.notified()).await;
        }
    }

    /// Stores that partitions were given back in order. Without it the next owner is more careful than it need be.
    async fn say_last_word(&self, ids: &[AssignmentId]) {
        let member = &self.member;
        let marks: Vec<(u32, Offset, String)> = ids
            .iter()
            .filter_map(|id| {
                member.link.outbox.part(*id, |part| {
                    part.stored.open = false;
                    (id.partition, part.position, part.stored.encode(part.position))
                })
            })
            .collect();
        if marks.is_empty() {
            return;
        }
        if let Ok(receivers) = member.store(&marks)
            && let Err(error) = heard(receivers, LAST_WORD).await
        {
            tracing::debug!(topic = %member.topic, %error, "the mark of an orderly end was not stored");
        }
    }

    /// Has brokers asked about a partition, when what was wished for it before is done.
    fn wish(&mut self, wish: Wish) {
        match self.behind.get_mut(&wish.id().partition) {
            Some(behind) => behind.push_back(wish),
            None => {
                self.behind.insert(wish.id().partition, VecDeque::new());
                self.look_up(wish);
            }
        }
    }

    fn look_up(&mut self, wish: Wish) {
        let (member, turns) = (Arc::clone(&self.member), Arc::clone(&self.turns));
        self.lookups.spawn(lookup::find(member, turns, wish));
    }

    /// Moves a partition to where it was found to go on.
    async fn found(&mut self, found: Result<Found, tokio::task::JoinError>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                // The runtime ends, or the lookup has panicked: its partition would stand still without a word.
                let error =
                    Error::new(ErrorKind::Other, "a lookup ended without an answer").with_source(error);
                self.member.link.outbox.end(error);
                return;
            }
        };
        let id = found.id();
        let moved = match found {
            Found::Seek {
                id,
                to,
                generation,
                done,
            } => {
                let (result, moved) = self.seek(id, to, generation).await;
                // The engine may have stopped waiting.
                let _ = done.send(result);
                moved
            }
            Found::Reset { id, place } => self.reset(id, place).await,
        };
        let Some(behind) = self.behind.get_mut(&id.partition) else {
            return;
        };
        if !moved {
            behind.push_back(Wish::Reset { id, late: true });
        }
        match behind.pop_front() {
            Some(next) => self.look_up(next),
            None => drop(self.behind.remove(&id.partition)),
        }
    }

    /// Returns the result of a seek, and whether the library stands where it is to stand.
    async fn seek(&self, id: AssignmentId, to: Result<Offset>, generation: u64) -> (Result<Offset>, bool) {
        // The partition may have been given back while the brokers were asked.
        let to = to.and_then(|to| match self.member.link.outbox.part(id, |_| ()) {
            Some(()) => Ok(to),
            None => Err(lookup::gone(id)),
        });
        match to {
            Ok(to) => {
                let moved = self.move_to(id, to, Some(generation)).await;
                // Where that failed: back to where it was, should the library have left that.
                let stands = moved.is_ok();
                (moved.map(|()| to), stands)
            }
            Err(error) => (Err(error), true),
        }
    }

    /// Moves the library to where a tenure goes on, unless that was done meanwhile; `false` where it is to be tried again.
    async fn reset(&self, id: AssignmentId, place: Result<Option<(Offset, Offset, Offset)>>) -> bool {
        let stands = self.member.link.outbox.part(id, lookup::waits_at).flatten();
        let moved = match (place, stands) {
            (Err(error), _) => Err(error),
            (Ok(Some((at, first, next))), Some(now)) if at == now => self.reset_to(id, at, first, next).await,
            // It stands elsewhere by now.
            (Ok(Some(_)), Some(_)) => return false,
            _ => return true,
        };
        if let Err(error) = &moved {
            tracing::debug!(partition = id.partition, %error, "finding where to go on is tried again");
        }
        moved.is_ok()
    }

    async fn reset_to(&self, id: AssignmentId, at: Offset, first: Offset, next: Offset) -> Result<()> {
        let member = &self.member;
        let to = at.clamp(first, next.max(first));
        if to > at {
            let event = Event::Trimmed {
                assignment: id,
                from: at,
                to,
            };
            member.link.outbox.change(|parts, control| {
                if let Some(part) = parts.get_mut(&id.partition).filter(|part| part.id == id) {
                    // Told once, also where the move is tried again.
                    part.next = to;
                    control.push_back(event);
                }
            });
        } else if to < at {
            tracing::warn!(
                topic = %member.topic,
                partition = id.partition,
                at,
                next,
                "the broker has lost messages that were read before; going on at its end"
            );
        }
        self.move_to(id, to, None).await
    }

    /// Begins to fetch a partition anew at an offset. Where that fails, nothing is read from where the library may stand:
    /// whoever asked for it has it moved again.
    async fn move_to(&self, id: AssignmentId, offset: Offset, generation: Option<u64>) -> Result<()> {
        let outbox = &self.member.link.outbox;
        let was_moving = outbox.part(id, |part| std::mem::replace(&mut part.moving, true));
        let touched = Arc::new(AtomicBool::new(false));
        let touches = Arc::clone(&touched);
        let topic = self.member.link.topic.clone();
        let moved = self
            .blocking(move |member| {
                let list = client::partition_list(&topic, &[id.partition], |_| client::raw_offset(offset))
                    .map_err(|code| error::from_code("seek", code))?;
                member.reassign(|consumer| {
                    touches.store(true, Ordering::Release);
                    let to = client::raw_offset(offset);
                    let partition = client::number(id.partition);
                    if consumer.seek(&topic, partition, to, MOVE_LIMIT).is_ok() {
                        return Ok(());
                    }
                    // It has not begun to fetch, or stands still after an error: stopped and begun anew.
                    consumer.incremental_unassign(&list)?;
                    consumer.incremental_assign(&list)
                })
            })
            .await;
        outbox.part(id, |part| {
            if moved.is_ok() {
                part.next = offset;
                part.generation = generation.unwrap_or(part.generation);
                part.moving = false;
            } else {
                part.moving = touched.load(Ordering::Acquire) || was_moving == Some(true);
            }
            part.queue.signal().ready.store(true, Ordering::Release);
        });
        outbox.wake();
        moved
    }

    async fn blocking(&self, work: impl FnOnce(&Member) -> Result<()> + Send + 'static) -> Result<()> {
        let member = Arc::clone(&self.member);
        client::blocking(move || work(&member)).await?
    }
}

/// Waits for the results of commits.
pub(crate) async fn heard(
    receivers: Vec<oneshot::Receiver<Result<(), Code>>>,
    limit: Duration,
) -> Result<Vec<Result<(), Code>>> {
    let all = futures_util::future::join_all(receivers);
    match tokio::time::timeout(limit, all).await {
        Ok(results) => Ok(results
            .into_iter()
            .map(|result| result.unwrap_or(Err(Code::AssignmentLost)))
            .collect()),
        Err(_) => Err(Error::timeout("a commit", limit)),
    }
}
