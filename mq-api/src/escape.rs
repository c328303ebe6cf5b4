//! Physical names: how names of topics and groups become names of streams, queues and keys.
//!
//! The format is frozen: what one release has written into a backend the next one must find.

mod hash;

use std::fmt::Write;

pub use self::hash::fnv1a_128;
use crate::{GroupName, MAX_NAME_LENGTH, TopicName};

/// Version of the formats in this module.
pub const ESCAPE_VERSION: u32 = 1;

/// Joins names into one, so that different lists of names never make the same one.
///
/// ASCII letters and digits stay, and so do the characters that the backend allows beside them; every other byte becomes
/// the escape character and two hexadecimal digits. The separator stands between names and nowhere else. A result over
/// the limit becomes the first name and a 128-bit hash; its full names are then to be stored beside it, and checked when
/// it is opened.
///
/// ```
/// use mq_api::escape::Escaper;
///
/// const KEYS: Escaper = Escaper::new("._", '~', ':', 64);
/// assert_eq!(KEYS.join(&["mq", "orders.eu", "a:b"]).name(), "mq:orders.eu:a~3ab");
/// assert_eq!(KEYS.split("mq:orders.eu:a~3ab").unwrap(), ["mq", "orders.eu", "a:b"]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Escaper {
    literal: &'static str,
    escape: char,
    separator: char,
    max_length: usize,
}

/// Holds a name as the backend sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PhysicalName {
    name: String,
    hashed: bool,
}

impl Escaper {
    /// Makes an escaper of the ASCII characters that stay as they are beside letters and digits, the escape character,
    /// the separator, and the longest result in bytes, at least 40.
    ///
    /// ```
    /// use mq_api::escape::Escaper;
    ///
    /// const KEYS: Escaper = Escaper::new("._", '~', ':', 64);
    /// assert_eq!(KEYS.join(&["mq", "a-b"]).name(), "mq:a~2db");
    /// ```
    ///
    /// # Panics
    /// Where one character has two of these meanings, or is a letter, a digit or not ASCII: a mistake in a driver, which
    /// a `const` finds when it is compiled.
    #[must_use]
    pub const fn new(literal: &'static str, escape: char, separator: char, max_length: usize) -> Self {
        assert!(max_length >= 40, "no room for a hash");
        assert!(
            escape.is_ascii() && !escape.is_ascii_alphanumeric() && !escape.is_ascii_control(),
            "not an escape character"
        );
        assert!(
            separator.is_ascii() && !separator.is_ascii_alphanumeric() && separator != escape,
            "not a separator"
        );
        let bytes = literal.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            assert!(
                byte.is_ascii() && byte != escape as u8 && byte != separator as u8,
                "a literal character that has another meaning"
            );
            at += 1;
        }
        Self {
            literal,
            escape,
            separator,
            max_length,
        }
    }

    /// Joins names. The first of them, a prefix as a rule, stays readable in a hashed result where it is short.
    ///
    /// ```
    /// # use mq_api::escape::Escaper;
    /// const KEYS: Escaper = Escaper::new("._", '~', ':', 64);
    /// assert_eq!(KEYS.join(&["mq", "a.b", "c:d"]).name(), "mq:a.b:c~3ad");
    /// let topic = "t".repeat(64);
    /// assert!(KEYS.join(&["mq", &topic]).name().starts_with("mq:~h"));
    /// ```
    #[must_use]
    pub fn join(&self, names: &[&str]) -> PhysicalName {
        let mut joined = String::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        let mut first_end = 0;
        for (at, name) in names.iter().enumerate() {
            if at > 0 {
                joined.push(self.separator);
            }
            self.escape_into(name, &mut joined);
            if at == 0 {
                first_end = joined.len();
            }
        }
        if joined.len() <= self.max_length {
            return PhysicalName {
                name: joined,
                hashed: false,
            };
        }
        // `h` is no hexadecimal digit, so the mark is not the start of an escaped byte.
        let hash = format!("{}h{:032x}", self.escape, fnv1a_128(joined.as_bytes()));
        let first = joined.get(..first_end).unwrap_or_default();
        let name = if names.len() > 1 && first.len() + 1 + hash.len() <= self.max_length {
            format!("{first}{}{hash}", self.separator)
        } else {
            hash
        };
        PhysicalName { name, hashed: true }
    }

    /// Takes a name apart again; none where it is hashed or was not made by this escaper.
    ///
    /// ```
    /// # use mq_api::escape::Escaper;
    /// const KEYS: Escaper = Escaper::new("._", '~', ':', 64);
    /// assert_eq!(KEYS.split("mq:c~3ad").unwrap(), ["mq", "c:d"]);
    /// assert_eq!(KEYS.split("mq:~zz"), None);
    /// ```
    #[must_use]
    pub fn split(&self, physical: &str) -> Option<Vec<String>> {
        let names: Option<Vec<String>> = physical
            .split(self.separator)
            .map(|name| self.unescape(name))
            .collect();
        // Only what `join` would make: a byte that needs no escape must not be escaped.
        let names = names?;
        let again = self.join(&names.iter().map(String::as_str).collect::<Vec<_>>());
        (again.name == physical && !again.hashed).then_some(names)
    }

    fn escape_into(&self, name: &str, out: &mut String) {
        for byte in name.bytes() {
            let char = char::from(byte);
            if byte.is_ascii_alphanumeric() || (byte.is_ascii() && self.literal.contains(char)) {
                out.push(char);
            } else {
                // Writing into a string cannot fail.
                let _ = write!(out, "{}{byte:02x}", self.escape);
            }
        }
    }

    fn unescape(&self, name: &str) -> Option<String> {
        let mut bytes = Vec::with_capacity(name.len());
        let mut rest = name;
        while let Some(at) = rest.find(self.escape) {
            let (plain, escaped) = rest.split_at(at);
            bytes.extend_from_slice(plain.as_bytes());
            let digits = escaped.get(1..3)?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = escaped.get(3..)?;
        }
        bytes.extend_from_slice(rest.as_bytes());
        String::from_utf8(bytes).ok()
    }
}

