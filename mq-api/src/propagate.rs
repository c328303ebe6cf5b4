//! Trace context that travels with messages.

use crate::{Message, MessageLimits, message::is_reserved};

/// Puts the current trace context into messages that are produced, as W3C `traceparent` and `tracestate` headers.
///
/// The library has no tracing system of its own: implement this over yours.
///
/// ```
/// use mq_api::{ClientOptions, Propagator};
///
/// struct Fixed;
///
/// impl Propagator for Fixed {
///     fn inject(&self, set: &mut dyn FnMut(&str, &str)) {
///         set("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
///     }
/// }
///
/// let options = ClientOptions::default().with_propagator(Fixed);
/// assert!(options.propagator.is_some());
/// ```
pub trait Propagator: Send + Sync + 'static {
    /// Calls `set` with the name and value of each header that carries the current context; not at all where there is
    /// none. It is called in the task that produces, once a message.
    fn inject(&self, set: &mut dyn FnMut(&str, &str));
}

/// Adds what a propagator says: never over a header that the user has set, never a reserved name, and never so much
/// that a legal message becomes too large.
pub(crate) fn inject(propagator: &dyn Propagator, message: &mut Message, limits: &MessageLimits) {
    propagator.inject(&mut |name, value| {
        if name.is_empty() || is_reserved(name) || message.headers().value(name).is_some() {
            return;
        }
        let before = message.clone();
        message
            .headers_mut()
            .append(name.to_owned(), value.to_owned().into_bytes());
        if message.validate(limits).is_err() {
            *message = before;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Context;

    impl Propagator for Context {
        fn inject(&self, set: &mut dyn FnMut(&str, &str)) {
            set("traceparent", "00-a-b-01");
            set("tracestate", "x=1");
            set("mq-origin-topic", "never");
        }
    }

    #[test]
    fn the_users_headers_are_kept() {
        let mut message = Message::new("p").with_header("traceparent", "mine");
        inject(&Context, &mut message, &MessageLimits::default());
        assert_eq!(message.headers().text("traceparent"), Some("mine"));
        assert_eq!(message.headers().text("tracestate"), Some("x=1"));
        assert_eq!(message.headers().len(), 2);
    }

    #[test]
    fn a_legal_message_does_not_become_too_large() {
        let limits = MessageLimits::new(10, 20);
        let mut message = Message::new("p").with_key(vec![0; 20]);
        inject(&Context, &mut message, &limits);
        assert!(message.headers().is_empty());
        assert!(message.validate(&limits).is_ok());
    }
}
