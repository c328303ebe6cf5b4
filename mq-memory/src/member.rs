//! One member of a partitioned group: its mail, which others put in and its event stream takes out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mq_api::{
    Clock, Error, Lease, Offset,
    driver::{Assignment, AssignmentId, Event},
};

use crate::{signal::Signal, sync::lock, wakes::Wakes};

/// Identifies a member within its broker; later members have higher numbers.
pub(crate) type MemberId = u64;

/// Connects a member's handles, its event stream and its group.
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) signal: Arc<Signal>,
    /// How long it may take to give a partition back.
    pub(crate) revoke_timeout: Duration,
    session: Option<Session>,
    has_mail: AtomicBool,
    mail: Mutex<Mail>,
    frozen: AtomicBool,
}

/// Keeps a member's lease.
struct Session {
    clock: Clock,
    length: Duration,
    lease: Mutex<Lease>,
}

/// Holds what the event stream has not taken yet. Bounded by the partitions: later news of one replaces earlier ones.
#[derive(Default)]
struct Mail {
    end: Option<End>,
    lost: BTreeMap<u32, u64>,
    outage: Option<Error>,
    recovered: bool,
    assigned: BTreeMap<u32, Assignment>,
    revoked: BTreeMap<u32, u64>,
    orders: Orders,
}

/// What the consumer's methods ask of the event stream.
#[derive(Default)]
pub(crate) struct Orders {
    pub(crate) stop: BTreeMap<u32, u64>,
    pub(crate) seek: BTreeMap<u32, (u64, Offset, u64)>,
    pub(crate) pause: BTreeMap<u32, (u64, bool)>,
}

/// Why nothing comes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    TopicGone,
    Closed,
}

/// What the event stream takes out.
pub(crate) enum Mailed {
    End(End),
    Event(Event),
}

impl Member {
    pub(crate) fn new(
        id: MemberId,
        partitions: u32,
        revoke_timeout: Duration,
        lease: Option<Duration>,
        clock: &Clock,
    ) -> Self {
        Self {
            id,
            signal: Arc::new(Signal::new(partitions)),
            revoke_timeout,
            session: lease.map(|length| Session {
                clock: clock.clone(),
                length,
                lease: Mutex::new(Lease::new(clock.clone(), clock.now() + length)),
            }),
            has_mail: AtomicBool::new(false),
            mail: Mutex::default(),
            frozen: AtomicBool::new(false),
        }
    }

    /// Returns the lease to put on assignments.
    pub(crate) fn lease(&self) -> Option<Lease> {
        self.session.as_ref().map(|session| lock(&session.lease).clone())
    }

    /// Tells how often the lease wants renewal, where there is one.
    pub(crate) fn renew_every(&self) -> Option<Duration> {
        self.session.as_ref().map(|session| session.length / 4)
    }

    /// Renews the lease; `false` where it has run out.
    pub(crate) fn renew(&self) -> bool {
        self.session.as_ref().is_none_or(|session| {
            let until = session.clock.now() + session.length;
            lock(&session.lease).renew(until)
        })
    }

    /// Tells whether the lease stands, true where there is none.
    pub(crate) fn is_alive(&self) -> bool {
        self.session
            .as_ref()
            .is_none_or(|session| lock(&session.lease).stands_at(session.clock.now()))
    }

