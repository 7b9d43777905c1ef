//! What the loop and the handles share: the state machine, the handshake and the channels.

use std::{collections::HashMap, mem};

use ssh_client::{ChannelId, Client, Event, Negotiated};
use tracing::info;

use super::{ChannelOpenError, ServerIdentity, SshError};
use crate::runtime::wakers::Waiter;

#[derive(Debug)]
pub(super) struct State {
    pub(super) client: Client,
    pub(super) channels: HashMap<ChannelId, ChannelState>,
    /// The loop, while it waits for something to send.
    pub(super) driver: Waiter,
    pub(super) handshake: Handshake,
    /// The last text for people during the login.
    pub(super) banner: Option<String>,
    pub(super) connection: ConnectionState,
}

/// The progress of the handshake.
#[derive(Debug)]
pub(super) enum Handshake {
    /// Nothing was received.
    Silent,
    /// Something was received, but no identification yet.
    Receiving,
    Identified {
        server: String,
    },
    /// The server has proved its host key.
    KeyExchanged(ServerIdentity),
    /// The server has accepted the user's key.
    Authenticated(ServerIdentity),
}

#[derive(Debug)]
pub(super) enum ConnectionState {
    Running,
    /// It ends once everything is written.
    Closing,
    Ended(SshError),
}

#[derive(Debug, Default)]
pub(super) struct ChannelState {
    pub(super) phase: ChannelPhase,
    pub(super) reader: Waiter,
    pub(super) writer: Waiter,
}

#[derive(Debug, Default)]
pub(super) enum ChannelPhase {
    #[default]
    Opening,
    Refused(ChannelOpenError),
    Open,
    /// The server has sent EOF.
    HalfClosed,
    /// Closed in both directions; `complete` if the server's EOF came first.
    Closed {
        complete: bool,
    },
}

impl ChannelState {
    fn wake(&mut self) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl State {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            channels: HashMap::new(),
            driver: Waiter::default(),
            handshake: Handshake::Silent,
            banner: None,
            connection: ConnectionState::Running,
        }
    }

    pub(super) fn wake_driver(&mut self) {
        self.driver.wake();
    }

    pub(super) fn disconnect(&mut self) {
        self.client.disconnect();
        if let ConnectionState::Running = self.connection {
            self.connection = ConnectionState::Closing;
        }
        self.wake_driver();
    }

    pub(super) fn on_end(&mut self, error: SshError) {
        self.connection = ConnectionState::Ended(error);
        self.channels.values_mut().for_each(ChannelState::wake);
    }

    /// Applies `event`; returns whether tasks may wait for it with
    /// [`Shared::wait_for`](crate::runtime::shared::Shared::wait_for).
    pub(super) fn handle_event(&mut self, event: Event) -> bool {
        match event {
            Event::ServerIdentified(server) => {
                self.handshake = Handshake::Identified { server };
                return true;
            }
            Event::HostKey { fingerprint, pinned } => {
                self.advance(|handshake| handshake.on_host_key(fingerprint, pinned));
                return true;
            }
            Event::Banner(text) => {
                info!(text, "banner of the bastion");
                self.banner = Some(text);
            }
            Event::Authenticated(Negotiated { kex, host_key, cipher, mac, compressed }) => {
                info!(kex, host_key, cipher, mac, compressed, "authenticated");
                self.advance(Handshake::on_authenticated);
                return true;
            }
            Event::ChannelOpened(id) => self.with_channel(id, |channel| {
                channel.phase = ChannelPhase::Open;
            }),
            Event::ChannelRefused { id, reason, description } => self.with_channel(id, |channel| {
                channel.phase =
                    ChannelPhase::Refused(ChannelOpenError::Refused { reason, description });
            }),
            Event::Readable(id) => self.with_channel(id, |_| ()),
            Event::Writable(id) => self.with_channel(id, |_| ()),
            Event::Eof(id) => {
                self.with_channel(id, |channel| channel.phase = ChannelPhase::HalfClosed);
            }
            Event::Closed(id) => {
                self.with_channel(id, |channel| {
                    let complete = matches!(channel.phase, ChannelPhase::HalfClosed);
                    channel.phase = ChannelPhase::Closed { complete };
                });
                // There is room for another channel.
                return true;
            }
        }
        false
    }

    fn advance(&mut self, next: impl FnOnce(Handshake) -> Handshake) {
        self.handshake = next(mem::replace(&mut self.handshake, Handshake::Silent));
    }

    fn with_channel(&mut self, id: ChannelId, change: impl FnOnce(&mut ChannelState)) {
        if let Some(channel) = self.channels.get_mut(&id) {
            change(channel);
            channel.wake();
        }
    }
}

impl Handshake {
    pub(super) fn on_received(&mut self) {
        if let Self::Silent = self {
            *self = Self::Receiving;
        }
    }

    fn on_host_key(self, fingerprint: String, pinned: bool) -> Self {
        match self {
            Self::Identified { server } => {
                Self::KeyExchanged(ServerIdentity { fingerprint, pinned, server })
            }
            other => {
                unreachable!("one host key follows the identification: {other:?}")
            }
        }
    }

    fn on_authenticated(self) -> Self {
        match self {
            Self::KeyExchanged(found) => Self::Authenticated(found),
            other => unreachable!("the login follows the key exchange: {other:?}"),
        }
    }
}
