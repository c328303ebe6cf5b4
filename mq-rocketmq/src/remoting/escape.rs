//! Text that a property can hold, for bytes that it cannot.
//!
//! A value that is plain text stays as it is, so that clients in other languages read it. Anything else begins
//! with a percent sign, and so does a plain text that begins with one:
//!
//! | first bytes | the rest |
//! |---|---|
//! | `%t` | text in which `%`, bytes below 0x20 and 0x7f are `%XX` |
//! | `%b` | base64 without padding |

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::error::RemotingError;

/// Makes a property value from any bytes; [`decode_value`] reverts it exactly.
///
/// Plain text is passed through. Other values grow by at most a third and two bytes, except that short ones
/// with control characters may use the readable form where it is not longer.
pub fn encode_value(value: &[u8]) -> Cow<'_, str> {
    let text = std::str::from_utf8(value).ok();
    if let Some(text) = text
        && !text.is_empty()
        && !text.starts_with('%')
        && !text.bytes().any(is_special)
    {
        return Cow::Borrowed(text);
    }
    let base64_len = 2 + (value.len() * 4).div_ceil(3);
    if let Some(text) = text {
        let specials = text.bytes().filter(|b| *b == b'%' || is_special(*b)).count();
        if 2 + text.len() + 2 * specials <= base64_len {
            return Cow::Owned(percent(text));
        }
    }
    let mut out = String::with_capacity(base64_len);
    out.push_str("%b");
    STANDARD_NO_PAD.encode_string(value, &mut out);
    Cow::Owned(out)
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str("%t");
    for c in text.chars() {
        match u8::try_from(c) {
            Ok(byte) if byte.is_ascii() && (byte == b'%' || is_special(byte)) => {
                out.push('%');
                for digit in [byte >> 4, byte & 15] {
                    out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
                }
            }
            _ => out.push(c),
        }
    }
    out
}

/// Reverts [`encode_value`].
///
/// # Errors
///
/// [`RemotingError::Malformed`] when the text is not something that [`encode_value`] makes.
pub fn decode_value(text: &str) -> Result<Cow<'_, [u8]>, RemotingError> {
    let broken = || RemotingError::malformed("properties", "an escaped value does not decode");
    if !text.starts_with('%') {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    if let Some(encoded) = text.strip_prefix("%b") {
        return STANDARD_NO_PAD
            .decode(encoded)
            .map(Cow::Owned)
            .map_err(|_| broken());
    }
    let mut rest = text.strip_prefix("%t").ok_or_else(broken)?;
    let mut out = Vec::with_capacity(rest.len());
    while let Some((plain, tail)) = rest.split_once('%') {
        out.extend_from_slice(plain.as_bytes());
        let digits = tail.get(..2).ok_or_else(broken)?;
        out.push(u8::from_str_radix(digits, 16).map_err(|_| broken())?);
        rest = tail.get(2..).unwrap_or_default();
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_readable() {
        assert_eq!(encode_value("user-7 50% off é".as_bytes()), "user-7 50% off é");
    }

    #[test]
    fn what_a_property_cannot_hold_is_escaped() {
        assert_eq!(encode_value(b""), "%t");
        assert_eq!(encode_value(b"a long line\x02end"), "%ta long line%02end");
        assert_eq!(encode_value(b"%"), "%bJQ");
        assert_eq!(encode_value(b"\xff\xfe"), "%b//4");
    }

    #[test]
    fn foreign_escapes_are_typed_errors() {
        for text in ["%", "%x", "%t%", "%t%0", "%t%zz", "%t%é", "%b*", "%ba"] {
            assert!(decode_value(text).is_err(), "{text}");
        }
    }
}
