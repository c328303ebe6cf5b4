//! The JSON header of a frame: a reader that slices, a writer that appends.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use smallvec::SmallVec;

use super::error::RemotingError;

/// The most extension fields that a header may hold.
const MAX_FIELDS: usize = 256;

/// A piece of text inside a header: a range of it, or a copy where it held escapes.
#[derive(Clone)]
enum Text {
    Span { start: u32, len: u32 },
    Owned(Box<str>),
}

impl Text {
    fn get<'a>(&'a self, header: &'a [u8]) -> &'a str {
        match self {
            Self::Owned(text) => text,
            // The range was a str when it was found; checking it again is cheaper than to keep it unsafely.
            Self::Span { start, len } => header
                .get(*start as usize..*start as usize + *len as usize)
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or_default(),
        }
    }
}

/// The extension fields of a header, by name.
#[derive(Clone, Default)]
pub struct ExtFields {
    header: Bytes,
    fields: SmallVec<[(Text, Text); 8]>,
}

impl ExtFields {
    /// Finds a field by its name.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Iterates over names and values in the order of the header.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.get(&self.header), value.get(&self.header)))
    }

    /// Reads a field that must be there.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the field is missing or does not parse.
    pub fn require<'a, V: FieldValue<'a>>(&'a self, name: &'static str) -> Result<V, RemotingError> {
        V::read(self.text(name), name)
    }
}

impl fmt::Debug for ExtFields {
    // Values can be credentials or user data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// The decoded header of a frame.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// The request or response code.
    pub code: i32,
    /// Bit 0 marks a response, bit 1 a request that wants none.
    pub flag: i32,
    /// The number that pairs a response with its request.
    pub opaque: i32,
    /// The version of the sender.
    pub version: i32,
    /// The words of a server that refuses.
    pub remark: Option<Box<str>>,
    /// The fields that belong to the code.
    pub ext: ExtFields,
}

impl Header {
    /// Decodes the JSON text of a header.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the text is not a JSON object of the protocol's shape.
    pub fn decode(text: &Bytes) -> Result<Self, RemotingError> {
        let mut json = serde_json::Deserializer::from_slice(text);
        let mut header = HeaderSeed { base: text }
            .deserialize(&mut json)
            .and_then(|header| json.end().map(|()| header))
            .map_err(|error| RemotingError::malformed("header", describe(&error)))?;
        header.ext.header = text.clone();
        Ok(header)
    }
}

/// The words of serde_json hold positions and expectations, but may also quote the input, which is cut here.
fn describe(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if let Some((at, _)) = text.char_indices().nth(120) {
        text.truncate(at);
    }
    text
}

#[derive(Clone, Copy)]
struct HeaderSeed<'a> {
    base: &'a [u8],
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'de> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

enum Name {
    Code,
    Flag,
    Opaque,
    Version,
    Remark,
    ExtFields,
    Other,
}

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Name, E> {
                Ok(match name {
                    "code" => Name::Code,
                    "flag" => Name::Flag,
                    "opaque" => Name::Opaque,
                    "version" => Name::Version,
                    "remark" => Name::Remark,
                    "extFields" => Name::ExtFields,
                    _ => Name::Other,
                })
            }
        }
        deserializer.deserialize_identifier(NameVisitor)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'de> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a header object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut code = None;
        while let Some(name) = map.next_key::<Name>()? {
            match name {
                Name::Code => code = Some(map.next_value()?),
                Name::Flag => header.flag = map.next_value()?,
                Name::Opaque => header.opaque = map.next_value()?,
                Name::Version => header.version = map.next_value()?,
                Name::Remark => header.remark = map.next_value()?,
                Name::ExtFields => header.ext.fields = map.next_value_seed(FieldsSeed { base: self.base })?,
                Name::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        header.code = code.ok_or_else(|| A::Error::missing_field("code"))?;
        Ok(header)
    }
}

#[derive(Clone, Copy)]
struct FieldsSeed<'a> {
    base: &'a [u8],
}

impl<'de> DeserializeSeed<'de> for FieldsSeed<'de> {
    type Value = SmallVec<[(Text, Text); 8]>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldsSeed<'de> {
    type Value = SmallVec<[(Text, Text); 8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(SmallVec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = SmallVec::new();
        while let Some(name) = map.next_key_seed(TextSeed { base: self.base })? {
            let value = map.next_value_seed(TextSeed { base: self.base })?;
            if let (Some(name), Some(value)) = (name, value) {
                if fields.len() == MAX_FIELDS {
                    return Err(A::Error::custom("more than 256 extension fields"));
                }
                fields.push((name, value));
            }
        }
        Ok(fields)
    }
}

#[derive(Clone, Copy)]
struct TextSeed<'a> {
    base: &'a [u8],
}

impl<'de> DeserializeSeed<'de> for TextSeed<'de> {
    type Value = Option<Text>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Text>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextSeed<'de> {
    type Value = Option<Text>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Option<Text>, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Option<Text>, E> {
        let start = (text.as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize);
        match (u32::try_from(start), u32::try_from(text.len())) {
            (Ok(start), Ok(len)) => Ok(Some(Text::Span { start, len })),
            _ => Ok(Some(Text::Owned(text.into()))),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<Text>, E> {
        Ok(Some(Text::Owned(text.into())))
    }
}

/// A request of the protocol: its code and its extension fields.
pub trait Request {
    /// The request code.
    fn code(&self) -> i32;

    /// Writes the extension fields.
    fn write(&self, fields: &mut Fields<'_>);
}

/// Where a [`Request`] writes its fields: a header on its way out, or the list that a signature covers.
#[derive(Debug)]
pub struct Fields<'a> {
    sink: Sink<'a>,
    first: bool,
}

#[derive(Debug)]
enum Sink<'a> {
    Json(&'a mut BytesMut),
    List(&'a mut Vec<(&'static str, String)>),
}

