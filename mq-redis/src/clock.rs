//! The server's wall clock, as this client knows it: what messages are stamped with and when delayed ones are due.

use std::sync::atomic::{AtomicI64, Ordering};

use mq_api::{Result, Timestamp};

use crate::{error, link::Conn, resp::Reply};

/// Remembers how far the server's clock is ahead of this machine's.
#[derive(Debug, Default)]
pub(crate) struct ServerClock {
    ahead: AtomicI64,
}

impl ServerClock {
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(Timestamp::now().as_millis() + self.ahead.load(Ordering::Relaxed))
    }

    /// Asks the server; the answer is taken to be of the middle of the round trip.
    pub(crate) async fn sync(&self, conn: &Conn) -> Result<()> {
        let sent = Timestamp::now().as_millis();
        let reply = conn.call(&redis::cmd("TIME")).await?;
        let received = Timestamp::now().as_millis();
        let [seconds, micros] = reply.array() else {
            return Err(error::protocol("a time of other than two parts"));
        };
        let (Some(seconds), Some(micros)) = (Reply::int(seconds), Reply::int(micros)) else {
            return Err(error::protocol("a time that is no number"));
        };
        let server = seconds.saturating_mul(1000).saturating_add(micros / 1000);
        let here = sent + (received - sent) / 2;
        let ahead = server.saturating_sub(here);
        // A difference that the round trip explains is none: clocks of one machine stay one clock.
        let ahead = if ahead.abs() <= (received - sent) + 1 {
            0
        } else {
            ahead
        };
        self.ahead.store(ahead, Ordering::Relaxed);
        Ok(())
    }
}
