//! Why a case failed.

use std::{fmt, panic::Location};

/// What a case returns.
pub(crate) type CaseResult<T = ()> = Result<T, Failure>;

/// Says what a case saw, in words that tell a driver's author what to fix.
pub(crate) struct Failure {
    text: String,
    at: &'static Location<'static>,
}

impl Failure {
    /// Makes a failure of what was seen.
    #[track_caller]
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            at: Location::caller(),
        }
    }

    /// Says in what undertaking it was seen.
    pub(crate) fn during(mut self, what: impl fmt::Display) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }
}

impl<E: std::error::Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self {
            text,
            at: Location::caller(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.text, self.at.file(), self.at.line())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Ends the case with what was seen.
macro_rules! fail {
    ($($text:tt)*) => {
        return Err($crate::failure::Failure::new(format!($($text)*)))
    };
}

/// Ends the case with what was seen, unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err($crate::failure::Failure::new(format!($($text)*)));
        }
    };
}

/// Writes a line into the case's log, which is printed if it fails.
macro_rules! note {
    ($cx:expr, $($text:tt)*) => {
        $cx.note(format!($($text)*))
    };
}

pub(crate) use {ensure, fail, note};
