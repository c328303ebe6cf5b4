//! What can go wrong between a client and a RocketMQ server.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Tells whether a failed request can have had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The server never saw the request whole, or said that it did nothing with it.
    NotSent,
    /// The request may or may not have been carried out.
    Unknown,
}

/// An error of the remoting layer.
///
/// It is cheap to clone, since one lost connection fails many requests. It never holds credentials or
/// message content.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RemotingError {
    /// The address refused a TCP connection or did not answer in time.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address that was tried.
        address: Arc<str>,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with {address} failed")]
    Tls {
        /// The address that was tried.
        address: Arc<str>,
        /// What the TLS library said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The connection ended before the answer came.
    #[error("connection to {address} was lost: {reason}")]
    Lost {
        /// The peer.
        address: Arc<str>,
        /// Why it ended.
        reason: Arc<str>,
        /// Whether the request had left this process.
        effect: Effect,
    },
    /// The answer did not come before the deadline.
    #[error("no answer from {address} to request {code} within {waited:?}")]
    Timeout {
        /// The peer.
        address: Arc<str>,
        /// The request code.
        code: i32,
        /// How long the caller waited.
        waited: Duration,
        /// Whether the request had been handed to the connection.
        effect: Effect,
    },
    /// The connection or the client was closed by its owner.
    #[error("connection to {address} is closed")]
    Closed {
        /// The peer.
        address: Arc<str>,
    },
    /// The server is closing this connection and did not carry out the request.
    #[error("{address} asked to reconnect")]
    GoAway {
        /// The peer.
        address: Arc<str>,
    },
    /// The server refused the request because it has too much to do; it did nothing with it.
    #[error("{address} is busy: {remark}")]
    Busy {
        /// The peer.
        address: Arc<str>,
        /// The server's words.
        remark: Box<str>,
    },
    /// The server answered with a code that means failure.
    #[error("{address} refused request {request} with code {code}: {remark}")]
    Refused {
        /// The peer.
        address: Arc<str>,
        /// The request code.
        request: i32,
        /// The response code, see [`response`](crate::remoting::codes::response).
        code: i32,
        /// The server's words, cut to a bounded length.
        remark: Box<str>,
    },
    /// A frame is larger than the protocol layer accepts.
    #[error("frame of {size} bytes is over the limit of {limit} bytes")]
    FrameTooLarge {
        /// The announced or built size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Bytes that came from the server, or were to be sent, break a rule of the protocol.
    #[error("malformed {what}: {rule}")]
    Malformed {
        /// The part of the protocol.
        what: &'static str,
        /// The rule that is broken.
        rule: Cow<'static, str>,
    },
    /// Something in the configuration of the connection is not usable.
    #[error("invalid {option}: {rule}")]
    Config {
        /// The option.
        option: &'static str,
        /// The rule that is broken.
        rule: Cow<'static, str>,
    },
    /// No address of a server is known that could answer.
    #[error("no server for {what}: {rule}")]
    NoServer {
        /// What was looked for.
        what: Box<str>,
        /// Why there is none.
        rule: Cow<'static, str>,
    },
}

impl RemotingError {
    /// Builds a [`RemotingError::Malformed`].
    pub fn malformed(what: &'static str, rule: impl Into<Cow<'static, str>>) -> Self {
        Self::Malformed {
            what,
            rule: rule.into(),
        }
    }

    /// Tells whether the request can have had an effect.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Closed { .. }
            | Self::GoAway { .. }
            | Self::Busy { .. }
            | Self::FrameTooLarge { .. }
            | Self::Config { .. }
            | Self::NoServer { .. } => Effect::NotSent,
            Self::Lost { effect, .. } | Self::Timeout { effect, .. } => *effect,
            Self::Refused { code, .. } => codes_effect(*code),
            Self::Malformed { .. } => Effect::Unknown,
        }
    }

    /// Tells whether the connection can no longer be used.
    pub fn is_connection(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Tls { .. }
                | Self::Lost { .. }
                | Self::Closed { .. }
                | Self::GoAway { .. }
                | Self::NoServer { .. }
        )
    }

    /// The code that the server answered with, if it answered.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// A broker that stored a message but could not flush or replicate it in time says so with these codes: the
/// message is there and may be lost later. Code 1 is any Java exception. All others are refusals.
fn codes_effect(code: i32) -> Effect {
    use super::codes::response;
    match code {
        response::SYSTEM_ERROR
        | response::FLUSH_DISK_TIMEOUT
        | response::SLAVE_NOT_AVAILABLE
        | response::FLUSH_SLAVE_TIMEOUT => Effect::Unknown,
        _ => Effect::NotSent,
    }
}
