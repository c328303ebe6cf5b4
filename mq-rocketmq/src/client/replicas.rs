//! Reading where the master is gone: its replicas are asked.

use tokio::time::Instant;

use super::session::{Session, no_master, succeeded};
use crate::remoting::{Command, Connection, EncodeBody, RemotingError, Request};

impl Session {
    /// Asks the master of a broker what any replica can tell, or else a replica, and requires success. For questions
    /// only: a replica takes no orders, and may be behind.
    pub(super) async fn ask_any<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        broker: &str,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<Command, RemotingError> {
        let answered = self.call_any(broker, request, body, deadline).await?;
        succeeded(request, answered)
    }

    /// As [`ask_any`](Self::ask_any), whatever the code of the answer.
    pub(super) async fn call_any<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        broker: &str,
        request: &R,
        body: &B,
        deadline: Instant,
    ) -> Result<(Connection, Command), RemotingError> {
        let addresses = self.cluster().addresses(broker);
        // By id, so the master comes first.
        if !addresses.contains_key(&0) {
            self.cluster().hurry();
        }
        let mut last = None;
        for address in addresses.values() {
            match self.call_at(address, request, body, deadline).await {
                Err(error) if matches!(error, RemotingError::Connect { .. } | RemotingError::Tls { .. }) => {
                    last = Some(error);
                }
                answered => return answered,
            }
        }
        Err(last.unwrap_or_else(|| no_master(broker)))
    }
}
