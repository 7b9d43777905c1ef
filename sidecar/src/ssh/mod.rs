//! The SSH connection: the only loop around [`ssh_client::Client`], over any byte stream.
//!
//! The state machine is behind a mutex that the loop and the channels share, as in quinn: a channel reads and writes
//! its own buffers directly, and wakes the loop only when there is something to send. Window credit is returned to sshd
//! when a channel's bytes were *consumed*, so that a client that does not read stalls only its own connection.

mod channel;
mod driver;
mod error;
mod state;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ssh_client::{Client, Config, Error};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info_span};

use crate::runtime::{clock::now, shared::Shared};

use driver::Driver;
use state::{ChannelState, ConnectionState, Handshake, State};

pub(crate) use channel::{Channel, ChannelError, ChannelOpenError};
pub(crate) use error::SshError;

/// A handle on the connection. Clones share it. The connection ends when the last handle and channel are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Ssh {
    shared: Arc<Shared<State>>,
    /// Ends the loop when the last handle or channel is dropped.
    _alive: Arc<Alive>,
}

/// What the server has proved in the key exchange.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ServerIdentity {
    /// `SHA256:…` of its host key.
    pub(crate) fingerprint: String,
    /// Whether the config pins that key.
    pub(crate) pinned: bool,
    /// Its identification, such as `SSH-2.0-OpenSSH_9.2`.
    pub(crate) server: String,
}

/// Starts an SSH connection over `stream`, as a task of `tasks` that ends with the last handle.
///
/// A stream whose flush is pending carries nothing at present: meanwhile keepalives do not time out. `round_trip`
/// returns what a round trip on the path takes at most, once that is known.
pub(crate) fn start<S>(
    stream: S,
    config: Config,
    round_trip: impl Fn() -> Option<Duration> + Send + 'static,
    tasks: &TaskTracker,
) -> Ssh
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(Shared::new(State::new(Client::new(config, now()))));
    let ssh = Ssh {
        shared: Arc::clone(&shared),
        _alive: Arc::new(Alive { shared: Arc::clone(&shared) }),
    };
    let driver = Driver::new(shared, stream, round_trip);
    tasks.spawn(driver.run().instrument(info_span!("ssh")));
    ssh
}

impl Ssh {
    /// Completes when the server has sent its identification, with that line. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`SshError`] when the connection ends first.
    pub(crate) async fn identified(&self) -> Result<String, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::Silent | Handshake::Receiving => None,
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
    pub(crate) async fn key_exchanged(&self) -> Result<ServerIdentity, SshError> {
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
    /// [`SshError`] when the server refuses, or the connection ends first.
    pub(crate) async fn authenticated(&self) -> Result<ServerIdentity, SshError> {
        self.wait_for(|state| match &state.handshake {
            Handshake::Authenticated(found) => Some(found.clone()),
            _ => None,
        })
        .await
    }

    /// Opens a channel to `host:port` as the bastion resolves it. At the limit of channels it waits until the server has
    /// confirmed the close of one.
    ///
    /// Cancel-safe: a channel whose future was dropped is closed when the server confirms it.
    ///
    /// # Errors
    ///
    /// [`ChannelOpenError`] when the server refuses, or the connection is over.
    pub(crate) async fn open(
        &self,
        host: &str,
        port: u16,
        originator: SocketAddr,
    ) -> Result<Channel, ChannelOpenError> {
        let id = self
            .shared
            .wait_for(|state| {
                if let ConnectionState::Ended(error) = &state.connection {
                    return Some(Err(error.clone()));
                }
                match state.client.open_direct_tcpip(host, port, originator) {
                    Err(Error::ChannelsExhausted { .. }) => None,
                    Err(error) => Some(Err(error.into())),
                    Ok(id) => {
                        state.channels.insert(id, ChannelState::default());
                        state.wake_driver();
                        Some(Ok(id))
                    }
                }
            })
            .await?;
        // Created before the confirmation, so that its drop closes a channel that is not waited for any more.
        let channel = Channel::new(self.clone(), id);
        channel.opened().await?;
        Ok(channel)
    }

    /// Completes when the connection is over, with the reason. Cancel-safe.
    pub(crate) async fn ended(&self) -> SshError {
        match self.wait_for(|_| None::<Infallible>).await {
            Err(error) => error,
        }
    }

    /// Whether anything was received.
    pub(crate) fn has_received(&self) -> bool {
        !matches!(self.shared.lock().handshake, Handshake::Silent)
    }

    /// The server's words for people so far: what it has sent ahead of its identification, then the last banner of the
    /// login. On one line, escaped.
    pub(crate) fn words(&self) -> Option<String> {
        let state = self.shared.lock();
        state.banner.clone().or_else(|| state.client.preamble())
    }

    /// Channels that are open or being opened.
    pub(crate) fn channels(&self) -> usize {
        self.shared.lock().channels.len()
    }

    /// Channels that carry bulk data at present.
    pub(crate) fn channels_in_bulk(&self) -> usize {
        self.shared.lock().client.channels_in_bulk(now())
    }

    /// Since when a keepalive request is unanswered, and nothing else was received; `None` if none is, and once the
    /// connection is over.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        let state = self.shared.lock();
        match state.connection {
            ConnectionState::Ended(_) => None,
            _ => state.client.unanswered_since(),
        }
    }

    /// Whether the connection is over.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.shared.lock().connection, ConnectionState::Ended(_))
    }

    /// Completes when no channel is open or being opened, or the connection is over. Cancel-safe.
    pub(crate) async fn channels_closed(&self) {
        drop(self.wait_for(|state| state.channels.is_empty().then_some(())).await);
    }

    async fn wait_for<T>(&self, found: impl Fn(&State) -> Option<T>) -> Result<T, SshError> {
        self.shared
            .wait_for(|state| match (found(state), &state.connection) {
                (Some(found), _) => Some(Ok(found)),
                (None, ConnectionState::Ended(error)) => Some(Err(error.clone())),
                (None, _) => None,
            })
            .await
    }
}

/// Disconnects when the last handle is dropped.
#[derive(Debug)]
struct Alive {
    shared: Arc<Shared<State>>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.shared.lock().disconnect();
    }
}

#[cfg(test)]
mod tests;
