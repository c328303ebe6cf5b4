//! What the driver writes beside an offset: the metadata of a commit.
//!
//! It is text, so that every client can read it: `mq1`, then fields `name=value` apart by spaces.
//!
//! | field | |
//! |---|---|
//! | `t` | the id of the topic that the position belongs to |
//! | `s` | `o` while a member has the partition, `c` once it has given it back in order |
//! | `a` | acked offsets above the position: `gap.length`, apart by commas, each gap from the end of the one before |
//! | `n` | attempts of messages that are not acked: `gap.count`, each gap from the offset before |
//!
//! Numbers are in base 36. Fields of other names are kept as they are. Metadata that does not begin with `mq` and a
//! number is another client's and says nothing.

use std::{fmt::Write, ops::Range};

use mq_api::{Error, Offset, Result};

use crate::error;

/// The broker takes 4096 bytes and refuses the whole commit beyond them.
const MOST_BYTES: usize = 4000;
const BASE: u32 = 36;

/// Holds what stands beside an offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) topic_id: Option<String>,
    /// Whether a member had the partition when this was written, and has not given it back.
    pub(crate) open: bool,
    pub(crate) acked_above: Vec<Range<Offset>>,
    pub(crate) attempts: Vec<(Offset, u32)>,
    /// Fields of a later build, as they are.
    pub(crate) unknown: Vec<String>,
}

impl Stored {
    /// Reads what stands beside `position`.
    pub(crate) fn decode(position: Offset, bytes: &[u8]) -> Result<Self> {
        let mut stored = Self::default();
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Ok(stored);
        };
        let mut fields = text.split(' ').filter(|field| !field.is_empty());
        let version = fields.next().and_then(|mark| mark.strip_prefix("mq"));
        let Some(version) = version.filter(|version| is_number(version)) else {
            return Ok(stored);
        };
        if version != "1" {
            return Err(error::newer_format("the metadata of a commit", version));
        }
        for field in fields {
            match field.split_once('=') {
                Some(("t", id)) => stored.topic_id = Some(id.to_owned()),
                Some(("s", state)) => stored.open = state == "o",
                Some(("a", list)) => {
                    stored.acked_above = ranges(position, list).ok_or_else(|| broken("a"))?;
                }
                Some(("n", list)) => {
                    stored.attempts = attempts(position, list).ok_or_else(|| broken("n"))?;
                }
                _ => stored.unknown.push(field.to_owned()),
            }
        }
        Ok(stored)
    }

    /// Writes what stands beside `position`. What does not fit is left out from the far end: those messages may come
    /// again, or begin to be counted anew.
    pub(crate) fn encode(&self, position: Offset) -> String {
        let mut text = "mq1".to_owned();
        if let Some(id) = &self.topic_id {
            push(&mut text, format_args!(" t={id}"));
        }
        push(
            &mut text,
            format_args!(" s={}", if self.open { 'o' } else { 'c' }),
        );
        for field in &self.unknown {
            if text.len() + field.len() < MOST_BYTES / 2 {
                push(&mut text, format_args!(" {field}"));
            }
        }
        // Attempts first: there are few, and losing one delays a dead letter.
        let room = MOST_BYTES - text.len();
        let attempts = self.attempts.iter().scan(position, |from, (offset, count)| {
            let gap = offset.checked_sub(*from)?;
            *from = *offset;
            Some((gap, u64::from(*count)))
        });
        let half = if self.acked_above.is_empty() {
            room
        } else {
            room / 2
        };
        push_list(&mut text, " n=", attempts, half);
        let room = MOST_BYTES - text.len();
        let ranges = self.acked_above.iter().scan(position, |from, range| {
            let gap = range.start.checked_sub(*from)?;
            *from = range.end;
            Some((gap, range.end.checked_sub(range.start)?))
        });
        push_list(&mut text, " a=", ranges, room);
        text
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn broken(field: &str) -> Error {
    Error::new(
        mq_api::ErrorKind::Protocol,
        format!("the metadata of a commit: field `{field}` cannot be read"),
    )
}

fn pairs(list: &str) -> impl Iterator<Item = Option<(u64, u64)>> {
    list.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let (gap, value) = pair.split_once('.')?;
        Some((
            u64::from_str_radix(gap, BASE).ok()?,
            u64::from_str_radix(value, BASE).ok()?,
        ))
    })
}

