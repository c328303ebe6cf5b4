//! Connections, names and topics.

use mq_api::{
    ErrorKind, GroupName, Support, TopicSpec,
    driver::{Mq, ProducerRequest, Subscription},
    url::ConnectUrl,
};
use mq_memory::{MemoryConfig, MemoryMq};

use crate::support::*;

#[tokio::test]
async fn connections_to_one_name_share_a_broker_until_the_last_of_them_is_dropped() {
    let first = MemoryMq::connect("shared-by-name").unwrap();
    let second = MemoryMq::from_url(&ConnectUrl::parse("memory://shared-by-name").unwrap()).unwrap();
    create(&first, 1).await;
    assert_eq!(second.list_topics().await.unwrap(), [topic()]);
    assert!(
        MemoryMq::connect("another-name")
            .unwrap()
            .list_topics()
            .await
            .unwrap()
            .is_empty()
    );
    assert!(MemoryMq::new().list_topics().await.unwrap().is_empty());
    first.close().await.unwrap();
    assert_eq!(first.list_topics().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(second.list_topics().await.unwrap().len(), 1);
    drop((first, second));
    assert!(
        MemoryMq::connect("shared-by-name")
            .unwrap()
            .list_topics()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_name_has_one_set_of_settings() {
    let few = MemoryConfig::default().with_max_partitions(3);
    let first = MemoryMq::connect_with("settings", few.clone()).unwrap();
    assert!(MemoryMq::connect_with("settings", few).is_ok());
    assert!(MemoryMq::connect("settings").is_ok());
    let other = MemoryMq::from_url(&ConnectUrl::parse("memory://settings?max_partitions=4").unwrap());
    assert_eq!(other.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let spec = TopicSpec::new("orders", 4).unwrap();
    assert_eq!(
        first.create_topic(spec).await.unwrap_err().kind(),
        ErrorKind::InvalidPartition
    );
    assert_eq!(first.capabilities().max_partitions, 3);
}

#[test]
fn a_url_that_memory_cannot_serve_is_refused() {
    for url in [
        "memory://a?colour=red",
        "memory://a?max_partitions=0",
        "memory://a,b",
        "memory://a:1",
        "memory://user:secret@a",
        "memory://a/path",
        "kafka://a",
    ] {
        let error = MemoryMq::from_url(&ConnectUrl::parse(url).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
        assert!(!error.to_string().contains("secret"));
    }
    assert_eq!(
        MemoryMq::connect("").unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
}

#[tokio::test]
async fn a_topic_is_made_once_and_refuses_what_memory_does_not_have() {
    let mq = broker(2).await;
    let spec = |partitions| TopicSpec::new("orders", partitions).unwrap();
    mq.create_topic(spec(2)).await.unwrap();
    let kind = async |spec| mq.create_topic(spec).await.unwrap_err().kind();
    assert_eq!(kind(spec(3)).await, ErrorKind::TopicExists);
    let new = |partitions| TopicSpec::new("new", partitions).unwrap();
    assert_eq!(kind(new(0)).await, ErrorKind::InvalidPartition);
    assert_eq!(kind(new(1025)).await, ErrorKind::InvalidPartition);
    assert_eq!(kind(new(1).with_replication(2)).await, ErrorKind::Unsupported);
    assert_eq!(
        kind(new(1).with_property("a", "b")).await,
        ErrorKind::InvalidConfig
    );
    assert_eq!(mq.list_topics().await.unwrap(), [topic()]);
    mq.create_topic(new(1).with_replication(1)).await.unwrap();
    assert!(
        mq.delete_topics(vec![topic(), topic()])
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(
        mq.describe_topic(topic()).await.unwrap_err().kind(),
        ErrorKind::TopicNotFound
    );
}

#[tokio::test]
async fn what_is_opened_on_an_unknown_topic_is_refused() {
    let mq = MemoryMq::new();
    let not_found = |error: mq_api::Error| assert_eq!(error.kind(), ErrorKind::TopicNotFound);
    not_found(mq.producer(ProducerRequest::new(topic())).await.err().unwrap());
    not_found(mq.consumer(subscription()).await.err().unwrap());
    not_found(mq.queue_consumer(subscription()).await.err().unwrap());
    not_found(mq.reader(topic()).await.err().unwrap());
    not_found(mq.add_partitions(topic(), 2).await.err().unwrap());
}

#[tokio::test]
async fn a_group_has_one_mode() {
    let mq = broker(1).await;
    let _member = join(&mq).await;
    let refused = mq.queue_consumer(subscription()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
    assert!(refused.context().contains("partitioned"), "{refused}");
    let other = || Subscription::new(topic(), GroupName::new("other").unwrap());
    let _shared = mq.queue_consumer(other()).await.unwrap();
    let refused = mq.consumer(other()).await.err().unwrap();
    assert!(refused.context().contains("shared"), "{refused}");
}

#[tokio::test]
async fn a_consumer_property_that_memory_does_not_know_is_refused() {
    let mq = broker(1).await;
    let mut subscription = subscription();
    subscription
        .properties
        .push(("fetch.min.bytes".to_owned(), "1".to_owned()));
    let refused = mq.consumer(subscription).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
    assert!(refused.context().contains("fetch.min.bytes"), "{refused}");
}

#[test]
fn memory_declares_what_the_contract_expects_of_it() {
    let mq = MemoryMq::new();
    let can = mq.capabilities();
    for native in [
        can.partitioned,
        can.shared,
        can.shared_latest,
        can.broadcast,
        can.reader,
        can.seek,
        can.pause,
        can.lag,
        can.delay,
        can.receipt_offset,
        can.sparse_acks,
        can.durable_attempts,
        can.commit_fencing,
        can.topic_id,
        can.sticky_assignment,
        can.offset_at,
        can.tombstone,
        can.list_topics,
        can.retention_age,
        can.retention_bytes,
        can.add_partitions,
    ] {
        assert_eq!(native, Support::Native);
    }
}