impl PhysicalName {
    /// Returns the name.
    ///
    /// ```
    /// # use mq_api::escape::Escaper;
    /// const KEYS: Escaper = Escaper::new("._", '~', ':', 64);
    /// assert_eq!(KEYS.join(&["mq", "orders"]).name(), "mq:orders");
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name.
    ///
    /// ```
    /// # use mq_api::escape::Escaper;
    /// const KEYS: Escaper = Escaper::new("._", '~', ':', 64);
    /// let name: String = KEYS.join(&["mq", "orders"]).into_name();
    /// assert_eq!(name, "mq:orders");
    /// ```
    #[must_use]
    pub fn into_name(self) -> String {
        self.name
    }

    /// Tells whether it is a hash: its full names are then to be stored beside it, and checked when it is opened.
    ///
    /// ```
    /// # use mq_api::escape::Escaper;
    /// const KEYS: Escaper = Escaper::new("._", '~', ':', 64);
    /// let topic = "t".repeat(64);
    /// assert!(KEYS.join(&["mq", &topic]).is_hashed());
    /// assert!(!KEYS.join(&["mq", "orders"]).is_hashed());
    /// ```
    #[must_use]
    pub fn is_hashed(&self) -> bool {
        self.hashed
    }
}

/// Names the topic that the dead letters of a group go to by default: `dlq.<length of topic>.<topic>.<group>`, or
/// `dlq.h.<hash>` where that would break the rule for names of topics.
///
/// ```
/// use mq_api::{GroupName, TopicName, dead_letter_topic};
///
/// # fn main() -> mq_api::Result<()> {
/// let name = dead_letter_topic(&TopicName::new("orders")?, &GroupName::new("billing")?);
/// assert_eq!(name.as_str(), "dlq.6.orders.billing");
/// # Ok(()) }
/// ```
#[must_use]
pub fn dead_letter_topic(topic: &TopicName, group: &GroupName) -> TopicName {
    let full = format!("dlq.{}.{topic}.{group}", topic.as_str().len());
    if full.len() <= MAX_NAME_LENGTH
        && let Ok(name) = TopicName::new(&full)
    {
        return name;
    }
    let hashed = format!("dlq.h.{:032x}", fnv1a_128(full.as_bytes()));
    TopicName::new(hashed).expect("letters, digits and dots, 38 characters, are a legal name")
}

#[cfg(test)]
mod tests;