fn ranges(position: Offset, list: &str) -> Option<Vec<Range<Offset>>> {
    let mut from = position;
    pairs(list)
        .map(|pair| {
            let (gap, length) = pair?;
            let start = from.checked_add(gap)?;
            from = start.checked_add(length)?;
            Some(start..from)
        })
        .collect()
}

fn attempts(position: Offset, list: &str) -> Option<Vec<(Offset, u32)>> {
    let mut at = position;
    pairs(list)
        .map(|pair| {
            let (gap, count) = pair?;
            at = at.checked_add(gap)?;
            Some((at, u32::try_from(count).ok()?))
        })
        .collect()
}

fn push(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    let _ = text.write_fmt(words);
}

fn push_list(text: &mut String, name: &str, pairs: impl Iterator<Item = (u64, u64)>, room: usize) {
    let most = text.len() + room;
    let mut first = true;
    for (gap, value) in pairs {
        let mut item = String::new();
        item.push_str(if first { name } else { "," });
        push_number(&mut item, gap);
        item.push('.');
        push_number(&mut item, value);
        if text.len() + item.len() > most {
            return;
        }
        text.push_str(&item);
        first = false;
    }
}

fn push_number(text: &mut String, mut number: u64) {
    let mut digits = Vec::with_capacity(13);
    loop {
        // A remainder of 36 fits, and has a digit.
        let digit = (number % u64::from(BASE)) as u32;
        digits.push(char::from_digit(digit, BASE).unwrap_or('0'));
        number /= u64::from(BASE);
        if number == 0 {
            break;
        }
    }
    text.extend(digits.into_iter().rev());
}

#[cfg(test)]
mod tests {
    use super::*;
    use mq_api::ErrorKind;

    fn full() -> Stored {
        Stored {
            topic_id: Some("b1VN8sV3Q3KzYl1n8gJq5w".to_owned()),
            open: true,
            acked_above: vec![103..104, 140..1000],
            attempts: vec![(100, 2), (101, 40)],
            unknown: vec!["z=later".to_owned()],
        }
    }

    #[test]
    fn golden_bytes_of_version_1_are_written_and_read() {
        let golden = "mq1 t=b1VN8sV3Q3KzYl1n8gJq5w s=o z=later n=0.2,1.14 a=3.1,10.nw";
        assert_eq!(full().encode(100), golden);
        assert_eq!(Stored::decode(100, golden.as_bytes()).unwrap(), full());
        assert_eq!(Stored::default().encode(7), "mq1 s=c");
        assert_eq!(Stored::decode(7, b"mq1 s=c").unwrap(), Stored::default());
    }

    #[test]
    fn a_newer_version_is_an_error_and_foreign_metadata_says_nothing() {
        let error = Stored::decode(0, b"mq2 whatever").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        for foreign in ["", "mq", "mqx", "checkpoint 7", "{\"a\":1}"] {
            assert_eq!(Stored::decode(0, foreign.as_bytes()).unwrap(), Stored::default());
        }
        assert_eq!(Stored::decode(0, b"\xff\xfe").unwrap(), Stored::default());
    }

    #[test]
    fn broken_fields_are_errors_and_never_a_panic() {
        for broken in [
            "mq1 a=1",
            "mq1 a=x!.1",
            "mq1 n=1.zzzzzzzzzzzzz",
            "mq1 a=3w5e11264sgsf.1,1.1",
        ] {
            let error = Stored::decode(u64::MAX - 1, broken.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{broken}");
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_far_end() {
        let mut stored = full();
        stored.acked_above = (0..10_000).map(|n| 1000 + n * 3..1001 + n * 3).collect();
        stored.attempts = (0..10_000).map(|n| (100 + n, 3)).collect();
        let text = stored.encode(100);
        assert!(text.len() <= MOST_BYTES, "{}", text.len());
        let read = Stored::decode(100, text.as_bytes()).unwrap();
        assert!(read.acked_above.len() > 300 && read.attempts.len() > 300);
        assert_eq!(read.acked_above[..], stored.acked_above[..read.acked_above.len()]);
        assert_eq!(read.attempts[..], stored.attempts[..read.attempts.len()]);
    }
}
