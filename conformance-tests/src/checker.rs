//! Judges a history.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    time::Duration,
};

use mq_api::Offset;

use crate::{
    failure::{CaseResult, Failure},
    history::{How, Record, SendResult, What, is_intact},
};

/// How many records before and behind the one that broke a rule are shown.
const AROUND: usize = 6;

/// How many breaches of one rule are shown.
const MOST: usize = 3;

/// Says what a history must hold to.
#[derive(Clone, Debug)]
pub(crate) struct Expect {
    /// The groups that must have been handed every message answered `Ok`.
    pub(crate) complete_for: Vec<String>,
    /// Whether first deliveries of one sender to one partition must come in the order of its sends.
    pub(crate) ordered: bool,
    /// Whether a partition has one owner at a time: not in shared and broadcast mode.
    pub(crate) exclusive: bool,
    /// The longest time without a hand-over while messages were outstanding; none: not looked at.
    pub(crate) progress: Option<Duration>,
    /// Whether each payload carries its checksum.
    pub(crate) checksums: bool,
}

impl Expect {
    /// Expects all rules of partitioned mode of these groups.
    pub(crate) fn complete_for<G: Into<String>>(groups: impl IntoIterator<Item = G>) -> Self {
        Self {
            complete_for: groups.into_iter().map(Into::into).collect(),
            ordered: true,
            exclusive: true,
            progress: None,
            checksums: true,
        }
    }
}

/// Judges a history by every rule that is expected, and says what was seen with the records around it.
///
/// # Errors
/// A failure that names each breach: lost, unexpected, corrupted, reordered, doubled within an epoch, delivered after
/// a stored ack, overlapping owners, a commit that went back, stuck.
pub(crate) fn check(records: &[Record], expect: &Expect) -> CaseResult {
    let view = View::of(records);
    let mut rules: Vec<(&str, Vec<Breach>)> = Vec::new();
    let mut rule = |name, applies: bool, look: &dyn Fn(&mut Vec<Breach>)| {
        let mut breaches = Vec::new();
        if applies {
            look(&mut breaches);
        }
        if !breaches.is_empty() {
            rules.push((name, breaches));
        }
    };
    rule("lost", true, &|found| view.lost(expect, found));
    rule("unexpected", true, &|found| view.unexpected(found));
    rule("corrupted", expect.checksums, &|found| view.corrupted(found));
    rule("reordered", expect.ordered, &|found| view.reordered(found));
    rule("doubled within a tenure", expect.exclusive, &|found| {
        view.doubled(found);
    });
    rule("overlapping owners", expect.exclusive, &|found| {
        view.overlapping(found);
    });
    rule("delivered after a stored ack", true, &|found| {
        view.after_stored_ack(found);
    });
    rule("commit going back", true, &|found| view.commit_back(found));
    if let Some(progress) = expect.progress {
        rule("stuck", true, &|found| view.stuck(progress, found));
    }
    if rules.is_empty() {
        return Ok(());
    }
    let counts: Vec<_> = rules
        .iter()
        .map(|(name, breaches)| format!("{name}, seen {} times", breaches.len()))
        .collect();
    let mut text = format!(
        "the history of {} records breaks {} rules: {}",
        records.len(),
        rules.len(),
        counts.join("; ")
    );
    for (name, breaches) in &rules {
        for breach in breaches.iter().take(MOST) {
            let _ = write!(text, "\n  {}", breach.text);
            for at in breach.at.saturating_sub(AROUND)..(breach.at + AROUND + 1).min(records.len()) {
                let mark = if at == breach.at { '>' } else { ' ' };
                if let Some(record) = records.get(at) {
                    let _ = write!(text, "\n    {mark} {}", show(record));
                }
            }
        }
        if breaches.len() > MOST {
            let _ = write!(text, "\n  and {} more of: {name}", breaches.len() - MOST);
        }
    }
    Err(Failure::new(text))
}

struct Breach {
    text: String,
    /// The record that shows it.
    at: usize,
}

/// A hand-over with its place in the history.
#[derive(Clone, Copy)]
struct Hand<'a> {
    at: usize,
    group: &'a str,
    member: &'a str,
    payload: &'a str,
    partition: u32,
    offset: Offset,
    epoch: u64,
    stamp: u64,
}

/// Names a partition of a group.
type Lane<'a> = (&'a str, u32);

/// When each tenure, by epoch and member, handed over first.
type Tenures<'a> = HashMap<(u64, &'a str), u64>;

