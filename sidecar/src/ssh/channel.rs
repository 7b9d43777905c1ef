//! One channel of the connection: a byte stream to the target, with credit given back on consumption.

use std::{
    borrow::Cow,
    fmt,
    task::{Context, Poll},
};

use bytes::Bytes;
use ssh_client::{ChannelId, OpenFailure};

use super::{
    Ssh, SshError,
    state::{Life, Phase},
};

/// A byte stream to the target. Dropping it closes it in both directions and drops what is still queued.
///
/// Reading and writing take `&self`, so that one task can do both; each direction has one waiter.
pub struct Channel {
    ssh: Ssh,
    id: ChannelId,
}

/// Why a channel did not open.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The server, or the target behind it, refused.
    #[error("the bastion refused the connection: {}: {description}", words(*.reason))]
    Refused {
        /// RFC 4254 §5.1.
        reason: OpenFailure,
        /// The server's words, made printable.
        description: String,
    },
    /// The connection to the bastion is over.
    #[error("the connection to the bastion is over")]
    Lost(#[from] SshError),
}

/// Why a channel carries no more bytes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChannelError {
    /// The far end closed it without saying that its data was complete.
    #[error("the target reset the connection")]
    Reset,
    /// The connection to the bastion is over.
    #[error("the connection to the bastion is over")]
    Lost(#[from] SshError),
}

/// The reason in the words of RFC 4254, section 5.1.
fn words(reason: OpenFailure) -> Cow<'static, str> {
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

    pub(super) async fn opened(&self) -> Result<(), OpenError> {
        std::future::poll_fn(|context| {
            let mut state = self.ssh.shared.lock();
            let state = &mut *state;
            let Some(channel) = state.channels.get_mut(&self.id) else { return Poll::Pending };
            match &channel.phase {
                Phase::Open | Phase::HalfClosed | Phase::Closed { .. } => Poll::Ready(Ok(())),
                Phase::Refused(error) => Poll::Ready(Err(error.clone())),
                Phase::Opening => {
                    if let Life::Ended(error) = &state.life {
                        return Poll::Ready(Err(OpenError::Lost(error.clone())));
                    }
                    channel.reader.register(context);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Takes the next bytes; `None` when the target has sent all it will.
    ///
    /// They count against the channel's window until [`consumed`](Self::consumed) is told.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when the stream was cut; every byte before the cut has been handed out.
    pub fn poll_read(&self, context: &Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        let mut state = self.ssh.shared.lock();
        let state = &mut *state;
        if let Some(bytes) = state.client.read(self.id) {
            return Poll::Ready(Ok(Some(bytes)));
        }
        let Some(channel) = state.channels.get_mut(&self.id) else {
            return Poll::Ready(Err(ChannelError::Reset));
        };
        match channel.phase {
            Phase::HalfClosed | Phase::Closed { complete: true } => return Poll::Ready(Ok(None)),
            Phase::Closed { complete: false } => return Poll::Ready(Err(ChannelError::Reset)),
            Phase::Opening | Phase::Refused(_) | Phase::Open => (),
        }
        if let Life::Ended(error) = &state.life {
            return Poll::Ready(Err(error.clone().into()));
        }
        channel.reader.register(context);
        Poll::Pending
    }

    /// Gives `bytes` of the window back to the server.
    pub fn consumed(&self, bytes: usize) {
        let mut state = self.ssh.shared.lock();
        state.client.consumed(self.id, bytes);
        state.wake_loop();
    }

    /// Queues some of `data` for the target and says how much, at least one byte.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when the stream was cut.
    pub fn poll_write(
        &self,
        context: &Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, ChannelError>> {
        let mut state = self.ssh.shared.lock();
        let state = &mut *state;
        if let Life::Ended(error) = &state.life {
            return Poll::Ready(Err(error.clone().into()));
        }
        let Some(channel) = state.channels.get_mut(&self.id) else {
            return Poll::Ready(Err(ChannelError::Reset));
        };
        if let Phase::Closed { .. } = channel.phase {
            return Poll::Ready(Err(ChannelError::Reset));
        }
        let written = state.client.write(self.id, data);
        if written == 0 {
            channel.writer.register(context);
            return Poll::Pending;
        }
        state.wake_loop();
        Poll::Ready(Ok(written))
    }

    /// Tells the target that no more data follows what was written.
    pub fn finish(&self) {
        let mut state = self.ssh.shared.lock();
        state.client.finish(self.id);
        state.wake_loop();
    }

    /// Ready when the channel is closed in both directions. Shares its waiter with
    /// [`poll_write`](Self::poll_write).
    ///
    /// # Errors
    ///
    /// [`ChannelError::Lost`] when the connection to the bastion ended first.
    pub fn poll_closed(&self, context: &Context<'_>) -> Poll<Result<(), ChannelError>> {
        let mut state = self.ssh.shared.lock();
        let state = &mut *state;
        let Some(channel) = state.channels.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        if let Phase::Closed { .. } = channel.phase {
            return Poll::Ready(Ok(()));
        }
        if let Life::Ended(error) = &state.life {
            return Poll::Ready(Err(error.clone().into()));
        }
        channel.writer.register(context);
        Poll::Pending
    }

    /// Whether the target can still be written to and read from.
    pub fn is_open(&self) -> bool {
        let state = self.ssh.shared.lock();
        let channel = state.channels.get(&self.id);
        !matches!(state.life, Life::Ended(_))
            && channel.is_some_and(|channel| matches!(channel.phase, Phase::Open))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let mut state = self.ssh.shared.lock();
        state.channels.remove(&self.id);
        if state.channels.is_empty() {
            state.watchers.wake();
        }
        state.client.close(self.id);
        state.wake_loop();
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Channel").field("id", &self.id).finish_non_exhaustive()
    }
}
