//! Bounds on what a server may send, looked at before anything is allocated for it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bounds one reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The largest string.
    pub(crate) bulk: u64,
    /// The most elements of one array, map or set.
    pub(crate) elements: u64,
    /// The most bytes of one whole reply.
    pub(crate) reply: u64,
}

/// Strings in one line are names, ids and error texts.
const MAX_LINE: u32 = 64 * 1024;
/// XINFO, the deepest reply that is asked for, has seven levels.
const MAX_DEPTH: usize = 16;

impl Limits {
    pub(crate) fn new(bulk: usize) -> Self {
        Self {
            bulk: bulk as u64,
            elements: 4 * 1024 * 1024,
            reply: 1024 * 1024 * 1024,
        }
    }
}

/// Follows a stream of replies without keeping any of it.
#[derive(Debug)]
pub(crate) struct Scanner {
    limits: Limits,
    state: State,
    /// How many values are missing at each open level.
    open: Vec<u64>,
    reply: u64,
}

#[derive(Debug)]
enum State {
    Type,
    Line {
        kind: u8,
        length: u32,
        value: u64,
        negative: bool,
    },
    Body {
        left: u64,
    },
}

impl Scanner {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Type,
            open: Vec::new(),
            reply: 0,
        }
    }

    /// Goes over bytes up to the end of a reply. Returns how many it went over, and whether a reply ends there.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), String> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            let mut ended = false;
            match &mut self.state {
                State::Type => {
                    if !b"+-:$*_%~,#!=(>".contains(&byte) {
                        return Err(format!("a reply begins with byte {byte:#04x}"));
                    }
                    at += 1;
                    self.state = State::Line {
                        kind: byte,
                        length: 0,
                        value: 0,
                        negative: false,
                    };
                }
                State::Line {
                    kind,
                    length,
                    value,
                    negative,
                } => {
                    at += 1;
                    *length += 1;
                    if *length > MAX_LINE {
                        return Err(format!("a line of more than {MAX_LINE} bytes"));
                    }
                    if byte == b'\n' {
                        let (kind, value) = (*kind, (!*negative).then_some(*value));
                        ended = self.line_ended(kind, value)?;
                    } else if matches!(*kind, b'$' | b'*' | b'%' | b'~' | b'!' | b'=' | b'>') {
                        match byte {
                            b'\r' => {}
                            b'-' if *length == 1 => *negative = true,
                            b'0'..=b'9' => {
                                *value = value
                                    .checked_mul(10)
                                    .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                                    .ok_or("a length that is no number of 64 bits")?;
                            }
                            _ => return Err(format!("byte {byte:#04x} in a length")),
                        }
                    }
                }
                State::Body { left } => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += step;
                    *left -= step as u64;
                    if *left == 0 {
                        ended = self.value_ended();
                    }
                }
            }
            if ended {
                self.reply = 0;
                return Ok((at, true));
            }
        }
        self.reply += at as u64;
        if self.reply > self.limits.reply {
            return Err(format!("a reply of more than {} bytes", self.limits.reply));
        }
        Ok((at, false))
    }

    /// Tells whether the last reply has ended and none has begun.
    fn is_between_replies(&self) -> bool {
        matches!(self.state, State::Type) && self.open.is_empty()
    }

    /// Says how many bytes of the string under way are missing.
    pub(crate) fn missing(&self) -> usize {
        match self.state {
            State::Body { left } => usize::try_from(left).unwrap_or(usize::MAX),
            State::Type | State::Line { .. } => 0,
        }
    }

    fn line_ended(&mut self, kind: u8, value: Option<u64>) -> Result<bool, String> {
        let count = match kind {
            b'$' | b'!' | b'=' => {
                let Some(length) = value else {
                    return Ok(self.value_ended());
                };
                if length > self.limits.bulk {
                    return Err(format!(
                        "a string of {length} bytes, the limit is {}",
                        self.limits.bulk
                    ));
                }
                self.state = State::Body { left: length + 2 };
                return Ok(false);
            }
            b'*' | b'~' | b'>' => value.unwrap_or(0),
            b'%' => value.unwrap_or(0).saturating_mul(2),
            _ => 0,
        };
        if count > self.limits.elements {
            return Err(format!(
                "an array of {count} elements, the limit is {}",
                self.limits.elements
            ));
        }
        if count == 0 {
            return Ok(self.value_ended());
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("a reply nested deeper than {MAX_DEPTH} levels"));
        }
        self.open.push(count);
        self.state = State::Type;
        Ok(false)
    }

    /// Closes the levels that end here; true where the whole reply does.
    fn value_ended(&mut self) -> bool {
        self.state = State::Type;
        while let Some(missing) = self.open.last_mut() {
            *missing -= 1;
            if *missing > 0 {
                return false;
            }
            self.open.pop();
        }
        true
    }
}

