//! The SSH connection: the only loop around [`ssh_client::Client`], over any byte stream.
//!
//! The state machine sits behind a mutex that the loop and the channels share, as in quinn: a channel
//! reads and writes its own buffers directly, and wakes the loop only when there is something to send.
//! Window credit goes back to sshd when a channel's bytes were *consumed*, so a connection whose client
//! does not read stalls itself alone.

mod channel;
mod driver;
mod state;

use std::{
    convert::Infallible, future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration,
};

use ssh_client::{Client, Config, Error};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info_span};

use crate::runtime::clock::now;

use driver::Connection;
use state::{ChannelState, Handshake, Life, Shared, State};

pub use channel::{Channel, ChannelError, OpenError};

/// A handle on the connection; clones share it. The connection ends when the last one is dropped, or
/// with [`disconnect`](Self::disconnect).
#[derive(Clone, Debug)]
pub struct Ssh {
    shared: Arc<Shared>,
    /// Ends the loop when the last handle or channel is gone.
    _alive: Arc<Alive>,
}

/// What the key exchange found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connected {
    /// `SHA256:…` of the host key that the server proved to have.
    pub fingerprint: String,
    /// Whether the document pinned it.
    pub pinned: bool,
    /// The server's identification, such as `SSH-2.0-OpenSSH_9.2`.
    pub server: String,
}

/// Why the connection is over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SshError {
    /// The state machine found an end: a refusal, a violation, a disconnect.
    #[error(transparent)]
    Protocol(Arc<Error>),
    /// The byte stream below ended.
    #[error("the byte stream to sshd ended")]
    StreamEnded,
}

/// Begins to speak SSH over `stream`, on a task of `tasks` that ends with the last handle.
///
/// A stream whose flush is pending carries nothing at present: meanwhile the server's silence is not held
/// against it. `round_trip` says what a round trip on the path takes at most, once that is known.
pub fn start<S>(
    stream: S,
    config: Config,
    round_trip: impl Fn() -> Option<Duration> + Send + 'static,
    tasks: &TaskTracker,
) -> Ssh
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(Shared::new(Client::new(config, now())));
    let ssh = Ssh {
        shared: Arc::clone(&shared),
        _alive: Arc::new(Alive { shared: Arc::clone(&shared) }),
    };
    let connection = Connection::new(shared, stream, round_trip);
    tasks.spawn(connection.run().instrument(info_span!("ssh")));
    ssh
}

impl Ssh {
    /// Completes when the server has sent its identification, with that line. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`SshError`] when the connection ends first.
    pub async fn identified(&self) -> Result<String, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::Silent | Handshake::Speaking => None,
            Handshake::Identified { server } => Some(server.clone()),
            Handshake::KeyExchanged(found) | Handshake::Authenticated(found) => {
                Some(found.server.clone())
            }
        })
        .await
    }

    /// Completes when the server has proved its host key. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`SshError`] when the connection ends first.
    pub async fn key_exchanged(&self) -> Result<Connected, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::KeyExchanged(found) | Handshake::Authenticated(found) => Some(found.clone()),
            _ => None,
        })
        .await
    }

    /// Completes when the server has accepted the user's key. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`SshError`] when the server refuses, breaks the protocol or goes away first.
    pub async fn authenticated(&self) -> Result<Connected, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::Authenticated(found) => Some(found.clone()),
            _ => None,
        })
        .await
    }

    /// Opens a channel to `host:port` as the bastion resolves it. Where there are as many as may be, since the server
    /// has not answered the close of some yet, it waits for that.
    ///
    /// Cancel-safe: a channel whose future was dropped is closed when the server confirms it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the server refuses, or the connection is over.
    pub async fn open(
        &self,
        host: &str,
        port: u16,
        originator: SocketAddr,
    ) -> Result<Channel, OpenError> {
        let id = poll_fn(|context| {
            let mut state = self.shared.lock();
            if let Life::Ended(error) = &state.life {
                return Poll::Ready(Err(error.clone()));
            }
            match state.client.open_direct_tcpip(host, port, originator) {
                Err(Error::ChannelsExhausted { .. }) => {
                    state.watchers.register(context);
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error.into())),
                Ok(id) => {
                    state.channels.insert(id, ChannelState::default());
                    state.wake_loop();
                    Poll::Ready(Ok(id))
                }
            }
        })
        .await?;
        // Made before the confirmation, so that its drop closes a channel that nobody waits for.
        let channel = Channel::new(self.clone(), id);
        channel.opened().await?;
        Ok(channel)
    }

    /// Says goodbye to the server; the loop ends after that was written.
    pub fn disconnect(&self) {
        self.shared.lock().leave();
    }

    /// Completes when the connection is over, with the reason. Cancel-safe.
    pub async fn ended(&self) -> SshError {
        match self.wait_for(|_| None::<Infallible>).await {
            Err(error) => error,
        }
    }

    /// Whether the far end has sent anything at all.
    pub fn has_received(&self) -> bool {
        !matches!(self.shared.lock().handshake, Handshake::Silent)
    }

    /// Channels that are open or being opened.
    pub fn channels(&self) -> usize {
        self.shared.lock().channels.len()
    }

    /// Those among them that carry data in bulk at this time.
    pub fn channels_in_bulk(&self) -> usize {
        self.shared.lock().client.channels_in_bulk(now())
    }

    /// Completes when no channel is open or being opened. Cancel-safe.
    pub async fn emptied(&self) {
        // A connection that is over has none either.
        drop(self.wait_for(|state| state.channels.is_empty().then_some(())).await);
    }

    async fn wait_for<T>(&self, found: impl Fn(&State) -> Option<T>) -> Result<T, SshError> {
        poll_fn(|context| {
            let mut state = self.shared.lock();
            if let Some(found) = found(&state) {
                return Poll::Ready(Ok(found));
            }
            if let Life::Ended(error) = &state.life {
                return Poll::Ready(Err(error.clone()));
            }
            state.watchers.register(context);
            Poll::Pending
        })
        .await
    }
}

impl From<Error> for SshError {
    fn from(error: Error) -> Self {
        Self::Protocol(Arc::new(error))
    }
}

/// Tells the loop that nobody holds the connection any more.
#[derive(Debug)]
struct Alive {
    shared: Arc<Shared>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.shared.lock().leave();
    }
}

#[cfg(test)]
mod tests;
