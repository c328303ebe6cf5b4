//! Ordering lanes: one un-settled delivery at a time for each key, or for the whole partition.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use bytes::Bytes;

use super::item::Item;

/// Says which deliveries wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ordering {
    /// None: a message that is nacked holds up no other.
    #[default]
    Unordered,
    /// Those of one key: one is un-settled at a time, and a nack blocks its key. Messages without a key wait for none.
    Key,
    /// Those of one partition: one is un-settled at a time, and a nack blocks its partition.
    Partition,
}

/// Keeps what waits behind an un-settled delivery of the same lane.
#[derive(Debug)]
pub(crate) struct Lanes {
    ordering: Ordering,
    busy: HashMap<Option<Bytes>, VecDeque<Item>>,
}

impl Lanes {
    pub(crate) fn new(ordering: Ordering) -> Self {
        Self {
            ordering,
            busy: HashMap::new(),
        }
    }

    /// Lets an item into its lane, or keeps it until the lane is free.
    pub(crate) fn admit(&mut self, item: Item) -> Option<Item> {
        let Some(lane) = self.lane_of(&item) else {
            return Some(item);
        };
        match self.busy.entry(lane) {
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                Some(item)
            }
            Entry::Occupied(mut busy) => {
                busy.get_mut().push_back(item);
                None
            }
        }
    }

    /// Frees the lane of an item that is settled; returns who has it next.
    pub(crate) fn leave(&mut self, item: &Item) -> Option<Item> {
        let lane = self.lane_of(item)?;
        let Entry::Occupied(mut busy) = self.busy.entry(lane) else {
            return None;
        };
        let next = busy.get_mut().pop_front();
        if next.is_none() {
            busy.remove();
        }
        next
    }

    /// Returns the lane of an item; none where it waits for nobody.
    fn lane_of(&self, item: &Item) -> Option<Option<Bytes>> {
        match self.ordering {
            Ordering::Unordered => None,
            Ordering::Key => item.record().message.key().map(|key| Some(key.clone())),
            Ordering::Partition => Some(None),
        }
    }
}
