//! What a delivery tells the engine that handed it over.

use std::time::Duration;

use super::item::Item;
use crate::{GroupName, Result, TopicName};

/// Says how a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// It is done.
    Ack,
    /// It is to come again after the configured back-off.
    Nack,
    /// It is to come again after this long.
    NackAfter(Duration),
    /// It is never to come again, and belongs into the dead letters.
    Reject,
}

/// Takes the settlements of deliveries. It is synchronous and cheap.
pub(crate) trait Settle: Send + Sync {
    fn settle(&self, item: &Item, how: Settlement) -> Result<()>;
    /// Settles as [`Settlement::Ack`] does.
    fn ack(&self, item: &Item) -> Result<()> {
        self.settle(item, Settlement::Ack)
    }
    fn topic(&self) -> &TopicName;
    fn group(&self) -> &GroupName;
}
