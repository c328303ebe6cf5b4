//! The property text of a message: `name \u{1} value \u{2}` for each property.

use bytes::{BufMut, BytesMut};

use super::error::RemotingError;

/// Ends a name.
const NAME_END: u8 = 1;
/// Ends a value.
const VALUE_END: u8 = 2;

/// The longest property text in bytes. The length is a signed 16-bit number and brokers add properties of their
/// own, which take up to 150 bytes.
pub const MAX_PROPERTIES: usize = 32_600;

/// Appends properties to a buffer.
///
/// The servers drop a property whose name or value is empty, and cut one that holds a separator, so neither is
/// accepted here; see [`encode_value`](super::encode_value) for values that may hold anything.
#[derive(Debug)]
pub struct PropertyWriter<'a> {
    out: &'a mut BytesMut,
    start: usize,
}

impl<'a> PropertyWriter<'a> {
    /// Begins a property text at the end of `out`.
    pub fn new(out: &'a mut BytesMut) -> Self {
        let start = out.len();
        Self { out, start }
    }

    /// Appends one property.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the name or the value is empty or holds a separator, or the text gets
    /// longer than [`MAX_PROPERTIES`].
    pub fn put(&mut self, name: &str, value: &str) -> Result<(), RemotingError> {
        check(name, "a name is empty or holds a separator")?;
        check(value, "a value is empty or holds a separator")?;
        if self.len() + name.len() + value.len() + 2 > MAX_PROPERTIES {
            return Err(RemotingError::malformed("properties", "longer than 32600 bytes"));
        }
        self.out.put_slice(name.as_bytes());
        self.out.put_u8(NAME_END);
        self.out.put_slice(value.as_bytes());
        self.out.put_u8(VALUE_END);
        Ok(())
    }

    /// The bytes written so far.
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Tells whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn check(text: &str, rule: &'static str) -> Result<(), RemotingError> {
    if text.is_empty() || memchr::memchr2(NAME_END, VALUE_END, text.as_bytes()).is_some() {
        return Err(RemotingError::malformed("properties", rule));
    }
    Ok(())
}

/// Iterates over a property text. What is not a property by the servers' rules is skipped.
#[derive(Debug, Clone)]
pub struct Properties<'a> {
    rest: &'a [u8],
    /// The rest once more, where all of it is text: looked at as a whole, which costs less than part by part.
    text: Option<&'a str>,
}

impl<'a> Properties<'a> {
    /// Reads a property text.
    pub fn new(text: &'a [u8]) -> Self {
        Self {
            rest: text,
            text: std::str::from_utf8(text).ok(),
        }
    }

    /// Finds the value of a property.
    pub fn find(mut self, name: &str) -> Option<&'a str> {
        self.find_map(|(n, value)| (n == name).then_some(value))
    }

    /// Cuts off the bytes before `end` and the one at it.
    fn cut(&mut self, end: usize) -> (&'a [u8], Option<&'a str>) {
        let (property, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        let text = self.text.and_then(|text| text.get(..end));
        self.text = self.text.map(|text| text.get(end + 1..).unwrap_or_default());
        (property, text)
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let end = memchr::memchr(VALUE_END, self.rest).unwrap_or(self.rest.len());
            let (property, text) = self.cut(end);
            let Some(at) = memchr::memchr(NAME_END, property) else {
                continue;
            };
            let parts = match text {
                Some(text) => text.get(..at).zip(text.get(at + 1..)),
                None => {
                    let (name, value) = property.split_at(at);
                    let value = value.get(1..).unwrap_or_default();
                    std::str::from_utf8(name)
                        .ok()
                        .zip(std::str::from_utf8(value).ok())
                }
            };
            if let Some((name, value)) = parts
                && !name.is_empty()
                && !value.is_empty()
            {
                return Some((name, value));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_that_are_no_text_are_skipped_and_leave_the_others() {
        let read = |bytes: &'static [u8]| Properties::new(bytes).collect::<Vec<_>>();
        let expected = [("a", "1"), ("\u{e4}", "\u{fc}")];
        assert_eq!(read("a\u{1}1\u{2}\u{e4}\u{1}\u{fc}\u{2}".as_bytes()), expected);
        assert_eq!(read("a\u{1}1\u{2}\u{e4}\u{1}\u{fc}".as_bytes()), expected);
        assert_eq!(read(b"a\x011\x02b\x01\xff\x02\xc3\xa4\x01\xc3\xbc\x02"), expected);
        assert_eq!(read(b"\x01x\x02a\x01\x02plain\x02\x02"), []);
    }
}
