//! One bad history for each rule, and one good one.

use super::*;
use crate::history::payload;

/// Builds histories line by line, a millisecond apart.
#[derive(Default)]
struct Story {
    records: Vec<Record>,
}

impl Story {
    fn then(mut self, what: What) -> Self {
        let at = Duration::from_millis(self.records.len() as u64);
        self.records.push(Record { at, what });
        self
    }

    fn later(mut self, by: Duration) -> Self {
        let at = self.records.last().map_or(by, |record| record.at + by);
        let what = What::Committed {
            group: "clock".to_owned(),
            partition: 0,
            position: 0,
        };
        self.records.push(Record { at, what });
        self
    }

    fn sent(self, sequence: u64) -> Self {
        self.sent_as(sequence, SendResult::Stored(0, Some(sequence)))
    }

    fn sent_as(self, sequence: u64, result: SendResult) -> Self {
        self.then(What::Sent {
            payload: payload("p", sequence, 0),
            sender: "p".to_owned(),
            sequence,
            result,
        })
    }

    fn got(self, member: &str, epoch: u64, offset: Offset) -> Self {
        let stamp = self.records.len() as u64;
        self.got_at(member, epoch, offset, stamp)
    }

    fn got_at(self, member: &str, epoch: u64, offset: Offset, stamp: u64) -> Self {
        self.then(What::HandedOver {
            group: "g".to_owned(),
            member: member.to_owned(),
            payload: payload("p", offset, 0),
            partition: 0,
            offset,
            epoch,
            attempt: 1,
            stamp,
        })
    }

    fn settled(self, member: &str, epoch: u64, offset: Offset, how: How) -> Self {
        let stamp = self.records.len() as u64;
        self.then(What::Settled {
            group: "g".to_owned(),
            member: member.to_owned(),
            partition: 0,
            offset,
            epoch,
            how,
            accepted: true,
            stamp,
        })
    }

    fn stored(self, member: &str) -> Self {
        let called = Duration::from_millis(self.records.len() as u64);
        let stamp = self.records.len() as u64;
        self.then(What::Stored {
            group: "g".to_owned(),
            member: member.to_owned(),
            called,
            stamp,
        })
    }

    fn committed(self, position: Offset) -> Self {
        self.then(What::Committed {
            group: "g".to_owned(),
            partition: 0,
            position,
        })
    }

    fn breaks(self, rule: &str) {
        let mut expect = Expect::complete_for(["g"]);
        expect.progress = Some(Duration::from_secs(5));
        let text = check(&self.records, &expect).expect_err(rule).to_string();
        assert!(text.contains("breaks 1 rules"), "{text}");
        assert!(text.contains(rule), "{text}");
        assert!(text.contains("\n    > "), "shows the record: {text}");
    }
}

#[test]
fn a_good_history_breaks_nothing() {
    let mut expect = Expect::complete_for(["g"]);
    expect.progress = Some(Duration::from_secs(5));
    let story = Story::default()
        .sent(0)
        .sent(1)
        .sent_as(2, SendResult::NotSent("full".to_owned()))
        .sent_as(3, SendResult::Unknown("cut".to_owned()))
        .got("a", 1, 0)
        .got("a", 1, 1)
        .settled("a", 1, 0, How::Ack)
        .settled("a", 1, 1, How::Nack)
        .stored("a")
        .committed(1)
        .got("a", 1, 1)
        .got("b", 2, 1)
        .got("b", 2, 3)
        .settled("b", 2, 1, How::Ack)
        .committed(2);
    check(&story.records, &expect).unwrap();
}

#[test]
fn a_lost_message_is_seen() {
    Story::default()
        .sent(0)
        .sent(1)
        .got("a", 1, 1)
        .breaks("lost: 1 messages answered Ok never came to group g");
}

#[test]
fn a_message_that_nobody_sent_is_seen() {
    Story::default()
        .sent(0)
        .got("a", 1, 0)
        .got("a", 1, 7)
        .breaks("handed over and never sent");
}

#[test]
fn a_message_answered_not_sent_that_comes_is_seen() {
    Story::default()
        .sent_as(0, SendResult::NotSent("full".to_owned()))
        .got("a", 1, 0)
        .breaks("answered NotSent (full) and was handed over");
}

#[test]
fn a_damaged_message_is_seen() {
    let damaged = payload("p", 0, 3).replace("xxx", "xyx");
    Story::default()
        .then(What::Sent {
            payload: damaged.clone(),
            sender: "p".to_owned(),
            sequence: 0,
            result: SendResult::Stored(0, None),
        })
        .then(What::HandedOver {
            group: "g".to_owned(),
            member: "a".to_owned(),
            payload: damaged,
            partition: 0,
            offset: 0,
            epoch: 1,
            attempt: 1,
            stamp: 1,
        })
        .breaks("corrupted");
}

#[test]
fn a_changed_order_is_seen() {
    Story::default()
        .sent(0)
        .sent(1)
        .got("a", 1, 1)
        .got("a", 1, 0)
        .breaks("reordered: in partition 0");
}

#[test]
fn a_double_within_an_epoch_is_seen() {
    Story::default()
        .sent(0)
        .got("a", 1, 0)
        .got("a", 1, 0)
        .breaks("doubled");
}

#[test]
fn a_delivery_after_a_stored_ack_is_seen() {
    Story::default()
        .sent(0)
        .got("a", 1, 0)
        .settled("a", 1, 0, How::Ack)
        .stored("a")
        .got("b", 2, 0)
        .breaks("delivered after a stored ack");
}

#[test]
fn two_owners_at_once_are_seen() {
    Story::default()
        .sent(0)
        .sent(1)
        .got("a", 1, 0)
        .got("b", 2, 0)
        .got("a", 1, 1)
        .breaks("overlapping owners: a was handed offset 1");
}

#[test]
fn a_late_ack_that_is_accepted_is_seen() {
    Story::default()
        .sent(0)
        .got("a", 1, 0)
        .got("b", 2, 0)
        .settled("a", 1, 0, How::Ack)
        .breaks("overlapping owners: an ack by a");
}

#[test]
fn a_report_that_arrives_late_is_no_overlap() {
    let story = Story::default()
        .sent(0)
        .sent(1)
        .got_at("b", 2, 1, 9)
        .got_at("a", 1, 0, 5);
    check(&story.records, &Expect::complete_for(["g"])).unwrap();
}

#[test]
fn a_commit_that_goes_back_is_seen() {
    Story::default()
        .sent(0)
        .got("a", 1, 0)
        .committed(3)
        .committed(2)
        .breaks("commit going back");
}

#[test]
fn a_group_that_is_stuck_is_seen() {
    Story::default()
        .sent(0)
        .later(Duration::from_secs(6))
        .got("a", 1, 0)
        .breaks("stuck: group g was handed nothing");
}

#[test]
fn only_a_group_that_has_a_server_can_be_stuck() {
    let disturbed = |what: &str, away| What::Disturbed {
        what: what.to_owned(),
        away,
    };
    let absent = || {
        Story::default()
            .sent(0)
            .then(disturbed("killed", true))
            .later(Duration::from_secs(60))
    };
    let mut expect = Expect::complete_for(["g"]);
    expect.progress = Some(Duration::from_secs(5));
    check(&absent().got("a", 1, 0).records, &expect).expect("there was no server");

    let mut back = absent();
    let at = back.records.last().map_or(Duration::ZERO, |record| record.at);
    let what = disturbed("started", false);
    back.records.push(Record { at, what });
    back.later(Duration::from_secs(6))
        .got("a", 1, 0)
        .breaks("stuck: group g was handed nothing");
}
