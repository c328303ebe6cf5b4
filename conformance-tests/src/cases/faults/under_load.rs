//! Faults of the server while messages are produced and consumed.

use std::time::Duration;

use tokio::time::sleep;

use super::load::Load;
use crate::{context::Context, failure::CaseResult};

/// F1: the server is killed and started again while messages are produced and consumed: every message answered `Ok`
/// arrives, first deliveries keep their order, and the user's code only repeats failed produces and goes on after
/// consume errors that are worth a retry. Guarantees 1, 2, 3 and 9.
pub(super) async fn killed_server_loses_nothing(cx: Context) -> CaseResult {
    let load = Load::begin(&cx).await?;
    load.flows("before the kill", cx.times().progress).await?;
    for round in 0..2 {
        load.is_away("killed");
        cx.fault("kill", cx.server().kill()).await?;
        // How long the server is away, long enough for clients to notice.
        sleep(Duration::from_secs(1)).await;
        cx.fault("start", cx.server().start()).await?;
        load.is_back("started");
        load.recovers(&format!("after kill {round} and a start")).await?;
    }
    load.finish().await
}

/// F2: connections are cut, again and again, while messages are produced and consumed: the same. Guarantees 1, 2, 3, 9.
pub(super) async fn cut_connections_lose_nothing(cx: Context) -> CaseResult {
    let load = Load::begin(&cx).await?;
    load.flows("before the cut", cx.times().progress).await?;
    for round in 0..3 {
        for _ in 0..3 {
            load.disturbed("connections cut");
            cx.fault("cut the connections", cx.server().cut_connections())
                .await?;
            // Some cuts hit connections that are just being made.
            sleep(Duration::from_millis(fastrand::u64(0..300))).await;
        }
        load.recovers(&format!("after cuts of round {round}")).await?;
    }
    load.finish().await
}

/// F3: the server is frozen for five seconds while messages are produced and consumed: the same. Guarantees 1, 2, 3, 9.
pub(super) async fn frozen_server_loses_nothing(cx: Context) -> CaseResult {
    let load = Load::begin(&cx).await?;
    load.flows("before the freeze", cx.times().progress).await?;
    load.is_away("frozen");
    cx.fault("freeze", cx.server().freeze()).await?;
    sleep(Duration::from_secs(5)).await;
    cx.fault("thaw", cx.server().thaw()).await?;
    load.is_back("thawed");
    load.recovers("after a freeze of five seconds").await?;
    load.finish().await
}
