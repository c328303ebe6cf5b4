//! A partitioned group: who owns which partition, and what is stored for it.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use mq_api::{
    Error, Offset, Result, TopicId,
    assign::{View, assign},
    driver::{Assignment, AssignmentId, Commit, CommitOutcome, CommittedPosition},
};

use crate::{
    error::MemoryError,
    faults::FaultState,
    member::{End, Member, MemberId},
    sync::lock,
    timer::Timer,
    wakes::Wakes,
};

/// Holds one group of one life of a topic.
pub(crate) struct Group {
    topic_id: TopicId,
    timer: Arc<Timer>,
    faults: Arc<FaultState>,
    state: Mutex<State>,
}

struct State {
    members: BTreeMap<MemberId, Seat>,
    slots: Vec<Slot>,
    /// Whether a timer job looks after the leases.
    checking: bool,
    ended: bool,
}

struct Seat {
    member: Arc<Member>,
    state: Presence,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Present,
    /// Its lease has run out: it owns nothing until it begins a new session.
    Expired,
    /// Its connection is lost: it owns nothing until the broker can be reached again.
    Disconnected,
}

impl Seat {
    fn is_present(&self) -> bool {
        self.state == Presence::Present
    }
}

/// What the group knows of one partition.
struct Slot {
    owner: Option<MemberId>,
    epoch: u64,
    /// The owner was asked to give it back.
    revoking: bool,
    /// The last owner gave it back in order, or there was none.
    clean: bool,
    position: Offset,
    acked_above: Vec<Range<Offset>>,
    attempts: Vec<(Offset, u32)>,
}

/// How a member goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It was closed: what it still held is given back in order.
    Closed,
    /// It vanished.
    Vanished,
}

impl Group {
    /// Makes a group that begins at these offsets, one a partition.
    pub(crate) fn new(
        topic_id: TopicId,
        timer: Arc<Timer>,
        faults: Arc<FaultState>,
        starts: Vec<Offset>,
    ) -> Self {
        Self {
            topic_id,
            timer,
            faults,
            state: Mutex::new(State {
                members: BTreeMap::new(),
                slots: starts.into_iter().map(Slot::new).collect(),
                checking: false,
                ended: false,
            }),
        }
    }

    /// Lets a member in and shares out anew.
    pub(crate) fn join(self: &Arc<Self>, member: Arc<Member>, wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        if state.ended {
            member.end(End::TopicGone, wakes);
            return;
        }
        let renew_every = member.renew_every();
        let seat = Seat {
            member: Arc::clone(&member),
            state: Presence::Present,
        };
        state.members.insert(member.id, seat);
        self.rebalance(&mut state, wakes);
        if let Some(every) = renew_every
            && !std::mem::replace(&mut state.checking, true)
        {
            self.check_after(every);
        }
    }

    /// Renews a member's lease, as its own task asks; where it has run out, a new session begins. `false` once the
    /// member has gone.
    pub(crate) fn keep_alive(self: &Arc<Self>, member: MemberId, wakes: &mut Wakes) -> bool {
        let mut state = lock(&self.state);
        let Some(seat) = state.members.get(&member) else {
            return false;
        };
        let stays_away = seat.state == Presence::Disconnected || seat.member.is_frozen();
        if stays_away || self.faults.is_halted() || seat.is_present() && seat.member.renew() {
            return true;
        }
        if seat.is_present() {
            state.expire(member, wakes);
        }
        if let Some(seat) = state.members.get_mut(&member) {
            seat.state = Presence::Present;
            seat.member.renew_session();
        }
        self.rebalance(&mut state, wakes);
        true
    }

    /// Lets a member go. Does nothing for one that has gone before.
    pub(crate) fn leave(self: &Arc<Self>, member: MemberId, how: Leave, wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        let Some(seat) = state.members.remove(&member) else {
            return;
        };
        for slot in state.slots.iter_mut().filter(|slot| slot.owner == Some(member)) {
            slot.free(how == Leave::Closed);
        }
        seat.member.end(End::Closed, wakes);
        self.rebalance(&mut state, wakes);
    }

    /// Takes back what an owner gives back, and shares out anew.
    pub(crate) fn release(self: &Arc<Self>, member: MemberId, ids: &[AssignmentId], wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        if let Some(seat) = state.members.get(&member) {
            seat.member.order(wakes, |orders| {
                orders.stop.extend(ids.iter().map(|id| (id.partition, id.epoch)));
            });
        }
        for id in ids {
            if let Some(slot) = state.owned(member, *id) {
                slot.free(true);
            }
        }
        self.rebalance(&mut state, wakes);
    }

    /// Stores positions of partitions that the member still owns.
    pub(crate) fn commit(&self, member: &Member, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let mut state = lock(&self.state);
        let alive = member.is_alive();
        commits
            .into_iter()
            .map(|commit| {
                Ok(match state.owned(member.id, commit.assignment) {
                    Some(slot) if alive => {
                        slot.position = commit.position;
                        slot.acked_above = commit.acked_above;
                        slot.attempts = commit.attempts;
                        CommitOutcome::Stored
                    }
                    _ => CommitOutcome::Lost,
                })
            })
            .collect()
    }

