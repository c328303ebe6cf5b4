//! The token of a partition: the one message that says who owns it, and how far the group is.
//!
//! ```text
//! mq1 token epoch=5 seq=12 owner=<session> next=100 acked=103-105,108 attempts=101:2
//! ```

use std::ops::Range;

use mq_api::{Offset, Result};

use crate::{
    error,
    words::{Words, attempts_to_text, ranges_to_text, text_to_attempts, text_to_ranges},
};

/// How far a group is in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Grows with each owner.
    pub(crate) epoch: u64,
    /// Numbers what one owner writes.
    pub(crate) seq: u64,
    /// The session that has it; empty where it was given back, or nobody had it yet.
    pub(crate) owner: String,
    pub(crate) next: Offset,
    pub(crate) acked: Vec<Range<Offset>>,
    pub(crate) attempts: Vec<(Offset, u32)>,
    /// What a later build added, kept as it is.
    words: Option<Words>,
}

impl Token {
    pub(crate) fn start(next: Offset) -> Self {
        Self {
            epoch: 0,
            seq: 0,
            owner: String::new(),
            next,
            acked: Vec::new(),
            attempts: Vec::new(),
            words: None,
        }
    }

    pub(crate) fn order(&self) -> (u64, u64) {
        (self.epoch, self.seq)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut words = self.words.clone().unwrap_or_else(|| Words::new("token"));
        words.set("epoch", self.epoch);
        words.set("seq", self.seq);
        words.set_unless_empty("owner", self.owner.clone());
        words.set("next", self.next);
        words.set_unless_empty("acked", ranges_to_text(&self.acked));
        words.set_unless_empty("attempts", attempts_to_text(&self.attempts));
        words.encode()
    }

    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        const WHAT: &str = "a group's position";
        let words = Words::parse(WHAT, body)?;
        let broken = || error::protocol(format!("{WHAT} that cannot be read"));
        if words.kind() != "token" {
            return Err(broken());
        }
        Ok(Self {
            epoch: words.number("epoch").ok_or_else(broken)?,
            seq: words.number("seq").ok_or_else(broken)?,
            owner: words.text("owner").unwrap_or_default().to_owned(),
            next: words.number("next").ok_or_else(broken)?,
            acked: text_to_ranges(words.text("acked").unwrap_or_default()).ok_or_else(broken)?,
            attempts: text_to_attempts(words.text("attempts").unwrap_or_default()).ok_or_else(broken)?,
            words: Some(words),
        })
    }
}

#[cfg(test)]
mod tests {
    use mq_api::ErrorKind;

    use super::*;

    #[test]
    fn version_one_of_a_token_is_frozen() {
        let mut token = Token::start(100);
        assert_eq!(token.encode(), b"mq1 token epoch=0 seq=0 next=100");
        token.epoch = 5;
        token.seq = 12;
        token.owner = "1f".to_owned();
        token.acked = vec![103..106, 108..109];
        token.attempts = vec![(101, 2)];
        let golden = b"mq1 token epoch=5 seq=12 next=100 owner=1f acked=103-105,108 attempts=101:2";
        let written = token.encode();
        let read = Token::parse(golden).unwrap();
        assert_eq!(Token::parse(&written).unwrap().acked, token.acked);
        assert_eq!(
            (
                read.order(),
                read.owner.as_str(),
                read.next,
                &read.acked,
                &read.attempts
            ),
            ((5, 12), "1f", 100, &token.acked, &token.attempts)
        );
        assert_eq!(read.encode(), golden);
    }

    #[test]
    fn a_later_build_s_words_are_kept_and_its_version_is_an_error() {
        let mut token = Token::parse(b"mq1 token epoch=1 seq=2 colour=red next=3").unwrap();
        token.next = 4;
        assert_eq!(token.encode(), b"mq1 token epoch=1 seq=2 colour=red next=4");
        let error = Token::parse(b"mq2 whither").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(Token::parse(b"mq1 token epoch=1").is_err());
        assert!(Token::parse(b"mq1 hat epoch=1 seq=1 next=1").is_err());
    }
}
