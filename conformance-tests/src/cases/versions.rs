//! Versions: what one build stores, another one reads.

use mq_api::{ErrorKind, GroupName, Message, TopicName, dead_letter_topic};

use super::{Case, case};
use crate::{
    context::Context,
    failure::{CaseResult, Failure, ensure, fail, note},
    flow::{numbered, send_to, take_acked},
};

/// The cases of this theme.
pub(crate) const CASES: &[Case] = &[case!(
    "V1",
    Versions,
    stored_formats_are_read_and_newer_ones_refused
)];

/// What murmur2 makes of keys, from the tests of Kafka's own client: what was stored by key stays findable by key.
const GOLDEN_HASHES: &[(&str, i32)] = &[
    ("21", -973_932_308),
    ("foobar", -790_332_482),
    ("a-little-bit-long-string", -985_981_536),
    ("a-little-bit-longer-string", -1_486_304_829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ("abc", 479_470_107),
];

/// Dead-letter topics by topic and group.
const GOLDEN_DEAD_LETTERS: &[(&str, &str, &str)] = &[
    ("orders", "billing", "dlq.6.orders.billing"),
    ("a.b", "c", "dlq.3.a.b.c"),
    ("a", "b.c", "dlq.1.a.b.c"),
];

/// G19 versions: golden bytes of every stored format are read, and an unknown newer one is a typed error, never
/// "no position".
async fn stored_formats_are_read_and_newer_ones_refused(cx: Context) -> CaseResult {
    let mq = cx.mq().await?;
    let topic = cx.topic("keys", 16).await?;
    let producer = mq.producer(&topic).await?;
    for (key, hash) in GOLDEN_HASHES {
        let golden = (hash & 0x7fff_ffff) as u32 % 16;
        let receipt = producer.produce(Message::new("v").with_key(*key)).await?;
        ensure!(
            receipt.partition == golden,
            "key {key:?} goes to partition {} of 16, and by the stored rule to {golden}",
            receipt.partition
        );
    }
    for (topic, group, golden) in GOLDEN_DEAD_LETTERS {
        let name = dead_letter_topic(&TopicName::new(topic)?, &GroupName::new(group)?);
        ensure!(
            name.as_str() == *golden,
            "the dead letters of {topic}, {group} go to {name}, and by the stored rule to {golden}"
        );
    }
    let formats = cx.harness().formats();
    note!(cx, "{} formats of the driver's own", formats.len());
    for format in formats {
        let name = format.name();
        let versions = format.versions();
        let newest = versions.iter().copied().max().unwrap_or(0);
        for version in versions {
            let topic = cx.topic("golden", 1).await?;
            let group = cx.name("group");
            send_to(&cx, &mq.producer(&topic).await?, 0, &numbered("m", 3)).await?;
            plant(&cx, &*format, &topic, &group, version).await?;
            let committed = mq.committed(&topic, &group).await?;
            ensure!(
                committed.first().map(|p| (p.partition, p.position)) == Some((0, format.position())),
                "version {version} of the {name} says partition 0 is at {}, and was read as {committed:?}",
                format.position()
            );
            let consumer = mq.consumer(&topic, &group).await?;
            let taken = take_acked(&cx, &consumer, 2).await?;
            let came: Vec<_> = taken.iter().map(|t| t.payload.as_str()).collect();
            ensure!(
                came == ["m-0001", "m-0002"],
                "with version {version} of the {name} a member goes on with {came:?}"
            );
            consumer.close().await?;
        }
        let topic = cx.topic("newer", 1).await?;
        let group = cx.name("group");
        send_to(&cx, &mq.producer(&topic).await?, 0, &numbered("m", 3)).await?;
        plant(&cx, &*format, &topic, &group, newest + 1).await?;
        refuse(
            &format!("committed with a newer {name}"),
            mq.committed(&topic, &group).await,
        )?;
        let joined = match mq.consumer(&topic, &group).await {
            Err(error) => Err(error),
            Ok(consumer) => {
                let first = cx
                    .within(
                        "an answer to a newer format",
                        cx.times().progress,
                        consumer.consume(),
                    )
                    .await?;
                first.map(|delivery| crate::flow::text(&delivery))
            }
        };
        refuse(&format!("consume with a newer {name}"), joined)?;
    }
    Ok(())
}

async fn plant(
    cx: &Context,
    format: &dyn crate::harness::StoredFormat,
    topic: &str,
    group: &str,
    version: u32,
) -> CaseResult {
    format
        .plant(cx.mq().await?, cx.url(), topic, group, version)
        .await
        .map_err(|error| {
            Failure::new(format!(
                "the harness could not store version {version} of the {}: {error}",
                format.name()
            ))
        })
}

fn refuse<T: std::fmt::Debug>(what: &str, result: mq_api::Result<T>) -> CaseResult {
    match result {
        Err(error) if error.kind() == ErrorKind::Protocol && !error.is_retryable() => Ok(()),
        Err(error) => fail!(
            "{what}: expected Protocol and not retryable, got {:?}: {error}",
            error.kind()
        ),
        Ok(value) => fail!("{what}: expected Protocol, got Ok({value:?})"),
    }
}
