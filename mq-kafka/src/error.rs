//! The one place where errors of the broker and of librdkafka become ours.

use mq_api::{Error, ErrorKind, Outcome};
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

/// Says what a code means, and whether the broker or the library is sure that nothing was done.
fn kind_of(code: Code) -> ErrorKind {
    use ErrorKind as Kind;
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId => Kind::TopicNotFound,
        Code::UnknownPartition => Kind::InvalidPartition,
        Code::InvalidTopic | Code::TopicAlreadyExists => Kind::InvalidTopic,
        Code::InvalidPartitions => Kind::InvalidPartition,
        Code::InvalidGroupId => Kind::InvalidGroup,
        Code::InvalidReplicationFactor
        | Code::InvalidReplicaAssignment
        | Code::InvalidConfig
        | Code::InvalidSessionTimeout
        | Code::InconsistentGroupProtocol
        | Code::PolicyViolation
        | Code::InvalidArgument
        | Code::NotConfigured
        | Code::UnsupportedAssignor => Kind::InvalidConfig,
        Code::InvalidTimestamp | Code::InvalidRecord => Kind::InvalidMessage,
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::MessageBatchTooLarge
        | Code::OffsetMetadataTooLarge => Kind::MessageTooLarge,
        Code::OffsetOutOfRange | Code::AutoOffsetReset => Kind::OffsetOutOfRange,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::UnacceptableCredential => Kind::Authentication,
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::DelegationTokenAuthorizationFailed
        | Code::SecurityDisabled
        | Code::TopicDeletionDisabled => Kind::PermissionDenied,
        Code::SSL => Kind::Tls,
        Code::MessageTimedOut | Code::OperationTimedOut | Code::TimedOutQueue | Code::RequestTimedOut => {
            Kind::Timeout
        }
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::BrokerDestroy
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::UnknownBroker => Kind::Connection,
        Code::QueueFull
        | Code::CriticalSystemResource
        | Code::ThrottlingQuotaExceeded
        | Code::KafkaStorageError
        | Code::GroupMaxSizeReached
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::ISRInsufficient => Kind::ResourceExhausted,
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::ReplicaNotAvailable
        | Code::PreferredLeaderNotAvailable
        | Code::EligibleLeadersNotAvailable
        | Code::ListenerNotFound
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable
        | Code::StaleControllerEpoch
        | Code::StaleBrokerEpoch
        | Code::NotController
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::WaitingForCoordinator
        | Code::RebalanceInProgress
        | Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::FencedMemberEpoch
        | Code::StaleMemberEpoch
        | Code::AssignmentLost
        | Code::MemberIdRequired
        | Code::UnstableOffsetCommit
        | Code::NonEmptyGroup
        | Code::ReassignmentInProgress
        | Code::ConcurrentTransactions
        | Code::OperationNotAttempted
        | Code::PurgeQueue
        | Code::PurgeInflight
        | Code::Interrupted
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::Outdated
        | Code::WaitCache
        | Code::Retry
        | Code::RebootstrapRequired
        // The library has let go of its connection to one broker, which is no longer of the cluster; it goes on with others.
        | Code::DestroyBroker
        | Code::PollExceeded => Kind::Interrupted,
        Code::UnsupportedFeature
        | Code::UnsupportedVersion
        | Code::NotImplemented
        | Code::UnsupportedCompressionType
        | Code::UnsupportedForMessageFormat => Kind::Unsupported,
        Code::BadMessage
        | Code::BadCompression
        | Code::InvalidMessage
        | Code::UnknownProtocol
        | Code::Underflow
        | Code::Inconsistent
        | Code::InvalidRequest
        | Code::LogTruncation => Kind::Protocol,
        _ => Kind::Other,
    }
}

/// Makes an error of a code; `what` names what was asked for and of what.
pub(crate) fn from_code(what: &str, code: Code) -> Error {
    Error::new(kind_of(code), format!("{what}: {}", describe(code)))
}

/// Makes an error of one of the library's errors; settings are named by key, never by value.
pub(crate) fn from_kafka(what: &str, error: &KafkaError) -> Error {
    if let Some(code) = error.rdkafka_error_code() {
        return from_code(what, code);
    }
    match error {
        KafkaError::ClientConfig(_, rule, key, _) => Error::new(
            ErrorKind::InvalidConfig,
            format!("{what}: setting `{key}`: {}", clean(rule)),
        ),
        // A client is only refused for what is wrong on this side, such as a certificate that cannot be read.
        KafkaError::ClientCreation(text) => {
            Error::new(ErrorKind::InvalidConfig, format!("{what}: {}", clean(text)))
        }
        KafkaError::AdminOpCreation(text) => Error::new(ErrorKind::Other, format!("{what}: {}", clean(text))),
        KafkaError::Canceled => Error::new(ErrorKind::Closed, format!("{what}: the client was closed")),
        other => Error::new(ErrorKind::Other, format!("{what}: {}", clean(&other.to_string()))),
    }
}

