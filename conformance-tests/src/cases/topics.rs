//! Topics: creation, names, deletion, growth, retention.

mod retention;

use std::{collections::BTreeSet, time::Instant};

use mq_api::{ErrorKind, Message, Mq};

use self::retention::retention_removes_the_oldest;
use super::{Case, case};
use crate::{
    capability::Capability,
    context::{Context, Measured},
    failure::{CaseResult, Failure, ensure, fail, note},
    flow::{each_once, numbered, refused, send, send_to, take_acked, take_until},
};

/// The cases of this theme.
pub(crate) const CASES: &[Case] = &[
    case!("T1", Topics, created_topic_has_exactly_its_partitions),
    case!("T2", Topics, creating_again_changes_nothing),
    case!("T3", Topics, names_hold_to_the_portable_rule),
    case!("T4", Topics, partition_counts_out_of_range_are_refused),
    case!("T5", Topics, deleted_topic_is_gone_and_starts_over),
    case!("T6", Topics, similar_names_stay_apart),
    case!("T7", Topics, topics_and_groups_with_dots_never_meet),
    case!("T8", Topics, list_holds_what_was_created_and_no_internal_name).needs(&[Capability::ListTopics]),
    case!("T9", Topics, concurrent_creates_make_one_topic),
    case!("T10", Topics, added_partitions_are_used_by_those_that_run).needs(&[Capability::AddPartitions]),
    case!("T11", Topics, retention_removes_the_oldest),
];

/// G17 topics: a topic has the partitions that were asked for, numbered from 0.
async fn created_topic_has_exactly_its_partitions(cx: Context) -> CaseResult {
    for partitions in [1, 3, 16] {
        let topic = cx.topic("made", partitions).await?;
        let described = cx.mq().await?.describe_topic(&topic).await?;
        let numbers: Vec<u32> = described.partitions.iter().map(|p| p.partition).collect();
        ensure!(
            numbers == (0..partitions).collect::<Vec<_>>(),
            "a topic of {partitions} partitions has the partitions {numbers:?}"
        );
        ensure!(
            described.name.as_str() == topic,
            "topic {topic} describes itself as {}",
            described.name
        );
        let used: Vec<_> = described
            .partitions
            .iter()
            .filter(|p| p.first_offset != p.next_offset)
            .collect();
        ensure!(used.is_empty(), "a new topic is not empty: {used:?}");
    }
    Ok(())
}

/// G17 topics: creating is idempotent, and never changes a topic that exists.
async fn creating_again_changes_nothing(cx: Context) -> CaseResult {
    let topic = cx.topic("again", 3).await?;
    let mq = cx.mq().await?;
    let payloads = numbered("kept", 9);
    let producer = mq.producer(&topic).await?;
    for (at, payload) in payloads.iter().enumerate() {
        producer.produce_to(at as u32 % 3, payload.clone()).await?;
    }
    mq.create_topic(&topic, 3)
        .await
        .map_err(|error| Failure::from(error).during("create again with 3 partitions"))?;
    for other in [1, 2, 4] {
        let error = refused(
            &format!("create a topic of 3 partitions again with {other}"),
            mq.create_topic(&topic, other).await,
            ErrorKind::TopicExists,
        )?;
        ensure!(!error.is_retryable(), "{error} says that it is retryable");
    }
    let has = mq.describe_topic(&topic).await?.partitions.len();
    ensure!(
        has == 3,
        "the topic has {has} partitions after it was created again, not 3"
    );
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    let taken = take_acked(&cx, &consumer, payloads.len()).await?;
    each_once(
        "messages after creating again",
        taken.iter().map(|t| &t.payload),
        &payloads,
    )
}

/// Names that break the portable rule.
fn illegal_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "",
        "1abc",
        "-a",
        ".",
        "..",
        ".a",
        "a.",
        "a-",
        "a_",
        "_a",
        "a/b",
        "a b",
        " a",
        "a\0b",
        "a\nb",
        "a%b",
        "a*b",
        "a#",
        "a:b",
        "a,b",
        "a{b}",
        "a\\b",
        "été",
        "日本",
        "a\u{2028}b",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    names.push("a".repeat(65));
    names.push("a".repeat(300));
    names
}