/// When a message was acked, and which it is.
type Ack = (Duration, u32, Offset);

struct View<'a> {
    records: &'a [Record],
    sent: HashMap<&'a str, (usize, &'a str, u64, &'a SendResult)>,
    hands: Vec<Hand<'a>>,
}

impl<'a> View<'a> {
    fn of(records: &'a [Record]) -> Self {
        let mut sent = HashMap::new();
        let mut hands = Vec::new();
        for (at, record) in records.iter().enumerate() {
            match &record.what {
                What::Sent {
                    payload,
                    sender,
                    sequence,
                    result,
                } => {
                    sent.insert(payload.as_str(), (at, sender.as_str(), *sequence, result));
                }
                What::HandedOver {
                    group,
                    member,
                    payload,
                    partition,
                    offset,
                    epoch,
                    stamp,
                    ..
                } => hands.push(Hand {
                    at,
                    group,
                    member,
                    payload,
                    partition: *partition,
                    offset: *offset,
                    epoch: *epoch,
                    stamp: *stamp,
                }),
                _ => {}
            }
        }
        Self { records, sent, hands }
    }

    fn lost(&self, expect: &Expect, breaches: &mut Vec<Breach>) {
        for group in &expect.complete_for {
            let came: BTreeSet<&str> = self
                .hands
                .iter()
                .filter(|hand| hand.group == group)
                .map(|hand| hand.payload)
                .collect();
            let mut lost: Vec<_> = self
                .sent
                .iter()
                .filter(|(payload, (_, _, _, result))| {
                    matches!(result, SendResult::Stored(..)) && !came.contains(*payload)
                })
                .collect();
            lost.sort_by_key(|(_, (at, ..))| *at);
            if let Some((payload, (at, ..))) = lost.first() {
                breaches.push(Breach {
                    text: format!(
                        "lost: {} messages answered Ok never came to group {group}, the first {}",
                        lost.len(),
                        brief(payload)
                    ),
                    at: *at,
                });
            }
        }
    }

    fn unexpected(&self, breaches: &mut Vec<Breach>) {
        let mut told = BTreeSet::new();
        for hand in &self.hands {
            let text = match self.sent.get(hand.payload) {
                None => format!(
                    "unexpected: {} was handed over and never sent",
                    brief(hand.payload)
                ),
                Some((_, _, _, SendResult::NotSent(error))) => format!(
                    "unexpected: {} was answered NotSent ({error}) and was handed over",
                    brief(hand.payload)
                ),
                Some(_) => continue,
            };
            if told.insert(hand.payload) {
                breaches.push(Breach { text, at: hand.at });
            }
        }
    }

    fn corrupted(&self, breaches: &mut Vec<Breach>) {
        for hand in &self.hands {
            if !is_intact(hand.payload) {
                breaches.push(Breach {
                    text: format!("corrupted: the payload of offset {} is damaged", hand.offset),
                    at: hand.at,
                });
            }
        }
    }

    /// First deliveries of messages answered `Ok`, by group, partition and sender, come in the order of the sends.
    fn reordered(&self, breaches: &mut Vec<Breach>) {
        let mut first_seen = BTreeSet::new();
        let mut last: BTreeMap<(&str, u32, &str), (u64, &str)> = BTreeMap::new();
        let mut hands: Vec<&Hand<'_>> = self.hands.iter().collect();
        // Reports of several processes arrive in any order; the engine's stamps are what counts.
        hands.sort_by_key(|hand| (hand.stamp, hand.at));
        for hand in hands {
            if !first_seen.insert((hand.group, hand.payload)) {
                continue;
            }
            let Some((_, sender, sequence, SendResult::Stored(..))) = self.sent.get(hand.payload) else {
                continue;
            };
            let lane = (hand.group, hand.partition, *sender);
            match last.get(&lane) {
                Some((before, payload)) if before > sequence => breaches.push(Breach {
                    text: format!(
                        "reordered: in partition {} group {} first saw {} behind {}, which was sent later",
                        hand.partition,
                        hand.group,
                        brief(hand.payload),
                        brief(payload)
                    ),
                    at: hand.at,
                }),
                _ => {
                    last.insert(lane, (*sequence, hand.payload));
                }
            }
        }
    }