impl<'a> Fields<'a> {
    pub(super) fn json(out: &'a mut BytesMut) -> Self {
        Self {
            sink: Sink::Json(out),
            first: true,
        }
    }

    pub(super) fn list(out: &'a mut Vec<(&'static str, String)>) -> Self {
        Self {
            sink: Sink::List(out),
            first: true,
        }
    }

    /// Writes one field; an absent optional value writes nothing.
    pub fn put<'v>(&mut self, name: &'static str, value: impl FieldValue<'v>) {
        value.write(name, self);
    }

    fn text(&mut self, name: &'static str, value: &str) {
        match &mut self.sink {
            Sink::Json(out) => {
                name_json(out, name, &mut self.first);
                put_json_string(out, value);
            }
            Sink::List(list) => list.push((name, value.to_owned())),
        }
    }

    fn number(&mut self, name: &'static str, value: i64) {
        match &mut self.sink {
            Sink::Json(out) => {
                name_json(out, name, &mut self.first);
                out.put_u8(b'"');
                put_number(out, value);
                out.put_u8(b'"');
            }
            Sink::List(list) => list.push((name, value.to_string())),
        }
    }
}

fn name_json(out: &mut BytesMut, name: &str, first: &mut bool) {
    if !std::mem::take(first) {
        out.put_u8(b',');
    }
    out.put_u8(b'"');
    out.put_slice(name.as_bytes());
    out.put_slice(b"\":");
}

/// Appends a decimal number without going through the formatting machinery.
pub(super) fn put_number(out: &mut BytesMut, value: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        if let Some(slot) = digits.get_mut(at) {
            *slot = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.put_u8(b'-');
    }
    out.put_slice(digits.get(at..).unwrap_or_default());
}

/// Appends a JSON string, quotes included; runs without escapes are copied whole.
pub(super) fn put_json_string(out: &mut BytesMut, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.put_u8(b'"');
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| *b < 0x20 || *b == b'"' || *b == b'\\') {
        let (plain, tail) = rest.split_at(at);
        out.put_slice(plain);
        let Some((special, tail)) = tail.split_first() else {
            break;
        };
        match special {
            b'"' => out.put_slice(b"\\\""),
            b'\\' => out.put_slice(b"\\\\"),
            byte => {
                let high = HEX[usize::from(byte >> 4)];
                let low = HEX[usize::from(byte & 15)];
                out.put_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        rest = tail;
    }
    out.put_slice(rest);
    out.put_u8(b'"');
}

/// A type that an extension field can hold.
pub trait FieldValue<'a>: Sized {
    /// Writes the value under a name.
    fn write(&self, name: &'static str, fields: &mut Fields<'_>);

    /// Reads the value back.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when it is missing or does not parse.
    fn read(text: Option<&'a str>, name: &'static str) -> Result<Self, RemotingError>;
}

fn missing(name: &'static str) -> RemotingError {
    RemotingError::malformed(
        "header",
        format!("the field {name} is missing or not of its type"),
    )
}

impl<'a> FieldValue<'a> for &'a str {
    fn write(&self, name: &'static str, fields: &mut Fields<'_>) {
        fields.text(name, self);
    }

    fn read(text: Option<&'a str>, name: &'static str) -> Result<Self, RemotingError> {
        text.ok_or_else(|| missing(name))
    }
}

impl<'a> FieldValue<'a> for i64 {
    fn write(&self, name: &'static str, fields: &mut Fields<'_>) {
        fields.number(name, *self);
    }

    fn read(text: Option<&'a str>, name: &'static str) -> Result<Self, RemotingError> {
        text.and_then(|t| t.parse().ok()).ok_or_else(|| missing(name))
    }
}

impl<'a> FieldValue<'a> for i32 {
    fn write(&self, name: &'static str, fields: &mut Fields<'_>) {
        fields.number(name, i64::from(*self));
    }

    fn read(text: Option<&'a str>, name: &'static str) -> Result<Self, RemotingError> {
        text.and_then(|t| t.parse().ok()).ok_or_else(|| missing(name))
    }
}

impl<'a> FieldValue<'a> for bool {
    fn write(&self, name: &'static str, fields: &mut Fields<'_>) {
        fields.text(name, if *self { "true" } else { "false" });
    }

    fn read(text: Option<&'a str>, name: &'static str) -> Result<Self, RemotingError> {
        match text {
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            _ => Err(missing(name)),
        }
    }
}

impl<'a, V: FieldValue<'a>> FieldValue<'a> for Option<V> {
    fn write(&self, name: &'static str, fields: &mut Fields<'_>) {
        if let Some(value) = self {
            value.write(name, fields);
        }
    }

    fn read(text: Option<&'a str>, name: &'static str) -> Result<Self, RemotingError> {
        text.map(|t| V::read(Some(t), name)).transpose()
    }
}
