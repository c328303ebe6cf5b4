//! Replies, taken apart without copying their strings.

use bytes::Bytes;
use redis::Value;

/// Holds one reply of the server. Maps of RESP3 are arrays of keys and values, as RESP2 sends them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    Nil,
    Int(i64),
    Text(Bytes),
    /// The server's own words, code first.
    Refused(String),
    Array(Vec<Reply>),
}

impl Reply {
    /// Takes one whole reply apart; its bounds were checked by the scanner.
    pub(crate) fn parse(frame: &Bytes) -> Result<Self, String> {
        let mut parser = Parser { frame, at: 0 };
        parser.value()
    }

    pub(crate) fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn str(&self) -> Option<&str> {
        self.text().and_then(|text| std::str::from_utf8(text).ok())
    }

    pub(crate) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Text(_) => self.str()?.parse().ok(),
            _ => None,
        }
    }

    pub(crate) fn array(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn into_array(self) -> Vec<Self> {
        match self {
            Self::Array(items) => items,
            _ => Vec::new(),
        }
    }

    /// Finds a value in an array of names and values.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        self.array().chunks_exact(2).find_map(|pair| match pair {
            [key, value] if key.text() == Some(name.as_bytes()) => Some(value),
            _ => None,
        })
    }
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        match value {
            Value::Nil => Self::Nil,
            Value::Int(value) => Self::Int(value),
            Value::BulkString(text) => Self::Text(text.into()),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => Self::Text(text.into()),
            Value::Okay => Self::Text(Bytes::from_static(b"OK")),
            Value::Array(items) | Value::Set(items) | Value::Push { data: items, .. } => {
                Self::Array(items.into_iter().map(Self::from).collect())
            }
            Value::Map(pairs) => Self::Array(
                pairs
                    .into_iter()
                    .flat_map(|(key, value)| [Self::from(key), Self::from(value)])
                    .collect(),
            ),
            Value::Attribute { data, .. } => Self::from(*data),
            Value::Double(value) => Self::Text(value.to_string().into()),
            Value::Boolean(value) => Self::Int(value.into()),
            // What it holds depends on a feature of the client that any other crate may turn on. Nothing we send is
            // answered by one.
            Value::BigNumber(_) => Self::Refused("an answer that is a big number".to_owned()),
            Value::ServerError(error) => Self::Refused(format!(
                "{} {}",
                error.code(),
                error.details().unwrap_or_default()
            )),
            _ => Self::Nil,
        }
    }
}

struct Parser<'a> {
    frame: &'a Bytes,
    at: usize,
}

impl Parser<'_> {
    fn value(&mut self) -> Result<Reply, String> {
        let Line { kind, start, end } = self.line()?;
        let rest = start..end;
        Ok(match kind {
            b'+' | b',' | b'(' => Reply::Text(self.frame.slice(rest)),
            b'-' => Reply::Refused(self.lossy(rest)),
            b':' => Reply::Int(self.number(rest)?),
            b'#' => Reply::Int(i64::from(self.frame.get(rest) == Some(b"t"))),
            b'_' => Reply::Nil,
            b'$' | b'=' | b'!' => match usize::try_from(self.number(rest)?) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    let end = self.at + length;
                    if end + 2 > self.frame.len() {
                        return Err("a string that ends early".to_owned());
                    }
                    let range = self.at..end;
                    self.at = end + 2;
                    match kind {
                        b'!' => Reply::Refused(self.lossy(range)),
                        // Four bytes name the format: `txt:`.
                        b'=' => Reply::Text(self.frame.slice((range.start + 4).min(end)..end)),
                        _ => Reply::Text(self.frame.slice(range)),
                    }
                }
            },
            b'*' | b'~' | b'>' | b'%' => match usize::try_from(self.number(rest)?) {
                Err(_) => Reply::Nil,
                Ok(count) => {
                    let count = if kind == b'%' { count * 2 } else { count };
                    let mut items = Vec::with_capacity(count.min(self.frame.len() - self.at));
                    for _ in 0..count {
                        items.push(self.value()?);
                    }
                    Reply::Array(items)
                }
            },
            other => return Err(format!("a reply begins with byte {other:#04x}")),
        })
    }

    fn line(&mut self) -> Result<Line, String> {
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let length = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .filter(|length| *length > 0)
            .ok_or("a line that does not end")?;
        let start = self.at;
        self.at += length + 1;
        Ok(Line {
            kind: rest.first().copied().unwrap_or_default(),
            start: start + 1,
            end: (start + length - 1).max(start + 1),
        })
    }

    fn lossy(&self, range: std::ops::Range<usize>) -> String {
        String::from_utf8_lossy(self.frame.get(range).unwrap_or_default()).into_owned()
    }

    fn number(&self, range: std::ops::Range<usize>) -> Result<i64, String> {
        std::str::from_utf8(self.frame.get(range).unwrap_or_default())
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| "a number that is none".to_owned())
    }
}

struct Line {
    kind: u8,
    start: usize,
    end: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &'static [u8]) -> Reply {
        Reply::parse(&Bytes::from_static(text)).unwrap()
    }

    fn text(text: &'static str) -> Reply {
        Reply::Text(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn both_protocols_give_the_same_reply() {
        let expected = Reply::Array(vec![text("a"), Reply::Array(vec![text("0-1"), Reply::Nil])]);
        assert_eq!(parse(b"*2\r\n$1\r\na\r\n*2\r\n$3\r\n0-1\r\n$-1\r\n"), expected);
        assert_eq!(parse(b"%1\r\n+a\r\n*2\r\n=7\r\ntxt:0-1\r\n_\r\n"), expected);
        assert_eq!(parse(b":-5\r\n"), Reply::Int(-5));
        assert_eq!(parse(b"#t\r\n"), Reply::Int(1));
        assert_eq!(parse(b"*-1\r\n"), Reply::Nil);
        assert_eq!(parse(b"-ERR no\r\n"), Reply::Refused("ERR no".to_owned()));
        assert_eq!(parse(b"!6\r\nERR no\r\n"), Reply::Refused("ERR no".to_owned()));
        assert_eq!(parse(b"+\r\n"), text(""));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [
            &b""[..],
            b"\n",
            b"$5\r\nab\r\n",
            b"?\r\n",
            b"*2\r\n:1\r\n",
            b":x\r\n",
        ] {
            assert!(Reply::parse(&Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_client_librarys_values_are_the_same_replies() {
        let value = Value::Map(vec![(
            Value::SimpleString("a".to_owned()),
            Value::BulkString(b"b".to_vec()),
        )]);
        let reply = Reply::from(value);
        assert_eq!(reply.field("a"), Some(&text("b")));
        assert_eq!(reply.field("b"), None);
    }
}