    /// Within one epoch an offset comes again only after it was given back.
    fn doubled(&self, breaches: &mut Vec<Breach>) {
        let mut open: HashMap<(&str, u32, u64, Offset), bool> = HashMap::new();
        for (at, record) in self.records.iter().enumerate() {
            match &record.what {
                What::HandedOver {
                    group,
                    member,
                    partition,
                    epoch,
                    offset,
                    payload,
                    ..
                } => {
                    let given_back = open.insert((group, *partition, *epoch, *offset), false);
                    if given_back == Some(false) {
                        breaches.push(Breach {
                            text: format!(
                                "doubled: {} (partition {partition}, offset {offset}) was handed to {member} twice within \
                                 epoch {epoch} without being given back",
                                brief(payload)
                            ),
                            at,
                        });
                    }
                }
                What::Settled {
                    group,
                    partition,
                    epoch,
                    offset,
                    how: How::Nack | How::Drop,
                    ..
                } => {
                    open.insert((group, *partition, *epoch, *offset), true);
                }
                _ => {}
            }
        }
    }

    /// After the first hand-over of a later tenure, an earlier one hands nothing over and no ack under it is accepted.
    /// Tenures are in the order of their first hand-overs: epochs need not compare between members.
    fn overlapping(&self, breaches: &mut Vec<Breach>) {
        let mut began: BTreeMap<Lane<'_>, Tenures<'_>> = BTreeMap::new();
        for hand in &self.hands {
            let tenures = began.entry((hand.group, hand.partition)).or_default();
            let first = tenures.entry((hand.epoch, hand.member)).or_insert(hand.stamp);
            *first = (*first).min(hand.stamp);
        }
        let successor = |group: &str, partition: u32, epoch: u64, member: &str, stamp: u64| {
            let tenures = began.get(&(group, partition))?;
            let mine = *tenures.get(&(epoch, member))?;
            tenures
                .iter()
                .filter(|((_, owner), first)| *owner != member && mine < **first && **first < stamp)
                .min_by_key(|(_, first)| **first)
                .map(|((later, owner), first)| (*later, *first, (*owner).to_owned()))
        };
        for hand in &self.hands {
            if let Some((later, first, owner)) =
                successor(hand.group, hand.partition, hand.epoch, hand.member, hand.stamp)
            {
                breaches.push(Breach {
                    text: format!(
                        "overlapping owners: {} was handed offset {} of partition {} under epoch {}, {:?} after {owner} began \
                         with epoch {later}",
                        hand.member,
                        hand.offset,
                        hand.partition,
                        hand.epoch,
                        Duration::from_nanos(hand.stamp - first)
                    ),
                    at: hand.at,
                });
            }
        }
        for (at, record) in self.records.iter().enumerate() {
            if let What::Settled {
                group,
                member,
                partition,
                offset,
                epoch,
                how: How::Ack,
                accepted: true,
                stamp,
            } = &record.what
                && let Some((later, first, owner)) = successor(group, *partition, *epoch, member, *stamp)
            {
                breaches.push(Breach {
                    text: format!(
                        "overlapping owners: an ack by {member} of offset {offset} of partition {partition} under epoch {epoch} \
                         was accepted {:?} after {owner} began with epoch {later}",
                        Duration::from_nanos(stamp - first)
                    ),
                    at,
                });
            }
        }
    }

    /// What was acked when a `commit` was called that returned `Ok` is not handed over again. Reports of other processes
    /// come late, so the stamps count.
    fn after_stored_ack(&self, breaches: &mut Vec<Breach>) {
        let mut acked: HashMap<(&str, &str), Vec<Ack>> = HashMap::new();
        let mut stored: HashMap<(&str, u32, Offset), (usize, u64)> = HashMap::new();
        for (at, record) in self.records.iter().enumerate() {
            match &record.what {
                What::Settled {
                    group,
                    member,
                    partition,
                    offset,
                    how: How::Ack,
                    accepted: true,
                    ..
                } => acked
                    .entry((group, member))
                    .or_default()
                    .push((record.at, *partition, *offset)),
                What::Stored {
                    group,
                    member,
                    called,
                    stamp,
                } => {
                    let Some(acks) = acked.get_mut(&(group.as_str(), member.as_str())) else {
                        continue;
                    };
                    acks.retain(|(when, partition, offset)| {
                        let before = when <= called;
                        if before {
                            stored.insert((group, *partition, *offset), (at, *stamp));
                        }
                        !before
                    });
                }
                What::NotStored { group, member } => {
                    acked.remove(&(group.as_str(), member.as_str()));
                }
                What::HandedOver {
                    group,
                    member,
                    partition,
                    offset,
                    payload,
                    stamp,
                    ..
                } => {
                    if let Some((when, returned)) = stored.get(&(group.as_str(), *partition, *offset))
                        && stamp > returned
                    {
                        breaches.push(Breach {
                            text: format!(
                                "delivered after a stored ack: {} (partition {partition}, offset {offset}) came to {member} \
                                 again; the commit that stored its ack returned at {:?}",
                                brief(payload),
                                self.records.get(*when).map_or(Duration::ZERO, |record| record.at)
                            ),
                            at,
                        });
                    }
                }
                _ => {}
            }
        }
    }

