//! What the backend must answer where it declares that it cannot.

use std::time::Duration;

use mq_api::{ErrorKind, Message, Mode, Position, Start, Timestamp, TopicSpec};

use crate::{
    capability::Capability,
    context::Context,
    failure::{CaseResult, ensure},
    flow::refused,
};

/// Checks the typed refusal of what the backend declares `Unsupported`, and reports the case so. What has no call that
/// could be refused (such as acks that survive above the watermark) is only reported.
pub(crate) async fn check(cx: Context, capability: Capability) -> CaseResult {
    let what = capability.name();
    match verify(&cx, capability).await? {
        Some(error) => cx.refused(format!("{what}: {error}")),
        None => cx.refused(format!("{what}: declared as unsupported")),
    }
    Ok(())
}

/// Checks the typed refusal of what the backend declares `Unsupported`, and returns it.
pub(crate) async fn verify(cx: &Context, capability: Capability) -> CaseResult<Option<mq_api::Error>> {
    let what = capability.name();
    let Some(error) = refuse(cx, capability).await? else {
        return Ok(None);
    };
    ensure!(
        error.context().contains(cx.capabilities().backend),
        "the refusal of {what} does not name the backend: {error}"
    );
    ensure!(
        !error.is_retryable(),
        "the refusal of {what} says that it is retryable: {error}"
    );
    Ok(Some(error))
}

/// Makes the call that needs a capability, which must be refused by name.
async fn refuse(cx: &Context, capability: Capability) -> CaseResult<Option<mq_api::Error>> {
    const KIND: ErrorKind = ErrorKind::Unsupported;
    let mq = cx.mq().await?;
    let what = capability.name();
    let topic = cx.topic("refusal", 1).await?;
    let group = cx.name("group");
    let error = match capability {
        Capability::Partitioned => refused(what, mq.consumer(&topic, &group).await, KIND)?,
        Capability::Shared => refused(what, mq.consumer(&topic, &group).mode(Mode::Shared).await, KIND)?,
        Capability::SharedLatest if cx.can(Capability::Shared) => {
            let opened = mq
                .consumer(&topic, &group)
                .mode(Mode::Shared)
                .start_at(Start::Latest);
            refused(what, opened.await, KIND)?
        }
        Capability::Broadcast => refused(
            what,
            mq.consumer(&topic, &group).mode(Mode::Broadcast).await,
            KIND,
        )?,
        Capability::Reader => refused(what, mq.reader(&topic).await, KIND)?,
        Capability::Seek => {
            let consumer = mq.consumer(&topic, &group).await?;
            refused(what, consumer.seek(0, Position::Earliest).await, KIND)?
        }
        Capability::Pause => {
            let consumer = mq.consumer(&topic, &group).await?;
            refused(what, consumer.pause(), KIND)?
        }
        Capability::Lag => refused(what, mq.lag(&topic, &group).await, KIND)?,
        Capability::Delay => {
            let producer = mq.producer(&topic).await?;
            let delayed = Message::new("later").with_delay(Duration::from_secs(1));
            refused(what, producer.produce(delayed).await, KIND)?
        }
        Capability::OffsetAt => {
            let opened = mq
                .consumer(&topic, &group)
                .start_at(Start::Time(Timestamp::now()));
            let error = refused(what, opened.await, KIND)?;
            if cx.can(Capability::Reader) {
                let reader = mq.reader(&topic).await?;
                refused(what, reader.offset_at(0, Timestamp::now()).await, KIND)?;
            }
            error
        }
        Capability::Tombstone => {
            let producer = mq.producer(&topic).await?;
            refused(what, producer.produce(Message::tombstone("gone")).await, KIND)?
        }
        Capability::ListTopics => refused(what, mq.list_topics().await, KIND)?,
        Capability::AddPartitions => refused(what, mq.add_partitions(&topic, 2).await, KIND)?,
        Capability::RetentionAge => {
            let spec = TopicSpec::new(cx.name("aged"), 1)?.with_retention_age(Duration::from_secs(3600));
            refused(what, mq.create_topic_with(spec).await, KIND)?
        }
        Capability::RetentionBytes => {
            let spec = TopicSpec::new(cx.name("sized"), 1)?.with_retention_bytes(64 * 1024 * 1024);
            refused(what, mq.create_topic_with(spec).await, KIND)?
        }
        Capability::Replication => {
            let spec = TopicSpec::new(cx.name("copied"), 1)?.with_replication(3);
            refused(what, mq.create_topic_with(spec).await, KIND)?
        }
        _ => return Ok(None),
    };
    Ok(Some(error))
}
