//! The one place where errors of the remoting layer become ours.

use mq_api::{Error, ErrorKind, Outcome};

use crate::remoting::{Effect, RemotingError, codes::response};

/// Maps an error of a call.
pub(crate) fn from_remoting(error: RemotingError) -> Error {
    let kind = match &error {
        RemotingError::Connect { .. }
        | RemotingError::Lost { .. }
        | RemotingError::Closed { .. }
        | RemotingError::GoAway { .. }
        | RemotingError::NoServer { .. } => ErrorKind::Connection,
        RemotingError::Tls { .. } => ErrorKind::Tls,
        RemotingError::Timeout { .. } => ErrorKind::Timeout,
        RemotingError::Busy { .. } => ErrorKind::ResourceExhausted,
        RemotingError::Refused { code, remark, .. } => refused(*code, remark),
        RemotingError::FrameTooLarge { .. } => ErrorKind::MessageTooLarge,
        RemotingError::Malformed { .. } => ErrorKind::Protocol,
        RemotingError::Config { .. } => ErrorKind::InvalidConfig,
    };
    let outcome = match error.effect() {
        Effect::NotSent => Outcome::NotSent,
        Effect::Unknown => Outcome::Unknown,
    };
    Error::new(kind, error.to_string())
        .with_outcome(outcome)
        .with_source(error)
}

/// Maps the code of a refusal; words decide where one code has several meanings.
fn refused(code: i32, remark: &str) -> ErrorKind {
    let says = |words: &[&str]| {
        let remark = remark.to_ascii_lowercase();
        words.iter().any(|word| remark.contains(word))
    };
    match code {
        response::SYSTEM_BUSY | response::FLOW_CONTROL | response::POLLING_FULL => {
            ErrorKind::ResourceExhausted
        }
        response::REQUEST_CODE_NOT_SUPPORTED | response::VERSION_NOT_SUPPORTED => ErrorKind::Unsupported,
        response::FLUSH_DISK_TIMEOUT
        | response::SLAVE_NOT_AVAILABLE
        | response::FLUSH_SLAVE_TIMEOUT
        | response::SERVICE_NOT_AVAILABLE
        | response::SUBSCRIPTION_NOT_EXIST
        | response::SUBSCRIPTION_NOT_LATEST
        | response::SUBSCRIPTION_GROUP_NOT_EXIST
        | response::CONSUMER_NOT_ONLINE
        | response::NOT_LEADER_FOR_QUEUE => ErrorKind::Interrupted,
        response::MESSAGE_ILLEGAL if says(&["delay"]) => ErrorKind::InvalidMessage,
        response::MESSAGE_ILLEGAL if says(&["size", "length", "exceed", "too long"]) => {
            ErrorKind::MessageTooLarge
        }
        response::MESSAGE_ILLEGAL => ErrorKind::InvalidMessage,
        // One code for all of access control: who it is, and what it may do.
        response::NO_PERMISSION if says(&["authenticat", "signature", "is not found", "accesskey"]) => {
            ErrorKind::Authentication
        }
        response::NO_PERMISSION => ErrorKind::PermissionDenied,
        response::TOPIC_NOT_EXIST => ErrorKind::TopicNotFound,
        response::PULL_OFFSET_MOVED => ErrorKind::OffsetOutOfRange,
        response::SUBSCRIPTION_PARSE_FAILED => ErrorKind::InvalidConfig,
        response::INVALID_PARAMETER if says(&["queueid"]) => ErrorKind::InvalidPartition,
        response::INVALID_PARAMETER if says(&["topic"]) => ErrorKind::InvalidTopic,
        response::INVALID_PARAMETER => ErrorKind::InvalidConfig,
        response::NO_MESSAGE => ErrorKind::StaleAck,
        _ => ErrorKind::Other,
    }
}

