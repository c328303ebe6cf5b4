//! Closing once: every caller, at the same time or later, gets the result of the one close.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{runtime::Handle, sync::watch};

use crate::{Error, ErrorKind, Result};

/// Runs a close once and keeps its result.
#[derive(Clone, Debug)]
pub(crate) struct CloseOnce {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    begun: AtomicBool,
    result: watch::Sender<Option<Result<()>>>,
}

impl CloseOnce {
    /// Makes one that has not begun.
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                begun: AtomicBool::new(false),
                result: watch::Sender::new(None),
            }),
        }
    }

    /// Tells whether a close has begun.
    pub(crate) fn is_begun(&self) -> bool {
        self.inner.begun.load(Ordering::Acquire)
    }

    /// Begins the close; `true` for the first caller only, who must see to it that [`finish`](Self::finish) is called.
    pub(crate) fn begin(&self) -> bool {
        !self.inner.begun.swap(true, Ordering::AcqRel)
    }

    /// Stores the result, unless there is one, and wakes all who wait for it.
    pub(crate) fn finish(&self, result: Result<()>) {
        self.inner.result.send_if_modified(|stored| {
            let first = stored.is_none();
            if first {
                *stored = Some(result);
            }
            first
        });
    }

    /// Waits for the result of a close that has begun.
    pub(crate) async fn wait(&self) -> Result<()> {
        let mut result = self.inner.result.subscribe();
        match result.wait_for(Option::is_some).await {
            Ok(stored) => stored.clone().unwrap_or(Ok(())),
            Err(_) => Err(interrupted()),
        }
    }

    /// Closes in a task of its own, so that it runs to its end even where the caller's future is dropped, and waits.
    pub(crate) async fn run<F>(&self, close: impl FnOnce() -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        if self.begin() {
            let guard = FinishGuard(self.clone());
            let Ok(runtime) = Handle::try_current() else {
                return Err(interrupted());
            };
            let close = close();
            runtime.spawn(async move {
                let result = close.await;
                guard.0.finish(result);
            });
        }
        self.wait().await
    }
}

/// Answers those who wait when the runtime ends the closing task.
struct FinishGuard(CloseOnce);

impl Drop for FinishGuard {
    fn drop(&mut self) {
        self.0.finish(Err(interrupted()));
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "the runtime ended before the close did").with_operation("close")
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicU32, time::Duration};

    use super::*;

    #[tokio::test]
    async fn concurrent_and_later_callers_get_the_result_of_the_one_close() {
        let once = CloseOnce::new();
        let runs = Arc::new(AtomicU32::new(0));
        let close = || {
            let runs = Arc::clone(&runs);
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                Err(Error::new(ErrorKind::Connection, "gone"))
            }
        };
        let (first, second) = tokio::join!(once.run(close), once.run(close));
        let third = once.run(close).await;
        for result in [first, second, third] {
            assert_eq!(result.unwrap_err().to_string(), "connection: gone");
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_caller_does_not_stop_the_close() {
        let once = CloseOnce::new();
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(())
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(1), once.run(slow))
                .await
                .is_err()
        );
        assert!(once.is_begun());
        assert!(once.wait().await.is_ok());
    }

    #[test]
    fn a_runtime_that_ends_answers_those_who_wait() {
        let once = CloseOnce::new();
        let first = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        first.block_on(async {
            let mut run = Box::pin(once.run(std::future::pending));
            std::future::poll_fn(|cx| {
                assert!(run.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        });
        drop(first);
        let second = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(
            second.block_on(once.wait()).unwrap_err().kind(),
            ErrorKind::Interrupted
        );
    }
}
