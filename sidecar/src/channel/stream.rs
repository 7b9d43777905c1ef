//! The byte stream of a session, which carries the SSH connection.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::{PathState, State};
use crate::runtime::shared::Shared;

/// Reads and writes the session's bytes. The protocol has no half-close: shutdown does nothing. Dropping the stream
/// before the handshake is done abandons the data channel.
#[derive(Debug)]
pub(crate) struct SessionStream {
    shared: Arc<Shared<State>>,
    /// The unread rest of a message.
    current: Bytes,
}

impl SessionStream {
    pub(super) fn new(shared: Arc<Shared<State>>) -> Self {
        Self { shared, current: Bytes::new() }
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.agent_version.is_none() {
            state.abandoned = true;
            state.wake_driver();
        }
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        while buffer.remaining() > 0 {
            if self.current.is_empty() {
                match state.channel.read() {
                    Some(message) => self.current = message,
                    None => break,
                }
            }
            let taken = self.current.len().min(buffer.remaining());
            buffer.put_slice(&self.current.split_to(taken));
        }
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, end.clone())));
        }
        state.reader.register(context);
        Poll::Pending
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if let Some(end) = &state.end {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, end.clone())));
        }
        match state.channel.write(data) {
            0 if data.has_remaining() => {
                state.writer.register(context);
                Poll::Pending
            }
            written => {
                state.wake_driver();
                Poll::Ready(Ok(written))
            }
        }
    }

    /// Pending while there is no WebSocket: what was written is sent once the session is resumed.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if matches!(state.path, PathState::Down(_)) && state.end.is_none() {
            state.writer.register(context);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
