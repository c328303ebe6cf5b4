//! Flush and close.

use std::sync::Arc;

use super::{core::Core, effects::Effects, state::Life};
use crate::{
    Error, Outcome, Result,
    mq::{BoxFuture, Child},
};

impl Core {
    /// Waits until everything that was taken so far is settled.
    pub(super) async fn flush(&self) -> Result<()> {
        let Some(flushed) = ({
            let mut state = self.lock();
            state.check_open()?;
            state.flush()
        }) else {
            return Ok(());
        };
        flushed.await.map_err(|_| Error::closed("producer"))
    }

    /// Takes nothing new from now on, and tells the task to end once everything is settled.
    pub(super) fn begin_close(&self) {
        if !self.close.begin() {
            return;
        }
        let mut fx = Effects::default();
        {
            let mut state = self.lock();
            if state.life == Life::Open {
                state.life = Life::Closing;
            }
            self.direct.close();
            state.turn_away(&Error::closed("producer"), &mut fx);
        }
        self.finish(&mut fx);
        self.notify.notify_one();
    }

    /// Gives up everything that is left; returns how many messages had no result.
    pub(super) fn abandon(&self, error: impl Fn(Outcome) -> Error) -> u64 {
        let mut fx = Effects::default();
        let left = {
            let mut state = self.lock();
            let state = &mut *state;
            state.life = Life::Over;
            self.direct.close();
            for lane in &mut state.lanes {
                lane.abandon(&error, &mut fx);
            }
            state.drop_pool();
            state.turn_away(&Error::closed("producer"), &mut fx);
            let left = fx.failed;
            state.settle(&mut fx, &self.options, &self.client.budget);
            left
        };
        self.finish(&mut fx);
        left
    }
}

impl Child for Core {
    fn close(self: Arc<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            self.begin_close();
            self.close.wait().await
        })
    }
}
