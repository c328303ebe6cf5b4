//! Which mode each group has that is open on one client.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Mode;
use crate::{Error, ErrorKind, GroupName, Result, TopicName};

type Group = (TopicName, GroupName);

/// Keeps the mode of every group that has members on this client.
#[derive(Debug, Default)]
pub(crate) struct Modes {
    groups: Mutex<HashMap<Group, Held>>,
}

#[derive(Debug)]
struct Held {
    mode: Mode,
    members: usize,
}

/// Holds a group to its mode while one of its members is open.
pub(crate) struct ModeClaim {
    modes: Arc<Modes>,
    group: Group,
}

impl Modes {
    /// Holds a group to a mode; refused where it has another one.
    pub(crate) fn claim(
        self: &Arc<Self>,
        topic: &TopicName,
        group: &GroupName,
        mode: Mode,
    ) -> Result<ModeClaim> {
        let key = (topic.clone(), group.clone());
        let mut groups = self.lock();
        let held = groups.entry(key.clone()).or_insert(Held { mode, members: 0 });
        if held.mode != mode {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "mode {mode:?}: group `{group}` of topic `{topic}` has members in mode {:?}, and a group has one mode",
                    held.mode
                ),
            ));
        }
        held.members += 1;
        Ok(ModeClaim {
            modes: Arc::clone(self),
            group: key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Group, Held>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ModeClaim {
    fn drop(&mut self) {
        let mut groups = self.modes.lock();
        if let Some(held) = groups.get_mut(&self.group) {
            held.members -= 1;
            if held.members == 0 {
                groups.remove(&self.group);
            }
        }
    }
}

impl fmt::Debug for ModeClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModeClaim").field(&self.group).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_keeps_its_mode_until_its_last_member_is_gone() {
        let modes = Arc::new(Modes::default());
        let topic = TopicName::new("orders").unwrap();
        let group = GroupName::new("billing").unwrap();
        let first = modes.claim(&topic, &group, Mode::Shared).unwrap();
        let second = modes.claim(&topic, &group, Mode::Shared).unwrap();
        drop(first);
        let error = modes.claim(&topic, &group, Mode::Partitioned).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.context().contains("billing"), "{error}");
        let other = GroupName::new("audit").unwrap();
        assert!(modes.claim(&topic, &other, Mode::Partitioned).is_ok());
        drop(second);
        assert!(modes.claim(&topic, &group, Mode::Partitioned).is_ok());
    }
}
