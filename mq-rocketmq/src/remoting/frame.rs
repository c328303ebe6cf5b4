//! Frames: cutting them out of a byte stream, and building them in place.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;

use super::codes::response;
use super::error::RemotingError;
use super::header::{FieldValue, Fields, Header, Request, put_json_string, put_number};
use super::sign::Credentials;

/// The largest frame in bytes, either way; a broker drops the connection over a larger one.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;
/// The largest header in bytes.
pub const MAX_HEADER: usize = 1024 * 1024;
/// The longest part of a server's remark that is kept.
const MAX_REMARK: usize = 512;

/// The flag bit of a response.
const RESPONSE: i32 = 1;
/// The flag bit of a request that wants no answer.
const ONEWAY: i32 = 2;

/// The version that this client gives: RocketMQ 5.5.0, so that nameservers answer in standard JSON.
const VERSION: i64 = 513;

/// A decoded frame. Header text and body are slices of the bytes that were read.
#[derive(Debug, Clone)]
pub struct Command {
    /// The header.
    pub header: Header,
    /// The body, maybe empty.
    pub body: Bytes,
}

impl Command {
    /// The request or response code.
    pub fn code(&self) -> i32 {
        self.header.code
    }

    /// Tells a response from a request.
    pub fn is_response(&self) -> bool {
        self.header.flag & RESPONSE != 0
    }

    /// Tells a request that wants no answer.
    pub fn is_oneway(&self) -> bool {
        self.header.flag & ONEWAY != 0
    }

    /// Reads an extension field that must be there.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the field is missing or does not parse.
    pub fn field<'a, V: FieldValue<'a>>(&'a self, name: &'static str) -> Result<V, RemotingError> {
        self.header.ext.require(name)
    }

    /// The words of a server that refuses, cut to a bounded length.
    pub fn remark(&self) -> &str {
        let text = self.header.remark.as_deref().unwrap_or_default();
        let mut end = text.len().min(MAX_REMARK);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.get(..end).unwrap_or_default()
    }

    /// Decodes a JSON body.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the body is not JSON of the type.
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self, what: &'static str) -> Result<T, RemotingError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            RemotingError::malformed(
                what,
                format!("not the expected JSON at column {}", error.column()),
            )
        })
    }
}

/// Cuts the next frame off the front of `buffer`, or gives `None` while it is incomplete.
///
/// When the length of the frame is known, room for the next part of it is reserved, never more than a
/// mebibyte at a time, so that an announced length alone costs no memory.
///
/// # Errors
///
/// [`RemotingError::FrameTooLarge`] and [`RemotingError::Malformed`]; the stream cannot be used after either.
pub fn decode_frame(buffer: &mut BytesMut) -> Result<Option<Command>, RemotingError> {
    const STEP: usize = 1024 * 1024;
    let Some(length) = peek_u32(buffer, 0) else {
        return Ok(None);
    };
    let length = length as usize;
    if length > MAX_FRAME {
        return Err(RemotingError::FrameTooLarge {
            size: length,
            limit: MAX_FRAME,
        });
    }
    if length < 4 {
        return Err(RemotingError::malformed(
            "frame",
            "shorter than its header length",
        ));
    }
    let Some(word) = peek_u32(buffer, 4) else {
        return Ok(None);
    };
    if word >> 24 != 0 {
        return Err(RemotingError::malformed("frame", "header format is not JSON"));
    }
    let header_len = (word & 0xff_ffff) as usize;
    if header_len > length - 4 {
        return Err(RemotingError::malformed(
            "frame",
            "header is longer than the frame",
        ));
    }
    if header_len > MAX_HEADER {
        return Err(RemotingError::FrameTooLarge {
            size: header_len,
            limit: MAX_HEADER,
        });
    }
    if buffer.len() < 4 + length {
        let missing = 4 + length - buffer.len();
        buffer.reserve(missing.min(STEP));
        return Ok(None);
    }
    let mut frame = buffer.split_to(4 + length).freeze();
    frame.advance(8);
    let text = frame.split_to(header_len);
    Ok(Some(Command {
        header: Header::decode(&text)?,
        body: frame,
    }))
}

fn peek_u32(buffer: &[u8], at: usize) -> Option<u32> {
    buffer
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_be_bytes)
}

/// A body that can append itself to a frame.
pub trait EncodeBody {
    /// Appends the body. It is called once, or twice when the request is signed, and must write the same.
    ///
    /// # Errors
    ///
    /// [`RemotingError`] when the body breaks a rule of the protocol; nothing is sent then.
    fn encode(&self, out: &mut BytesMut) -> Result<(), RemotingError>;
}

