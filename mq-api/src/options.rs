//! Options of a client, and the range checks that every builder shares.

use std::{fmt, sync::Arc, time::Duration};

use crate::{Clock, Error, ErrorKind, Propagator, Result};

/// Bounds what one client waits for and holds.
///
/// ```
/// use std::time::Duration;
/// use mq_api::ClientOptions;
///
/// let options = ClientOptions::default().with_request_timeout(Duration::from_secs(5));
/// assert!(options.validate().is_ok());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientOptions {
    /// How long a topic call, a join, a seek or a reader's call may take; 1 ms to 1 h. Default 30 s.
    pub request_timeout: Duration,
    /// How many bytes all producers and consumers of the client may hold together; at least 64 KiB. Default 256 MiB.
    pub memory_budget: usize,
    /// How long the close of the connection may take after everything that it opened is closed; 1 ms to 1 h.
    /// Default 10 s.
    pub close_timeout: Duration,
    /// The clock that leases are measured by; tests inject their own.
    pub clock: Clock,
    /// What adds trace context to each message that is produced. Default none.
    pub propagator: Option<Arc<dyn Propagator>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(30),
            memory_budget: 256 * 1024 * 1024,
            close_timeout: Duration::from_secs(10),
            clock: Clock::system(),
            propagator: None,
        }
    }
}

impl ClientOptions {
    /// Sets how long a call to the backend may take; 1 ms to 1 h.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::ClientOptions;
    /// let options = ClientOptions::default().with_request_timeout(Duration::from_secs(5));
    /// assert_eq!(options.request_timeout, Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how many bytes all producers and consumers of the client may hold together; at least 64 KiB.
    ///
    /// ```
    /// use mq_api::ClientOptions;
    /// let options = ClientOptions::default().with_memory_budget(64 * 1024 * 1024);
    /// assert_eq!(options.memory_budget, 64 * 1024 * 1024);
    /// ```
    #[must_use]
    pub fn with_memory_budget(mut self, bytes: usize) -> Self {
        self.memory_budget = bytes;
        self
    }

    /// Sets how long the close of the connection may take; 1 ms to 1 h.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::ClientOptions;
    /// let options = ClientOptions::default().with_close_timeout(Duration::from_secs(2));
    /// assert_eq!(options.close_timeout, Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn with_close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// Sets the clock that leases are measured by.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::{ClientOptions, Clock};
    /// let clock = Clock::manual();
    /// let options = ClientOptions::default().with_clock(clock.clone());
    /// clock.advance(Duration::from_secs(60));
    /// assert_eq!(options.clock.now(), clock.now());
    /// ```
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Adds trace context to each message that is produced; a header that the user has set is kept.
    ///
    /// ```
    /// # use mq_api::{ClientOptions, Propagator};
    /// struct Fixed;
    /// impl Propagator for Fixed {
    ///     fn inject(&self, set: &mut dyn FnMut(&str, &str)) {
    ///         set("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    ///     }
    /// }
    /// assert!(ClientOptions::default().with_propagator(Fixed).propagator.is_some());
    /// ```
    #[must_use]
    pub fn with_propagator(mut self, propagator: impl Propagator) -> Self {
        self.propagator = Some(Arc::new(propagator));
        self
    }

    /// Checks that every option lies in its range. A client with one that does not refuses every call with this error.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mq_api::{ClientOptions, ErrorKind};
    /// assert!(ClientOptions::default().validate().is_ok());
    /// let error = ClientOptions::default().with_close_timeout(Duration::ZERO).validate().unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the option and its range.
    pub fn validate(&self) -> Result<()> {
        check_timeout("request_timeout", self.request_timeout)?;
        check_timeout("close_timeout", self.close_timeout)?;
        check_range("memory_budget", self.memory_budget, 64 * 1024, usize::MAX)
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("request_timeout", &self.request_timeout)
            .field("memory_budget", &self.memory_budget)
            .field("close_timeout", &self.close_timeout)
            .field("propagator", &self.propagator.is_some())
            .finish_non_exhaustive()
    }
}

/// The shortest time that an option may name.
pub(crate) const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// The longest time that an option may name.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// Checks a timeout against the range of all timeouts, 1 ms to 1 h.
pub(crate) fn check_timeout(option: &str, value: Duration) -> Result<()> {
    check_range(option, value, MIN_TIMEOUT, MAX_TIMEOUT)
}

/// Checks an option against its range, both ends included.
pub(crate) fn check_range<T: PartialOrd + fmt::Debug>(
    option: &str,
    value: T,
    least: T,
    most: T,
) -> Result<()> {
    if value < least || value > most {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("option `{option}` is {value:?}, it must lie within {least:?} to {most:?}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_named() {
        let zero = ClientOptions::default().with_request_timeout(Duration::ZERO);
        let long = ClientOptions::default().with_close_timeout(Duration::from_secs(3601));
        let small = ClientOptions::default().with_memory_budget(1);
        for (options, name) in [
            (zero, "request_timeout"),
            (long, "close_timeout"),
            (small, "memory_budget"),
        ] {
            let error = options.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.context().contains(name), "{error}");
        }
    }
}
