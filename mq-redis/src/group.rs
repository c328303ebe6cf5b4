//! What the members of a group say to each other: the group's log, and what follows from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use mq_api::{Result, assign::View};
use redis::Cmd;

use crate::{error, format::Entry};

/// The most entries that a log keeps, about: several heartbeats of every member.
const LOG_LENGTH: usize = 2000;
/// The most members that are remembered as gone.
const MOST_GONE: usize = 10_000;
/// The protocol between members that this build speaks.
const PROTOCOL: u32 = 1;

/// What a member says.
///
/// ```text
/// XADD mq:{orders}:g:billing NOMKSTREAM MAXLEN ~ 2000 * mq1 <session> say hb owned 0,1 ttl 6000 protocol 1-1
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    Join,
    /// Heartbeat.
    Alive,
    /// What it owns has changed.
    Own,
    Bye,
}

impl Say {
    fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Alive => "hb",
            Self::Own => "own",
            Self::Bye => "bye",
        }
    }
}

/// Writes an entry of the log. Only a join makes the log.
pub(crate) fn say(
    log: &str,
    member: &str,
    what: Say,
    owned: impl IntoIterator<Item = u32>,
    ttl: Duration,
) -> Cmd {
    let owned: Vec<String> = owned.into_iter().map(|partition| partition.to_string()).collect();
    let mut cmd = redis::cmd("XADD");
    cmd.arg(log);
    if what != Say::Join {
        cmd.arg("NOMKSTREAM");
    }
    cmd.arg("MAXLEN").arg("~").arg(LOG_LENGTH).arg("*");
    cmd.arg("mq1").arg(member);
    cmd.arg("say").arg(what.word());
    cmd.arg("owned").arg(owned.join(","));
    cmd.arg("ttl")
        .arg(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    cmd.arg("protocol").arg(format!("{PROTOCOL}-{PROTOCOL}"));
    cmd
}

/// What one member knows of the others.
#[derive(Debug)]
pub(crate) struct Members {
    me: String,
    view: View,
    heard: HashMap<String, Heard>,
    gone: HashSet<String>,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    ttl: Duration,
}

impl Members {
    pub(crate) fn new(me: &str, now: Instant) -> Self {
        Self {
            me: me.to_owned(),
            view: View::new(),
            heard: HashMap::new(),
            gone: HashSet::new(),
            since: now,
        }
    }

    /// Learns from an entry of the log; returns whether it changes who should own what.
    pub(crate) fn hear(&mut self, entry: &Entry, now: Instant) -> Result<bool> {
        let Some(member) = entry.version_field("a group's log")? else {
            return Ok(false);
        };
        let member = String::from_utf8_lossy(member).into_owned();
        if member == self.me {
            return Ok(false);
        }
        let say = entry.text("say").unwrap_or_default();
        if say == Say::Bye.word() {
            self.heard.remove(&member);
            self.view.remove(&member);
            if self.gone.len() >= MOST_GONE {
                // Whoever is among them was silent since: what it owned may be taken over all the same.
                self.gone.clear();
            }
            self.gone.insert(member);
            return Ok(true);
        }
        if self.gone.contains(&member) {
            return Ok(false);
        }
        check_protocol(entry.text("protocol").unwrap_or_default())?;
        let ttl = Duration::from_millis(entry.number("ttl").unwrap_or(0));
        self.heard.insert(member.clone(), Heard { at: now, ttl });
        let owned: BTreeSet<u32> = entry
            .text("owned")
            .unwrap_or_default()
            .split(',')
            .filter_map(|partition| partition.parse().ok())
            .collect();
        let before = self.view.insert(member, owned.clone());
        Ok(before.as_ref() != Some(&owned) || say == Say::Own.word())
    }

    /// Forgets a member that this process knows to be over.
    pub(crate) fn bury(&mut self, member: &str) {
        self.heard.remove(member);
        self.view.remove(member);
        self.gone.insert(member.to_owned());
    }

    /// Says when the next member will have been silent for too long.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.heard.values().map(|heard| heard.at + heard.ttl).min()
    }

    pub(crate) fn silent(&self, now: Instant) -> Vec<String> {
        self.heard
            .iter()
            .filter(|(_, heard)| now.saturating_duration_since(heard.at) > heard.ttl)
            .map(|(member, _)| member.clone())
            .collect()
    }

    /// Takes members for dead that are silent still, after the log was read again.
    pub(crate) fn expire(&mut self, suspects: &[String], now: Instant) -> bool {
        let silent = self.silent(now);
        let dead: Vec<&String> = suspects.iter().filter(|member| silent.contains(member)).collect();
        for member in &dead {
            self.heard.remove(*member);
            self.view.remove(*member);
        }
        !dead.is_empty()
    }

    /// Tells whether what a session owned may be taken over: it left, or was silent for too long. One that was never
    /// heard of has the time that its own entry names, from when this member began to listen.
    pub(crate) fn is_over(&self, session: &str, ttl: Duration, now: Instant) -> bool {
        session.is_empty()
            || session == self.me
            || self.gone.contains(session)
            || (!self.heard.contains_key(session) && now.saturating_duration_since(self.since) > ttl)
    }

    /// Says who should own what, this member's own included.
    pub(crate) fn target(&self, partitions: u32, mine: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut view = self.view.clone();
        view.insert(self.me.clone(), mine.clone());
        let mut target: BTreeMap<String, BTreeSet<u32>> = mq_api::assign::assign(partitions, &view);
        target.remove(&self.me).unwrap_or_default()
    }
}