    fn commit_back(&self, breaches: &mut Vec<Breach>) {
        let mut highest: HashMap<(&str, u32), Offset> = HashMap::new();
        for (at, record) in self.records.iter().enumerate() {
            if let What::Committed {
                group,
                partition,
                position,
            } = &record.what
            {
                let before = highest.entry((group, *partition)).or_insert(*position);
                if *position < *before {
                    breaches.push(Breach {
                        text: format!(
                            "commit going back: group {group}, partition {partition} was at {before} and is at {position}"
                        ),
                        at,
                    });
                }
                *before = (*before).max(*position);
            }
        }
    }

    /// While a message answered `Ok` was outstanding for a group and there was a server, something was handed to that
    /// group in time: how long a server takes to start is not the members' time.
    fn stuck(&self, progress: Duration, breaches: &mut Vec<Breach>) {
        let groups: BTreeSet<&str> = self.hands.iter().map(|hand| hand.group).collect();
        for group in groups {
            let mut outstanding: BTreeSet<&str> = BTreeSet::new();
            let mut came: BTreeSet<&str> = BTreeSet::new();
            let mut since: Option<Duration> = None;
            let mut away = false;
            for (at, record) in self.records.iter().enumerate() {
                if let Some(since) = since
                    && !away
                    && record.at.saturating_sub(since) > progress
                    && !outstanding.is_empty()
                {
                    breaches.push(Breach {
                        text: format!(
                            "stuck: group {group} was handed nothing from {since:?} to {:?} while {} messages were outstanding",
                            record.at,
                            outstanding.len()
                        ),
                        at,
                    });
                }
                match &record.what {
                    What::Sent {
                        payload,
                        result: SendResult::Stored(..),
                        ..
                    } if !came.contains(payload.as_str()) => {
                        if outstanding.is_empty() {
                            since = Some(record.at);
                        }
                        outstanding.insert(payload);
                    }
                    What::HandedOver {
                        group: to, payload, ..
                    } if to == group => {
                        outstanding.remove(payload.as_str());
                        came.insert(payload);
                        since = Some(record.at);
                    }
                    What::Disturbed { away: now, .. } => {
                        away = *now;
                        since = Some(record.at);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Names a payload without its checksum and filler.
fn brief(payload: &str) -> String {
    let body = payload.split_once('|').map_or(payload, |(_, body)| body);
    let name = body.split_once('|').map_or(body, |(name, _)| name);
    format!("{:?}", crate::flow::shorten(name))
}

fn show(record: &Record) -> String {
    let at = record.at.as_secs_f64();
    let what = match &record.what {
        What::Sent {
            payload,
            sender,
            sequence,
            result,
        } => format!(
            "sent {} by {sender} as number {sequence}: {result:?}",
            brief(payload)
        ),
        What::HandedOver {
            group,
            member,
            payload,
            partition,
            offset,
            epoch,
            attempt,
            stamp,
        } => format!(
            "{member} of {group} got {}: partition {partition}, offset {offset}, epoch {epoch}, attempt {attempt}, stamp {:.6} s",
            brief(payload),
            Duration::from_nanos(*stamp).as_secs_f64()
        ),
        What::Settled {
            group,
            member,
            partition,
            offset,
            epoch,
            how,
            accepted,
            ..
        } => format!(
            "{member} of {group} settled partition {partition}, offset {offset}, epoch {epoch}: {how:?}, {}",
            if *accepted { "accepted" } else { "refused as stale" }
        ),
        What::Stored {
            group,
            member,
            called,
            ..
        } => format!(
            "{member} of {group}: the commit called at {:.6} s returned",
            called.as_secs_f64()
        ),
        What::NotStored { group, member } => format!("{member} of {group}: a commit failed"),
        What::Committed {
            group,
            partition,
            position,
        } => format!("{group}: partition {partition} is committed at {position}"),
        What::Gone { group, member } => format!("{member} of {group} is gone"),
        What::Disturbed { what, .. } => format!("server: {what}"),
    };
    format!("{at:>10.6} s  {what}")
}

#[cfg(test)]
mod tests;
