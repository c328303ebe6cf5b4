//! The one place where errors of the server, the client library and the system become ours.

use std::{io, sync::Arc};

use mq_api::{Error, ErrorKind, Outcome};
use redis::RedisError;

/// Maps what the server says when it refuses a command. A refused command has changed nothing.
pub(crate) fn refused(words: &str) -> Error {
    let (code, detail) = words.split_once(' ').unwrap_or((words, ""));
    let kind = match code {
        "NOAUTH" | "WRONGPASS" => ErrorKind::Authentication,
        "NOPERM" => ErrorKind::PermissionDenied,
        "OOM" | "MISCONF" | "NOREPLICAS" => ErrorKind::ResourceExhausted,
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "READONLY" | "BUSY" | "UNBLOCKED"
        | "NOSCRIPT" | "EXECABORT" => ErrorKind::Interrupted,
        "MOVED" | "ASK" | "CROSSSLOT" => ErrorKind::Unsupported,
        "NOPROTO" => ErrorKind::InvalidConfig,
        "NOGROUP" => ErrorKind::TopicNotFound,
        "WRONGTYPE" => ErrorKind::InvalidTopic,
        _ => match detail {
            _ if detail.starts_with("max number of clients") => ErrorKind::ResourceExhausted,
            _ if detail.starts_with("Protocol error") => ErrorKind::MessageTooLarge,
            _ if detail.starts_with("string exceeds maximum") => ErrorKind::MessageTooLarge,
            _ if detail.starts_with("DB index") => ErrorKind::InvalidConfig,
            _ if detail.starts_with("unknown command") || detail.starts_with("unknown subcommand") => {
                ErrorKind::Unsupported
            }
            _ if detail.contains("AUTH") => ErrorKind::Authentication,
            _ => ErrorKind::Other,
        },
    };
    Error::new(kind, format!("the server refused: {words}")).with_outcome(Outcome::NotSent)
}

/// Tells whether an `XADD` was refused because its id is not above the last one: somebody else was first.
pub(crate) fn is_stale_id(words: &str) -> bool {
    words.contains("equal or smaller than")
}

/// Maps what the client library says.
pub(crate) fn from_redis(address: &str, error: &RedisError) -> Error {
    use redis::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::Server(_) | Kind::Extension => {
            let words = format!(
                "{} {}",
                error.code().unwrap_or("ERR"),
                error.detail().unwrap_or_default()
            );
            return refused(&words);
        }
        Kind::Io => {
            let broken = std::error::Error::source(error)
                .and_then(|source| source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>())
                .and_then(|source| source.downcast_ref::<io::Error>())
                .is_some_and(|source| source.kind() == io::ErrorKind::InvalidData);
            if broken {
                ErrorKind::Protocol
            } else {
                ErrorKind::Connection
            }
        }
        Kind::Parse | Kind::UnexpectedReturnType => ErrorKind::Protocol,
        Kind::AuthenticationFailed => ErrorKind::Authentication,
        Kind::InvalidClientConfig | Kind::RESP3NotSupported => ErrorKind::InvalidConfig,
        Kind::ClusterConnectionNotFound
        | Kind::MasterNameNotFoundBySentinel
        | Kind::NoValidReplicasFoundBySentinel
        | Kind::EmptySentinelList => ErrorKind::Unsupported,
        _ => ErrorKind::Other,
    };
    Error::new(kind, format!("server {address}: {}", error.category())).with_source(error.clone())
}

/// Maps a failure of the connection itself.
pub(crate) fn from_io(address: &str, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::InvalidData => ErrorKind::Protocol,
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Connection,
    };
    Error::new(kind, format!("server {address}: {error}"))
}

/// Makes the error of a connection that ended.
pub(crate) fn broken(address: &str) -> Error {
    Error::new(
        ErrorKind::Connection,
        format!("the connection to server {address} ended"),
    )
}

/// Makes the error of bytes that are no reply, or no reply that makes sense here.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_kind() {
        use ErrorKind::*;
        for (words, kind, retryable) in [
            ("WRONGPASS invalid username-password pair", Authentication, false),
            ("NOAUTH Authentication required.", Authentication, false),
            (
                "NOPERM this user has no permissions to run the 'xadd' command",
                PermissionDenied,
                false,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                ResourceExhausted,
                true,
            ),
            (
                "MISCONF Errors writing to the AOF file: No space left on device",
                ResourceExhausted,
                true,
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                ResourceExhausted,
                true,
            ),
            ("ERR max number of clients reached", ResourceExhausted, true),
            (
                "LOADING Redis is loading the dataset in memory",
                Interrupted,
                true,
            ),
            (
                "READONLY You can't write against a read only replica.",
                Interrupted,
                true,
            ),
            ("UNBLOCKED the stream key no longer exists", Interrupted, true),
            ("MOVED 3999 127.0.0.1:6381", Unsupported, false),
            ("NOGROUP No such key or consumer group", TopicNotFound, false),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                InvalidTopic,
                false,
            ),
            ("ERR Protocol error: invalid bulk length", MessageTooLarge, false),
            ("ERR DB index is out of range", InvalidConfig, false),
            ("NOPROTO unsupported protocol version", InvalidConfig, false),
            ("ERR unknown command 'XADD'", Unsupported, false),
            ("ERR something new", Other, false),
            ("ODD", Other, false),
            ("", Other, false),
        ] {
            let error = refused(words);
            assert_eq!(error.kind(), kind, "{words}");
            assert_eq!(error.is_retryable(), retryable, "{words}");
            assert_eq!(error.outcome(), Outcome::NotSent, "{words}");
        }
    }

    #[test]
    fn every_failure_of_the_client_has_its_kind() {
        use redis::ErrorKind as Kind;
        for (error, kind) in [
            (
                RedisError::from(io::Error::from(io::ErrorKind::BrokenPipe)),
                ErrorKind::Connection,
            ),
            (
                RedisError::from(io::Error::new(io::ErrorKind::InvalidData, "too large")),
                ErrorKind::Protocol,
            ),
            (RedisError::from((Kind::Parse, "x")), ErrorKind::Protocol),
            (
                RedisError::from((Kind::UnexpectedReturnType, "x")),
                ErrorKind::Protocol,
            ),
            (
                RedisError::from((Kind::AuthenticationFailed, "x")),
                ErrorKind::Authentication,
            ),
            (
                RedisError::from((Kind::InvalidClientConfig, "x")),
                ErrorKind::InvalidConfig,
            ),
            (
                RedisError::from((Kind::RESP3NotSupported, "x")),
                ErrorKind::InvalidConfig,
            ),
            (RedisError::from((Kind::Client, "x")), ErrorKind::Other),
            (
                redis::make_extension_error("WRONGPASS".to_owned(), Some("no".to_owned())),
                ErrorKind::Authentication,
            ),
        ] {
            assert_eq!(from_redis("h:1", &error).kind(), kind, "{error}");
        }
    }

    #[test]
    fn a_broken_connection_leaves_the_outcome_open() {
        let error = from_io("h:1", &io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(error.kind(), ErrorKind::Connection);
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(error.is_retryable());
    }
}
