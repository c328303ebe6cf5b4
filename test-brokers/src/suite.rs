//! Brokers as the conformance suite takes them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::{HarnessResult, Server};

use crate::{Broker, Result};

/// Removes the messages of a partition (topic, number) below an offset.
type Trim<B> = Arc<
    dyn Fn(Arc<B>, String, u32, u64) -> Pin<Box<dyn Future<Output = HarnessResult<()>> + Send>> + Send + Sync,
>;

/// A broker as a server of the suite. Its calls block in threads of their own.
pub struct BrokerServer<B> {
    broker: Arc<B>,
    trim: Option<Trim<B>>,
}

impl<B: Broker + 'static> BrokerServer<B> {
    /// Starts a broker by a call that blocks, such as `|| RedisOptions::new().with_proxy().start()`.
    ///
    /// # Errors
    /// Those of `start`.
    pub async fn start(start: impl FnOnce() -> Result<B> + Send + 'static) -> HarnessResult<Self> {
        Ok(Self {
            broker: Arc::new(tokio::task::spawn_blocking(start).await??),
            trim: None,
        })
    }

    /// Adds what only the driver knows: how the messages of a partition below an offset are removed.
    #[must_use]
    pub fn with_trim<F>(
        mut self,
        trim: impl Fn(Arc<B>, String, u32, u64) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = HarnessResult<()>> + Send + 'static,
    {
        self.trim = Some(Arc::new(move |broker, topic, partition, before| {
            Box::pin(trim(broker, topic, partition, before))
        }));
        self
    }

    /// Returns the broker.
    #[must_use]
    pub fn broker(&self) -> &Arc<B> {
        &self.broker
    }

    async fn call(&self, act: fn(&B) -> Result<()>) -> HarnessResult<()> {
        let broker = Arc::clone(&self.broker);
        Ok(tokio::task::spawn_blocking(move || act(&broker)).await??)
    }
}

impl<B: fmt::Debug> fmt::Debug for BrokerServer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerServer")
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<B: Broker + 'static> Server for BrokerServer<B> {
    fn url(&self) -> String {
        self.broker.url()
    }

    async fn restart(&self) -> HarnessResult<()> {
        self.call(B::restart).await
    }

    async fn kill(&self) -> HarnessResult<()> {
        self.call(B::kill).await
    }

    async fn start(&self) -> HarnessResult<()> {
        self.call(B::start).await
    }

    async fn freeze(&self) -> HarnessResult<()> {
        self.call(B::freeze).await
    }

    async fn thaw(&self) -> HarnessResult<()> {
        self.call(B::thaw).await
    }

    async fn cut_connections(&self) -> HarnessResult<()> {
        self.call(|broker| broker.cut_connections().map(drop)).await
    }

    async fn trim(&self, topic: &str, partition: u32, before: u64) -> HarnessResult<()> {
        let trim = self.trim.as_ref().ok_or("this broker was given no way to trim")?;
        trim(Arc::clone(&self.broker), topic.to_owned(), partition, before).await
    }

    fn logs(&self) -> String {
        self.broker.logs()
    }
}

/// A server that somebody else runs ([`crate::Backend::external_url`]): nothing can be done to it.
#[derive(Debug, Clone)]
pub struct ExternalServer {
    url: String,
}

impl ExternalServer {
    /// Names the server by its URL.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into() }
    }
}

impl Server for ExternalServer {
    fn url(&self) -> String {
        self.url.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RedisOptions;

    #[tokio::test]
    async fn the_suite_kills_freezes_cuts_and_trims_a_broker() {
        let server = BrokerServer::start(|| RedisOptions::new().with_proxy().start())
            .await
            .unwrap();
        let server = server.with_trim(|redis, topic, partition, before| async move {
            redis.command(&["SET", &format!("{topic}.{partition}"), &before.to_string()])?;
            Ok(())
        });
        server.trim("orders", 1, 7).await.unwrap();
        server.kill().await.unwrap();
        assert!(server.freeze().await.is_err());
        server.start().await.unwrap();
        server.freeze().await.unwrap();
        server.thaw().await.unwrap();
        server.cut_connections().await.unwrap();
        server.restart().await.unwrap();
        assert_eq!(server.broker().command(&["GET", "orders.1"]).unwrap(), "7");
        assert!(server.logs().contains("Ready to accept connections"));
    }

    #[tokio::test]
    async fn nothing_is_done_to_a_server_of_somebody_else() {
        let server = ExternalServer::new("redis://example.test");
        assert_eq!(server.url(), "redis://example.test");
        assert!(server.kill().await.is_err());
    }
}