/// Tells whether trying again later can help.
pub(crate) fn is_passing(error: &Error) -> bool {
    error.is_retryable() || matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Other)
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc, time::Duration};

    use super::*;

    fn said(code: i32, remark: &str) -> RemotingError {
        RemotingError::Refused {
            address: "h:1".into(),
            request: 310,
            code,
            remark: remark.into(),
        }
    }

    #[test]
    fn every_refusal_has_its_kind() {
        use ErrorKind::*;
        use Outcome::{NotSent, Unknown};
        for (code, remark, kind, retryable, outcome) in [
            (1, "java.lang.NullPointerException", Other, false, Unknown),
            (3, "request type 9 not supported", Unsupported, false, NotSent),
            (10, "", Interrupted, true, Unknown),
            (11, "", Interrupted, true, Unknown),
            (12, "", Interrupted, true, Unknown),
            (
                13,
                "the message is illegal, maybe msg body or properties length not matched",
                MessageTooLarge,
                false,
                NotSent,
            ),
            (
                13,
                "timer message illegal, the delay time should not be bigger than the max delay",
                InvalidMessage,
                false,
                NotSent,
            ),
            (13, "odd", InvalidMessage, false, NotSent),
            (14, "service not available now", Interrupted, true, NotSent),
            (15, "", Unsupported, false, NotSent),
            (
                16,
                "User:nobody not found, signature check failed",
                Authentication,
                false,
                NotSent,
            ),
            (
                16,
                "User:bob has no permission to access Topic:A1",
                PermissionDenied,
                false,
                NotSent,
            ),
            (
                16,
                "the broker's sending message is forbidden",
                PermissionDenied,
                false,
                NotSent,
            ),
            (17, "topic[x] not exist", TopicNotFound, false, NotSent),
            (21, "", OffsetOutOfRange, false, NotSent),
            (23, "", InvalidConfig, false, NotSent),
            (24, "", Interrupted, true, NotSent),
            (25, "", Interrupted, true, NotSent),
            (26, "", Interrupted, true, NotSent),
            (
                29,
                "request queueId[7] is illegal",
                InvalidPartition,
                false,
                NotSent,
            ),
            (
                29,
                "The specified topic contains illegal characters",
                InvalidTopic,
                false,
                NotSent,
            ),
            (29, "odd", InvalidConfig, false, NotSent),
            (206, "", Interrupted, true, NotSent),
            (208, "", StaleAck, false, NotSent),
            (209, "", ResourceExhausted, true, NotSent),
            (215, "", ResourceExhausted, true, NotSent),
            (501, "", Interrupted, true, NotSent),
            (9999, "", Other, false, NotSent),
        ] {
            let error = from_remoting(said(code, remark));
            assert_eq!(error.kind(), kind, "{code} {remark}");
            assert_eq!(error.is_retryable(), retryable, "{code} {remark}");
            assert_eq!(error.outcome(), outcome, "{code} {remark}");
        }
    }

    #[test]
    fn every_failure_of_a_connection_has_its_kind() {
        let source = || Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        let address: Arc<str> = "h:1".into();
        let lost = |effect| RemotingError::Lost {
            address: "h:1".into(),
            reason: "reset".into(),
            effect,
        };
        let late = |effect| RemotingError::Timeout {
            address: "h:1".into(),
            code: 310,
            waited: Duration::from_secs(1),
            effect,
        };
        use Outcome::{NotSent, Unknown};
        for (error, kind, outcome) in [
            (
                RemotingError::Connect {
                    address: address.clone(),
                    source: source(),
                },
                ErrorKind::Connection,
                NotSent,
            ),
            (
                RemotingError::Tls {
                    address: address.clone(),
                    source: source(),
                },
                ErrorKind::Tls,
                NotSent,
            ),
            (lost(Effect::Unknown), ErrorKind::Connection, Unknown),
            (lost(Effect::NotSent), ErrorKind::Connection, NotSent),
            (late(Effect::Unknown), ErrorKind::Timeout, Unknown),
            (late(Effect::NotSent), ErrorKind::Timeout, NotSent),
            (
                RemotingError::Closed {
                    address: address.clone(),
                },
                ErrorKind::Connection,
                NotSent,
            ),
            (
                RemotingError::GoAway {
                    address: address.clone(),
                },
                ErrorKind::Connection,
                NotSent,
            ),
            (
                RemotingError::Busy {
                    address,
                    remark: "[OVERLOAD]".into(),
                },
                ErrorKind::ResourceExhausted,
                NotSent,
            ),
            (
                RemotingError::FrameTooLarge { size: 2, limit: 1 },
                ErrorKind::MessageTooLarge,
                NotSent,
            ),
            (
                RemotingError::malformed("frame", "odd"),
                ErrorKind::Protocol,
                Unknown,
            ),
        ] {
            let mapped = from_remoting(error);
            assert_eq!((mapped.kind(), mapped.outcome()), (kind, outcome), "{mapped}");
        }
    }
}
