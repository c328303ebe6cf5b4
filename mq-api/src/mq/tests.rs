use std::time::Duration;

use super::*;
use crate::{
    Outcome,
    producer::tests::script::{Do, Script, failure},
};

#[tokio::test]
async fn a_partition_count_out_of_range_is_refused_before_any_io() {
    let script = Script::new(1, 1);
    let mq = script.mq();
    for partitions in [0, mq.capabilities().max_partitions + 1] {
        let error = mq.create_topic("t", partitions).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidPartition);
        assert!(error.context().contains(&partitions.to_string()), "{error}");
        assert_eq!(error.operation(), Some("create_topic"));
    }
    assert_eq!(
        mq.create_topic("9", 1).await.unwrap_err().kind(),
        ErrorKind::InvalidTopic
    );
    assert!(script.stored().is_empty());
    mq.create_topic("t", 3).await.unwrap();
    assert_eq!(script.stored(), [(3, "create t".to_owned())]);
}

#[tokio::test]
async fn what_the_backend_cannot_do_is_refused_by_name() {
    let mq = Script::new(1, 1).mq();
    let spec = || TopicSpec::new("t", 1).unwrap();
    let results = [
        (
            "age",
            mq.create_topic_with(spec().with_retention_age(Duration::from_secs(1)))
                .await,
        ),
        (
            "bytes",
            mq.create_topic_with(spec().with_retention_bytes(1)).await,
        ),
        (
            "replication",
            mq.create_topic_with(spec().with_replication(3)).await,
        ),
        ("partitions", mq.add_partitions("t", 2).await),
        ("topics", mq.list_topics().await.map(drop)),
        ("lag", mq.lag("t", "g").await.map(drop)),
        ("readers", mq.reader("t").await.map(drop)),
    ];
    for (what, result) in results {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{what}");
        assert!(
            error.context().contains(what) && error.context().contains("script"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn each_topic_that_is_deleted_has_a_result_of_its_own() {
    let mq = Script::new(1, 1).mq();
    let results = mq.delete_topics(["a", "", "stuck", "b"]).await;
    let kinds: Vec<Option<ErrorKind>> = results
        .into_iter()
        .map(|result| result.err().map(|error| error.kind()))
        .collect();
    assert_eq!(
        kinds,
        [
            None,
            Some(ErrorKind::InvalidTopic),
            Some(ErrorKind::PermissionDenied),
            None
        ]
    );
    assert!(mq.delete_topics(Vec::<String>::new()).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_in_the_request_timeout() {
    let options = ClientOptions::default().with_request_timeout(Duration::from_secs(3));
    let mq = Script::new(1, 1).mq_with(options);
    let begun = tokio::time::Instant::now();
    let error = mq.describe_topic("t").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Timeout, Some("describe_topic"))
    );
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
}

#[tokio::test]
async fn a_client_with_a_bad_option_refuses_every_call() {
    let options = ClientOptions::default().with_close_timeout(Duration::ZERO);
    let mq = Script::new(1, 1).mq_with(options);
    assert_eq!(
        mq.create_topic("t", 1).await.unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    assert_eq!(
        mq.producer("t").await.unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
}

#[tokio::test(start_paused = true)]
async fn close_closes_what_was_opened_and_returns_the_errors_together() {
    let script = Script::new(1, 1);
    script.otherwise(Do::Hold);
    let mq = script.mq();
    let stuck = mq
        .producer("t")
        .close_timeout(Duration::from_secs(1))
        .await
        .unwrap();
    let _pending = stuck.enqueue("m").await.unwrap();
    let quiet = mq.producer("t").await.unwrap();
    drop(mq.producer("gone").await.unwrap());
    script.close_with(failure(ErrorKind::Connection, Outcome::Unknown));
    let other = mq.clone();
    let (first, second) = tokio::join!(mq.close(), other.close());
    let error = first.unwrap_err();
    assert!(
        error.context().contains("1 messages") && error.context().contains("as the script says"),
        "{error}"
    );
    assert_eq!(error.to_string(), second.unwrap_err().to_string());
    assert_eq!(error.to_string(), mq.close().await.unwrap_err().to_string());
    for producer in [stuck, quiet] {
        assert_eq!(producer.produce("m").await.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(
        mq.create_topic("t", 1).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    let deleted = mq.delete_topic("t").await;
    assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn children_that_are_gone_are_forgotten() {
    let mq = Script::new(1, 1).mq();
    for _ in 0..200 {
        mq.producer("t").await.unwrap().close().await.unwrap();
    }
    assert!(mq.inner.children().open.len() <= 64);
}