    /// Begins a new session with a lease of its own; what hangs on the old lease stays ended.
    pub(crate) fn renew_session(&self) {
        if let Some(session) = &self.session {
            let mut lease = lock(&session.lease);
            lease.revoke();
            *lease = Lease::new(session.clock.clone(), session.clock.now() + session.length);
        }
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Freezes the member as an injected fault: nothing is renewed and no event comes, until it is thawed.
    pub(crate) fn freeze(&self, frozen: bool, wakes: &mut Wakes) {
        self.frozen.store(frozen, Ordering::Release);
        self.signal.alert(wakes);
    }

    pub(crate) fn assign(&self, assignment: Assignment, wakes: &mut Wakes) {
        self.post(wakes, |mail| {
            mail.assigned.insert(assignment.id.partition, assignment);
        });
    }

    pub(crate) fn revoke(&self, id: AssignmentId, wakes: &mut Wakes) {
        self.post(wakes, |mail| {
            mail.revoked.insert(id.partition, id.epoch);
        });
    }

    /// Says that a partition is gone. A tenure that the event stream has not heard of is taken back unseen.
    pub(crate) fn lose(&self, id: AssignmentId, wakes: &mut Wakes) {
        self.post(wakes, |mail| {
            if mail.revoked.get(&id.partition) == Some(&id.epoch) {
                mail.revoked.remove(&id.partition);
            }
            if mail.assigned.get(&id.partition).is_some_and(|a| a.id == id) {
                mail.assigned.remove(&id.partition);
            } else {
                mail.lost.insert(id.partition, id.epoch);
            }
        });
    }

    pub(crate) fn outage(&self, error: &Error, wakes: &mut Wakes) {
        self.post(wakes, |mail| {
            mail.outage = Some(error.clone());
            mail.recovered = false;
        });
    }

    pub(crate) fn recover(&self, wakes: &mut Wakes) {
        self.post(wakes, |mail| mail.recovered = true);
    }

    pub(crate) fn order(&self, wakes: &mut Wakes, order: impl FnOnce(&mut Orders)) {
        self.post(wakes, |mail| order(&mut mail.orders));
    }

    /// Ends the event stream, once.
    pub(crate) fn end(&self, end: End, wakes: &mut Wakes) {
        self.post(wakes, |mail| {
            mail.end.get_or_insert(end);
        });
    }

    /// Tells whether there is mail, without writing.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    /// Takes orders and the next event out. Called by the event stream only.
    pub(crate) fn take_mail(&self) -> (Orders, Option<Mailed>) {
        if !self.has_mail.load(Ordering::Acquire) {
            return (Orders::default(), None);
        }
        let mut mail = lock(&self.mail);
        let orders = std::mem::take(&mut mail.orders);
        let mailed = mail.next();
        // Under the lock, so that it cannot hide what is posted next; whether there is more is seen by the next call.
        self.has_mail.store(mailed.is_some(), Ordering::Release);
        (orders, mailed)
    }

    fn post(&self, wakes: &mut Wakes, change: impl FnOnce(&mut Mail)) {
        {
            let mut mail = lock(&self.mail);
            change(&mut mail);
            self.has_mail.store(true, Ordering::Release);
        }
        self.signal.alert(wakes);
    }
}

impl Mail {
    fn next(&mut self) -> Option<Mailed> {
        if let Some(end) = self.end {
            return Some(Mailed::End(end));
        }
        let event = if !self.lost.is_empty() {
            Event::Lost(ids(&mut self.lost))
        } else if let Some(error) = self.outage.take() {
            Event::Outage(error)
        } else if std::mem::take(&mut self.recovered) {
            Event::Recovered
        } else if !self.assigned.is_empty() {
            Event::Assigned(std::mem::take(&mut self.assigned).into_values().collect())
        } else if !self.revoked.is_empty() {
            Event::Revoked(ids(&mut self.revoked))
        } else {
            return None;
        };
        Some(Mailed::Event(event))
    }
}

fn ids(partitions: &mut BTreeMap<u32, u64>) -> Vec<AssignmentId> {
    std::mem::take(partitions)
        .into_iter()
        .map(|(partition, epoch)| AssignmentId { partition, epoch })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64) -> AssignmentId {
        AssignmentId { partition: 0, epoch }
    }

    fn events(member: &Member) -> Vec<String> {
        std::iter::from_fn(|| match member.take_mail().1? {
            Mailed::Event(event) => Some(
                format!("{event:?}")
                    .split('(')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            Mailed::End(end) => panic!("{end:?}"),
        })
        .collect()
    }

    fn member() -> Member {
        Member::new(1, 4, Duration::from_secs(1), None, &Clock::system())
    }

    #[test]
    fn a_tenure_that_was_never_seen_is_taken_back_unseen() {
        let (member, wakes) = (member(), &mut Wakes::default());
        member.assign(Assignment::new(id(1), 0), wakes);
        member.revoke(id(1), wakes);
        member.lose(id(1), wakes);
        assert!(events(&member).is_empty());
    }

    #[test]
    fn a_lost_session_is_told_before_what_follows_it() {
        let (member, wakes) = (member(), &mut Wakes::default());
        member.assign(Assignment::new(id(1), 0), wakes);
        assert_eq!(events(&member), ["Assigned"]);
        member.lose(id(1), wakes);
        member.outage(&Error::closed("test"), wakes);
        member.recover(wakes);
        member.assign(Assignment::new(id(2), 0), wakes);
        assert_eq!(events(&member), ["Lost", "Outage", "Recovered", "Assigned"]);
    }
}
