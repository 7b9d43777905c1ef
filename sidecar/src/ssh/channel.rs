//! One channel of the connection: a byte stream to the target, with window credit returned on consumption.

use std::{
    borrow::Cow,
    fmt,
    task::{Context, Poll},
};

use bytes::Bytes;
use ssh_client::{ChannelId, OpenFailure};

use super::{
    Ssh, SshError,
    state::{ChannelPhase, ConnectionState},
};

/// A byte stream to the target. Dropping it closes both directions and discards what is still queued.
///
/// Reading and writing take `&self`, so that one task can do both; each direction has one waiting task.
pub(crate) struct Channel {
    ssh: Ssh,
    id: ChannelId,
}

/// Why a channel did not open.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ChannelOpenError {
    #[error("the bastion refused the connection: {}: {description}", reason_text(*.reason))]
    Refused {
        /// RFC 4254, section 5.1.
        reason: OpenFailure,
        /// The server's text, escaped.
        description: String,
    },
    /// The connection to the bastion is over.
    #[error("the connection to the bastion is over")]
    Lost(#[from] SshError),
}

/// Why a channel carries no more bytes.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The server closed the channel without EOF.
    #[error("the target reset the connection")]
    Reset,
    /// The connection to the bastion is over.
    #[error("the connection to the bastion is over")]
    Lost(#[from] SshError),
}

/// The reason as RFC 4254, section 5.1, names it.
fn reason_text(reason: OpenFailure) -> Cow<'static, str> {
    match reason {
        OpenFailure::AdministrativelyProhibited => "administratively prohibited".into(),
        OpenFailure::ConnectFailed => "connect failed".into(),
        OpenFailure::UnknownChannelType => "unknown channel type".into(),
        OpenFailure::ResourceShortage => "resource shortage".into(),
        OpenFailure::Other(number) => format!("reason {number}").into(),
    }
}

impl Channel {
    pub(super) fn new(ssh: Ssh, id: ChannelId) -> Self {
        Self { ssh, id }
    }

    pub(super) async fn opened(&self) -> Result<(), ChannelOpenError> {
        std::future::poll_fn(|context| {
            let mut state = self.ssh.shared.lock();
            let state = &mut *state;
            let Some(channel) = state.channels.get_mut(&self.id) else { return Poll::Pending };
            match &channel.phase {
                ChannelPhase::Open | ChannelPhase::HalfClosed | ChannelPhase::Closed { .. } => {
                    Poll::Ready(Ok(()))
                }
                ChannelPhase::Refused(error) => Poll::Ready(Err(error.clone())),
                ChannelPhase::Opening => {
                    if let ConnectionState::Ended(error) = &state.connection {
                        return Poll::Ready(Err(ChannelOpenError::Lost(error.clone())));
                    }
                    channel.reader.register(context);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Returns the next bytes; `None` after the target's EOF.
    ///
    /// They count against the channel's window until [`consumed`](Self::consumed) is called.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when the stream was cut, after all bytes before the cut.
    pub(crate) fn poll_read(
        &self,
        context: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ChannelError>> {
        let mut state = self.ssh.shared.lock();
        let state = &mut *state;
        if let Some(bytes) = state.client.read(self.id) {
            return Poll::Ready(Ok(Some(bytes)));
        }
        let Some(channel) = state.channels.get_mut(&self.id) else {
            return Poll::Ready(Err(ChannelError::Reset));
        };
        match channel.phase {
            ChannelPhase::HalfClosed | ChannelPhase::Closed { complete: true } => {
                return Poll::Ready(Ok(None));
            }
            ChannelPhase::Closed { complete: false } => {
                return Poll::Ready(Err(ChannelError::Reset));
            }
            ChannelPhase::Opening | ChannelPhase::Refused(_) | ChannelPhase::Open => (),
        }
        if let ConnectionState::Ended(error) = &state.connection {
            return Poll::Ready(Err(error.clone().into()));
        }
        channel.reader.register(context);
        Poll::Pending
    }

    /// Returns window credit for `bytes` to the server. Call it when they were passed on.
    pub(crate) fn consumed(&self, bytes: usize) {
        let mut state = self.ssh.shared.lock();
        state.client.consumed(self.id, bytes);
        state.wake_driver();
    }

    /// Queues some of `data` for the target; returns how much, at least one byte.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when the stream was cut.
    pub(crate) fn poll_write(
        &self,
        context: &Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, ChannelError>> {
        let mut state = self.ssh.shared.lock();
        let state = &mut *state;
        if let ConnectionState::Ended(error) = &state.connection {
            return Poll::Ready(Err(error.clone().into()));
        }
        let Some(channel) = state.channels.get_mut(&self.id) else {
            return Poll::Ready(Err(ChannelError::Reset));
        };
        if let ChannelPhase::Closed { .. } = channel.phase {
            return Poll::Ready(Err(ChannelError::Reset));
        }
        let written = state.client.write(self.id, data);
        if written == 0 {
            channel.writer.register(context);
            return Poll::Pending;
        }
        state.wake_driver();
        Poll::Ready(Ok(written))
    }

    /// Sends EOF behind what was written.
    pub(crate) fn finish(&self) {
        let mut state = self.ssh.shared.lock();
        state.client.finish(self.id);
        state.wake_driver();
    }

    /// Ready when both directions are closed. Shares its waiting task with [`poll_write`](Self::poll_write).
    ///
    /// # Errors
    ///
    /// [`ChannelError::Lost`] when the connection to the bastion ended first.
    pub(crate) fn poll_closed(&self, context: &Context<'_>) -> Poll<Result<(), ChannelError>> {
        let mut state = self.ssh.shared.lock();
        let state = &mut *state;
        let Some(channel) = state.channels.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        if let ChannelPhase::Closed { .. } = channel.phase {
            return Poll::Ready(Ok(()));
        }
        if let ConnectionState::Ended(error) = &state.connection {
            return Poll::Ready(Err(error.clone().into()));
        }
        channel.writer.register(context);
        Poll::Pending
    }

    /// What has arrived and was not read, at most `limit` bytes of it; `None` unless both directions are open, as far as
    /// anything that has arrived tells, read or not.
    pub(crate) fn peek(&self, limit: usize) -> Option<Vec<u8>> {
        let state = self.ssh.shared.lock();
        let is_open = !matches!(state.connection, ConnectionState::Ended(_))
            && matches!(state.channels.get(&self.id)?.phase, ChannelPhase::Open);
        if is_open { state.client.peek(self.id, limit) } else { None }
    }

    /// Ready when there is something to [`peek`](Self::peek) at, or nothing will come any more. Shares its waiting task
    /// with [`poll_read`](Self::poll_read).
    pub(crate) fn poll_heard(&self, context: &Context<'_>) -> Poll<()> {
        if self.peek(1).is_none_or(|heard| !heard.is_empty()) {
            return Poll::Ready(());
        }
        if let Some(channel) = self.ssh.shared.lock().channels.get_mut(&self.id) {
            channel.reader.register(context);
        }
        Poll::Pending
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let mut state = self.ssh.shared.lock();
        state.channels.remove(&self.id);
        state.client.close(self.id);
        state.wake_driver();
        if state.channels.is_empty() {
            drop(state);
            self.ssh.shared.notify();
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Channel").field("id", &self.id).finish_non_exhaustive()
    }
}
