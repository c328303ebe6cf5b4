//! Sessions with a lease.

use std::time::Duration;

use mq_api::{Clock, driver::CommitOutcome};
use mq_memory::{MemoryConfig, MemoryMq};

use crate::support::*;

const LEASE: Duration = Duration::from_millis(80);

async fn leased(partitions: u32) -> MemoryMq {
    leased_for(LEASE, partitions).await
}

async fn leased_for(lease: Duration, partitions: u32) -> MemoryMq {
    let mq = MemoryMq::with_config(MemoryConfig::default().with_lease(lease)).unwrap();
    create(&mq, partitions).await;
    mq
}

#[tokio::test]
async fn a_lease_is_renewed_though_the_member_is_not_polled() {
    /// Longer than a busy machine holds a process up.
    const LONG: Duration = Duration::from_secs(2);
    let mq = leased_for(LONG, 1).await;
    let mut member = join(&mq).await;
    let lease = member.assigned().await.remove(0).lease.unwrap();
    let first = lease.until();
    tokio::time::timeout(PATIENCE, async {
        while lease.clock().now() < first {
            assert!(lease.stands_at(lease.clock().now()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(member.now().is_none());
}

#[tokio::test]
async fn the_session_timeout_that_a_consumer_asks_for_is_the_length_of_its_lease() {
    let long = MemoryConfig::default().with_lease(Duration::from_secs(3600));
    let mq = MemoryMq::with_config(long).unwrap();
    create(&mq, 1).await;
    let mut asked = subscription();
    asked.session_timeout = Some(Duration::from_secs(60));
    let mut member = join_as(&mq, asked).await;
    let lease = member.assigned().await.remove(0).lease.unwrap();
    let left = lease.until().saturating_since(lease.clock().now());
    assert!(left <= Duration::from_secs(60), "{left:?}");
}

#[tokio::test]
async fn others_take_over_from_a_frozen_member_when_its_lease_is_over() {
    let mq = leased(1).await;
    let mut frozen = join(&mq).await;
    let old = frozen.assigned().await.remove(0);
    let (old_id, lease) = (old.id, old.lease.unwrap());
    let mut other = join(&mq).await;
    assert!(mq.faults().freeze_owner(&topic(), &group(), 0));
    let taken = other.assigned().await.remove(0);
    assert!(
        !lease.stands_at(lease.clock().now()),
        "nobody takes over before the lease is over"
    );
    assert!(!taken.clean && taken.id.epoch > old_id.epoch);
    assert!(frozen.now().is_none(), "a frozen member hears nothing");
    assert_eq!(frozen.commit(old_id, 0).await, CommitOutcome::Lost);
    assert!(mq.faults().thaw_members(&topic(), &group()));
    assert_eq!(frozen.lost().await, [old_id]);
    other.consumer.close().await.unwrap();
    let back = frozen.assigned().await.remove(0);
    assert!(back.lease.unwrap().stands_at(lease.clock().now()));
    assert!(!lease.stands_at(lease.clock().now()), "the old lease stays over");
}

#[tokio::test]
async fn a_member_whose_clock_jumped_loses_its_partitions_and_joins_again() {
    let mq = leased(1).await;
    let clock = Clock::manual();
    let mut subscription = subscription();
    subscription.clock = clock.clone();
    let mut member = join_as(&mq, subscription).await;
    let first = member.assigned().await.remove(0);
    clock.advance(10 * LEASE);
    assert_eq!(member.commit(first.id, 0).await, CommitOutcome::Lost);
    assert_eq!(member.lost().await, [first.id]);
    assert!(member.assigned().await[0].id.epoch > first.id.epoch);
}

#[tokio::test]
async fn others_take_over_from_a_member_whose_runtime_stands_still() {
    let mq = leased(1).await;
    let (joined, has_joined) = tokio::sync::oneshot::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let inside = mq.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut member = join(&inside).await;
            let owned = ids(&member.assigned().await);
            joined.send(()).unwrap();
            // Blocks the only thread of the runtime.
            wait.recv().unwrap();
            assert_eq!(member.lost().await, owned);
            member.consumer.close().await.unwrap();
        });
    });
    has_joined.await.unwrap();
    let mut other = join(&mq).await;
    assert!(!other.assigned().await[0].clean);
    go_on.send(()).unwrap();
    tokio::task::spawn_blocking(move || thread.join().unwrap())
        .await
        .unwrap();
}
