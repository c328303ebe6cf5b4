//! Connections by address, opened when they are needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::remoting::{Connection, ConnectionOptions, Effect, InboundHandler, RemotingError};

/// The pause after the first failure to connect; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Pool {
    options: ConnectionOptions,
    handler: Arc<dyn InboundHandler>,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_address: HashMap<Arc<str>, Arc<Slot>>,
    closed: bool,
}

#[derive(Debug)]
struct Slot {
    address: Arc<str>,
    connection: Mutex<Option<Connection>>,
    /// Held while connecting, so that callers share one try.
    opening: tokio::sync::Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    count: u32,
    last: Option<(Instant, RemotingError)>,
}

impl Slot {
    fn usable(&self) -> Option<Connection> {
        let slot = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().filter(|connection| connection.is_usable()).cloned()
    }
}

impl Pool {
    pub(super) fn new(options: ConnectionOptions, handler: Arc<dyn InboundHandler>) -> Self {
        Self {
            options,
            handler,
            slots: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the connection to an address and whether it was opened by this call.
    ///
    /// After a failure it waits before it tries again, longer each time, so that callers in a loop do no harm.
    pub(super) async fn connect(
        &self,
        address: &str,
        deadline: Instant,
    ) -> Result<(Connection, bool), RemotingError> {
        let slot = self.slot(address)?;
        if let Some(connection) = slot.usable() {
            return Ok((connection, false));
        }
        let late = || RemotingError::Timeout {
            address: slot.address.clone(),
            code: 0,
            waited: Duration::ZERO,
            effect: Effect::NotSent,
        };
        let Ok(mut failures) = timeout_at(deadline, slot.opening.lock()).await else {
            return Err(late());
        };
        if let Some(connection) = slot.usable() {
            return Ok((connection, false));
        }
        if let Some((at, error)) = &failures.last {
            let pause = FIRST_PAUSE
                .saturating_mul(1 << failures.count.min(10))
                .min(LONGEST_PAUSE);
            let next = *at + pause;
            if next >= deadline {
                let error = error.clone();
                sleep_until(deadline).await;
                return Err(error);
            }
            sleep_until(next).await;
        }
        let opened = Connection::open(
            &slot.address,
            self.options.clone(),
            self.handler.clone(),
            deadline,
        )
        .await;
        match opened {
            Ok(connection) => {
                *failures = Failures::default();
                *slot.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
                if self.lock().closed {
                    return Err(RemotingError::Closed {
                        address: slot.address.clone(),
                    });
                }
                Ok((connection, true))
            }
            Err(error) => {
                failures.count = failures.count.saturating_add(1);
                failures.last = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn slot(&self, address: &str) -> Result<Arc<Slot>, RemotingError> {
        let mut slots = self.lock();
        if slots.closed {
            return Err(RemotingError::Closed {
                address: address.into(),
            });
        }
        if let Some(slot) = slots.by_address.get(address) {
            return Ok(slot.clone());
        }
        let address: Arc<str> = address.into();
        let slot = Arc::new(Slot {
            address: address.clone(),
            connection: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        });
        slots.by_address.insert(address, slot.clone());
        Ok(slot)
    }

    /// Gives the connections that can be used now.
    pub(super) fn open_ones(&self) -> Vec<Connection> {
        self.lock()
            .by_address
            .values()
            .filter_map(|slot| slot.usable())
            .collect()
    }

    /// Refuses new connections and closes those that are open, all at once.
    pub(super) async fn close(&self, deadline: Instant) {
        let slots: Vec<_> = {
            let mut slots = self.lock();
            slots.closed = true;
            slots.by_address.drain().map(|(_, slot)| slot).collect()
        };
        let connections: Vec<_> = slots
            .iter()
            .filter_map(|slot| {
                slot.connection
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take()
            })
            .collect();
        join_all(connections.iter().map(|connection| connection.close(deadline))).await;
    }
}
