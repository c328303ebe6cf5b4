use std::{
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::sync::Notify;

use super::{state::EPOCH, *};
use crate::{
    Capabilities, GroupName, Message, Timestamp, TopicDescription, TopicId, TopicName, TopicSpec,
    driver::{
        CommittedPosition, CommittedRequest, FetchRequest, Fetched, ProducerRequest, QueueConsumer, Record,
    },
};

/// How often a condition is looked at; the clock of these tests moves only when nothing else can.
const TICK: Duration = Duration::from_millis(1);

/// A topic whose reader fails and waits as a test says. It is a driver with a reader only.
#[derive(Debug, Default)]
struct Script {
    log: Mutex<Log>,
    grown: Notify,
    fetches: AtomicUsize,
    waiting: AtomicUsize,
    closed: AtomicUsize,
}

#[derive(Debug, Default)]
struct Log {
    id: Option<&'static str>,
    /// First retained offset and the records from offset 0 on.
    partitions: Vec<(Offset, Vec<Record>)>,
    failure: Option<Error>,
}

#[derive(Clone, Debug)]
struct Scripted(Arc<Script>);

impl Scripted {
    fn new(partitions: usize) -> Self {
        let script = Script::default();
        script.log.lock().unwrap().partitions = vec![(0, Vec::new()); partitions];
        Self(Arc::new(script))
    }

    fn driver(&self) -> Arc<dyn driver::Mq> {
        Arc::new(self.clone())
    }

    fn change(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.0.log.lock().unwrap());
        self.0.grown.notify_waiters();
    }

    fn produce(&self, partition: usize, payload: &str) {
        self.change(|log| {
            let records = &mut log.partitions[partition].1;
            let offset = records.len() as u64;
            let message = Message::new(payload.to_owned());
            records.push(Record::new(
                offset,
                Timestamp::from_millis(offset as i64 * 10),
                message,
            ));
        });
    }

    fn fail(&self, error: Option<Error>) {
        self.change(|log| log.failure = error);
    }

    fn fetches(&self) -> usize {
        self.0.fetches.load(Ordering::SeqCst)
    }

    async fn until_all_wait(&self, partitions: usize) {
        while self.0.waiting.load(Ordering::SeqCst) != partitions {
            tokio::time::sleep(TICK).await;
        }
    }

    /// The tasks hold the reader, and the reader holds the script.
    async fn until_no_task_is_left(&self) {
        while Arc::strong_count(&self.0) > 1 {
            tokio::time::sleep(TICK).await;
        }
    }

    fn refusal(&self) -> Result<()> {
        self.0.log.lock().unwrap().failure.clone().map_or(Ok(()), Err)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl driver::Reader for Scripted {
    async fn fetch(&self, request: FetchRequest) -> Result<Fetched> {
        self.0.fetches.fetch_add(1, Ordering::SeqCst);
        let deadline = tokio::time::Instant::now() + request.wait;
        loop {
            let mut grown = pin!(self.0.grown.notified());
            grown.as_mut().enable();
            self.refusal()?;
            let Position::Offset(asked) = request.position else {
                panic!("the adapter asks for offsets, not for {:?}", request.position);
            };
            {
                let log = self.0.log.lock().unwrap();
                let (first, records) = &log.partitions[request.partition as usize];
                let from = asked.max(*first) as usize;
                let found: Vec<_> = records[from..]
                    .iter()
                    .take(request.max_messages)
                    .cloned()
                    .collect();
                if !found.is_empty() {
                    let next = from + found.len();
                    return Ok(Fetched::new(found.into(), next as u64));
                }
            }
            self.0.waiting.fetch_add(1, Ordering::SeqCst);
            let _waiting = Waiting(&self.0.waiting);
            if tokio::time::timeout_at(deadline, grown).await.is_err() {
                return Ok(Fetched::new(Vec::new().into(), asked));
            }
        }
    }

    async fn offset_at(&self, partition: u32, time: Timestamp) -> Result<Offset> {
        let log = self.0.log.lock().unwrap();
        let records = &log.partitions[partition as usize].1;
        Ok(records
            .iter()
            .take_while(|record| record.stored_at < time)
            .count() as u64)
    }

    async fn bounds(&self) -> Result<Vec<(Offset, Offset)>> {
        self.refusal()?;
        let log = self.0.log.lock().unwrap();
        Ok(log
            .partitions
            .iter()
            .map(|(first, records)| (*first, records.len() as u64))
            .collect())
    }

    async fn close(&self) -> Result<()> {
        self.0.closed.fetch_add(1, Ordering::SeqCst);
        Err(Error::new(ErrorKind::Connection, "the script's close"))
    }
}

#[async_trait]
impl driver::Mq for Scripted {
    fn capabilities(&self) -> &Capabilities {
        unreachable!()
    }
    async fn create_topic(&self, _spec: TopicSpec) -> Result<()> {
        unreachable!()
    }
    async fn add_partitions(&self, _topic: TopicName, _partitions: u32) -> Result<()> {
        unreachable!()
    }
    async fn delete_topics(&self, _topics: Vec<TopicName>) -> Vec<Result<()>> {
        unreachable!()
    }
    async fn list_topics(&self) -> Result<Vec<TopicName>> {
        unreachable!()
    }
    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription> {
        let bounds = driver::Reader::bounds(self).await?;
        let id = self.0.log.lock().unwrap().id.map(TopicId::new);
        let describe = |(partition, (first, next))| PartitionDescription::new(partition, first, next);
        Ok(TopicDescription::new(
            topic,
            id,
            (0..).zip(bounds).map(describe).collect(),
        ))
    }
    async fn committed(&self, _request: CommittedRequest) -> Result<Vec<CommittedPosition>> {
        unreachable!()
    }
    async fn producer(&self, _request: ProducerRequest) -> Result<Arc<dyn driver::Producer>> {
        unreachable!()
    }
    async fn consumer(
        &self,
        _: Subscription,
    ) -> Result<(Arc<dyn driver::Consumer>, Box<dyn driver::Events>)> {
        unreachable!()
    }
    async fn queue_consumer(&self, _subscription: Subscription) -> Result<Arc<dyn QueueConsumer>> {
        unreachable!()
    }
    async fn reader(&self, _topic: TopicName) -> Result<Arc<dyn driver::Reader>> {
        Ok(Arc::new(self.clone()))
    }
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

struct Member {
    consumer: Arc<dyn driver::Consumer>,
    events: Box<dyn driver::Events>,
}

impl Member {
    async fn join(script: &Scripted, start: Position) -> Self {
        Self::join_with(script, |subscription| subscription.start = start).await
    }

    async fn join_with(script: &Scripted, change: impl FnOnce(&mut Subscription)) -> Self {
        let mut subscription = subscription();
        change(&mut subscription);
        let (consumer, events) = join(&script.driver(), &subscription).await.unwrap();
        Self { consumer, events }
    }

    async fn event(&mut self) -> Result<Event> {
        poll_fn(|cx| self.events.poll_event(cx)).await
    }

    async fn assigned(&mut self) -> Vec<(u32, Offset)> {
        match self.event().await.unwrap() {
            Event::Assigned(all) => all.iter().map(|one| (one.id.partition, one.position)).collect(),
            other => panic!("{other:?}"),
        }
    }

    async fn batch(&mut self) -> (u64, Vec<String>) {
        match self.event().await.unwrap() {
            Event::Batch(batch) => {
                let text =
                    |record: &Record| String::from_utf8(record.message.payload_or_empty().to_vec()).unwrap();
                (batch.generation, batch.records.iter().map(text).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Polls once.
    async fn nothing_now(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(self.events.poll_event(cx).is_pending())).await
    }
}

fn subscription() -> Subscription {
    Subscription::new(TopicName::new("t").unwrap(), GroupName::new("g").unwrap())
}

fn id(partition: u32) -> AssignmentId {
    AssignmentId {
        partition,
        epoch: EPOCH,
    }
}

#[tokio::test(start_paused = true)]
async fn every_member_sees_every_message_from_its_start() {
    let script = Scripted::new(2);
    for payload in ["a", "b", "c"] {
        script.produce(0, payload);
    }
    script.produce(1, "x");
    for (start, sees) in [
        (Position::Earliest, &["a", "b", "c"][..]),
        (Position::Offset(1), &["b", "c"]),
        (Position::Time(Timestamp::from_millis(15)), &["c"]),
    ] {
        let mut member = Member::join(&script, start).await;
        assert_eq!(member.assigned().await.len(), 2);
        let mut seen = Vec::new();
        while seen.len() < sees.len() {
            let (_, batch) = member.batch().await;
            seen.extend(batch.into_iter().filter(|payload| payload != "x"));
        }
        assert_eq!(seen, sees, "{start:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn latest_leaves_out_nothing_produced_after_the_join() {
    let script = Scripted::new(1);
    script.produce(0, "before");
    let mut member = Member::join(&script, Position::Latest).await;
    script.produce(0, "after");
    assert_eq!(member.assigned().await, [(0, 1)]);
    assert_eq!(member.batch().await, (0, vec!["after".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_start_beyond_the_end_and_a_property_are_refused() {
    let script = Scripted::new(1);
    let mut asked = subscription();
    asked.start = Position::Offset(1);
    let error = join(&script.driver(), &asked).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OffsetOutOfRange);
    let mut asked = subscription();
    asked.properties.push(("speed".to_owned(), "9".to_owned()));
    let error = join(&script.driver(), &asked).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.context().contains("speed"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn prefetch_bounds_each_partition_and_a_full_one_stops_alone() {
    let script = Scripted::new(2);
    for _ in 0..100 {
        script.produce(0, "full");
    }
    let mut member = Member::join_with(&script, |subscription| subscription.prefetch.messages = 10).await;
    member.assigned().await;
    script.until_all_wait(1).await;
    let before = script.fetches();
    script.produce(1, "flows");
    let (mut seen, mut flowed) = (0, 0);
    while seen + flowed < 101 {
        let (_, batch) = member.batch().await;
        assert!(batch.len() <= 10, "{}", batch.len());
        match batch[0].as_str() {
            "full" => seen += batch.len(),
            _ => flowed += batch.len(),
        }
        assert!(flowed == 1 || seen <= 20, "the other partition waited");
    }
    assert_eq!((seen, flowed), (100, 1));
    assert!(before <= 3, "a full partition was fetched {before} times");
}

#[tokio::test(start_paused = true)]
async fn a_seek_drops_what_was_fetched_before_it() {
    let script = Scripted::new(1);
    for payload in ["a", "b", "c"] {
        script.produce(0, payload);
    }
    let mut member = Member::join(&script, Position::Earliest).await;
    member.assigned().await;
    script.until_all_wait(1).await;
    assert_eq!(
        member.consumer.seek(id(0), Position::Offset(1), 1).await.unwrap(),
        1
    );
    assert_eq!(member.batch().await, (1, vec!["b".to_owned(), "c".to_owned()]));
    assert_eq!(member.consumer.seek(id(0), Position::Latest, 2).await.unwrap(), 3);
    script.produce(0, "d");
    assert_eq!(member.batch().await, (2, vec!["d".to_owned()]));
    let error = member
        .consumer
        .seek(id(0), Position::Offset(5), 3)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OffsetOutOfRange);
    let error = member
        .consumer
        .seek(id(1), Position::Earliest, 1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPartition);
}

#[tokio::test(start_paused = true)]
async fn a_paused_partition_hands_over_nothing_until_it_is_resumed() {
    let script = Scripted::new(2);
    let mut member = Member::join(&script, Position::Earliest).await;
    member.assigned().await;
    script.until_all_wait(2).await;
    member.consumer.pause(&[id(0)], true);
    script.produce(0, "held");
    script.produce(1, "free");
    assert_eq!(member.batch().await.1, ["free"]);
    script.until_all_wait(1).await;
    assert!(member.nothing_now().await);
    member.consumer.pause(&[id(0)], false);
    assert_eq!(member.batch().await.1, ["held"]);
    script.until_all_wait(2).await;
}

#[tokio::test(start_paused = true)]
async fn what_retention_removed_is_told_before_what_follows_it() {
    let script = Scripted::new(1);
    for _ in 0..5 {
        script.produce(0, "m");
    }
    let mut member = Member::join_with(&script, |subscription| subscription.prefetch.messages = 1).await;
    member.assigned().await;
    assert_eq!(member.batch().await.1.len(), 1);
    member.consumer.pause(&[id(0)], true);
    script.change(|log| log.partitions[0].0 = 4);
    // One message had been fetched before it was paused, and was there: it comes first.
    member.consumer.pause(&[id(0)], false);
    let mut at = 1;
    loop {
        match member.event().await.unwrap() {
            Event::Batch(batch) => at = batch.next_offset,
            Event::Trimmed { assignment, from, to } => {
                assert_eq!((assignment, from, to), (id(0), at, 4));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(member.batch().await.1.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_retention_did_not_make_is_not_told() {
    let script = Scripted::new(1);
    script.produce(0, "a");
    script.change(|log| log.partitions[0].1[0].offset = 7);
    let mut member = Member::join(&script, Position::Earliest).await;
    member.assigned().await;
    assert_eq!(member.batch().await.1, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_and_ends_by_itself() {
    let script = Scripted::new(2);
    let mut member = Member::join(&script, Position::Earliest).await;
    member.assigned().await;
    script.until_all_wait(2).await;
    script.fail(Some(Error::new(ErrorKind::Connection, "cut")));
    match member.event().await.unwrap() {
        Event::Outage(error) => assert_eq!(error.kind(), ErrorKind::Connection),
        other => panic!("{other:?}"),
    }
    let before = script.fetches();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(member.nothing_now().await);
    let tries = script.fetches() - before;
    assert!(
        (100..400).contains(&tries),
        "{tries} tries of two partitions in a minute"
    );
    script.fail(None);
    script.produce(0, "back");
    let (mut recovered, mut batches) = (0, 0);
    while recovered + batches < 2 {
        match member.event().await.unwrap() {
            Event::Recovered => recovered += 1,
            Event::Batch(_) => batches += 1,
            other => panic!("{other:?}"),
        }
    }
    script.until_all_wait(2).await;
    assert!(member.nothing_now().await);
    assert_eq!((recovered, batches), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_topic_ends_the_member_and_so_does_one_made_again() {
    let gone = Error::new(ErrorKind::TopicNotFound, "gone");
    for (failure, id) in [(Some(gone), None), (None, Some("second life"))] {
        let script = Scripted::new(3);
        let mut member = Member::join(&script, Position::Earliest).await;
        member.assigned().await;
        script.change(|log| (log.failure, log.id) = (failure, id));
        assert!(matches!(member.event().await.unwrap(), Event::TopicGone));
        assert_eq!(member.event().await.unwrap_err().kind(), ErrorKind::Closed);
        drop(member);
        script.until_no_task_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_for_good_ends_the_member_before_what_was_fetched() {
    let script = Scripted::new(1);
    let mut member = Member::join(&script, Position::Earliest).await;
    member.assigned().await;
    script.fail(Some(Error::new(ErrorKind::PermissionDenied, "no")));
    assert_eq!(
        member.event().await.unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
}

#[tokio::test(start_paused = true)]
async fn partitions_added_later_are_read_from_their_oldest_message() {
    let script = Scripted::new(1);
    let mut member = Member::join(&script, Position::Latest).await;
    assert_eq!(member.assigned().await, [(0, 0)]);
    script.change(|log| log.partitions.push((0, Vec::new())));
    script.produce(1, "first there");
    assert_eq!(member.assigned().await, [(1, 0)]);
    assert_eq!(member.batch().await.1, ["first there"]);
}

#[tokio::test(start_paused = true)]
async fn commits_are_answered_and_stored_nowhere() {
    let script = Scripted::new(2);
    let member = Member::join(&script, Position::Earliest).await;
    member.consumer.release(vec![id(1), id(9)]).await.unwrap();
    let stale = AssignmentId {
        partition: 0,
        epoch: 2,
    };
    let commits = [id(0), id(1), stale].map(|id| Commit::new(id, 0)).to_vec();
    let outcomes: Vec<_> = member
        .consumer
        .commit(commits)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        outcomes,
        [CommitOutcome::Stored, CommitOutcome::Lost, CommitOutcome::Lost]
    );
}

#[tokio::test(start_paused = true)]
async fn close_ends_the_tasks_and_every_caller_gets_its_one_result() {
    let script = Scripted::new(2);
    let mut member = Member::join(&script, Position::Earliest).await;
    member.assigned().await;
    script.until_all_wait(2).await;
    let (first, second) = tokio::join!(member.consumer.close(), member.consumer.close());
    let third = member.consumer.close().await;
    for result in [first, second, third] {
        assert_eq!(result.unwrap_err().context(), "the script's close");
    }
    assert_eq!(script.0.closed.load(Ordering::SeqCst), 1);
    assert_eq!(script.0.waiting.load(Ordering::SeqCst), 0);
    assert_eq!(member.event().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn dropped_handles_leave_no_task() {
    let script = Scripted::new(2);
    for events_first in [true, false] {
        let member = Member::join(&script, Position::Earliest).await;
        script.until_all_wait(2).await;
        if events_first {
            drop(member.events);
            script.until_all_wait(0).await;
            drop(member.consumer);
        } else {
            drop(member.consumer);
            script.until_all_wait(0).await;
            drop(member.events);
        }
        script.until_no_task_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_between_threads() {
    const COUNT: usize = 2000;
    let script = Scripted::new(2);
    let mut member = Member::join_with(&script, |subscription| subscription.prefetch.messages = 2).await;
    member.assigned().await;
    let producer = script.clone();
    let produce = tokio::spawn(async move {
        for at in 0..COUNT {
            producer.produce(at % 2, "m");
            if at % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let read = async {
        let mut seen = 0;
        while seen < COUNT {
            seen += member.batch().await.1.len();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.unwrap();
    produce.await.unwrap();
}