    /// Tells whether an assignment is still the member's.
    pub(crate) fn check_owner(&self, member: MemberId, id: AssignmentId) -> Result<()> {
        match lock(&self.state).owned(member, id) {
            Some(_) => Ok(()),
            None => Err(MemoryError::NotAssigned {
                partition: id.partition,
                epoch: id.epoch,
            }
            .into()),
        }
    }

    pub(crate) fn committed(&self) -> Vec<CommittedPosition> {
        let state = lock(&self.state);
        (0..)
            .zip(&state.slots)
            .map(|(partition, slot)| {
                CommittedPosition::new(partition, slot.position).with_acked_above(slot.acked_above.clone())
            })
            .collect()
    }

    /// Adds partitions up to a count; they begin at their first message.
    pub(crate) fn grow(self: &Arc<Self>, partitions: u32, wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        while (state.slots.len() as u64) < u64::from(partitions) {
            state.slots.push(Slot::new(0));
        }
        self.rebalance(&mut state, wakes);
    }

    /// Ends all members, since the topic is gone.
    pub(crate) fn end(&self, wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        state.ended = true;
        for seat in std::mem::take(&mut state.members).into_values() {
            seat.member.end(End::TopicGone, wakes);
        }
        for slot in &mut state.slots {
            slot.free(true);
        }
    }

    /// Ends all sessions, as a lost connection does; what was stored stays.
    pub(crate) fn lose_sessions(&self, error: &Error, wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        let State { members, slots, .. } = &mut *state;
        for (partition, slot) in (0..).zip(slots.iter_mut()) {
            take_away(members, partition, slot, wakes);
        }
        for seat in members.values_mut() {
            seat.state = Presence::Disconnected;
            seat.member.outage(error, wakes);
        }
    }

    /// Begins new sessions for members that lost theirs.
    pub(crate) fn recover_sessions(self: &Arc<Self>, wakes: &mut Wakes) {
        let mut state = lock(&self.state);
        let back = |seat: &&mut Seat| seat.state == Presence::Disconnected;
        for seat in state.members.values_mut().filter(back) {
            seat.state = Presence::Present;
            seat.member.renew_session();
            seat.member.recover(wakes);
        }
        self.rebalance(&mut state, wakes);
    }

    /// Asks the owner of a partition to give it back, or takes it away unasked; `false` where it has none.
    pub(crate) fn revoke(self: &Arc<Self>, partition: u32, unasked: bool, wakes: &mut Wakes) -> bool {
        let mut state = lock(&self.state);
        let State { members, slots, .. } = &mut *state;
        let Some(slot) = slots.get_mut(partition as usize) else {
            return false;
        };
        let Some(seat) = slot.owner.and_then(|owner| members.get(&owner)) else {
            return false;
        };
        if unasked {
            take_away(members, partition, slot, wakes);
            self.rebalance(&mut state, wakes);
        } else if !slot.revoking {
            self.ask_back(&seat.member, partition, slot, wakes);
        }
        true
    }

    /// Freezes or thaws the owner of a partition; `false` where it has none.
    pub(crate) fn freeze_owner(&self, partition: u32, wakes: &mut Wakes) -> bool {
        let state = lock(&self.state);
        let owner = state.slots.get(partition as usize).and_then(|slot| slot.owner);
        let Some(seat) = owner.and_then(|owner| state.members.get(&owner)) else {
            return false;
        };
        seat.member.freeze(true, wakes);
        true
    }

    /// Thaws every frozen member.
    pub(crate) fn thaw_members(&self, wakes: &mut Wakes) {
        for seat in lock(&self.state).members.values() {
            seat.member.freeze(false, wakes);
        }
    }

    /// Makes every member look again.
    pub(crate) fn alert(&self, wakes: &mut Wakes) {
        for seat in lock(&self.state).members.values() {
            seat.member.signal.alert(wakes);
        }
    }

