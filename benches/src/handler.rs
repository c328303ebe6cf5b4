//! A handler of `shove` that counts what it is given, on whatever backend.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use shove::{BatchMessageHandler, MessageMetadata, Outcome, ShoveError, Topic};
use tokio_util::sync::CancellationToken;

use crate::{
    meter::{Meter, Sample},
    ours::{STILL, verify},
    payload::Check,
};

/// Counts messages until there are enough, and tells that; the clock runs from the first batch to the last.
#[derive(Clone, Debug)]
pub struct Counting {
    messages: u64,
    state: Arc<Mutex<State>>,
    enough: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    check: Check,
    came: u64,
    first: u64,
    meter: Option<Meter>,
    sample: Option<Sample>,
}

impl Counting {
    /// Waits for so many messages.
    #[must_use]
    pub fn new(messages: u64) -> Self {
        Self {
            messages,
            state: Arc::default(),
            enough: CancellationToken::new(),
        }
    }

    /// Returns what is cancelled when all have come.
    #[must_use]
    pub fn enough(&self) -> CancellationToken {
        self.enough.clone()
    }

    /// Waits for the end of a consumer, which is to come when there are enough.
    ///
    /// # Errors
    /// Says what it failed with, or that it stood still.
    pub async fn until_enough(
        &self,
        run: impl Future<Output = Result<(), ShoveError>>,
    ) -> Result<(), String> {
        let ended = tokio::time::timeout(STILL, run).await;
        ended
            .map_err(|_| "nothing came".to_owned())?
            .map_err(|error| error.to_string())
    }

    /// Returns what was measured.
    ///
    /// # Errors
    /// Says what was lost or doubled.
    pub fn sample(&self) -> Result<Sample, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        verify(state.check, self.messages)?;
        state.sample.take().ok_or_else(|| "nothing came".to_owned())
    }

    fn take(&self, messages: Vec<(Bytes, MessageMetadata)>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = messages.len() as u64;
        if state.meter.is_none() && state.came == 0 {
            state.first = count;
            state.meter = Some(Meter::start());
        }
        for (payload, _) in &messages {
            state.check.take(payload);
        }
        state.came += count;
        if state.came >= self.messages {
            let counted = self.messages - state.first;
            if let Some(meter) = state.meter.take() {
                state.sample = Some(meter.stop(counted));
            }
            self.enough.cancel();
        }
    }
}

impl<T: Topic<Message = Bytes>> BatchMessageHandler<T> for Counting {
    type Context = ();

    async fn handle_batch(&self, messages: Vec<(Bytes, MessageMetadata)>, (): &()) -> Outcome {
        self.take(messages);
        Outcome::Ack
    }
}
