//! Options of a URL, taken out one by one.

use std::{fmt, str::FromStr, time::Duration};

use super::invalid;
use crate::Result;

/// Holds options that have not been taken yet. What is left at the end is unknown, which [`finish`](Self::finish) says.
#[derive(Clone, Default)]
pub struct UrlOptions {
    left: Vec<(String, String)>,
    asked: Vec<&'static str>,
}

impl UrlOptions {
    pub(super) fn new(options: Vec<(String, String)>) -> Self {
        Self {
            left: options,
            asked: Vec::new(),
        }
    }

    /// Takes an option as text.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?prefix=test")?.options();
    /// assert_eq!(options.take("prefix").as_deref(), Some("test"));
    /// assert_eq!(options.take("prefix"), None);
    /// # Ok(()) }
    /// ```
    pub fn take(&mut self, name: &'static str) -> Option<String> {
        if !self.asked.contains(&name) {
            self.asked.push(name);
        }
        let at = self.left.iter().position(|(given, _)| given == name)?;
        Some(self.left.remove(at).1)
    }

    /// Takes every option whose name begins so, with the rest of its name, for what is passed on to a client library.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?client.linger=5&prefix=test")?.options();
    /// let taken = options.take_prefixed("client.");
    /// assert_eq!(taken, [("linger".to_owned(), "5".to_owned())]);
    /// assert_eq!(options.take("prefix").as_deref(), Some("test"));
    /// # Ok(()) }
    /// ```
    pub fn take_prefixed(&mut self, prefix: &'static str) -> Vec<(String, String)> {
        if !self.asked.contains(&prefix) {
            self.asked.push(prefix);
        }
        let all = std::mem::take(&mut self.left);
        let mut taken = Vec::new();
        for (name, value) in all {
            match name.strip_prefix(prefix) {
                Some(rest) => taken.push((rest.to_owned(), value)),
                None => self.left.push((name, value)),
            }
        }
        taken
    }

    /// Takes an option that is a number.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?pool=4&tries=300")?.options();
    /// assert_eq!(options.take_number::<u32>("pool")?, Some(4));
    /// assert!(options.take_number::<u8>("tries").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) where it is none, or out of the range of `T`.
    pub fn take_number<T: FromStr>(&mut self, name: &'static str) -> Result<Option<T>> {
        self.take_as(name, "a number in its range", |value| value.parse().ok())
    }

    /// Takes an option that is `true` or `false`.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?trim=true&sync=yes")?.options();
    /// assert_eq!(options.take_bool("trim")?, Some(true));
    /// assert!(options.take_bool("sync").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) where it is neither.
    pub fn take_bool(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.take_as(name, "`true` or `false`", |value| value.parse().ok())
    }

    /// Takes an option that is a time: a whole number followed by `ms`, `s`, `m` or `h`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?lease=250ms&idle=5days")?.options();
    /// assert_eq!(options.take_duration("lease")?, Some(Duration::from_millis(250)));
    /// assert!(options.take_duration("idle").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) where it is none.
    pub fn take_duration(&mut self, name: &'static str) -> Result<Option<Duration>> {
        self.take_as(
            name,
            "a whole number followed by `ms`, `s`, `m` or `h`",
            parse_duration,
        )
    }

    /// Takes an option that is a size: a whole number of bytes, or one followed by `B`, `KiB`, `MiB` or `GiB`.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?buffer=64KiB&cache=5KB")?.options();
    /// assert_eq!(options.take_size("buffer")?, Some(65536));
    /// assert!(options.take_size("cache").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) where it is none.
    pub fn take_size(&mut self, name: &'static str) -> Result<Option<usize>> {
        self.take_as(
            name,
            "a whole number of bytes, or one followed by `B`, `KiB`, `MiB` or `GiB`",
            parse_size,
        )
    }

    /// Takes an option that is one of a few words, each with what it stands for.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let mut options = ConnectUrl::parse("redis://a?acks=all")?.options();
    /// let words = [("none", 0), ("one", 1), ("all", -1)];
    /// assert_eq!(options.take_word("acks", &words)?, Some(-1));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig), listing the words, where it is another.
    pub fn take_word<T: Clone>(&mut self, name: &'static str, words: &[(&str, T)]) -> Result<Option<T>> {
        let list: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        self.take_as(name, &format!("one of {}", list.join(", ")), |value| {
            words
                .iter()
                .find(|(word, _)| *word == value)
                .map(|(_, meaning)| meaning.clone())
        })
    }

    /// Ends the taking: an option that is left is one that the backend does not know.
    ///
    /// ```
    /// # use mq_api::url::ConnectUrl;
    /// # fn main() -> mq_api::Result<()> {
    /// let options = ConnectUrl::parse("redis://a?strange=1")?.options();
    /// let error = options.finish().unwrap_err();
    /// assert!(error.context().contains("`strange`"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig), naming what is left and what is known.
    pub fn finish(self) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        let quote = |names: &mut dyn Iterator<Item = &str>| {
            names
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let left = quote(&mut self.left.iter().map(|(name, _)| name.as_str()));
        let known = quote(&mut self.asked.iter().copied().chain(super::CLIENT_OPTIONS));
        Err(invalid(format!(
            "unknown option {left} of the URL; known are {known}"
        )))
    }

    fn take_as<T>(
        &mut self,
        name: &'static str,
        rule: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(invalid(format!(
                "option `{name}` of the URL is {value:?}, it must be {rule}"
            ))),
        }
    }
}

impl fmt::Debug for UrlOptions {
    // Values may be secrets: names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.left.iter().map(|(name, _)| name))
            .finish()
    }
}

/// Splits a number from the unit behind it.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    usize::try_from(number.checked_mul(factor)?).ok()
}
