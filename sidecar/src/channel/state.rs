//! What the loop and the handles share: the state machine, the path below it and the end.

use std::{sync::Arc, time::Instant};

use data_channel::{DataChannel, Event, UploadLimits};
use parking_lot::Mutex;
use tracing::{debug, info};

use super::{ChannelEnd, Outage, PathLoss};
use crate::runtime::{clock::now, wakers::Waiter};

/// After each change of what handles wait for (`agent_version`, `path`, `end`) the loop calls
/// [`Shared::notify`](crate::runtime::shared::Shared::notify).
pub(super) struct State {
    pub(super) channel: DataChannel,
    /// Shared by all channels.
    upload_limits: Arc<Mutex<UploadLimits>>,
    /// What this one has told, or began with.
    noted_limits: UploadLimits,
    /// Set when the handshake is done.
    pub(super) agent_version: Option<String>,
    pub(super) end: Option<ChannelEnd>,
    pub(super) termination: Termination,
    /// The loop is to end without a message to the service.
    pub(super) abandoned: bool,
    pub(super) path: PathState,
    /// When the last frame was received, of whatever kind.
    pub(super) heard_at: Instant,
    /// When the last outage began; it may still go on.
    outage_began: Instant,
    pub(super) reader: Waiter,
    pub(super) writer: Waiter,
    /// The loop, while it waits for something to send.
    pub(super) driver: Waiter,
}

/// The progress of a termination by this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Termination {
    None,
    /// The flag was sent.
    Sent,
    /// The agent has acknowledged it.
    Acknowledged,
}

/// Whether there is a WebSocket.
#[derive(Clone, Debug)]
pub(super) enum PathState {
    Up,
    /// The session is being resumed, or could not be.
    Down(Disconnected),
}

/// The loss of a WebSocket.
#[derive(Clone, Debug)]
pub(crate) struct Disconnected {
    /// When the outage began.
    pub(crate) since: Instant,
    /// How the last WebSocket was lost.
    pub(crate) loss: PathLoss,
    pub(crate) reason: String,
}

impl State {
    pub(super) fn new(channel: DataChannel, upload_limits: Arc<Mutex<UploadLimits>>) -> Self {
        Self {
            noted_limits: channel.upload_limits(),
            channel,
            upload_limits,
            agent_version: None,
            end: None,
            termination: Termination::None,
            abandoned: false,
            path: PathState::Up,
            heard_at: now(),
            outage_began: now(),
            reader: Waiter::default(),
            writer: Waiter::default(),
            driver: Waiter::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.path, PathState::Up) && self.end.is_none()
    }

    /// Whether the channel has ended by the service's close or by a termination, rather than by an error.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.end, Some(ChannelEnd::Closed(_) | ChannelEnd::Terminated))
    }

    pub(super) fn on_disconnected(&mut self, outage: Outage, loss: PathLoss, reason: String) {
        let now = now();
        self.channel.on_disconnected(now);
        self.note_limits();
        if outage == Outage::New {
            self.outage_began = now;
        }
        self.path = PathState::Down(Disconnected { since: self.outage_began, loss, reason });
    }

    pub(super) fn on_resumed(&mut self) {
        self.channel.on_resumed(now());
        self.path = PathState::Up;
        // Writes wait while the path is down, see `SessionStream::poll_flush`.
        self.writer.wake();
    }

    pub(super) fn on_end(&mut self, end: ChannelEnd) {
        self.note_limits();
        self.end.get_or_insert(end);
        self.reader.wake();
        self.writer.wake();
    }

    pub(super) fn messages_received(&self) -> u64 {
        self.channel.statistics().messages_received
    }

    pub(super) fn wake_driver(&mut self) {
        self.driver.wake();
    }

    pub(super) fn wake_stream(&mut self) {
        self.reader.wake();
        if self.channel.writable() > 0 {
            self.writer.wake();
        }
    }

    /// Whether the WebSocket, or the channel, was lost soon after a pause or during a fast upload.
    pub(super) fn is_congested(&self) -> bool {
        self.channel.is_congested()
    }

    /// Tells the channels opened later what this one has learned since the last time.
    pub(super) fn note_limits(&mut self) {
        let limits = self.channel.upload_limits();
        if limits != self.noted_limits {
            self.noted_limits = limits;
            *self.upload_limits.lock() = limits;
        }
    }

    /// Takes the channel's events. Returns the end when the service or the agent has ended it.
    pub(super) fn take_events(&mut self) -> Option<ChannelEnd> {
        while let Some(event) = self.channel.poll_event() {
            match event {
                Event::Open { agent_version, customer_message } => {
                    if !customer_message.is_empty() {
                        info!(
                            text = customer_message,
                            "message of the customer's session preferences"
                        );
                    }
                    debug!(agent_version, "handshake complete");
                    self.agent_version = Some(agent_version);
                }
                Event::Terminated => self.termination = Termination::Acknowledged,
                Event::Closed { reason } => {
                    return Some(match self.termination {
                        Termination::None => ChannelEnd::Closed(reason),
                        Termination::Sent | Termination::Acknowledged => ChannelEnd::Terminated,
                    });
                }
                Event::Paused => {
                    self.note_limits();
                    let bytes_per_second = self.channel.upload_limits().bytes_per_second();
                    info!(bytes_per_second, "the service has paused the upload");
                }
                Event::Failed(error) => return Some(ChannelEnd::Protocol(Arc::new(error))),
                other => debug!(event = ?other, "event of the data channel"),
            }
        }
        None
    }
}
