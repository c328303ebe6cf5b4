//! Waiting for conditions that have no event to wait for.

use std::time::{Duration, Instant};

/// Asks `condition` every `step` until it answers something or `limit` has passed.
pub(crate) fn wait_for<T, E>(
    limit: Duration,
    step: Duration,
    mut condition: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(Some(value));
        }
        if start.elapsed() >= limit {
            return Ok(None);
        }
        pause(step);
    }
}

/// Sleeps. The crate blocks by contract, and a foreign process gives no event to wait for.
#[expect(
    clippy::disallowed_methods,
    reason = "this crate has no runtime whose worker it could block"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
