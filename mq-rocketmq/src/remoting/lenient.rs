//! A reader of the JSON that RocketMQ servers write where it is not JSON: object keys that are numbers or whole
//! objects.

use serde_json::{Map, Number, Value};

use super::error::RemotingError;

/// How deep values may nest.
const MAX_DEPTH: usize = 32;

/// Parses JSON whose object keys may be bare numbers, which become strings, or objects.
///
/// An object that has an object as a key becomes an array of `[key, value]` pairs.
///
/// # Errors
///
/// [`RemotingError::Malformed`] when the text is not of that language, or nests deeper than 32.
pub fn parse_lenient(text: &[u8]) -> Result<Value, RemotingError> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.skip();
    if reader.rest.is_empty() {
        Ok(value)
    } else {
        Err(broken("text after the value"))
    }
}

fn broken(rule: &'static str) -> RemotingError {
    RemotingError::malformed("body", rule)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip();
        self.rest.first().copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.rest = self.rest.get(1..).unwrap_or_default();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, RemotingError> {
        if depth > MAX_DEPTH {
            return Err(broken("nested deeper than 32"));
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(_) => self.atom(),
            None => Err(broken("ends within a value")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, RemotingError> {
        self.take(b'[');
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take(b']') {
                return Ok(Value::Array(items));
            }
            if !self.take(b',') {
                return Err(broken("no comma between the items of an array"));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, RemotingError> {
        self.take(b'{');
        let mut named = Map::new();
        let mut pairs = Vec::new();
        if self.take(b'}') {
            return Ok(Value::Object(named));
        }
        loop {
            let key = self.value(depth + 1)?;
            if !self.take(b':') {
                return Err(broken("no colon after a key"));
            }
            let value = self.value(depth + 1)?;
            match key {
                Value::String(name) => drop(named.insert(name, value)),
                Value::Number(name) => drop(named.insert(name.to_string(), value)),
                Value::Object(_) => pairs.push(Value::Array(vec![key, value])),
                _ => return Err(broken("a key is neither string, number nor object")),
            }
            if self.take(b'}') {
                break;
            }
            if !self.take(b',') {
                return Err(broken("no comma between the members of an object"));
            }
        }
        if pairs.is_empty() {
            return Ok(Value::Object(named));
        }
        pairs.extend(
            named
                .into_iter()
                .map(|(name, value)| Value::Array(vec![Value::String(name), value])),
        );
        Ok(Value::Array(pairs))
    }

    fn string(&mut self) -> Result<String, RemotingError> {
        let mut escaped = false;
        let end = self
            .rest
            .iter()
            .skip(1)
            .position(|byte| {
                let closes = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                closes
            })
            .ok_or_else(|| broken("ends within a string"))?;
        let (text, rest) = self.rest.split_at(end + 2);
        self.rest = rest;
        serde_json::from_slice(text).map_err(|_| broken("a string is not valid"))
    }

    fn atom(&mut self) -> Result<Value, RemotingError> {
        let end = self
            .rest
            .iter()
            .position(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'-' | b'+' | b'.'))
            .unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        match text {
            b"null" => Ok(Value::Null),
            b"true" => Ok(Value::Bool(true)),
            b"false" => Ok(Value::Bool(false)),
            _ => serde_json::from_slice::<Number>(text)
                .map(Value::Number)
                .map_err(|_| broken("neither string, number, true, false nor null")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bare_number_keys_become_strings() {
        let text = br#"{"brokerAddrs":{0:"a:1",1 : "b:2"},"x":[true,null,-1.5e3,"\"}"]}"#;
        let want = json!({"brokerAddrs": {"0": "a:1", "1": "b:2"}, "x": [true, null, -1500.0, "\"}"]});
        assert_eq!(parse_lenient(text).unwrap(), want);
    }

    #[test]
    fn object_keys_become_pairs() {
        let text = br#"{"offsetTable":{{"queueId":1}:5,{"queueId":2}:6}}"#;
        let want = json!({"offsetTable": [[{"queueId": 1}, 5], [{"queueId": 2}, 6]]});
        assert_eq!(parse_lenient(text).unwrap(), want);
    }

    #[test]
    fn deep_or_broken_text_is_refused() {
        let deep = "[".repeat(100_000);
        for text in [
            deep.as_str(),
            "",
            "{",
            "{1",
            "{1:",
            "{1:2",
            "[1,",
            "\"",
            "\"\\",
            "nope",
            "{}x",
            "{true:1}",
        ] {
            assert!(
                matches!(
                    parse_lenient(text.as_bytes()),
                    Err(RemotingError::Malformed { .. })
                ),
                "{text:.20}"
            );
        }
    }
}
