//! The one shape of everything that the driver stores beside messages: `mq1 <kind> <name>=<value> ...` in UTF-8.
//!
//! The first word carries the format's version. Values are escaped; unknown names are kept and written again.

use std::{fmt::Write, ops::Range};

use mq_api::{Offset, Result, escape::Escaper};

use crate::error;

const VERSION: &str = "mq1";
/// The most ranges, and the most attempts, that are stored with one position.
const MAX_EXTRAS: usize = 4096;
/// Values hold no space and no `=`.
const VALUES: Escaper = Escaper::new("._-:,/", '%', '=', usize::MAX);

/// A record: what kind it is, and its named values in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    kind: String,
    values: Vec<(String, String)>,
}

impl Words {
    pub(crate) fn new(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            values: Vec::new(),
        }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.set(name, value);
        self
    }

    pub(crate) fn set(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        match self.values.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.values.push((name.to_owned(), value)),
        }
    }

    /// Sets a value, or takes it away where it is empty.
    pub(crate) fn set_unless_empty(&mut self, name: &str, value: String) {
        if value.is_empty() {
            self.values.retain(|(known, _)| known != name);
        } else {
            self.set(name, value);
        }
    }

    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = format!("{VERSION} {}", self.kind);
        for (name, value) in &self.values {
            // Writing to a string cannot fail.
            let _ = write!(text, " {name}={}", VALUES.join(&[value]).name());
        }
        text.into_bytes()
    }

    /// Reads a record; `what` names it in errors.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        let broken = || error::protocol(format!("{what} that cannot be read"));
        let text = std::str::from_utf8(bytes).map_err(|_| broken())?;
        let mut words = text.split(' ');
        match words.next().and_then(|word| word.strip_prefix("mq")) {
            Some("1") => {}
            Some(version) if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(error::newer_format(what, version));
            }
            _ => return Err(broken()),
        }
        let mut read = Self::new(words.next().ok_or_else(broken)?);
        for word in words.filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').ok_or_else(broken)?;
            let value = if value.is_empty() {
                String::new()
            } else {
                VALUES
                    .split(value)
                    .and_then(|mut values| values.pop())
                    .ok_or_else(broken)?
            };
            read.values.push((name.to_owned(), value));
        }
        Ok(read)
    }
}

pub(crate) fn ranges_to_text(ranges: &[Range<Offset>]) -> String {
    let mut text = String::new();
    for range in ranges.iter().take(MAX_EXTRAS).filter(|range| !range.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        let last = range.end - 1;
        let _ = if last == range.start {
            write!(text, "{last}")
        } else {
            write!(text, "{}-{last}", range.start)
        };
    }
    text
}

pub(crate) fn text_to_ranges(text: &str) -> Option<Vec<Range<Offset>>> {
    let mut ranges = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (Offset, Offset) = (first.parse().ok()?, last.parse().ok()?);
        ranges.push(first..last.checked_add(1)?);
    }
    Some(ranges)
}

pub(crate) fn attempts_to_text(attempts: &[(Offset, u32)]) -> String {
    let mut text = String::new();
    for (offset, count) in attempts.iter().take(MAX_EXTRAS) {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{offset}:{count}");
    }
    text
}

pub(crate) fn text_to_attempts(text: &str) -> Option<Vec<(Offset, u32)>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (offset, count) = part.split_once(':')?;
            Some((offset.parse().ok()?, count.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use mq_api::ErrorKind;

    use super::*;

    #[test]
    fn version_one_of_a_record_is_frozen() {
        let words = Words::new("create")
            .with("id", "1f")
            .with("name", "a b=%\u{e9}")
            .with("none", "");
        let golden = b"mq1 create id=1f name=a%20b%3d%25%c3%a9 none=";
        assert_eq!(words.encode(), golden);
        assert_eq!(Words::parse("a record", golden).unwrap(), words);
    }

    #[test]
    fn unknown_values_are_kept_and_a_newer_version_is_an_error() {
        let mut words = Words::parse("a record", b"mq1 token next=5 colour=red").unwrap();
        words.set("next", 6);
        assert_eq!(words.encode(), b"mq1 token next=6 colour=red");
        let error = Words::parse("a token", b"mq2 token whither").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(
            error.context().contains("a token has format version 2"),
            "{error}"
        );
        for broken in [
            &b""[..],
            b"mq1",
            b"mq",
            b"hello",
            b"mq1 token next",
            b"\xff",
            b"mq1 t a=%zz",
        ] {
            assert!(Words::parse("a record", broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn ranges_and_attempts_survive_their_text() {
        let ranges = vec![3..6, 8..9];
        assert_eq!(ranges_to_text(&ranges), "3-5,8");
        assert_eq!(text_to_ranges("3-5,8"), Some(ranges));
        assert_eq!(text_to_ranges("x"), None);
        let attempts = vec![(7, 2), (9, 3)];
        assert_eq!(attempts_to_text(&attempts), "7:2,9:3");
        assert_eq!(text_to_attempts("7:2,9:3"), Some(attempts));
        assert_eq!(text_to_attempts("7"), None);
    }
}
