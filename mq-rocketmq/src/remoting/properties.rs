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
}

impl<'a> Properties<'a> {
    /// Reads a property text.
    pub fn new(text: &'a [u8]) -> Self {
        Self { rest: text }
    }

    /// Finds the value of a property.
    pub fn find(mut self, name: &str) -> Option<&'a str> {
        self.find_map(|(n, value)| (n == name).then_some(value))
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let end = memchr::memchr(VALUE_END, self.rest).unwrap_or(self.rest.len());
            let (property, rest) = self.rest.split_at(end);
            self.rest = rest.get(1..).unwrap_or_default();
            let Some(at) = memchr::memchr(NAME_END, property) else {
                continue;
            };
            let (name, value) = property.split_at(at);
            let value = value.get(1..).unwrap_or_default();
            if name.is_empty() || value.is_empty() {
                continue;
            }
            if let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) {
                return Some((name, value));
            }
        }
        None
    }
}