/// G17 names: one rule for all backends; what breaks it is refused before any I/O, and what holds to it works.
async fn names_hold_to_the_portable_rule(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let good = cx.topic("good", 1).await?;
    for name in illegal_names() {
        let error = refused(
            &format!("create topic {name:?}"),
            mq.create_topic(&name, 1).await,
            ErrorKind::InvalidTopic,
        )?;
        ensure!(
            error.context().contains(&format!("{name:?}")),
            "the error does not name {name:?}: {error}"
        );
        ensure!(
            error.context().len() > format!("{name:?}").len() + 12,
            "the error does not say which rule {name:?} breaks: {error}"
        );
        match mq.describe_topic(&name).await {
            Err(error) if matches!(error.kind(), ErrorKind::InvalidTopic | ErrorKind::TopicNotFound) => {}
            other => fail!("describe of {name:?}, which was refused, gave {other:?}"),
        }
        let error = refused(
            &format!("join group {name:?}"),
            mq.consumer(&good, &name).await,
            ErrorKind::InvalidGroup,
        )?;
        ensure!(
            error.context().contains(&format!("{name:?}")),
            "the error does not name {name:?}: {error}"
        );
    }
    if cx.can(Capability::ListTopics) {
        let illegal: BTreeSet<String> = illegal_names().into_iter().collect();
        let listed = mq.list_topics().await?;
        if let Some(name) = listed.iter().find(|name| illegal.contains(name.as_str())) {
            fail!("{name:?} was refused and is listed");
        }
    }
    let token = cx.name("n").replace('-', "");
    let longest = format!("{token}{}", "z".repeat(64 - token.len()));
    // No two differ in `.` and `_` alone: what becomes of such names is another case, and some backend refuses the second.
    for name in [
        format!("{token}.b"),
        format!("{token}_c"),
        format!("{token}-9"),
        format!("{token}..b"),
        format!("{}B", token.to_ascii_uppercase()),
        longest,
    ] {
        cx.delete_later(&name);
        mq.create_topic(&name, 1)
            .await
            .map_err(|error| Failure::from(error).during(format!("legal topic name {name:?}")))?;
        let consumer = mq
            .consumer(&name, &name)
            .await
            .map_err(|error| Failure::from(error).during(format!("legal group name {name:?}")))?;
        let producer = mq.producer(&name).await?;
        producer.produce("through").await?;
        let taken = take_acked(&cx, &consumer, 1).await?;
        each_once(
            "messages of a topic with a legal name",
            taken.iter().map(|t| &t.payload),
            ["through"],
        )?;
        consumer.close().await?;
    }
    Ok(())
}

/// G10 bad input: a partition count is at least 1 and at most the backend's limit.
async fn partition_counts_out_of_range_are_refused(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let most = cx.capabilities().max_partitions;
    let mut counts = vec![0];
    counts.extend(most.checked_add(1));
    counts.push(u32::MAX);
    for partitions in counts {
        if partitions != 0 && partitions <= most {
            continue;
        }
        let name = cx.name("count");
        let error = refused(
            &format!("create a topic of {partitions} partitions where the limit is {most}"),
            mq.create_topic(&name, partitions).await,
            ErrorKind::InvalidPartition,
        )?;
        ensure!(
            error.context().contains(&partitions.to_string()),
            "the error does not name the count {partitions}: {error}"
        );
        refused(
            "describe of a topic that was refused",
            mq.describe_topic(&name).await,
            ErrorKind::TopicNotFound,
        )?;
    }
    Ok(())
}

