//! What the loop and the handles share: the state machine, and what has become of each thing waited for.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ssh_client::{ChannelId, Client, Event};
use tracing::info;

use super::{Connected, OpenError, SshError};
use crate::runtime::wakers::{Waiter, Waiters};

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(client: Client) -> Self {
        Self { state: Mutex::new(State::new(client)) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held ends the process with `internal`; until then the bytes are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) client: Client,
    pub(super) channels: HashMap<ChannelId, ChannelState>,
    /// The loop, when it waits for something to send.
    pub(super) driver: Waiter,
    /// Whoever waits for a step of the handshake, for room for a channel or for the end.
    pub(super) watchers: Waiters,
    pub(super) handshake: Handshake,
    pub(super) life: Life,
}

/// How far client and server have come with each other.
#[derive(Debug)]
pub(super) enum Handshake {
    /// Nothing has come from the far end.
    Silent,
    /// Something has, which is no identification yet.
    Speaking,
    /// The server has sent its identification.
    Identified { server: String },
    /// It has proved its host key.
    KeyExchanged(Connected),
    /// It has accepted the user's key.
    Authenticated(Connected),
}

/// How far the connection is from its end.
#[derive(Debug)]
pub(super) enum Life {
    Running,
    /// It ends once all is written.
    Leaving,
    Ended(SshError),
}

#[derive(Debug, Default)]
pub(super) struct ChannelState {
    pub(super) phase: Phase,
    pub(super) reader: Waiter,
    pub(super) writer: Waiter,
}

#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Opening,
    Refused(OpenError),
    Open,
    /// The server sends no more.
    HalfClosed,
    /// It is over in both directions; `complete` unless the server closed it amid its data.
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
    fn new(client: Client) -> Self {
        Self {
            client,
            channels: HashMap::new(),
            driver: Waiter::default(),
            watchers: Waiters::default(),
            handshake: Handshake::Silent,
            life: Life::Running,
        }
    }

    pub(super) fn wake_loop(&mut self) {
        self.driver.wake();
    }

    pub(super) fn leave(&mut self) {
        self.client.disconnect();
        if let Life::Running = self.life {
            self.life = Life::Leaving;
        }
        self.wake_loop();
    }

    pub(super) fn end(&mut self, error: SshError) {
        self.life = Life::Ended(error);
        self.watchers.wake();
        self.channels.values_mut().for_each(ChannelState::wake);
    }

    pub(super) fn handle_event(&mut self, event: Event) {
        match event {
            Event::ServerIdentified(server) => {
                self.handshake = Handshake::Identified { server };
                self.watchers.wake();
            }
            Event::HostKey { fingerprint, pinned } => {
                self.step(|handshake| handshake.on_host_key(fingerprint, pinned));
            }
            Event::Banner(text) => info!(text, "banner of the bastion"),
            Event::Authenticated(details) => {
                info!(?details, "authenticated");
                self.step(Handshake::on_authenticated);
            }
            Event::ChannelOpened(id) => self.with_channel(id, |channel| {
                channel.phase = Phase::Open;
            }),
            Event::ChannelRefused { id, reason, description } => self.with_channel(id, |channel| {
                channel.phase = Phase::Refused(OpenError::Refused { reason, description });
            }),
            Event::Readable(id) => self.with_channel(id, |_| ()),
            Event::Writable(id) => self.with_channel(id, |_| ()),
            Event::Eof(id) => self.with_channel(id, |channel| channel.phase = Phase::HalfClosed),
            Event::Closed(id) => {
                self.with_channel(id, |channel| {
                    let complete = matches!(channel.phase, Phase::HalfClosed);
                    channel.phase = Phase::Closed { complete };
                });
                // There is room for another one.
                self.watchers.wake();
            }
        }
    }

    fn step(&mut self, next: impl FnOnce(Handshake) -> Handshake) {
        self.handshake = next(mem::replace(&mut self.handshake, Handshake::Silent));
        self.watchers.wake();
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
            *self = Self::Speaking;
        }
    }

    fn on_host_key(self, fingerprint: String, pinned: bool) -> Self {
        match self {
            Self::Identified { server } => {
                Self::KeyExchanged(Connected { fingerprint, pinned, server })
            }
            other => {
                unreachable!("a host key is told of once, behind the identification: {other:?}")
            }
        }
    }

    fn on_authenticated(self) -> Self {
        match self {
            Self::KeyExchanged(found) => Self::Authenticated(found),
            other => unreachable!("keys are exchanged before the login: {other:?}"),
        }
    }
}
