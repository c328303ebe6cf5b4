//! The one error type of the crate.

use std::fmt::Display;
use std::io;
use std::time::Duration;

/// The result of every call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says why a broker could not be fetched, started or handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that has to be installed by hand is not there.
    #[error("{what} is not available: {hint}")]
    Missing {
        /// What was looked for.
        what: String,
        /// What to install, or which variable to set.
        hint: String,
    },
    /// A program that fetches or prepares a server failed.
    #[error("{program} failed: {output}")]
    Command {
        /// The program's name.
        program: String,
        /// The end of what it wrote.
        output: String,
    },
    /// A server did not come up; the end of its logs is in the text.
    #[error("{server} is not ready: {reason}\n{logs}")]
    NotReady {
        /// The server's name.
        server: String,
        /// What was waited for, or how it ended.
        reason: String,
        /// The end of the server's logs.
        logs: String,
    },
    /// A server outlived its kill signal for the given time.
    #[error("{server} has not ended {waited:?} after its signal")]
    NotEnded {
        /// The server's name.
        server: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A server went on for the given time after it was told to stop where it stands.
    #[error("{server} has not stopped {waited:?} after its signal")]
    NotStopped {
        /// The server's name.
        server: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The call needs a running server.
    #[error("{server} is not running")]
    NotRunning {
        /// The server's name.
        server: String,
    },
    /// The call needs a server that does not run.
    #[error("{server} is running already")]
    Running {
        /// The server's name.
        server: String,
    },
    /// The call needs the proxy that the options did not ask for.
    #[error("{server} was started without a proxy; ask for one with `with_proxy`")]
    NoProxy {
        /// The server's name.
        server: String,
    },
    /// A value from outside (an environment variable, a reply) is not what it must be.
    #[error("{what} is not valid: {value}")]
    Invalid {
        /// What was read.
        what: String,
        /// What stood there.
        value: String,
    },
    /// The operating system refused something.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: io::Error,
    },
}

/// Adds to an I/O error what was being done.
pub(crate) trait Context<T> {
    fn context(self, what: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|cause| Error::Io {
            context: what.to_string(),
            source: cause.into(),
        })
    }
}