/// G17 deletion: unknown is `Ok`; a deleted topic is gone for everybody within the declared time; made again it
/// is empty, and a group's old positions are not used where the backend tells topics apart by an id.
async fn deleted_topic_is_gone_and_starts_over(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    mq.delete_topic(cx.name("never-made"))
        .await
        .map_err(|error| Failure::from(error).during("delete a topic that never was"))?;

    let (first, second) = (cx.topic("first", 1).await?, cx.topic("second", 1).await?);
    let bad = "a\0b".to_owned();
    let results = mq.delete_topics([first.clone(), bad, second.clone()]).await;
    ensure!(
        results.len() == 3,
        "3 topics to delete gave {} results",
        results.len()
    );
    for (what, result) in ["the first", "the bad name", "the second"].iter().zip(results) {
        match (result, *what == "the bad name") {
            (Ok(()), false) => {}
            (result, true) => {
                refused("delete of a name that cannot be", result, ErrorKind::InvalidTopic)?;
            }
            (Err(error), false) => return Err(Failure::from(error).during(format!("delete {what} of three"))),
        }
    }
    gone(&cx, mq, &first).await?;
    gone(&cx, mq, &second).await?;

    let topic = cx.topic("reborn", 2).await?;
    let group = cx.name("group");
    let producer = mq.producer(&topic).await?;
    send(&cx, &producer, &numbered("old", 20)).await?;
    let consumer = mq.consumer(&topic, &group).await?;
    take_acked(&cx, &consumer, 20).await?;
    consumer.commit().await?;
    mq.delete_topic(&topic).await?;
    let deleted = Instant::now();
    let limit = cx.times().topic_gone;
    let ended = cx.within("the end of a live consumer of a deleted topic", limit, async {
        loop {
            match consumer.consume().await {
                Ok(delivery) => drop(delivery),
                Err(error) if error.is_retryable() => {}
                Err(error) => return error,
            }
        }
    });
    let error = ended.await?;
    ensure!(
        error.kind() == ErrorKind::TopicNotFound,
        "a live consumer of a deleted topic ended with {:?}: {error}",
        error.kind()
    );
    cx.eventually("produce to a deleted topic is TopicNotFound", limit, || async {
        match producer.produce("into nothing").await {
            Err(error) if error.kind() == ErrorKind::TopicNotFound => Ok(Some(())),
            _ => Ok(None),
        }
    })
    .await?;
    gone(&cx, mq, &topic).await?;
    cx.measure(Measured::TopicGone, deleted.elapsed());

    // Made again with another count.
    cx.eventually("the topic can be made again", limit, || async {
        match mq.create_topic(&topic, 3).await {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                note!(cx, "not yet made again: {error}");
                Ok(None)
            }
        }
    })
    .await?;
    let fresh = cx.connect().await?;
    let described = fresh.describe_topic(&topic).await?;
    ensure!(
        described.partitions.len() == 3,
        "made again with 3 partitions, the topic has {}",
        described.partitions.len()
    );
    if cx.can(Capability::TopicId) {
        let producer = fresh.producer(&topic).await?;
        for partition in 0..3 {
            send_to(&cx, &producer, partition, &[format!("new-{partition}")]).await?;
        }
        let consumer = fresh.consumer(&topic, &group).await?;
        let taken = take_until(&cx, &consumer, ["new-0", "new-1", "new-2"])
            .await
            .map_err(|failure| {
                failure.during("a topic made again is read from its start, not from old positions")
            })?;
        each_once(
            "messages of a topic made again",
            taken.iter().map(|t| &t.payload),
            ["new-0", "new-1", "new-2"],
        )?;
    }
    Ok(())
}

/// Waits until every call on a deleted topic says so.
async fn gone(cx: &Context, mq: &Mq, topic: &str) -> CaseResult {
    let limit = cx.times().topic_gone;
    cx.eventually(
        format!("describe of deleted {topic} is TopicNotFound"),
        limit,
        || async { Ok(not_found(mq.describe_topic(topic).await.err())) },
    )
    .await?;
    cx.eventually(
        format!("a producer for deleted {topic} is TopicNotFound"),
        limit,
        || async {
            Ok(not_found(match mq.producer(topic).await {
                Err(error) => Some(error),
                Ok(producer) => producer.produce("into nothing").await.err(),
            }))
        },
    )
    .await?;
    cx.eventually(
        format!("a consumer of deleted {topic} is TopicNotFound"),
        limit,
        || async { Ok(not_found(mq.consumer(topic, "g").await.err())) },
    )
    .await
}

fn not_found(error: Option<mq_api::Error>) -> Option<()> {
    error
        .filter(|error| error.kind() == ErrorKind::TopicNotFound)
        .map(drop)
}