/// Passes a connection through under the same bounds, for a client that has none of its own.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    scanner: Scanner,
}

impl<S> Guarded<S> {
    pub(crate) fn new(stream: S, limits: Limits) -> Self {
        Self {
            stream,
            scanner: Scanner::new(limits),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let mut fresh = buf.filled().get(before..).unwrap_or_default();
        // The client would take half a reply for a malformed one, which no other connection could mend.
        if fresh.is_empty() && buf.remaining() > 0 && !self.scanner.is_between_replies() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        while !fresh.is_empty() {
            let (gone_over, _) = self
                .scanner
                .advance(fresh)
                .map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken))?;
            fresh = fresh.get(gone_over..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        bulk: 100,
        elements: 10,
        reply: 1000,
    };

    /// Returns where replies end, the bytes given in pieces of every size.
    fn ends(bytes: &[u8]) -> Result<Vec<usize>, String> {
        let mut all = Vec::new();
        for piece in 1..=bytes.len() {
            let mut scanner = Scanner::new(LIMITS);
            let mut found = Vec::new();
            let mut at = 0;
            for chunk in bytes.chunks(piece) {
                let mut rest = chunk;
                while !rest.is_empty() {
                    let (step, ended) = scanner.advance(rest)?;
                    at += step;
                    rest = &rest[step..];
                    if ended {
                        found.push(at);
                    }
                }
            }
            all.push(found);
        }
        assert!(all.windows(2).all(|two| two[0] == two[1]), "{all:?}");
        Ok(all.pop().unwrap_or_default())
    }

    #[test]
    fn replies_end_where_they_end() {
        assert_eq!(ends(b"+OK\r\n:5\r\n$-1\r\n"), Ok(vec![5, 9, 14]));
        assert_eq!(ends(b"$3\r\na\r\n\r\n$0\r\n\r\n"), Ok(vec![9, 15]));
        assert_eq!(
            ends(b"*2\r\n*0\r\n*1\r\n$1\r\nx\r\n-ERR no\r\n"),
            Ok(vec![19, 28])
        );
        assert_eq!(ends(b"%1\r\n+a\r\n_\r\n,1.5\r\n"), Ok(vec![11, 17]));
    }

    #[tokio::test]
    async fn a_connection_that_ends_within_a_reply_is_broken_and_not_malformed() {
        use tokio::io::AsyncReadExt;
        for (bytes, whole) in [
            (&b"+OK\r\n"[..], true),
            (b"*2\r\n:1\r\n", false),
            (b"$3\r\na", false),
        ] {
            let mut read = Vec::new();
            let result = Guarded::new(bytes, LIMITS).read_to_end(&mut read).await;
            assert_eq!(read, bytes);
            assert_eq!(
                result.map_err(|error| error.kind()).err(),
                (!whole).then_some(io::ErrorKind::UnexpectedEof)
            );
        }
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_announcement() {
        for (bytes, words) in [
            (&b"$101\r\n"[..], "101 bytes"),
            (b"*11\r\n", "11 elements"),
            (b"%6\r\n", "12 elements"),
            (b"$99999999999999999999999\r\n", "64 bits"),
            (b"$1x\r\n", "in a length"),
            (b"HTTP/1.1 400", "0x48"),
            (&b"*1\r\n".repeat(17), "deeper"),
            (&[&b"*10\r\n"[..], b"$100\r\n", &[b'x'; 1000]].concat(), "begins"),
        ] {
            let error = ends(bytes).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let long = [&b"+"[..], &vec![b'x'; MAX_LINE as usize + 1]].concat();
        let error = Scanner::new(Limits::new(100)).advance(&long).unwrap_err();
        assert!(error.contains("line"), "{error}");
    }
}
