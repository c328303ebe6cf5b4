//! The one interface of all brokers.

use std::fmt::Debug;

use crate::{Backend, Error, Proxy, Result};

/// A real broker that belongs to a test.
///
/// A value is made by the options of its kind, which start the server. Dropping the value kills the server and
/// removes its data.
pub trait Broker: Debug + Send + Sync {
    /// Returns the backend that this broker is one of.
    fn backend(&self) -> Backend;

    /// Returns the URL that a client connects to, which leads through the proxy where there is one.
    fn url(&self) -> String;

    /// Returns the proxy in front of the port that [`Broker::url`] names, if the options asked for one.
    fn proxy(&self) -> Option<&Proxy>;

    /// Says whether a process of the server is alive, be it frozen.
    fn is_running(&self) -> bool;

    /// Starts the server again on the same data and ports, and waits until a client can work.
    ///
    /// # Errors
    /// [`Error::Running`], and [`Error::NotReady`] with the end of its logs.
    fn start(&self) -> Result<()>;

    /// Asks the server to end as an operator would, and kills it after a while.
    ///
    /// # Errors
    /// [`Error::NotRunning`], and [`Error::NotEnded`].
    fn stop(&self) -> Result<()>;

    /// Kills the server with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::NotRunning`], and [`Error::NotEnded`].
    fn kill(&self) -> Result<()>;

    /// Stops the server's processes with SIGSTOP: connections stay open, and nothing is answered from the return on.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::NotStopped`].
    fn freeze(&self) -> Result<()>;

    /// Lets the server's processes go on after [`Broker::freeze`].
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    fn thaw(&self) -> Result<()>;

    /// Returns the end of the server's logs, to be shown when a test fails.
    fn logs(&self) -> String;

    /// Ends every connection of clients from outside, and returns how many there were. New ones are served.
    ///
    /// # Errors
    /// [`Error::NoProxy`].
    fn cut_connections(&self) -> Result<usize> {
        self.proxy().map(Proxy::cut).ok_or_else(|| Error::NoProxy {
            server: self.backend().name().to_owned(),
        })
    }

    /// Stops the server if it runs, then starts it on the same data and ports.
    ///
    /// # Errors
    /// Those of [`Broker::stop`] and [`Broker::start`].
    fn restart(&self) -> Result<()> {
        if self.is_running() {
            self.stop()?;
        }
        self.start()
    }
}

/// Shows the end of a broker's logs while a test that owns it unwinds.
#[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
pub(crate) fn show_logs_of_failed_test(broker: &dyn Broker) {
    if std::thread::panicking() {
        eprintln!("end of the logs of {}:\n{}", broker.backend(), broker.logs());
    }
}