/// G17 names: names that differ name different topics, or one of them is refused; they are never merged.
async fn similar_names_stay_apart(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let token = cx.name("s").replace('-', "");
    let upper = format!("{}{}", token[..1].to_ascii_uppercase(), &token[1..]);
    let names = [
        format!("{token}.b"),
        format!("{token}_b"),
        format!("{token}-b"),
        format!("{upper}.b"),
        format!("{token}.B"),
        format!("{token}b"),
    ];
    let mut made = Vec::new();
    for (at, name) in names.iter().enumerate() {
        cx.delete_later(name);
        match mq.create_topic(name, 1 + at as u32).await {
            Ok(()) => made.push((name, 1 + at as u32)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::InvalidTopic | ErrorKind::TopicExists | ErrorKind::Unsupported
                ) =>
            {
                note!(cx, "{name} is refused: {error}");
            }
            Err(error) => return Err(Failure::from(error).during(format!("create {name}"))),
        }
    }
    ensure!(
        made.len() >= 2,
        "only {} of {} similar names could be created",
        made.len(),
        names.len()
    );
    for (name, partitions) in &made {
        let has = mq.describe_topic(name).await?.partitions.len();
        ensure!(
            has == *partitions as usize,
            "merged: topic {name} was made with {partitions} partitions and has {has}"
        );
        mq.producer(name).await?.produce(format!("to {name}")).await?;
    }
    for (name, _) in &made {
        let consumer = mq.consumer(name, "g").await?;
        let taken = take_acked(&cx, &consumer, 1).await?;
        each_once(
            "messages of a topic with a similar name",
            taken.iter().map(|t| &t.payload),
            [format!("to {name}")],
        )?;
        crate::flow::nothing(&cx, &consumer, std::time::Duration::from_millis(100)).await?;
        consumer.close().await?;
    }
    Ok(())
}

/// G17 names: what is made for a topic and a group never meets what is made for others, whatever the dots.
async fn topics_and_groups_with_dots_never_meet(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let base = cx.name("dots");
    let pairs = [
        (format!("{base}.b"), "c".to_owned()),
        (base.clone(), "b.c".to_owned()),
        (format!("{base}.g.token"), "g".to_owned()),
        (base.clone(), "g".to_owned()),
        (base.clone(), "g.token".to_owned()),
        (format!("{base}.g"), "token".to_owned()),
    ];
    let topics: BTreeSet<&String> = pairs.iter().map(|(topic, _)| topic).collect();
    for topic in &topics {
        cx.delete_later(topic);
        mq.create_topic(topic, 1).await?;
        let producer = mq.producer(topic).await?;
        send(&cx, &producer, &numbered(topic, 5)).await?;
    }
    // Each group acks as many as its place in the list, so that positions which meet are seen.
    for (at, (topic, group)) in pairs.iter().enumerate() {
        let consumer = mq.consumer(topic, group).await?;
        let acked = at % 5;
        let taken = take_acked(&cx, &consumer, acked).await?;
        crate::flow::in_order(
            &format!("group {group} of {topic}"),
            &taken.iter().map(|t| &t.payload).collect::<Vec<_>>(),
            &numbered(topic, acked),
        )?;
        consumer.commit().await?;
        consumer.close().await?;
    }
    for (at, (topic, group)) in pairs.iter().enumerate() {
        let acked = at % 5;
        let consumer = mq.consumer(topic, group).await?;
        let rest = take_acked(&cx, &consumer, 5 - acked).await?;
        each_once(
            &format!("group {group} of {topic} after {acked} acks"),
            rest.iter().map(|t| &t.payload),
            &numbered(topic, 5)[acked..],
        )?;
        consumer.close().await?;
    }
    Ok(())
}

/// G17 topics: the list holds what users made and nothing that a driver made for itself.
async fn list_holds_what_was_created_and_no_internal_name(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let mut made = BTreeSet::new();
    for hint in ["one", "two.x", "three_x"] {
        made.insert(cx.topic(hint, 2).await?);
    }
    // Whatever a driver makes for producers, groups and delays is made now.
    for topic in &made {
        let producer = mq.producer(topic).await?;
        producer.produce_to(0, "seen").await?;
        if cx.can(Capability::Delay) {
            let later = Message::new("later").with_delay(std::time::Duration::from_millis(50));
            producer.produce_to(0, later).await?;
        }
        let consumer = mq.consumer(topic, "lister").await?;
        take_acked(&cx, &consumer, 1).await?;
        consumer.commit().await?;
        consumer.close().await?;
    }
    let token = made
        .iter()
        .next()
        .and_then(|name| name.rsplit('-').next())
        .unwrap_or_default();
    let token = token.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let listed: BTreeSet<String> = cx
        .eventually("the list holds all topics", cx.times().topic_gone, || async {
            let listed: BTreeSet<String> = mq
                .list_topics()
                .await?
                .iter()
                .map(|name| name.as_str().to_owned())
                .collect();
            Ok(made.is_subset(&listed).then_some(listed))
        })
        .await?;
    let foreign: Vec<_> = listed
        .iter()
        .filter(|name| (name.contains(&token) && !made.contains(*name)) || name.starts_with("__"))
        .collect();
    ensure!(
        foreign.is_empty(),
        "the list holds names that nobody made: {foreign:?}"
    );
    for topic in &made {
        mq.delete_topic(topic).await?;
    }
    cx.eventually("deleted topics leave the list", cx.times().topic_gone, || async {
        let listed = mq.list_topics().await?;
        Ok(listed
            .iter()
            .all(|name| !made.contains(name.as_str()))
            .then_some(()))
    })
    .await
}

