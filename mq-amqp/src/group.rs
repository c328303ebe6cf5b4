//! What the members of a group say to each other through the group's exchange, and what follows from it.
//!
//! ```text
//! mq1 own id=<session> owned=0,1 protocol=1-1
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};

use mq_api::{Result, assign::View};

use crate::{error, words::Words};

/// The protocol between members that this build speaks.
const PROTOCOL: u64 = 1;
/// The most members that are remembered as gone.
const MOST_GONE: usize = 10_000;

/// What a member says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// It is new; the others answer with what they own.
    Join,
    /// What it owns.
    Own,
    /// It left.
    Bye,
    /// Another one's queue is gone, and so is that member.
    Gone,
}

impl Say {
    fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Own => "own",
            Self::Bye => "bye",
            Self::Gone => "gone",
        }
    }
}

/// Writes what is said of a member.
pub(crate) fn say(what: Say, member: &str, owned: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let owned: Vec<String> = owned.into_iter().map(|partition| partition.to_string()).collect();
    Words::new(what.word())
        .with("id", member)
        .with("owned", owned.join(","))
        .with("protocol", format!("{PROTOCOL}-{PROTOCOL}"))
        .encode()
}

/// What follows from something heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Nothing,
    /// Who should own what may have changed.
    Changed,
    /// Somebody wants to know what this member owns.
    Asked,
    /// The others take this member for gone.
    Buried,
}

/// What one member knows of the others.
#[derive(Debug)]
pub(crate) struct Members {
    me: String,
    view: View,
    gone: HashSet<String>,
    turn: usize,
}

impl Members {
    pub(crate) fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            view: View::new(),
            gone: HashSet::new(),
            turn: 0,
        }
    }

    pub(crate) fn hear(&mut self, body: &[u8]) -> Result<Heard> {
        const WHAT: &str = "the talk of a group";
        let words = Words::parse(WHAT, body)?;
        let Some(member) = words.text("id").map(str::to_owned) else {
            return Ok(Heard::Nothing);
        };
        let lowest = words
            .text("protocol")
            .and_then(|range| range.split_once('-'))
            .and_then(|(lowest, _)| lowest.parse().ok())
            .unwrap_or(PROTOCOL);
        if lowest > PROTOCOL {
            return Err(error::newer_format(
                "the protocol of this group",
                &lowest.to_string(),
            ));
        }
        match words.kind() {
            "gone" if member == self.me => Ok(Heard::Buried),
            _ if member == self.me => Ok(Heard::Nothing),
            "bye" | "gone" => {
                self.bury(&member);
                Ok(Heard::Changed)
            }
            kind @ ("join" | "own") => {
                if self.gone.contains(&member) {
                    return Ok(Heard::Nothing);
                }
                let owned: BTreeSet<u32> = words
                    .text("owned")
                    .unwrap_or_default()
                    .split(',')
                    .filter_map(|partition| partition.parse().ok())
                    .collect();
                self.view.insert(member, owned);
                Ok(if kind == "join" {
                    Heard::Asked
                } else {
                    Heard::Changed
                })
            }
            // What a later build says beside these is not for us.
            _ => Ok(Heard::Nothing),
        }
    }

    /// Forgets a member that is over; sessions never come back under their name.
    pub(crate) fn bury(&mut self, member: &str) {
        self.view.remove(member);
        if self.gone.len() >= MOST_GONE {
            self.gone.clear();
        }
        self.gone.insert(member.to_owned());
    }

    /// Names the members to look after: the next one, and one more in turn. An old message of a dead member may have
    /// put a ghost into one view alone, and nobody else would ask about it.
    pub(crate) fn next_probes(&mut self) -> Vec<String> {
        let mut all: Vec<&String> = self.view.keys().collect();
        all.push(&self.me);
        all.sort();
        let count = all.len();
        let mine = all.iter().position(|member| **member == self.me).unwrap_or(0);
        self.turn = self.turn.wrapping_add(1);
        let mut probed: Vec<String> = [(mine + 1) % count, self.turn % count]
            .into_iter()
            .filter_map(|at| all.get(at).map(|member| (*member).clone()))
            .collect();
        probed.dedup();
        probed
    }

    /// Says who should own what, this member's own included.
    pub(crate) fn target(&self, partitions: u32, mine: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut view = self.view.clone();
        view.insert(self.me.clone(), mine.clone());
        let mut target: BTreeMap<String, BTreeSet<u32>> = mq_api::assign::assign(partitions, &view);
        target.remove(&self.me).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use mq_api::ErrorKind;

    use super::*;

    #[test]
    fn version_one_of_the_talk_is_frozen() {
        assert_eq!(
            say(Say::Own, "s1", [0, 3]),
            b"mq1 own id=s1 owned=0,3 protocol=1-1"
        );
    }

    #[test]
    fn members_are_heard_and_forgotten() {
        let mut members = Members::new("me");
        assert_eq!(members.hear(&say(Say::Join, "a", [])).unwrap(), Heard::Asked);
        assert_eq!(members.hear(&say(Say::Own, "a", [0, 1])).unwrap(), Heard::Changed);
        assert_eq!(members.target(4, &BTreeSet::new()), BTreeSet::from([2, 3]));
        assert_eq!(members.hear(&say(Say::Own, "me", [0])).unwrap(), Heard::Nothing);
        assert_eq!(members.hear(&say(Say::Gone, "me", [])).unwrap(), Heard::Buried);
        assert_eq!(members.hear(&say(Say::Bye, "a", [])).unwrap(), Heard::Changed);
        // What it said before it left may come late.
        assert_eq!(members.hear(&say(Say::Own, "a", [0])).unwrap(), Heard::Nothing);
        assert_eq!(members.target(4, &BTreeSet::new()).len(), 4);
    }

    #[test]
    fn every_member_is_probed_in_turn() {
        let mut members = Members::new("m");
        for other in ["a", "b", "x", "y"] {
            members.hear(&say(Say::Join, other, [])).unwrap();
        }
        let mut seen = BTreeSet::new();
        for _ in 0..5 {
            let probed = members.next_probes();
            assert!(probed.contains(&"x".to_owned()));
            seen.extend(probed);
        }
        assert_eq!(seen.len(), 5);
        assert_eq!(Members::new("m").next_probes(), ["m"]);
    }

    #[test]
    fn a_newer_talk_or_protocol_is_an_error() {
        let mut members = Members::new("me");
        for newer in [&b"mq2 own id=a"[..], b"mq1 own id=a protocol=2-3"] {
            assert_eq!(members.hear(newer).unwrap_err().kind(), ErrorKind::Protocol);
        }
        assert!(members.hear(b"mq1 own id=a protocol=1-3").is_ok());
        assert_eq!(members.hear(b"mq1 sing id=a").unwrap(), Heard::Nothing);
    }
}