    /// Gives free partitions to those who should have them and asks for those that others should have.
    fn rebalance(self: &Arc<Self>, state: &mut State, wakes: &mut Wakes) {
        if state.ended {
            return;
        }
        let State { members, slots, .. } = state;
        let mut view: View = members
            .iter()
            .filter(|(_, seat)| seat.is_present())
            .map(|(id, _)| (view_name(*id), Default::default()))
            .collect();
        // What is on its way back is nobody's: its owner has stopped and will not go on with it.
        for (partition, slot) in (0..).zip(slots.iter()).filter(|(_, slot)| !slot.revoking) {
            if let Some(owned) = slot.owner.and_then(|owner| view.get_mut(&view_name(owner))) {
                owned.insert(partition);
            }
        }
        let target = assign(u32::try_from(slots.len()).unwrap_or(u32::MAX), &view);
        let seats = members.values().filter(|seat| seat.is_present());
        for (seat, partitions) in seats.zip(target.into_values()) {
            for partition in partitions {
                let Some(slot) = slots.get_mut(partition as usize) else {
                    continue;
                };
                match slot.owner.and_then(|owner| members.get(&owner)) {
                    None => self.give(&seat.member, partition, slot, wakes),
                    Some(owner) if owner.member.id != seat.member.id && !slot.revoking => {
                        self.ask_back(&owner.member, partition, slot, wakes);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn give(&self, member: &Member, partition: u32, slot: &mut Slot, wakes: &mut Wakes) {
        slot.epoch += 1;
        slot.owner = Some(member.id);
        slot.revoking = false;
        let id = AssignmentId {
            partition,
            epoch: slot.epoch,
        };
        let mut assignment = Assignment::new(id, slot.position)
            .with_topic_id(self.topic_id.clone())
            .with_acked_above(slot.acked_above.clone())
            .with_attempts(slot.attempts.clone())
            .with_clean(slot.clean);
        if let Some(lease) = member.lease() {
            assignment = assignment.with_lease(lease);
        }
        member.assign(assignment, wakes);
    }

    fn ask_back(self: &Arc<Self>, owner: &Member, partition: u32, slot: &mut Slot, wakes: &mut Wakes) {
        slot.revoking = true;
        let id = AssignmentId {
            partition,
            epoch: slot.epoch,
        };
        owner.revoke(id, wakes);
        let group = Arc::downgrade(self);
        self.timer.at(Instant::now() + owner.revoke_timeout, move || {
            if let Some(group) = group.upgrade() {
                group.give_up_waiting(id);
            }
        });
    }

    /// Takes a partition away whose owner was asked to give it back and has not.
    fn give_up_waiting(self: &Arc<Self>, id: AssignmentId) {
        let wakes = &mut Wakes::default();
        let mut state = lock(&self.state);
        let State { members, slots, .. } = &mut *state;
        if let Some(slot) = slots.get_mut(id.partition as usize)
            && slot.epoch == id.epoch
            && slot.revoking
        {
            take_away(members, id.partition, slot, wakes);
            self.rebalance(&mut state, wakes);
        }
    }

    fn check_after(self: &Arc<Self>, every: Duration) {
        let group: Weak<Self> = Arc::downgrade(self);
        self.timer.at(Instant::now() + every, move || {
            if let Some(group) = group.upgrade() {
                group.check_leases();
            }
        });
    }

    /// Takes away what members hold whose lease has run out.
    fn check_leases(self: &Arc<Self>) {
        let wakes = &mut Wakes::default();
        let mut state = lock(&self.state);
        // Nobody can renew with a broker that is out of reach, and nobody can take over from it.
        if !self.faults.is_halted() {
            let over = |seat: &&Seat| seat.is_present() && !seat.member.is_alive();
            let over: Vec<_> = state
                .members
                .values()
                .filter(over)
                .map(|seat| seat.member.id)
                .collect();
            for member in &over {
                state.expire(*member, wakes);
            }
            if !over.is_empty() {
                self.rebalance(&mut state, wakes);
            }
        }
        let every = |seat: &Seat| seat.member.renew_every();
        match state.members.values().filter_map(every).min() {
            Some(every) if !state.ended => self.check_after(every),
            _ => state.checking = false,
        }
    }
}

impl State {
    /// Ends the session of a member whose lease has run out.
    fn expire(&mut self, member: MemberId, wakes: &mut Wakes) {
        if let Some(seat) = self.members.get_mut(&member) {
            seat.state = Presence::Expired;
            for (partition, slot) in (0..).zip(self.slots.iter_mut()) {
                if slot.owner == Some(member) {
                    let epoch = slot.epoch;
                    slot.free(false);
                    seat.member.lose(AssignmentId { partition, epoch }, wakes);
                }
            }
        }
    }

    fn owned(&mut self, member: MemberId, id: AssignmentId) -> Option<&mut Slot> {
        self.slots
            .get_mut(id.partition as usize)
            .filter(|slot| slot.owner == Some(member) && slot.epoch == id.epoch)
    }
}

impl Slot {
    fn new(position: Offset) -> Self {
        Self {
            owner: None,
            epoch: 0,
            revoking: false,
            clean: true,
            position,
            acked_above: Vec::new(),
            attempts: Vec::new(),
        }
    }

    fn free(&mut self, clean: bool) {
        self.owner = None;
        self.revoking = false;
        self.clean = clean;
    }
}

fn take_away(members: &BTreeMap<MemberId, Seat>, partition: u32, slot: &mut Slot, wakes: &mut Wakes) {
    let id = AssignmentId {
        partition,
        epoch: slot.epoch,
    };
    if let Some(seat) = slot.owner.and_then(|owner| members.get(&owner)) {
        seat.member.lose(id, wakes);
        slot.free(false);
    }
}

/// Names a member so that the order of names is the order of numbers.
fn view_name(member: MemberId) -> String {
    format!("{member:020}")
}
