//! Headers: ordered, with unique names as far as this library promises.

use std::fmt;

use bytes::Bytes;

use crate::{
    Error, ErrorKind, Result,
    message::{MAX_HEADER_NAME, is_reserved},
};

/// The prefix of header names that are kept for this library.
pub const RESERVED_PREFIX: &str = "mq-";

/// Holds the headers of a message in the order in which they were added.
///
/// What a foreign producer sent twice, or without a value, is kept on reading.
///
/// ```
/// use mq_api::Headers;
///
/// let mut headers = Headers::new();
/// headers.append("source", "checkout");
/// headers.set("source", "import");
/// assert_eq!(headers.text("source"), Some("import"));
/// assert_eq!(headers.iter().next().map(|header| header.name()), Some("source"));
/// assert_eq!(headers.remove("source").as_deref(), Some(&b"import"[..]));
/// assert!(headers.is_empty());
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<Header>,
}

/// Pairs a name with a value.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    name: String,
    value: Option<Bytes>,
}

impl Header {
    /// Returns the name.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let headers: Headers = [("source", "checkout")].into_iter().collect();
    /// assert_eq!(headers.iter().next().unwrap().name(), "source");
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the value; none only where a foreign producer sent none.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let headers: Headers = [("source", "checkout")].into_iter().collect();
    /// assert_eq!(headers.iter().next().unwrap().value().unwrap(), "checkout");
    /// ```
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        self.value.as_ref()
    }
}

impl Headers {
    pub(crate) const EMPTY: &'static Self = &Self { entries: Vec::new() };

    /// Makes an empty set.
    ///
    /// ```
    /// use mq_api::Headers;
    /// assert!(Headers::new().is_empty());
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a header at the end.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let mut headers = Headers::new();
    /// headers.append("source", "checkout");
    /// assert_eq!(headers.text("source"), Some("checkout"));
    /// ```
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        self.entries.push(Header {
            name: name.into(),
            value: Some(value.into()),
        });
    }

    /// Adds a header as a driver has read it, perhaps without a value.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let mut headers = Headers::new();
    /// headers.append_raw("flag", None);
    /// assert_eq!(headers.len(), 1);
    /// assert!(headers.value("flag").is_none());
    /// ```
    pub fn append_raw(&mut self, name: impl Into<String>, value: Option<Bytes>) {
        self.entries.push(Header {
            name: name.into(),
            value,
        });
    }

    /// Sets a header: replaces the first of that name and removes the others, or adds it at the end.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let mut headers: Headers = [("a", "1"), ("b", "2"), ("a", "3")].into_iter().collect();
    /// headers.set("a", "4");
    /// assert_eq!(headers.text("a"), Some("4"));
    /// assert_eq!(headers.len(), 2);
    /// ```
    pub fn set(&mut self, name: &str, value: impl Into<Bytes>) {
        let value = Some(value.into());
        let mut first = true;
        self.entries
            .retain(|header| header.name != name || std::mem::take(&mut first));
        match self.entries.iter_mut().find(|header| header.name == name) {
            Some(header) => header.value = value,
            None => self.entries.push(Header {
                name: name.to_owned(),
                value,
            }),
        }
    }

    /// Removes every header of a name and returns the first one's value.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let mut headers: Headers = [("a", "1"), ("a", "2")].into_iter().collect();
    /// assert_eq!(headers.remove("a").unwrap(), "1");
    /// assert!(headers.is_empty());
    /// ```
    pub fn remove(&mut self, name: &str) -> Option<Bytes> {
        let at = self.entries.iter().position(|header| header.name == name)?;
        let removed = self.entries.remove(at);
        self.entries.retain(|header| header.name != name);
        removed.value
    }

    /// Returns the value of the first header of a name.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let headers: Headers = [("a", "1"), ("a", "2")].into_iter().collect();
    /// assert_eq!(headers.value("a").unwrap(), "1");
    /// assert!(headers.value("b").is_none());
    /// ```
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&Bytes> {
        self.entries.iter().find(|header| header.name == name)?.value()
    }

    /// Returns the value of the first header of a name as text, where it is UTF-8.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let headers: Headers = [("a", vec![b'1']), ("b", vec![0xff])].into_iter().collect();
    /// assert_eq!(headers.text("a"), Some("1"));
    /// assert!(headers.text("b").is_none());
    /// ```
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.value(name)?).ok()
    }

    /// Goes through the headers in order.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let headers: Headers = [("b", "2"), ("a", "1")].into_iter().collect();
    /// let names: Vec<&str> = headers.iter().map(|header| header.name()).collect();
    /// assert_eq!(names, ["b", "a"]);
    /// ```
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Header> {
        self.entries.iter()
    }

    /// Counts the headers.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let headers: Headers = [("a", "1"), ("b", "2")].into_iter().collect();
    /// assert_eq!(headers.len(), 2);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tells whether there are none.
    ///
    /// ```
    /// use mq_api::Headers;
    /// let mut headers = Headers::new();
    /// assert!(headers.is_empty());
    /// headers.append("source", "checkout");
    /// assert!(!headers.is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Copies the values out of shared buffers.
    pub(crate) fn detach(&mut self) {
        for header in &mut self.entries {
            header.value = header.value.as_deref().map(Bytes::copy_from_slice);
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        for (at, header) in self.entries.iter().enumerate() {
            let rule = if header.name.is_empty() {
                "is empty"
            } else if header.name.len() > MAX_HEADER_NAME {
                "is longer than 200 bytes"
            } else if is_reserved(&header.name) {
                "begins with `mq-`, which is reserved"
            } else if self
                .entries
                .iter()
                .take(at)
                .any(|other| other.name == header.name)
            {
                "is used twice"
            } else {
                continue;
            };
            return Err(Error::new(
                ErrorKind::InvalidMessage,
                format!("header name {:?} {rule}", header.name),
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Headers {
    // Values may hold secrets: names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|header| &header.name))
            .finish()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("name", &self.name)
            .field("value_bytes", &self.value.as_ref().map(Bytes::len))
            .finish()
    }
}

impl<N: Into<String>, V: Into<Bytes>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_all_of_a_name() {
        let mut headers: Headers = [("a", "1"), ("b", "2"), ("a", "3")].into_iter().collect();
        headers.set("a", "4");
        let all: Vec<_> = headers
            .iter()
            .map(|h| (h.name().to_owned(), h.value().cloned().unwrap()))
            .collect();
        assert_eq!(
            all,
            [
                ("a".to_owned(), Bytes::from("4")),
                ("b".to_owned(), Bytes::from("2"))
            ]
        );
    }

    #[test]
    fn remove_takes_every_one_of_a_name() {
        let mut headers: Headers = [("a", "1"), ("a", "2")].into_iter().collect();
        assert_eq!(headers.remove("a"), Some(Bytes::from("1")));
        assert!(headers.is_empty());
        assert_eq!(headers.remove("a"), None);
    }
}
