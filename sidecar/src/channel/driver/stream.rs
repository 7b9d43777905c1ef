//! The byte stream inside a session, as the SSH connection sees it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;

/// Reads and writes the session's bytes. Half-close does not exist in this protocol: shutting down does
/// nothing. Dropping the stream before the handshake is done gives the data channel up.
#[derive(Debug)]
pub struct SessionStream {
    shared: Arc<Shared>,
    /// What is left of the message that is being read.
    current: Bytes,
}

impl SessionStream {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, current: Bytes::new() }
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.agent_version.is_none() {
            state.abandoned = true;
            state.wake_loop();
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
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                ended.clone(),
            )));
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
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                ended.clone(),
            )));
        }
        match state.channel.write(data) {
            0 if data.has_remaining() => {
                state.writer.register(context);
                Poll::Pending
            }
            written => {
                state.wake_loop();
                Poll::Ready(Ok(written))
            }
        }
    }

    /// Pending while there is no socket: what was written waits for the session to be resumed.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.broken.is_some() && state.ended.is_none() {
            state.writer.register(context);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
