//! The task of a connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::connection::{Inbound, Shared};
use super::error::{Effect, RemotingError};
use super::frame::decode_frame;

/// The room kept for each read.
const READ_STEP: usize = 64 * 1024;
/// A write buffer that grew beyond this is given back.
const KEPT_BUFFER: usize = 1024 * 1024;

/// Reads and writes until the connection ends.
pub(super) async fn pump<R, W>(reader: R, writer: W, shared: Arc<Shared>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let guard = EndOnDrop(&shared);
    let error = tokio::select! {
        error = read(reader, &shared) => error,
        error = write(writer, &shared) => error,
        () = shared.stop.notified() => RemotingError::Closed { address: shared.address.clone() },
    };
    tracing::debug!(address = %shared.address, %error, "connection ended");
    shared.end(error);
    drop(guard);
}

/// Fails the callers when the task is dropped with its runtime.
struct EndOnDrop<'a>(&'a Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end(self.0.lost("its task ended", Effect::Unknown));
    }
}

async fn read<R: AsyncRead + Unpin>(mut reader: R, shared: &Arc<Shared>) -> RemotingError {
    let mut buffer = BytesMut::with_capacity(READ_STEP);
    loop {
        if buffer.capacity() - buffer.len() < READ_STEP / 2 {
            buffer.reserve(READ_STEP);
        }
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return shared.lost("closed by the peer", Effect::Unknown),
            Ok(_) => shared.note_read(),
            Err(error) => return shared.lost(&error.to_string(), Effect::Unknown),
        }
        loop {
            match decode_frame(&mut buffer) {
                Ok(Some(command)) if command.is_response() => shared.answer(command),
                Ok(Some(command)) => {
                    let (address, shared) = (shared.address.clone(), Arc::downgrade(shared));
                    let inbound = Inbound {
                        command,
                        address,
                        shared,
                    };
                    if let Some(shared) = inbound.shared.upgrade() {
                        shared.handler.on_request(inbound);
                    }
                }
                Ok(None) => break,
                Err(error) => return error,
            }
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(mut writer: W, shared: &Shared) -> RemotingError {
    let mut batch = BytesMut::new();
    loop {
        let closing = {
            let mut state = shared.lock();
            std::mem::swap(&mut state.buffer, &mut batch);
            state.closing
        };
        if batch.is_empty() {
            if closing {
                // The other side sees a clean end; what it still says is of no use.
                drop(writer.shutdown().await);
                return RemotingError::Closed {
                    address: shared.address.clone(),
                };
            }
            shared.work.notified().await;
            continue;
        }
        shared.room.notify_waiters();
        let mut at = 0;
        while let Some(rest) = batch.get(at..).filter(|rest| !rest.is_empty()) {
            match writer.write(rest).await {
                Ok(0) => return shared.lost("closed by the peer", Effect::Unknown),
                Ok(count) => {
                    at += count;
                    shared.written.fetch_add(count as u64, Ordering::AcqRel);
                }
                Err(error) => return shared.lost(&error.to_string(), Effect::Unknown),
            }
        }
        if let Err(error) = writer.flush().await {
            return shared.lost(&error.to_string(), Effect::Unknown);
        }
        batch.clear();
        if batch.capacity() > KEPT_BUFFER {
            batch = BytesMut::new();
        }
    }
}