/// The group runs the lowest common protocol; there is one so far.
fn check_protocol(range: &str) -> Result<()> {
    let lowest = range
        .split_once('-')
        .and_then(|(lowest, _)| lowest.parse().ok())
        .unwrap_or(PROTOCOL);
    if lowest > PROTOCOL {
        return Err(error::newer_format(
            "the protocol of this group",
            &lowest.to_string(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mq_api::ErrorKind;

    use super::*;
    use crate::{format::EntryId, resp::Reply};

    const TTL: Duration = Duration::from_secs(6);

    fn entry(fields: &[&str]) -> Entry {
        Entry {
            id: EntryId { ms: 1, seq: 1 },
            fields: fields
                .iter()
                .map(|field| Reply::Text(Bytes::copy_from_slice(field.as_bytes())))
                .collect(),
        }
    }

    fn said(member: &str, what: &str, owned: &str) -> Entry {
        entry(&[
            "mq1", member, "say", what, "owned", owned, "ttl", "6000", "protocol", "1-1",
        ])
    }

    #[test]
    fn version_one_of_the_log_is_frozen() {
        let words: Vec<String> = say("log", "s1", Say::Own, [0, 3], TTL)
            .args_iter()
            .map(|arg| match arg {
                redis::Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                _ => panic!("no such argument is written"),
            })
            .collect();
        assert_eq!(
            words,
            [
                "XADD",
                "log",
                "NOMKSTREAM",
                "MAXLEN",
                "~",
                "2000",
                "*",
                "mq1",
                "s1",
                "say",
                "own",
                "owned",
                "0,3",
                "ttl",
                "6000",
                "protocol",
                "1-1"
            ]
        );
    }

    #[test]
    fn a_newer_log_or_protocol_is_an_error() {
        let mut members = Members::new("me", Instant::now());
        for newer in [
            entry(&["mq2", "s1", "say", "hb"]),
            entry(&["mq1", "s1", "say", "hb", "protocol", "2-3"]),
        ] {
            let error = members.hear(&newer, Instant::now()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol);
        }
        assert!(
            members
                .hear(
                    &entry(&["mq1", "s1", "say", "hb", "protocol", "1-3"]),
                    Instant::now()
                )
                .is_ok()
        );
    }

    #[test]
    fn a_member_that_left_or_was_silent_is_over() {
        let start = Instant::now();
        let mut members = Members::new("me", start);
        assert!(members.hear(&said("a", "join", ""), start).unwrap());
        assert!(!members.hear(&said("a", "hb", ""), start).unwrap());
        assert!(!members.is_over("a", TTL, start + TTL * 2));
        assert_eq!(members.silent(start + TTL), Vec::<String>::new());
        let late = start + TTL + Duration::from_millis(1);
        let suspects = members.silent(late);
        assert_eq!(suspects, ["a"]);
        assert!(members.expire(&suspects, late));
        assert!(members.is_over("a", TTL, late));
        // It was only slow: what it owned may be gone, but it is a member again.
        assert!(members.hear(&said("a", "hb", "1"), late).unwrap());
        assert!(!members.is_over("a", TTL, late));
        assert!(members.hear(&said("a", "bye", ""), late).unwrap());
        assert!(members.is_over("a", TTL, late));
        assert!(!members.hear(&said("a", "hb", "1"), late).unwrap());
    }

    #[test]
    fn an_owner_never_heard_of_has_its_time_from_when_i_began() {
        let start = Instant::now();
        let members = Members::new("me", start);
        assert!(!members.is_over("ghost", TTL, start + TTL));
        assert!(members.is_over("ghost", TTL, start + TTL + Duration::from_millis(1)));
        assert!(members.is_over("", TTL, start));
    }

    #[test]
    fn a_suspect_that_was_heard_meanwhile_stays() {
        let start = Instant::now();
        let mut members = Members::new("me", start);
        members.hear(&said("a", "hb", "0"), start).unwrap();
        let late = start + TTL * 2;
        let suspects = members.silent(late);
        members.hear(&said("a", "hb", "0"), late).unwrap();
        assert!(!members.expire(&suspects, late));
        assert_eq!(members.target(2, &BTreeSet::from([1])), BTreeSet::from([1]));
    }
}
