//! Names of topics and groups, and the portable rule for those that we create.

use std::{borrow::Borrow, fmt, sync::Arc};

use crate::{Error, ErrorKind, Result};

/// The longest name of a topic or group that can be created, in characters.
pub const MAX_NAME_LENGTH: usize = 64;

/// The longest name that can be opened, in bytes; a backend may allow less.
const MAX_FOREIGN_LENGTH: usize = 255;

/// Says which part of the portable rule a name breaks.
fn broken_rule(name: &str) -> Option<&'static str> {
    let bytes = name.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return Some("is empty; a name has 1 to 64 characters");
    };
    if bytes.len() > MAX_NAME_LENGTH {
        return Some("is longer than 64 characters");
    }
    if !bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        return Some("has a character that is not an ASCII letter, digit, `.`, `_` or `-`");
    }
    if !first.is_ascii_alphabetic() {
        return Some("does not start with a letter");
    }
    if !last.is_ascii_alphanumeric() {
        return Some("does not end with a letter or digit");
    }
    None
}

/// Says why a name cannot even be opened on any backend.
fn unopenable(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty; a name has 1 to 64 characters");
    }
    if name.len() > MAX_FOREIGN_LENGTH {
        return Some("is longer than 255 bytes");
    }
    if name.chars().any(char::is_control) {
        return Some("has a control character");
    }
    None
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks a name that is to be created against the portable rule: a letter first, then letters, digits,
            /// `.`, `_` and `-`, a letter or digit last, 1 to 64 characters. No backend refuses such a name.
            ///
            /// ```
            #[doc = concat!("use mq_api::", stringify!($type), ";")]
            #[doc = concat!("assert!(", stringify!($type), "::new(\"orders.eu-1\").is_ok());")]
            #[doc = concat!("assert!(", stringify!($type), "::new(\"9lives\").is_err());")]
            /// ```
            ///
            /// # Errors
            #[doc = concat!("[`ErrorKind::", stringify!($kind), "`], naming the input and the part of the rule.")]
            pub fn new(name: impl AsRef<str>) -> Result<Self> {
                let name = name.as_ref();
                match broken_rule(name) {
                    None => Ok(Self(name.into())),
                    Some(rule) => Err(Error::new(ErrorKind::$kind, format!("{} name {name:?} {rule}", $what))),
                }
            }

            /// Takes a name that exists already, perhaps made by others under another rule. The backend has the last word.
            ///
            /// ```
            #[doc = concat!("use mq_api::", stringify!($type), ";")]
            #[doc = concat!("assert!(", stringify!($type), "::existing(\"9lives\").is_ok());")]
            #[doc = concat!("assert!(", stringify!($type), "::existing(\"\").is_err());")]
            /// ```
            ///
            /// # Errors
            #[doc = concat!("[`ErrorKind::", stringify!($kind), "`] if no backend could have such a name.")]
            pub fn existing(name: impl AsRef<str>) -> Result<Self> {
                let name = name.as_ref();
                match unopenable(name) {
                    None => Ok(Self(name.into())),
                    Some(rule) => Err(Error::new(ErrorKind::$kind, format!("{} name {name:?} {rule}", $what))),
                }
            }

            /// Returns the name.
            ///
            /// ```
            #[doc = concat!("use mq_api::", stringify!($type), ";")]
            /// # fn main() -> mq_api::Result<()> {
            #[doc = concat!("assert_eq!(", stringify!($type), "::new(\"orders\")?.as_str(), \"orders\");")]
            /// # Ok(()) }
            /// ```
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Tells whether the name holds to the portable rule.
            ///
            /// ```
            #[doc = concat!("use mq_api::", stringify!($type), ";")]
            /// # fn main() -> mq_api::Result<()> {
            #[doc = concat!("assert!(", stringify!($type), "::existing(\"orders\")?.is_portable());")]
            #[doc = concat!("assert!(!", stringify!($type), "::existing(\"9lives\")?.is_portable());")]
            /// # Ok(()) }
            /// ```
            #[must_use]
            pub fn is_portable(&self) -> bool {
                broken_rule(&self.0).is_none()
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// Names a topic.
    ///
    /// ```
    /// use mq_api::TopicName;
    /// assert!(TopicName::new("orders.eu-1").is_ok());
    /// assert!(TopicName::new("9lives").is_err());
    /// ```
    TopicName, InvalidTopic, "topic"
}

name! {
    /// Names a consumer group. A group is identified by its topic and its name together.
    GroupName, InvalidGroup, "group"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_rule_holds_to_its_table() {
        let longest = "a".repeat(64);
        for legal in [
            "a",
            "orders",
            "a.b",
            "a_b",
            "a-b",
            "A.b",
            "a..b",
            "a1",
            longest.as_str(),
        ] {
            assert!(TopicName::new(legal).is_ok(), "{legal}");
        }
        let long = "a".repeat(65);
        for illegal in [
            "",
            long.as_str(),
            "1a",
            "a-",
            "a.",
            ".",
            "..",
            "a/b",
            "a b",
            "a\0",
            "a%",
            "a*",
            "é",
            "_a",
            "-",
        ] {
            let error = TopicName::new(illegal).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTopic, "{illegal}");
            assert!(error.context().contains(&format!("{illegal:?}")), "{error}");
            assert_eq!(
                GroupName::new(illegal).unwrap_err().kind(),
                ErrorKind::InvalidGroup
            );
        }
    }

    #[test]
    fn foreign_names_can_be_opened() {
        for legal in ["9lives", "a-", "sys/queue", "naïve"] {
            assert!(TopicName::existing(legal).is_ok(), "{legal}");
            assert!(!TopicName::existing(legal).unwrap().is_portable());
        }
        for illegal in ["", "a\0", "a\nb", "x".repeat(256).as_str()] {
            assert!(TopicName::existing(illegal).is_err(), "{illegal}");
        }
    }
}
