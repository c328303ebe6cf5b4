//! The one place where errors of the server, the client library and the system become ours.

use std::io;

use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
use mq_api::{Error, ErrorKind, Outcome};

/// Maps what a request met on a connection that stood.
pub(crate) fn from_lapin(address: &str, error: &lapin::Error) -> Error {
    use lapin::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::ProtocolError(refusal) => return refused(refusal),
        Kind::ChannelsLimitReached => ErrorKind::ResourceExhausted,
        Kind::IOError(source) => return from_io(address, source),
        Kind::InvalidChannel(_) | Kind::InvalidChannelState(..) | Kind::InvalidConnectionState(_) => {
            return broken(address);
        }
        Kind::MissingHeartbeatError => ErrorKind::Connection,
        Kind::ParsingError(_) | Kind::InvalidProtocolVersion(_) | Kind::SerialisationError(_) => {
            ErrorKind::Protocol
        }
        Kind::AuthProviderError(_) => ErrorKind::Authentication,
        Kind::RuntimeShutdownError(_) => ErrorKind::Closed,
        _ => ErrorKind::Other,
    };
    Error::new(kind, format!("server {address}: {error}"))
}

/// Maps what connecting met: there a refusal is about who may come in.
pub(crate) fn from_connect(address: &str, error: &lapin::Error) -> Error {
    let mapped = match error.kind() {
        lapin::ErrorKind::ProtocolError(refusal) => {
            let words = refusal.get_message().as_str();
            let kind = match refusal.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => ErrorKind::Authentication,
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if words.contains("limit") => {
                    ErrorKind::ResourceExhausted
                }
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if words.contains("not found") => {
                    ErrorKind::InvalidConfig
                }
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => ErrorKind::PermissionDenied,
                _ => return refused(refusal).with_outcome(Outcome::NotSent),
            };
            Error::new(kind, format!("server {address} refused the connection: {words}"))
        }
        _ => from_lapin(address, error),
    };
    mapped.with_outcome(Outcome::NotSent)
}

/// Maps what the server says when it closes a channel or the connection.
pub(crate) fn refused(refusal: &AMQPError) -> Error {
    use AMQPErrorKind::{Hard, Soft};
    let words = refusal.get_message().as_str();
    let kind = match refusal.kind() {
        Soft(AMQPSoftError::ACCESSREFUSED) => ErrorKind::PermissionDenied,
        // A queue whose process is not up yet, as for a while after a start.
        Soft(AMQPSoftError::NOTFOUND) if words.contains("home node") || words.contains("inaccessible") => {
            ErrorKind::Interrupted
        }
        Soft(AMQPSoftError::NOTFOUND) => ErrorKind::TopicNotFound,
        Soft(AMQPSoftError::RESOURCELOCKED) => ErrorKind::Interrupted,
        Soft(AMQPSoftError::PRECONDITIONFAILED) if words.contains("message size") => {
            ErrorKind::MessageTooLarge
        }
        Soft(AMQPSoftError::PRECONDITIONFAILED) if words.contains("timed out") => ErrorKind::Interrupted,
        Soft(AMQPSoftError::PRECONDITIONFAILED) if words.contains("inequivalent arg") => {
            ErrorKind::InvalidConfig
        }
        Soft(AMQPSoftError::PRECONDITIONFAILED) => ErrorKind::Interrupted,
        Soft(AMQPSoftError::CONTENTTOOLARGE) => ErrorKind::MessageTooLarge,
        Soft(AMQPSoftError::NOROUTE | AMQPSoftError::NOCONSUMERS) => ErrorKind::Interrupted,
        Hard(AMQPHardError::CONNECTIONFORCED) => ErrorKind::Connection,
        // Another client has declared it and its process is not up yet.
        Hard(AMQPHardError::RESOURCEERROR) if words.contains("Stream not found") => ErrorKind::Interrupted,
        Hard(AMQPHardError::RESOURCEERROR) => ErrorKind::ResourceExhausted,
        // Two connections that declare one new quorum queue and consume from it at once end so on 3.10.
        Hard(AMQPHardError::INTERNALERROR) => ErrorKind::Interrupted,
        Hard(AMQPHardError::NOTIMPLEMENTED) => ErrorKind::Unsupported,
        Hard(AMQPHardError::NOTALLOWED) => ErrorKind::PermissionDenied,
        Hard(AMQPHardError::INVALIDPATH) => ErrorKind::InvalidConfig,
        Hard(
            AMQPHardError::FRAMEERROR
            | AMQPHardError::SYNTAXERROR
            | AMQPHardError::COMMANDINVALID
            | AMQPHardError::CHANNELERROR
            | AMQPHardError::UNEXPECTEDFRAME,
        ) => ErrorKind::Protocol,
    };
    Error::new(kind, format!("the server refused: {words}"))
}

/// Maps a failure of the connection itself.
pub(crate) fn from_io(address: &str, error: &io::Error) -> Error {
    // The TLS library's own errors come inside an error of the system's kind.
    let tls = error.kind() == io::ErrorKind::InvalidData
        || error
            .get_ref()
            .is_some_and(|inner| inner.to_string().contains("certificate") || inner.source().is_some());
    let kind = match error.kind() {
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        io::ErrorKind::InvalidInput => ErrorKind::InvalidConfig,
        _ if tls => ErrorKind::Tls,
        _ => ErrorKind::Connection,
    };
    Error::new(kind, format!("server {address}: {error}"))
}