impl EncodeBody for () {
    fn encode(&self, _out: &mut BytesMut) -> Result<(), RemotingError> {
        Ok(())
    }
}

impl EncodeBody for [u8] {
    fn encode(&self, out: &mut BytesMut) -> Result<(), RemotingError> {
        out.put_slice(self);
        Ok(())
    }
}

impl EncodeBody for Bytes {
    fn encode(&self, out: &mut BytesMut) -> Result<(), RemotingError> {
        out.put_slice(self);
        Ok(())
    }
}

/// A body that is written as JSON.
#[derive(Debug, Clone, Copy)]
pub struct JsonBody<'a, T>(pub &'a T);

impl<T: Serialize> EncodeBody for JsonBody<'_, T> {
    fn encode(&self, out: &mut BytesMut) -> Result<(), RemotingError> {
        serde_json::to_writer(out.writer(), self.0)
            .map_err(|_| RemotingError::malformed("body", "cannot be written as JSON"))
    }
}

/// Appends a request to `out`.
///
/// # Errors
///
/// What the body's encoder says, or [`RemotingError::FrameTooLarge`]; `out` is as it was then.
pub fn encode_request<R: Request + ?Sized, B: EncodeBody + ?Sized>(
    out: &mut BytesMut,
    opaque: i32,
    oneway: bool,
    request: &R,
    body: &B,
    credentials: Option<&Credentials>,
) -> Result<(), RemotingError> {
    let start = out.len();
    let signature = credentials.map(|c| c.sign(request, body)).transpose()?;
    let outcome = build(
        out,
        request.code(),
        if oneway { ONEWAY } else { 0 },
        opaque,
        None,
        body,
        |fields| {
            request.write(fields);
            if let (Some(credentials), Some(signature)) = (credentials, &signature) {
                credentials.write(fields, signature);
            }
        },
    );
    if outcome.is_err() {
        out.truncate(start);
    }
    outcome
}

/// Appends a response to `out`.
///
/// # Errors
///
/// As [`encode_request`].
pub fn encode_response<B: EncodeBody + ?Sized>(
    out: &mut BytesMut,
    opaque: i32,
    code: i32,
    remark: Option<&str>,
    body: &B,
    fields: impl FnOnce(&mut Fields<'_>),
) -> Result<(), RemotingError> {
    let start = out.len();
    let outcome = build(out, code, RESPONSE, opaque, remark, body, fields);
    if outcome.is_err() {
        out.truncate(start);
    }
    outcome
}

fn build<B: EncodeBody + ?Sized>(
    out: &mut BytesMut,
    code: i32,
    flag: i32,
    opaque: i32,
    remark: Option<&str>,
    body: &B,
    fields: impl FnOnce(&mut Fields<'_>),
) -> Result<(), RemotingError> {
    let start = out.len();
    out.put_u64(0);
    out.put_slice(b"{\"code\":");
    put_number(out, i64::from(code));
    out.put_slice(b",\"flag\":");
    put_number(out, i64::from(flag));
    out.put_slice(b",\"language\":\"RUST\",\"opaque\":");
    put_number(out, i64::from(opaque));
    if let Some(remark) = remark {
        out.put_slice(b",\"remark\":");
        put_json_string(out, remark);
    }
    out.put_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
    put_number(out, VERSION);
    out.put_slice(b",\"extFields\":{");
    fields(&mut Fields::json(out));
    out.put_slice(b"}}");
    let header_len = out.len() - start - 8;
    if header_len > MAX_HEADER {
        return Err(RemotingError::FrameTooLarge {
            size: header_len,
            limit: MAX_HEADER,
        });
    }
    body.encode(out)?;
    let length = out.len() - start - 4;
    if length > MAX_FRAME {
        return Err(RemotingError::FrameTooLarge {
            size: length,
            limit: MAX_FRAME,
        });
    }
    if let Some(prelude) = out.get_mut(start..start + 8) {
        let (total, header) = prelude.split_at_mut(4);
        total.copy_from_slice(&(length as u32).to_be_bytes());
        header.copy_from_slice(&(header_len as u32).to_be_bytes());
    }
    Ok(())
}

/// Tells whether a response code means that the server did nothing because of load.
pub(super) fn is_busy(code: i32) -> bool {
    matches!(code, response::SYSTEM_BUSY | response::FLOW_CONTROL)
}