/// G17 topics: creating the same topic from many places at once makes one, and every caller is told `Ok`.
async fn concurrent_creates_make_one_topic(cx: Context) -> CaseResult {
    let name = cx.name("race");
    cx.delete_later(&name);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(cx.connect().await?);
    }
    let creates = (0..8).map(|at| clients[at % clients.len()].create_topic(&name, 3));
    for (at, result) in futures_util::future::join_all(creates)
        .await
        .into_iter()
        .enumerate()
    {
        result.map_err(|error| Failure::from(error).during(format!("create number {at} of 8 at once")))?;
    }
    let has = cx.mq().await?.describe_topic(&name).await?.partitions.len();
    ensure!(has == 3, "8 creates of 3 partitions made {has}");
    let producer = clients[0].producer(&name).await?;
    send(&cx, &producer, &numbered("once", 6)).await?;
    let consumer = clients[1].consumer(&name, "g").await?;
    let taken = take_acked(&cx, &consumer, 6).await?;
    each_once(
        "messages of a topic made at once",
        taken.iter().map(|t| &t.payload),
        numbered("once", 6),
    )
}

/// G17 topics: producers and consumers that run use added partitions within the declared time.
async fn added_partitions_are_used_by_those_that_run(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("grown", 2).await?;
    let producer = mq.producer(&topic).await?;
    let consumer = mq.consumer(&topic, cx.name("group")).await?;
    send_to(&cx, &producer, 1, &numbered("before", 3)).await?;
    take_acked(&cx, &consumer, 3).await?;
    refused(
        "produce to a partition before it is added",
        producer.produce_to(3, "early").await,
        ErrorKind::InvalidPartition,
    )?;

    mq.add_partitions(&topic, 4).await?;
    let added = Instant::now();
    mq.add_partitions(&topic, 4)
        .await
        .map_err(|error| Failure::from(error).during("add partitions up to the same count"))?;
    let has = mq.describe_topic(&topic).await?.partitions.len();
    ensure!(has == 4, "grown to 4 partitions, the topic has {has}");
    refused(
        "shrink a topic",
        mq.add_partitions(&topic, 3).await,
        ErrorKind::InvalidPartition,
    )?;

    let limit = cx.times().partitions_seen;
    cx.eventually("a running producer sees 4 partitions", limit, || async {
        Ok((producer.partitions() == 4).then_some(()))
    })
    .await?;
    for partition in 0..4 {
        send_to(&cx, &producer, partition, &[format!("after-{partition}")]).await?;
    }
    let taken = cx
        .within(
            "messages of added partitions to a running consumer",
            limit + cx.times().wake_up,
            take_until(&cx, &consumer, (0..4).map(|p| format!("after-{p}"))),
        )
        .await??;
    cx.measure(Measured::PartitionsSeen, added.elapsed());
    each_once(
        "messages after the growth",
        taken.iter().map(|t| &t.payload),
        (0..4).map(|p| format!("after-{p}")),
    )?;
    // Keys spread over all of them too.
    let mut used = BTreeSet::new();
    for key in 0..200 {
        used.insert(
            producer
                .produce(Message::new("keyed").with_key(format!("key-{key}")))
                .await?
                .partition,
        );
    }
    ensure!(used.len() == 4, "200 keys use only the partitions {used:?} of 4");
    Ok(())
}