/// Makes the error of a connection or channel that ended.
pub(crate) fn broken(address: &str) -> Error {
    Error::new(
        ErrorKind::Connection,
        format!("the connection to server {address} ended"),
    )
}

/// Makes the error of a server that has told that it takes no messages.
pub(crate) fn blocked() -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "the server takes no messages for now: its memory or disk is full",
    )
}

/// Makes the error of stored bytes that make no sense.
pub(crate) fn protocol(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Protocol, format!("the server sent {what}"))
}

/// Makes the error of stored data in a format that a newer build wrote.
pub(crate) fn newer_format(what: &str, version: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{what} has format version {version}, this build knows version 1"),
    )
}

/// Tells whether trying again may help.
pub(crate) fn is_passing(error: &Error) -> bool {
    error.is_retryable()
}

/// Tells whether the server has ended a channel with this error, and not a connection.
pub(crate) fn is_of_a_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(refusal) if matches!(refusal.kind(), AMQPErrorKind::Soft(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_kind() {
        use ErrorKind::*;
        let soft = |kind, words: &str| AMQPError::new(AMQPErrorKind::Soft(kind), words.into());
        let hard = |kind, words: &str| AMQPError::new(AMQPErrorKind::Hard(kind), words.into());
        for (refusal, kind, retryable) in [
            (
                soft(
                    AMQPSoftError::ACCESSREFUSED,
                    "ACCESS_REFUSED - write access to queue",
                ),
                PermissionDenied,
                false,
            ),
            (
                soft(AMQPSoftError::NOTFOUND, "NOT_FOUND - no queue 'q' in vhost '/'"),
                TopicNotFound,
                false,
            ),
            (
                soft(
                    AMQPSoftError::NOTFOUND,
                    "NOT_FOUND - home node 'r@h' of durable queue 'q' is down or inaccessible",
                ),
                Interrupted,
                true,
            ),
            (
                soft(AMQPSoftError::RESOURCELOCKED, "RESOURCE_LOCKED"),
                Interrupted,
                true,
            ),
            (
                soft(
                    AMQPSoftError::PRECONDITIONFAILED,
                    "PRECONDITION_FAILED - message size 5 is larger than configured max size 4",
                ),
                MessageTooLarge,
                false,
            ),
            (
                soft(
                    AMQPSoftError::PRECONDITIONFAILED,
                    "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out",
                ),
                Interrupted,
                true,
            ),
            (
                soft(
                    AMQPSoftError::PRECONDITIONFAILED,
                    "PRECONDITION_FAILED - inequivalent arg 'x-max-age'",
                ),
                InvalidConfig,
                false,
            ),
            (
                hard(AMQPHardError::CONNECTIONFORCED, "shutdown"),
                Connection,
                true,
            ),
            (
                hard(AMQPHardError::INTERNALERROR, "INTERNAL_ERROR"),
                Interrupted,
                true,
            ),
            (
                hard(AMQPHardError::RESOURCEERROR, "memory"),
                ResourceExhausted,
                true,
            ),
            (
                hard(
                    AMQPHardError::RESOURCEERROR,
                    "RESOURCE_ERROR - Stream not found for queue 'q' in vhost '/'",
                ),
                Interrupted,
                true,
            ),
            (hard(AMQPHardError::NOTIMPLEMENTED, "540"), Unsupported, false),
            (hard(AMQPHardError::FRAMEERROR, "501"), Protocol, false),
            (hard(AMQPHardError::NOTALLOWED, "530"), PermissionDenied, false),
        ] {
            let error = refused(&refusal);
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.is_retryable(), retryable, "{error}");
        }
    }

    #[test]
    fn a_refused_connection_says_who_may_not_come_in() {
        let refusal = |kind, words: &str| {
            lapin::Error::from(lapin::ErrorKind::ProtocolError(AMQPError::new(
                kind,
                words.into(),
            )))
        };
        for (error, kind) in [
            (
                refusal(
                    AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED),
                    "ACCESS_REFUSED - Login was refused",
                ),
                ErrorKind::Authentication,
            ),
            (
                refusal(
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED),
                    "NOT_ALLOWED - vhost v not found",
                ),
                ErrorKind::InvalidConfig,
            ),
            (
                refusal(
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED),
                    "NOT_ALLOWED - access to vhost '/' refused for user 'u'",
                ),
                ErrorKind::PermissionDenied,
            ),
            (
                refusal(
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED),
                    "NOT_ALLOWED - connection limit (1) is reached",
                ),
                ErrorKind::ResourceExhausted,
            ),
            (
                lapin::Error::from(io::Error::from(io::ErrorKind::ConnectionRefused)),
                ErrorKind::Connection,
            ),
            (
                lapin::Error::from(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "invalid peer certificate",
                )),
                ErrorKind::Tls,
            ),
        ] {
            let mapped = from_connect("h:1", &error);
            assert_eq!(mapped.kind(), kind, "{mapped}");
            assert_eq!(mapped.outcome(), Outcome::NotSent);
        }
    }

    #[test]
    fn a_broken_connection_leaves_the_outcome_open() {
        let error = from_lapin(
            "h:1",
            &lapin::Error::from(lapin::ErrorKind::MissingHeartbeatError),
        );
        assert_eq!(error.kind(), ErrorKind::Connection);
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(error.is_retryable());
    }
}