/// Makes the error of a send that failed; the library tells whether the message may be stored.
pub(crate) fn of_send(topic: &str, code: Code, outcome: Outcome) -> Error {
    let error = from_code(&format!("topic {topic:?}"), code).with_outcome(outcome);
    // Not sent for sure: worth another try where the cause may pass.
    match code {
        Code::PurgeQueue | Code::PurgeInflight => error.with_retryable(false),
        _ => error,
    }
}

/// Makes the error of a stored format that a newer build wrote.
pub(crate) fn newer_format(what: &str, version: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{what} has format version {version}, this build knows version 1"),
    )
}

/// Tells whether a code says that this member no longer owns what it commits.
pub(crate) fn is_lost(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownMemberId | Code::FencedInstanceId | Code::FencedMemberEpoch | Code::AssignmentLost
    )
}

/// Tells whether a code says that the group has moved on to a generation that this member has not heard of yet. A
/// cooperative rebalance leaves it what it need not give back, so that nothing is lost by that.
pub(crate) fn is_outdated(code: Code) -> bool {
    matches!(
        code,
        Code::IllegalGeneration | Code::RebalanceInProgress | Code::StaleMemberEpoch
    )
}

/// Tells whether a code explains by itself why nothing else works.
pub(crate) fn is_cause(code: Code) -> bool {
    matches!(
        kind_of(code),
        ErrorKind::Authentication | ErrorKind::Tls | ErrorKind::PermissionDenied
    ) || code == Code::Resolve
}

/// Writes a code in words, in lower case and without a full stop.
pub(crate) fn describe(code: Code) -> String {
    format!("{} ({code:?})", clean(&code.to_string()))
}

fn clean(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    // The name of the code follows in the library's own text: `Local: Timed out (Local: ...)`.
    let text = text.split(": Broker: ").last().unwrap_or(text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_kind() {
        use ErrorKind as Kind;
        for (code, kind, retryable) in [
            (Code::UnknownTopicOrPartition, Kind::TopicNotFound, false),
            (Code::UnknownTopic, Kind::TopicNotFound, false),
            (Code::UnknownPartition, Kind::InvalidPartition, false),
            (Code::InvalidTopic, Kind::InvalidTopic, false),
            (Code::InvalidPartitions, Kind::InvalidPartition, false),
            (Code::InvalidReplicationFactor, Kind::InvalidConfig, false),
            (Code::InvalidTimestamp, Kind::InvalidMessage, false),
            (Code::MessageSizeTooLarge, Kind::MessageTooLarge, false),
            (Code::OffsetOutOfRange, Kind::OffsetOutOfRange, false),
            (Code::Authentication, Kind::Authentication, false),
            (Code::SaslAuthenticationFailed, Kind::Authentication, false),
            (Code::TopicAuthorizationFailed, Kind::PermissionDenied, false),
            (Code::GroupAuthorizationFailed, Kind::PermissionDenied, false),
            (Code::ClusterAuthorizationFailed, Kind::PermissionDenied, false),
            (Code::SSL, Kind::Tls, false),
            (Code::MessageTimedOut, Kind::Timeout, true),
            (Code::RequestTimedOut, Kind::Timeout, true),
            (Code::BrokerTransportFailure, Kind::Connection, true),
            (Code::AllBrokersDown, Kind::Connection, true),
            (Code::Resolve, Kind::Connection, true),
            (Code::QueueFull, Kind::ResourceExhausted, true),
            (Code::NotEnoughReplicas, Kind::ResourceExhausted, true),
            (Code::KafkaStorageError, Kind::ResourceExhausted, true),
            (Code::NotLeaderForPartition, Kind::Interrupted, true),
            (Code::NotCoordinator, Kind::Interrupted, true),
            (Code::CoordinatorLoadInProgress, Kind::Interrupted, true),
            (Code::RebalanceInProgress, Kind::Interrupted, true),
            (Code::IllegalGeneration, Kind::Interrupted, true),
            (Code::DestroyBroker, Kind::Interrupted, true),
            (Code::UnsupportedVersion, Kind::Unsupported, false),
            (Code::InvalidMessage, Kind::Protocol, false),
            (Code::Fail, Kind::Other, false),
            (Code::Unknown, Kind::Other, false),
        ] {
            let error = from_code("topic \"orders\"", code);
            assert_eq!(error.kind(), kind, "{code:?}");
            assert_eq!(error.is_retryable(), retryable, "{code:?}");
            assert!(!error.context().ends_with('.'), "{error}");
        }
    }

    #[test]
    fn the_library_tells_whether_a_failed_send_may_be_stored() {
        let error = of_send("orders", Code::MessageTimedOut, Outcome::NotSent);
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Timeout, Outcome::NotSent)
        );
        assert!(error.is_retryable());
        let error = of_send("orders", Code::PurgeInflight, Outcome::Unknown);
        assert_eq!((error.outcome(), error.is_retryable()), (Outcome::Unknown, false));
    }

    #[test]
    fn a_refused_setting_is_named_without_its_value() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("sasl.pasword", "hunter2");
        let refused = config.create_native_config().map(drop).unwrap_err();
        let error = from_kafka("connecting", &refused);
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.context().contains("sasl.pasword"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
